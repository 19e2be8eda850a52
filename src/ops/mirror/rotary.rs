//! Rotary position embeddings, as `kernels/rotary.cu` computes them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{float, row_length};
use super::scalar::{round, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::indices;
use crate::ops::cpu::engine::Engine;
use crate::ops::{Heads, Perform, Result, Rotary, RotaryAt};

/// Neighbours (a, b) of the queries and keys of `qkv` (N, 3, NH, HS) become `bf16(fma(a, cos, -(b sin)))` and
/// `bf16(fma(a, sin, b cos))` with the angles of the row's position in `table` (P, HS/2, 2); the inverse
/// takes `-sin`.
pub fn rotate(
    engine: &Engine,
    qkv: &mut [bf16],
    table: &[f32],
    position: impl Fn(usize) -> usize + Sync,
    heads: Heads,
    inverse: bool,
) {
    let (channels, size) = (heads.channels(), heads.head_size);
    let row = |(row, qkv): (usize, &mut [bf16])| {
        let angles = table[position(row) * size..][..size].as_chunks::<2>().0;
        for head in qkv[..2 * channels].chunks_exact_mut(size) {
            for (pair, [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                let (a, b, sin) = (wide(pair[0]), wide(pair[1]), if inverse { -sin } else { *sin });
                *pair = [round(a.mul_add(*cos, -(b * sin))), round(a.mul_add(sin, b * cos))];
            }
        }
    };
    engine.install(|| qkv.par_chunks_mut(3 * channels).enumerate().for_each(row));
}

impl Perform<Rotary<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: Rotary<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "rotary";
        let Rotary { qkv, table, at, heads, inverse, .. } = op;
        let size = heads.head_size;
        row_length(OP, size)?;
        let qkv = self.act_mut(OP, "qkv", qkv, 3 * at.rows() * heads.channels())?;
        match at {
            RotaryAt::Sequences(rows) => {
                let table = float(OP, "table", table, rows.seq * size)?;
                rotate(&self.engine, qkv, table, |row| row % rows.seq, heads, inverse);
            }
            RotaryAt::Listed { positions, rows } => {
                let positions = indices(OP, "position", &positions.0, rows, table.len() / size)?;
                let table = float(OP, "table", table, table.len())?;
                rotate(&self.engine, qkv, table, |row| usize::from(positions[row]), heads, inverse);
            }
        }
        Ok(())
    }
}
