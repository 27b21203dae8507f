//! Request targets and hosts: checked and made canonical once, so that the bytes policy matches are the bytes that are forwarded.

mod encoding;
mod framing;
mod host;
mod path;

use http::{Method, Uri};

pub use encoding::{
    cookie_bytes, cookie_value, encode_query_component, encode_segment, form_decode_bytes, percent_decode, percent_decode_bytes,
    query_bytes, query_value,
};
pub use framing::{check_framing, sent_twice};
pub use host::{canonical_host, host};
pub use path::{canonical, canonical_path};

/// The form of a request target (RFC 9112 section 3.2). The authority form of `CONNECT` is none of these: `CONNECT` is answered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`; the host is in `Host`.
    Origin,
    /// `http://host/path?query`, and every HTTP/2 request: the host is in the target.
    Absolute,
    /// `OPTIONS *`: about the gateway itself, not routed.
    Asterisk,
}

/// Which form the target has, or one fixed sentence for the 400.
///
/// # Errors
/// Anything but an origin form, an absolute form with http or https, and `OPTIONS *`.
pub fn check_target(method: &Method, uri: &Uri) -> Result<TargetForm, &'static str> {
    const WRONG: &str = "The request target is neither a path nor an http or https URL.";
    if uri.path() == "*" {
        return if *method == Method::OPTIONS { Ok(TargetForm::Asterisk) } else { Err("The target * is for OPTIONS only.") };
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/')) => Ok(TargetForm::Origin),
        (Some("http" | "https"), Some(_)) => Ok(TargetForm::Absolute),
        _ => Err(WRONG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(method: &str, target: &str) -> Result<TargetForm, &'static str> {
        check_target(&Method::from_bytes(method.as_bytes()).unwrap(), &target.parse().unwrap())
    }

    #[test]
    fn paths_urls_and_options_asterisk_are_the_only_forms() {
        assert_eq!(form("GET", "/x?y"), Ok(TargetForm::Origin));
        assert_eq!(form("GET", "http://other/"), Ok(TargetForm::Absolute));
        assert_eq!(form("GET", "HTTPS://other:1?x"), Ok(TargetForm::Absolute));
        assert_eq!(form("OPTIONS", "*"), Ok(TargetForm::Asterisk));
        for (method, target) in [("GET", "foo"), ("GET", "foo:80"), ("GET", "ftp://x/"), ("GET", "*"), ("options", "*")] {
            assert!(form(method, target).is_err(), "{method} {target}");
        }
    }
}
