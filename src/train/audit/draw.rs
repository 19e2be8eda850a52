//! What an audit keeps: a function of the experiment, the ledger and the micro-batch alone, so that whoever
//! checks the file finds out for himself what must be in it.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::super::shapes::rows_of;
use crate::experiment::Experiment;
use crate::model::gpt2::MicroBatch;
use crate::model::{Gpt2, Group, ParamSpec, Weights};
use crate::ops::dry::Dry;
use crate::ops::op::excerpt::{Excerpt, Pick};
use crate::ops::op::grid::{Grid, GridUnit};
use crate::ops::op::outline::Tokens;
use crate::ops::traced::{FlowSource, Trace, Traced, TracedMatrix};
use crate::ops::{Dtype, Ops, Result, Role, Rows, Write};
use crate::optim::{UpdateRule, update_rule};
use crate::proof::tree::tree_root;
use crate::proof::{Hash, Head, tensor_digest, tensor_digest_from_root};
use crate::rng::Key;

/// Blocks of parameters whose update an audit keeps.
const BLOCKS: usize = 8;
/// Elements of a block: a leaf of the parameter in bf16.
const BLOCK: usize = 2048;

/// Whether `step` is audited, if the run did not go back to it.
pub fn due(every: u64, step: u64) -> bool {
    every > 0 && step > 0 && step.is_multiple_of(every)
}

/// Element type of what an audit covers: it needs bf16.
pub fn dtype(role: Role) -> Dtype {
    if role == Role::F32 { Dtype::F32 } else { Dtype::BF16 }
}

/// The last micro-batch of worker 0 in a step, which an audit traces, and what its gradients do.
pub fn micro_batch(experiment: &Experiment, step: u64) -> (Rows, Write) {
    let first = experiment.micro_steps_of(step) == 1;
    (rows_of(experiment, step), if first { Write::Set } else { Write::Add })
}

/// A traced pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TracedPass {
    pub trace: Trace,
    /// The matrix that holds the gradient of each parameter at the end, in the model's order.
    pub gradients: BTreeMap<usize, usize>,
}

impl TracedPass {
    /// The pass of a step of an experiment, from a device without memory.
    pub fn of(experiment: &Experiment, step: u64, recompute: u8) -> Result<TracedPass> {
        let mut dry = Dry::new(Dtype::BF16);
        let (rows, write) = micro_batch(experiment, step);
        let mut model = Gpt2::zeroed(&mut dry, &experiment.model, rows, recompute, true)?;
        model.z_loss = experiment.optimizer.z_loss as f32;
        let mut grads = model.specs.try_map(|spec| dry.alloc(Role::F32, spec.len))?;
        let mut losses = dry.alloc(Role::F32, rows.count())?;
        let batch = MicroBatch { inputs: &[], targets: &[], rows, losses_at: 0 };
        let mut see_nothing = |_: &mut Dry, _, _: &TracedMatrix, _: &_| Ok(());
        let mut traced = Traced::new(&mut dry, model.params.iter(), &mut see_nothing);
        let (specs, mut gradients) = (model.specs.clone(), BTreeMap::new());
        let scale = experiment.loss_scale(step);
        let whole = |ops: &mut Traced<'_, Dry>, group, grads: &mut Weights<_>| {
            release(ops, &specs, group, grads, &mut gradients)
        };
        model.forward_backward_by_groups(
            &mut traced,
            &batch,
            &mut losses,
            &mut grads,
            scale,
            write,
            whole,
        )?;
        traced.release(&model.denominators)?;
        Ok(TracedPass { trace: traced.finish()?, gradients })
    }

    /// The token ids that an operation reads.
    pub fn tokens<'a>(&self, operation: usize, inputs: &'a [u16], targets: &'a [u16]) -> &'a [u16] {
        match self.trace.operations[operation].outline.tokens() {
            None => &[],
            Some(Tokens::Inputs) => inputs,
            Some(Tokens::Targets) => targets,
        }
    }

    /// Which units of what an excerpt reads and writes.
    pub fn wanted(&self, operation: usize, excerpt: &Excerpt, specs: &[&ParamSpec]) -> Wanted {
        let mut wanted = Wanted::default();
        for (flow, pick) in self.trace.operations[operation].flow.iter().zip(&excerpt.picks) {
            let Some(pick) = pick else { continue };
            match flow.before {
                Some(FlowSource::Parameter(at)) => {
                    let units = state_grid(&specs[at].shape, Dtype::BF16).wanted(pick);
                    wanted.parameters.entry(at).or_default().extend(units);
                }
                Some(FlowSource::Matrix(number)) => wanted.add(&self.trace, number, pick),
                None => {}
            }
            if let Some(number) = flow.after {
                wanted.add(&self.trace, number, pick);
            }
        }
        wanted
    }

    /// What the root of the trace is made of: [`premises`], then the digest of each matrix. `hashes` are
    /// those of each matrix's units.
    pub fn digests(&self, premises: [Hash; PREMISES], hashes: &BTreeMap<usize, Vec<Hash>>) -> Vec<Hash> {
        let matrices = self.trace.matrices.iter().enumerate();
        let digest = |(number, matrix): (usize, &TracedMatrix)| {
            matrix_digest(matrix, &hashes.get(&number).map_or_else(|| tree_root(&[]), |all| tree_root(all)))
        };
        premises.into_iter().chain(matrices.map(digest)).collect()
    }
}

