//! The buffers a forward pass leaves for the backward pass, and those both share.
//!
//! What is kept of each layer depends on `memory.recompute`; the backward pass computes the rest
//! again into a shared buffer. A buffer is described once, in [`Activations::layout`], from which
//! both the memory plan and the allocation are made.

use super::gpt2::heads;
use crate::experiment::{ActivationKind, Model, NormKind, PositionKind};
use crate::ops::{Ops, Result, Role, Rows};

/// A norm's output and statistics.
#[derive(Clone, Debug)]
pub struct Normed<B> {
    /// (N, C); absent when the backward pass computes it again.
    pub out: Option<B>,
    /// (N) f32; absent of an RMSNorm.
    pub mean: Option<B>,
    /// (N) f32
    pub rstd: B,
}

/// Queries and keys after their norm, and its statistics.
#[derive(Clone, Debug)]
pub struct HeadNormed<B> {
    /// (N, NH + KH, HS), rotated where positions are; absent when the backward pass computes it again.
    pub out: Option<B>,
    /// (N, NH + KH) f32
    pub rstd: B,
}

impl<B> Normed<B> {
    /// The output, where it is not kept that in `shared`.
    pub fn output<'a>(&'a self, shared: Option<&'a B>) -> &'a B {
        kept_or_else(&self.out, shared)
    }
}

impl<B> HeadNormed<B> {
    /// The output, where it is not kept that in `shared`.
    pub fn output<'a>(&'a self, shared: Option<&'a B>) -> &'a B {
        kept_or_else(&self.out, shared)
    }
}

/// What is kept, or else the shared buffer.
pub fn kept_or_else<'a, B>(kept: &'a Option<B>, shared: Option<&'a B>) -> &'a B {
    kept.as_ref().or(shared).expect("an output that is not kept is shared")
}

/// The shared buffer in place of one that is not kept.
pub fn kept_or_shared<'a, B>(kept: &'a mut Option<B>, shared: &'a mut Option<B>) -> &'a mut B {
    kept.as_mut().or(shared.as_mut()).expect("an output that is not kept is shared")
}

/// The activations that one transformer block keeps.
#[derive(Clone, Debug)]
pub struct LayerActivations<B> {
    pub ln_1: Normed<B>,
    /// (B, T, NH + 2 KH, HS): rotated where positions are, unless there is `head_norm`.
    pub qkv: B,
    /// Present with `model.qk_norm`.
    pub head_norm: Option<HeadNormed<B>>,
    /// (B, T, NH, HS)
    pub att: B,
    /// (B, NH, T) f32
    pub lse: B,
    /// The residual stream after attention (N, C).
    pub residual_mid: B,
    pub ln_2: Normed<B>,
    /// Before the MLP's activation (N, F), of SwiGLU (N, 2F).
    pub fc: B,
    /// After it (N, F); absent when the backward pass computes it again.
    pub activated: Option<B>,
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
    /// Stands in for every `activated` that is not kept (N, F).
    pub shared_activated: Option<B>,
    /// Stands in for every `HeadNormed::out` that is not kept (N, NH + KH, HS).
    pub shared_heads: Option<B>,
    /// Cosines and sines of rotary positions (T, HS/2, 2) f32.
    pub rotary: Option<B>,
    pub grads: Option<GradientBuffers<B>>,
}

