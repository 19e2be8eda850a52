//! Where a run's files go.

use std::path::PathBuf;

use crate::store::{self, RunFolder};

/// Where a run's files go.
pub enum Destination {
    /// The folder of a run that goes on.
    Open(RunFolder),
    /// The folder `name` in `runs`, made when nothing can refuse the run any more.
    New { runs: PathBuf, name: String, existing: Existing },
    /// Rank 0's folder, which this rank learns of when the run begins.
    OfRankZero,
}

/// What becomes of a run of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The new run is refused.
    Refuse,
    /// It is deleted.
    Replace,
    /// It goes on, in place of a new one.
    Resume,
}

impl Destination {
    /// The folder, which may not be there yet; none on a rank that writes none.
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
