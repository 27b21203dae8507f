//! DNS as the system has it set up: `/etc/hosts` first, then the name servers, search domains and timeouts of `/etc/resolv.conf`.
//!
//! Both files are read anew for each look-up: they change while a gateway runs (VPNs, containers), and a look-up is rare. Answers are
//! not kept here; who asks knows from the TTL when to ask again.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::lookup::Lookup as DnsLookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::task::JoinSet;

use super::service::{self, Target};
use super::{Answer, Found, Lookup, Question, Resolver};

/// Targets of a service that are looked up at a time.
const AT_ONCE: usize = 16;

/// See module.
#[derive(Clone, Debug)]
pub struct Dns {
    resolv_conf: PathBuf,
    hosts: PathBuf,
    port: u16,
}

impl Default for Dns {
    fn default() -> Self {
        Self::of_files("/etc/resolv.conf", "/etc/hosts", 53)
    }
}

impl Dns {
    /// Set up by other files than the system's, in their formats; all name servers are asked at `port`.
    pub fn of_files(resolv_conf: impl Into<PathBuf>, hosts: impl Into<PathBuf>, port: u16) -> Self {
        Self { resolv_conf: resolv_conf.into(), hosts: hosts.into(), port }
    }

    /// Reads the files. Blocks.
    fn session(&self) -> Result<Session, String> {
        // No file, or one without servers, stands for a server on this machine: resolv.conf(5).
        let text = std::fs::read(&self.resolv_conf).unwrap_or_default();
        let (written, errors) = resolv_conf::Config::parse_with_errors(&text);
        for error in errors {
            tracing::debug!(file = %self.resolv_conf.display(), %error, "a line that is not understood");
        }
        let servers = written.get_nameservers_or_local().into_iter().map(|ip| {
            let mut server = NameServerConfig::udp_and_tcp(ip.into());
            server.connections.iter_mut().for_each(|connection| connection.port = self.port);
            server
        });
        let mut search: Vec<Name> = written.get_last_search_or_domain().filter_map(|domain| Name::from_ascii(domain).ok()).collect();
        if search.is_empty() {
            search.extend(written.get_system_domain().and_then(|domain| Name::from_ascii(domain).ok()));
        }
        let mut options = ResolverOpts::default();
        options.timeout = Duration::from_secs(u64::from(written.timeout.max(1)));
        options.attempts = written.attempts as usize;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        let config = ResolverConfig::from_name_servers(servers.collect());
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Session { hosts: read_hosts(&self.hosts), search, ndots: written.ndots as usize, resolver })
    }
}

/// A file that is not there or not readable has no hosts.
fn read_hosts(path: &Path) -> Hosts {
    let mut hosts = Hosts::default();
    if let Err(error) = std::fs::File::open(path).and_then(|file| hosts.read_hosts_conf(file)) {
        tracing::debug!(file = %path.display(), %error, "no hosts file");
    }
    hosts
}

impl Resolver for Dns {
    fn lookup(&self, question: &Question) -> Lookup {
        let (dns, question) = (self.clone(), question.clone());
        Box::pin(async move {
            let session = tokio::task::spawn_blocking(move || dns.session()).await.map_err(|error| error.to_string())??;
            match question {
                Question::Host { name, port } => {
                    let name = Name::from_ascii(name).map_err(|error| error.to_string())?;
                    let (addresses, ttl) = session.addresses(name).await.map_err(|error| plain(&error))?;
                    let found =
                        addresses.into_iter().map(|ip| Found { address: (ip, port).into(), weight: 1, priority: 0, target: "".into() });
                    Ok(Answer { found: found.collect(), ttl, missing: Vec::new() })
                }
                Question::Service { name } => session.service(&name).await,
            }
        })
    }
}

/// What one look-up works with.
struct Session {
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
    resolver: TokioResolver,
}

impl Session {
    /// All addresses of a host, and how long they hold.
    async fn addresses(&self, name: Name) -> Result<(Vec<IpAddr>, Duration), NetError> {
        let of_type = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let written: Vec<IpAddr> =
            [RecordType::A, RecordType::AAAA].into_iter().filter_map(of_type).flat_map(|found| ips(found.answers())).collect();
        if !written.is_empty() {
            return Ok((written, Duration::MAX));
        }
        let found = self.ask(name, false).await?;
        Ok((ips(found.answers()), shortest_ttl(found.answers())))
    }

