//! The average of the weights in the model's place, to be evaluated there: it takes no memory of the device
//! beside its own, for the weights wait on the host.

use half::bf16;

use super::TrainError;
use super::trainer::Trainer;
use crate::ops::{Dtype, Ops, Result, Role};
use crate::optim::AVERAGE;

impl<O: Ops> Trainer<O> {
    /// Whether the state has an average of the weights.
    pub fn keeps_average(&self) -> bool {
        self.table.iter().any(|row| row.name.starts_with(AVERAGE.prefix))
    }

    /// What `measure` gives while the model holds the average, rounded to nearest in the type of weights.
    /// Then it holds the weights again, bit for bit. All ranks call it, where there is an average.
    ///
    /// # Errors
    ///
    /// The device or an exchange fails; then the model is not to be used any more.
    pub fn with_average<T>(&mut self, measure: impl FnOnce(&mut Trainer<O>) -> T) -> Result<T, TrainError> {
        let weights = self.put_average()?;
        let measured = measure(self);
        for (param, bytes) in self.model.params.iter_mut().zip(&weights) {
            self.ops.write_bytes(param, bytes)?;
        }
        Ok(measured)
    }

    /// Overwrites the weights with the average, and returns their bytes in the model's order.
    fn put_average(&mut self) -> Result<Vec<Vec<u8>>, TrainError> {
        let Trainer { ops, model, optimizer, .. } = self;
        let dtype = ops.dtype(Role::Param);
        let mut weights = Vec::new();
        for (at, (spec, param)) in model.specs.iter().zip(model.params.iter_mut()).enumerate() {
            let mut bytes = vec![0; spec.logical_len() * dtype.size()];
            ops.read_bytes(param, &mut bytes)?;
            weights.push(bytes);
            let Some(part) = optimizer.of(at) else { continue };
            let (start, end) = (part.piece.start, part.piece.end().min(spec.logical_len()));
            let Some(len) = end.checked_sub(start) else { continue };
            let mut average = vec![0.0; len];
            ops.download(part.bufs.last().expect("an average"), &mut average)?;
            ops.write_at(param, start * dtype.size(), &encoded(&average, dtype))?;
        }
        self.gather_weights()?;
        Ok(weights)
    }
}

/// Numbers as parameters of a type are stored.
fn encoded(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}
