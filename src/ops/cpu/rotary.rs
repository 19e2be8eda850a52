//! Rotary position embeddings.

use rayon::prelude::*;

use super::super::{Heads, Perform, Result, Rotary, RotaryAt};
use super::buffer::Buffer;
use super::checks::{failed, indices, view, view_mut};
use super::engine::Engine;
use super::simd::vectorize;
use super::{Cpu, Ids};

/// Turns one head by the angles of its position, (HS/2, 2) cosines and sines; `sign` is -1 for the inverse.
#[inline(always)]
fn turn(head: &mut [f32], angles: &[f32], sign: f32) {
    for (pair, angle) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles.as_chunks::<2>().0) {
        let ([a, b], [cos, sin]) = (*pair, [angle[0], sign * angle[1]]);
        *pair = [a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos)];
    }
}

/// Turns the queries and keys of `qkv` (N, 3, NH, HS); `position` of a row is the row of `table`.
pub fn rotate(
    engine: &Engine,
    qkv: &mut [f32],
    table: &[f32],
    position: impl Fn(usize) -> usize + Sync,
    heads: Heads,
    inverse: bool,
) {
    let (channels, size) = (heads.channels(), heads.head_size);
    let sign = if inverse { -1.0 } else { 1.0 };
    engine.install(|| {
        qkv.par_chunks_mut(3 * channels).enumerate().with_min_len(8).for_each(|(row, qkv)| {
            let angles = &table[position(row) * size..][..size];
            vectorize!(engine.isa, |_| {
                qkv[..2 * channels].chunks_exact_mut(size).for_each(|head| turn(head, angles, sign));
            });
        });
    });
}

impl Perform<Rotary<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: Rotary<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "rotary";
        let Rotary { qkv, table, at, heads, inverse, .. } = op;
        let size = heads.head_size;
        if !size.is_multiple_of(2) {
            return Err(failed(OP, format!("a head of {size} channels has no pairs")));
        }
        let qkv = view_mut(OP, "qkv", qkv, 3 * at.rows() * heads.channels())?;
        match at {
            RotaryAt::Sequences(rows) => {
                let table = view(OP, "table", table, rows.seq * size)?;
                rotate(&self.engine, qkv, table, |row| row % rows.seq, heads, inverse);
            }
            RotaryAt::Listed { positions, rows } => {
                let positions = indices(OP, "position", &positions.0, rows, table.len() / size)?;
                let position = |row| usize::from(positions[row]);
                rotate(&self.engine, qkv, table.as_slice(), position, heads, inverse);
            }
        }
        Ok(())
    }
}
