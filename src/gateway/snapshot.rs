//! One loaded configuration, compiled: everything a request needs, immutable, swapped in whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use crate::config::load::Loaded;
use crate::config::problem::Report;
use crate::config::resolve;
use crate::config::server::EncodedSlash;
use crate::config::{self, At, Config, Problems, validate};
use crate::gateway::custom::Middleware;
use crate::gateway::fallback::Fallback;
use crate::gateway::mirror::MirrorTarget;
use crate::gateway::route::Route;
use crate::gateway::shared::Shared;
use crate::gateway::target::{AggregateTarget, SplitTarget, Target, UpstreamHandle};
use crate::http::body::TrailerFilter;
use crate::http::client_addr::TrustedProxies;
use crate::http::clock::ConnectionTimeouts;
use crate::http::headers::{ProtectedNames, is_reserved};
use crate::http::template::params_of;
use crate::middleware::auth::{AuthChain, Authenticators};
use crate::middleware::cors::Cors;
use crate::middleware::headers::HeaderRules;
use crate::middleware::ip_rules::IpRules;
use crate::middleware::rate_limit::{Homes, RateLimits, Stores};
use crate::middleware::rewrite::Rewrite;
use crate::router::Router;
use crate::targets::aggregate::Aggregate;
use crate::targets::redirect::Redirect;
use crate::targets::respond::Respond;
use crate::targets::split::Split;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{AuthenticatorMetrics, Metrics, RouteMetrics, StoreMetrics};
use crate::tls::{ClientTls, ServerTls};
use crate::units::{self, Setting};
use crate::upstream::Upstream;
use crate::upstream::retry::RetryPolicy;