    /// Asks for the addresses or the services of a name, in the search domains too. That a server fails says nothing about the name, so the
    /// search goes on; but then the failure is the outcome rather than that there is no such name elsewhere.
    async fn ask(&self, name: Name, service: bool) -> Result<DnsLookup, NetError> {
        let mut failure = None;
        for name in self.candidates(name) {
            let found = match service {
                true => self.resolver.srv_lookup(name).await,
                false => self.resolver.lookup_ip(name).await.map(DnsLookup::from),
            };
            match found {
                Ok(found) => return Ok(found),
                Err(NetError::Timeout) => return Err(NetError::Timeout),
                Err(error) if failure.as_ref().is_none_or(NetError::is_no_records_found) => failure = Some(error),
                Err(_less_telling) => {}
            }
        }
        Err(failure.unwrap_or(NetError::Message("not a name")))
    }

    /// The whole names that a written one may stand for, in order: resolv.conf(5), `search` and `ndots`.
    fn candidates(&self, mut name: Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name];
        }
        let first = usize::from(name.num_labels()) > self.ndots;
        let mut names: Vec<Name> = self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        name.set_fqdn(true);
        names.insert(if first { 0 } else { names.len() }, name);
        names
    }

    /// The endpoints of a service. A target that does not exist has none; one that cannot be looked up is `missing`.
    async fn service(self, name: &str) -> Result<Answer, String> {
        let name = Name::from_ascii(name).map_err(|error| error.to_string())?;
        let found = self.ask(name, true).await.map_err(|error| plain(&error))?;
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv.clone()),
            _other_kind => None,
        });
        // A target of "." says that the service is not offered (RFC 2782).
        let mut waiting: Vec<SRV> = records.filter(|srv| !srv.target.is_root()).collect();
        let mut answer = Answer { found: Vec::new(), ttl: shortest_ttl(found.answers()), missing: Vec::new() };
        let additionals: Arc<[Record]> = found.additionals().into();
        let (session, mut asked, mut targets) = (Arc::new(self), JoinSet::new(), Vec::new());
        loop {
            while asked.len() < AT_ONCE
                && let Some(srv) = waiting.pop()
            {
                let (session, additionals) = (Arc::clone(&session), Arc::clone(&additionals));
                asked.spawn(async move {
                    let name: Arc<str> = srv.target.to_ascii().into();
                    session.target(srv, Arc::clone(&name), &additionals).await.map_err(|error| (name, plain(&error)))
                });
            }
            match asked.join_next().await {
                None => break,
                Some(Ok(Ok((target, ttl)))) => {
                    answer.ttl = answer.ttl.min(ttl);
                    targets.push(target);
                }
                Some(Ok(Err(missing))) => answer.missing.push(missing),
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
        answer.found = service::endpoints(&targets);
        Ok(answer)
    }

    /// The addresses of a target: those that came with its record, else looked up.
    async fn target(&self, srv: SRV, name: Arc<str>, additionals: &[Record]) -> Result<(Target, Duration), NetError> {
        let of_target: Vec<Record> =
            additionals.iter().filter(|record| record.name == srv.target && record.data.ip_addr().is_some()).cloned().collect();
        let (addresses, ttl) = if of_target.is_empty() {
            let mut host = srv.target.clone();
            host.set_fqdn(true);
            match self.addresses(host).await {
                Ok(found) => found,
                Err(error) if error.is_no_records_found() => (Vec::new(), Duration::MAX),
                Err(error) => return Err(error),
            }
        } else {
            (ips(&of_target), shortest_ttl(&of_target))
        };
        Ok((Target { priority: srv.priority, weight: srv.weight, port: srv.port, name, addresses }, ttl))
    }
}

fn ips(records: &[Record]) -> Vec<IpAddr> {
    records.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// Aliases on the way count, too.
fn shortest_ttl(records: &[Record]) -> Duration {
    records.iter().map(|record| Duration::from_secs(u64::from(record.ttl))).min().unwrap_or_default()
}

/// An error as users read it.
fn plain(error: &NetError) -> String {
    match error {
        _ if error.is_nx_domain() => "no such name".to_owned(),
        _ if error.is_no_records_found() => "no address".to_owned(),
        NetError::Timeout => "the name servers do not answer".to_owned(),
        _ => error.to_string(),
    }
}
