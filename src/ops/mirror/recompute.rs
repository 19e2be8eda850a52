//! An operation from its [`Outline`] and buffers, for the audit of a step: the methods of [`Ops`], and the
//! one place where an excerpt needs to know more than its own shape.

use super::classifier::TableGradientInputs;
use super::{Mirror, MirrorBuffer};
use crate::ops::cpu::Ids;
use crate::ops::op::excerpt::{Excerpt, Pick};
use crate::ops::op::outline::{Outline, WeightOrder};
use crate::ops::{
    Attention, AttentionBackward, Classifier, Embedding, EmbeddingBackward, Gelu, Layernorm,
    LayernormBackward, Linear, LinearBackwardInput, LinearBackwardInputGelu, LinearBackwardWeight,
    LinearGelu, LinearShape, Ops, ResidualLayernorm, Result, Write,
};

/// What is written of a weight gradient, before the buffers.
struct WeightsAgain {
    shape: LinearShape,
    write: Write,
    order: WeightOrder,
}

impl Mirror {
    /// Runs an excerpt. `given` are the stored bytes of each of its matrices before, none of what it does not
    /// read; returned are those of each afterwards.
    pub fn recompute(&mut self, excerpt: &Excerpt, given: &[Option<Vec<u8>>]) -> Result<Vec<Vec<u8>>> {
        let mut bufs = Vec::with_capacity(given.len());
        for ((matrix, pick), given) in excerpt.outline.matrices().iter().zip(&excerpt.picks).zip(given) {
            // What the excerpt writes of a table that is not its own takes one row.
            let size = pick.as_ref().map_or([matrix.rows.max(1), matrix.columns], Pick::size);
            let mut buf = self.alloc(matrix.role, size[0] * size[1])?;
            if let Some(bytes) = given {
                self.write_bytes(&mut buf, bytes)?;
            }
            bufs.push(buf);
        }
        let mut ids = self.alloc_ids(excerpt.tokens.len())?;
        self.upload_ids(&mut ids, &excerpt.tokens)?;
        self.run(&excerpt.outline, &mut bufs, &ids)?;
        Ok(bufs.iter().map(|buf| buf.bytes().to_vec()).collect())
    }

    /// The method of the operation, on the buffers of its matrices.
    fn run(&mut self, outline: &Outline, bufs: &mut [MirrorBuffer], ids: &Ids) -> Result<()> {
        match (*outline, bufs) {
            (Outline::Embedding { rows, channels }, [out, wte, wpe]) => {
                self.embedding(Embedding { out, ids, wte, wpe, rows, channels })
            }
            (Outline::Layernorm { rows, channels }, [out, mean, rstd, x, weight, bias]) => {
                self.layernorm(Layernorm { out, mean, rstd, x, weight, bias, rows, channels })
            }
            (
                Outline::ResidualLayernorm { rows, channels },
                [residual, out, mean, rstd, x, branch, weight, bias],
            ) => self.residual_layernorm(ResidualLayernorm {
                residual,
                out,
                mean,
                rstd,
                x,
                branch,
                weight,
                bias,
                rows,
                channels,
            }),
            (Outline::Linear { shape, .. }, [out, x, weight]) => {
                self.linear(Linear { out, x, weight, bias: None, shape })
            }
            (Outline::Linear { shape, .. }, [out, x, weight, bias]) => {
                self.linear(Linear { out, x, weight, bias: Some(bias), shape })
            }
            (Outline::LinearGelu { shape }, [out, pre, x, weight, bias]) => {
                self.linear_gelu(LinearGelu { out, pre, x, weight, bias, shape })
            }
            (Outline::Gelu { rows, channels }, [out, pre]) => {
                self.gelu(Gelu { out, pre, len: rows * channels })
            }
            (Outline::Attention { rows, heads }, [out, lse, qkv]) => {
                self.attention(Attention { out, lse, qkv, rows, heads })
            }
            (
                Outline::Classifier { rows, channels, vocab, terms, scale, write },
                [losses, lse, dx, dwte, x, wte],
            ) => self.classifier(Classifier {
                losses,
                losses_at: 0,
                lse,
                dx,
                dwte,
                x,
                wte,
                targets: ids,
                rows,
                channels,
                vocab,
                terms,
                scale,
                write,
            }),
            (Outline::TableGradient(gradient), [_, lse, _, dwte, x, wte]) => {
                self.table_gradient(&gradient, dwte, TableGradientInputs { x, wte, lse, targets: ids })
            }
            (
                Outline::LayernormBackward { rows, channels, dx_write, write },
                [dx, dweight, dbias, dout, x, weight, mean, rstd],
            ) => self.layernorm_backward(LayernormBackward {
                dx,
                dx_write,
                dweight,
                dbias,
                write,
                dout,
                x,
                weight,
                mean,
                rstd,
                rows,
                channels,
            }),
            (Outline::LinearBackwardInput { shape }, [dx, dout, weight]) => {
                self.linear_backward_input(LinearBackwardInput { dx, dout, weight, shape })
            }
            (Outline::LinearBackwardInputGelu { shape }, [dpre, dout, weight, pre]) => {
                self.linear_backward_input_gelu(LinearBackwardInputGelu { dpre, dout, weight, pre, shape })
            }
            (Outline::LinearBackwardWeight { shape, write, order, .. }, [dweight, dout, x]) => {
                self.weights_again(WeightsAgain { shape, write, order }, dweight, None, [dout, x])
            }
            (Outline::LinearBackwardWeight { shape, write, order, .. }, [dweight, dbias, dout, x]) => {
                self.weights_again(WeightsAgain { shape, write, order }, dweight, Some(dbias), [dout, x])
            }
            (Outline::AttentionBackward { rows, heads }, [dqkv, dout, qkv, out, lse]) => {
                self.attention_backward(AttentionBackward { dqkv, dout, qkv, out, lse, rows, heads })
            }
            (Outline::EmbeddingBackward { rows, channels, write }, [dwte, dwpe, dout]) => {
                self.embedding_backward(EmbeddingBackward { dwte, dwpe, write, dout, ids, rows, channels })
            }
            (outline, bufs) => unreachable!("{outline:?} has not {} matrices", bufs.len()),
        }
    }

    fn weights_again(
        &mut self,
        gradient: WeightsAgain,
        dweight: &mut MirrorBuffer,
        dbias: Option<&mut MirrorBuffer>,
        [dout, x]: [&MirrorBuffer; 2],
    ) -> Result<()> {
        let WeightsAgain { shape, write, order: WeightOrder { whole, after_gelu } } = gradient;
        let known = after_gelu.then(|| self.sums_after_gelu(dout, shape)).transpose()?;
        let op = LinearBackwardWeight { dweight, dbias, dout, x, shape, write };
        self.weight_gradient(op, whole, known.as_deref())
    }
}

#[cfg(test)]
#[path = "recompute_tests.rs"]
mod tests;
