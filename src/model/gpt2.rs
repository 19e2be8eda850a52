//! The forward and backward passes, written once over [`Ops`].
//!
//! Pre-norm transformer (Radford et al. 2019): in GPT-2's form tied token table, learned positions, GELU in
//! its tanh form; what later models put in their places are keys of `[model]`. Shapes: `B` sequences, `T`
//! tokens, `N = B*T`, `C` channels, `F` channels of the MLP. Gradients of parameters are f32 and accumulate
//! over micro-batches; gradients of activations have the activations' type.
//!
//! Deliberately absent: dropout (GPT-2's pre-training here uses none), the optimizer, any notion of
//! what a step is.

use super::activations::{Activations, HeadNormed, LayerActivations, Normed, kept_or_shared};
use super::init::initial_values;
use super::weights::{Affine, Block, Group, HeadNorms, ParamSpec, Weights};
use crate::experiment::{ActivationKind, Model};
use crate::ops::{
    Attention, ClassifierLoss, CopyPart, DeviceError, Embedding, Heads, Layernorm, Linear, LinearActivate,
    LinearShape, LogitTerms, MlpShape, Nonlinearity, Ops, ParamCount, QkNorm, QkRotary, ReplayKey,
    ResidualLayernorm, Result, Role, Rotary, RotaryAt, Rows, ScratchShape, Vocab, Write, rotary_table,
    softcapped,
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
    /// Base and sum of each row's softmax (N, 2) f32: no operation reads them, audits do.
    pub denominators: O::Buf,
    /// The z-loss that its gradients take in (`optimizer.z_loss`); 0 at first.
    pub z_loss: f32,
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
        Gpt2::with_scratch(ops, config, &scratch_shape(config, capacity, backward), recompute)
    }

    /// The same with scratch for the operations of `shape`, which is a [`scratch_shape`] of `config`.
    pub fn with_scratch(ops: &mut O, config: &Model, shape: &ScratchShape, recompute: u8) -> Result<Gpt2<O>> {
        let ScratchShape { rows: capacity, backward, .. } = *shape;
        let specs = Weights::of(config);
        let params = specs.try_map(|spec| ops.alloc(Role::Param, spec.len))?;
        let mut acts = Activations::layout(config, capacity, recompute, backward).allocate(ops)?;
        if let Some(table) = &mut acts.rotary {
            let made = || rotary_table(capacity.seq, config.head_size(), config.rope_theta);
            ops.upload_made(table, made)?;
        }
        ops.alloc_scratch(shape)?;
        Ok(Gpt2 {
            config: config.clone(),
            params,
            acts,
            ids: ops.alloc_ids(capacity.count())?,
            targets: ops.alloc_ids(capacity.count())?,
            losses: ops.alloc(Role::F32, if backward { capacity.count() } else { 0 })?,
            denominators: ops.alloc(Role::F32, if backward { 2 * capacity.count() } else { 0 })?,
            specs,
            z_loss: 0.0,
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
            wte: self.params.classifier(),
            targets: &self.targets,
            rows: batch.rows.count(),
            channels: self.config.channels,
            vocab: vocab(&self.config),
            terms: logit_terms(&self.config, self.z_loss),
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
            weight: self.params.classifier(),
            bias: None,
            shape: LinearShape { rows: 1, c_in: c, c_out: padded },
        })?;
        let mut logits = vec![0.0; padded];
        ops.download(&out, &mut logits)?;
        logits.truncate(self.config.vocab);
        cap_logits(&self.config, &mut logits);
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
        let Rows { batch: sequences, seq } = batch.rows;
        let scale_bits = u64::from(scale.to_bits());
        // Every micro-step is the same work on the same buffers, but for where its losses go, in all steps
        // that have as many tokens, in pieces as long.
        let phase = [sequences as u64, seq as u64, scale_bits];
        let key = ReplayKey { of: ops.identity(&grads.wte), phase, variant: [write as u64, 0, 0] };
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

    /// From token ids to the final norm's output.
    fn trunk(&mut self, ops: &mut impl Ops<Buf = O::Buf, Ids = O::Ids>, rows: Rows) -> Result<()> {
        let Activations {
            encoded,
            layers,
            ln_f,
            branch,
            shared_norm,
            shared_activated,
            shared_heads,
            rotary,
            ..
        } = &mut self.acts;
        let p = &self.params;
        let angles = rotary.as_ref().map(|table| Angles { table, theta: self.config.rope_theta });
        ops.embedding(Embedding {
            out: encoded,
            ids: &self.ids,
            wte: &p.wte,
            wpe: p.wpe.as_ref(),
            rows,
            channels: self.config.channels,
        })?;
        let first = &mut layers[0].ln_1;
        norm(ops, first, shared_norm, encoded, &p.layers[0].ln_1, rows.count(), self.config.channels)?;
        for l in 0..layers.len() {
            let (before, from) = layers.split_at_mut(l);
            let (acts, after) = from.split_first_mut().expect("l is below the number of layers");
            // The block's end is fused with the norm that reads it: the next block's or the last.
            let (next, next_weights) = match after.first_mut() {
                Some(next) => (&mut next.ln_1, &p.layers[l + 1].ln_1),
                None => (&mut *ln_f, &p.ln_f),
            };
            let mut block = BlockForward {
                config: &self.config,
                acts,
                weights: &p.layers[l],
                branch: &mut *branch,
                shared_norm: &mut *shared_norm,
                rows,
            };
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);
            block.attention(ops, residual_in, shared_heads, angles)?;
            block.mlp(ops, shared_activated, next, next_weights)?;
        }
        Ok(())
    }
}