/// One configuration as it runs.
pub struct Snapshot {
    /// Which load it is, from 1.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: SystemTime,
    /// Where routes are found.
    pub router: Router,
    /// All routes, as the router numbers them.
    pub routes: Vec<Arc<Route>>,
    /// What 404 and 405 answers get.
    pub fallback: Fallback,
    /// All upstreams, by name.
    pub upstreams: BTreeMap<String, UpstreamHandle>,
    /// All authenticators.
    pub authenticators: Authenticators,
    /// Stores of limits.
    pub stores: Stores,
    /// `server.trusted_proxies`.
    pub trusted: TrustedProxies,
    /// Names that only the gateway may set towards upstreams.
    pub protected: Arc<ProtectedNames>,
    /// The same, for trailers.
    pub trailer_filter: TrailerFilter,
    /// A library user's own steps.
    pub middleware: Arc<[Arc<dyn Middleware>]>,
    /// `server.request_id`.
    pub request_id: Option<HeaderName>,
    /// `server.encoded_slash`.
    pub encoded_slash: EncodedSlash,
    /// `server.max_header_size`, in bytes.
    pub max_header_size: usize,
    /// `server.max_headers`.
    pub max_headers: usize,
    /// `server.timeouts.min_body_rate`, in bytes per second.
    pub min_body_rate: Option<u64>,
    /// `server.timeouts` between requests.
    pub timeouts: ConnectionTimeouts,
    /// `server.timeouts.handshake`.
    pub handshake: Option<Duration>,
    /// `server.timeouts.drain`.
    pub drain: Option<Duration>,
    /// `server.drain_delay`.
    pub drain_delay: Duration,
    /// `server.max_connections`.
    pub max_connections: usize,
    /// `server.max_connections_per_ip`.
    pub max_connections_per_ip: Option<usize>,
    /// `server.http2.max_streams`.
    pub max_streams: u32,
    /// Where clients connect.
    pub listeners: Vec<ListenerSpec>,
    /// Query parameters that carry credentials.
    pub secret_query: Option<Arc<[String]>>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Metrics of requests without a route.
    pub no_route: Arc<RouteMetrics>,
    /// Series that live as long as this configuration: nobody else holds them.
    pub series: Series,
    /// The access log.
    pub access_log: Arc<AccessLog>,
    /// The configuration as written.
    pub config: Config,
    /// Its routes with inheritance applied.
    pub resolved: Vec<resolve::Route>,
    /// What it was read from.
    pub source: SourceInfo,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// Series of what works in the background.
#[derive(Debug)]
pub struct Series {
    /// Of stores.
    pub stores: Vec<Arc<StoreMetrics>>,
    /// Of authenticators that fetch keys.
    pub authenticators: Vec<Arc<AuthenticatorMetrics>>,
}

impl Series {
    fn of(config: &Config, metrics: &Metrics) -> Self {
        let fetches = |authenticator: &config::auth::Authenticator| {
            authenticator.jwt.as_ref().and_then(|jwt| jwt.jwks.as_ref()).is_some_and(|jwks| jwks.contains("://"))
        };
        let fetching = config.authenticators.iter().filter(|(_, authenticator)| fetches(authenticator));
        Self {
            stores: config.redis.keys().map(|name| metrics.store(name)).collect(),
            authenticators: fetching.map(|(name, _)| metrics.authenticator(name)).collect(),
        }
    }
}

/// What a snapshot was read from.
#[derive(Clone, Debug, Default)]
pub struct SourceInfo {
    /// Names of the files.
    pub files: Vec<String>,
    /// `file:line:column` of each route.
    pub places: Vec<String>,
    /// Hash over all contents.
    pub hash: String,
    /// Files whose change is a reload.
    pub watch: Vec<PathBuf>,
    /// Substituted values, to be hidden.
    pub substituted: Vec<String>,
    /// Warnings.
    pub warnings: Vec<Report>,
}

/// A listener as configured.
#[derive(Clone, Debug)]
pub struct ListenerSpec {
    /// Its address.
    pub address: SocketAddr,
    /// TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// `proxy_protocol`.
    pub proxy_protocol: bool,
}

fn on<T: Copy>(setting: &Setting<T>) -> Option<T> {
    setting.on().copied()
}

fn span(setting: &Setting<units::Duration>) -> Option<Duration> {
    on(setting).map(units::Duration::get)
}

/// Compiles what was loaded. `previous` is what serves now: its TLS tickets live on. Nothing outside is changed but for state that
/// is shared by identity; the caller decides whether the snapshot serves.
///
/// # Errors
/// All problems with their places, if one of them is an error.
pub fn compile(shared: &Arc<Shared>, loaded: Loaded, previous: Option<&Snapshot>, generation: u64) -> Result<Snapshot, Vec<Report>> {
    compile_and(shared, loaded, previous, generation, |_, _| ()).map(|(snapshot, ())| snapshot)
}

/// Like [`compile`], with one more step that can find problems: binding sockets.
///
/// # Errors
/// All problems with their places, if one of them is an error.
pub fn compile_and<T>(
    shared: &Arc<Shared>,
    mut loaded: Loaded,
    previous: Option<&Snapshot>,
    generation: u64,
    last: impl FnOnce(&Snapshot, &mut Problems) -> T,
) -> Result<(Snapshot, T), Vec<Report>> {
    let mut problems = std::mem::take(&mut loaded.problems);
    let compiled = {
        let base = |at: &At, path: &str| loaded.resolve_path(at, path);
        Compiler { shared, loaded: &loaded, base: &base, problems: &mut problems, previous }.compile(generation)
    };
    let compiled = compiled.filter(|_| !problems.has_errors()).map(|snapshot| {
        let more = last(&snapshot, &mut problems);
        (snapshot, more)
    });
    loaded.problems = problems;
    match compiled {
        Some((mut snapshot, more)) if !loaded.problems.has_errors() => {
            snapshot.source.warnings = loaded.reports();
            Ok((snapshot, more))
        }
        Some(_) | None => Err(loaded.reports()),
    }
}

struct Compiler<'a> {
    shared: &'a Arc<Shared>,
    loaded: &'a Loaded,
    base: &'a dyn Fn(&At, &str) -> PathBuf,
    problems: &'a mut Problems,
    previous: Option<&'a Snapshot>,
}

