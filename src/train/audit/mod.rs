//! The audit of a step (`docs/audit.md`): what one micro-batch computed goes into a digest, and parts of it
//! that nobody could know before are kept for a recomputation on a CPU.
//!
//! The micro-batch runs twice. The first pass hashes every matrix; their root and the ledger's head draw the
//! excerpts; the second pass, which counts, keeps these excerpts' inputs and outputs. After the step's entry is
//! in the ledger, its head draws the blocks of parameters whose update is kept as well. The state's bits are
//! those of a step without an audit.

pub mod draw;

use std::collections::BTreeMap;

use rayon::prelude::*;

use self::draw::{ParamBlock, TracedPass, Wanted};
use super::{StepReport, TrainError, Trainer};
use crate::experiment::Experiment;
use crate::model::gpt2::MicroBatch;
use crate::model::{Gpt2, Group, ParamSpec, Weights};
use crate::ops::op::grid::Grid;
use crate::ops::traced::{Traced, TracedMatrix};
use crate::ops::{self, Dtype, Ops, Role, Write};
use crate::optim::{UpdateRule, Verdict, update_rule};
use crate::parallel::Piece;
use crate::proof::digest::{LEAF_BYTES, leaf};
use crate::proof::tree::tree_root;
use crate::proof::{Hash, Head, Opening, merkle_root};
use crate::store::audit::AuditFile;
use crate::store::{Tensor, checkpoint};

/// The audit of one step, while it is made.
pub(super) struct Audit {
    /// The ledger's head before the step; none on ranks that have no ledger, and no worker 0.
    head: Option<Head>,
    /// The state before the step.
    before: Vec<Tensor>,
    traced: Option<TracedBatch>,
}

/// What an audit keeps of its micro-batch.
struct TracedBatch {
    pass: TracedPass,
    inputs: Vec<u16>,
    targets: Vec<u16>,
    /// Hashes of the tiles of every matrix.
    hashes: BTreeMap<usize, Vec<Hash>>,
    digests: Vec<Hash>,
    wanted: Wanted,
    tiles: BTreeMap<usize, BTreeMap<usize, Vec<u8>>>,
}

/// What a micro-batch is run on.
pub(super) struct BatchRun<'a, O: Ops> {
    pub model: &'a mut Gpt2<O>,
    pub batch: MicroBatch<'a>,
    pub losses: &'a mut O::Buf,
    pub grads: &'a mut Weights<O::Buf>,
    pub scale: f32,
    pub write: Write,
}

impl<O: Ops> BatchRun<'_, O> {
    /// One pass under the eyes of `watch`; whole gradients go to `take`.
    fn pass(
        &mut self,
        ops: &mut O,
        watch: &mut dyn FnMut(&mut O, usize, &TracedMatrix, &O::Buf) -> ops::Result<()>,
        take: &mut dyn FnMut(&mut O, Group, &mut Weights<O::Buf>) -> Result<(), TrainError>,
    ) -> Result<TracedPass, TrainError> {
        let BatchRun { model, batch, losses, grads, scale, write } = self;
        let (specs, mut gradients) = (model.specs.clone(), BTreeMap::new());
        let mut traced = Traced::new(ops, model.params.iter(), watch);
        let whole = |ops: &mut Traced<'_, O>, group, grads: &mut Weights<O::Buf>| {
            draw::release(ops, &specs, group, grads, &mut gradients)?;
            take(ops.inner, group, grads)
        };
        model.forward_backward_by_groups(&mut traced, batch, losses, grads, *scale, *write, whole)?;
        Ok(TracedPass { trace: traced.finish()?, gradients })
    }
}

/// The stored bytes of the matrix with which a buffer begins.
fn read<O: Ops>(ops: &mut O, grid: &Grid, buf: &O::Buf, bytes: &mut Vec<u8>) -> ops::Result<()> {
    bytes.resize(grid.bytes(), 0);
    ops.read_bytes(buf, bytes)
}

impl Audit {
    /// Whether this rank traces its first worker's last micro-batch.
    pub fn traces(&self) -> bool {
        self.head.is_some()
    }

