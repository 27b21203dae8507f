//! What runs beside the requests of an upstream: look-ups, active checks, and a tick that lets observers hear of what time alone changed.
//!
//! All of it runs on the control runtime and belongs to one [`Background`]: dropping that stops it at once.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinSet};

use super::names::Subject;
use super::{Address, Endpoint, EndpointSpec, Upstream};
use crate::config::upstream::Health;
use crate::discovery::{self, Resolver};
use crate::health::active::{self, Verdict};
use crate::health::probe::{self, Dial, Target, TlsConnect};

/// Between checks of an endpoint that is out, if `interval` is longer.
const WHILE_UNHEALTHY: Duration = Duration::from_secs(2);
/// First checks are spread over this, well below the promised second.
const FIRST_CHECKS: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_secs(1);

/// Gives the TLS of an `https` endpoint.
pub type TlsFor = Arc<dyn Fn(&Endpoint) -> Option<TlsConnect> + Send + Sync>;

/// The running tasks of an upstream; dropping it stops them.
#[derive(Debug)]
pub struct Background {
    upstream: Arc<Upstream>,
    tasks: Arc<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    stopped: AtomicBool,
    /// Names whose first look-up has not ended.
    unheard: AtomicUsize,
    supervisor: Mutex<Option<AbortHandle>>,
    checks: Mutex<HashMap<usize, Check>>,
}

#[derive(Debug)]
struct Check {
    /// Keeps the address, which is the key, from being used again.
    _endpoint: Arc<Endpoint>,
    task: AbortHandle,
}