impl Compiler<'_> {
    fn compile(mut self, generation: u64) -> Option<Snapshot> {
        let config = self.loaded.config.clone();
        validate::validate(&config, self.problems);
        let resolved = resolve::routes(&config, self.problems);
        let router = self.second_look(|this| Router::compile(&resolved, this.problems));
        let upstreams = self.second_look(|this| this.upstreams(&config));
        let authenticators = self.second_look(|this| this.authenticators(&config));
        // Before the stores begin to tell how they are.
        let series = Series::of(&config, &self.shared.metrics);
        let stores = self.second_look(|this| this.stores(&config));
        let homes = Homes::of(&config);
        let listeners = self.second_look(|this| this.listeners(&config));
        let routes: Vec<Option<Arc<Route>>> =
            resolved.iter().map(|route| self.route(route, &upstreams, &authenticators, &stores, &homes)).collect();
        let fallback = self.fallback(&config);
        let request_id = self.request_id(&config);
        let server = &config.server;
        let trusted =
            TrustedProxies::compile(&server.trusted_proxies, &At::main("server").key("trusted_proxies"), &mut Problems::default());
        let names: Vec<HeaderName> = authenticators.protected_headers().collect();
        let protected = Arc::new(ProtectedNames::new(&names).with_credentials(authenticators.credential_headers()));
        let filter = Arc::clone(&protected);
        let directory = self.loaded.files.first().map_or_else(PathBuf::new, |file| file.dir.clone());
        if self.problems.has_errors() {
            return None;
        }
        let access_log = self.shared.access_log(&config.log, &directory, self.problems);
        let routes = routes.into_iter().collect::<Option<Vec<_>>>()?;
        let mut watch = self.loaded.watch.clone();
        watch.extend(self.files(&config));
        Some(Snapshot {
            generation,
            loaded_at: SystemTime::now(),
            router,
            routes,
            fallback,
            upstreams,
            secret_query: authenticators.secret_query(),
            authenticators,
            stores,
            trusted,
            trailer_filter: Arc::new(move |trailers: &mut HeaderMap| filter.filter_trailers(trailers)),
            protected,
            middleware: Arc::clone(&self.shared.middleware),
            request_id,
            encoded_slash: server.encoded_slash,
            max_header_size: usize::try_from(server.max_header_size.0).unwrap_or(usize::MAX),
            max_headers: server.max_headers,
            min_body_rate: on(&server.timeouts.min_body_rate).map(|rate| rate.0),
            timeouts: ConnectionTimeouts { header: span(&server.timeouts.header), idle: span(&server.timeouts.idle) },
            handshake: span(&server.timeouts.handshake),
            drain: span(&server.timeouts.drain),
            drain_delay: server.drain_delay.get(),
            max_connections: server.max_connections,
            max_connections_per_ip: on(&server.max_connections_per_ip),
            max_streams: server.http2.max_streams,
            listeners,
            metrics: Arc::clone(&self.shared.metrics),
            no_route: self.shared.metrics.route("-"),
            series,
            access_log,
            source: SourceInfo {
                files: self.loaded.files.iter().map(|file| file.name.clone()).collect(),
                places: resolved.iter().map(|route| self.loaded.spot(&route.at)).collect(),
                hash: self.loaded.hash.clone(),
                watch,
                substituted: self.loaded.substituted.clone(),
                warnings: Vec::new(),
            },
            config,
            resolved,
        })
    }

    /// What compiling finds where `validate` found nothing: one mistake is one problem.
    fn second_look<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> T {
        let first = std::mem::take(self.problems);
        let result = look(self);
        let found = std::mem::replace(self.problems, first);
        self.problems.extend_new(found);
        result
    }

    fn upstreams(&mut self, config: &Config) -> BTreeMap<String, UpstreamHandle> {
        let mut handles = BTreeMap::new();
        for (name, written) in &config.upstreams {
            let https = written.endpoints.iter().any(|endpoint| endpoint.url.starts_with("https:"))
                || written.discover.as_ref().and_then(|d| d.dns.as_ref()).is_some_and(|dns| dns.starts_with("https:"));
            let tls = https
                .then(|| ClientTls::compile(&written.tls, written.protocol, &written.at.key("tls"), self.base, self.problems))
                .flatten()
                .map(Arc::new);
            let make_pool = self.shared.pool_maker(name, written, tls.clone());
            let state = self.shared.upstream_state(name);
            let mut found = Problems::default();
            let upstream = Upstream::compile(name, written, state, make_pool, &mut found);
            found.forget_damaged(config, &written.at);
            self.problems.extend_new(found);
            if let Some(upstream) = upstream {
                handles.insert(name.clone(), UpstreamHandle { upstream, metrics: self.shared.metrics.upstream(name), tls });
            }
        }
        handles
    }

    fn authenticators(&mut self, config: &Config) -> Authenticators {
        let mut found = Problems::default();
        let authenticators = Authenticators::compile(&config.authenticators, &self.shared.auth, self.base, &mut found);
        for authenticator in config.authenticators.values() {
            found.forget_damaged(config, &authenticator.at);
        }
        self.problems.extend_new(found);
        authenticators
    }

    fn stores(&mut self, config: &Config) -> Stores {
        let metrics = Arc::clone(&self.shared.metrics);
        let observer = move |name: &str, up: bool| metrics.store(name).set_up(up);
        Stores::start(&config.redis, &self.shared.limits, self.shared.control.as_ref(), &(Arc::new(observer) as _), self.problems)
    }

    fn listeners(&mut self, config: &Config) -> Vec<ListenerSpec> {
        let default = [crate::config::server::Listener { address: "0.0.0.0:8080".to_owned(), proxy_protocol: false, tls: None }];
        let written = config.listeners.as_deref().unwrap_or(&default);
        let mut specs = Vec::new();
        for (index, listener) in written.iter().enumerate() {
            // A wrong one was reported by `validate`.
            let Ok(address) = listener.address.parse::<SocketAddr>() else { continue };
            let at = At::main("listeners").index(index).key("tls");
            let previous = self.previous.and_then(|snapshot| snapshot.listeners.iter().find(|old| old.address == address));
            let tls = match &listener.tls {
                None => None,
                Some(tls) => {
                    let previous = previous.and_then(|old| old.tls.as_deref());
                    match ServerTls::compile(tls, &at, self.base, previous, self.problems) {
                        Some(tls) => Some(Arc::new(tls)),
                        None => continue,
                    }
                }
            };
            specs.push(ListenerSpec { address, tls, proxy_protocol: listener.proxy_protocol });
        }
        specs
    }

    /// Files besides the configuration's own whose change is a reload.
    fn files(&self, config: &Config) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for (index, listener) in config.listeners.iter().flatten().enumerate() {
            if let Some(tls) = &listener.tls {
                files.extend(ServerTls::paths(tls, &At::main("listeners").index(index).key("tls"), self.base));
            }
        }
        for upstream in config.upstreams.values() {
            let tls = &upstream.tls;
            files.extend([&tls.ca, &tls.cert, &tls.key].into_iter().flatten().map(|path| (self.base)(&upstream.at, path)));
        }
        for authenticator in config.authenticators.values() {
            let jwt = authenticator.jwt.as_ref();
            let jwks = jwt.and_then(|jwt| jwt.jwks.as_ref()).filter(|jwks| !jwks.contains("://"));
            let key = jwt.and_then(|jwt| jwt.public_key.as_ref());
            let keys = authenticator.api_key.as_ref().and_then(|api_key| api_key.keys_file.as_ref());
            let users = authenticator.basic.as_ref().map(|basic| &basic.users_file);
            files.extend([jwks, key, keys, users].into_iter().flatten().map(|path| (self.base)(&authenticator.at, path)));
        }
        files
    }

    fn fallback(&mut self, config: &Config) -> Fallback {
        let (headers, cors) = resolve::fallback_policy(config);
        // Routes that inherit them report what is wrong with them; without routes nobody would.
        let mut found = Problems::default();
        let fallback = Fallback {
            headers: HeaderRules::compile(&headers, &[], &mut found),
            cors: cors.and_then(|(cors, at)| Cors::compile(&cors, &at, &mut found)),
        };
        self.problems.extend_new(found);
        fallback
    }

    fn request_id(&mut self, config: &Config) -> Option<HeaderName> {
        let written = config.server.request_id.on()?;
        let why = match written.parse::<HeaderName>() {
            Ok(name) if !is_reserved(name.as_str()) => return Some(name),
            Ok(_) => "cannot carry an id: the gateway makes this field itself",
            Err(_) => "is not a header name",
        };
        self.second_look(|this| {
            this.problems
                .error(At::main("server").key("request_id"), format!("`{written}` {why}"))
                .help("write a name like x-request-id, or off");
        });
        None
    }

    fn route(
        &mut self,
        route: &resolve::Route,
        upstreams: &BTreeMap<String, UpstreamHandle>,
        authenticators: &Authenticators,
        stores: &Stores,
        homes: &Homes,
    ) -> Option<Arc<Route>> {
        let params = params_of(&route.matcher);
        let mut found = Problems::default();
        let problems = &mut found;
        let headers = HeaderRules::compile(&route.headers, &params, problems);
        let ip = route.ip.as_ref().map(|(ip, at)| IpRules::compile(ip, at, problems));
        let cors = route.cors.as_ref().map(|(cors, at)| Cors::compile(cors, at, problems));
        let auth = route.auth.as_ref().map(|(auth, at)| AuthChain::compile(auth, at, authenticators, problems));
        let limits =
            (!route.rate_limits.is_empty()).then(|| RateLimits::compile(&route.rate_limits, homes, stores, &self.shared.limits, problems));
        let rewrite = route.rewrite.as_ref().map(|rewrite| Rewrite::compile(rewrite, route, problems));
        let mirror =
            route.mirror.as_ref().map(|(mirror, at)| MirrorTarget::compile(mirror, at, route, upstreams, &self.shared.mirrors, problems));
        let target = target(route, &params, upstreams, problems);
        self.problems.extend_new(found);
        Some(Arc::new(Route {
            name: route.name.as_str().into(),
            metrics: self.shared.metrics.route(&route.name),
            ip: flat(ip)?,
            cors: flat(cors)?,
            body_limit: route.body_limit,
            limits: flat(limits)?,
            auth: flat(auth)?,
            rewrite: flat(rewrite)?,
            headers,
            timeout: route.timeout,
            idle_timeout: route.idle_timeout,
            retry: route.retry.as_ref().map(RetryPolicy::new),
            mirror: flat(mirror)?.flatten(),
            target: target?,
        }))
    }
}

