//! The functions of an MLP by themselves, where no product ends in them or the backward pass computes them
//! again.

use super::Cuda;
use super::launch::activate;
use super::memory::Buf;
use crate::ops::{Activate, ActivateBackward, Nonlinearity, Perform, Result};

impl Perform<Activate<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Activate<'_, Buf>) -> Result<()> {
        // GELU again, only where the forward pass rounded `pre` first, as this does.
        let again = op.function != Nonlinearity::Gelu || self.options.fusion() == 0;
        self.kernels.check("activate", again, || {
            "a GELU inside the matrix multiplication sees the sum before rounding, so it cannot be \
             computed again from what was stored\n  \
             hint: set `memory.recompute` or `kernels.gelu_fusion` to 0"
                .into()
        })?;
        self.written(op.out);
        activate::forward(&self.kernels, op)
    }
}

impl Perform<ActivateBackward<'_, Buf>> for Cuda {
    fn perform(&mut self, op: ActivateBackward<'_, Buf>) -> Result<()> {
        self.written(op.dpre);
        activate::backward(&self.kernels, op)
    }
}