/// Shows a group of whole gradients and notes which matrices hold them.
pub fn release<O: Ops>(
    ops: &mut Traced<'_, O>,
    specs: &Weights<ParamSpec>,
    group: Group,
    grads: &Weights<O::Buf>,
    gradients: &mut BTreeMap<usize, usize>,
) -> Result<()> {
    for (spec, buf) in specs.group(group).into_iter().zip(grads.group(group)) {
        if let Some(number) = ops.release(buf)? {
            gradients.insert(spec.id as usize, number);
        }
    }
    Ok(())
}

/// What a pass is made and drawn under. It stands in the trace, so that a file cannot say another afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// `memory.recompute`, which decides the operations.
    pub recompute: u8,
    /// `proof.audit_pieces`: how many excerpts are drawn.
    pub pieces: u64,
}

/// Digests in a trace before those of the matrices.
pub const PREMISES: usize = 3;

/// Digests of the terms, of the token ids of a micro-batch and of those that follow them.
pub fn premises(rows: Rows, terms: Terms, tokens: [&[u16]; 2]) -> [Hash; PREMISES] {
    let of_terms: Vec<u8> =
        [u64::from(terms.recompute), terms.pieces].iter().flat_map(|number| number.to_le_bytes()).collect();
    let digest = |name: &str, tokens: &[u16]| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        tensor_digest(name, "U16", &[rows.batch as u64, rows.seq as u64], &bytes)
    };
    let of_terms = tensor_digest("terms", "U64", &[2], &of_terms);
    [of_terms, digest("inputs", tokens[0]), digest("targets", tokens[1])]
}

/// How a matrix of a pass is cut.
pub fn grid(matrix: &TracedMatrix) -> Grid {
    let TracedMatrix { rows, columns, role, .. } = *matrix;
    Grid { rows, columns, element: dtype(role).size(), unit: GridUnit::Tile }
}

/// The digest of a matrix from the root of its tiles.
pub fn matrix_digest(matrix: &TracedMatrix, root: &Hash) -> Hash {
    let shape = [matrix.rows as u64, matrix.columns as u64];
    tensor_digest_from_root(
        &matrix.name,
        dtype(matrix.role).name(),
        &shape,
        grid(matrix).bytes() as u64,
        root,
    )
}

/// How a tensor of the state is cut.
pub fn state_grid(shape: &[usize], dtype: Dtype) -> Grid {
    let columns = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().product::<usize>() / columns.max(1);
    Grid { rows, columns, element: dtype.size(), unit: GridUnit::Leaf }
}

/// Units by matrix, and by parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub matrices: BTreeMap<usize, BTreeSet<usize>>,
    pub parameters: BTreeMap<usize, BTreeSet<usize>>,
}

impl Wanted {
    fn add(&mut self, trace: &Trace, number: usize, pick: &Pick) {
        self.matrices.entry(number).or_default().extend(grid(&trace.matrices[number]).wanted(pick));
    }

    /// Takes in what another wants.
    pub fn extend(&mut self, other: Wanted) {
        for (mine, others) in [(&mut self.matrices, other.matrices), (&mut self.parameters, other.parameters)]
        {
            others.into_iter().for_each(|(at, units)| mine.entry(at).or_default().extend(units));
        }
    }
}

/// An excerpt by the number of its operation and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drawn {
    pub operation: usize,
    pub excerpt: usize,
}

/// The stream of a draw: the first eight bytes of a SHA-256.
fn stream(tag: &str, parts: [&[u8]; 3]) -> Key {
    let hash =
        parts.iter().fold(Sha256::new_with_prefix(tag), |hash, part| hash.chain_update(part)).finalize();
    let word = |at: usize| u32::from_le_bytes(hash[at..at + 4].try_into().expect("four bytes"));
    Key([word(0), word(4)])
}

/// Two numbers below 2^64 for draw `draw`.
fn numbers(key: Key, draw: usize, more: u64) -> [u64; 2] {
    let [a, b, c, d] = key.block_at(draw as u64, more);
    [u64::from(a) << 32 | u64::from(b), u64::from(c) << 32 | u64::from(d)]
}

/// A number in 0..end.
fn below(end: u64, number: u64) -> u64 {
    ((u128::from(number) * u128::from(end)) >> 64) as u64
}

