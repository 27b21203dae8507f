//! The gateway: a configuration compiled into a [`snapshot::Snapshot`], and requests handled by it.

pub mod answer;
mod check;
pub mod custom;
mod deadline;
pub mod ending;
pub mod fallback;
pub mod handle;
mod inbound;
pub mod mirror;
mod reply;
pub mod route;
pub mod shared;
pub mod snapshot;
pub mod status;
pub mod target;
pub mod tunnel;
mod tunnel_side;
pub mod view;

pub use custom::Middleware;
pub use ending::Ending;
pub use handle::handle;
pub use inbound::{Client, Inbound};
pub use reply::Answered;
pub use shared::Shared;
pub use snapshot::{Snapshot, compile, compile_and};
pub use view::View;
