//! Where a run's files go.

use std::path::PathBuf;

use crate::store::{self, RunFolder};

/// Where a run's files go.
pub enum Destination {
    /// A folder that is this run's.
    Open(RunFolder),
    /// The folder of another run, deleted when nothing can refuse this one any more.
    Replace { runs: PathBuf, name: String },
    /// Rank 0's folder, which this rank learns of when the run begins.
    OfRankZero,
}

impl Destination {
    /// The folder, which may not be there yet; none on a rank that writes none.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Destination::Open(folder) => Some(folder.paths.folder().to_owned()),
            Destination::Replace { runs, name } => Some(runs.join(name)),
            Destination::OfRankZero => None,
        }
    }

    /// The folder, locked; none on any rank but 0.
    pub fn take(self) -> store::Result<Option<RunFolder>> {
        match self {
            Destination::Open(folder) => Ok(Some(folder)),
            Destination::Replace { runs, name } => Ok(Some(RunFolder::create(&runs, &name, true)?)),
            Destination::OfRankZero => Ok(None),
        }
    }
}
