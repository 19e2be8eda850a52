//! Initial weights: a pure function of seed, tensor and element.

use rayon::prelude::*;

use super::weights::{Init, ParamSpec};
use crate::ops::cpu::libm_vectors::normals;
use crate::rng::Key;

/// Values that a thread takes at a time.
const TASK: usize = 1 << 14;

/// The first values of a tensor, `spec.len` of them; padding rows are zero.
///
/// Element `i` of tensor `id` takes the normal number at counter `(id, i)`, computed in f64 and
/// rounded once, so that threads and devices cannot change a bit.
pub fn initial_values(spec: &ParamSpec, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; spec.len];
    let logical = &mut values[..spec.logical_len()];
    match spec.init {
        Init::Zeros => {}
        Init::Ones => logical.fill(1.0),
        Init::Normal(std) => {
            let key = Key::new(seed, "init");
            logical.par_chunks_mut(TASK).enumerate().for_each(|(task, values)| {
                normals(key, spec.id.into(), (task * TASK) as u64, std, values);
            });
        }
    }
    values
}
