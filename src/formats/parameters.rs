//! The parameters of a model on the host, between a state and a foreign file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;

use super::error::{FormatError, Result};
use crate::experiment::Model;
use crate::model::Weights;
use crate::ops::Dtype;
use crate::optim::MASTER;
use crate::store::Tensor;

/// The parameters of a model: names, shapes and orientation as in the state, F32 or BF16.
#[derive(Clone, Debug)]
pub struct Parameters {
    pub model: Model,
    pub tensors: Weights<Tensor>,
}

impl Parameters {
    /// Takes them out of a state: the fp32 masters where there are any, the parameters else. `path` is the
    /// file that the state was read from.
    ///
    /// # Errors
    ///
    /// A parameter that is missing, has another shape than `model` says, or is stored as no float.
    pub fn of_state(path: &Path, model: &Model, state: Vec<Tensor>) -> Result<Parameters> {
        let mut state: BTreeMap<String, Tensor> =
            state.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let tensors = Weights::of(model).try_map(|spec| {
            let bad = |problem: String| {
                let hint = "hint: these parameters and the sizes of the model do not belong together";
                let problem = format!("{problem}\n  {hint}");
                FormatError::Parameter { path: path.into(), tensor: spec.name.clone(), problem }
            };
            let parameter = state.remove(&spec.name);
            let stored = state.remove(&format!("{}{}", MASTER.prefix, spec.name)).or(parameter);
            let tensor = stored.ok_or_else(|| bad("is missing".into()))?;
            if tensor.shape != spec.shape {
                return Err(bad(format!("has the shape {:?}, expected {:?}", tensor.shape, spec.shape)));
            }
            if !matches!(tensor.dtype, Dtype::F32 | Dtype::BF16) {
                return Err(bad(format!("is stored as {}, expected F32 or BF16", tensor.dtype)));
            }
            Ok(Tensor { name: spec.name.clone(), ..tensor })
        })?;
        Ok(Parameters { model: model.clone(), tensors })
    }

    /// Refuses sizes that are not those of `model`; `path` is where these parameters come from.
    ///
    /// # Errors
    ///
    /// [`FormatError::Sizes`] with the first that differs.
    pub fn require(&self, model: &Model, path: &Path) -> Result<()> {
        require_sizes(&self.model, model, path)
    }
}

/// Refuses sizes, of the model at `path`, that are not those of `model`.
///
/// # Errors
///
/// [`FormatError::Sizes`] with the first that differs.
pub fn require_sizes(of: &Model, model: &Model, path: &Path) -> Result<()> {
    let sizes = |m: &Model| {
        [
            ("layers", m.layers),
            ("heads", m.heads),
            ("channels", m.channels),
            ("positions", m.context),
            ("tokens", m.vocab),
        ]
    };
    for ((what, got), (_, expected)) in sizes(of).into_iter().zip(sizes(model)) {
        if got != expected {
            return Err(FormatError::Sizes { path: path.into(), what, got, expected });
        }
    }
    for ((key, got), (_, expected)) in of.parts().into_iter().zip(model.parts()) {
        if got != expected {
            // A number for each, also where it is that of the heads.
            let [got, expected] = match key {
                "model.kv_heads" => [of.kv_heads().into(), model.kv_heads().into()],
                _ => [got, expected],
            };
            return Err(FormatError::Part { path: path.into(), key, got, expected });
        }
    }
    Ok(())
}

/// Refuses tensors that hold NaN or infinity, by name and element as they are stored in the file `path`.
pub fn require_finite<'a>(path: &Path, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    for tensor in tensors {
        let Some((element, value)) = tensor.first_not_finite() else { continue };
        let mut rest = element;
        let mut index: Vec<usize> = Vec::with_capacity(tensor.shape.len());
        for dimension in tensor.shape.iter().rev() {
            index.insert(0, rest % dimension);
            rest /= dimension;
        }
        let (path, tensor, elements) = (path.into(), tensor.name.clone(), tensor.shape.iter().product());
        return Err(FormatError::NotFinite { path, tensor, index, element, elements, value });
    }
    Ok(())
}

/// How the numbers of an exported file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    /// Rounded to nearest, ties to even.
    Bf16,
}

impl Precision {
    /// The type of a tensor's elements.
    pub fn dtype(self) -> Dtype {
        match self {
            Precision::Fp32 => Dtype::F32,
            Precision::Bf16 => Dtype::BF16,
        }
    }

    /// As in the TOML and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// The numbers of a tensor in f32, exactly.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let bytes = encoded(tensor, Precision::Fp32);
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The bytes of a tensor of floats in another precision; the very bytes where it is the same.
pub(super) fn encoded(tensor: &Tensor, precision: Precision) -> Cow<'_, [u8]> {
    match (tensor.dtype, precision) {
        (Dtype::F32, Precision::Bf16) => {
            let narrow = |b: &[u8; 4]| bf16::from_f32(f32::from_le_bytes(*b)).to_le_bytes();
            Cow::Owned(tensor.bytes.as_chunks().0.iter().flat_map(narrow).collect())
        }
        (Dtype::BF16, Precision::Fp32) => {
            let widen = |b: &[u8; 2]| bf16::from_le_bytes(*b).to_f32().to_le_bytes();
            Cow::Owned(tensor.bytes.as_chunks().0.iter().flat_map(widen).collect())
        }
        _ => Cow::Borrowed(&tensor.bytes),
    }
}