/// Gradients of activations; each is used by one layer after the other.
#[derive(Clone, Debug)]
pub struct GradientBuffers<B> {
    /// Of the residual stream (N, C).
    pub residual: B,
    /// Of a layernorm's output, or of the attention's (N, C).
    pub narrow: B,
    /// Of `qkv` (N, NH + 2 KH, HS) or `fc`, the wider of the two.
    pub wide: B,
    /// Of `activated` (N, F); present with SwiGLU alone: others' gradients stand where that of `fc` will.
    pub activated: Option<B>,
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
        let (c, heads) = (model.channels, heads(model));
        let act = |name, len| BufferSpec { name, role: Role::Activation, len };
        let stat = |name, len| BufferSpec { name, role: Role::F32, len };
        // Without a backward pass nothing is kept for one.
        let keep_activated = backward && recompute < 1;
        let keep_norm = backward && recompute < 2;
        let (activated, pre) = (n * model.mlp_channels(), n * model.mlp_inputs());
        let norm = |name, keep: bool| Normed {
            out: keep.then(|| act(name, n * c)),
            mean: (model.norm == NormKind::Layernorm).then(|| stat("normalization statistics", n)),
            rstd: stat("normalization statistics", n),
        };
        let normed_heads = n * heads.slices(false) * heads.head_size;
        let head_norm = || HeadNormed {
            out: keep_norm.then(|| act("queries and keys", normed_heads)),
            rstd: stat("normalization statistics", n * heads.of_queries_and_keys()),
        };
        let layer = || LayerActivations {
            ln_1: norm("ln_1", keep_norm),
            qkv: act("qkv", n * heads.qkv_channels()),
            head_norm: model.qk_norm.then(head_norm),
            att: act("attention", n * c),
            lse: stat("attention log-sum-exp", n * model.heads),
            residual_mid: act("residual", n * c),
            ln_2: norm("ln_2", keep_norm),
            fc: act("fc", pre),
            activated: keep_activated.then(|| act("gelu", activated)),
            residual_out: act("residual", n * c),
        };
        Activations {
            encoded: act("residual", n * c),
            layers: (0..model.layers).map(|_| layer()).collect(),
            ln_f: norm("ln_f", true),
            branch: act("branch", n * c),
            shared_norm: (!keep_norm).then(|| act("ln shared", n * c)),
            shared_activated: (!keep_activated).then(|| act("gelu shared", activated)),
            shared_heads: (model.qk_norm && !keep_norm).then(|| act("queries and keys", normed_heads)),
            rotary: (model.positions == PositionKind::Rotary)
                .then(|| stat("rotary table", rows.seq * model.head_size())),
            grads: backward.then(|| GradientBuffers {
                residual: act("gradient of residual", n * c),
                narrow: act("gradient of narrow", n * c),
                wide: act("gradient of wide", pre.max(n * heads.qkv_channels())),
                activated: (model.activation == ActivationKind::Swiglu)
                    .then(|| act("gradient of wide", activated)),
            }),
        }
    }

    /// Every buffer, in the order of allocation.
    pub fn specs(&self) -> Vec<BufferSpec> {
        let mut specs = Vec::new();
        let collected: std::result::Result<Activations<()>, std::convert::Infallible> =
            self.try_map(&mut |spec| {
                specs.push(spec.clone());
                Ok(())
            });
        let Ok(_) = collected;
        specs
    }

    /// Takes every buffer from the device.
    pub fn allocate<O: Ops>(&self, ops: &mut O) -> Result<Activations<O::Buf>> {
        self.try_map(&mut |spec| ops.alloc(spec.role, spec.len))
    }
}

impl<T> Activations<T> {
    fn try_map<U, E>(
        &self,
        make: &mut dyn FnMut(&T) -> std::result::Result<U, E>,
    ) -> std::result::Result<Activations<U>, E> {
        let normed = |n: &Normed<T>, make: &mut dyn FnMut(&T) -> std::result::Result<U, E>| {
            Ok(Normed {
                out: n.out.as_ref().map(&mut *make).transpose()?,
                mean: n.mean.as_ref().map(&mut *make).transpose()?,
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
                        ln_1: normed(&l.ln_1, make)?,
                        qkv: make(&l.qkv)?,
                        head_norm: match &l.head_norm {
                            Some(HeadNormed { out, rstd }) => Some(HeadNormed {
                                out: out.as_ref().map(&mut *make).transpose()?,
                                rstd: make(rstd)?,
                            }),
                            None => None,
                        },
                        att: make(&l.att)?,
                        lse: make(&l.lse)?,
                        residual_mid: make(&l.residual_mid)?,
                        ln_2: normed(&l.ln_2, make)?,
                        fc: make(&l.fc)?,
                        activated: l.activated.as_ref().map(&mut *make).transpose()?,
                        residual_out: make(&l.residual_out)?,
                    })
                })
                .collect::<std::result::Result<_, E>>()?,
            ln_f: normed(&self.ln_f, make)?,
            branch: make(&self.branch)?,
            shared_norm: self.shared_norm.as_ref().map(&mut *make).transpose()?,
            shared_activated: self.shared_activated.as_ref().map(&mut *make).transpose()?,
            shared_heads: self.shared_heads.as_ref().map(&mut *make).transpose()?,
            rotary: self.rotary.as_ref().map(&mut *make).transpose()?,
            grads: self
                .grads
                .as_ref()
                .map(|g| {
                    Ok(GradientBuffers {
                        residual: make(&g.residual)?,
                        narrow: make(&g.narrow)?,
                        wide: make(&g.wide)?,
                        activated: g.activated.as_ref().map(&mut *make).transpose()?,
                    })
                })
                .transpose()?,
        })
    }
}
