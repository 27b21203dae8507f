//! A step of one's own in the chain, with Tollgate as a library.
//!
//! ```text
//! cargo run --example custom_middleware
//! curl -i -H 'x-team: blue' http://127.0.0.1:8080/     # 200, with x-served-for
//! curl -i -H 'x-team: green' http://127.0.0.1:8080/    # 403
//! ```
#![allow(clippy::print_stdout, reason = "it is how an example speaks")]

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tollgate::config::load::Source;
use tollgate::error::{Reason, Refusal};
use tollgate::gateway::Middleware;
use tollgate::http::Exchange;
use tollgate::server::{Options, Server, StartError};

/// Lets only known teams pass, and tells the upstream which address asked for them.
pub struct Teams {
    known: Vec<HeaderValue>,
}

const TEAM: HeaderName = HeaderName::from_static("x-team");
const ASKED_BY: HeaderName = HeaderName::from_static("x-asked-by");
const SERVED_FOR: HeaderName = HeaderName::from_static("x-served-for");

impl Middleware for Teams {
    fn request(&self, _route: &str, exchange: &Exchange, headers: &mut HeaderMap) -> Result<(), Box<Refusal>> {
        let known = headers.get(TEAM).is_some_and(|team| self.known.contains(team));
        if !known {
            return Err(Refusal::new(Reason::Forbidden, "This team is not known here."));
        }
        // An address always fits into a header.
        if let Ok(address) = HeaderValue::try_from(exchange.client_ip.to_string()) {
            headers.insert(ASKED_BY, address);
        }
        Ok(())
    }

    fn response(&self, route: &str, _exchange: &Exchange, status: StatusCode, headers: &mut HeaderMap) {
        if status.is_success()
            && let Ok(route) = HeaderValue::try_from(route)
        {
            headers.insert(SERVED_FOR, route);
        }
    }
}

/// Starts a gateway with this configuration and the step above.
pub fn start(yaml: &str) -> Result<Server, StartError> {
    let teams = Teams { known: vec![HeaderValue::from_static("blue"), HeaderValue::from_static("red")] };
    let options = Options { middleware: vec![Arc::new(teams)], ..Options::default() };
    Server::start(Source::Text { yaml: yaml.to_owned(), dir: ".".into() }, options)
}

#[allow(dead_code, reason = "the test that includes this file calls `start`")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = start(
        "
listeners: [{ address: '127.0.0.1:8080' }]
routes: [{ name: hello, match: /*, respond: { status: 200, body: hello } }]
",
    )?;
    println!("listening on {:?}; press Enter to stop", server.addresses());
    std::io::stdin().read_line(&mut String::new())?;
    server.shutdown();
    Ok(())
}
