//! The GPT-2 forward and backward passes, written once over [`Ops`].
//!
//! Pre-norm transformer (Radford et al. 2019): tied token table, learned positions, GELU in its tanh
//! form. Shapes: `B` sequences, `T` tokens, `N = B*T`, `C` channels. Gradients of parameters are f32
//! and accumulate over micro-batches; gradients of activations have the activations' type.
//!
//! Deliberately absent: dropout (GPT-2's pre-training here uses none), the optimizer, any notion of
//! what a step is.

use super::activations::{Activations, Normed, kept_or_shared};
use super::init::initial_values;
use super::weights::{Affine, Group, ParamSpec, Weights};
use crate::experiment::Model;
use crate::ops::{
    Attention, ClassifierLoss, CopyPart, DeviceError, Embedding, Heads, Layernorm, Linear, LinearGelu,
    LinearShape, LogitTerms, Ops, ParamCount, ResidualLayernorm, Result, Role, Rows, ScratchShape, Vocab,
    Write,
};

/// A model on a device: its parameters, and room for one micro-batch.
pub struct Gpt2<O: Ops> {
    pub config: Model,
    pub specs: Weights<ParamSpec>,
    pub params: Weights<O::Buf>,
    pub(super) acts: Activations<O::Buf>,
    pub(super) ids: O::Ids,
    pub(super) targets: O::Ids,
    /// Token losses of the micro-batch in training (N) f32.
    pub(super) losses: O::Buf,
    /// The logarithms of its logits' sums of exponentials (N) f32: no operation reads them, audits do.
    pub log_sums: O::Buf,
    capacity: Rows,
}

/// How one micro-batch enters the step.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// B*T token ids and the tokens that follow each of them.
    pub inputs: &'a [u16],
    pub targets: &'a [u16],
    pub rows: Rows,
    /// Where in the losses buffer this micro-batch's B*T losses go.
    pub losses_at: usize,
}

impl<O: Ops> Gpt2<O> {
    /// A model with the initial weights of `seed`, able to run micro-batches up to `capacity`.
    pub fn new(
        ops: &mut O,
        config: &Model,
        capacity: Rows,
        recompute: u8,
        backward: bool,
        seed: u64,
    ) -> Result<Gpt2<O>> {
        let mut model = Gpt2::zeroed(ops, config, capacity, recompute, backward)?;
        for (spec, buf) in model.specs.iter().zip(model.params.iter_mut()) {
            ops.upload(buf, &initial_values(spec, seed))?;
        }
        Ok(model)
    }

    /// A model whose weights are all zero, for weights that come from elsewhere.
    pub fn zeroed(
        ops: &mut O,
        config: &Model,
        capacity: Rows,
        recompute: u8,
        backward: bool,
    ) -> Result<Gpt2<O>> {
        let specs = Weights::of(config);
        let params = specs.try_map(|spec| ops.alloc(Role::Param, spec.len))?;
        let acts = Activations::layout(config, capacity, recompute, backward).allocate(ops)?;
        ops.alloc_scratch(&scratch_shape(config, capacity, backward))?;
        Ok(Gpt2 {
            config: config.clone(),
            params,
            acts,
            ids: ops.alloc_ids(capacity.count())?,
            targets: ops.alloc_ids(capacity.count())?,
            losses: ops.alloc(Role::F32, if backward { capacity.count() } else { 0 })?,
            log_sums: ops.alloc(Role::F32, if backward { capacity.count() } else { 0 })?,
            specs,
            capacity,
        })
    }

    /// The largest micro-batch this model has room for.
    pub fn capacity(&self) -> Rows {
        self.capacity
    }

    /// Losses of every token of a micro-batch, written to `losses[losses_at..]`.
    pub fn forward(&mut self, ops: &mut O, batch: &MicroBatch<'_>, losses: &mut O::Buf) -> Result<()> {
        self.upload(ops, batch)?;
        self.trunk(ops, batch.rows)?;
        ops.classifier_loss(ClassifierLoss {
            losses,
            losses_at: batch.losses_at,
            x: self.acts.ln_f.output(None),
            wte: &self.params.wte,
            targets: &self.targets,
            rows: batch.rows.count(),
            channels: self.config.channels,
            vocab: vocab(&self.config),
            terms: LogitTerms::default(),
        })
    }

