//! What is counted for the process as a whole: stores, key fetches, certificates, loads of the configuration.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::proto::MetricFamily;

use super::collect::Scrape;
use super::shard::Counter;
use super::table::Family;

/// State of one store.
#[derive(Debug)]
pub struct StoreMetrics(AtomicBool);

impl Default for StoreMetrics {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

impl StoreMetrics {
    /// Whether the store answers. It counts as up until it has failed.
    pub fn set_up(&self, up: bool) {
        if self.0.load(Relaxed) != up {
            self.0.store(up, Relaxed);
        }
    }

    pub(super) fn collect(&self, store: &str, scrape: &mut Scrape) {
        scrape.number(Family::StoreUp, &[store], f64::from(u8::from(self.0.load(Relaxed))));
    }
}

/// Counters of one authenticator that fetches keys.
#[derive(Debug, Default)]
pub struct AuthenticatorMetrics {
    ok: Counter,
    failed: Counter,
}

impl AuthenticatorMetrics {
    /// A key set was fetched, or could not be.
    pub fn jwks_fetch(&self, ok: bool) {
        if ok { self.ok.one() } else { self.failed.one() }
    }

    pub(super) fn collect(&self, authenticator: &str, scrape: &mut Scrape) {
        scrape.count(Family::JwksFetches, &[authenticator, "ok"], self.ok.get());
        scrape.count(Family::JwksFetches, &[authenticator, "failed"], self.failed.get());
    }
}

/// Expiry of certificates in Unix seconds, by listener and file.
#[derive(Debug, Default)]
pub(super) struct Certificates(Mutex<BTreeMap<String, BTreeMap<String, i64>>>);

impl Certificates {
    pub(super) fn set(&self, listener: &str, certificates: Vec<(String, i64)>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if certificates.is_empty() {
            all.remove(listener);
        } else {
            all.insert(listener.to_owned(), certificates.into_iter().collect());
        }
    }

    pub(super) fn collect(&self, scrape: &mut Scrape) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (listener, certificates) in all.iter() {
            for (certificate, expiry) in certificates {
                scrape.number(Family::CertificateExpiry, &[listener, certificate], *expiry as f64);
            }
        }
    }
}

/// How a load of the configuration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It serves.
    Ok,
    /// It has problems; the last good one serves.
    Failed,
    /// It is what serves already.
    Unchanged,
}

impl Reload {
    /// All results: `ALL[result as usize] == result`.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Unchanged];

    /// The word in the `result` label and in `/info`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Reloads of the configuration.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    results: [Counter; Reload::ALL.len()],
    last: Mutex<Option<(Reload, SystemTime)>>,
}

impl Reloads {
    pub(super) fn one(&self, result: Reload, at: SystemTime) {
        if let Some(counter) = self.results.get(result as usize) {
            counter.one();
        }
        self.at(result, at);
    }

    /// The last result, uncounted.
    pub(super) fn at(&self, result: Reload, at: SystemTime) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((result, at));
    }

    pub(super) fn collect(&self, scrape: &mut Scrape) {
        for (result, counter) in Reload::ALL.iter().zip(&self.results) {
            scrape.count(Family::ConfigReloads, &[result.as_str()], counter.get());
        }
        let Some((result, at)) = *self.last.lock().unwrap_or_else(PoisonError::into_inner) else { return };
        let successful = match result {
            Reload::Ok | Reload::Unchanged => 1.0,
            Reload::Failed => 0.0,
        };
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as f64 / 1e3;
        scrape.number(Family::LastReloadSuccessful, &[], successful);
        scrape.number(Family::LastReloadTimestamp, &[], seconds);
    }
}

/// Families as text. The encoder writes into memory and refuses only families without series, which [`Scrape::finish`] leaves out.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut text = String::new();
    if let Err(error) = prometheus::TextEncoder::new().encode_utf8(families, &mut text) {
        tracing::error!(%error, "metrics cannot be encoded");
    }
    text
}
