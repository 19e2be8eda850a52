//! Linear layers: `out = x weightᵀ + bias`, alone and with the function behind it, and their gradients.

use super::{ElementBytes, Family, Operation, Work, again, volume};
use crate::ops::types::{Nonlinearity, Write};

/// Rows and both widths of a linear layer, the same in the forward and the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// n.
    pub rows: usize,
    pub c_in: usize,
    pub c_out: usize,
}

impl LinearShape {
    /// Elements of the input (n, c_in).
    pub fn input(self) -> usize {
        self.rows * self.c_in
    }

    /// Elements of the weight (c_out, c_in).
    pub fn weight(self) -> usize {
        self.c_out * self.c_in
    }

    /// Elements of the output (n, c_out).
    pub fn output(self) -> usize {
        self.rows * self.c_out
    }

    pub(super) fn forward(self, element: ElementBytes) -> Work {
        element.product(self.rows, self.c_in, self.c_out)
    }

    fn backward_input(self, element: ElementBytes) -> Work {
        element.product(self.rows, self.c_out, self.c_in)
    }
}

/// `out = x weightᵀ + bias`. Each element sums over c_in in an order that the shape fixes.
pub struct Linear<'a, B> {
    /// (n, c_out), activation.
    pub out: &'a mut B,
    /// (n, c_in), activation.
    pub x: &'a B,
    /// (c_out, c_in), parameter.
    pub weight: &'a B,
    /// (c_out), parameter.
    pub bias: Option<&'a B>,
    pub shape: LinearShape,
}

impl<B> Operation for Linear<'_, B> {
    fn family(&self) -> Family {
        Family::Linear
    }

    fn label(&self) -> String {
        format!("linear {} to {}", self.shape.c_in, self.shape.c_out)
    }

    fn work(&self, element: ElementBytes) -> Work {
        self.shape.forward(element)
    }
}

/// `pre = x weightᵀ + bias`, `out = f(pre)`.
pub struct LinearActivate<'a, B> {
    /// (n, c_out), of SwiGLU (n, c_out/2), activation.
    pub out: &'a mut B,
    /// (n, c_out), activation.
    pub pre: &'a mut B,
    /// (n, c_in), activation.
    pub x: &'a B,
    /// (c_out, c_in), parameter.
    pub weight: &'a B,
    /// (c_out), parameter.
    pub bias: Option<&'a B>,
    pub function: Nonlinearity,
    pub shape: LinearShape,
}

impl<B> LinearActivate<'_, B> {
    /// Columns of `out`.
    pub fn channels(&self) -> usize {
        self.shape.c_out / self.function.inputs()
    }
}

impl<B> Operation for LinearActivate<'_, B> {
    fn family(&self) -> Family {
        Family::LinearGelu
    }

    fn label(&self) -> String {
        format!("linear + {} {} to {}", self.function.name(), self.shape.c_in, self.shape.c_out)
    }

    fn work(&self, element: ElementBytes) -> Work {
        let Work { flops, bytes } = self.shape.forward(element);
        Work { flops, bytes: bytes + element.moved(self.shape.rows * self.channels(), 0) }
    }
}

/// `dx = dout weight`. Each element sums over c_out.
pub struct LinearBackwardInput<'a, B> {
    /// (n, c_in), activation.
    pub dx: &'a mut B,
    /// (n, c_out), activation.
    pub dout: &'a B,
    /// (c_out, c_in), parameter.
    pub weight: &'a B,
    pub shape: LinearShape,
}

impl<B> Operation for LinearBackwardInput<'_, B> {
    fn family(&self) -> Family {
        Family::InputGradient
    }

    fn label(&self) -> String {
        format!("input gradient {} to {}", self.shape.c_out, self.shape.c_in)
    }

    fn work(&self, element: ElementBytes) -> Work {
        self.shape.backward_input(element)
    }
}

/// `dpre = (dout weight) f'(pre)`: the gradient of a layer whose input came out of a function. With SwiGLU
/// `pre` and `dpre` are twice as wide as the layer's input.
pub struct LinearBackwardInputActivate<'a, B> {
    /// (n, c_in), of SwiGLU (n, 2 c_in), activation.
    pub dpre: &'a mut B,
    /// (n, c_in), activation: with SwiGLU room for `dout weight`, where the device wants any; its content is
    /// then undefined.
    pub room: Option<&'a mut B>,
    /// (n, c_out), activation.
    pub dout: &'a B,
    /// (c_out, c_in), parameter.
    pub weight: &'a B,
    /// As `dpre`: what the function read.
    pub pre: &'a B,
    /// (n, c_in), activation: set to `f(pre)`, which the forward pass did not keep.
    pub again: Option<&'a mut B>,
    pub function: Nonlinearity,
    pub shape: LinearShape,
}

/// Why [`LinearBackwardInputActivate`] of SwiGLU without `room` is refused.
pub(in crate::ops) const NO_ROOM: &str = "SwiGLU's gradient needs room for what it is made of";

impl<B> LinearBackwardInputActivate<'_, B> {
    /// Elements of `dpre` and of `pre`.
    pub fn inputs(&self) -> usize {
        self.function.inputs() * self.shape.input()
    }
}

impl<B> Operation for LinearBackwardInputActivate<'_, B> {
    fn family(&self) -> Family {
        Family::InputGradientGelu
    }

    fn label(&self) -> String {
        let LinearShape { c_in, c_out, .. } = self.shape;
        let (name, again) = (self.function.name(), again(self.again.is_some()));
        format!("input gradient + {name}{again} {c_out} to {c_in}")
    }

    fn work(&self, element: ElementBytes) -> Work {
        let Work { flops, bytes } = self.shape.backward_input(element);
        // What is written is counted once as the product's, and `pre` is read.
        let again = if self.again.is_some() { self.shape.input() } else { 0 };
        let more = 2 * self.inputs() - self.shape.input() + again;
        Work { flops, bytes: bytes + element.moved(more, 0) }
    }
}

/// `dweight = doutᵀ x` and `dbias = column sums of dout`, both summed over the rows.
pub struct LinearBackwardWeight<'a, B> {
    /// (c_out, c_in), f32; written as `write` says.
    pub dweight: &'a mut B,
    /// (c_out), f32; written as `write` says.
    pub dbias: Option<&'a mut B>,
    /// (n, c_out), activation.
    pub dout: &'a B,
    /// (n, c_in), activation.
    pub x: &'a B,
    pub shape: LinearShape,
    pub write: Write,
}

impl<B> Operation for LinearBackwardWeight<'_, B> {
    fn family(&self) -> Family {
        Family::WeightGradient
    }

    fn label(&self) -> String {
        let what = if self.dbias.is_some() { "weight and bias" } else { "weight" };
        format!("{what} gradient {} to {}", self.shape.c_in, self.shape.c_out)
    }

    fn work(&self, element: ElementBytes) -> Work {
        let LinearShape { rows, c_in, c_out } = self.shape;
        let wide = (1 + usize::from(self.write == Write::Add)) * c_in * c_out;
        Work {
            flops: 2.0 * volume(&[rows, c_in, c_out]),
            bytes: element.moved(rows * (c_in + c_out), 0) + 4.0 * wide as f64,
        }
    }
}
