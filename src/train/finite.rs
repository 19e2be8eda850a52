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
use crate::store::shared::Extent;
use crate::store::{Info, Tensor};

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
            return Ok(Some(format!(
                "none of the {} steps changed a weight: all were skipped",
                progress.step
            )));
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

/// The first element that is NaN or infinite, with its number; none in a tensor of integers.
fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    // All bits of the exponent are set.
    const F32: u32 = 0x7f80_0000;
    const F64: u64 = 0x7ff0_0000_0000_0000;
    const BF16: u16 = 0x7f80;
    match dtype {
        Dtype::F32 => find(bytes, |b| u32::from_le_bytes(*b) & F32 == F32)
            .map(|(at, b)| (at, f64::from(f32::from_le_bytes(b)))),
        Dtype::F64 => {
            find(bytes, |b| u64::from_le_bytes(*b) & F64 == F64).map(|(at, b)| (at, f64::from_le_bytes(b)))
        }
        Dtype::BF16 => find(bytes, |b| u16::from_le_bytes(*b) & BF16 == BF16)
            .map(|(at, b)| (at, f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))),
        Dtype::U32 | Dtype::U64 | Dtype::I64 => None,
    }
}

/// The first element of N bytes for which `is` holds. Blocks are tested whole, without a branch in them, at
/// the speed of memory.
fn find<const N: usize>(bytes: &[u8], is: impl Fn(&[u8; N]) -> bool) -> Option<(usize, [u8; N])> {
    const BLOCK: usize = 1024;
    let elements = bytes.as_chunks::<N>().0;
    let holds = |block: &[[u8; N]]| block.iter().fold(false, |any, element| any | is(element));
    let start = BLOCK * elements.chunks(BLOCK).position(holds)?;
    let at = start + elements[start..].iter().position(is)?;
    Some((at, elements[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_is_not_finite_is_found_in_every_type_of_float() {
        let f32s: Vec<u8> =
            [1.0, -2.0, f32::NAN, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(first_not_finite(Dtype::F32, &f32s).map(|(at, _)| at), Some(2));
        assert_eq!(first_not_finite(Dtype::F32, &f32s[..8]), None);
        let f64s: Vec<u8> = [f64::MAX, f64::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(first_not_finite(Dtype::F64, &f64s), Some((1, f64::NEG_INFINITY)));
        // 1.0, the largest finite number, infinity.
        let bf16s: Vec<u8> = [0x3f80u16, 0x7f7f, 0x7f80].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(first_not_finite(Dtype::BF16, &bf16s), Some((2, f64::INFINITY)));
        assert_eq!(first_not_finite(Dtype::U64, &[0xff; 16]), None);
    }

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
