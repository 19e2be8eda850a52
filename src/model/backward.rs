//! The backward pass, block by block from the last to the first.

use super::activations::{Activations, GradientBuffers, LayerActivations, Normed, kept_or_else};
use super::gpt2::{
    Angles, Gpt2, head_norm, heads, logit_terms, nonlinearity, read_by_attention, rotate, vocab,
};
use super::weights::{Affine, Block, Group, HeadNorms, Weights};
use crate::experiment::Model;
use crate::ops::{
    AttentionBackward, Classifier, DeviceError, EmbeddingBackward, LayernormBackward, LinearBackwardInput,
    LinearBackwardInputActivate, LinearBackwardWeight, LinearShape, NormAgain, Ops, QkNormBackward, Result,
    Rows, Write,
};

impl<O: Ops> Gpt2<O> {
    /// From the final norm's output to the gradients, each group passed to `whole` as soon as it is
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
        let Activations {
            encoded,
            layers,
            ln_f,
            shared_norm,
            shared_activated,
            shared_heads,
            rotary,
            grads: buffers,
            ..
        } = &mut self.acts;
        let p = &self.params;
        let angles = rotary.as_ref().map(|table| Angles { table, theta: self.config.rope_theta });
        let GradientBuffers { residual: dres, narrow, wide, activated } =
            buffers.as_mut().expect("a model built for training has gradient buffers");

        ops.classifier(Classifier {
            losses: &mut self.losses,
            losses_at: 0,
            denominators: &mut self.denominators,
            dx: narrow,
            dwte: grads.lm_head.as_mut().unwrap_or(&mut grads.wte),
            x: ln_f.output(None),
            wte: p.classifier(),
            targets: &self.targets,
            rows: n,
            channels: c,
            vocab: vocab(&self.config),
            terms: logit_terms(&self.config, self.z_loss),
            scale,
            write,
        })?;
        ops.layernorm_backward(LayernormBackward {
            dx: dres,
            dx_write: Write::Set,
            dweight: &mut grads.ln_f.weight,
            dbias: grads.ln_f.bias.as_mut(),
            write,
            dout: narrow,
            x: layers.last().map_or(&*encoded, |l| &l.residual_out),
            weight: &p.ln_f.weight,
            mean: ln_f.mean.as_ref(),
            rstd: &ln_f.rstd,
            again: None,
            rows: n,
            channels: c,
        })?;
        whole(ops, Group::Head, grads)?;

