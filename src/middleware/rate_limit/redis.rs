//! A connection to a Redis: driven on the runtime that opened it, its commands pipelined.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, Script};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use super::store::{Answer, Call, FAILURES};

/// Keys carry one hash tag, so that in a cluster all keys of a call share a slot.
const PREFIX: &str = "tollgate:{limits}:";
const GATEWAYS: &str = "tollgate:{limits}:gateways";

/// GCRA on the store's clock, for several buckets at once, in microseconds; a bucket's value is its theoretical arrival
/// time and expires when it is full. Stops at the first that refuses: that one and those after it are not charged.
/// A time further ahead than a bucket can be comes from a clock that was set back, and is cut to an empty bucket.
/// The half microsecond is for sums of fractions: the third of `3/s` must not be refused.
const DECIDE: &str = r"
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local answer = {}
for i = 1, #KEYS do
  local interval, burst = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local capacity = interval * burst
  local tat = tonumber(redis.call('GET', KEYS[i]) or '0') or 0
  if tat < now then tat = now end
  if tat > now + capacity then tat = now + capacity end
  if tat + interval - now > capacity + 0.5 then
    answer[#answer + 1] = 0
    answer[#answer + 1] = string.format('%.0f', math.ceil(tat - now))
    return answer
  end
  tat = tat + interval
  redis.call('SET', KEYS[i], string.format('%.3f', tat), 'PX', math.max(1, math.ceil((tat - now) / 1000)))
  answer[#answer + 1] = 1
  answer[#answer + 1] = string.format('%.0f', tat - now)
end
return answer
";

/// Says that this gateway lives, forgets those not heard of for a minute, and counts the rest.
const HEARTBEAT: &str = r"
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60)
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
";

/// Where and how to connect.
pub(super) struct Target {
    info: ConnectionInfo,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// TLS that trusts the system's roots, and the bundled ones if there are none.
fn connector() -> Result<TlsConnector, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Target {
    /// Reads a `redis://` or `rediss://` URL. The error never quotes it, since it may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "this is not a redis:// or rediss:// URL";
        if url.contains('#') {
            return Err("this URL has a `#`, which means nothing here; in a password write %23");
        }
        let (plain, tls) = match url.split_once("://") {
            Some(("redis", _)) => (url.to_owned(), false),
            Some(("rediss", rest)) => (format!("redis://{rest}"), true),
            Some(_) | None => return Err(WRONG),
        };
        let info = plain.into_connection_info().map_err(|_| WRONG)?;
        let (host, port) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (host.clone(), *port),
            _ => return Err(WRONG),
        };
        let tls = match tls {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|_| "the host of this rediss:// URL is not a name TLS can check")?;
                Some((connector().map_err(|_| "TLS cannot be set up for this store")?, name))
            }
        };
        Ok(Self { info, host, port, tls })
    }
}

/// An open connection; its driver ends when it is dropped.
pub(super) struct Connection {
    commands: MultiplexedConnection,
    driver: AbortHandle,
    /// Its sender ends with the driver.
    ended: watch::Receiver<()>,
    decide: Script,
    /// The server's address.
    pub(super) peer: SocketAddr,
    /// Calls that failed in a row.
    failures: AtomicU32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// The result, or an error when `limit` is over.
pub(super) async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Runs a connection's driver on the calling runtime.
fn spawn(driver: impl Future<Output = ()> + Send + 'static) -> (AbortHandle, watch::Receiver<()>) {
    let (running, ended) = watch::channel(());
    let task = tokio::spawn(async move {
        driver.await;
        drop(running);
    });
    (task.abort_handle(), ended)
}

impl Connection {
    /// Connects and authenticates, with this server if given, else with one that the target's name stands for. The driver
    /// runs on the calling runtime.
    pub(super) async fn open(target: &Target, server: Option<SocketAddr>, timeout: Duration) -> Result<Self, RedisError> {
        let open = async {
            let tcp = match server {
                Some(server) => TcpStream::connect(server).await?,
                None => TcpStream::connect((target.host.as_str(), target.port)).await?,
            };
            tcp.set_nodelay(true)?;
            let peer = tcp.peer_addr()?;
            let settings = target.info.redis_settings();
            // The caller's timeout holds, not the library's half a second.
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let (commands, (driver, ended)) = match &target.tls {
                None => {
                    let (commands, driver) = MultiplexedConnection::new_with_config(settings, tcp, config).await?;
                    (commands, spawn(driver))
                }
                Some((connector, name)) => {
                    let tls = connector.connect(name.clone(), tcp).await?;
                    let (commands, driver) = MultiplexedConnection::new_with_config(settings, tls, config).await?;
                    (commands, spawn(driver))
                }
            };
            Ok(Self { commands, driver, ended, decide: Script::new(DECIDE), peer, failures: AtomicU32::new(0) })
        };
        in_time(timeout, open).await
    }

    /// Whether it may still answer: its driver runs, and the last calls did not all fail.
    pub(super) fn is_usable(&self) -> bool {
        !self.driver.is_finished() && self.failures.load(Relaxed) < FAILURES
    }

    /// Notes that a call was answered.
    pub(super) fn worked(&self) {
        self.failures.store(0, Relaxed);
    }

    /// Notes that a call failed; a `dead` connection can never answer again.
    pub(super) fn failed(&self, dead: bool) {
        if dead {
            self.driver.abort();
        }
        self.failures.fetch_add(1, Relaxed);
    }

    /// Waits until it is closed.
    pub(super) async fn closed(&self) {
        // Nothing is ever sent, so the error is all that can come.
        let _closed = self.ended.clone().changed().await;
    }

    /// Waits for a sign of life.
    pub(super) async fn ping(&self) -> Result<(), RedisError> {
        redis::cmd("PING").exec_async(&mut self.commands.clone()).await
    }

    /// Decides all buckets of `calls` in one round trip.
    pub(super) async fn decide(&self, calls: &[Call]) -> Result<Vec<Answer>, RedisError> {
        let mut script = self.decide.prepare_invoke();
        for call in calls {
            let microseconds = call.quota.interval() as f64 / 1_000.0;
            script.key(format!("{PREFIX}{:032x}", call.key)).arg(format!("{microseconds:.3}")).arg(call.quota.burst());
        }
        let flat: Vec<u64> = script.invoke_async(&mut self.commands.clone()).await?;
        let answer = |pair: &[u64]| match *pair {
            [allowed, used] => Some(Answer { allowed: allowed == 1, used: used.saturating_mul(1_000) }),
            _ => None,
        };
        Ok(flat.chunks_exact(2).filter_map(answer).collect())
    }

    /// Writes the heartbeat of the gateway `id`; how many live.
    pub(super) async fn heartbeat(&self, id: &str) -> Result<u32, RedisError> {
        Script::new(HEARTBEAT).key(GATEWAYS).arg(id).invoke_async(&mut self.commands.clone()).await
    }
}
