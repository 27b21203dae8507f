//! The hook for steps of one's own, for those who use Tollgate as a library.
//!
//! A step is a type with [`Middleware`], given to [`crate::server::Options`]. What is written in `gateway.yaml` needs none of this.

use http::{HeaderMap, StatusCode};

use crate::error::Refusal;
use crate::http::Exchange;

/// A step in every route's chain. It runs on the worker threads: it must not block.
///
/// On the way in steps run in order, after authentication and all limits: the caller is known ([`Exchange::user`]), the credential is
/// already taken out of the headers. What follows is the gateway's own: rewriting, forwarded fields, identity, header rules; so a step
/// cannot fake what those say. On the way out they run in reverse order, over upstream and gateway-made responses alike, before
/// CORS and RateLimit fields are put on.
pub trait Middleware: Send + Sync {
    /// Looks at a request on `route`, changes its fields, or refuses it.
    ///
    /// # Errors
    /// The refusal that the client gets instead of the target's answer.
    fn request(&self, route: &str, exchange: &Exchange, headers: &mut HeaderMap) -> Result<(), Box<Refusal>> {
        let _ = (route, exchange, headers);
        Ok(())
    }

    /// Looks at a response of `route` and changes its fields.
    fn response(&self, route: &str, exchange: &Exchange, status: StatusCode, headers: &mut HeaderMap) {
        let _ = (route, exchange, status, headers);
    }
}
