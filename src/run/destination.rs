//! Where a run's files go.

use std::path::PathBuf;

use crate::store::{self, RunFolder};

/// Where a run's files go.
pub enum Destination {
    /// The folder of a run that is resumed.
    Open(RunFolder),
    /// The folder `name` in `runs`, created when every check has passed.
    New { runs: PathBuf, name: String, existing: Existing },
    /// Rank 0's folder, which it sends to this rank when the run begins.
    OfRankZero,
}

/// What happens to an existing run of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is kept, and the new run refused.
    Refuse,
    /// It is deleted.
    Replace,
    /// It is resumed instead of starting a new one.
    Resume,
}

impl Destination {
    /// The folder, which may not exist yet; none on a rank that writes none.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Destination::Open(folder) => Some(folder.paths.folder().to_owned()),
            Destination::New { runs, name, .. } => Some(runs.join(name)),
            Destination::OfRankZero => None,
        }
    }

    /// The folder, locked; none on any rank but 0.
    pub fn take(self) -> store::Result<Option<RunFolder>> {
        Ok(match self {
            Destination::Open(folder) => Some(folder),
            Destination::New { runs, name, existing } => Some(match existing {
                Existing::Refuse => RunFolder::create(&runs, &name, false)?,
                Existing::Replace => RunFolder::create(&runs, &name, true)?,
                // A kill may have left a folder in which nothing had begun.
                Existing::Resume => RunFolder::create_again(&runs, &name)?,
            }),
            Destination::OfRankZero => None,
        })
    }
}
