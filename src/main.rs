//! The `runner` program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser;
use runner::cli::{Cli, exit};

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
