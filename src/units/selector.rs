//! What a request is counted, hashed or told apart by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What to count, hash or read by: one property of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The client address after `trusted_proxies`; IPv6 by its /64.
    Ip,
    /// The authenticated subject.
    User,
    /// One bucket for all (rate limits only).
    Global,
    /// A request header's value; the name is lower case.
    Header(http::HeaderName),
    /// A cookie's value.
    Cookie(String),
    /// A query parameter's first value, decoded.
    Query(String),
    /// A path parameter or named group of the route.
    Param(String),
    /// The normalised path.
    Path,
    /// The normalised host.
    Host,
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a selector: write ip, user, header:NAME, cookie:NAME, query:NAME, param:NAME, path, host or (rate limits) global"
            )
        };
        Ok(match text {
            "ip" => Self::Ip,
            "user" => Self::User,
            "global" => Self::Global,
            "path" => Self::Path,
            "host" => Self::Host,
            _ => {
                let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
                if name.is_empty() {
                    return Err(wrong());
                }
                match kind {
                    "header" => Self::Header(name.parse().map_err(|_| format!("`{name}` in `{text}` is not a header name"))?),
                    "cookie" => Self::Cookie(name.to_owned()),
                    "query" => Self::Query(name.to_owned()),
                    "param" => Self::Param(name.to_owned()),
                    _ => return Err(wrong()),
                }
            }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::User => f.write_str("user"),
            Self::Global => f.write_str("global"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Param(name) => write!(f, "param:{name}"),
            Self::Path => f.write_str("path"),
            Self::Host => f.write_str("host"),
        }
    }
}
text_form!(
    Selector,
    "Selector",
    r"^(ip|user|global|path|host|(header|cookie|query|param):.+)$",
    "a selector: ip, user, header:NAME, cookie:NAME, query:NAME, param:NAME, path or host"
);
