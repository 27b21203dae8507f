//! Text out of a message or a configuration, held by a request for itself.
//!
//! What is shared is held by a count of references. Others may write the cache line of that count (all workers, if it is a name's), and even
//! where nobody does, two atomic steps take longer than to copy a line's worth of bytes. So what is short is copied.

use std::sync::Arc;

use http::HeaderValue;
use http::uri::PathAndQuery;

/// Longest text that is copied: the names of most endpoints, most hosts, origins and paths.
const SHORT: usize = 46;

/// See module. It is text as far as its sources are: a field's value may hold any bytes but control characters.
#[derive(Clone, Debug)]
pub struct Text(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Short { length: u8, bytes: [u8; SHORT] },
    Name(Arc<str>),
    Value(HeaderValue),
    Target(PathAndQuery),
}

impl Text {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Kind::Name(name) => name.as_bytes(),
            Kind::Value(value) => value.as_bytes(),
            Kind::Target(target) => target.as_str().as_bytes(),
        }
    }

    #[inline]
    fn new(text: &[u8], shared: impl FnOnce() -> Kind) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text);
                Self(Kind::Short { length, bytes })
            }
            (Some(_) | None, Ok(_) | Err(_)) => Self(shared()),
        }
    }
}

impl From<&Arc<str>> for Text {
    fn from(name: &Arc<str>) -> Self {
        Self::new(name.as_bytes(), || Kind::Name(Arc::clone(name)))
    }
}

impl From<&HeaderValue> for Text {
    fn from(value: &HeaderValue) -> Self {
        Self::new(value.as_bytes(), || Kind::Value(value.clone()))
    }
}

impl From<&PathAndQuery> for Text {
    fn from(target: &PathAndQuery) -> Self {
        Self::new(target.as_str().as_bytes(), || Kind::Target(target.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_every_length_is_kept() {
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, 255, 256, 300] {
            let text = "/".repeat(length);
            assert_eq!(Text::from(&Arc::from(text.as_str())).as_bytes(), text.as_bytes());
            assert_eq!(Text::from(&HeaderValue::from_str(&text).unwrap()).as_bytes(), text.as_bytes());
            if length > 0 {
                assert_eq!(Text::from(&PathAndQuery::try_from(text.as_str()).unwrap()).as_bytes(), text.as_bytes());
            }
        }
    }

    #[test]
    fn a_short_name_is_not_shared() {
        let name: Arc<str> = "http://127.0.0.1:8080".into();
        let text = Text::from(&name);
        assert_eq!((text.as_bytes(), Arc::strong_count(&name)), (name.as_bytes(), 1));
    }
}
