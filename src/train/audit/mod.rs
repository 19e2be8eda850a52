//! The audit of a step (`docs/audit.md`): what one micro-batch computed goes into a digest, and parts of it
//! that nobody could know before are kept for a recomputation on a CPU.
//!
//! The micro-batch runs twice ([`trace`]). The first pass hashes every matrix; their root and the ledger's
//! head draw the excerpts ([`draw`]); the second pass, which counts, keeps these excerpts' inputs and
//! outputs. After the step's entry is in the ledger, its head draws the blocks of parameters whose update is
//! kept as well. The state's bits are those of a step without an audit.

pub mod draw;
pub mod trace;

use std::collections::BTreeMap;

use rayon::prelude::*;

use self::draw::ParamBlock;
use self::trace::{Audit, TracedBatch};
use super::{StepReport, TrainError, Trainer};
use crate::experiment::Experiment;
use crate::model::ParamSpec;
use crate::ops::{Dtype, Ops, Role};
use crate::optim::{UpdateRule, Verdict, update_rule};
use crate::parallel::Piece;
use crate::proof::digest::{LEAF_BYTES, leaf};
use crate::proof::{Hash, Head, Opening};
use crate::store::audit::AuditFile;
use crate::store::{Tensor, checkpoint};

impl<O: Ops> Trainer<O> {
    /// The root of what the audited micro-batch of the step before computed, on the rank that traced it.
    pub fn audit_root(&self) -> Option<Hash> {
        self.audit.as_ref().and_then(Audit::root)
    }

    /// Makes the next step an audited one, on all ranks; that with the ledger gives its `head`.
    pub fn begin_audit(&mut self, head: Option<Head>) -> Result<(), TrainError> {
        self.audit = Some(Audit { head, before: self.state()?, traced: None });
        Ok(())
    }

    /// What is kept of the audited step, on the rank that traced it; all ranks call it, the one with the
    /// ledger with its `head` after the step's entry.
    pub fn end_audit(
        &mut self,
        report: &StepReport,
        head: Option<Head>,
    ) -> Result<Option<AuditFile>, TrainError> {
        let Some(Audit { before, traced, .. }) = self.audit.take() else { return Ok(None) };
        let after = self.state()?;
        let (Some(mut batch), Some(head)) = (traced, head) else { return Ok(None) };
        let specs = self.model.specs.clone();
        let specs: Vec<&ParamSpec> = specs.iter().collect();
        let mut file = AuditFile {
            step: report.step,
            recompute: self.experiment.memory.recompute,
            pieces: self.experiment.proof.audit_pieces as u64,
            trace: batch.digests.clone(),
            states: [&before, &after].map(|state| state.par_iter().map(checkpoint::digest).collect()),
            ..AuditFile::default()
        };
        let mut state = [Opener::new(&before), Opener::new(&after)];
        for name in COUNTERS {
            state[0].want(name, [0]);
        }
        for (parameter, leaves) in &batch.wanted.parameters {
            state[0].want(&specs[*parameter].name, leaves.iter().copied());
        }
        // With a shard of the optimizer's state a rank has no block of its own to show.
        if report.verdict == Verdict::Update && !self.sharded {
            for block in draw::blocks(&self.experiment, &specs, &head) {
                for (name, dtype) in updated(&self.experiment, specs[block.parameter]) {
                    let elements = [specs[block.parameter].logical_len()];
                    let leaves = draw::state_grid(&elements, dtype).wanted(&block.pick());
                    state.iter_mut().for_each(|state| state.want(&name, leaves.iter().copied()));
                }
                match self.experiment.parallel.workers {
                    1 => batch.keep_gradient(&mut self.ops, &self.grads, &block)?,
                    _ => file.gradients.push(self.gradient(&block)?),
                }
            }
        }
        file.tensors = state.map(Opener::open);
        let TracedBatch { inputs, targets, hashes, tiles, .. } = batch;
        let open = |(number, tiles)| (number, Opening::of(&hashes[&number], tiles));
        file.matrices = tiles.into_iter().map(open).collect();
        Ok(Some(AuditFile { inputs, targets, ..file }))
    }

    /// The sum of all workers' gradients in a block.
    fn gradient(&mut self, block: &ParamBlock) -> Result<Vec<u8>, TrainError> {
        let piece = Piece { tensor: block.parameter, start: block.at, len: block.len };
        let mut bytes = vec![0; block.len * size_of::<f32>()];
        for (buf, at) in self.sums.parts(&[piece], &self.grads) {
            self.ops.read_at(buf, at * size_of::<f32>(), &mut bytes)?;
        }
        Ok(bytes)
    }
}

/// Counters of the state that an audit shows: which update it was, and which data were next.
pub const COUNTERS: [&str; 2] = ["train/updates", "train/data_offset"];

/// The tensors of the state that an update of a parameter writes.
pub fn updated(experiment: &Experiment, spec: &ParamSpec) -> Vec<(String, Dtype)> {
    let rule = update_rule(experiment, draw::dtype(Role::Param));
    let state = rule.state(&spec.parameter()).into_iter();
    let state = state.map(|row| (format!("{}{}", row.prefix, spec.name), Dtype::F32));
    let parameter = (spec.name.clone(), draw::dtype(Role::Param));
    [parameter].into_iter().chain(state).collect()
}

/// Leaves of a state that are to be shown.
struct Opener<'a> {
    state: &'a [Tensor],
    wanted: BTreeMap<usize, BTreeMap<usize, Vec<u8>>>,
}

impl<'a> Opener<'a> {
    fn new(state: &'a [Tensor]) -> Opener<'a> {
        Opener { state, wanted: BTreeMap::new() }
    }

    fn want(&mut self, name: &str, leaves: impl IntoIterator<Item = usize>) {
        let at = self.state.binary_search_by(|tensor| tensor.name.as_str().cmp(name));
        let at = at.expect("a tensor of the state, which is sorted by name");
        let bytes = &self.state[at].bytes;
        let leaf = |leaf: usize| {
            (leaf, bytes[leaf * LEAF_BYTES..((leaf + 1) * LEAF_BYTES).min(bytes.len())].to_vec())
        };
        self.wanted.entry(at).or_default().extend(leaves.into_iter().map(leaf));
    }

    fn open(self) -> BTreeMap<usize, Opening> {
        let open = |(at, units): (usize, _)| {
            let hashes: Vec<Hash> = self.state[at].bytes.par_chunks(LEAF_BYTES).map(leaf).collect();
            (at, Opening::of(&hashes, units))
        };
        self.wanted.into_iter().map(open).collect()
    }
}