/// Random but reproducible parameters, for the tests of the formats.
#[cfg(test)]
pub(super) fn sample_parameters(dtype: Dtype) -> Parameters {
    sample_of(&Model::gpt2(3, 2, 8, 5, 11), dtype)
}

/// The same of any model.
#[cfg(test)]
pub(super) fn sample_of(model: &Model, dtype: Dtype) -> Parameters {
    use crate::rng::Key;
    let tensors: Result<_> = Weights::of(model).try_map(|spec| {
        let values = (0..spec.logical_len()).map(|i| Key([3, 4]).normal(spec.id.into(), i as u64) as f32);
        let bytes = match dtype {
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            _ => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        };
        Ok(Tensor { name: spec.name.clone(), dtype, shape: spec.shape.clone(), bytes })
    });
    Parameters { model: model.clone(), tensors: tensors.expect("nothing fails") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_state(model: &Model, state: Vec<Tensor>) -> Result<Parameters> {
        Parameters::of_state(Path::new("some/state"), model, state)
    }

    #[test]
    fn masters_go_before_the_parameters_they_belong_to() {
        let (masters, parameters) = (sample_parameters(Dtype::F32), sample_parameters(Dtype::BF16));
        let mut state: Vec<Tensor> = parameters.tensors.iter().cloned().collect();
        let exact = of_state(&parameters.model, state.clone()).expect("whole");
        assert!(exact.tensors.iter().eq(parameters.tensors.iter()));
        state.extend(
            masters
                .tensors
                .iter()
                .map(|t| Tensor { name: format!("{}{}", MASTER.prefix, t.name), ..t.clone() }),
        );
        let exact = of_state(&parameters.model, state).expect("whole");
        assert!(exact.tensors.iter().eq(masters.tensors.iter()));
    }

    #[test]
    fn a_state_of_another_model_is_refused_by_name() {
        let Parameters { mut model, tensors } = sample_parameters(Dtype::F32);
        let state: Vec<Tensor> = tensors.iter().cloned().collect();
        model.context = 6;
        let error = of_state(&model, state.clone()).expect_err("another context").to_string();
        assert!(
            error.contains("`some/state`: parameter `wpe.weight` has the shape [5, 8], expected [6, 8]"),
            "{error}"
        );
        (model.context, model.layers) = (5, 4);
        let error = of_state(&model, state).expect_err("another depth").to_string();
        assert!(error.contains("`h.3.ln_1.weight` is missing"), "{error}");
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even_and_widened_exactly() {
        let tensor = |dtype, bytes: Vec<u8>| Tensor { name: "x".into(), dtype, shape: vec![2], bytes };
        // 1 + 2^-8 lies between two bf16 numbers and goes to the even one below; 1 + 3·2^-8 goes up.
        let halves = [1.0 + 0.003_906_25f32, 1.0 + 3.0 * 0.003_906_25];
        let wide = tensor(Dtype::F32, halves.iter().flat_map(|v| v.to_le_bytes()).collect());
        let narrow = tensor(Dtype::BF16, encoded(&wide, Precision::Bf16).into_owned());
        assert_eq!(values(&narrow), [1.0, 1.015_625]);
    }

    #[test]
    fn nan_and_infinity_are_refused_by_tensor_and_element() {
        let refusal = |dtype, bytes: Vec<u8>| {
            let tensor = Tensor { name: "w".into(), dtype, shape: vec![2, 3], bytes };
            require_finite(Path::new("some/file"), [&tensor]).map_err(|error| error.to_string())
        };
        let with = |at: usize, value: f32| {
            let mut values = [1.0f32; 6];
            values[at] = value;
            values
        };
        let wide = |at, value| refusal(Dtype::F32, with(at, value).map(f32::to_le_bytes).concat());
        let narrow = |at, value| {
            refusal(Dtype::BF16, with(at, value).map(|v| bf16::from_f32(v).to_le_bytes()).concat())
        };
        assert_eq!((wide(5, f32::MAX), narrow(5, -1e38)), (Ok(()), Ok(())));
        for error in [wide(4, f32::NAN), narrow(4, f32::NAN)] {
            let error = error.expect_err("refused");
            let says = "tensor `w` in `some/file` holds NaN at [1, 1], element 4 of 6";
            assert!(error.starts_with(says), "{error}");
        }
        assert!(wide(0, f32::INFINITY).expect_err("refused").contains("holds infinity at [0, 0]"));
        assert!(narrow(3, f32::NEG_INFINITY).expect_err("refused").contains("minus infinity at [1, 0]"));
    }
}