/// The forward pass of one block, of the residual stream x, with `f` the activation:
///
/// `x' = x + proj(attention(qkv(ln_1 x)))`
/// `y = x' + fc_proj(f(fc(ln_2 x')))`
///
/// A residual is added and the norm behind it made in one operation: `ln_1 x` is there already, and the block
/// ends with the norm that follows y.
struct BlockForward<'a, B> {
    config: &'a Model,
    acts: &'a mut LayerActivations<B>,
    weights: &'a Block<B>,
    /// A projection on its way into the residual stream (N, C).
    branch: &'a mut B,
    shared_norm: &'a mut Option<B>,
    rows: Rows,
}

impl<B: Send> BlockForward<'_, B> {
    fn shape(&self, c_in: usize, c_out: usize) -> LinearShape {
        LinearShape { rows: self.rows.count(), c_in, c_out }
    }

    /// Up to the norm before the MLP. `residual_in` is the residual stream before the block.
    fn attention<O: Ops<Buf = B>>(
        &mut self,
        ops: &mut O,
        residual_in: &B,
        shared_heads: &mut Option<B>,
        rotary: Option<Angles<'_, B>>,
    ) -> Result<()> {
        let (rows, c, heads) = (self.rows, self.config.channels, heads(self.config));
        let (qkv, proj) = (self.shape(c, heads.qkv_channels()), self.shape(c, c));
        let BlockForward { acts: a, weights: w, branch, shared_norm, .. } = self;
        ops.linear(Linear {
            out: &mut a.qkv,
            x: a.ln_1.output(shared_norm.as_ref()),
            weight: &w.qkv.weight,
            bias: w.qkv.bias.as_ref(),
            shape: qkv,
        })?;
        match &mut a.head_norm {
            Some(normed) => head_norm(ops, normed, shared_heads, &a.qkv, w, rotary, rows, heads)?,
            None => rotate(ops, &mut a.qkv, rotary, rows, heads, false)?,
        }
        let (qkv, values) = read_by_attention(&a.qkv, a.head_norm.as_ref(), shared_heads.as_ref());
        ops.attention(Attention { out: &mut a.att, lse: &mut a.lse, qkv, values, rows, heads })?;
        ops.linear(Linear {
            out: branch,
            x: &a.att,
            weight: &w.attn_proj.weight,
            bias: w.attn_proj.bias.as_ref(),
            shape: proj,
        })?;
        ops.residual_layernorm(ResidualLayernorm {
            residual: &mut a.residual_mid,
            out: kept_or_shared(&mut a.ln_2.out, shared_norm),
            mean: a.ln_2.mean.as_mut(),
            rstd: &mut a.ln_2.rstd,
            x: residual_in,
            branch,
            weight: &w.ln_2.weight,
            bias: w.ln_2.bias.as_ref(),
            rows: rows.count(),
            channels: c,
        })
    }

    /// Up to the norm behind the block, `next`.
    fn mlp<O: Ops<Buf = B>>(
        &mut self,
        ops: &mut O,
        shared_activated: &mut Option<B>,
        next: &mut Normed<B>,
        next_weights: &Affine<B>,
    ) -> Result<()> {
        let (n, c, f) = (self.rows.count(), self.config.channels, self.config.mlp_channels());
        let (up, down) = (self.shape(c, self.config.mlp_inputs()), self.shape(f, c));
        let BlockForward { config, acts: a, weights: w, branch, shared_norm, .. } = self;
        let activated = kept_or_shared(&mut a.activated, shared_activated);
        ops.linear_activate(LinearActivate {
            out: activated,
            pre: &mut a.fc,
            x: a.ln_2.output(shared_norm.as_ref()),
            weight: &w.fc.weight,
            bias: w.fc.bias.as_ref(),
            function: nonlinearity(config),
            shape: up,
        })?;
        ops.linear(Linear {
            out: branch,
            x: activated,
            weight: &w.fc_proj.weight,
            bias: w.fc_proj.bias.as_ref(),
            shape: down,
        })?;
        ops.residual_layernorm(ResidualLayernorm {
            residual: &mut a.residual_out,
            out: kept_or_shared(&mut next.out, shared_norm),
            mean: next.mean.as_mut(),
            rstd: &mut next.rstd,
            x: &a.residual_mid,
            branch,
            weight: &next_weights.weight,
            bias: next_weights.bias.as_ref(),
            rows: n,
            channels: c,
        })
    }
}

