//! Exit codes: an interface that scripts rely on.

use std::process::ExitCode;

use super::streams::{self, say};
use crate::data::DataError;
use crate::data::fetch::FetchError;
use crate::eval::EvalError;
use crate::experiment::ExperimentError;
use crate::ops::DeviceError;
use crate::parallel::launch::LaunchError;
use crate::plan::PlanError;
use crate::report::ReportError;
use crate::run::ending::{self, Ending};
use crate::run::error::{HINT, in_words, is_damage, train_error};
use crate::run::{StoppedOnRequest, UsageError};
use crate::store::StoreError;
use crate::train::{RunError, TrainError};
use crate::units;

/// Something failed that is none of the cases below.
pub const FAILED: u8 = Ending::Failed.code();
/// The command line or the experiment is wrong, or names a run or an experiment that is not there.
pub const USAGE: u8 = 2;
/// No usable device of the kind asked for.
pub const NO_DEVICE: u8 = ending::NO_DEVICE;
/// Training diverged, or ended in numbers that are not finite; the last good checkpoint is kept.
pub const DIVERGED: u8 = Ending::Diverged.code();
/// Bits differ from the required ones, or a checkpoint or another file of a model is damaged.
pub const PROOF: u8 = 5;
/// Stopped on request; a checkpoint was saved.
pub const INTERRUPTED: u8 = Ending::Interrupted.code();

/// Prints an error to stderr and returns the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    match experiment(error) {
        Some(experiment) => say!("{}", experiment.styled()),
        None => print(&message(error)),
    }
    ExitCode::from(code(error))
}

/// Prints what went wrong to stderr. Names of files and what stands in them may hold anything.
pub fn print(error: &str) {
    say!("{ERROR}error{ERROR:#}: {}", units::printable_lines(error));
}

/// Prints what clap answers to a command line: help and version to stdout, the rest to stderr.
pub fn answer(error: &clap::Error) -> ExitCode {
    let text = error.render().ansi().to_string();
    if error.use_stderr() {
        say!("{}", text.trim_end());
        return ExitCode::from(USAGE);
    }
    streams::print_styled(&text).map_or_else(|error| report(&error), |()| ExitCode::SUCCESS)
}

/// An error on one line, and its hints below.
fn message(error: &anyhow::Error) -> String {
    let (text, mut hints) = in_words(error);
    if hints.is_empty()
        && let Some((_, hint)) =
            OF_SYSTEM.iter().find(|(number, _)| text.contains(&format!("(os error {number})")))
    {
        hints = format!("{HINT}{hint}");
    }
    text + &hints
}

/// What to do about errors of the system that a file's owner can mend, by their numbers: most errors of this
/// program quote the system's.
const OF_SYSTEM: [(i32, &str); 3] = [
    (
        1,
        "the file or its folder may be immutable or of another owner: `lsattr -d` shows an `i`, which \
         `chattr -i` takes away",
    ),
    (
        13,
        "`namei -l` with that path shows the permissions of each folder on the way; one has to be passed \
         (`x`), and to be written in (`w`)",
    ),
    (30, "the disk is mounted to be read only: name another folder (`--runs`, `--out`), or mount it anew"),
];

fn experiment(error: &anyhow::Error) -> Option<&ExperimentError> {
    match error.downcast_ref::<PlanError>() {
        Some(PlanError::Experiment(experiment)) => Some(experiment),
        _ => error.downcast_ref::<ExperimentError>(),
    }
}

fn data(error: &anyhow::Error) -> Option<&DataError> {
    match error.downcast_ref::<PlanError>() {
        Some(PlanError::Data(data) | PlanError::EpochsWithoutData(data)) => Some(data),
        _ => error.downcast_ref::<DataError>(),
    }
}

const ERROR: anstyle::Style =
    anstyle::Style::new().bold().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Red)));

