//! A name in a line of the log.

use std::sync::Arc;

/// Longest name that is copied: those of most endpoints.
const SHORT: usize = 46;

/// A name. What names things is shared by all workers, and to count a reference to it for each request would write a cache line that every
/// other worker writes as well; so short ones are copied.
#[derive(Clone, Debug)]
pub struct Label(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Arc<str>),
}

impl Label {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Kind::Long(name) => name.as_bytes(),
        }
    }

    fn short(name: &str) -> Option<Self> {
        let mut bytes = [0; SHORT];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self(Kind::Short { length: u8::try_from(name.len()).ok()?, bytes }))
    }
}

impl From<&Arc<str>> for Label {
    fn from(name: &Arc<str>) -> Self {
        Self::short(name).unwrap_or_else(|| Self(Kind::Long(Arc::clone(name))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_length_are_kept() {
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, 300] {
            let name: Arc<str> = "n".repeat(length).into();
            assert_eq!(Label::from(&name).as_bytes(), name.as_bytes());
        }
    }

    #[test]
    fn a_short_name_is_not_shared() {
        let name: Arc<str> = "http://127.0.0.1:8080".into();
        let label = Label::from(&name);
        assert_eq!((label.as_bytes(), Arc::strong_count(&name)), (name.as_bytes(), 1));
    }
}
