//! The `runner` program: parse, dispatch, exit code.

use std::process::ExitCode;

use runner::cli::{Cli, exit};

fn main() -> ExitCode {
    match Cli::from_arguments().run() {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
