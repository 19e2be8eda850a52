//! The GPT-2 forward and backward passes, written once over [`Ops`].
//!
//! Pre-norm transformer (Radford et al. 2019): tied token table, learned positions, GELU in its tanh
//! form. Shapes: `B` sequences, `T` tokens, `N = B*T`, `C` channels. Gradients of parameters are f32
//! and accumulate over micro-batches; gradients of activations have the activations' type.
//!
//! Deliberately absent: dropout (GPT-2's pre-training here uses none), the optimizer, any notion of
//! what a step is.

use super::activations::{Activations, GradientBuffers, LayerActivations, Normed};
use super::init::initial_values;
use super::weights::{Affine, Group, Layer, ParamSpec, Weights};
use crate::experiment::Model;
use crate::ops::{
    Attention, AttentionBackward, Classifier, ClassifierLoss, CopyPart, DeviceError, Embedding,
    EmbeddingBackward, Gelu, Heads, Layernorm, LayernormBackward, Linear, LinearBackwardInput,
    LinearBackwardInputGelu, LinearBackwardWeight, LinearGelu, LinearShape, Ops, ParamCount,
    ResidualLayernorm, Result, Role, Rows, ScratchShape, Vocab, Write,
};

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
        ops.classifier_loss(ClassifierLoss {
            losses,
            losses_at: batch.losses_at,
            x: output(&self.acts.ln_f, None),
            wte: &self.params.wte,
            targets: &self.targets,
            rows: batch.rows.count(),
            channels: self.config.channels,
            vocab: vocab(&self.config),
        })
    }

    /// Logits (the first `vocab` of them) of the token after `tokens`, with the operations of training and
    /// without anything kept: what [`super::Decoder`] is held against. Writing texts is its business.
    pub fn next_token_logits(&mut self, ops: &mut O, tokens: &[u16]) -> Result<Vec<f32>> {
        let (t, c, padded) = (tokens.len(), self.config.channels, self.config.vocab_padded);
        ops.upload_ids(&mut self.ids, tokens)?;
        self.trunk(ops, Rows { batch: 1, seq: t })?;
        let (mut last, mut out) = (ops.alloc(Role::Activation, c)?, ops.alloc(Role::Activation, padded)?);
        let normed = output(&self.acts.ln_f, None);
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
        Ok(self.give_losses(ops, batch, losses)?)
    }

    /// Copies the micro-batch's losses to their place among those of the step.
    fn give_losses(&self, ops: &mut O, batch: &MicroBatch<'_>, losses: &mut O::Buf) -> Result<()> {
        let (src, len) = (&self.losses, batch.rows.count());
        ops.copy(CopyPart { dst: losses, at: batch.losses_at, src, from: 0, len })
    }

    fn upload(&mut self, ops: &mut O, batch: &MicroBatch<'_>) -> Result<()> {
        ops.upload_ids(&mut self.ids, batch.inputs)?;
        ops.upload_ids(&mut self.targets, batch.targets)
    }

    /// From token ids to the final layernorm's output.
    fn trunk(&mut self, ops: &mut O, rows: Rows) -> Result<()> {
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
            let out = output_mut(out, shared_norm);
            ops.layernorm(Layernorm { out, mean, rstd, x: encoded, weight, bias, rows: n, channels: c })?;
        }
        for l in 0..layers.len() {
            let w = &p.layers[l];
            let (before, from) = layers.split_at_mut(l);
            let (a, after) = from.split_first_mut().expect("l is below the number of layers");
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);

            ops.linear(Linear {
                out: &mut a.qkv,
                x: output(&a.ln_1, shared_norm.as_ref()),
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
                out: output_mut(&mut a.ln_2.out, shared_norm),
                mean: &mut a.ln_2.mean,
                rstd: &mut a.ln_2.rstd,
                x: residual_in,
                branch,
                weight: &w.ln_2.weight,
                bias: &w.ln_2.bias,
                rows: n,
                channels: c,
            })?;

            let gelu = output_mut(&mut a.fc_gelu, shared_gelu);
            ops.linear_gelu(LinearGelu {
                out: gelu,
                pre: &mut a.fc,
                x: output(&a.ln_2, shared_norm.as_ref()),
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
                out: output_mut(&mut next.out, shared_norm),
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
        let Activations { encoded, layers, ln_f, shared_norm, shared_gelu, grads: buffers, .. } =
            &mut self.acts;
        let p = &self.params;
        let GradientBuffers { residual: dres, narrow, wide } =
            buffers.as_mut().expect("a model built for training has gradient buffers");

        ops.classifier(Classifier {
            losses: &mut self.losses,
            losses_at: 0,
            dx: narrow,
            dwte: &mut grads.wte,
            x: output(ln_f, None),
            wte: &p.wte,
            targets: &self.targets,
            rows: n,
            channels: c,
            vocab: vocab(&self.config),
            scale,
            write,
        })?;
        ops.layernorm_backward(LayernormBackward {
            dx: dres,
            dx_write: Write::Set,
            dweight: &mut grads.ln_f.weight,
            dbias: &mut grads.ln_f.bias,
            write,
            dout: narrow,
            x: layers.last().map_or(&*encoded, |l| &l.residual_out),
            weight: &p.ln_f.weight,
            mean: &ln_f.mean,
            rstd: &ln_f.rstd,
            rows: n,
            channels: c,
        })?;
        whole(ops, Group::FinalNorm, grads)?;

        for l in (0..layers.len()).rev() {
            let (before, from) = layers.split_at_mut(l);
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);
            let mut block = BlockBackward {
                acts: &mut from[0],
                weights: &p.layers[l],
                grads: grads.block_mut(l),
                dres: &mut *dres,
                narrow: &mut *narrow,
                wide: &mut *wide,
                shared_norm: &mut *shared_norm,
                rows,
                channels: c,
                write,
            };
            block.mlp(ops, shared_gelu)?;
            block.attention(ops, residual_in, heads(&self.config))?;
            whole(ops, Group::Block(l), grads)?;
        }
        ops.embedding_backward(EmbeddingBackward {
            dwte: &mut grads.wte,
            dwpe: &mut grads.wpe,
            write,
            dout: dres,
            ids: &self.ids,
            rows,
            channels: c,
        })?;
        whole(ops, Group::Tables, grads)
    }
}

