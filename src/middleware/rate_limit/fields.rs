//! What a client learns about limits: the fields of draft-ietf-httpapi-ratelimit-headers, and the 429.

use http::{HeaderName, HeaderValue, header};

use super::gcra::Standing;
use super::{Limit, RateLimits};
use crate::error::{Reason, Refusal};
use crate::http::exchange::{Exchange, RateFields};
use crate::http::h1::made::Names;
use crate::http::headers::{Fields, Ready};
use crate::units::push_decimal;

static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const NAMES: Names = Names::of(b"ratelimit-policy").and(Names::of(b"ratelimit"));

/// Registered for draft-ietf-httpapi-ratelimit-headers.
const PROBLEM_TYPE: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// A name as a structured field string (RFC 9651): printable ASCII, `"` and `\` escaped; other bytes become `?`.
pub(super) fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('"');
    for c in name.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' => text.push(c),
            _ => text.push('?'),
        }
    }
    text.push('"');
    text
}

/// `policies[n]` is `RateLimit-Policy` when the first n + 1 limits were evaluated.
pub(super) fn policies(limits: &[Limit]) -> Vec<Ready> {
    let mut text = String::new();
    let mut policies = Vec::with_capacity(limits.len());
    for limit in limits {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&limit.policy);
        // `quoted` leaves printable ASCII only, so this cannot fail.
        policies.extend(HeaderValue::from_str(&text).map(|policy| Ready::from_iter([(RATELIMIT_POLICY.clone(), policy)])));
    }
    policies
}

/// The limits evaluated so far for one request: how many, and the one with the least left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    evaluated: usize,
    scarcest: Option<(usize, Standing)>,
    /// A store did not answer this request.
    pub(super) unanswered: bool,
}

impl Tally {
    /// Continues what an earlier step left in `fields`: all `evaluated` limits before it.
    pub(super) fn resume(evaluated: usize, fields: Option<&RateFields>) -> Self {
        let before = fields.filter(|_| evaluated > 0);
        let standing = |before: &RateFields| Standing { left: before.left, burst: before.burst, wait: before.wait };
        Self {
            evaluated,
            scarcest: before.map(|before| (before.scarcest, standing(before))),
            unanswered: fields.is_some_and(|fields| fields.unanswered),
        }
    }

    /// Counts the limit at `index` in.
    pub(super) fn add(&mut self, index: usize, standing: Standing) {
        self.evaluated = index + 1;
        if self.scarcest.is_none_or(|(_, least)| standing.is_scarcer_than(&least)) {
            self.scarcest = Some((index, standing));
        }
    }

    /// Notes what the fields say about the limits counted.
    pub(super) fn note(&self, ex: &mut Exchange) {
        if let Some((scarcest, Standing { left, burst, wait })) = self.scarcest {
            ex.rate_fields = Some(RateFields { evaluated: self.evaluated, scarcest, left, burst, wait, unanswered: self.unanswered });
        }
    }

    /// The answer to a request that the limit at `index` refused; notes it in the exchange.
    pub(super) fn refuse(mut self, index: usize, standing: Standing, limits: &[Limit], ex: &mut Exchange) -> Box<Refusal> {
        // The one that refuses has nothing left, so no other has less.
        self.evaluated = index + 1;
        self.scarcest = Some((index, standing));
        self.note(ex);
        let mut refusal = Refusal::new(Reason::RateLimited, "The rate limit is used up.")
            .header(header::RETRY_AFTER, HeaderValue::from(standing.wait_seconds().max(1)));
        refusal.problem_type = Some(PROBLEM_TYPE);
        if let Some(limit) = limits.get(index) {
            ex.rate_limit = Some(limit.name.clone());
            refusal.extra.push(("violated-policies", serde_json::Value::from(vec![&*limit.name])));
        }
        refusal
    }
}

impl RateLimits {
    /// Sets the fields that say what the limits evaluated for a request have left.
    pub fn fields(&self, ex: &Exchange, fields: &mut impl Fields) {
        let inner = &self.0;
        let Some(known) = &ex.rate_fields else { return };
        let policy = known.evaluated.checked_sub(1).and_then(|last| inner.policies.get(last));
        let (Some(limit), Some(policy)) = (inner.limits.get(known.scarcest), policy) else { return };
        let standing = Standing { left: known.left, burst: known.burst, wait: known.wait };
        if fields.may_have(NAMES) {
            fields.remove(&RATELIMIT_POLICY);
            fields.remove(&RATELIMIT);
        }
        fields.append_all(policy);
        // `quoted` leaves printable ASCII only.
        fields.append_written(&RATELIMIT, |text| {
            text.extend_from_slice(limit.label.as_bytes());
            push_decimal(standing.left, text);
            text.extend_from_slice(b";t=");
            push_decimal(standing.wait_seconds(), text);
        });
    }
}
