//! What can be checked of listeners, upstreams, authenticators and the server from the configuration alone.

use super::{Config, Problems};

/// Checks everything but the routes, which [`super::resolve::routes`] checks.
pub fn validate(config: &Config, problems: &mut Problems) {
    let _ = (config, problems);
}

use super::At;
use crate::units::Selector;

/// Checks addresses and CIDRs.
pub(super) fn networks(list: &[String], at: &At, problems: &mut Problems) {
    let _ = (list, at, problems);
}

/// Checks the selectors of a hash or a sticky split.
pub(super) fn sticky_selectors(list: &[Selector], at: &At, problems: &mut Problems) {
    let _ = (list, at, problems);
}