        for l in (0..layers.len()).rev() {
            let (before, from) = layers.split_at_mut(l);
            let residual_in = before.last().map_or(&*encoded, |b| &b.residual_out);
            let mut block = BlockBackward {
                config: &self.config,
                acts: &mut from[0],
                weights: &p.layers[l],
                grads: grads.block_mut(l),
                dres: &mut *dres,
                narrow: &mut *narrow,
                wide: &mut *wide,
                shared_norm: &mut *shared_norm,
                rows,
                write,
            };
            block.mlp(ops, shared_activated, activated)?;
            block.attention(ops, residual_in, shared_heads, angles)?;
            whole(ops, Group::Block(l), grads)?;
        }
        ops.embedding_backward(EmbeddingBackward {
            // Tied, the classifier has written its part already.
            dwte_write: if p.lm_head.is_none() { Write::Add } else { write },
            vocab: self.config.vocab_padded,
            dwte: &mut grads.wte,
            dwpe: grads.wpe.as_mut(),
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
    config: &'a Model,
    acts: &'a mut LayerActivations<B>,
    weights: &'a Block<B>,
    grads: &'a mut Block<B>,
    /// Gradient of the residual stream (N, C).
    dres: &'a mut B,
    /// Gradient of what is (N, C) within the block.
    narrow: &'a mut B,
    /// Gradient of what is wider: of `fc` (N, F), of SwiGLU (N, 2F), then of `qkv` (N, NH + 2 KH, HS).
    wide: &'a mut B,
    shared_norm: &'a mut Option<B>,
    rows: Rows,
    write: Write,
}

impl<B: Send> BlockBackward<'_, B> {
    fn shape(&self, c_in: usize, c_out: usize) -> LinearShape {
        LinearShape { rows: self.rows.count(), c_in, c_out }
    }

    /// `activated` is room for the gradient of the activation's output, where SwiGLU makes that wider.
    fn mlp<O: Ops<Buf = B>>(
        &mut self,
        ops: &mut O,
        shared_activated: &mut Option<B>,
        activated: &mut Option<B>,
    ) -> Result<()> {
        let (c, f, write) = (self.config.channels, self.config.mlp_channels(), self.write);
        let (up, down) = (self.shape(c, self.config.mlp_inputs()), self.shape(f, c));
        let function = nonlinearity(self.config);
        let BlockBackward { acts: a, weights: w, grads: g, dres, narrow, wide, shared_norm, .. } = self;
        ops.linear_backward_input_activate(LinearBackwardInputActivate {
            dpre: wide,
            room: activated.as_mut(),
            dout: dres,
            weight: &w.fc_proj.weight,
            pre: &a.fc,
            again: shared_activated.as_mut(),
            function,
            shape: down,
        })?;
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut g.fc_proj.weight,
            dbias: g.fc_proj.bias.as_mut(),
            dout: dres,
            x: kept_or_else(&a.activated, shared_activated.as_ref()),
            shape: down,
            write,
        })?;
        let layer = LayerAfterNorm {
            norm: (&w.ln_2, &mut g.ln_2, &a.ln_2),
            layer: (&w.fc, &mut g.fc),
            x: &a.residual_mid,
            shape: up,
        };
        layer.backward(ops, [dres, narrow], wide, shared_norm, write)
    }

    /// `residual_in` is the residual stream before the block.
    fn attention<O: Ops<Buf = B>>(
        &mut self,
        ops: &mut O,
        residual_in: &B,
        shared_heads: &mut Option<B>,
        rotary: Option<Angles<'_, B>>,
    ) -> Result<()> {
        let (n, c, write, rows) = (self.rows.count(), self.config.channels, self.write, self.rows);
        let heads = heads(self.config);
        let (qkv, proj) = (self.shape(c, heads.qkv_channels()), self.shape(c, c));
        let BlockBackward { acts: a, weights: w, grads: g, dres, narrow, wide, shared_norm, .. } = self;
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut g.attn_proj.weight,
            dbias: g.attn_proj.bias.as_mut(),
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
        if let Some(normed) = a.head_norm.as_mut().filter(|normed| normed.out.is_none()) {
            head_norm(ops, normed, shared_heads, &a.qkv, w, rotary, rows, heads)?;
        }
        let (qkv_read, values) = read_by_attention(&a.qkv, a.head_norm.as_ref(), shared_heads.as_ref());
        ops.attention_backward(AttentionBackward {
            dqkv: wide,
            dout: narrow,
            qkv: qkv_read,
            values,
            out: &a.att,
            lse: &a.lse,
            rows,
            heads,
        })?;
        if let (Some(normed), HeadNorms { query: Some(dq_weight), key: Some(dk_weight) }) =
            (&a.head_norm, &mut g.head_norms)
        {
            let HeadNorms { query: Some(q_weight), key: Some(k_weight) } = &w.head_norms else {
                unreachable!("a model with QK-norm has weights for it")
            };
            ops.qk_norm_backward(QkNormBackward {
                dqkv: wide,
                dq_weight,
                dk_weight,
                write,
                x: &a.qkv,
                rstd: &normed.rstd,
                q_weight,
                k_weight,
                rows: n,
                heads,
                rotary: rotary.map(|angles| angles.of_norm(rows)),
            })?;
        } else {
            rotate(ops, wide, rotary, rows, heads, true)?;
        }
        let layer = LayerAfterNorm {
            norm: (&w.ln_1, &mut g.ln_1, &a.ln_1),
            layer: (&w.qkv, &mut g.qkv),
            x: residual_in,
            shape: qkv,
        };
        layer.backward(ops, [dres, narrow], wide, shared_norm, write)
    }
}

/// A norm of the residual stream and the linear layer that reads its output, each with its gradients.
struct LayerAfterNorm<'a, B> {
    norm: (&'a Affine<B>, &'a mut Affine<B>, &'a Normed<B>),
    layer: (&'a Affine<B>, &'a mut Affine<B>),
    /// What the norm read (N, C).
    x: &'a B,
    /// Of the layer.
    shape: LinearShape,
}

impl<B: Send> LayerAfterNorm<'_, B> {
    /// From `wide`, the gradient of the layer's output, to that of the residual stream, which it adds to.
    /// A norm's output that was not kept comes again into `shared`, beside the gradient that reads its input.
    fn backward<O: Ops<Buf = B>>(
        self,
        ops: &mut O,
        [dres, narrow]: [&mut B; 2],
        wide: &B,
        shared: &mut Option<B>,
        write: Write,
    ) -> Result<()> {
        let LayerAfterNorm { norm: (norm, dnorm, normed), layer: (layer, dlayer), x, shape } = self;
        ops.linear_backward_input(LinearBackwardInput {
            dx: narrow,
            dout: wide,
            weight: &layer.weight,
            shape,
        })?;
        ops.layernorm_backward(LayernormBackward {
            dx: dres,
            dx_write: Write::Add,
            dweight: &mut dnorm.weight,
            dbias: dnorm.bias.as_mut(),
            write,
            dout: narrow,
            x,
            weight: &norm.weight,
            mean: normed.mean.as_ref(),
            rstd: &normed.rstd,
            again: shared.as_mut().map(|out| NormAgain { out, bias: norm.bias.as_ref() }),
            rows: shape.rows,
            channels: shape.c_in,
        })?;
        ops.linear_backward_weight(LinearBackwardWeight {
            dweight: &mut dlayer.weight,
            dbias: dlayer.bias.as_mut(),
            dout: wide,
            x: normed.output(shared.as_ref()),
            shape,
            write,
        })
    }
}
