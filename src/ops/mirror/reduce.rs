//! Column sums, as `kernels/reduce.cu` and `columns.cuh` make them.

use half::bf16;
use rayon::prelude::*;

use super::scalar::{kept, wide};
use crate::ops::Write;
use crate::ops::cpu::engine::Engine;

/// Rows of a block of `column_sum`, and its warps.
pub const BLOCK_ROWS: usize = 128;
const WARPS: usize = 8;

/// Partial column sums of `dout` (n, width), one row for each 128 rows: warp w of 8 adds the rows w, w + 8,
/// …, then the warps are added in order.
pub fn column_sum(engine: &Engine, dout: &[bf16], width: usize) -> Vec<f32> {
    let block = |block: &[bf16]| -> Vec<f32> {
        let mut warps = vec![vec![0.0f32; width]; WARPS];
        for (row, values) in block.chunks_exact(width).enumerate() {
            for (sum, value) in warps[row % WARPS].iter_mut().zip(values) {
                *sum += wide(*value);
            }
        }
        add_in_order(warps)
    };
    engine.install(|| dout.par_chunks(BLOCK_ROWS * width).flat_map_iter(block).collect())
}

/// The first row and then the others, in order.
pub fn add_in_order(rows: Vec<Vec<f32>>) -> Vec<f32> {
    let mut rows = rows.into_iter();
    let mut sum = rows.next().unwrap_or_default();
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sum
}

/// `out` as `write` says from all rows of `partials` (count, width), columns from `first` on: 32 runs of
/// ceil(count / 32) neighbouring rows are each added in order, then the runs in order.
pub fn reduce_partials(out: &mut [f32], write: Write, partials: &[f32], width: usize, first: usize) {
    const RUNS: usize = 32;
    let count = partials.len() / width;
    let length = count.div_ceil(RUNS);
    for (j, out) in out.iter_mut().enumerate() {
        let run = |run: usize| {
            let rows = (run * length).min(count)..((run + 1) * length).min(count);
            rows.fold(0.0f32, |sum, row| sum + partials[row * width + first + j])
        };
        let sum = (1..RUNS).fold(run(0), |sum, next| sum + run(next));
        *out = kept(if write == Write::Add { *out + sum } else { sum });
    }
}
