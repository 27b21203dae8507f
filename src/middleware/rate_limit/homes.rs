//! Where buckets live: a name for each list of limits that stays the same while other routes come and go.
//!
//! Places in a file ([`At`]) hold indices, and a route inserted above would shift them. So a list is named by what it
//! belongs to: `defaults`, a route's name, or a group's host and prefix; equal names get ` #2`, ` #3` in written order.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::problem::Seg;
use crate::config::route::Route;
use crate::config::{At, Config};

/// Names of all places where limits are written.
#[derive(Clone, Debug, Default)]
pub struct Homes {
    names: HashMap<At, Arc<str>>,
    taken: HashMap<String, usize>,
}

impl Homes {
    /// The homes of a configuration. `Route::at` must be set, as loading does.
    pub fn of(config: &Config) -> Self {
        let mut homes = Self::default();
        homes.names.insert(At::main("defaults"), Arc::from("defaults"));
        homes.add(&config.routes, "");
        homes
    }

    fn add(&mut self, routes: &[Route], outer: &str) {
        for route in routes {
            let own = match &route.name {
                Some(name) => format!("{outer}/name {name}"),
                None => {
                    let m = &route.matcher;
                    let host = m.host.as_deref().unwrap_or("*");
                    let methods = m.methods.as_ref().map_or_else(String::new, |methods| methods.join(","));
                    let path = [&m.short, &m.path, &m.prefix, &m.regex].into_iter().flatten().next().map_or("", String::as_str);
                    format!("{outer}/{host} {methods} {path} {:?} {:?}", m.headers, m.query)
                }
            };
            let count = self.taken.entry(own.clone()).or_insert(0);
            *count += 1;
            let unique = if *count == 1 { own } else { format!("{own} #{count}") };
            self.names.insert(route.at.clone(), Arc::from(unique.as_str()));
            if let Some(children) = &route.routes {
                self.add(children, &unique);
            }
        }
    }

    /// The identity of the limit written at `at` (`…/rate_limit/INDEX`): its home and its position there.
    pub(super) fn identity(&self, at: &At) -> String {
        let mut home = at.clone();
        home.on_key = false;
        let position = match home.path.last() {
            Some(Seg::Index(index)) => {
                let index = *index;
                home.path.pop();
                index
            }
            Some(Seg::Key(_)) | None => 0,
        };
        if home.path.last() == Some(&Seg::Key("rate_limit".to_owned())) {
            home.path.pop();
        }
        match self.names.get(&home) {
            Some(name) => format!("{name} [{position}]"),
            // A place that the configuration does not have: named by itself.
            None => format!("{home:?} [{position}]"),
        }
    }
}
