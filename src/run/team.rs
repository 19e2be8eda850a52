//! This process among the ranks of a run: what rank 0 decides and sends to the others.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::device::Device;
use super::error::ProofRefusal;
use super::lock::list;
use super::messages::Report;
use super::ranks;
use crate::experiment::Experiment;
use crate::parallel::exchange::broadcast;
use crate::parallel::{ExchangeError, Link, RankPlace, Tcp};
use crate::proof::Hash;
use crate::proof::lock::{Lock, Table, differences};

/// This process's rank, and its connections until a trainer takes them.
pub struct Team {
    place: Option<RankPlace>,
    pub link: Option<Tcp>,
}

impl Team {
    /// Connects to the other ranks, if this is one of several.
    pub fn join(place: Option<&RankPlace>, experiment: &Experiment, report: Report) -> anyhow::Result<Team> {
        let link = place.map(|place| ranks::join(place, experiment, report)).transpose()?;
        Ok(Team { place: place.cloned(), link })
    }

    /// Whether this rank decides and keeps the records.
    pub fn is_first(&self) -> bool {
        self.place.as_ref().is_none_or(|place| place.rank == 0)
    }

    /// N, the number of ranks.
    pub fn size(&self) -> usize {
        self.place.as_ref().map_or(1, |place| place.size)
    }

    /// A result of rank 0, sent to all.
    pub fn agree(&mut self, operation: &'static str, mine: bool) -> Result<bool, ExchangeError> {
        let Some(link) = &mut self.link else { return Ok(mine) };
        Ok(broadcast(link, operation, vec![u8::from(mine)])? == [1])
    }

    /// The final root of a finished run, as rank 0 finds it, sent to all; the ranks then end.
    pub fn finished(&mut self, mine: Option<Hash>) -> Result<Option<Hash>, ExchangeError> {
        let Some(link) = &mut self.link else { return Ok(mine) };
        let text = mine.map_or(String::new(), |root| root.to_string());
        let text = broadcast(link, "whether the run is finished", text.into_bytes())?;
        let root = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        if root.is_some() {
            link.finish();
        }
        Ok(root)
    }

    /// The numerics of the checkpoint that a run is resumed from: rank 0's, sent to all; none where it has
    /// none.
    pub fn past(&mut self, mine: Option<&Table>) -> anyhow::Result<Option<Table>> {
        let Some(link) = &mut self.link else { return Ok(mine.cloned()) };
        let text = broadcast(link, "the past of the run", serde_json::to_vec(&mine)?)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Opens this rank's device: the GPU of its number on this machine, or its part of the CPU.
    pub fn open_device(&self, experiment: &Experiment) -> anyhow::Result<Device> {
        let (number, of) =
            self.place.as_ref().map_or((0, 1), |place| (place.local_rank, place.local_size.max(1)));
        Device::open_part(experiment, number, of)
    }
}

const LOCK: &str = "the lock of rank 0";

/// Rank 0 sends the others what its bits depend on, choices included.
pub fn send_lock(link: &mut dyn Link, lock: &Lock) -> Result<(), ExchangeError> {
    broadcast(link, LOCK, lock.to_text().into_bytes()).map(|_| ())
}

/// What [`send_lock`] sends; called by the others before anything is chosen.
pub fn receive_numerics(link: &mut dyn Link) -> anyhow::Result<Table> {
    let text = broadcast(link, LOCK, Vec::new())?;
    Ok(Lock::parse(Path::new(LOCK), &String::from_utf8_lossy(&text))?.numerics)
}

/// Refuses to run if this rank's bits would differ from rank 0's.
pub fn require_same(rank: usize, first: &Table, here: &Table) -> Result<(), ProofRefusal> {
    let changed = differences(first, here);
    if changed.is_empty() {
        return Ok(());
    }
    Err(ProofRefusal(format!(
        "rank {rank} cannot make the bits of rank 0 (rank 0 and here):{}\n  hint: all machines of a run \
         need the same data, GPUs and libraries",
        list(&changed)
    )))
}

/// The folder and first step of a run, as rank 0 has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    pub folder: PathBuf,
    /// The checkpoint to load.
    pub step: Option<u64>,
}

impl Begin {
    /// Rank 0's decision, sent to all; `mine` is rank 0's.
    pub fn agree(link: &mut dyn Link, mine: Option<Begin>) -> Result<Begin, ExchangeError> {
        let bytes = mine.map_or(Vec::new(), |begin| {
            let step = begin.step.map_or("none".into(), |step| step.to_string());
            let folder = std::path::absolute(&begin.folder).unwrap_or(begin.folder);
            [format!("{step}\n").as_bytes(), folder.as_os_str().as_bytes()].concat()
        });
        let bytes = broadcast(link, "the start of the run", bytes)?;
        // A path need not be UTF-8.
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (step, folder) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
        Ok(Begin {
            folder: OsStr::from_bytes(folder).into(),
            step: std::str::from_utf8(step).ok().and_then(|step| step.parse().ok()),
        })
    }
}
