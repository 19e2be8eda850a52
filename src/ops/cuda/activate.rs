//! The functions of an MLP by themselves, where no product ends in them.

use super::Cuda;
use super::launch::activate;
use super::memory::Buf;
use crate::ops::{Activate, ActivateBackward, Nonlinearity, Perform, Result};

impl Perform<Activate<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Activate<'_, Buf>) -> Result<()> {
        self.require_stored_input("activate", op.function)?;
        self.written(op.out);
        activate::forward(&self.kernels, op)
    }
}

impl Cuda {
    /// Refuses GELU of what was stored where the forward pass took that of the sum before rounding.
    pub(super) fn require_stored_input(&self, op: &'static str, function: Nonlinearity) -> Result<()> {
        let same = function != Nonlinearity::Gelu || self.options.fusion() == 0;
        self.kernels.check(op, same, || {
            "a GELU inside the matrix multiplication sees the sum before rounding, so it cannot be \
             computed again from what was stored\n  \
             hint: set `memory.recompute` or `kernels.gelu_fusion` to 0"
                .into()
        })
    }
}

impl Perform<ActivateBackward<'_, Buf>> for Cuda {
    fn perform(&mut self, op: ActivateBackward<'_, Buf>) -> Result<()> {
        self.written(op.dpre);
        activate::backward(&self.kernels, op)
    }
}
