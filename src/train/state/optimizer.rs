//! The optimizer's tensors on this rank's device.

use super::table::{Home, Row};
use crate::ops::{Ops, Result, Role};
use crate::optim::Workspace;
use crate::parallel::Piece;

/// The optimizer's tensors for the parameters, or the parts of them, that this rank updates.
pub struct OptimizerState<B> {
    /// In the model's order, at most one for each parameter.
    parts: Vec<PartState<B>>,
    /// Buffers that updates use and leave without meaning.
    workspace: Vec<B>,
}

/// The optimizer's tensors for one parameter.
pub struct PartState<B> {
    /// The part of the parameter that is updated here.
    pub piece: Piece,
    /// That part of each tensor of [`crate::optim::UpdateRule::state`], in its order.
    pub bufs: Vec<B>,
}

impl<B> OptimizerState<B> {
    /// Allocates what `table` lists for the parameters of `pieces`, which are in the model's order, zeroed,
    /// and what updates take beside it.
    pub fn alloc<O: Ops<Buf = B>>(
        ops: &mut O,
        table: &[Row],
        pieces: Vec<Piece>,
        workspace: &Workspace,
    ) -> Result<OptimizerState<B>> {
        ops.prepare_layers(&workspace.layers)?;
        let parts = pieces.into_iter().map(|piece| PartState { piece, bufs: Vec::new() }).collect();
        let mut state = OptimizerState { parts, workspace: Vec::new() };
        for row in table {
            if let Home::Optimizer { parameter, .. } = row.home
                && let Some(part) = state.of_mut(parameter)
            {
                part.bufs.push(ops.alloc(Role::F32, part.piece.len)?);
            }
        }
        for len in &workspace.buffers {
            state.workspace.push(ops.alloc(Role::Activation, *len)?);
        }
        Ok(state)
    }

    /// The tensors kept here for a parameter; none if another rank updates all of it.
    pub fn of(&self, parameter: usize) -> Option<&PartState<B>> {
        let at = self.parts.binary_search_by_key(&parameter, |part| part.piece.tensor).ok()?;
        Some(&self.parts[at])
    }

    /// As [`OptimizerState::of`].
    pub fn of_mut(&mut self, parameter: usize) -> Option<&mut PartState<B>> {
        let at = self.parts.binary_search_by_key(&parameter, |part| part.piece.tensor).ok()?;
        Some(&mut self.parts[at])
    }

    /// The pieces updated here.
    pub fn pieces(&self) -> Vec<Piece> {
        self.parts.iter().map(|part| part.piece.clone()).collect()
    }

    /// All of it, in the model's order, and the buffers of an update.
    pub fn for_update(&mut self) -> (&mut [PartState<B>], &mut [B]) {
        (&mut self.parts, &mut self.workspace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Dtype;
    use crate::ops::dry::Dry;
    use crate::train::state::Division;

    fn row(parameter: usize, slot: usize) -> Row {
        Row {
            name: format!("{slot}/{parameter}"),
            label: "test",
            dtype: Dtype::F32,
            shape: vec![8],
            len: 8,
            division: Division::Sharded,
            home: Home::Optimizer { parameter, slot },
        }
    }

    #[test]
    fn parameters_may_keep_different_tensors_and_those_of_other_ranks_take_nothing() {
        let table = [row(0, 0), row(1, 0), row(2, 0), row(0, 1), row(2, 1), row(2, 2)];
        let pieces = vec![Piece { tensor: 1, start: 0, len: 8 }, Piece { tensor: 2, start: 4, len: 4 }];
        let mut ops = Dry::new(Dtype::F32);
        let state =
            OptimizerState::alloc(&mut ops, &table, pieces, &Workspace::default()).expect("nothing can fail");
        let lens = |parameter| {
            state.of(parameter).map(|part| part.bufs.iter().map(|buf| buf.0).collect::<Vec<usize>>())
        };
        assert_eq!([0, 1, 2].map(lens), [None, Some(vec![8]), Some(vec![4, 4, 4])]);
        assert_eq!(ops.taken, [8, 4, 4, 4].map(|len| 4 * len), "in the table's order");
    }
}
