//! Why a call has no response, and whether another attempt could mend it.

use std::error::Error;

use crate::error::Reason;
use crate::http::body::BodyFailure;
use crate::http::clock::Expired;
use crate::http::h1::framing::FramingError;
use crate::upstream::FailKind;
use crate::upstream::connect::ConnectError;
use crate::upstream::h1;
use crate::upstream::retry::Retriable;

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason that the client is told.
    pub reason: Reason,
    /// A fixed sentence for it.
    pub detail: &'static str,
    /// Whether another attempt could mend it.
    pub(super) retriable: Option<Retriable>,
    /// What endpoint state learns from it; `None` when the endpoint is not to blame.
    pub(super) kind: Option<FailKind>,
}

impl Failure {
    /// It was a copy, and the request is over.
    pub const ANSWERED: Self = Self::new(Reason::ClientClosed, "The request was over before its copy.");

    pub(super) const fn new(reason: Reason, detail: &'static str) -> Self {
        Self { reason, detail, retriable: None, kind: None }
    }
    pub(super) const fn attempt(reason: Reason, detail: &'static str, retriable: Option<Retriable>, kind: FailKind) -> Self {
        Self { reason, detail, retriable, kind: Some(kind) }
    }

    /// The refusal of a client's body that ended early.
    pub const fn of_body(failure: BodyFailure) -> Self {
        match failure {
            BodyFailure::Client => Self::new(Reason::ClientClosed, "The client ended its request early."),
            BodyFailure::Unreadable => Self::new(Reason::BadRequest, "The request body cannot be read."),
            BodyFailure::TooLarge => Self::new(Reason::BodyTooLarge, "The request body is longer than this route allows."),
            BodyFailure::Stalled => Self::new(Reason::RequestTimeout, "The request body did not arrive in time."),
            BodyFailure::Detached => Self::new(Reason::Internal, "The request could not be sent again."),
        }
    }

    /// The call's own deadline is over.
    pub const fn deadline() -> Self {
        Self::new(Reason::UpstreamTimeout, "The deadline of the call is over.")
    }

    pub(super) const fn of_expiry(expired: Expired) -> Self {
        match expired {
            Expired::Timeout => Self::attempt(Reason::UpstreamTimeout, "The upstream did not answer in time.", None, FailKind::Timeout),
            Expired::Client => Self::new(Reason::RequestTimeout, "The request body did not arrive in time."),
            Expired::Upstream => {
                Self::attempt(Reason::UpstreamTimeout, "The upstream did not take the request body in time.", None, FailKind::Timeout)
            }
        }
    }

    pub(super) fn of_connect(error: &ConnectError) -> Self {
        let again = Some(Retriable::Connect);
        match error {
            ConnectError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Self::attempt(Reason::UpstreamConnectFailed, "The upstream refused the connection.", again, FailKind::Connect)
            }
            // Accepted and reset before this side looked. Nothing was sent, so that it may be tried again like any failed connection.
            ConnectError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                Self::attempt(Reason::UpstreamReset, "The upstream closed the connection before it answered.", again, FailKind::Reset)
            }
            ConnectError::Io(_) => {
                Self::attempt(Reason::UpstreamConnectFailed, "The upstream cannot be reached.", again, FailKind::Connect)
            }
            // Another endpoint could not be connected to either, and this one is not to be ejected for it.
            ConnectError::Exhausted(_) => Self::new(Reason::Overloaded, "The gateway has no room for another connection."),
            ConnectError::Tls(_) => Self::attempt(Reason::UpstreamTlsFailed, "TLS with the upstream failed.", again, FailKind::Tls),
            ConnectError::Protocol(_) => Self::attempt(
                Reason::UpstreamConnectFailed,
                "The upstream does not speak the protocol that is needed.",
                None,
                FailKind::Protocol,
            ),
            ConnectError::Timeout => {
                Self::attempt(Reason::UpstreamConnectTimeout, "No connection to the upstream was made in time.", again, FailKind::Connect)
            }
        }
    }

    pub(super) fn of_h2(error: &hyper::Error) -> Self {
        if let Some(failure) = source::<BodyFailure>(error) {
            return Self::of_body(*failure);
        }
        if let Some(h2) = source::<h2::Error>(error)
            && h2.is_remote()
            && (h2.reason() == Some(h2::Reason::REFUSED_STREAM) || h2.is_go_away())
        {
            return Self::attempt(
                Reason::UpstreamReset,
                "The upstream did not take the request.",
                Some(Retriable::Connect),
                FailKind::Reset,
            );
        }
        CLOSED
    }

    pub(super) const fn of_h1(error: &h1::Error) -> Self {
        match error {
            h1::Error::Request => Self::new(Reason::Internal, "The request cannot be written."),
            h1::Error::Body(failure) => Self::of_body(*failure),
            h1::Error::Closed(_) => CLOSED,
            h1::Error::Framing(FramingError::LengthAndCoding) => wrong("The upstream's response has both a length and a transfer coding."),
            h1::Error::Framing(FramingError::BadCoding) => wrong("The upstream's response has a transfer coding that is not chunked."),
            h1::Error::Framing(FramingError::BadLength | FramingError::LengthsDiffer | FramingError::CodingInHttp10)
            | h1::Error::Parse(_)
            | h1::Error::Interim
            | h1::Error::Decode(_) => wrong("The upstream's response cannot be read."),
        }
    }
}

/// The connection ended before there was a response.
const CLOSED: Failure = Failure::attempt(
    Reason::UpstreamReset,
    "The upstream closed the connection before it answered.",
    Some(Retriable::Reset),
    FailKind::Reset,
);

/// The first error of type `E` in the chain of causes.
pub(super) fn source<E: Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut cause = Error::source(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

pub(super) const fn wrong(detail: &'static str) -> Failure {
    Failure::attempt(Reason::UpstreamProtocolError, detail, None, FailKind::Protocol)
}
