//! The traced micro-batch of an audited step: run once to hash all, once more to keep what was drawn.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::super::error::TrainError;
use super::draw::{self, ParamBlock, Terms, TracedPass, Wanted, premises};
use crate::model::gpt2::MicroBatch;
use crate::model::{Gpt2, Group, ParamSpec, Weights};
use crate::ops::op::grid::Grid;
use crate::ops::traced::{Traced, TracedMatrix, Watch};
use crate::ops::{self, Ops, Write};
use crate::proof::tree::tree_root;
use crate::proof::{Hash, Head, merkle_root};
use crate::store::Tensor;

/// The audit of one step, while it is made.
pub struct Audit {
    /// The ledger's head before the step; none on ranks that have no ledger, and no worker 0.
    pub head: Option<Head>,
    /// The state before the step.
    pub before: Vec<Tensor>,
    /// What was traced in the step, on the rank that does.
    pub traced: Option<TracedBatch>,
}

/// What an audit keeps of its micro-batch.
pub struct TracedBatch {
    pub pass: TracedPass,
    pub inputs: Vec<u16>,
    pub targets: Vec<u16>,
    /// Hashes of the tiles of every matrix.
    pub hashes: BTreeMap<usize, Vec<Hash>>,
    pub digests: Vec<Hash>,
    pub wanted: Wanted,
    pub tiles: BTreeMap<usize, BTreeMap<usize, Vec<u8>>>,
}

/// Takes a group of whole gradients.
type Take<'a, O> = &'a mut dyn FnMut(&mut O, Group, &mut Weights<<O as Ops>::Buf>) -> Result<(), TrainError>;

/// What a micro-batch is run on.
pub struct BatchRun<'a, O: Ops> {
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
        watch: Watch<'_, O>,
        take: Take<'_, O>,
    ) -> Result<TracedPass, TrainError> {
        let BatchRun { model, batch, losses, grads, scale, write } = self;
        let (specs, mut gradients) = (model.specs.clone(), BTreeMap::new());
        let mut traced = Traced::new(ops, model.params.iter(), watch);
        let whole = |ops: &mut Traced<'_, O>, group, grads: &mut Weights<O::Buf>| {
            draw::release(ops, &specs, group, grads, &mut gradients)?;
            take(ops.inner, group, grads)
        };
        model.forward_backward_by_groups(&mut traced, batch, losses, grads, *scale, *write, whole)?;
        traced.release(&model.denominators)?;
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

    /// Runs the micro-batch twice: hashes all, draws excerpts under `terms`, and keeps what they need. `take`
    /// gets the gradients of the second pass.
    pub fn trace<O: Ops>(
        &mut self,
        ops: &mut O,
        mut run: BatchRun<'_, O>,
        terms: Terms,
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
        let digests = pass.digests(premises(rows, terms, [inputs, targets]), &hashes);
        let specs: Vec<&ParamSpec> = run.model.specs.iter().collect();
        let mut wanted = Wanted::default();
        for drawn in draw::excerpts(&pass.trace, &head, &tree_root(&digests), terms.pieces as usize) {
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
        take: Take<'_, O>,
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
    pub fn keep_gradient<O: Ops>(
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
