//! Exit codes: an interface that scripts rely on.

use std::process::ExitCode;

use crate::data::fetch::FetchError;
use crate::eval::EvalError;
use crate::experiment::ExperimentError;
use crate::ops::DeviceError;
use crate::plan::PlanError;
use crate::run::ProofRefusal;
use crate::run::ending::Ending;
use crate::train::{RunError, TrainError};

/// Something failed that is none of the cases below.
pub const FAILED: u8 = Ending::Failed.code();
/// The command line or the experiment is wrong. (clap's own code as well.)
pub const USAGE: u8 = 2;
/// No usable device of the kind asked for.
pub const NO_DEVICE: u8 = 3;
/// Training diverged, or came to numbers that are not finite; the last good checkpoint stands.
pub const DIVERGED: u8 = Ending::Diverged.code();
/// Bits are not what they must be.
pub const PROOF: u8 = 5;
/// Asked to stop; a checkpoint was saved.
pub const INTERRUPTED: u8 = Ending::Interrupted.code();

/// Prints an error to stderr and says with which code to exit.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(experiment) = experiment(error) {
        anstream::eprintln!("{}", experiment.styled());
    } else {
        print(&format!("{error:#}"));
    }
    ExitCode::from(code(error))
}

/// Prints what went wrong to stderr.
pub fn print(error: &str) {
    anstream::eprintln!("{ERROR}error{ERROR:#}: {error}");
}

fn experiment(error: &anyhow::Error) -> Option<&ExperimentError> {
    match error.downcast_ref::<PlanError>() {
        Some(PlanError::Experiment(experiment)) => Some(experiment),
        _ => error.downcast_ref::<ExperimentError>(),
    }
}

const ERROR: anstyle::Style =
    anstyle::Style::new().bold().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Red)));

fn code(error: &anyhow::Error) -> u8 {
    let device = error.downcast_ref::<DeviceError>().or_else(|| match error.downcast_ref::<RunError>() {
        Some(RunError::Train(TrainError::Device(device))) => Some(device),
        _ => None,
    });
    let fetch = error.downcast_ref::<FetchError>();
    if matches!(fetch, Some(FetchError::Interrupted)) {
        INTERRUPTED
    } else if experiment(error).is_some() || fetch.is_some_and(FetchError::is_usage) {
        USAGE
    } else if error.is::<ProofRefusal>()
        || matches!(
            error.downcast_ref(),
            Some(RunError::Unrepeatable { .. } | RunError::Train(TrainError::RanksDiffer { .. }))
        )
    {
        PROOF
    } else if matches!(error.downcast_ref(), Some(RunError::Eval(EvalError::NotFinite { .. }))) {
        DIVERGED
    } else if matches!(device, Some(DeviceError::Unavailable(_))) {
        NO_DEVICE
    } else {
        FAILED
    }
}
