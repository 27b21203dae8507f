//! The admin listener: metrics, health and readiness, status, and reloads on demand. It shares nothing with the listeners for traffic.

mod control;

pub use self::control::Control;
