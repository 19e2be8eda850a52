//! Whether the state that a run ends with is finite.

use rayon::prelude::*;

use super::run::Run;
use super::{RunError, TrainError};
use crate::ops::{Dtype, Ops};
use crate::parallel::exchange;

impl<O: Ops> Run<O> {
    /// Why a run that has made its last step has no usable result: a tensor of its state holds a number that
    /// is not finite, or no step has changed a weight. Ranks check their own parts and agree.
    pub(super) fn came_to_nothing(&mut self) -> Result<Option<String>, RunError> {
        let progress = self.trainer.progress();
        if progress.updates == 0 && progress.step > 0 {
            return Ok(Some(format!(
                "none of the {} steps changed a weight: all were skipped",
                progress.step
            )));
        }
        let infos = self.trainer.state_infos();
        let extents = self.trainer.read_extents().map_err(TrainError::from)?;
        let found = extents.par_iter().find_map_first(|extent| {
            let info = infos.iter().find(|info| info.name == extent.tensor)?;
            let (at, value) = first_not_finite(info.dtype, &extent.bytes)?;
            let element = extent.at as usize / info.dtype.size() + at;
            Some(format!("the tensor `{}` holds {value} at element {element}", extent.tensor))
        });
        let mine = found.unwrap_or_default().into_bytes();
        let all = exchange::all_gather(self.trainer.link(), "whether the state is finite", mine)
            .map_err(TrainError::from)?;
        let first = all.into_iter().find(|text| !text.is_empty());
        Ok(first.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }
}

/// The first element that is NaN or infinite, with its number; none in a tensor of integers.
fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    let numbers: &mut dyn Iterator<Item = f64> = match dtype {
        Dtype::F32 => &mut bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))),
        Dtype::F64 => &mut bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)),
        Dtype::BF16 => &mut bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))),
        Dtype::U32 | Dtype::U64 | Dtype::I64 => return None,
    };
    numbers.enumerate().find(|(_, number)| !number.is_finite())
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
}
