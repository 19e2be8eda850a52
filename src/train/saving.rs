//! Saving checkpoints during a run, and going back to one.

use std::time::Duration;

use super::events::{Event, Listener};
use super::finite::LastState;
use super::run::Run;
use super::{RunError, TrainError};
use crate::data::mixture;
use crate::experiment::OnDiverge;
use crate::ops::Ops;
use crate::parallel::exchange;
use crate::proof::Hash;
use crate::proof::lock::differences;
use crate::store::writer::{Completion, PartJob, SaveProgress, SavedCheckpoint};
use crate::store::{Facts, LoadedCheckpoint, SaveJob};

impl<O: Ops> Run<O> {
    /// Copies the state and hands it to the writer. Rows and entries up to the checkpoint are on the disk
    /// before it is, so that a resume finds no gap.
    pub(super) fn checkpoint(&mut self, root: Option<Hash>, out: &mut dyn Listener) -> Result<(), RunError> {
        // One snapshot at a time: the memory of the last one must be free before the next is taken.
        let before = self.writer.wait()?;
        announce(before, out)?;
        let progress = self.trainer.progress();
        let (step, updates) = (progress.step, self.updates());
        let facts = out.make_durable()?.map(|ledger| Facts {
            experiment: self.experiment.name.clone(),
            step,
            tokens: self.experiment.tokens_before(step),
            updates,
            ledger,
            numerics: self.numerics.clone(),
            created_by: concat!("runner ", env!("CARGO_PKG_VERSION")).into(),
            state_root: root,
        });
        match (self.trainer.link().size(), facts) {
            (1, Some(facts)) => {
                let state = self.trainer.state()?;
                if step == self.experiment.schedule.steps {
                    self.last_state = LastState::of_tensors(&state);
                }
                self.writer.submit(SaveJob { state, facts })?;
            }
            (_, facts) => self.checkpoint_part(facts)?,
        }
        Ok(())
    }

    /// This rank's part of a checkpoint that all write; rank 0 has the facts.
    fn checkpoint_part(&mut self, facts: Option<Facts>) -> Result<(), RunError> {
        let (rank, ranks) = (self.trainer.link().rank(), self.trainer.link().size());
        let step = self.trainer.progress().step;
        let infos = self.trainer.state_infos();
        let site = self.writer.site(step, &infos)?;
        let timeout = Duration::from_secs(self.experiment.parallel.timeout_s);
        let completion = match facts {
            Some(facts) => Some(Completion { folder: site.prepare()?, facts, ranks, timeout }),
            None => None,
        };
        exchange::barrier(self.trainer.link(), "the start of a checkpoint").map_err(TrainError::from)?;
        let extents = self.trainer.read_extents()?;
        if step == self.experiment.schedule.steps {
            self.last_state = LastState::of_extents(&infos, &extents);
        }
        self.writer.submit_part(PartJob { site, step, rank, extents, completion })?;
        Ok(())
    }

    /// Deletes what is kept of audits that are still to be made: a kill, or a rewind, left them.
    pub(super) fn drop_audits(&mut self) -> Result<(), RunError> {
        if self.trainer.link().rank() == 0 {
            self.writer.drop_audits(self.trainer.progress().step)?;
        }
        Ok(())
    }

    /// Reports the progress of the checkpoint being written, or that it is done.
    pub(super) fn announce_saved(&mut self, out: &mut dyn Listener) -> Result<(), RunError> {
        let saved = self.writer.poll()?;
        if saved.is_none()
            && let Some(saving) = self.writer.saving()
        {
            out.on(&progress_event(saving))?;
        }
        announce(saved, out)
    }

