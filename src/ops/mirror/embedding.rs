//! Token and position embeddings, as `kernels/embedding.cu` computes them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut, row_length};
use super::scalar::{kept, round, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::tokens;
use crate::ops::cpu::engine::Engine;
use crate::ops::{Embedding, EmbeddingBackward, Perform, Result, Rows, Write};

/// Positions, sorted by token, that are added together first.
const PIECE: usize = 32;

/// `out[i,:] = bf16(wte[ids[i],:] + wpe[positions[i],:])`; without `wpe` the bits of the token's row.
pub fn forward(
    out: &mut [bf16],
    rows: impl Iterator<Item = (usize, usize)>,
    wte: &[bf16],
    wpe: Option<&[bf16]>,
    channels: usize,
) {
    for (out, (token, position)) in out.chunks_exact_mut(channels).zip(rows) {
        let token = &wte[token * channels..][..channels];
        let Some(wpe) = wpe else {
            out.copy_from_slice(token);
            continue;
        };
        let position = &wpe[position * channels..];
        for ((out, a), b) in out.iter_mut().zip(token).zip(position) {
            *out = round(wide(*a) + wide(*b));
        }
    }
}

/// `dwte[v,:] +=` the sum of dout over the positions of token v. Positions are sorted by token and cut in
/// pieces of 32, whatever tokens they hold; a token's positions are added within each piece from zero, then
/// its pieces in order, then to `dwte`.
pub fn backward_tokens(engine: &Engine, dwte: &mut [f32], dout: &[bf16], ids: &[u16], channels: usize) {
    let mut sorted: Vec<usize> = (0..ids.len()).collect();
    sorted.sort_by_key(|position| ids[*position]);
    // First and last of each token's places in the sorted list.
    let mut runs = vec![0..0; dwte.len() / channels];
    for (at, position) in sorted.iter().enumerate() {
        let run = &mut runs[usize::from(ids[*position])];
        *run = if run.end == 0 { at } else { run.start }..at + 1;
    }
    let token = |(run, dwte): (std::ops::Range<usize>, &mut [f32])| {
        let mut total: Option<Vec<f32>> = None;
        let mut at = run.start;
        while at < run.end {
            let end = ((at / PIECE + 1) * PIECE).min(run.end);
            let mut sum = vec![0.0f32; channels];
            for position in &sorted[at..end] {
                let row = &dout[position * channels..][..channels];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += wide(*x));
            }
            total = Some(match total {
                None => sum,
                Some(total) => total.iter().zip(sum).map(|(total, sum)| total + sum).collect(),
            });
            at = end;
        }
        if let Some(total) = total {
            dwte.iter_mut().zip(total).for_each(|(old, sum)| *old = kept(*old + sum));
        }
    };
    engine.install(|| runs.into_par_iter().zip(dwte.par_chunks_mut(channels)).for_each(token));
}

/// `dwpe[t,:] (=|+=)` the sum of dout over the sequences, in order, from zero; rows from T on become zero on
/// [`Write::Set`].
pub fn backward_positions(dwpe: &mut [f32], write: Write, dout: &[bf16], rows: Rows, channels: usize) {
    let known = rows.seq * channels;
    for (at, out) in dwpe.iter_mut().enumerate() {
        if at >= known {
            *out = if write == Write::Set { 0.0 } else { *out };
            continue;
        }
        let sum = (0..rows.batch).fold(0.0, |sum, b| sum + wide(dout[b * known + at]));
        *out = kept(if write == Write::Add { *out + sum } else { sum });
    }
}

impl Perform<Embedding<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: Embedding<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "embedding";
        let Embedding { out, ids, wte, wpe, rows, channels } = op;
        row_length(OP, channels)?;
        let out = self.act_mut(OP, "out", out, rows.count() * channels)?;
        let ids = tokens(OP, &ids.0, rows.count(), wte.len() / channels)?;
        let places = ids.iter().enumerate().map(|(i, id)| (usize::from(*id), i % rows.seq));
        let wpe = wpe.map(|wpe| act(OP, "wpe", wpe, rows.seq * channels)).transpose()?;
        forward(out, places, act(OP, "wte", wte, wte.len())?, wpe, channels);
        Ok(())
    }
}

impl Perform<EmbeddingBackward<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: EmbeddingBackward<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "embedding_backward";
        let EmbeddingBackward { dwte, dwte_write, vocab, dwpe, write, dout, ids, rows, channels } = op;
        let ids = tokens(OP, &ids.0, rows.count(), vocab)?;
        let dout = act(OP, "dout", dout, rows.count() * channels)?;
        let dwte = float_mut(OP, "dwte", dwte, vocab * channels)?;
        if dwte_write == Write::Set {
            dwte.fill(0.0);
        }
        backward_tokens(&self.engine, dwte, dout, ids, channels);
        if let Some(dwpe) = dwpe {
            let table = dwpe.len();
            float(OP, "dwpe", dwpe, rows.seq * channels)?;
            backward_positions(float_mut(OP, "dwpe", dwpe, table)?, write, dout, rows, channels);
        }
        Ok(())
    }
}
