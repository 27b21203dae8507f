//! The `tollgate` program.

mod activation;
mod cli;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Key};

/// Many small short-lived allocations on several threads are what a proxy does; measured against the system's on the plain path.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => cli::serve::serve(&cli.options),
        Command::Demo => cli::serve::demo(&cli.options),
        Command::Health => cli::health(&cli.options),
        Command::Check { file } => cli::check(&cli.options, file.as_ref()),
        Command::Explain(request) => cli::explain::explain(&cli.options, &request),
        Command::Schema => cli::schema(),
        Command::Version => cli::version(),
        Command::Key(Key::New(new)) => cli::key_new(&new),
    };
    result.unwrap_or_else(|error| {
        // Nobody reads stderr any more if this fails too.
        drop(writeln!(std::io::stderr(), "tollgate: {error}"));
        ExitCode::from(cli::FAILED)
    })
}
