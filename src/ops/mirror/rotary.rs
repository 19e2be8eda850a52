//! Rotary position embeddings, as `kernels/rotary.cu` computes them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{float, row_length};
use super::scalar::{round, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::engine::Engine;
use crate::ops::cpu::rotary::{RowAngles, same_rows};
use crate::ops::{Heads, Perform, QkRotary, Result, Rotary, RotaryAt};

/// Neighbours (a, b) of a head become `fma(a, cos, -(b sin))` and `fma(a, sin, b cos)`, unrounded; the
/// inverse takes `-sin`. As `kernels/rotary.cuh` computes it.
pub fn turned([a, b]: [f32; 2], [cos, sin]: [f32; 2], inverse: bool) -> [f32; 2] {
    let sin = if inverse { -sin } else { sin };
    [a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos)]
}

/// The queries and keys of `qkv` (N, NH + 2 KH, HS), each number of [`turned`] rounded to bf16.
pub fn rotate(engine: &Engine, qkv: &mut [bf16], angles: RowAngles<'_>, heads: Heads, inverse: bool) {
    let (turned_heads, size) = (heads.of_queries_and_keys(), heads.head_size);
    let row = |(row, qkv): (usize, &mut [bf16])| {
        for head in qkv[..turned_heads * size].chunks_exact_mut(size) {
            for (pair, angle) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles.of(row)) {
                *pair = turned(pair.map(wide), *angle, inverse).map(round);
            }
        }
    };
    engine.install(|| qkv.par_chunks_mut(heads.qkv_channels()).enumerate().for_each(row));
}

/// The angles of `at` from a device's own `table`.
fn angles<'a>(
    op: &'static str,
    table: &'a MirrorBuffer,
    at: RotaryAt<'a, Ids>,
    head_size: usize,
) -> Result<RowAngles<'a>> {
    let len = RowAngles::table_len(at, table.len(), head_size);
    RowAngles::new(op, float(op, "table", table, len)?, at, head_size)
}

/// Those of a norm of queries and keys of so many rows.
pub fn angles_of_norm<'a>(
    op: &'static str,
    rotary: Option<QkRotary<'a, MirrorBuffer, Ids>>,
    rows: usize,
    head_size: usize,
) -> Result<Option<RowAngles<'a>>> {
    let Some(QkRotary { table, at, .. }) = rotary else { return Ok(None) };
    same_rows(op, at.rows(), rows)?;
    angles(op, table, at, head_size).map(Some)
}

impl Perform<Rotary<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: Rotary<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "rotary";
        let Rotary { qkv, table, at, heads, inverse, .. } = op;
        row_length(OP, heads.head_size)?;
        let angles = angles(OP, table, at, heads.head_size)?;
        let qkv = self.act_mut(OP, "qkv", qkv, at.rows() * heads.qkv_channels())?;
        rotate(&self.engine, qkv, angles, heads, inverse);
        Ok(())
    }
}
