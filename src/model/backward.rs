//! The backward pass of GPT-2, block by block from the last to the first.

use super::activations::{Activations, GradientBuffers, LayerActivations, Normed};
use super::gpt2::{Gpt2, heads, vocab};
use super::weights::{Affine, Block, Group, Weights};
use crate::ops::{
    AttentionBackward, Classifier, DeviceError, EmbeddingBackward, Gelu, Heads, Layernorm, LayernormBackward,
    LinearBackwardInput, LinearBackwardInputGelu, LinearBackwardWeight, LinearShape, LogitTerms, Ops, Result,
    Rows, Write,
};

impl<O: Ops> Gpt2<O> {
    /// From the final layernorm's output to the gradients, each group passed to `whole` as soon as it is
    /// complete; losses into `self.losses`.
    pub(super) fn backward<P: Ops<Buf = O::Buf, Ids = O::Ids>, E: From<DeviceError>>(
        &mut self,
        ops: &mut P,
        rows: Rows,
        grads: &mut Weights<O::Buf>,
        scale: f32,
        write: Write,
        mut whole: impl FnMut(&mut P, Group, &mut Weights<O::Buf>) -> std::result::Result<(), E>,
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
            lse: &mut self.log_sums,
            dx: narrow,
            dwte: &mut grads.wte,
            x: ln_f.output(None),
            wte: &p.wte,
            targets: &self.targets,
            rows: n,
            channels: c,
            vocab: vocab(&self.config),
            terms: LogitTerms::default(),
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
    weights: &'a Block<B>,
    grads: &'a mut Block<B>,
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
            x: a.ln_2.output(shared_norm.as_ref()),
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
            x: a.ln_1.output(shared_norm.as_ref()),
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
