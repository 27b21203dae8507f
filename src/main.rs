//! The `tollgate` program.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Key};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command.unwrap_or(Command::Serve) {
        Command::Check => cli::check(&cli.options),
        Command::Schema => cli::schema(),
        Command::Version => cli::version(),
        Command::Key(Key::New(new)) => cli::key_new(&new),
        Command::Serve | Command::Demo | Command::Health | Command::Explain(_) => Err(std::io::Error::other("not built in yet")),
    };
    result.unwrap_or_else(|error| {
        // Nobody reads stderr any more if this fails too.
        drop(writeln!(std::io::stderr(), "tollgate: {error}"));
        ExitCode::from(cli::FAILED)
    })
}
