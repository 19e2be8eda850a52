//! The `runner` program: parse, dispatch, exit code.

use std::process::ExitCode;

use runner::cli::{Cli, exit};

fn main() -> ExitCode {
    match Cli::from_arguments() {
        Ok(asked) => asked.run().unwrap_or_else(|error| exit::report(&error)),
        Err(answer) => exit::answer(&answer),
    }
}
