//! The admin listener: metrics, health and readiness, status, and reloads on demand. It shares nothing with the listeners for traffic:
//! own socket, own HTTP settings, no route can reach it, and its requests are neither logged nor counted.

mod answer;
pub mod client;
mod control;
mod guard;
mod server;

pub use self::control::Control;
pub use self::guard::Settings;
pub use self::server::serve;

#[cfg(test)]
mod tests;
