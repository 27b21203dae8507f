//! What the admin listener needs of the gateway.

use std::pin::Pin;

use crate::gateway::status::{Info, Ready, ReloadOutcome, RouteStatus, UpstreamStatus};

/// The gateway, as the admin listener sees it. Everything but `reload` answers at once.
pub trait Control: Send + Sync + 'static {
    /// `GET /info`.
    fn info(&self) -> Info;
    /// `GET /ready`.
    fn ready(&self) -> Ready;
    /// `GET /routes`, in order of precedence.
    fn routes(&self) -> Vec<RouteStatus>;
    /// `GET /upstreams`.
    fn upstreams(&self) -> Vec<UpstreamStatus>;
    /// `GET /config`: the effective configuration, without any secret.
    fn effective_config(&self) -> serde_json::Value;
    /// `GET /metrics`, as text.
    fn metrics(&self) -> String;
    /// `POST /reload`; calls queue.
    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadOutcome> + Send>>;
}
