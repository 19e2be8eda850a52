//! Token and position embeddings.

use rayon::prelude::*;

use super::super::{Embedding, EmbeddingBackward, Perform, Result, Rows, Write};
use super::buffer::Buffer;
use super::checks::{tokens, view, view_mut};
use super::engine::Engine;
use super::linear::add;
use super::simd::vectorize;
use super::{Cpu, Ids};

/// `out[b,t,:] = wte[ids[b,t],:] + wpe[t,:]`; without `wpe` the token's row.
pub fn forward(
    engine: &Engine,
    out: &mut [f32],
    ids: &[u16],
    wte: &[f32],
    wpe: Option<&[f32]>,
    rows: Rows,
    channels: usize,
) {
    engine.install(|| {
        out.par_chunks_mut(channels).zip(ids).enumerate().with_min_len(16).for_each(|(row, (out, id))| {
            let token = &wte[usize::from(*id) * channels..][..channels];
            let Some(wpe) = wpe else { return out.copy_from_slice(token) };
            let position = &wpe[row % rows.seq * channels..][..channels];
            out.iter_mut()
                .zip(token)
                .zip(position)
                .for_each(|((out, token), position)| *out = token + position);
        });
    });
}

/// The rows of a batch sorted by token, equal tokens in order of position.
#[derive(Default)]
pub struct ByToken {
    /// Where the rows of a token end in `order`, by token.
    ends: Vec<u32>,
    order: Vec<u32>,
}

impl ByToken {
    /// A stable counting sort.
    pub fn sort(&mut self, ids: &[u16], vocab: usize) {
        self.ends.clear();
        self.ends.resize(vocab + 1, 0);
        self.order.clear();
        self.order.resize(ids.len(), 0);
        for id in ids {
            self.ends[usize::from(*id) + 1] += 1;
        }
        for token in 0..vocab {
            self.ends[token + 1] += self.ends[token];
        }
        for (row, id) in ids.iter().enumerate() {
            // While rows are placed, `ends[id]` is where the token's next row goes.
            let next = &mut self.ends[usize::from(*id)];
            self.order[*next as usize] = row as u32;
            *next += 1;
        }
    }

    /// The rows that hold `token`, ascending.
    fn rows(&self, token: usize) -> &[u32] {
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        &self.order[start as usize..self.ends[token] as usize]
    }
}

/// Adds to each token's row the sum over its positions, which is one chain in order of position from
/// zero.
pub fn backward_tokens(engine: &Engine, dwte: &mut [f32], dout: &[f32], by_token: &ByToken, channels: usize) {
    const WIDTH: usize = 64;
    engine.install(|| {
        dwte.par_chunks_mut(channels).enumerate().with_min_len(64).for_each(|(token, dwte)| {
            let rows = by_token.rows(token);
            if rows.is_empty() {
                return;
            }
            vectorize!(engine.isa, |_| {
                for (block, dwte) in dwte.chunks_mut(WIDTH).enumerate() {
                    let mut sums = [0.0f32; WIDTH];
                    for row in rows {
                        let at = *row as usize * channels + block * WIDTH;
                        add(&mut sums[..dwte.len()], &dout[at..at + dwte.len()]);
                    }
                    add(dwte, &sums);
                }
            });
        });
    });
}

/// The gradient of each position is the sum over sequences, one chain in their order from zero.
pub fn backward_positions(
    engine: &Engine,
    dwpe: &mut [f32],
    write: Write,
    dout: &[f32],
    rows: Rows,
    channels: usize,
) {
    const WIDTH: usize = 64;
    engine.install(|| {
        dwpe.par_chunks_mut(channels).enumerate().with_min_len(16).for_each(|(position, dwpe)| {
            if position >= rows.seq {
                if write == Write::Set {
                    dwpe.fill(0.0);
                }
                return;
            }
            for (block, dwpe) in dwpe.chunks_mut(WIDTH).enumerate() {
                let mut sums = [0.0f32; WIDTH];
                for sequence in 0..rows.batch {
                    let at = (sequence * rows.seq + position) * channels + block * WIDTH;
                    add(&mut sums[..dwpe.len()], &dout[at..at + dwpe.len()]);
                }
                match write {
                    Write::Set => dwpe.copy_from_slice(&sums[..dwpe.len()]),
                    Write::Add => add(dwpe, &sums),
                }
            }
        });
    });
}

impl Perform<Embedding<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: Embedding<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "embedding";
        let Embedding { out, ids, wte, wpe, rows, channels } = op;
        let out = view_mut(OP, "out", out, rows.count() * channels)?;
        let wpe = wpe.map(|wpe| view(OP, "wpe", wpe, rows.seq * channels)).transpose()?;
        let ids = tokens(OP, &ids.0, rows.count(), wte.len() / channels)?;
        forward(&self.engine, out, ids, wte.as_slice(), wpe, rows, channels);
        Ok(())
    }
}

impl Perform<EmbeddingBackward<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: EmbeddingBackward<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "embedding_backward";
        let EmbeddingBackward { dwte, dwte_write, vocab, dwpe, write, dout, ids, rows, channels } = op;
        let ids = tokens(OP, &ids.0, rows.count(), vocab)?;
        let dout = view(OP, "dout", dout, rows.count() * channels)?;
        self.by_token.sort(ids, vocab);
        let dwte = view_mut(OP, "dwte", dwte, vocab * channels)?;
        if dwte_write == Write::Set {
            dwte.fill(0.0);
        }
        backward_tokens(&self.engine, dwte, dout, &self.by_token, channels);
        if let Some(dwpe) = dwpe {
            view(OP, "dwpe", dwpe, rows.seq * channels)?;
            backward_positions(&self.engine, dwpe.as_mut_slice(), write, dout, rows, channels);
        }
        Ok(())
    }
}
