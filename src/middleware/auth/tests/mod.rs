//! Authentication from the outside: requests through chains, against servers on loopback.

mod kinds;
mod remote;
mod support;
mod tokens;
