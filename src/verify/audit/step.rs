//! The parts of one audited step, computed again.

use std::collections::{BTreeMap, BTreeSet};

use super::{AuditFault, Tally};
use crate::experiment::Experiment;
use crate::model::ParamSpec;
use crate::ops::mirror::{Mirror, MirrorBuffer};
use crate::ops::op::excerpt::Pick;
use crate::ops::op::grid::Grid;
use crate::ops::traced::FlowSource;
use crate::ops::{self, Dtype, Ops, Role};
use crate::optim::{Slot, UpdateRule, UpdateStep, learning_rate, update_rule};
use crate::proof::{Entry, Hash, Opening, tensor_digest_from_root};
use crate::run::data::Data;
use crate::store::audit::AuditFile;
use crate::train::audit::draw::{self, Drawn, ParamBlock, TracedPass};
use crate::train::audit::{COUNTERS, updated};

/// One audited step, its digests held to the ledger.
pub(super) struct Step<'a> {
    pub entry: &'a Entry,
    pub experiment: &'a Experiment,
    pub names: &'a [String],
    pub specs: Vec<&'a ParamSpec>,
    pub file: &'a AuditFile,
    pub pass: &'a TracedPass,
}

/// The units of an opening, shown to be those of a tensor.
fn shown<'a>(
    name: &str,
    opening: Option<&'a Opening>,
    grid: &Grid,
    pick: &Pick,
    digest: impl Fn(&Hash) -> bool,
) -> Result<&'a BTreeMap<usize, Vec<u8>>, AuditFault> {
    let opening = opening.ok_or_else(|| format!("`{name}` was drawn, and nothing of it was kept"))?;
    if let Some(missing) = grid.wanted(pick).into_iter().find(|unit| !opening.units.contains_key(unit)) {
        return Err(format!("part {missing} of `{name}` was drawn, and was not kept"));
    }
    if let Some((unit, bytes)) =
        opening.units.iter().find(|(unit, bytes)| bytes.len() != grid.unit_bytes(**unit))
    {
        let expected = grid.unit_bytes(*unit);
        return Err(format!("part {unit} of `{name}` has {} bytes, expected {expected}", bytes.len()));
    }
    match opening.root(grid.units()).is_some_and(|root| digest(&root)) {
        true => Ok(&opening.units),
        false => {
            Err(format!("what was kept of `{name}` does not lead to the ledger: it was changed, or the path"))
        }
    }
}