impl Background {
    /// Whether names were looked up and every endpoint was checked once, as far as there are names and checks.
    pub fn first_round_done(&self) -> bool {
        let checked = |endpoint: &Arc<Endpoint>| endpoint.state.verdict() != Verdict::Unchecked;
        self.tasks.unheard.load(Ordering::Acquire) == 0
            && (self.upstream.rules.health.is_none() || self.upstream.endpoints().iter().all(checked))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.tasks.stopped.store(true, Ordering::Release);
        if let Some(supervisor) = lock(&self.tasks.supervisor).take() {
            supervisor.abort();
        }
        for (_, check) in lock(&self.tasks.checks).drain() {
            check.task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random number; the standard library seeds its hashers from the system.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

impl Upstream {
    /// Makes this snapshot the one that serves and starts its tasks. Call it on the control runtime when the snapshot is swapped in.
    pub fn start(self: &Arc<Self>, tls: TlsFor, resolver: Arc<dyn Resolver>) -> Background {
        self.state.serve(self.snapshot);
        for endpoint in self.endpoints().iter() {
            match &self.rules.health {
                Some(health) => endpoint.state.adopt_health(active::fingerprint(health)),
                None => endpoint.state.forget_health(),
            }
        }
        self.announce_members();
        // A new number makes the next look tell the observer what this snapshot thinks.
        self.state.changed();
        self.refresh(Instant::now());
        let subjects = Subject::all(self);
        let tasks = Arc::new(Tasks { unheard: AtomicUsize::new(subjects.len()), ..Tasks::default() });
        let supervisor = tokio::spawn(supervise(self.clone(), tasks.clone(), subjects, tls, resolver));
        *lock(&tasks.supervisor) = Some(supervisor.abort_handle());
        Background { upstream: self.clone(), tasks }
    }

    /// Tells the observer which endpoints are gone.
    fn announce_members(&self) {
        let members = self.endpoints();
        let now: HashSet<Arc<str>> = members.iter().map(|endpoint| endpoint.id.clone()).collect();
        let before = std::mem::replace(&mut *lock(&self.state.announced), now.clone());
        for id in before.difference(&now) {
            self.state.forget_told(id);
            self.state.observer.endpoint_removed(&self.name, id);
        }
    }

    /// Makes what discovery found the endpoints.
    pub(super) fn discovered(&self, specs: Vec<EndpointSpec>, now: Instant) {
        let known = self.endpoints();
        let known = known.iter().map(|endpoint| (&endpoint.id, endpoint.weight, endpoint.priority));
        if known.eq(specs.iter().map(|spec| (&spec.id, spec.weight, spec.priority))) {
            return;
        }
        self.replace_members(specs, now);
        if let Some(health) = &self.rules.health {
            let fingerprint = active::fingerprint(health);
            self.endpoints().iter().for_each(|endpoint| endpoint.state.adopt_health(fingerprint));
        }
        self.announce_members();
    }

    /// Counts the result of one check.
    pub(super) fn checked(&self, endpoint: &Endpoint, result: &Result<(), String>, health: &Health, now: Instant) {
        let error = result.as_ref().err().map(String::as_str);
        let (before, after) = endpoint.state.checked(error, health.healthy, health.unhealthy, now);
        if before != after {
            self.state.changed();
            self.state.observer.health_changed(&self.name, &endpoint.id, after == Verdict::Healthy, error);
            self.refresh(now);
        }
    }
}

async fn supervise(upstream: Arc<Upstream>, tasks: Arc<Tasks>, subjects: Vec<Subject>, tls: TlsFor, resolver: Arc<dyn Resolver>) {
    sync_checks(&upstream, &tasks, &tls);
    // Each by itself, so that one slow name does not keep the others waiting. They end with this task.
    let mut followed = JoinSet::new();
    for subject in subjects {
        followed.spawn(follow(Arc::clone(&upstream), Arc::clone(&tasks), subject, Arc::clone(&tls), Arc::clone(&resolver)));
    }
    loop {
        tokio::time::sleep(TICK).await;
        upstream.refresh(Instant::now());
    }
}

/// Looks a name up whenever its answer is over.
async fn follow(upstream: Arc<Upstream>, tasks: Arc<Tasks>, subject: Subject, tls: TlsFor, resolver: Arc<dyn Resolver>) {
    let (mut first, mut failures) = (true, 0);
    loop {
        let pause = subject.look_up(&upstream, &*resolver, &mut failures).await;
        if std::mem::take(&mut first) {
            tasks.unheard.fetch_sub(1, Ordering::AcqRel);
        }
        sync_checks(&upstream, &tasks, &tls);
        upstream.refresh(Instant::now());
        tokio::time::sleep(discovery::jittered(pause, random())).await;
    }
}

/// Starts checks of endpoints that have none, and stops those of endpoints that are gone.
fn sync_checks(upstream: &Arc<Upstream>, tasks: &Arc<Tasks>, tls: &TlsFor) {
    if upstream.rules.health.is_none() {
        return;
    }
    let members = upstream.endpoints();
    let key = |endpoint: &Arc<Endpoint>| Arc::as_ptr(&endpoint.state) as usize;
    let current: HashSet<usize> = members.iter().map(key).collect();
    let mut checks = lock(&tasks.checks);
    // Looked at under the lock: whoever stops all takes it after raising the flag.
    if tasks.stopped.load(Ordering::Acquire) {
        return;
    }
    checks.retain(|key, check| {
        let stays = current.contains(key);
        if !stays {
            check.task.abort();
        }
        stays
    });
    for endpoint in members.iter() {
        checks.entry(key(endpoint)).or_insert_with(|| {
            let task = tokio::spawn(check_for_ever(upstream.clone(), endpoint.clone(), tls.clone()));
            Check { _endpoint: endpoint.clone(), task: task.abort_handle() }
        });
    }
}

async fn check_for_ever(upstream: Arc<Upstream>, endpoint: Arc<Endpoint>, tls: TlsFor) {
    let Some(health) = upstream.rules.health.clone() else {
        return;
    };
    tokio::time::sleep(FIRST_CHECKS.mul_f64((random() >> 11) as f64 / (1u64 << 53) as f64)).await;
    // A name that is being looked up has no address for a moment; that is no verdict about the endpoint.
    for _ in 0..20 {
        if endpoint.is_resolved() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    loop {
        let dial = match &endpoint.address {
            Address::Tcp { .. } => Dial::Tcp(endpoint.state.addresses()),
            Address::Unix(path) => Dial::Unix(path.clone()),
        };
        let target = Target { dial, tls: tls(&endpoint), authority: endpoint.authority.clone(), protocol: upstream.protocol };
        let result = if endpoint.tls && target.tls.is_none() {
            Err("tls: no configuration".to_owned())
        } else {
            probe::check(&target, &health).await
        };
        upstream.checked(&endpoint, &result, &health, Instant::now());
        let pause = match endpoint.state.verdict() {
            Verdict::Healthy => health.interval.get(),
            Verdict::Unhealthy | Verdict::Unchecked => health.interval.get().min(WHILE_UNHEALTHY),
        };
        tokio::time::sleep(discovery::jittered(pause, random())).await;
    }
}
