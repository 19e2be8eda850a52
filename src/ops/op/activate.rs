//! The function between the two layers of an MLP, and its gradient.
//!
//! In training it is part of the products around it ([`super::LinearActivate`],
//! [`super::LinearBackwardInputActivate`]). Where a device has no such product, and in decoding where its
//! product is another, [`Activate`] is a pass of its own.

use super::{ElementBytes, Family, Operation, Work};
use crate::ops::types::Nonlinearity;

/// `out = f(pre)`, with the bits that [`super::LinearActivate`] gives.
pub struct Activate<'a, B> {
    /// (n, F), activation.
    pub out: &'a mut B,
    /// (n, F), of SwiGLU (n, 2F), activation.
    pub pre: &'a B,
    pub function: Nonlinearity,
    /// n.
    pub rows: usize,
    /// F.
    pub channels: usize,
}

impl<B> Operation for Activate<'_, B> {
    fn family(&self) -> Family {
        Family::Gelu
    }

    fn label(&self) -> String {
        self.function.name().into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass((1 + self.function.inputs()) * self.rows * self.channels)
    }
}

/// `dpre = dout f'(pre)`: the gradient of [`Activate`].
pub struct ActivateBackward<'a, B> {
    /// (n, F), of SwiGLU (n, 2F), activation.
    pub dpre: &'a mut B,
    /// (n, F), activation. None: `dpre` holds it before. Not so with SwiGLU, whose `dpre` is wider.
    pub dout: Option<&'a B>,
    /// As `dpre`: what [`Activate`] read.
    pub pre: &'a B,
    pub function: Nonlinearity,
    /// n.
    pub rows: usize,
    /// F.
    pub channels: usize,
}

/// Why [`ActivateBackward`] of SwiGLU without `dout` is refused, on every device.
pub(in crate::ops) const NOT_IN_PLACE: &str = "SwiGLU's gradient cannot take the place of what it is made of";

impl<B> ActivateBackward<'_, B> {
    /// Elements of `dout`.
    pub fn outputs(&self) -> usize {
        self.rows * self.channels
    }

    /// Elements of `pre` and of `dpre`.
    pub fn inputs(&self) -> usize {
        self.function.inputs() * self.outputs()
    }
}

impl<B> Operation for ActivateBackward<'_, B> {
    fn family(&self) -> Family {
        Family::Gelu
    }

    fn label(&self) -> String {
        format!("{} gradient", self.function.name())
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(self.outputs() + 2 * self.inputs())
    }
}
