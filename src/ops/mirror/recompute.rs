//! An operation from its [`Outline`] and buffers, for the audit of a step: the methods of [`Ops`], and the
//! one place where an excerpt needs to know more than its own shape.

use std::ops::Range;

use super::classifier::TableGradientInputs;
use super::qk_norm::QkPartBuffers;
use super::{Mirror, MirrorBuffer};
use crate::ops::cpu::Ids;
use crate::ops::op::excerpt::{Excerpt, Pick};
use crate::ops::op::outline::{Outline, SequenceAngles, WeightOrder};
use crate::ops::{
    Activate, ActivateBackward, Attention, AttentionBackward, Classifier, Embedding, EmbeddingBackward,
    Layernorm, LayernormBackward, Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate,
    LinearBackwardWeight, LinearShape, NormAgain, Ops, QkNorm, QkNormBackward, QkRotary, ResidualLayernorm,
    Result, Role, Rotary, RotaryAt, Rows, Write, rotary_table,
};

/// What is written of a weight gradient, before the buffers.
struct WeightsAgain {
    shape: LinearShape,
    write: Write,
    order: WeightOrder,
}

/// The turn of `rows` rows with a table that begins at their sequences' first position.
fn turned<'a>(
    rotary: Option<SequenceAngles>,
    table: Option<&'a MirrorBuffer>,
    rows: usize,
) -> Option<QkRotary<'a, MirrorBuffer, Ids>> {
    let SequenceAngles { seq, theta, .. } = rotary?;
    let at = RotaryAt::Sequences(Rows { batch: rows / seq, seq });
    Some(QkRotary { table: table?, theta, at })
}

