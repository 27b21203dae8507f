//! What the gateway tells about itself: metrics, the access log, application events, and notes to the service manager.

pub mod access_log;
pub mod events;
pub mod metrics;
pub mod sd_notify;
pub mod time;
