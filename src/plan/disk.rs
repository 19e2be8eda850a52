//! The disk space of a run.

use serde::Serialize;

use super::memory::{Storage, state_bytes, state_tensors};
use crate::experiment::{CheckpointKeys, Experiment};
use crate::units;

/// Metrics in both forms, ledger, main.log and TensorBoard's events of a step.
const RECORD_BYTES: u64 = 1_600;
/// Name, shape and digest of a tensor, in the header and in the manifest.
const TENSOR_BYTES: u64 = 256;
/// The rest of a manifest.
const MANIFEST_BYTES: u64 = 2 << 10;

/// Bytes on the disk at the worst moment.
#[derive(Debug, Serialize)]
pub struct Disk {
    pub checkpoint_bytes: u64,
    pub checkpoints_saved: u64,
    /// At most at one time: what is kept, also for a rewind, and the one being written.
    pub checkpoints_kept: u64,
    pub records_bytes: u64,
    pub total_bytes: u64,
}

impl Disk {
    /// The disk of an experiment on a device that stores its state so.
    pub fn of(experiment: &Experiment, storage: &Storage) -> Disk {
        let steps = experiment.schedule.steps;
        let kept = kept(&experiment.checkpoint, steps, experiment.rewind_every() > 0);
        let about = state_tensors(experiment, storage) * TENSOR_BYTES + MANIFEST_BYTES;
        let checkpoint_bytes = state_bytes(experiment, storage).saturating_add(about);
        let records_bytes = steps.saturating_mul(RECORD_BYTES);
        Disk {
            checkpoint_bytes,
            checkpoints_saved: saves(&experiment.checkpoint, steps),
            checkpoints_kept: kept,
            records_bytes,
            total_bytes: kept.saturating_mul(checkpoint_bytes).saturating_add(records_bytes),
        }
    }

    /// A description of the bytes.
    pub fn what(&self) -> String {
        let each = units::bytes(self.checkpoint_bytes);
        format!("{} of {each} and records", units::counted(self.checkpoints_kept, "checkpoint"))
    }
}

/// Checkpoints that a run saves: at regular steps, and the last.
pub fn saves(checkpoint: &CheckpointKeys, steps: u64) -> u64 {
    match checkpoint.every {
        0 => 1,
        every => steps.div_ceil(every),
    }
}

/// Checkpoints on the disk at the worst moment: before the oldest goes, the newest is there. The one that a
/// rewind goes back to is kept beside the last, where a stop has saved those at other steps.
fn kept(checkpoint: &CheckpointKeys, steps: u64, rewinds: bool) -> u64 {
    let saved = saves(checkpoint, steps);
    let last = checkpoint.keep_last as u64;
    if last == 0 || saved <= last {
        return saved;
    }
    let older = saved - last;
    let forever = match (checkpoint.keep_every, checkpoint.every) {
        (0, _) | (_, 0) => 0,
        // The least common multiple of the two may be beyond 64 bits.
        (keep, every) => {
            let both = u128::from(keep / gcd(keep, every)) * u128::from(every);
            (u128::from(older) * u128::from(every) / both) as u64
        }
    };
    (last + forever + u64::from(forever < older) + u64::from(rewinds)).min(saved)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;

    #[test]
    fn a_small_checkpoint_is_counted_as_what_lies_on_the_disk() {
        let text = "[model]\nlayers = 1\nheads = 1\nchannels = 16\ncontext = 32\n[batch]\nmicro = 1\n\
                    [schedule]\nsteps = 2\n[data]\ncorpus = \"kjv_nt\"\ntokenizer = \"byte\"\n[eval]\n\
                    every = 0\n[device]\nkind = \"cpu\"\n";
        let experiment = experiment::load_text("t", text, &[]).unwrap().experiment;
        let disk = Disk::of(&experiment, &Storage::cpu(&experiment, 1));
        // `runner run` wrote 106,841.
        assert!((106_841..115_000).contains(&disk.checkpoint_bytes), "{}", disk.checkpoint_bytes);
    }

    #[test]
    fn retention_decides_what_lies_on_the_disk() {
        let checkpoint =
            |every, keep_last, keep_every| CheckpointKeys { every, keep_last, keep_every, copy_to: None };
        for (policy, steps, saved, on_disk, with_rewinds) in [
            (checkpoint(2000, 0, 0), 32_000, 16, 16, 16),
            (checkpoint(0, 0, 0), 100, 1, 1, 1),
            (checkpoint(30, 0, 0), 100, 4, 4, 4),
            (checkpoint(10, 2, 0), 100, 10, 3, 4),
            (checkpoint(10, 2, 20), 100, 10, 2 + 4 + 1, 2 + 4 + 2),
            (checkpoint(10, 9, 0), 100, 10, 10, 10),
            (checkpoint(10, 20, 0), 100, 10, 10, 10),
        ] {
            assert_eq!((saves(&policy, steps), kept(&policy, steps, false)), (saved, on_disk), "{policy:?}");
            assert_eq!(kept(&policy, steps, true), with_rewinds, "{policy:?}");
        }
    }
}
