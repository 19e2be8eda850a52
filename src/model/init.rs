//! Initial weights: a pure function of seed, tensor and element.

use rayon::prelude::*;

use super::weights::{Init, ParamSpec};
use crate::rng::Key;

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
            logical
                .par_iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v = (std * key.normal(u64::from(spec.id), i as u64)) as f32);
        }
    }
    values
}