    /// Runs the micro-batch twice: hashes all, draws `count` excerpts, and keeps what they need. `take` gets
    /// the gradients of the second pass.
    pub fn trace<O: Ops>(
        &mut self,
        ops: &mut O,
        mut run: BatchRun<'_, O>,
        count: usize,
        mut take: impl FnMut(&mut O, Group, &mut Weights<O::Buf>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let Some(head) = self.head else { return Ok(()) };
        let saved = match run.write {
            Write::Set => Vec::new(),
            Write::Add => whole_buffers(ops, &run.model.specs, run.grads)?,
        };
        let (mut hashes, mut bytes) = (BTreeMap::new(), Vec::new());
        let mut hash_all = |ops: &mut O, number, matrix: &TracedMatrix, buf: &O::Buf| {
            let grid = draw::grid(matrix);
            read(ops, &grid, buf, &mut bytes)?;
            let hash = |unit| merkle_root(&grid.cut(&bytes, unit));
            hashes.insert(number, (0..grid.units()).into_par_iter().map(hash).collect());
            Ok(())
        };
        let pass = run.pass(ops, &mut hash_all, &mut |_, _, _| Ok(()))?;
        for (buf, bytes) in run.grads.iter_mut().zip(&saved) {
            ops.write_bytes(buf, bytes)?;
        }
        let MicroBatch { inputs, targets, rows, .. } = run.batch;
        let digests = pass.digests(rows, [inputs, targets], &hashes);
        let specs: Vec<&ParamSpec> = run.model.specs.iter().collect();
        let mut wanted = Wanted::default();
        for drawn in draw::excerpts(&pass.trace, &head, &tree_root(&digests), count) {
            let tokens = pass.tokens(drawn.operation, inputs, targets);
            let excerpt = pass.trace.operations[drawn.operation].outline.excerpt(drawn.excerpt, tokens);
            wanted.extend(pass.wanted(drawn.operation, &excerpt, &specs));
        }
        let (inputs, targets) = (inputs.to_vec(), targets.to_vec());
        let mut batch =
            TracedBatch { pass, inputs, targets, hashes, digests, wanted, tiles: BTreeMap::new() };
        batch.keep(ops, run, &mut take)?;
        self.traced = Some(batch);
        Ok(())
    }

    /// The root of the trace, on the rank that has it.
    pub fn root(&self) -> Option<Hash> {
        self.traced.as_ref().map(|traced| tree_root(&traced.digests))
    }
}

/// The stored bytes of gradients.
fn whole_buffers<O: Ops>(
    ops: &mut O,
    specs: &Weights<ParamSpec>,
    grads: &Weights<O::Buf>,
) -> ops::Result<Vec<Vec<u8>>> {
    let read = |(spec, buf): (&ParamSpec, &O::Buf)| {
        let mut bytes = vec![0; spec.len * size_of::<f32>()];
        ops.read_bytes(buf, &mut bytes).map(|()| bytes)
    };
    specs.iter().zip(grads.iter()).map(read).collect()
}

impl TracedBatch {
    /// The second pass: keeps the wanted tiles.
    fn keep<O: Ops>(
        &mut self,
        ops: &mut O,
        mut run: BatchRun<'_, O>,
        take: &mut dyn FnMut(&mut O, Group, &mut Weights<O::Buf>) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let TracedBatch { hashes, wanted, tiles, pass, .. } = self;
        let (mut bytes, mut differs) = (Vec::new(), None);
        let mut keep = |ops: &mut O, number: usize, matrix: &TracedMatrix, buf: &O::Buf| {
            let Some(units) = wanted.matrices.get(&number) else { return Ok(()) };
            let grid = draw::grid(matrix);
            read(ops, &grid, buf, &mut bytes)?;
            let kept: BTreeMap<usize, Vec<u8>> =
                units.iter().map(|unit| (*unit, grid.cut(&bytes, *unit))).collect();
            if kept.iter().any(|(unit, bytes)| hashes[&number][*unit] != merkle_root(bytes)) {
                differs.get_or_insert_with(|| matrix.name.clone());
            }
            tiles.insert(number, kept);
            Ok(())
        };
        let again = run.pass(ops, &mut keep, take)?;
        match differs {
            Some(matrix) => Err(TrainError::NotAgain { matrix }),
            None if again != *pass => {
                Err(TrainError::NotAgain { matrix: "the operations themselves".into() })
            }
            None => Ok(()),
        }
    }

    /// Adds the tiles of the gradient in which a block lies, which is still where the pass wrote it.
    fn keep_gradient<O: Ops>(
        &mut self,
        ops: &mut O,
        grads: &Weights<O::Buf>,
        block: &ParamBlock,
    ) -> Result<(), TrainError> {
        let number = self.pass.gradients[&block.parameter];
        let matrix = &self.pass.trace.matrices[number];
        let grid = draw::grid(matrix);
        let mut bytes = Vec::new();
        let buf = grads.iter().nth(block.parameter).expect("a parameter of the model");
        read(ops, &grid, buf, &mut bytes)?;
        for unit in grid.wanted(&block.rows(grid.columns)) {
            let tile = grid.cut(&bytes, unit);
            if merkle_root(&tile) != self.hashes[&number][unit] {
                return Err(TrainError::NotAgain { matrix: matrix.name.clone() });
            }
            self.tiles.entry(number).or_default().insert(unit, tile);
        }
        Ok(())
    }
}

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
            for block in draw::blocks(&specs, &head) {
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
