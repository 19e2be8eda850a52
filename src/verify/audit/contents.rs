//! What the file of an audit must hold, no more and no less.

use std::collections::{BTreeMap, BTreeSet};

use super::{AuditFault, Audited, KeptPart, OpenedAudit};
use crate::model::ParamSpec;
use crate::proof::Opening;
use crate::train::audit::draw::{self, Wanted};
use crate::train::audit::{COUNTERS, updated};

/// Units by the number of their tensor.
type Units = BTreeMap<usize, BTreeSet<usize>>;

impl Audited {
    /// Holds a file to what its `parts` read and write: what nobody drew is not looked at by any check, so it
    /// may not be there.
    pub(super) fn hold_to(&self, opened: &OpenedAudit, parts: &[KeptPart]) -> Result<(), AuditFault> {
        let OpenedAudit { file, pass } = opened;
        let specs = self.parameters();
        let mut wanted = Wanted::default();
        let mut states = [Units::new(), Units::new()];
        let of_name = |name: &str| self.names.binary_search_by(|other| other.as_str().cmp(name));
        let at = |name: &str| of_name(name).map_err(|_| format!("the state has no tensor `{name}`"));
        for name in COUNTERS {
            states[0].entry(at(name)?).or_default().insert(0);
        }
        let mut gradients = 0;
        for part in parts {
            match part {
                KeptPart::Excerpt(drawn) => {
                    let tokens = pass.tokens(drawn.operation, &file.inputs, &file.targets);
                    let operation = &pass.trace.operations[drawn.operation];
                    let excerpt = operation.outline.excerpt(drawn.excerpt, tokens);
                    wanted.extend(pass.wanted(drawn.operation, &excerpt, &specs));
                }
                KeptPart::Update(block) => {
                    let spec: &ParamSpec = specs[block.parameter];
                    for (name, dtype) in updated(self.experiment(), spec) {
                        let leaves = draw::state_grid(&[spec.logical_len()], dtype).wanted(&block.pick());
                        for state in &mut states {
                            state.entry(at(&name)?).or_default().extend(leaves.iter().copied());
                        }
                    }
                    if self.experiment().parallel.workers > 1 {
                        gradients += 1;
                    } else {
                        let number = pass.gradients[&block.parameter];
                        let grid = draw::grid(&pass.trace.matrices[number]);
                        let tiles = grid.wanted(&block.rows(grid.columns));
                        wanted.matrices.entry(number).or_default().extend(tiles);
                    }
                }
            }
        }
        for (parameter, leaves) in wanted.parameters {
            states[0].entry(at(&specs[parameter].name)?).or_default().extend(leaves);
        }
        let matrix = |number: usize| pass.trace.matrices[number].name.clone();
        let tensor = |number: usize| self.names[number].clone();
        same("", &file.matrices, &wanted.matrices, matrix)?;
        same(" of the state before", &file.tensors[0], &states[0], tensor)?;
        same(" of the state after", &file.tensors[1], &states[1], tensor)?;
        match file.gradients.len() {
            found if found == gradients => Ok(()),
            found => Err(format!("it holds {found} gradients of blocks, {gradients} were drawn")),
        }
    }
}

/// Whether openings have these units; `of` is whose tensors they are.
fn same(
    of: &str,
    found: &BTreeMap<usize, Opening>,
    wanted: &Units,
    name: impl Fn(usize) -> String,
) -> Result<(), AuditFault> {
    let found: Units = found.iter().map(|(at, it)| (*at, it.units.keys().copied().collect())).collect();
    let numbers: BTreeSet<usize> = found.keys().chain(wanted.keys()).copied().collect();
    let none = BTreeSet::new();
    for number in numbers {
        let [found, wanted] = [&found, wanted].map(|units| units.get(&number).unwrap_or(&none));
        if let Some(unit) = found.difference(wanted).next() {
            return Err(format!("it holds unit {unit} of `{}`{of}, which nobody drew", name(number)));
        }
        if let Some(unit) = wanted.difference(found).next() {
            return Err(format!("it lacks unit {unit} of `{}`{of}, which was drawn", name(number)));
        }
    }
    Ok(())
}