impl Step<'_> {
    /// The part of a matrix that an excerpt reads or has written.
    fn matrix(&self, number: usize, pick: &Pick) -> Result<Vec<u8>, AuditFault> {
        let matrix = &self.pass.trace.matrices[number];
        let grid = draw::grid(matrix);
        let recorded = self.file.trace[draw::PREMISES + number];
        let digest = |root: &Hash| draw::matrix_digest(matrix, root) == recorded;
        let units = shown(&matrix.name, self.file.matrices.get(&number), &grid, pick, digest)?;
        Ok(grid.gather(pick, units))
    }

    /// Part of a tensor of the state before (0) or after (1) the step; `grid` may lay it out as one row.
    fn state(
        &self,
        when: usize,
        tensor: &StateTensor<'_>,
        grid: Grid,
        pick: &Pick,
    ) -> Result<Vec<u8>, AuditFault> {
        let StateTensor { name, shape, dtype } = *tensor;
        let at =
            self.names.binary_search_by(|other| other.as_str().cmp(name)).expect("a tensor of the state");
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        let recorded = self.file.states[when][at];
        let digest = |root: &Hash| {
            tensor_digest_from_root(name, dtype.name(), &shape, grid.bytes() as u64, root) == recorded
        };
        let units = shown(name, self.file.tensors[when].get(&at), &grid, pick, digest)?;
        Ok(grid.gather(pick, units))
    }

    fn counter(&self, at: usize) -> Result<u64, AuditFault> {
        let scalar = StateTensor { name: COUNTERS[at], shape: &[], dtype: Dtype::U64 };
        let all = Pick::new(0..1, 0..1);
        let bytes = self.state(0, &scalar, draw::state_grid(&[], Dtype::U64), &all)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("the eight bytes of a scalar")))
    }

    /// Whether the tokens are those of the data, where they are here.
    pub fn tokens(&self, data: Option<&Data>, tally: &mut Tally) -> Result<(), AuditFault> {
        let Some(data) = data else { return Ok(()) };
        let offset = self.counter(1)?;
        let read = || -> anyhow::Result<_> {
            let mut feed = data.feed(self.experiment, self.entry.step, offset)?;
            let mut batch = feed.next()?;
            for _ in 1..self.experiment.micro_steps_of(self.entry.step) {
                batch = feed.next()?;
            }
            Ok(batch)
        };
        let batch = read().map_err(|why| why.to_string())?;
        if batch.inputs != self.file.inputs || batch.targets != self.file.targets {
            return Err("the micro-batch was computed on other tokens than the data have there".into());
        }
        tally.tokens += 1;
        Ok(())
    }

    /// Computes an excerpt again.
    pub fn excerpt(&self, mirror: &mut Mirror, drawn: Drawn, tally: &mut Tally) -> Result<(), AuditFault> {
        let operation = &self.pass.trace.operations[drawn.operation];
        let tokens = self.pass.tokens(drawn.operation, &self.file.inputs, &self.file.targets);
        let excerpt = operation.outline.excerpt(drawn.excerpt, tokens);
        let flow = operation.flow.iter().zip(&excerpt.picks);
        let mut given = Vec::new();
        let accesses = excerpt.outline.matrices().into_iter().map(|matrix| matrix.access);
        for ((flow, pick), access) in flow.clone().zip(accesses) {
            let bytes = match (flow.found(access), pick) {
                (Some(FlowSource::Matrix(number)), Some(pick)) => Some(self.matrix(number, pick)?),
                (Some(FlowSource::Parameter(at)), Some(pick)) => {
                    let ParamSpec { name, shape, .. } = self.specs[at];
                    let tensor = StateTensor { name, shape, dtype: draw::dtype(Role::Param) };
                    Some(self.state(0, &tensor, draw::state_grid(shape, tensor.dtype), pick)?)
                }
                _ => None,
            };
            given.push(bytes);
        }
        let again = mirror.recompute(&excerpt, &given).map_err(|why| why.to_string())?;
        for ((flow, pick), again) in flow.zip(again) {
            let (Some(after), Some(pick)) = (flow.after, pick) else { continue };
            let matrix = &self.pass.trace.matrices[after];
            let size = draw::dtype(matrix.role).size();
            let unfinished = pick.unfinished_rows * pick.size()[1] * size;
            let kept = self.matrix(after, pick)?;
            if let Some(element) = first_difference(&kept[unfinished..], &again[unfinished..], size) {
                let element = element + unfinished / size;
                let [row, column] = pick.place(element / pick.size()[1], element % pick.size()[1]);
                return Err(format!(
                    "excerpt {} of operation {}, {}: `{}` [{row}, {column}] is {} in the run, computed again \
                     it is {}\n  hint: suspect the hardware that trained the run, or its program",
                    drawn.excerpt,
                    drawn.operation,
                    operation.outline.name(),
                    matrix.name,
                    bits(&kept, element, size),
                    bits(&again, element, size),
                ));
            }
        }
        tally.flops += operation.outline.share(drawn.excerpt) * operation.flops as f64;
        *tally.excerpts.entry(operation.outline.name()).or_default() += 1;
        Ok(())
    }

    /// Makes the update of a block of a parameter again.
    pub fn update(
        &self,
        mirror: &mut Mirror,
        block: &ParamBlock,
        all: &BTreeSet<ParamBlock>,
        tally: &mut Tally,
    ) -> Result<(), AuditFault> {
        let spec = self.specs[block.parameter];
        let tensors = updated(self.experiment, spec);
        let tensor = |when: usize, at: usize| {
            let (name, dtype) = &tensors[at];
            let grid = draw::state_grid(&[spec.logical_len()], *dtype);
            self.state(when, &StateTensor { name, shape: &spec.shape, dtype: *dtype }, grid, &block.pick())
        };
        let mut bufs = Vec::new();
        for at in 0..tensors.len() {
            // The parameter stands in its place, which chance rounding depends on; what is kept of it alone.
            let (role, place) = if at == 0 { (Role::Param, block.at) } else { (Role::F32, 0) };
            let buf = self.filled(mirror, role, place, &tensor(0, at)?);
            bufs.push(buf.map_err(|why| why.to_string())?);
        }
        let grad = self.filled(mirror, Role::F32, 0, &self.gradient(block, all)?);
        let grad = grad.map_err(|why| why.to_string())?;
        let step = UpdateStep {
            learning_rate: learning_rate(&self.experiment.schedule, self.entry.step),
            grad_norm: self.entry.grad_norm.unwrap_or(f64::NAN),
            update: self.counter(0)? + 1,
            step: self.entry.step,
        };
        let (param, state) = bufs.split_first_mut().expect("a parameter is updated");
        let slot = Slot { parameter: spec.parameter(), at: block.at, param, grad: &grad, grad_at: 0, state };
        let rule = update_rule(self.experiment, draw::dtype(Role::Param));
        rule.update(mirror, vec![slot], &mut [], &step).map_err(|why| why.to_string())?;
        for (at, (name, dtype)) in tensors.iter().enumerate() {
            let (size, kept) = (dtype.size(), tensor(1, at)?);
            let place = if at == 0 { block.at * size } else { 0 };
            let again = &bufs[at].bytes()[place..];
            if let Some(element) = first_difference(&kept, again, size) {
                return Err(format!(
                    "the update: element {} of `{name}` is {} in the run, computed again it is {}\n  \
                     hint: suspect the hardware that trained the run, or its program",
                    block.at + element,
                    bits(&kept, element, size),
                    bits(again, element, size),
                ));
            }
        }
        tally.updates += 1;
        Ok(())
    }

    /// A buffer with these bytes from element `place` on.
    fn filled(
        &self,
        mirror: &mut Mirror,
        role: Role,
        place: usize,
        bytes: &[u8],
    ) -> ops::Result<MirrorBuffer> {
        let size = mirror.dtype(role).size();
        let mut buf = mirror.alloc(role, place + bytes.len() / size)?;
        mirror.write_at(&mut buf, place * size, bytes)?;
        Ok(buf)
    }

    /// The gradient of a block: a matrix of the micro-batch where there is one worker, else what the file
    /// says.
    fn gradient(&self, block: &ParamBlock, all: &BTreeSet<ParamBlock>) -> Result<Vec<u8>, AuditFault> {
        let size = Dtype::F32.size();
        if self.experiment.parallel.workers > 1 {
            let at = all.iter().position(|other| other == block);
            let claimed = at.and_then(|at| self.file.gradients.get(at));
            let claimed = claimed.filter(|bytes| bytes.len() == block.len * size);
            return claimed.cloned().ok_or_else(|| "the gradient of a drawn block was not kept".into());
        }
        let number = self.pass.gradients[&block.parameter];
        let columns = self.pass.trace.matrices[number].columns;
        let (pick, first) = (block.rows(columns), block.at % columns * size);
        // Positions that no sequence reaches have no gradient.
        let rows = match draw::grid(&self.pass.trace.matrices[number]).wanted(&pick).is_empty() {
            true => vec![0; pick.size()[0] * columns * size],
            false => self.matrix(number, &pick)?,
        };
        Ok(rows[first..][..block.len * size].to_vec())
    }
}

/// A tensor of the state.
struct StateTensor<'a> {
    name: &'a str,
    shape: &'a [usize],
    dtype: Dtype,
}

/// The first element of `size` bytes in which two matrices differ.
fn first_difference(kept: &[u8], again: &[u8], size: usize) -> Option<usize> {
    (0..kept.len() / size).find(|at| kept[at * size..][..size] != again[at * size..][..size])
}

/// An element as its bits.
fn bits(bytes: &[u8], element: usize, size: usize) -> String {
    let digits: Vec<String> =
        bytes[element * size..][..size].iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{}", digits.concat())
}
