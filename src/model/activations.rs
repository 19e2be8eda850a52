//! The buffers a forward pass leaves for the backward pass, and those both share.
//!
//! What is kept of each layer depends on `memory.recompute`; the backward pass computes the rest
//! again into a shared buffer. A buffer is described once, in [`Activations::layout`], from which
//! both the memory plan and the allocation are made.

use crate::experiment::Model;
use crate::ops::{Ops, Result, Role, Rows};

/// A layernorm's output and statistics.
#[derive(Clone, Debug)]
pub struct Normed<B> {
    /// (N, C); absent when the backward pass computes it again.
    pub out: Option<B>,
    /// (N) f32
    pub mean: B,
    /// (N) f32
    pub rstd: B,
}

impl<B> Normed<B> {
    /// The output, where it is not kept that in `shared`.
    pub fn output<'a>(&'a self, shared: Option<&'a B>) -> &'a B {
        self.out.as_ref().or(shared).expect("an output that is not kept is shared")
    }
}

/// The shared buffer in place of one that is not kept.
pub fn kept_or_shared<'a, B>(kept: &'a mut Option<B>, shared: &'a mut Option<B>) -> &'a mut B {
    kept.as_mut().or(shared.as_mut()).expect("an output that is not kept is shared")
}

/// The activations that one transformer block keeps.
#[derive(Clone, Debug)]
pub struct LayerActivations<B> {
    pub ln_1: Normed<B>,
    /// (B, T, 3, NH, HS)
    pub qkv: B,
    /// (B, T, NH, HS)
    pub att: B,
    /// (B, NH, T) f32
    pub lse: B,
    /// The residual stream after attention (N, C).
    pub residual_mid: B,
    pub ln_2: Normed<B>,
    /// Before GELU (N, 4C).
    pub fc: B,
    /// After GELU (N, 4C); absent when the backward pass computes it again.
    pub fc_gelu: Option<B>,
    /// The residual stream after the block (N, C).
    pub residual_out: B,
}

/// All activations and their gradients.
#[derive(Clone, Debug)]
pub struct Activations<B> {
    /// The residual stream before the first block (N, C).
    pub encoded: B,
    pub layers: Vec<LayerActivations<B>>,
    pub ln_f: Normed<B>,
    /// Output of a projection on its way into the residual stream (N, C).
    pub branch: B,
    /// Stands in for every `Normed::out` that is not kept (N, C).
    pub shared_norm: Option<B>,
    /// Stands in for every `fc_gelu` that is not kept (N, 4C).
    pub shared_gelu: Option<B>,
    pub grads: Option<GradientBuffers<B>>,
}

/// Gradients of activations; each is used by one layer after the other.
#[derive(Clone, Debug)]
pub struct GradientBuffers<B> {
    /// Of the residual stream (N, C).
    pub residual: B,
    /// Of a layernorm's output, or of the attention's (N, C).
    pub narrow: B,
    /// Of `qkv` (N, 3C) or `fc` (N, 4C).
    pub wide: B,
}

/// One buffer of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferSpec {
    pub name: &'static str,
    pub role: Role,
    pub len: usize,
}

impl Activations<BufferSpec> {
    /// Which buffers a model needs for micro-batches of `rows`.
    pub fn layout(model: &Model, rows: Rows, recompute: u8, backward: bool) -> Activations<BufferSpec> {
        let n = rows.count();
        let c = model.channels;
        let act = |name, len| BufferSpec { name, role: Role::Activation, len };
        let stat = |name, len| BufferSpec { name, role: Role::F32, len };
        // Without a backward pass nothing is kept for one.
        let keep_gelu = backward && recompute < 1;
        let keep_norm = backward && recompute < 2;
        let norm = |name, keep: bool| Normed {
            out: keep.then(|| act(name, n * c)),
            mean: stat("layernorm statistics", n),
            rstd: stat("layernorm statistics", n),
        };
        let layer = || LayerActivations {
            ln_1: norm("ln_1", keep_norm),
            qkv: act("qkv", n * 3 * c),
            att: act("attention", n * c),
            lse: stat("attention log-sum-exp", n * model.heads),
            residual_mid: act("residual", n * c),
            ln_2: norm("ln_2", keep_norm),
            fc: act("fc", n * 4 * c),
            fc_gelu: keep_gelu.then(|| act("gelu", n * 4 * c)),
            residual_out: act("residual", n * c),
        };
        Activations {
            encoded: act("residual", n * c),
            layers: (0..model.layers).map(|_| layer()).collect(),
            ln_f: norm("ln_f", true),
            branch: act("branch", n * c),
            shared_norm: (!keep_norm).then(|| act("ln shared", n * c)),
            shared_gelu: (!keep_gelu).then(|| act("gelu shared", n * 4 * c)),
            grads: backward.then(|| GradientBuffers {
                residual: act("gradient of residual", n * c),
                narrow: act("gradient of narrow", n * c),
                wide: act("gradient of wide", n * 4 * c),
            }),
        }
    }

    /// Every buffer, in the order of allocation.
    pub fn specs(&self) -> Vec<BufferSpec> {
        let mut specs = Vec::new();
        let collected: std::result::Result<Activations<()>, std::convert::Infallible> =
            self.try_map(|spec| {
                specs.push(spec.clone());
                Ok(())
            });
        let Ok(_) = collected;
        specs
    }

    /// Takes every buffer from the device.
    pub fn allocate<O: Ops>(&self, ops: &mut O) -> Result<Activations<O::Buf>> {
        self.try_map(|spec| ops.alloc(spec.role, spec.len))
    }
}

impl<T> Activations<T> {
    fn try_map<U, E>(
        &self,
        mut make: impl FnMut(&T) -> std::result::Result<U, E>,
    ) -> std::result::Result<Activations<U>, E> {
        let normed = |n: &Normed<T>, make: &mut dyn FnMut(&T) -> std::result::Result<U, E>| {
            Ok(Normed {
                out: n.out.as_ref().map(&mut *make).transpose()?,
                mean: make(&n.mean)?,
                rstd: make(&n.rstd)?,
            })
        };
        Ok(Activations {
            encoded: make(&self.encoded)?,
            layers: self
                .layers
                .iter()
                .map(|l| {
                    Ok(LayerActivations {
                        ln_1: normed(&l.ln_1, &mut make)?,
                        qkv: make(&l.qkv)?,
                        att: make(&l.att)?,
                        lse: make(&l.lse)?,
                        residual_mid: make(&l.residual_mid)?,
                        ln_2: normed(&l.ln_2, &mut make)?,
                        fc: make(&l.fc)?,
                        fc_gelu: l.fc_gelu.as_ref().map(&mut make).transpose()?,
                        residual_out: make(&l.residual_out)?,
                    })
                })
                .collect::<std::result::Result<_, E>>()?,
            ln_f: normed(&self.ln_f, &mut make)?,
            branch: make(&self.branch)?,
            shared_norm: self.shared_norm.as_ref().map(&mut make).transpose()?,
            shared_gelu: self.shared_gelu.as_ref().map(&mut make).transpose()?,
            grads: self
                .grads
                .as_ref()
                .map(|g| {
                    Ok(GradientBuffers {
                        residual: make(&g.residual)?,
                        narrow: make(&g.narrow)?,
                        wide: make(&g.wide)?,
                    })
                })
                .transpose()?,
        })
    }
}
