//! Muon: what surrounds the matrix products of [`crate::optim::muon`], which are [`super::Linear`] and
//! [`super::LinearBackwardInput`].

use super::outline::Outlined;
use super::{ElementBytes, Family, Operation, Work};

/// A matrix among the elements of a tensor, row-major and dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixPart {
    /// Its first element in the tensor.
    pub at: usize,
    pub rows: usize,
    pub cols: usize,
}

impl MatrixPart {
    pub fn elements(self) -> usize {
        self.rows * self.cols
    }

    pub fn end(self) -> usize {
        self.at + self.elements()
    }

    /// Whether its direction is stored transposed: directions have at most as many rows as columns.
    pub fn is_tall(self) -> bool {
        self.rows > self.cols
    }

    /// Rows of its direction.
    pub fn short(self) -> usize {
        self.rows.min(self.cols)
    }

    /// Columns of its direction.
    pub fn long(self) -> usize {
        self.rows.max(self.cols)
    }

    /// Where element (row, col) of the matrix stands in its direction.
    pub fn in_direction(self, row: usize, col: usize) -> usize {
        if self.is_tall() { col * self.rows + row } else { row * self.cols + col }
    }
}

/// The momentum of a matrix, and the direction that it gives, with Nesterov's look ahead and a Frobenius norm
/// of 1. With `fma(a, b, c) = a b + c` rounded once,
///
/// ```text
/// g = grad * grad_scale
/// m = fma(beta, m, (1 - beta) * g)
/// u = fma(beta, m, (1 - beta) * g)
/// direction = u * f32(1 / max(|u|, 1e-7))          |u| in f64, its order that of the device
/// ```
pub struct MuonDirection<'a, B> {
    /// (short, long), activation: transposed where the matrix has more rows than columns.
    pub direction: &'a mut B,
    /// f32, of the whole tensor.
    pub momentum: &'a mut B,
    pub grad: &'a B,
    /// Where in `grad` the tensor begins.
    pub grad_at: usize,
    pub matrix: MatrixPart,
    pub beta: f32,
    /// The gradient is multiplied by this first: the clip factor, at most 1.
    pub grad_scale: f32,
}

impl<B> Outlined<B> for MuonDirection<'_, B> {}

impl<B> Operation for MuonDirection<'_, B> {
    fn family(&self) -> Family {
        Family::Optimizer
    }

    fn label(&self) -> String {
        "Muon: momentum".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        Work::bytes(12.0 * self.matrix.elements() as f64 + element.moved(self.matrix.elements(), 0))
    }
}

/// The polynomial of one Newton-Schulz iteration, in place: with `a, b, c` the coefficients, and added to the
/// diagonal last,
///
/// ```text
/// square = fma(c, square, b * gram) + a I
/// ```
pub struct MuonPolynomial<'a, B> {
    /// (order, order), activation: the square of `gram`, then the polynomial.
    pub square: &'a mut B,
    /// (order, order), activation.
    pub gram: &'a B,
    pub order: usize,
    pub coefficients: [f32; 3],
}

impl<B> Outlined<B> for MuonPolynomial<'_, B> {}

impl<B> Operation for MuonPolynomial<'_, B> {
    fn family(&self) -> Family {
        Family::Optimizer
    }

    fn label(&self) -> String {
        "Muon: polynomial".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(3 * self.order * self.order)
    }
}

/// The update of a matrix along its direction: with `w` the master where there is one, else the parameter,
///
/// ```text
/// w = fma(-learning_rate, fma(weight_decay, w, scale * direction), w)
/// ```
///
/// and the parameter is `w` rounded as AdamW rounds it ([`super::ParamSlot`]).
pub struct MuonUpdate<'a, B> {
    /// The tensor's number in the model's order; enters the counter of stochastic rounding.
    pub id: u32,
    /// The whole tensor.
    pub param: &'a mut B,
    /// fp32 copy of the whole tensor that takes the update, when `param` is narrower and masters are kept.
    pub master: Option<&'a mut B>,
    /// As [`MuonDirection`] stores it.
    pub direction: &'a B,
    pub matrix: MatrixPart,
    pub learning_rate: f32,
    pub weight_decay: f32,
    /// The size of the direction.
    pub scale: f32,
    /// Key and step of stochastic rounding, used when a narrow `param` has no master.
    pub rounding_key: [u32; 2],
    pub step: u64,
}

impl<B> Outlined<B> for MuonUpdate<'_, B> {}

impl<B> Operation for MuonUpdate<'_, B> {
    fn family(&self) -> Family {
        Family::Optimizer
    }

    fn label(&self) -> String {
        "Muon: update".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        let len = self.matrix.elements();
        let master = if self.master.is_some() { 8.0 * len as f64 } else { element.moved(0, len) };
        Work::bytes(master + element.moved(len, len))
    }
}
