//! Rotary position embeddings.

use rayon::prelude::*;

use super::super::{Heads, Perform, QkRotary, Result, Rotary, RotaryAt};
use super::buffer::Buffer;
use super::checks::{failed, indices, view, view_mut};
use super::engine::Engine;
use super::simd::vectorize;
use super::{Cpu, Ids};

/// The angles of the position that each row has.
#[derive(Clone, Copy)]
pub struct RowAngles<'a> {
    /// (P, HS/2, 2): cosines and sines.
    table: &'a [f32],
    /// Of each row; without them row i has position i % `seq`.
    positions: Option<&'a [u16]>,
    seq: usize,
    /// HS.
    head_size: usize,
}

impl<'a> RowAngles<'a> {
    /// Elements of the table that rows at `at` read, of `known`.
    pub fn table_len(at: RotaryAt<'_, Ids>, known: usize, head_size: usize) -> usize {
        match at {
            RotaryAt::Sequences(rows) => rows.seq * head_size,
            RotaryAt::Listed { .. } => known,
        }
    }

    /// `table` has at least [`RowAngles::table_len`] elements.
    ///
    /// # Errors
    /// When a listed position is not in the table.
    pub fn new(
        op: &'static str,
        table: &'a [f32],
        at: RotaryAt<'a, Ids>,
        head_size: usize,
    ) -> Result<RowAngles<'a>> {
        let (positions, seq) = match at {
            RotaryAt::Sequences(rows) => (None, rows.seq),
            RotaryAt::Listed { positions, rows } => {
                (Some(indices(op, "position", &positions.0, rows, table.len() / head_size)?), 1)
            }
        };
        Ok(RowAngles { table, positions, seq, head_size })
    }

    /// Cosine and sine of each pair of a head.
    pub fn of(&self, row: usize) -> &'a [[f32; 2]] {
        let position = self.positions.map_or(row % self.seq, |positions| usize::from(positions[row]));
        self.table[position * self.head_size..][..self.head_size].as_chunks::<2>().0
    }
}

/// Turns one head by the angles of its position; `sign` is -1 for the inverse.
#[inline(always)]
pub fn turn(head: &mut [f32], angles: &[[f32; 2]], sign: f32) {
    for (pair, angle) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
        let ([a, b], [cos, sin]) = (*pair, [angle[0], sign * angle[1]]);
        *pair = [a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos)];
    }
}

/// Turns the queries and keys of `qkv` (N, NH + 2 KH, HS).
pub fn rotate(engine: &Engine, qkv: &mut [f32], angles: RowAngles<'_>, heads: Heads, inverse: bool) {
    let (turned, size) = (heads.of_queries_and_keys(), heads.head_size);
    let sign = if inverse { -1.0 } else { 1.0 };
    engine.install(|| {
        qkv.par_chunks_mut(heads.qkv_channels()).enumerate().with_min_len(8).for_each(|(row, qkv)| {
            let angles = angles.of(row);
            vectorize!(engine.isa, |_| {
                qkv[..turned * size].chunks_exact_mut(size).for_each(|head| turn(head, angles, sign));
            });
        });
    });
}

/// The angles of `at` from a device's own `table`.
fn angles<'a>(
    op: &'static str,
    table: &'a Buffer,
    at: RotaryAt<'a, Ids>,
    head_size: usize,
) -> Result<RowAngles<'a>> {
    if !head_size.is_multiple_of(2) {
        return Err(failed(op, format!("a head of {head_size} channels has no pairs")));
    }
    let len = RowAngles::table_len(at, table.len(), head_size);
    RowAngles::new(op, view(op, "table", table, len)?, at, head_size)
}

/// Those of a norm of queries and keys of so many rows.
pub fn angles_of_norm<'a>(
    op: &'static str,
    rotary: Option<QkRotary<'a, Buffer, Ids>>,
    rows: usize,
    head_size: usize,
) -> Result<Option<RowAngles<'a>>> {
    let Some(QkRotary { table, at, .. }) = rotary else { return Ok(None) };
    same_rows(op, at.rows(), rows)?;
    angles(op, table, at, head_size).map(Some)
}

/// Whether there is a position for each row.
pub fn same_rows(op: &'static str, positions: usize, rows: usize) -> Result<()> {
    if positions == rows {
        return Ok(());
    }
    Err(failed(op, format!("{positions} positions of {rows} rows")))
}

impl Perform<Rotary<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: Rotary<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "rotary";
        let Rotary { qkv, table, at, heads, inverse, .. } = op;
        let angles = angles(OP, table, at, heads.head_size)?;
        let qkv = view_mut(OP, "qkv", qkv, at.rows() * heads.qkv_channels())?;
        rotate(&self.engine, qkv, angles, heads, inverse);
        Ok(())
    }
}
