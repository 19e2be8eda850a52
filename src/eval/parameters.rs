//! The weights of a checkpoint on a device, without the rest of a training state.
//!
//! Evaluation needs no tensor of the optimizer or the guards, and may run on a device that stores parameters
//! in another format than in training: they are then widened, or rounded to nearest even.

use std::collections::BTreeMap;

use half::bf16;

use super::EvalError;
use crate::experiment::Model;
use crate::model::{ParamSpec, Weights};
use crate::ops::{Dtype, Ops, Role};
use crate::store::Tensor;

/// Whether a tensor of a state is a parameter: all others have a path before their name.
pub fn is_parameter(name: &str) -> bool {
    !name.contains('/')
}

/// The first parameter of a state that holds NaN or infinity.
pub fn not_finite(state: &[Tensor]) -> Option<&Tensor> {
    let mut parameters = state.iter().filter(|tensor| is_parameter(&tensor.name));
    parameters.find(|tensor| tensor.first_not_finite().is_some())
}

/// The parameters of `state` on a device, and nothing else: enough to generate text.
///
/// # Errors
///
/// As [`restore`].
pub fn load<O: Ops>(ops: &mut O, model: &Model, state: &[Tensor]) -> Result<Weights<O::Buf>, EvalError> {
    let specs = Weights::of(model);
    let mut params = specs.try_map(|spec| ops.alloc(Role::Param, spec.len))?;
    restore(ops, &specs, &mut params, state)?;
    Ok(params)
}

/// Puts the parameters of `state` into `params`.
///
/// # Errors
///
/// A parameter that is missing, has another shape, or is stored as no float; then the model is not to
/// be used any more.
pub fn restore<O: Ops>(
    ops: &mut O,
    specs: &Weights<ParamSpec>,
    params: &mut Weights<O::Buf>,
    state: &[Tensor],
) -> Result<(), EvalError> {
    let by_name: BTreeMap<&str, &Tensor> =
        state.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for (spec, buf) in specs.iter().zip(params.iter_mut()) {
        let bad = |problem: String| EvalError::Parameter { tensor: spec.name.clone(), problem };
        let tensor = by_name.get(spec.name.as_str()).ok_or_else(|| bad("is missing".into()))?;
        if tensor.shape != spec.shape {
            return Err(bad(format!("has the shape {:?}, expected {:?}", tensor.shape, spec.shape)));
        }
        if tensor.dtype == ops.dtype(Role::Param) {
            ops.write_bytes(buf, &tensor.bytes)?;
        } else {
            let values = floats(tensor)
                .ok_or_else(|| bad(format!("is stored as {}, expected F32 or BF16", tensor.dtype)))?;
            ops.upload(buf, &values)?;
        }
    }
    Ok(())
}

fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    match tensor.dtype {
        Dtype::F32 => Some(tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::BF16 => {
            Some(tensor.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::{DeviceKeys, DeviceKind, Simd};
    use crate::ops::cpu::Cpu;

    fn small() -> Model {
        Model::gpt2(1, 1, 16, 8, 5)
    }

    /// A state in which element `i` of each tensor is `i / 8` in bf16, and a tensor of the optimizer, which
    /// is ignored.
    fn state() -> Vec<Tensor> {
        let tensor = |name: String, shape: &[usize]| {
            let values = (0..shape.iter().product::<usize>()).map(|i| bf16::from_f32(i as f32 / 8.0));
            Tensor {
                name,
                dtype: Dtype::BF16,
                shape: shape.to_vec(),
                bytes: values.flat_map(bf16::to_le_bytes).collect(),
            }
        };
        let mut state: Vec<Tensor> =
            Weights::of(&small()).iter().map(|spec| tensor(spec.name.clone(), &spec.shape)).collect();
        state.push(tensor("adam_m/wte.weight".into(), &[3]));
        state
    }

    #[test]
    fn bf16_parameters_are_widened_exactly_and_padding_stays_zero() {
        let mut ops = Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 1, simd: Simd::Auto }).unwrap();
        let params = load(&mut ops, &small(), &state()).unwrap();
        let mut wte = vec![f32::NAN; 128 * 16];
        ops.download(&params.wte, &mut wte).unwrap();
        let (tokens, padding) = wte.split_at(5 * 16);
        assert!(tokens.iter().enumerate().all(|(i, v)| *v == i as f32 / 8.0), "{tokens:?}");
        assert!(padding.iter().all(|v| *v == 0.0));

        let mut wrong = state();
        wrong[1].shape = vec![16, 8];
        let error = load(&mut ops, &small(), &wrong).err().unwrap().to_string();
        assert!(error.contains("`wpe.weight` has the shape [16, 8], expected [8, 16]"), "{error}");
        wrong[1] = Tensor { dtype: Dtype::U32, shape: vec![8, 16], ..wrong[1].clone() };
        let error = load(&mut ops, &small(), &wrong).err().unwrap().to_string();
        assert!(error.contains("`wpe.weight` is stored as U32"), "{error}");
    }
}