/// The backward pass of one block, from the gradient of its output to that of its input, both in `dres`.
struct BlockBackward<'a, B> {
    acts: &'a mut LayerActivations<B>,
    weights: &'a Layer<B>,
    grads: &'a mut Layer<B>,
    /// Gradient of the residual stream (N, C).
    dres: &'a mut B,
    /// Gradient of what is (N, C) within the block.
    narrow: &'a mut B,
    /// Gradient of what is wider: of `fc` (N, 4C), then of `qkv` (N, 3C).
    wide: &'a mut B,
    shared_norm: &'a mut Option<B>,
    rows: Rows,
    channels: usize,
    write: Write,
}

impl<B: Send> BlockBackward<'_, B> {
    fn shape(&self, c_in: usize, c_out: usize) -> LinearShape {
        LinearShape { rows: self.rows.count(), c_in, c_out }
    }

    fn mlp<O: Ops<Buf = B>>(&mut self, ops: &mut O, shared_gelu: &mut Option<B>) -> Result<()> {
        let (n, c, write) = (self.rows.count(), self.channels, self.write);
        let (up, down) = (self.shape(c, 4 * c), self.shape(4 * c, c));
        let BlockBackward { acts: a, weights: w, grads: g, dres, narrow, wide, shared_norm, .. } = self;
        if let Some(out) = shared_gelu.as_mut() {
            ops.gelu(Gelu { out, pre: &a.fc, len: n * 4 * c })?;
        }
        let gelu = a.fc_gelu.as_ref().or(shared_gelu.as_ref()).expect("GELU's output is kept or shared");
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut g.fc_proj.weight,
            dbias: Some(&mut g.fc_proj.bias),
            dout: dres,
            x: gelu,
            shape: down,
            write,
        })?;
        ops.linear_backward_input_gelu(LinearBackwardInputGelu {
            dpre: wide,
            dout: dres,
            weight: &w.fc_proj.weight,
            pre: &a.fc,
            shape: down,
        })?;
        recompute_norm(ops, &mut a.ln_2, shared_norm, &a.residual_mid, &w.ln_2, n, c)?;
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut g.fc.weight,
            dbias: Some(&mut g.fc.bias),
            dout: wide,
            x: output(&a.ln_2, shared_norm.as_ref()),
            shape: up,
            write,
        })?;
        ops.linear_backward_input(LinearBackwardInput {
            dx: narrow,
            dout: wide,
            weight: &w.fc.weight,
            shape: up,
        })?;
        ops.layernorm_backward(LayernormBackward {
            dx: dres,
            dx_write: Write::Add,
            dweight: &mut g.ln_2.weight,
            dbias: &mut g.ln_2.bias,
            write,
            dout: narrow,
            x: &a.residual_mid,
            weight: &w.ln_2.weight,
            mean: &a.ln_2.mean,
            rstd: &a.ln_2.rstd,
            rows: n,
            channels: c,
        })
    }

    /// `residual_in` is the residual stream before the block.
    fn attention<O: Ops<Buf = B>>(&mut self, ops: &mut O, residual_in: &B, heads: Heads) -> Result<()> {
        let (n, c, write, rows) = (self.rows.count(), self.channels, self.write, self.rows);
        let (qkv, proj) = (self.shape(c, 3 * c), self.shape(c, c));
        let BlockBackward { acts: a, weights: w, grads: g, dres, narrow, wide, shared_norm, .. } = self;
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut g.attn_proj.weight,
            dbias: Some(&mut g.attn_proj.bias),
            dout: dres,
            x: &a.att,
            shape: proj,
            write,
        })?;
        ops.linear_backward_input(LinearBackwardInput {
            dx: narrow,
            dout: dres,
            weight: &w.attn_proj.weight,
            shape: proj,
        })?;
        ops.attention_backward(AttentionBackward {
            dqkv: wide,
            dout: narrow,
            qkv: &a.qkv,
            out: &a.att,
            lse: &a.lse,
            rows,
            heads,
        })?;
        recompute_norm(ops, &mut a.ln_1, shared_norm, residual_in, &w.ln_1, n, c)?;
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut g.qkv.weight,
            dbias: Some(&mut g.qkv.bias),
            dout: wide,
            x: output(&a.ln_1, shared_norm.as_ref()),
            shape: qkv,
            write,
        })?;
        ops.linear_backward_input(LinearBackwardInput {
            dx: narrow,
            dout: wide,
            weight: &w.qkv.weight,
            shape: qkv,
        })?;
        ops.layernorm_backward(LayernormBackward {
            dx: dres,
            dx_write: Write::Add,
            dweight: &mut g.ln_1.weight,
            dbias: &mut g.ln_1.bias,
            write,
            dout: narrow,
            x: residual_in,
            weight: &w.ln_1.weight,
            mean: &a.ln_1.mean,
            rstd: &a.ln_1.rstd,
            rows: n,
            channels: c,
        })
    }
}

/// Computes a layernorm's output again when it was not kept: the same operation on the same bits.
fn recompute_norm<O: Ops>(
    ops: &mut O,
    norm: &mut Normed<O::Buf>,
    shared: &mut Option<O::Buf>,
    x: &O::Buf,
    weights: &Affine<O::Buf>,
    rows: usize,
    channels: usize,
) -> Result<()> {
    let (Normed { out: None, mean, rstd }, Some(out)) = (norm, shared) else { return Ok(()) };
    let Affine { weight, bias } = weights;
    ops.layernorm(Layernorm { out, mean, rstd, x, weight, bias, rows, channels })
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
