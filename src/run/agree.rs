//! The second step of a run: everything is allocated, and this rank's numerics are compared with those of
//! rank 0, of the lock and of the run's own checkpoint. Nothing has been written yet.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::data::{Data, SHARDS, remembered};
use super::destination::Destination;
use super::device::memory_plan;
use super::expected::Expected;
use super::initial::Initial;
use super::locked::{self, Locked};
use super::messages::{ExperimentSummary, Message, Report};
use super::open::Job;
use super::resume::{Changed, Past};
use super::{lock, ranks, require_usage, stop, team};
use crate::data::{ValidationSet, mixture};
use crate::experiment::{Experiment, Loaded};
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::parallel::{Exchange, Solo};
use crate::plan::disk::Disk;
use crate::plan::memory::Storage;
use crate::proof::Lock;
use crate::store::{self, RunPaths};
use crate::train::Trainer;

/// A run that may begin.
pub struct Agreed<O: Ops> {
    pub(super) experiment: Experiment,
    pub(super) loaded: Loaded,
    pub(super) data: Data,
    pub(super) initial: Option<Initial>,
    pub(super) destination: Destination,
    pub(super) expected: Option<Expected>,
    pub(super) past: Past,
    /// Allowed differences from the run's checkpoint and lock.
    pub(super) changed: Changed,
    /// What the bits depend on here.
    pub(super) lock: Lock,
    pub(super) trainer: Trainer<O>,
    /// Set by the first request to stop.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) report: Report,
}

impl<O: Locked> Agreed<O> {
    /// Allocates a trainer on `ops` and compares its numerics with those of rank 0, of the lock and of the
    /// run's checkpoint.
    ///
    /// # Errors
    /// Numerics differ; the device has too little memory; a rank has failed.
    pub fn of(job: Job, mut ops: O, storage: &Storage) -> anyhow::Result<Agreed<O>> {
        let Job { experiment, loaded, data, initial, destination, expected, resume, team, report } = job;
        let (first, ranks) = (team.is_first(), team.size());
        let stop = stop::flag(ranks > 1 || ranks::is_launched(), report)?;
        if first {
            let name = destination.path().map_or_else(String::new, |path| RunPaths::new(&path).name());
            report.tell(&Message::Training(summary(name, &experiment, &data, &ops, storage)));
        }
        initial.iter().try_for_each(|initial| initial.require_fit(&experiment, storage.param))?;
        let mut exchange: Box<dyn Exchange<O>> = Box::new(Solo);
        if let Some(link) = team.link {
            let (joined, how) = ops.join(link)?;
            if let Some(how) = how.filter(|_| first) {
                report.tell(&Message::Exchange(&how));
            }
            exchange = joined;
        }
        let past = Past::of(&destination, resume)?;
        // What is still to be chosen, such as algorithms, rank 0 chooses.
        let of_rank_zero = if first { None } else { Some(team::receive_numerics(exchange.link())?) };
        let locked = expected.as_ref().map(|expected| &expected.lock.numerics);
        if let Some(numerics) = of_rank_zero.as_ref().or(locked).or(past.numerics()) {
            ops.pin(numerics)?;
        }
        let mut trainer = Trainer::join(ops, &experiment, exchange)?;
        let manifest = data.manifest(remembered(SHARDS), report)?;
        if first {
            for remark in loaded.remarks.iter().chain(&data.remarks(&manifest, &experiment)) {
                report.tell(&Message::Remark(remark));
            }
        }
        let mut lock = lock::lock(&loaded, &data, &manifest, initial.as_ref(), &trainer.ops)?;
        lock.environment.insert(lock::RANKS.into(), ranks.to_string());
        require_audited_arithmetic(&experiment, &lock)?;
        match &of_rank_zero {
            Some(numerics) => team::require_same(trainer.link().rank(), numerics, &lock.numerics)?,
            None => team::send_lock(trainer.link(), &lock)?,
        }
        if let Some(expected) = expected.as_ref().filter(|_| first) {
            expected.require(&lock)?;
            let differences = &expected.made_elsewhere(&lock);
            if !differences.is_empty() {
                report.tell(&Message::MadeElsewhere { lock: Some(&expected.from), differences });
            }
        }
        let changed = past.changed(&experiment, &lock)?;
        past.require_fit(&experiment, storage.param)?;
        past.require_steps_left(&loaded)?;
        past.require_same_measure(&lock)?;
        let lock = past.keep_config(lock);
        if let Some(path) = destination.path() {
            let disk = Disk::of(&experiment, storage);
            let reused = match past.resumed {
                true => reused_bytes(&path, &experiment)?,
                // An overwritten run is deleted.
                false => store::contents::bytes_in(&path),
            };
            store::space::require(&path, disk.total_bytes, reused, &disk.what())?;
        }
        Ok(Agreed {
            experiment,
            loaded,
            data,
            initial,
            destination,
            expected,
            past,
            changed,
            lock,
            trainer,
            stop,
            report,
        })
    }
}

/// Refuses audits of arithmetic that the mirror does not have.
fn require_audited_arithmetic(experiment: &Experiment, lock: &Lock) -> anyhow::Result<()> {
    let audited = experiment.proof.audit_every > 0;
    require_usage(!audited || locked::is_mirrored(&lock.numerics), || {
        "`proof.audit_every` needs a Hopper GPU with heads of 64 or 128 channels, or `device.kind` = \
         \"mirror\": no CPU repeats the bits of this device\n  \
         hint: set `proof.audit_every` to 0; `proof.replay_every` checks any device"
            .into()
    })?;
    Ok(())
}

fn summary<'a, O: Ops>(
    name: String,
    experiment: &'a Experiment,
    data: &Data,
    ops: &O,
    storage: &Storage,
) -> ExperimentSummary<'a> {
    ExperimentSummary {
        name,
        experiment,
        device: ops.device_name(),
        sources: mixture::uses(experiment, &data.order),
        train_tokens: data.train.usable_tokens(experiment.batch.seq_len),
        val_tokens: data.validation.as_ref().map_or(0, ValidationSet::tokens),
        parameters: Weights::of(&experiment.model).parameters(),
        memory: memory_plan(experiment, storage),
    }
}

/// Bytes of the checkpoints of a run that goes on which its plan has too, or which it will delete.
fn reused_bytes(run: &Path, experiment: &Experiment) -> store::Result<u64> {
    let checkpoint = &experiment.checkpoint;
    let is_planned = |step: u64| {
        let is_due = checkpoint.every > 0 && step.is_multiple_of(checkpoint.every);
        checkpoint.keep_last > 0 || is_due || step == experiment.schedule.steps
    };
    let there = store::list(&RunPaths::new(run).checkpoints())?;
    let planned = there.into_iter().filter(|(step, _)| is_planned(*step));
    Ok(planned.map(|(_, folder)| store::contents::bytes_in(&folder)).sum())
}
