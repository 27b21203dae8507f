//! What comes with a request. All of it is lent: who serves the connection or the stream holds on to it until the request is accounted for,
//! so that a request counts no references of its own.

use std::sync::Arc;

use crate::gateway::ending::Ending;
use crate::gateway::view::View;
use crate::http::Connection;
use crate::http::connection::Link;
use crate::http::headers::Survey;
use crate::http::upgrade::Upgrading;

/// What the requests of a connection have in common.
#[derive(Debug)]
pub struct Client {
    /// The worker the connection is on.
    pub worker: usize,
    /// Facts about the connection.
    pub connection: Connection,
    /// What its listener says of its end.
    pub ending: Arc<Ending>,
}

/// What a connection hands over with each of its requests.
pub struct Inbound<'a> {
    /// Whose request it is.
    pub client: &'a Client,
    /// The configuration the request runs on to its end.
    pub snapshot: &'a Arc<View>,
    /// What the answer goes back on.
    pub link: &'a Link,
    /// The byte stream behind the request, for one that asks for an upgrade.
    pub upgrading: Option<Upgrading>,
    /// Which special fields the request has, if that was seen when it was read.
    pub survey: Option<Survey>,
}