    /// Logits (the first `vocab` of them) of the token after `tokens`, with the operations of training and
    /// without a cache: tests compare [`super::Decoder`] with it, which writes texts.
    pub fn next_token_logits(&mut self, ops: &mut O, tokens: &[u16]) -> Result<Vec<f32>> {
        let (t, c, padded) = (tokens.len(), self.config.channels, self.config.vocab_padded);
        ops.upload_ids(&mut self.ids, tokens)?;
        self.trunk(ops, Rows { batch: 1, seq: t })?;
        let (mut last, mut out) = (ops.alloc(Role::Activation, c)?, ops.alloc(Role::Activation, padded)?);
        let normed = self.acts.ln_f.output(None);
        ops.copy(CopyPart { dst: &mut last, at: 0, src: normed, from: (t - 1) * c, len: c })?;
        ops.linear(Linear {
            out: &mut out,
            x: &last,
            weight: &self.params.wte,
            bias: None,
            shape: LinearShape { rows: 1, c_in: c, c_out: padded },
        })?;
        let mut logits = vec![0.0; padded];
        ops.download(&out, &mut logits)?;
        logits.truncate(self.config.vocab);
        Ok(logits)
    }

    /// Forward and backward: losses as [`Gpt2::forward`], and the gradient of `scale` times the sum
    /// of the losses set into or added to `grads`.
    pub fn forward_backward(
        &mut self,
        ops: &mut O,
        batch: &MicroBatch<'_>,
        losses: &mut O::Buf,
        grads: &mut Weights<O::Buf>,
        scale: f32,
        write: Write,
    ) -> Result<()> {
        self.upload(ops, batch)?;
        let n = batch.rows.count();
        // Every micro-step of a run is the same work on the same buffers, but for where its losses go.
        let key = [ops.identity(&grads.wte), n as u64, u64::from(scale.to_bits()), write as u64];
        if !ops.replay(key)? {
            self.trunk(ops, batch.rows)?;
            self.backward(ops, batch.rows, grads, scale, write, |_, _, _| Ok::<(), DeviceError>(()))?;
            ops.recorded(key)?;
        }
        self.give_losses(ops, batch, losses)
    }

