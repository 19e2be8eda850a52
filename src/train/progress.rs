//! The part of the training state that lives on the host: counters, and the windows of the guards.

use super::TrainError;
use crate::experiment;
use crate::ops::Dtype;
use crate::optim::Guards;
use crate::optim::guards::Window;
use crate::store::Tensor;

/// The host values that the next step reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Optimizer steps done; the number of the next one.
    pub step: u64,
    /// Steps that reached the weights, with those before the checkpoint whose optimizer the run goes on with.
    pub updates: u64,
    /// Sequences by which `data.offset` and rewinds have advanced the stream of samples.
    pub data_offset: u64,
    pub guards: Guards,
}

impl Progress {
    /// Before the first step.
    pub fn new(guards: &experiment::GuardKeys) -> Progress {
        Progress { step: 0, updates: 0, data_offset: 0, guards: Guards::new(guards) }
    }

    /// The values by their names in the state: the one list of them.
    pub(super) fn values(&mut self) -> [(&'static str, HostValue<'_>); 6] {
        let Progress { step, updates, data_offset, guards } = self;
        [
            ("train/step", HostValue::Counter(step)),
            ("train/updates", HostValue::Counter(updates)),
            ("train/data_offset", HostValue::Counter(data_offset)),
            ("guard/skips_in_a_row", HostValue::Counter(&mut guards.skips_in_a_row)),
            ("guard/loss_window", HostValue::Window(&mut guards.loss)),
            ("guard/grad_window", HostValue::Window(&mut guards.grad)),
        ]
    }

    /// Whether a tensor of the state is a counter of training.
    pub fn is_counter(name: &str) -> bool {
        name.starts_with("train/")
    }

    /// The counters of a saved state; the guards are those of a new run.
    ///
    /// # Errors
    ///
    /// [`TrainError::State`] when one is missing or is no counter.
    pub fn of_counters(state: &[Tensor], guards: &experiment::GuardKeys) -> Result<Progress, TrainError> {
        let mut progress = Progress::new(guards);
        for (name, mut value) in progress.values().into_iter().filter(|(name, _)| Progress::is_counter(name))
        {
            let tensor = state.iter().find(|tensor| tensor.name == name);
            let missing = || TrainError::State { tensor: name.into(), problem: "is missing".into() };
            value.set(tensor.ok_or_else(missing)?)?;
        }
        Ok(progress)
    }

    /// The values as tensors.
    pub(super) fn tensors(&mut self) -> Vec<Tensor> {
        self.values().into_iter().map(|(name, value)| value.tensor(name)).collect()
    }
}

/// A value of the state on the host.
pub(super) enum HostValue<'a> {
    /// u64, a scalar.
    Counter(&'a mut u64),
    /// The accepted values of a guard in f64, oldest first: as many as there are yet.
    Window(&'a mut Window),
}

impl HostValue<'_> {
    /// Element type, and the largest shape.
    pub fn kind(&self) -> (Dtype, Vec<usize>) {
        match self {
            HostValue::Counter(_) => (Dtype::U64, vec![]),
            HostValue::Window(window) => (Dtype::F64, vec![window.size()]),
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let (shape, bytes) = match self {
            HostValue::Counter(value) => (vec![], value.to_le_bytes().to_vec()),
            HostValue::Window(window) => {
                let bytes: Vec<u8> = window.values().flat_map(f64::to_le_bytes).collect();
                (vec![bytes.len() / 8], bytes)
            }
        };
        Tensor { name: name.into(), dtype: self.kind().0, shape, bytes }
    }

    /// Takes the value that a saved tensor holds.
    ///
    /// # Errors
    ///
    /// [`TrainError::State`] when type or shape are not this value's.
    pub fn set(&mut self, tensor: &Tensor) -> Result<(), TrainError> {
        let Tensor { name, dtype, shape, bytes } = tensor;
        let bad = |expected: String| TrainError::State {
            tensor: name.clone(),
            problem: format!("is {dtype} {shape:?}, {expected}"),
        };
        let words = bytes.as_chunks::<8>().0;
        match self {
            HostValue::Counter(value) => match (dtype, &shape[..], words) {
                (Dtype::U64, [], [word]) => **value = u64::from_le_bytes(*word),
                _ => return Err(bad("this experiment needs U64 []".into())),
            },
            HostValue::Window(window) => match (dtype, &shape[..]) {
                (Dtype::F64, [len]) if *len <= window.size() => {
                    let values: Vec<f64> = words.iter().map(|word| f64::from_le_bytes(*word)).collect();
                    **window = Window::from_values(window.size(), &values);
                }
                _ => return Err(bad(format!("expected F64 with at most {} values", window.size()))),
            },
        }
        Ok(())
    }
}
