//! Whether the state that a run ends with is finite.
//!
//! The state is on the host once anyway, for the checkpoint of the last step, and is looked through there. A
//! finite loss and gradient norm do not show it: the norm is of the gradients alone, and an update may
//! overflow a moment or a weight although all that goes into it is finite.

use rayon::prelude::*;

use super::run::Run;
use super::{RunError, TrainError};
use crate::ops::{Dtype, Ops};
use crate::parallel::exchange;
use crate::store::safetensors::first_not_finite;
use crate::store::shared::Extent;
use crate::store::{Info, Tensor};
use crate::units::counted;

/// What was found in this rank's part of the state after the last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LastState {
    /// Nothing yet: this process has saved no checkpoint of the last step.
    #[default]
    Unread,
    Finite,
    /// A tensor holds a number that is not finite; which one.
    NotFinite(String),
}

/// A part of a tensor: its name and type, the byte of the tensor at which the part starts, its bytes.
type StateBytes<'a> = (&'a str, Dtype, u64, &'a [u8]);

impl LastState {
    /// Looks through a whole state.
    pub(super) fn of_tensors(state: &[Tensor]) -> LastState {
        LastState::of(&state.iter().map(|t| (&*t.name, t.dtype, 0, &*t.bytes)).collect::<Vec<_>>())
    }

    /// Looks through the parts that a rank has read, of tensors of `infos`.
    pub(super) fn of_extents(infos: &[Info], extents: &[Extent]) -> LastState {
        let parts = extents.iter().filter_map(|extent| {
            let info = infos.iter().find(|info| info.name == extent.tensor)?;
            Some((extent.tensor.as_str(), info.dtype, extent.at, extent.bytes.as_slice()))
        });
        LastState::of(&parts.collect::<Vec<_>>())
    }

    fn of(parts: &[StateBytes<'_>]) -> LastState {
        let found = parts.par_iter().find_map_first(|&(tensor, dtype, start, bytes)| {
            let (at, value) = first_not_finite(dtype, bytes)?;
            let element = start as usize / dtype.size() + at;
            Some(format!("the tensor `{tensor}` holds {value} at element {element}"))
        });
        found.map_or(LastState::Finite, LastState::NotFinite)
    }
}

impl<O: Ops> Run<O> {
    /// Why a run that has made its last step has no usable result: a tensor of its state holds a number that
    /// is not finite, or no step has changed a weight. Ranks look through their own parts and agree.
    pub(super) fn came_to_nothing(&mut self) -> Result<Option<String>, RunError> {
        let progress = self.trainer.progress();
        if self.updates() == 0 && progress.step > 0 {
            let steps = counted(progress.step, "step");
            return Ok(Some(format!("no weight was changed in {steps}: every step was skipped")));
        }
        if self.last_state == LastState::Unread {
            let infos = self.trainer.state_infos();
            let extents = self.trainer.read_extents().map_err(TrainError::from)?;
            self.last_state = LastState::of_extents(&infos, &extents);
        }
        let mine = match &self.last_state {
            LastState::NotFinite(what) => what.clone().into_bytes(),
            _ => Vec::new(),
        };
        let all = exchange::all_gather(self.trainer.link(), "whether the state is finite", mine)
            .map_err(TrainError::from)?;
        let first = all.into_iter().find(|text| !text.is_empty());
        Ok(first.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_of_a_long_tensor_is_looked_at() {
        for at in [0, 1023, 1024, 2047, 2048, 2499] {
            let mut values = vec![f32::MAX; 2500];
            values[at] = f32::NEG_INFINITY;
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let part = ("w", Dtype::F32, 400, &bytes[..]);
            let says = format!("the tensor `w` holds -inf at element {}", 100 + at);
            assert_eq!(LastState::of(&[part]), LastState::NotFinite(says));
        }
        assert_eq!(LastState::of(&[("w", Dtype::F32, 0, &[0; 4000])]), LastState::Finite);
    }
}