/// The norm of `x`, alone: that before the first block.
pub(super) fn norm<O: Ops>(
    ops: &mut O,
    norm: &mut Normed<O::Buf>,
    shared: &mut Option<O::Buf>,
    x: &O::Buf,
    weights: &Affine<O::Buf>,
    rows: usize,
    channels: usize,
) -> Result<()> {
    ops.layernorm(Layernorm {
        out: kept_or_shared(&mut norm.out, shared),
        mean: norm.mean.as_mut(),
        rstd: &mut norm.rstd,
        x,
        weight: &weights.weight,
        bias: weights.bias.as_ref(),
        rows,
        channels,
    })
}

/// Norm and rotation of queries and keys: what attention reads in place of those in `qkv`, which is left as
/// it is.
#[expect(clippy::too_many_arguments, reason = "the buffers of one operation, out of four structures")]
pub(super) fn head_norm<O: Ops>(
    ops: &mut O,
    normed: &mut HeadNormed<O::Buf>,
    shared: &mut Option<O::Buf>,
    qkv: &O::Buf,
    weights: &Block<O::Buf>,
    rotary: Option<Angles<'_, O::Buf>>,
    rows: Rows,
    heads: Heads,
) -> Result<()> {
    let HeadNorms { query: Some(q_weight), key: Some(k_weight) } = &weights.head_norms else {
        unreachable!("a model with QK-norm has weights for it")
    };
    let out = kept_or_shared(&mut normed.out, shared);
    let rstd = &mut normed.rstd;
    let rotary = rotary.map(|angles| angles.of_norm(rows));
    let rows = rows.count();
    ops.qk_norm(QkNorm { out, rstd, x: qkv, q_weight, k_weight, rows, heads, values: false, rotary })
}

/// Queries and keys, and where the values are if not beside them.
pub(super) fn read_by_attention<'a, B>(
    qkv: &'a B,
    normed: Option<&'a HeadNormed<B>>,
    shared: Option<&'a B>,
) -> (&'a B, Option<&'a B>) {
    match normed {
        Some(normed) => (normed.output(shared), Some(qkv)),
        None => (qkv, None),
    }
}

/// The table of rotary positions, and the base that it was made with.
pub(super) struct Angles<'a, B> {
    pub table: &'a B,
    pub theta: f64,
}

impl<B> Clone for Angles<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Angles<'_, B> {}

impl<'a, B> Angles<'a, B> {
    /// For norms of queries and keys of whole sequences.
    pub fn of_norm<I>(self, rows: Rows) -> QkRotary<'a, B, I> {
        QkRotary { table: self.table, theta: self.theta, at: RotaryAt::Sequences(rows) }
    }
}

/// Turns queries and keys by their positions, or back, where positions are rotary. With QK-norm, the norm and
/// its gradient do.
pub(super) fn rotate<O: Ops>(
    ops: &mut O,
    qkv: &mut O::Buf,
    angles: Option<Angles<'_, O::Buf>>,
    rows: Rows,
    heads: Heads,
    inverse: bool,
) -> Result<()> {
    let Some(Angles { table, theta }) = angles else { return Ok(()) };
    ops.rotary(Rotary { qkv, table, theta, at: RotaryAt::Sequences(rows), heads, inverse })
}

pub(super) fn nonlinearity(model: &Model) -> Nonlinearity {
    match model.activation {
        ActivationKind::Gelu => Nonlinearity::Gelu,
        ActivationKind::Relu2 => Nonlinearity::SquaredRelu,
        ActivationKind::Swiglu => Nonlinearity::Swiglu,
    }
}

pub(super) fn heads(model: &Model) -> Heads {
    Heads { heads: model.heads, kv_heads: model.kv_heads(), head_size: model.head_size() }
}

/// What the classifier does beside softmax and cross-entropy.
pub(super) fn logit_terms(model: &Model, z_loss: f32) -> LogitTerms {
    let cap = model.logit_softcap as f32;
    LogitTerms { softcap: (cap > 0.0).then_some(cap), z_loss }
}

/// Logits on the host as the classifier counts them.
pub(super) fn cap_logits(model: &Model, logits: &mut [f32]) {
    if let Some(cap) = logit_terms(model, 0.0).softcap {
        softcapped(logits, cap);
    }
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
        least_seq: capacity.seq,
        channels: model.channels,
        heads: heads(model),
        vocab: vocab(model),
        backward,
        bias: model.bias,
        mlp: MlpShape { function: nonlinearity(model), channels: model.mlp_channels() },
        params,
    }
}