/// Draws `count` excerpts, each once in the result, rising. `head` is the ledger's before the step's entry,
/// `root` that of the trace. Every other one is drawn by its share of the floating-point operations; the
/// others are spread evenly over the kinds of operation, so that those come too that compute little.
pub fn excerpts(trace: &Trace, head: &Head, root: &Hash, count: usize) -> BTreeSet<Drawn> {
    let key = stream("runner/audit/excerpts/v1", [&head.size.to_le_bytes(), &head.root.0, &root.0]);
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, operation) in trace.operations.iter().enumerate() {
        kinds.entry(operation.outline.name()).or_default().push(number);
    }
    let kinds: Vec<_> = kinds.into_values().collect();
    let total: u64 = trace.operations.iter().map(|operation| operation.flops).sum();
    let draw = |draw: usize| {
        let [first, second] = numbers(key, draw, 0);
        let operation = match draw % 2 {
            0 => {
                let mut left = below(total, first);
                let by_work = trace.operations.iter().position(|operation| {
                    let here = left < operation.flops;
                    left = left.saturating_sub(operation.flops);
                    here
                });
                by_work.expect("a number below the sum")
            }
            _ => {
                let kind = &kinds[below(kinds.len() as u64, first) as usize];
                kind[below(kind.len() as u64, numbers(key, draw, 1)[0]) as usize]
            }
        };
        let excerpts = trace.operations[operation].outline.excerpts() as u64;
        Drawn { operation, excerpt: below(excerpts, second) as usize }
    };
    (0..count).map(draw).collect()
}

/// Part of a parameter, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParamBlock {
    pub parameter: usize,
    pub at: usize,
    pub len: usize,
}

impl ParamBlock {
    /// The block of a tensor that is one row.
    pub fn pick(&self) -> Pick {
        Pick::new(0..1, self.at..self.at + self.len)
    }

    /// The rows of a matrix of this many columns in which the block lies.
    pub fn rows(&self, columns: usize) -> Pick {
        let rows = self.at / columns..(self.at + self.len).div_ceil(columns);
        Pick::new(rows, 0..columns)
    }
}

/// Draws the blocks of parameters, each once, rising; of those alone that are not updated as a whole. `head`
/// is the ledger's after the step's entry.
pub fn blocks(experiment: &Experiment, specs: &[&ParamSpec], head: &Head) -> BTreeSet<ParamBlock> {
    let rule = update_rule(experiment, dtype(Role::Param));
    let key = stream("runner/audit/blocks/v1", [&head.size.to_le_bytes(), &head.root.0, &[]]);
    let of = |spec: &ParamSpec| match rule.is_whole(&spec.parameter()) {
        true => 0,
        false => spec.logical_len().div_ceil(BLOCK),
    };
    let total: usize = specs.iter().map(|spec| of(spec)).sum();
    let draw = |draw: usize| {
        let mut left = below(total as u64, numbers(key, draw, 0)[0]) as usize;
        let parameter = specs.iter().position(|spec| {
            let here = left < of(spec);
            left -= if here { 0 } else { of(spec) };
            here
        });
        let parameter = parameter.expect("a number below the sum");
        let at = left * BLOCK;
        ParamBlock { parameter, at, len: BLOCK.min(specs[parameter].logical_len() - at) }
    };
    (0..BLOCKS).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;

    const TEXT: &str = "[model]\nlayers = 2\nheads = 2\nchannels = 128\n[data]\ncorpus = 'kjv'\n\
        tokenizer = 'byte'\n[batch]\nmicro = 2\nseq_len = 64\n[schedule]\nsteps = 4\n\
        [device]\nkind = 'mirror'";

    fn head(n: u8) -> Head {
        Head { size: 7, root: Hash([n; 32]) }
    }

    #[test]
    fn a_draw_depends_on_head_and_root_and_reaches_every_kind_of_operation() {
        let experiment = experiment::load_text("t", TEXT, &[]).expect("a whole experiment").experiment;
        let TracedPass { trace, gradients } = TracedPass::of(&experiment, 1, 0).expect("a pass");
        let draw = |n, root: u8, count| excerpts(&trace, &head(n), &Hash([root; 32]), count);
        assert_eq!(draw(1, 2, 32), draw(1, 2, 32));
        assert!(draw(1, 2, 32) != draw(2, 2, 32) && draw(1, 2, 32) != draw(1, 3, 32));
        let many = draw(1, 2, 2000);
        let name = |drawn: &Drawn| trace.operations[drawn.operation].outline.name();
        let drawn: BTreeSet<&str> = many.iter().map(name).collect();
        let all: BTreeSet<&str> = trace.operations.iter().map(|it| it.outline.name()).collect();
        assert_eq!(drawn, all);
        for Drawn { operation, excerpt } in many {
            assert!(excerpt < trace.operations[operation].outline.excerpts());
        }
        let specs = Weights::of(&experiment.model);
        let specs: Vec<&ParamSpec> = specs.iter().collect();
        assert_eq!(gradients.len(), specs.len(), "every parameter has a gradient");
        assert_ne!(blocks(&experiment, &specs, &head(1)), blocks(&experiment, &specs, &head(2)));
        for block in (0..50).flat_map(|n| blocks(&experiment, &specs, &head(n))) {
            assert!(block.len > 0 && block.at + block.len <= specs[block.parameter].logical_len());
        }
    }
}
