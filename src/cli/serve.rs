//! `serve` and `demo`: a server, and what signals do to it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tollgate::config::load::Source;
use tollgate::server::{Options as ServerOptions, Server, StartError};

use super::{BAD_CONFIG, DONE, FAILED, Options};

/// `serve`: runs until a signal says otherwise.
pub fn serve(options: &Options) -> io::Result<ExitCode> {
    run(options, Source::File(options.config.clone()), || Ok(()))
}

/// `demo`: three built-in backends behind the example configuration.
pub fn demo(options: &Options) -> io::Result<ExitCode> {
    let _backends = tollgate::demo::start()?;
    let source = if options.config.exists() {
        Source::File(options.config.clone())
    } else {
        Source::Text { yaml: tollgate::demo::GATEWAY_YAML.to_owned(), dir: ".".into() }
    };
    let [gateway, admin] = [options.listen.first(), options.admin.as_ref()].map(|address| address.map(|address| reachable(address)));
    run(options, source, || writeln!(io::stdout(), "{}", tollgate::demo::things_to_try(gateway.as_deref(), admin.as_deref())))
}

/// How this machine connects to who listens at `address`.
fn reachable(address: &str) -> String {
    address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
}

fn run(options: &Options, source: Source, started: impl FnOnce() -> io::Result<()>) -> io::Result<ExitCode> {
    let overrides = options.clone();
    let server_options = ServerOptions {
        overrides: Some(Arc::new(move |config| overrides.apply(config))),
        watch: true,
        inherited: crate::activation::sockets().into(),
        middleware: Vec::new(),
        resolver: None,
        http2_ping: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _runtime = runtime.enter();
        Signals::new()?
    };
    let server = match Server::start(source, server_options) {
        Ok(server) => server,
        Err(error) => {
            let code = match &error {
                StartError::Config(_) => BAD_CONFIG,
                StartError::Bind(_) | StartError::Io(_) => FAILED,
            };
            write!(io::stderr(), "{error}")?;
            return Ok(ExitCode::from(code));
        }
    };
    started()?;
    let server = Arc::new(server);
    runtime.block_on(async {
        let mut reloads = JoinSet::new();
        loop {
            match signals.next().await {
                Heard::End => break,
                Heard::Hangup => {
                    server.reopen_logs();
                    let reloading = Arc::clone(&server);
                    // The outcome is in log and metrics; a reload that is still under way does not keep the next signal waiting.
                    reloads.spawn_blocking(move || drop(reloading.reload()));
                    while let Some(over) = reloads.try_join_next() {
                        over.map_err(io::Error::other)?;
                    }
                }
            }
        }
        let draining = async {
            while let Some(over) = reloads.join_next().await {
                over.map_err(io::Error::other)?;
            }
            // Nothing else holds it now.
            let down = tokio::task::spawn_blocking(move || {
                if let Ok(server) = Arc::try_unwrap(server) {
                    server.shutdown();
                }
            });
            down.await.map_err(io::Error::other)
        };
        tokio::select! {
            drained = draining => drained.map(|()| ExitCode::from(DONE)),
            () = signals.end() => {
                writeln!(io::stderr(), "tollgate: second signal, ending at once")?;
                std::process::exit(i32::from(FAILED));
            }
        }
    })
}

/// The signals that mean something to a running gateway.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::End,
            _ = self.interrupt.recv() => Heard::End,
            _ = self.hangup.recv() => Heard::Hangup,
        }
    }

    /// SIGTERM or SIGINT.
    async fn end(&mut self) {
        while self.next().await == Heard::Hangup {}
    }
}

/// What a signal asks for.
#[derive(PartialEq, Eq)]
enum Heard {
    /// SIGTERM, SIGINT.
    End,
    /// SIGHUP.
    Hangup,
}
