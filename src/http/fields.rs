//! Header fields that belong to one connection or to the framing of one message, and so never to a rule or a list of fields to pass on.

/// Fields that end at the next hop (RFC 9110 section 7.6.1), lower case.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Whether the field (lower case) ends at the next hop.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// Whether the gateway alone makes the field (lower case): connection, framing and `Host`.
pub fn is_reserved(name: &str) -> bool {
    matches!(name, "host" | "content-length") || (is_hop_by_hop(name) && !name.starts_with("proxy-auth"))
}
