//! Layernorm over the channels of a row (Ba et al. 2016) and, without a mean, RMSNorm (Zhang and Sennrich
//! 2019); epsilon 1e-5 for both.

use super::{ElementBytes, Family, Operation, Work, again};
use crate::ops::types::Write;

/// `out = (x - mean) * rstd * weight + bias` for each row, where `rstd` is one over the root of the variance
/// and epsilon. RMSNorm where no mean is asked for: `out = x * rstd * weight + bias`, with the average of the
/// squares in place of the variance. No bias has the bits of a bias of zeros.
///
/// Sums over a row have an order that each device documents; it depends on C alone.
pub struct Layernorm<'a, B> {
    /// (N, C), activation.
    pub out: &'a mut B,
    /// (N), f32; none for RMSNorm.
    pub mean: Option<&'a mut B>,
    /// (N), f32: one over the standard deviation, of RMSNorm one over the root of the average square.
    pub rstd: &'a mut B,
    /// (N, C), activation.
    pub x: &'a B,
    /// (C), parameter.
    pub weight: &'a B,
    /// (C), parameter.
    pub bias: Option<&'a B>,
    /// N.
    pub rows: usize,
    /// C.
    pub channels: usize,
}

impl<B> Layernorm<'_, B> {
    /// Whether this is RMSNorm.
    pub fn is_rms(&self) -> bool {
        self.mean.is_none()
    }
}

impl<B> Operation for Layernorm<'_, B> {
    fn family(&self) -> Family {
        Family::Layernorm
    }

    fn label(&self) -> String {
        name(self.is_rms()).into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(2 * self.rows * self.channels)
    }
}

/// What the table of `runner bench` calls it.
fn name(rms: bool) -> &'static str {
    if rms { "rmsnorm" } else { "layernorm" }
}

/// `residual = x + branch`, then [`Layernorm`] of `residual` into `out`. Statistics are of the residual as
/// stored.
pub struct ResidualLayernorm<'a, B> {
    /// (N, C), activation.
    pub residual: &'a mut B,
    /// (N, C), activation.
    pub out: &'a mut B,
    /// (N), f32; none for RMSNorm.
    pub mean: Option<&'a mut B>,
    /// (N), f32.
    pub rstd: &'a mut B,
    /// (N, C), activation.
    pub x: &'a B,
    /// (N, C), activation.
    pub branch: &'a B,
    /// (C), parameter.
    pub weight: &'a B,
    /// (C), parameter.
    pub bias: Option<&'a B>,
    /// N.
    pub rows: usize,
    /// C.
    pub channels: usize,
}

impl<B> ResidualLayernorm<'_, B> {
    /// Whether this is RMSNorm.
    pub fn is_rms(&self) -> bool {
        self.mean.is_none()
    }
}

impl<B> Operation for ResidualLayernorm<'_, B> {
    fn family(&self) -> Family {
        Family::ResidualLayernorm
    }

    fn label(&self) -> String {
        format!("residual + {}", name(self.is_rms()))
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(4 * self.rows * self.channels)
    }
}

/// Gradient of [`Layernorm`]. With `h = (x - mean) rstd` and `g = dout weight`,
/// `dx = rstd (g - mean(g) - h mean(g h))`; `dweight` sums `dout h` and `dbias` sums `dout` over the rows. Of
/// RMSNorm, with `h = x rstd`: `dx = rstd (g - h mean(g h))`.
pub struct LayernormBackward<'a, B> {
    /// (N, C), activation; written as `dx_write` says: a residual stream adds.
    pub dx: &'a mut B,
    pub dx_write: Write,
    /// (C), f32; written as `write` says.
    pub dweight: &'a mut B,
    /// (C), f32; written as `write` says.
    pub dbias: Option<&'a mut B>,
    pub write: Write,
    /// (N, C), activation.
    pub dout: &'a B,
    /// (N, C), activation: the input of the forward pass.
    pub x: &'a B,
    /// (C), parameter.
    pub weight: &'a B,
    /// (N), f32; none for RMSNorm.
    pub mean: Option<&'a B>,
    /// (N), f32.
    pub rstd: &'a B,
    pub again: Option<NormAgain<'a, B>>,
    /// N.
    pub rows: usize,
    /// C.
    pub channels: usize,
}

/// The norm's output, which the forward pass did not keep: its bits again, beside the gradient that reads the
/// same input.
pub struct NormAgain<'a, B> {
    /// (N, C), activation.
    pub out: &'a mut B,
    /// (C), parameter: present where there is a `dbias`.
    pub bias: Option<&'a B>,
}

impl<B> LayernormBackward<'_, B> {
    /// Whether this is the gradient of RMSNorm.
    pub fn is_rms(&self) -> bool {
        self.mean.is_none()
    }

    /// Whether what is computed again has a bias where, and only where, one has a gradient.
    pub fn again_fits(&self) -> bool {
        self.again.as_ref().is_none_or(|again| again.bias.is_some() == self.dbias.is_some())
    }
}

/// Why a [`LayernormBackward`] is refused whose output again has another bias than its gradients.
pub(in crate::ops) const OTHER_BIAS: &str = "a norm's output has a bias where its bias has a gradient";

impl<B> Operation for LayernormBackward<'_, B> {
    fn family(&self) -> Family {
        Family::LayernormBackward
    }

    fn label(&self) -> String {
        format!("{} backward{}", name(self.is_rms()), again(self.again.is_some()))
    }

    fn work(&self, element: ElementBytes) -> Work {
        let more = usize::from(self.dx_write == Write::Add) + usize::from(self.again.is_some());
        element.pass((3 + more) * self.rows * self.channels)
    }
}
