//! Which of the fields that a proxy has to look at are there at all, found in one pass: a look-up of each would hash a dozen names
//! per message, and most messages have two or three of them.

use http::{HeaderMap, HeaderName};

/// Fields that are present in a header map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey(u16);

impl Survey {
    const TRANSFER_ENCODING: u16 = 1;
    const CONTENT_LENGTH: u16 = 1 << 1;
    const UPGRADE: u16 = 1 << 2;
    const EXPECT: u16 = 1 << 3;
    const TRAILER: u16 = 1 << 4;
    const ORIGIN: u16 = 1 << 5;
    const COOKIE: u16 = 1 << 6;
    const CONNECTION: u16 = 1 << 7;
    const KEEP_ALIVE: u16 = 1 << 8;
    /// Any other field of one connection.
    const OTHER_HOP: u16 = 1 << 9;
    const HOP_BY_HOP: u16 = Self::TRANSFER_ENCODING | Self::UPGRADE | Self::CONNECTION | Self::KEEP_ALIVE | Self::OTHER_HOP;

    /// Looks over the names.
    pub fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |seen, name| Self(seen.0 | bit(name.as_str())))
    }

    /// Notes a field.
    pub fn add(&mut self, name: &HeaderName) {
        self.0 |= bit(name.as_str());
    }

    /// `Transfer-Encoding`.
    pub fn transfer_encoding(self) -> bool {
        self.0 & Self::TRANSFER_ENCODING != 0
    }
    /// `Content-Length`.
    pub fn content_length(self) -> bool {
        self.0 & Self::CONTENT_LENGTH != 0
    }
    /// `Upgrade`.
    pub fn upgrade(self) -> bool {
        self.0 & Self::UPGRADE != 0
    }
    /// `Expect`.
    pub fn expect(self) -> bool {
        self.0 & Self::EXPECT != 0
    }
    /// `Trailer`.
    pub fn trailer(self) -> bool {
        self.0 & Self::TRAILER != 0
    }
    /// `Origin`.
    pub fn origin(self) -> bool {
        self.0 & Self::ORIGIN != 0
    }
    /// `Cookie`.
    pub fn cookie(self) -> bool {
        self.0 & Self::COOKIE != 0
    }
    /// `Connection`.
    pub fn connection(self) -> bool {
        self.0 & Self::CONNECTION != 0
    }
    /// Any field that concerns one connection only.
    pub fn hop_by_hop(self) -> bool {
        self.0 & Self::HOP_BY_HOP != 0
    }
    /// Of the fields that concern one connection only, none but `Connection`.
    pub fn only_connection(self) -> bool {
        self.0 & Self::HOP_BY_HOP == Self::CONNECTION
    }
    /// `Keep-Alive`.
    pub fn keep_alive(self) -> bool {
        self.0 & Self::KEEP_ALIVE != 0
    }
}

/// By length first: nearly every name is told apart by it.
fn bit(name: &str) -> u16 {
    match (name.len(), name) {
        (6, "expect") => Survey::EXPECT,
        (6, "origin") => Survey::ORIGIN,
        (6, "cookie") => Survey::COOKIE,
        (7, "upgrade") => Survey::UPGRADE,
        (7, "trailer") => Survey::TRAILER,
        (10, "connection") => Survey::CONNECTION,
        (10, "keep-alive") => Survey::KEEP_ALIVE,
        (14, "content-length") => Survey::CONTENT_LENGTH,
        (17, "transfer-encoding") => Survey::TRANSFER_ENCODING,
        (2, "te") | (14, "http2-settings") | (16, "proxy-connection") | (18, "proxy-authenticate") | (19, "proxy-authorization") => {
            Survey::OTHER_HOP
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_seen_and_no_other() {
        type Question = fn(Survey) -> bool;
        let questions: [(&str, Question); 9] = [
            ("transfer-encoding", Survey::transfer_encoding),
            ("content-length", Survey::content_length),
            ("upgrade", Survey::upgrade),
            ("expect", Survey::expect),
            ("trailer", Survey::trailer),
            ("origin", Survey::origin),
            ("cookie", Survey::cookie),
            ("connection", Survey::connection),
            ("keep-alive", Survey::keep_alive),
        ];
        for (name, _) in questions {
            let headers = HeaderMap::from_iter([
                (http::HeaderName::from_static(name), http::HeaderValue::from_static("x")),
                (http::header::HOST, http::HeaderValue::from_static("x")),
            ]);
            let seen = Survey::of(&headers);
            for (other, question) in questions {
                assert_eq!(question(seen), name == other, "{name} {other}");
            }
        }
    }
}