    /// The same for gradients that the side lane is still reading when this is called, or that go on from
    /// here: the backward pass waits for the lane, and gives each group to `whole` when this micro-batch has
    /// written the last of it, while the groups before it are still to come. `ops` may be a device
    /// that watches the model's own.
    #[expect(
        clippy::too_many_arguments,
        reason = "those of `forward_backward`, in its order, and a function"
    )]
    pub fn forward_backward_by_groups<P: Ops<Buf = O::Buf, Ids = O::Ids>, E: From<DeviceError>>(
        &mut self,
        ops: &mut P,
        batch: &MicroBatch<'_>,
        losses: &mut O::Buf,
        grads: &mut Weights<O::Buf>,
        scale: f32,
        write: Write,
        whole: impl FnMut(&mut P, Group, &mut Weights<O::Buf>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.upload(ops, batch)?;
        self.trunk(ops, batch.rows)?;
        ops.join_lanes()?;
        self.backward(ops, batch.rows, grads, scale, write, whole)?;
        Ok(self.give_losses(ops, batch, losses)?)
    }

    /// Copies the micro-batch's losses to their place among those of the step.
    fn give_losses(
        &self,
        ops: &mut impl Ops<Buf = O::Buf>,
        batch: &MicroBatch<'_>,
        losses: &mut O::Buf,
    ) -> Result<()> {
        let (src, len) = (&self.losses, batch.rows.count());
        ops.copy(CopyPart { dst: losses, at: batch.losses_at, src, from: 0, len })
    }

    fn upload(&mut self, ops: &mut impl Ops<Ids = O::Ids>, batch: &MicroBatch<'_>) -> Result<()> {
        ops.upload_ids(&mut self.ids, batch.inputs)?;
        ops.upload_ids(&mut self.targets, batch.targets)
    }

    /// From token ids to the final layernorm's output.
    fn trunk(&mut self, ops: &mut impl Ops<Buf = O::Buf, Ids = O::Ids>, rows: Rows) -> Result<()> {
        let (n, c) = (rows.count(), self.config.channels);
        let heads = heads(&self.config);
        let shape = |c_in, c_out| LinearShape { rows: n, c_in, c_out };
        let Activations { encoded, layers, ln_f, branch, shared_norm, shared_gelu, .. } = &mut self.acts;
        let p = &self.params;

        ops.embedding(Embedding {
            out: encoded,
            ids: &self.ids,
            wte: &p.wte,
            wpe: &p.wpe,
            rows,
            channels: c,
        })?;
        {
            let Normed { out, mean, rstd } = &mut layers[0].ln_1;
            let Affine { weight, bias } = &p.layers[0].ln_1;
            let out = kept_or_shared(out, shared_norm);
            ops.layernorm(Layernorm { out, mean, rstd, x: encoded, weight, bias, rows: n, channels: c })?;
        }
        for l in 0..layers.len() {
            let w = &p.layers[l];
            let (before, from) = layers.split_at_mut(l);
            let (a, after) = from.split_first_mut().expect("l is below the number of layers");
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);

            ops.linear(Linear {
                out: &mut a.qkv,
                x: a.ln_1.output(shared_norm.as_ref()),
                weight: &w.qkv.weight,
                bias: Some(&w.qkv.bias),
                shape: shape(c, 3 * c),
            })?;
            ops.attention(Attention { out: &mut a.att, lse: &mut a.lse, qkv: &a.qkv, rows, heads })?;
            ops.linear(Linear {
                out: branch,
                x: &a.att,
                weight: &w.attn_proj.weight,
                bias: Some(&w.attn_proj.bias),
                shape: shape(c, c),
            })?;
            ops.residual_layernorm(ResidualLayernorm {
                residual: &mut a.residual_mid,
                out: kept_or_shared(&mut a.ln_2.out, shared_norm),
                mean: &mut a.ln_2.mean,
                rstd: &mut a.ln_2.rstd,
                x: residual_in,
                branch,
                weight: &w.ln_2.weight,
                bias: &w.ln_2.bias,
                rows: n,
                channels: c,
            })?;

            let gelu = kept_or_shared(&mut a.fc_gelu, shared_gelu);
            ops.linear_gelu(LinearGelu {
                out: gelu,
                pre: &mut a.fc,
                x: a.ln_2.output(shared_norm.as_ref()),
                weight: &w.fc.weight,
                bias: &w.fc.bias,
                shape: shape(c, 4 * c),
            })?;
            ops.linear(Linear {
                out: branch,
                x: gelu,
                weight: &w.fc_proj.weight,
                bias: Some(&w.fc_proj.bias),
                shape: shape(4 * c, c),
            })?;

            // The block's end is fused with the layernorm that reads it: the next block's or the last.
            let (next, Affine { weight, bias }) = match after.first_mut() {
                Some(next) => (&mut next.ln_1, &p.layers[l + 1].ln_1),
                None => (&mut *ln_f, &p.ln_f),
            };
            ops.residual_layernorm(ResidualLayernorm {
                residual: &mut a.residual_out,
                out: kept_or_shared(&mut next.out, shared_norm),
                mean: &mut next.mean,
                rstd: &mut next.rstd,
                x: &a.residual_mid,
                branch,
                weight,
                bias,
                rows: n,
                channels: c,
            })?;
        }
        Ok(())
    }
}

pub(super) fn heads(model: &Model) -> Heads {
    Heads { heads: model.heads, head_size: model.channels / model.heads }
}

pub(super) fn vocab(model: &Model) -> Vocab {
    Vocab { used: model.vocab, padded: model.vocab_padded }
}

/// The largest shapes the model's operations will see.
pub fn scratch_shape(model: &Model, capacity: Rows, backward: bool) -> ScratchShape {
    let specs = Weights::of(model);
    let params = ParamCount { tensors: specs.iter().count() as u64, elements: specs.parameters() };
    ScratchShape {
        rows: capacity,
        channels: model.channels,
        heads: heads(model),
        vocab: vocab(model),
        backward,
        params,
    }
}
