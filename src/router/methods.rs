//! The methods a route takes, and the `Allow` of those that fit in all but the method.

use http::{HeaderValue, Method};

use super::rule::Rule;
use crate::config::{At, Problems};

/// How a route admits a method: the better one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Named,
    /// HEAD through GET.
    Head,
    /// `methods` is omitted.
    Any,
}

/// `methods` of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Methods {
    /// Omitted: all but CONNECT and TRACE.
    Any,
    /// These; sorted.
    Named(Vec<Method>),
}

impl Methods {
    pub(super) fn compile(methods: Option<&[String]>, at: &At, problems: &mut Problems) -> Option<Self> {
        let Some(methods) = methods else { return Some(Self::Any) };
        let mut named = Vec::new();
        let mut good = true;
        for text in methods {
            match Method::from_bytes(text.as_bytes()) {
                Ok(Method::CONNECT | Method::TRACE) => {
                    problems.error(at.clone(), format!("`{text}` cannot be routed")).help("CONNECT and TRACE are always answered with 405");
                    good = false;
                }
                Ok(method) => named.push(method),
                Err(_) => {
                    problems.error(at.clone(), format!("`{text}` is not a method")).help("methods are words such as GET or POST");
                    good = false;
                }
            }
        }
        if methods.is_empty() {
            problems.error(at.clone(), "`methods` is empty: the route would take no request").help("leave it out to take all methods");
            return None;
        }
        named.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        named.dedup();
        good.then_some(Self::Named(named))
    }

    /// How `method` is admitted, if it is.
    pub(super) fn class(&self, method: &Method) -> Option<Class> {
        match self {
            Self::Any => (!matches!(*method, Method::CONNECT | Method::TRACE)).then_some(Class::Any),
            Self::Named(named) if named.contains(method) => Some(Class::Named),
            Self::Named(named) => (*method == Method::HEAD && named.contains(&Method::GET)).then_some(Class::Head),
        }
    }

    /// Whether there is a method that both admit in the same way.
    pub(super) fn tie_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Named(a), Self::Named(b)) => a.iter().any(|method| b.contains(method)),
            (Self::Any, Self::Named(_)) | (Self::Named(_), Self::Any) => false,
        }
    }
}

/// In the order they are written in `Allow`.
const USUAL: [Method; 7] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Collects the methods of several routes.
#[derive(Debug, Default)]
pub(super) struct Allow(Vec<Method>);

impl Allow {
    pub(super) fn add(&mut self, rule: &Rule) {
        match &rule.methods {
            Methods::Any => self.0.extend(USUAL),
            Methods::Named(named) => self.0.extend(named.iter().cloned()),
        }
        if self.0.contains(&Method::GET) {
            self.0.push(Method::HEAD);
        }
        if rule.cors {
            self.0.push(Method::OPTIONS);
        }
    }

    /// `None` if there was no route.
    pub(super) fn into_value(mut self) -> Option<HeaderValue> {
        if self.0.is_empty() {
            return None;
        }
        let place = |method: &Method| USUAL.iter().position(|usual| usual == method).unwrap_or(USUAL.len());
        self.0.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.as_str().cmp(b.as_str())));
        self.0.dedup();
        let names: Vec<&str> = self.0.iter().map(Method::as_str).collect();
        HeaderValue::try_from(names.join(", ")).ok()
    }
}