fn code(error: &anyhow::Error) -> u8 {
    let train = train_error(error);
    let device = error.downcast_ref::<DeviceError>().or(match train {
        Some(TrainError::Device(device)) => Some(device),
        _ => None,
    });
    if matches!(error.downcast_ref(), Some(FetchError::Interrupted))
        || matches!(error.downcast_ref(), Some(DataError::Stopped))
        || error.is::<StoppedOnRequest>()
    {
        INTERRUPTED
    } else if is_usage(error) {
        USAGE
    } else if is_damage(error)
        || experiment(error).is_some_and(ExperimentError::is_damage)
        || matches!(error.downcast_ref(), Some(RunError::Unrepeatable { .. }))
        || matches!(train, Some(TrainError::RanksDiffer { .. }))
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

/// Whether an error is one of usage.
fn is_usage(error: &anyhow::Error) -> bool {
    experiment(error).is_some_and(|experiment| !experiment.is_damage())
        || error.is::<UsageError>()
        || error.is::<LaunchError>()
        || error.downcast_ref().is_some_and(FetchError::is_usage)
        || matches!(error.downcast_ref(), Some(PlanError::UnknownGpu { .. }))
        || matches!(error.downcast_ref(), Some(StoreError::NoSuchRun { .. } | StoreError::BadName { .. }))
        || matches!(data(error), Some(DataError::Option { .. } | DataError::EpochLimit { .. }))
        || matches!(
            error.downcast_ref(),
            Some(
                ReportError::NotFound { .. }
                    | ReportError::NoFolder { .. }
                    | ReportError::NoRuns
                    | ReportError::NoAxis { .. }
                    | ReportError::Table { .. }
                    | ReportError::Ending { .. }
            )
        )
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use anyhow::Context;

    use super::*;
    use crate::formats::FormatError;

    #[test]
    fn a_cause_that_its_error_quotes_is_said_once_and_before_the_hints() {
        let system = || Error::new(ErrorKind::NotFound, "no such file");
        let quoted = StoreError::Io { path: "a".into(), doing: "open", source: system() };
        assert_eq!(message(&quoted.into()), "cannot open `a`: no such file");
        let full = StoreError::DiskFull { path: "a".into(), need_bytes: 3, source: system() };
        let text = message(&anyhow::Error::from(full).context("rank 1 on `b`"));
        assert!(
            text.starts_with(
                "rank 1 on `b`: no space left to write `a`, which needs 3 bytes: no such file\n  hint: "
            ),
            "{text}"
        );
        assert_eq!(text.matches("hint").count(), 1, "{text}");
        let number = Error::from_raw_os_error;
        for (error, helps) in [(1, "chattr -i"), (13, "namei -l"), (30, "read only")] {
            let refused = StoreError::Io { path: "a".into(), doing: "write", source: number(error) };
            let text = message(&refused.into());
            assert_eq!(text.matches("os error").count(), 1, "{text}");
            assert!(text.contains("\n  hint: ") && text.contains(helps), "{text}");
        }
        let said: anyhow::Result<()> = Err(system()).context("cannot write to stdout");
        assert_eq!(message(&said.unwrap_err()), "cannot write to stdout: no such file");
    }

    #[test]
    fn what_was_asked_wrong_is_usage_on_every_rank() {
        let usage = anyhow::Error::from(UsageError("wrong".into())).context("rank 1 on `b`");
        assert_eq!(code(&usage), USAGE);
        assert_eq!(code(&StoreError::NoSuchRun { path: "a".into() }.into()), USAGE);
        assert_eq!(code(&StoreError::RunExists { path: "a".into() }.into()), FAILED);
    }

    #[test]
    fn a_damaged_checkpoint_is_a_mismatch_in_every_verb() {
        let short = || StoreError::WrongLength { path: "a".into(), expected: 2, found: 1 };
        assert_eq!(code(&anyhow::Error::from(short()).context("rank 1 on `b`")), PROOF);
        assert_eq!(code(&RunError::Store(short()).into()), PROOF);
        assert_eq!(code(&StoreError::NotOnLedger { step: 3 }.into()), FAILED);
    }

    #[test]
    fn a_damaged_model_of_another_program_is_a_mismatch_and_another_kind_of_file_is_not() {
        let code = |error: FormatError| code(&anyhow::Error::from(error).context("rank 1 on `b`"));
        let header = |byte| {
            let (what, got, expected) = ("a word", 7, "3".into());
            FormatError::Header { path: "a".into(), what, byte, got, expected }
        };
        let cut = StoreError::WrongLength { path: "a".into(), expected: 2, found: 1 };
        for damage in [
            FormatError::CutShort { path: "a".into(), got: 7, expected: 1024 },
            FormatError::Length { path: "a".into(), got: 7, expected: 8 },
            FormatError::Damaged { path: "a".into(), problem: "b".into() },
            FormatError::Padding { path: "a".into(), row: 3 },
            header(8),
            cut.into(),
        ] {
            assert_eq!(code(damage), PROOF);
        }
        let (name, why) = ("b".into(), "is stored as I64".into());
        let of_numbers = StoreError::BadTensorOf { path: "a".into(), name, why };
        for other in [
            FormatError::NotAModel { path: "a".into(), found: "it is text".into(), hint: "b".into() },
            FormatError::Sizes { path: "a".into(), what: "layers", got: 2, expected: 3 },
            FormatError::Unused { path: "a".into(), tensor: "b".into() },
            header(4),
            of_numbers.into(),
        ] {
            assert_eq!(code(other), FAILED);
        }
    }

    #[test]
    fn an_error_of_training_has_its_code_wherever_it_is_found() {
        let gone = || TrainError::Device(DeviceError::Unavailable("no GPU".into()));
        let in_step = RunError::Step { step: 3, error: gone() };
        for error in [gone().into(), RunError::Train(gone()).into(), anyhow::Error::from(in_step)] {
            assert_eq!(code(&error.context("rank 1 on `b`")), NO_DEVICE);
        }
    }
}
