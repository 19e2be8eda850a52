//! A trained model for other programs: Hugging Face folders and the reference's `.bin`, both ways.
//!
//! Everything passes through [`Parameters`], so that each format is two functions: from parameters to a
//! file, and back. Written and read again, a file has the same bytes, and the parameters the same bits.
//! Nothing there knows what a run or a checkpoint is, and nothing trains or computes: whether the
//! other program computes the same is the tests' concern. [`slsa`] alone reads a run: it says what was
//! made, of what and how, for supply-chain tools.

#![forbid(unsafe_code)]

mod error;
pub mod hf;
pub mod llmc;
pub mod slsa;
pub mod tokenizer_files;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;

pub use error::ExportError;

use crate::data::digests::file_sha256;
use crate::experiment::Model;
use crate::model::Weights;
use crate::ops::Dtype;
use crate::optim::MASTER;
use crate::store::Tensor;

/// The result of everything here.
pub type Result<T, E = ExportError> = std::result::Result<T, E>;

/// The parameters of a model: names, shapes and orientation as in the state, F32 or BF16.
#[derive(Clone, Debug)]
pub struct Parameters {
    pub model: Model,
    pub tensors: Weights<Tensor>,
}

impl Parameters {
    /// Takes them out of a state: the fp32 masters where there are any, the parameters else.
    ///
    /// # Errors
    ///
    /// A parameter that is missing, has another shape than `model` says, or is stored as no float.
    pub fn of_state(model: &Model, state: Vec<Tensor>) -> Result<Parameters> {
        let mut state: BTreeMap<String, Tensor> =
            state.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let tensors = Weights::of(model).try_map(|spec| {
            let bad = |problem: String| ExportError::Parameter { tensor: spec.name.clone(), problem };
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
}

impl Parameters {
    /// Refuses sizes that are not those of `model`; `path` is where these parameters come from.
    pub fn require(&self, model: &Model, path: &Path) -> Result<()> {
        let sizes = |m: &Model| {
            [
                ("layers", m.layers),
                ("heads", m.heads),
                ("channels", m.channels),
                ("positions", m.context),
                ("tokens", m.vocab),
            ]
        };
        for ((what, got), (_, expected)) in sizes(&self.model).into_iter().zip(sizes(model)) {
            if got != expected {
                return Err(ExportError::Sizes { path: path.into(), what, got, expected });
            }
        }
        Ok(())
    }
}

/// Reads a Hugging Face folder, or else a `.bin` of the reference.
///
/// # Errors
///
/// As [`hf::read`] and [`llmc::read`].
pub fn read_model(path: &Path) -> Result<Parameters> {
    if path.is_dir() { hf::read(path) } else { Ok(llmc::read(path)?.0) }
}

/// SHA-256 of the file that holds the weights of such a model.
pub fn model_sha256(path: &Path) -> Result<[u8; 32]> {
    let file = if path.is_dir() { hf::weights_file(path) } else { path.to_owned() };
    file_sha256(&file).map_err(|source| ExportError::Io { path: file.clone(), source })
}

/// The numbers of a tensor in f32, exactly.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let bytes = encoded(tensor, Precision::Fp32);
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// How the numbers of an exported file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    /// Rounded to nearest, ties to even.
    Bf16,
}

impl Precision {
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

/// The bytes of a tensor of floats in another precision; the very bytes where it is the same.
fn encoded(tensor: &Tensor, precision: Precision) -> Cow<'_, [u8]> {
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
fn sample_parameters(dtype: Dtype) -> Parameters {
    use crate::rng::Key;
    let model = Model {
        init: None,
        descriptor: None,
        layers: 3,
        heads: 2,
        channels: 8,
        context: 5,
        vocab: 11,
        vocab_padded: 128,
    };
    let tensors: Result<_> = Weights::of(&model).try_map(|spec| {
        let values = (0..spec.logical_len()).map(|i| Key([3, 4]).normal(spec.id.into(), i as u64) as f32);
        let bytes = match dtype {
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            _ => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        };
        Ok(Tensor { name: spec.name.clone(), dtype, shape: spec.shape.clone(), bytes })
    });
    Parameters { model, tensors: tensors.expect("nothing fails") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masters_go_before_the_parameters_they_belong_to() {
        let (masters, parameters) = (sample_parameters(Dtype::F32), sample_parameters(Dtype::BF16));
        let mut state: Vec<Tensor> = parameters.tensors.iter().cloned().collect();
        let exact = Parameters::of_state(&parameters.model, state.clone()).expect("whole");
        assert!(exact.tensors.iter().eq(parameters.tensors.iter()));
        state.extend(
            masters
                .tensors
                .iter()
                .map(|t| Tensor { name: format!("{}{}", MASTER.prefix, t.name), ..t.clone() }),
        );
        let exact = Parameters::of_state(&parameters.model, state).expect("whole");
        assert!(exact.tensors.iter().eq(masters.tensors.iter()));
    }

    #[test]
    fn a_state_of_another_model_is_refused_by_name() {
        let Parameters { mut model, tensors } = sample_parameters(Dtype::F32);
        let state: Vec<Tensor> = tensors.iter().cloned().collect();
        model.context = 6;
        let error = Parameters::of_state(&model, state.clone()).expect_err("another context").to_string();
        assert!(error.contains("`wpe.weight` has the shape [5, 8], expected [6, 8]"), "{error}");
        (model.context, model.layers) = (5, 4);
        let error = Parameters::of_state(&model, state).expect_err("another depth").to_string();
        assert!(error.contains("`h.3.ln_1.weight` is missing"), "{error}");
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even_and_widened_exactly() {
        let tensor = |dtype, bytes: Vec<u8>| Tensor { name: "x".into(), dtype, shape: vec![2], bytes };
        // 1 + 2^-8 lies between two bf16 numbers and goes to the even one below; 1 + 3·2^-8 goes up.
        let halves = [1.0 + 0.003_906_25f32, 1.0 + 3.0 * 0.003_906_25];
        let wide = tensor(Dtype::F32, halves.iter().flat_map(|v| v.to_le_bytes()).collect());
        let narrow = tensor(Dtype::BF16, encoded(&wide, Precision::Bf16).into_owned());
        let back: Vec<f32> =
            encoded(&narrow, Precision::Fp32).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(back, [1.0, 1.015_625]);
    }
}
