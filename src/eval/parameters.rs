//! The weights of a checkpoint on a device, without the rest of a training state.
//!
//! Evaluation needs neither moments nor windows, and may run on a device that stores parameters in
//! another format than the one that trained: they are then widened, or rounded to nearest even.

use std::collections::BTreeMap;

use half::bf16;

use super::EvalError;
use crate::model::Gpt2;
use crate::ops::{Dtype, Ops, Role};
use crate::store::Tensor;

/// Puts the parameters of `state` into `model`.
///
/// # Errors
///
/// A parameter that is missing, has another shape, or is stored as no float; then the model is not to
/// be used any more.
pub fn restore<O: Ops>(ops: &mut O, model: &mut Gpt2<O>, state: &[Tensor]) -> Result<(), EvalError> {
    let by_name: BTreeMap<&str, &Tensor> = state.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for (spec, buf) in model.specs.iter().zip(model.params.iter_mut()) {
        let bad = |problem: String| EvalError::Parameter { tensor: spec.name.clone(), problem };
        let tensor = by_name.get(spec.name.as_str()).ok_or_else(|| bad("is missing".into()))?;
        if tensor.shape != spec.shape {
            return Err(bad(format!("has the shape {:?}, expected {:?}", tensor.shape, spec.shape)));
        }
        if tensor.dtype == ops.dtype(Role::Param) {
            ops.write_bytes(buf, &tensor.bytes)?;
        } else {
            let values = floats(tensor).ok_or_else(|| bad(format!("is stored as {}, expected F32 or BF16", tensor.dtype)))?;
            ops.upload(buf, &values)?;
        }
    }
    Ok(())
}

fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    match tensor.dtype {
        Dtype::F32 => Some(tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::BF16 => Some(tensor.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}
