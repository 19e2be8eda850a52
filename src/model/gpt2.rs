//! The GPT-2 forward and backward passes, written once over [`Ops`].
//!
//! Pre-norm transformer (Radford et al. 2019): tied token table, learned positions, GELU in its tanh
//! form. Shapes: `B` sequences, `T` tokens, `N = B*T`, `C` channels. Gradients of parameters are f32
//! and accumulate over micro-batches; gradients of activations have the activations' type.
//!
//! Deliberately absent: dropout (GPT-2's pre-training here uses none), the optimizer, any notion of
//! what a step is.

use super::activations::{Activations, GradientBuffers, Normed};
use super::init::initial_values;
use super::weights::{Group, ParamSpec, Weights};
use crate::experiment::Model;
use crate::ops::{DeviceError, Heads, Ops, ParamCount, Result, Role, Rows, ScratchShape, Vocab, Write};

/// A model on a device: its parameters, and room for one micro-batch.
pub struct Gpt2<O: Ops> {
    pub config: Model,
    pub specs: Weights<ParamSpec>,
    pub params: Weights<O::Buf>,
    acts: Activations<O::Buf>,
    ids: O::Ids,
    targets: O::Ids,
    /// Token losses of the micro-batch in training (N) f32.
    losses: O::Buf,
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
        let (n, c) = (batch.rows.count(), self.config.channels);
        let x = output(&self.acts.ln_f, None);
        ops.classifier_loss(
            losses,
            batch.losses_at,
            x,
            &self.params.wte,
            &self.targets,
            n,
            c,
            vocab(&self.config),
        )
    }

    /// Logits (the first `vocab` of them) of the token after `tokens`, with the operations of training and
    /// without anything kept: what [`super::Decoder`] is held against. Writing texts is its business.
    pub fn next_token_logits(&mut self, ops: &mut O, tokens: &[u16]) -> Result<Vec<f32>> {
        let (t, c, padded) = (tokens.len(), self.config.channels, self.config.vocab_padded);
        ops.upload_ids(&mut self.ids, tokens)?;
        self.trunk(ops, Rows { batch: 1, seq: t })?;
        let (mut last, mut out) = (ops.alloc(Role::Activation, c)?, ops.alloc(Role::Activation, padded)?);
        ops.copy(&mut last, 0, output(&self.acts.ln_f, None), (t - 1) * c, c)?;
        ops.linear(&mut out, &last, &self.params.wte, None, 1, c, padded)?;
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
        ops.copy(losses, batch.losses_at, &self.losses, 0, n)
    }

    /// The same for gradients that the side lane is still reading when this is called, or that go on from
    /// here: the backward pass waits for the lane, and gives each group to `whole` when this micro-batch has
    /// written the last of it, while the groups before it are still to come.
    pub fn forward_backward_by_groups<E: From<DeviceError>>(
        &mut self,
        ops: &mut O,
        batch: &MicroBatch<'_>,
        losses: &mut O::Buf,
        grads: &mut Weights<O::Buf>,
        scale: f32,
        write: Write,
        whole: impl FnMut(&mut O, Group, &mut Weights<O::Buf>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.upload(ops, batch)?;
        self.trunk(ops, batch.rows)?;
        ops.join_lanes()?;
        self.backward(ops, batch.rows, grads, scale, write, whole)?;
        Ok(ops.copy(losses, batch.losses_at, &self.losses, 0, batch.rows.count())?)
    }

    fn upload(&mut self, ops: &mut O, batch: &MicroBatch<'_>) -> Result<()> {
        ops.upload_ids(&mut self.ids, batch.inputs)?;
        ops.upload_ids(&mut self.targets, batch.targets)
    }

    /// From token ids to the final layernorm's output.
    fn trunk(&mut self, ops: &mut O, rows: Rows) -> Result<()> {
        let (n, c) = (rows.count(), self.config.channels);
        let heads = heads(&self.config);
        let Activations { encoded, layers, ln_f, branch, shared_norm, shared_gelu, .. } = &mut self.acts;
        let p = &self.params;

        ops.embedding(encoded, &self.ids, &p.wte, &p.wpe, rows, c)?;
        {
            let first = &mut layers[0].ln_1;
            let out = output_mut(&mut first.out, shared_norm);
            ops.layernorm(
                out,
                &mut first.mean,
                &mut first.rstd,
                encoded,
                &p.layers[0].ln_1.weight,
                &p.layers[0].ln_1.bias,
                n,
                c,
            )?;
        }
        for l in 0..layers.len() {
            let w = &p.layers[l];
            let (before, from) = layers.split_at_mut(l);
            let (a, after) = from.split_first_mut().expect("l is below the number of layers");
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);

            ops.linear(
                &mut a.qkv,
                output(&a.ln_1, shared_norm.as_ref()),
                &w.qkv.weight,
                Some(&w.qkv.bias),
                n,
                c,
                3 * c,
            )?;
            ops.attention(&mut a.att, &mut a.lse, &a.qkv, rows, heads)?;
            ops.linear(branch, &a.att, &w.attn_proj.weight, Some(&w.attn_proj.bias), n, c, c)?;

            let ln_2 = &mut a.ln_2;
            let out = output_mut(&mut ln_2.out, shared_norm);
            let (weight, bias) = (&w.ln_2.weight, &w.ln_2.bias);
            ops.residual_layernorm(
                &mut a.residual_mid,
                out,
                &mut ln_2.mean,
                &mut ln_2.rstd,
                residual_in,
                branch,
                weight,
                bias,
                n,
                c,
            )?;

            let gelu = output_mut(&mut a.fc_gelu, shared_gelu);
            let normed = output(&a.ln_2, shared_norm.as_ref());
            ops.linear_gelu(gelu, &mut a.fc, normed, &w.fc.weight, &w.fc.bias, n, c, 4 * c)?;
            ops.linear(branch, gelu, &w.fc_proj.weight, Some(&w.fc_proj.bias), n, 4 * c, c)?;

            // The block's end is fused with the layernorm that reads it: the next block's or the last.
            let (next, weights) = match after.first_mut() {
                Some(next) => (&mut next.ln_1, &p.layers[l + 1].ln_1),
                None => (&mut *ln_f, &p.ln_f),
            };
            let out = output_mut(&mut next.out, shared_norm);
            ops.residual_layernorm(
                &mut a.residual_out,
                out,
                &mut next.mean,
                &mut next.rstd,
                &a.residual_mid,
                branch,
                &weights.weight,
                &weights.bias,
                n,
                c,
            )?;
        }
        Ok(())
    }

    /// From the final layernorm's output to the gradients, each group given to `whole` as soon as it is;
    /// losses into `self.losses`.
    fn backward<E: From<DeviceError>>(
        &mut self,
        ops: &mut O,
        rows: Rows,
        grads: &mut Weights<O::Buf>,
        scale: f32,
        write: Write,
        mut whole: impl FnMut(&mut O, Group, &mut Weights<O::Buf>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let (n, c) = (rows.count(), self.config.channels);
        let heads = heads(&self.config);
        let vocab = vocab(&self.config);
        let Activations { encoded, layers, ln_f, shared_norm, shared_gelu, grads: buffers, .. } =
            &mut self.acts;
        let p = &self.params;
        let GradientBuffers { residual: dres, narrow, wide } =
            buffers.as_mut().expect("a model built for training has gradient buffers");

        let normed = output(ln_f, None);
        let losses = &mut self.losses;
        ops.classifier(
            losses,
            0,
            narrow,
            &mut grads.wte,
            normed,
            &p.wte,
            &self.targets,
            n,
            c,
            vocab,
            scale,
            write,
        )?;
        let x = layers.last().map_or(&*encoded, |l| &l.residual_out);
        let (dw, db) = (&mut grads.ln_f.weight, &mut grads.ln_f.bias);
        ops.layernorm_backward(
            dres,
            Write::Set,
            dw,
            db,
            write,
            narrow,
            x,
            &p.ln_f.weight,
            &ln_f.mean,
            &ln_f.rstd,
            n,
            c,
        )?;
        whole(ops, Group::FinalNorm, grads)?;

        for l in (0..layers.len()).rev() {
            let (w, g) = (&p.layers[l], grads.block_mut(l));
            let (before, from) = layers.split_at_mut(l);
            let a = &mut from[0];
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);

            // The MLP. `wide` becomes the gradient of `fc`.
            if let Some(gelu) = shared_gelu.as_mut() {
                ops.gelu(gelu, &a.fc, n * 4 * c)?;
            }
            let gelu = a.fc_gelu.as_ref().or(shared_gelu.as_ref()).expect("GELU's output is kept or shared");
            ops.linear_backward_weight(
                &mut g.fc_proj.weight,
                Some(&mut g.fc_proj.bias),
                dres,
                gelu,
                n,
                4 * c,
                c,
                write,
            )?;
            ops.linear_backward_input_gelu(wide, dres, &w.fc_proj.weight, &a.fc, n, 4 * c, c)?;
            recompute_norm(ops, &mut a.ln_2, shared_norm, &a.residual_mid, &w.ln_2, n, c)?;
            let normed = output(&a.ln_2, shared_norm.as_ref());
            ops.linear_backward_weight(
                &mut g.fc.weight,
                Some(&mut g.fc.bias),
                wide,
                normed,
                n,
                c,
                4 * c,
                write,
            )?;
            ops.linear_backward_input(narrow, wide, &w.fc.weight, n, c, 4 * c)?;
            let (dw, db) = (&mut g.ln_2.weight, &mut g.ln_2.bias);
            let (mean, rstd) = (&a.ln_2.mean, &a.ln_2.rstd);
            ops.layernorm_backward(
                dres,
                Write::Add,
                dw,
                db,
                write,
                narrow,
                &a.residual_mid,
                &w.ln_2.weight,
                mean,
                rstd,
                n,
                c,
            )?;

            // The attention. `wide` becomes the gradient of `qkv`.
            ops.linear_backward_weight(
                &mut g.attn_proj.weight,
                Some(&mut g.attn_proj.bias),
                dres,
                &a.att,
                n,
                c,
                c,
                write,
            )?;
            ops.linear_backward_input(narrow, dres, &w.attn_proj.weight, n, c, c)?;
            ops.attention_backward(wide, narrow, &a.qkv, &a.att, &a.lse, rows, heads)?;
            recompute_norm(ops, &mut a.ln_1, shared_norm, residual_in, &w.ln_1, n, c)?;
            let normed = output(&a.ln_1, shared_norm.as_ref());
            ops.linear_backward_weight(
                &mut g.qkv.weight,
                Some(&mut g.qkv.bias),
                wide,
                normed,
                n,
                c,
                3 * c,
                write,
            )?;
            ops.linear_backward_input(narrow, wide, &w.qkv.weight, n, c, 3 * c)?;
            let (dw, db) = (&mut g.ln_1.weight, &mut g.ln_1.bias);
            let (mean, rstd) = (&a.ln_1.mean, &a.ln_1.rstd);
            ops.layernorm_backward(
                dres,
                Write::Add,
                dw,
                db,
                write,
                narrow,
                residual_in,
                &w.ln_1.weight,
                mean,
                rstd,
                n,
                c,
            )?;
            whole(ops, Group::Block(l), grads)?;
        }
        ops.embedding_backward(&mut grads.wte, &mut grads.wpe, write, dres, &self.ids, rows, c)?;
        whole(ops, Group::Tables, grads)
    }
}

/// Computes a layernorm's output again when it was not kept: the same operation on the same bits.
fn recompute_norm<O: Ops>(
    ops: &mut O,
    norm: &mut Normed<O::Buf>,
    shared: &mut Option<O::Buf>,
    x: &O::Buf,
    weights: &super::weights::Affine<O::Buf>,
    n: usize,
    c: usize,
) -> Result<()> {
    match (&norm.out, shared) {
        (None, Some(out)) => {
            ops.layernorm(out, &mut norm.mean, &mut norm.rstd, x, &weights.weight, &weights.bias, n, c)
        }
        _ => Ok(()),
    }
}

fn output<'a, B>(norm: &'a Normed<B>, shared: Option<&'a B>) -> &'a B {
    norm.out.as_ref().or(shared).expect("an output that is not kept is shared")
}

fn output_mut<'a, B>(kept: &'a mut Option<B>, shared: &'a mut Option<B>) -> &'a mut B {
    kept.as_mut().or(shared.as_mut()).expect("an output that is not kept is shared")
}

pub(super) fn heads(model: &Model) -> Heads {
    Heads { heads: model.heads, head_size: model.channels / model.heads }
}

fn vocab(model: &Model) -> Vocab {
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