    /// Waits until everything is on disk, on all ranks.
    pub(super) fn settle(&mut self, out: &mut dyn Listener) -> Result<(), RunError> {
        while let Some(saving) = self.writer.saving() {
            out.on(&progress_event(saving))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let saved = self.writer.wait()?;
        announce(saved, out)?;
        out.make_durable()?;
        exchange::barrier(self.trainer.link(), "the end of a checkpoint").map_err(TrainError::from)?;
        Ok(())
    }

    /// The checkpoint that a divergence at `step` goes back to, or why there is none: rank 0 chooses it, the
    /// others load their parts of the same one.
    fn checkpoint_before(
        &mut self,
        step: u64,
        rewound_to: Option<u64>,
    ) -> Result<Result<LoadedCheckpoint, String>, RunError> {
        const NONE: u64 = u64::MAX;
        let found = match self.trainer.link().rank() {
            0 => Some(self.scheduled(step, rewound_to)),
            _ => None,
        };
        let chosen = match &found {
            Some(Ok((manifest, _))) => manifest.step,
            _ => NONE,
        };
        let chosen = chosen.to_le_bytes().to_vec();
        let chosen = exchange::broadcast(self.trainer.link(), "the choice of a checkpoint", chosen)
            .map_err(TrainError::from)?;
        let chosen = chosen.try_into().map_or(NONE, u64::from_le_bytes);
        match found {
            Some(found) => Ok(found),
            None if chosen == NONE => Ok(Err("rank 0 found no checkpoint".into())),
            None => Ok(Ok(self.writer.load_some(chosen, &|name| self.trainer.needs(name))?)),
        }
    }

    /// The last scheduled checkpoint before `step`, whatever others were saved because the run was stopped:
    /// so a run that was interrupted goes back to where the uninterrupted one does.
    fn scheduled(&self, step: u64, rewound_to: Option<u64>) -> Result<LoadedCheckpoint, String> {
        let to = self.experiment.scheduled_before(step);
        if to == 0 {
            let first = match self.experiment.checkpoint.every {
                0 => "there is none before the last step".to_owned(),
                every => format!("the first is of step {every}"),
            };
            return Err(format!("there is no checkpoint yet: by `checkpoint.every` {first}"));
        }
        if rewound_to == Some(to) {
            return Err(format!(
                "it went back to the checkpoint of step {to} before, and other data did not help"
            ));
        }
        let (manifest, state) = match self.writer.load(to) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return Err(format!("the checkpoint of step {to} is needed, and was deleted")),
            Err(why) => return Err(why.to_string()),
        };
        match differences(&manifest.numerics, &self.numerics).is_empty() {
            true => Ok((manifest, state)),
            false => Err(format!(
                "the checkpoint of step {to} is of other settings, before the drift that was allowed"
            )),
        }
    }

    /// Goes back to the last scheduled checkpoint and moves the stream of samples past what was read,
    /// when the experiment says so and there is somewhere new to go.
    pub(super) fn rewind(
        &mut self,
        step: u64,
        rewound_to: Option<u64>,
        out: &mut dyn Listener,
    ) -> Result<Option<u64>, RunError> {
        if self.experiment.guards.on_diverge != OnDiverge::Rewind {
            return Ok(None);
        }
        self.settle(out)?;
        let (manifest, state) = match self.checkpoint_before(step, rewound_to)? {
            Ok(loaded) => loaded,
            Err(why) => {
                out.on(&Event::NotRewound { step, why })?;
                return Ok(None);
            }
        };
        self.trainer.restore(state)?;
        let before = |step| self.experiment.sequences_before(step);
        self.trainer.skip_data(before(step + 1) - before(manifest.step));
        let offset = self.trainer.progress().data_offset;
        mixture::require_epochs(&self.experiment, &self.feed.plan().order, offset)
            .map_err(TrainError::from)?;
        self.feed.seek(manifest.step, self.trainer.progress().data_offset).map_err(TrainError::from)?;
        self.drop_audits()?;
        // The ledger loses the steps that these are of.
        if self.trainer.link().rank() == 0 {
            self.writer.drop_after(manifest.step)?;
        }
        out.on(&Event::Rewound { from_step: step, to_step: manifest.step, entries: manifest.ledger.size })?;
        Ok(Some(manifest.step))
    }
}

fn progress_event(saving: SaveProgress) -> Event {
    Event::Saving { step: saving.step, done_bytes: saving.done_bytes, bytes: saving.bytes }
}

fn announce(saved: Option<SavedCheckpoint>, out: &mut dyn Listener) -> Result<(), RunError> {
    let Some(SavedCheckpoint { manifest, folder, .. }) = saved else { return Ok(()) };
    out.on(&Event::CheckpointSaved { step: manifest.step, path: folder, bytes: manifest.file.bytes })
}
