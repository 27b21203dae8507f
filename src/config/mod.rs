//! The configuration as its user writes it: plain types, one field per option of `gateway.yaml`.
//!
//! Nothing here runs. [`load`] reads files into these types and collects every problem; [`resolve`] flattens groups and
//! inheritance into one [`resolve::Route`] per route; `gateway::snapshot` compiles that into what serves requests.
//! The doc comments of the fields are the option reference: `docs/config.md` and the JSON Schema are generated from them.

pub mod auth;
pub mod dump;
mod forms;
pub mod load;
pub mod problem;
mod read;
pub mod resolve;
pub mod route;
pub mod schema;
pub mod server;
mod substitute;
mod suggest;
mod syntax;
mod tree;
pub mod upstream;
pub mod validate;
pub mod watch;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use dump::{effective_json, hide};
pub use problem::{At, Problem, Problems};
pub use suggest::suggest;

/// One whole configuration, all files together.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// More files, globs allowed, relative to the main file. They may add `upstreams`, `authenticators` and `routes`; a name may be defined once only.
    pub include: Vec<String>,
    /// Where clients connect. Absent: one listener on `0.0.0.0:8080`.
    pub listeners: Option<Vec<server::Listener>>,
    /// Limits and timeouts of the server side.
    pub server: server::Server,
    /// The admin listener; omit to switch it off.
    pub admin: Option<server::Admin>,
    /// Application and access logs.
    pub log: server::Log,
    /// Trace export. Not supported yet.
    pub tracing: Option<server::Tracing>,
    /// Named Redis stores that several gateways share limits through.
    pub redis: BTreeMap<String, server::Redis>,
    /// Groups of endpoints that requests are sent to, by name.
    pub upstreams: BTreeMap<String, upstream::Upstream>,
    /// Ways to tell who a caller is, by name; routes refer to them in `auth`.
    pub authenticators: BTreeMap<String, auth::Authenticator>,
    /// What every route inherits. A route's own value replaces the inherited one; `rate_limit` and `headers` add up.
    pub defaults: route::Policy,
    /// The routes; what wins is decided by precedence, not by order.
    pub routes: Vec<route::Route>,
    /// Places of values that could not be read and are missing here; with `on_key`, those of fields that are there under a misspelt name.
    #[serde(skip)]
    pub dropped: Vec<At>,
}

impl Config {
    /// Whether something written at `at` or in it could not be read: then what is missing there is no further problem.
    pub fn is_damaged(&self, at: &At) -> bool {
        self.dropped.iter().any(|dropped| !dropped.on_key && dropped.file == at.file && dropped.path.starts_with(&at.path))
    }
    /// Whether one of `fields` of the mapping at `at` is missing only because it could not be read or its name is misspelt.
    pub fn has_lost(&self, at: &At, fields: &[&str]) -> bool {
        let misspelt = |field: &&str| self.dropped.contains(&at.key(field).its_key());
        self.is_damaged(at) || fields.iter().any(misspelt)
    }
}
