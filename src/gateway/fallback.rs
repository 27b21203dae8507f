//! What answers get that belong to no route.

use http::HeaderMap;

use crate::http::Exchange;
use crate::middleware::cors::Cors;
use crate::middleware::headers::HeaderRules;

/// `headers` and `cors` of `defaults`, for answers without a route.
pub struct Fallback {
    /// `headers`.
    pub headers: HeaderRules,
    /// `cors`.
    pub cors: Option<Cors>,
}

impl Fallback {
    /// Puts the fields on a response.
    pub fn finish_response(&self, ex: &Exchange, origin: Option<&[u8]>, headers: &mut HeaderMap) {
        if self.headers.change_responses() {
            self.headers.response(ex, headers, ex.scheme == crate::http::Scheme::Https);
        }
        if let Some(cors) = &self.cors {
            cors.apply(origin, headers);
        }
    }
}