/// `None` when something is configured but could not be compiled.
fn flat<T>(compiled: Option<Option<T>>) -> Option<Option<T>> {
    match compiled {
        None => Some(None),
        Some(None) => None,
        Some(some) => Some(some),
    }
}

fn target(
    route: &resolve::Route,
    params: &[crate::http::template::Param],
    upstreams: &BTreeMap<String, UpstreamHandle>,
    problems: &mut Problems,
) -> Option<Target> {
    // Unknown names were reported by `resolve`.
    let all = |names: &[String]| names.iter().map(|name| upstreams.get(name).cloned()).collect::<Option<Vec<_>>>();
    match &route.target {
        resolve::Target::Upstream(name) => upstreams.get(name).cloned().map(Target::Proxy),
        resolve::Target::Split(split) => {
            let split = Split::compile(split, &route.at.key("split"), problems)?;
            let branches = all(split.upstreams())?;
            Some(Target::Split(SplitTarget { split, branches }))
        }
        resolve::Target::Aggregate(aggregate) => {
            let aggregate = Aggregate::compile(aggregate, &route.at.key("aggregate"), params, problems)?;
            let upstreams = all(aggregate.upstreams())?;
            Some(Target::Aggregate(AggregateTarget { aggregate, upstreams }))
        }
        resolve::Target::Respond(respond) => Respond::compile(respond, &route.at.key("respond"), problems).map(Target::Respond),
        resolve::Target::Redirect(redirect) => {
            Redirect::compile(redirect, &route.at.key("redirect"), params, problems).map(Target::Redirect)
        }
    }
}
