//! Checks of a run. Every check is a value; nothing here prints.
//!
//! * [`files`]: locks, ledger, checkpoints and data of a run against each other and this machine.
//! * [`events`]: the rewinds and drifts that the ledger has, against what the run could have made.
//! * [`expect`]: a run against a hash, a lock or golden roots that were kept elsewhere.
//! * [`replay`]: steps of a run trained again, each root compared.
//! * [`audit`]: parts of audited steps computed again in the mirror.
//! * [`twice`]: an experiment in fresh processes, one of them killed; [`golden`]: roots in a file.
//! * [`diff`]: the first step, tensor, leaf and element in which two runs differ.
//! * [`sources`]: the tokens of each source of a mixture, which the ledger has, against the experiment.
//! * [`sweep`]: every member of a sweep, and its lock; the first member in which two sweeps differ.
//! * [`rebuild`]: metrics and `main.log` written again from the ledger.
//! * [`promises`]: the checks as sentences for the report page.

pub mod audit;
pub mod diff;
pub mod events;
pub mod expect;
pub mod files;
pub mod golden;
pub mod lock;
mod measures;
pub mod promises;
pub mod rebuild;
pub mod replay;
pub mod sources;
pub mod sweep;
pub mod twice;

pub use crate::report::html::{Check, Status};

/// The checks so far. Each is passed to the caller when it is made, because some take long.
pub struct Checks<'a> {
    made: Vec<Check>,
    on_check: &'a mut dyn FnMut(&Check),
}

impl<'a> Checks<'a> {
    /// No checks yet; `on_check` gets each.
    pub fn new(on_check: &'a mut dyn FnMut(&Check)) -> Checks<'a> {
        Checks { made: Vec::new(), on_check }
    }

    fn add(&mut self, status: Status, name: &str, detail: String) {
        let check = Check { status, name: name.to_owned(), detail };
        (self.on_check)(&check);
        self.made.push(check);
    }

    /// The check passed.
    pub fn passed(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::Passed, name, detail.into());
    }

    /// The check failed.
    pub fn failed(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::Failed, name, detail.into());
    }

    /// It could not be checked here.
    pub fn skipped(&mut self, name: &str, detail: impl Into<String>) {
        self.add(Status::NotChecked, name, detail.into());
    }

    /// Whether no check has failed.
    pub fn all_passed(&self) -> bool {
        self.made.iter().all(|check| check.status != Status::Failed)
    }

    /// All of them, in the order in which they were made.
    pub fn into_made(self) -> Vec<Check> {
        self.made
    }
}