/// Gives the buffers of an operation's matrices one after the other.
fn each<'a>(bufs: &'a mut [MirrorBuffer]) -> impl FnMut() -> &'a mut MirrorBuffer {
    let mut bufs = bufs.iter_mut();
    move || bufs.next().expect("a buffer for each of the outline's matrices")
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
            (Outline::Embedding { rows, channels, .. }, [out, wte, wpe @ ..]) => {
                self.embedding(Embedding { out, ids, wte, wpe: wpe.first(), rows, channels })
            }
            (Outline::Layernorm { rows, channels, rms, bias }, bufs) => {
                let mut next = each(bufs);
                self.layernorm(Layernorm {
                    out: next(),
                    mean: (!rms).then(&mut next),
                    rstd: next(),
                    x: next(),
                    weight: next(),
                    bias: bias.then(|| &*next()),
                    rows,
                    channels,
                })
            }
            (Outline::ResidualLayernorm { rows, channels, rms, bias }, bufs) => {
                let mut next = each(bufs);
                self.residual_layernorm(ResidualLayernorm {
                    residual: next(),
                    out: next(),
                    mean: (!rms).then(&mut next),
                    rstd: next(),
                    x: next(),
                    branch: next(),
                    weight: next(),
                    bias: bias.then(|| &*next()),
                    rows,
                    channels,
                })
            }
            (Outline::Linear { shape, .. }, [out, x, weight]) => {
                self.linear(Linear { out, x, weight, bias: None, shape })
            }
            (Outline::Linear { shape, .. }, [out, x, weight, bias]) => {
                self.linear(Linear { out, x, weight, bias: Some(bias), shape })
            }
            (Outline::LinearActivate { shape, function, .. }, [out, pre, x, weight, bias @ ..]) => {
                let bias = bias.first();
                self.linear_activate(LinearActivate { out, pre, x, weight, bias, function, shape })
            }
            (Outline::Activate { rows, channels, function }, [out, pre]) => {
                self.activate(Activate { out, pre, function, rows, channels })
            }
            (Outline::ActivateBackward { rows, channels, function, .. }, [dpre, pre]) => {
                self.activate_backward(ActivateBackward { dpre, dout: None, pre, function, rows, channels })
            }
            (Outline::ActivateBackward { rows, channels, function, .. }, [dpre, dout, pre]) => {
                let dout = Some(&*dout);
                self.activate_backward(ActivateBackward { dpre, dout, pre, function, rows, channels })
            }
            (Outline::QkNorm { rows, heads, values, rotary }, [out, rstd, x, q_weight, k_weight]) => {
                let table = self.table_of_norm(rotary, heads.head_size)?;
                let rotary = turned(rotary, table.as_ref(), rows);
                self.qk_norm(QkNorm { out, rstd, x, q_weight, k_weight, rows, heads, values, rotary })
            }
            (
                Outline::QkNormBackward { rows, heads, write, rotary },
                [dqkv, dq_weight, dk_weight, x, q_weight, k_weight, rstd],
            ) => {
                let table = self.table_of_norm(rotary, heads.head_size)?;
                self.qk_norm_backward(QkNormBackward {
                    dqkv,
                    dq_weight,
                    dk_weight,
                    write,
                    x,
                    q_weight,
                    k_weight,
                    rstd,
                    rows,
                    heads,
                    rotary: turned(rotary, table.as_ref(), rows),
                })
            }
            (Outline::QkNormPart(part), [dout, dq_weight, dk_weight, x, q_weight, k_weight, rstd]) => {
                let (dweight, weight) = if part.keys { (dk_weight, k_weight) } else { (dq_weight, q_weight) };
                let table = self.table_of_norm(part.rotary, part.heads.head_size)?;
                let rotary = turned(part.rotary, table.as_ref(), part.rows);
                self.qk_norm_part(part, QkPartBuffers { dout, dweight, x, weight, rstd, rotary })
            }
            (Outline::Rotary { rows, heads, theta, inverse, first }, [qkv]) => {
                let table = self.table_again(first..first + rows.seq, heads.head_size, theta)?;
                let at = RotaryAt::Sequences(rows);
                self.rotary(Rotary { qkv, table: &table, theta, at, heads, inverse })
            }
            (Outline::Attention { rows, heads, .. }, [out, lse, qkv, values @ ..]) => {
                self.attention(Attention { out, lse, qkv, values: values.first(), rows, heads })
            }
            (
                Outline::Classifier { rows, channels, vocab, terms, scale, write },
                [losses, denominators, dx, dwte, x, wte],
            ) => self.classifier(Classifier {
                losses,
                losses_at: 0,
                denominators,
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
            (Outline::TableGradient(gradient), [_, denominators, _, dwte, x, wte]) => {
                let inputs = TableGradientInputs { x, wte, denominators, targets: ids };
                self.table_gradient(&gradient, dwte, inputs)
            }
            (Outline::LayernormBackward { rows, channels, rms, bias, dx_write, write, again }, bufs) => {
                let mut next = each(bufs);
                self.layernorm_backward(LayernormBackward {
                    dx: next(),
                    dx_write,
                    dweight: next(),
                    dbias: bias.then(&mut next),
                    write,
                    dout: next(),
                    x: next(),
                    weight: next(),
                    mean: (!rms).then(|| &*next()),
                    rstd: next(),
                    again: again.then(|| NormAgain { out: next(), bias: bias.then(|| &*next()) }),
                    rows,
                    channels,
                })
            }
            (Outline::LinearBackwardInput { shape }, [dx, dout, weight]) => {
                self.linear_backward_input(LinearBackwardInput { dx, dout, weight, shape })
            }
            (
                Outline::LinearBackwardInputActivate { shape, function, .. },
                [dpre, dout, weight, pre, again @ ..],
            ) => {
                let mut room = self.alloc(Role::Activation, shape.input())?;
                self.linear_backward_input_activate(LinearBackwardInputActivate {
                    dpre,
                    room: Some(&mut room),
                    dout,
                    weight,
                    pre,
                    again: again.first_mut(),
                    function,
                    shape,
                })
            }
            (Outline::LinearBackwardWeight { shape, write, order, .. }, [dweight, dout, x]) => {
                self.weights_again(WeightsAgain { shape, write, order }, dweight, None, [dout, x])
            }
            (Outline::LinearBackwardWeight { shape, write, order, .. }, [dweight, dbias, dout, x]) => {
                self.weights_again(WeightsAgain { shape, write, order }, dweight, Some(dbias), [dout, x])
            }
            (Outline::AttentionBackward { rows, heads, .. }, [dqkv, dout, qkv, out, lse, values @ ..]) => {
                let values = values.first();
                self.attention_backward(AttentionBackward { dqkv, dout, qkv, values, out, lse, rows, heads })
            }
            (
                Outline::EmbeddingBackward { rows, channels, vocab, dwte_write, dwpe_write },
                [dwte, dwpe @ .., dout],
            ) => self.embedding_backward(EmbeddingBackward {
                dwte,
                dwte_write,
                vocab,
                dwpe: dwpe.first_mut(),
                write: dwpe_write.unwrap_or(Write::Set),
                dout,
                ids,
                rows,
                channels,
            }),
            (outline, bufs) => unreachable!("{outline:?} has not {} matrices", bufs.len()),
        }
    }

    /// The rows of these positions of a table of angles.
    fn table_again(&mut self, positions: Range<usize>, head_size: usize, theta: f64) -> Result<MirrorBuffer> {
        let values = rotary_table(positions.end, head_size, theta);
        let mut table = self.alloc(Role::F32, positions.len() * head_size)?;
        self.upload(&mut table, &values[positions.start * head_size..])?;
        Ok(table)
    }

    fn table_of_norm(
        &mut self,
        rotary: Option<SequenceAngles>,
        head_size: usize,
    ) -> Result<Option<MirrorBuffer>> {
        let again =
            |SequenceAngles { seq, theta, first }| self.table_again(first..first + seq, head_size, theta);
        rotary.map(again).transpose()
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
