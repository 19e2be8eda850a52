//! Matrix multiplication, the same bits on every machine.
//!
//! Every output element is one chain of fused multiply-adds over `k = 0, 1, 2, …` that starts at
//! zero; only then is a bias or the old value added. Blocking, threads and registers decide which
//! element is worked on when, never the order within an element: where the chain is cut into blocks
//! of [`DEPTH`], the accumulators are stored and loaded again, which rounds nothing.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::super::Write;
use super::engine::{Engine, blocks};
use super::simd::Vectored;
use super::tile::{
    PackedLeft, RightOperand, Strided, Strip, TILE, TileSums, accumulate, pack, run_tiled, strips,
    strips_mut, width,
};

/// Steps of `k` a packed panel holds: 64 KiB a panel of 64 columns, a sixteenth of Zen 4's L2.
const DEPTH: usize = 256;
/// Widest panel of any instruction set, in columns.
const WIDEST: usize = 64;
/// Rows a task works on at most, so that the packed panel is reused that often: whole tiles.
const BAND: usize = 384;
/// Columns whose sums a task holds at a time.
const BLOCK: usize = 4 * WIDEST;

/// What happens to an output element when its sum is complete.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    Set,
    /// One addition to the old value.
    Add,
    /// One addition of the column's bias.
    Bias(&'a [f32]),
}

impl Finish<'_> {
    /// Writes the sums of columns `column ..` of one row; `out` may have fewer columns than a strip.
    #[inline(always)]
    fn write<S: Simd, const NV: usize>(self, simd: S, out: &mut [f32], sums: Strip<S, NV>, column: usize) {
        if out.len() < width::<S, NV>() {
            let sums = bytemuck::cast_slice::<S::f32s, f32>(&sums);
            match self {
                Finish::Set => out.copy_from_slice(&sums[..out.len()]),
                Finish::Add => out.iter_mut().zip(sums).for_each(|(o, s)| *o += s),
                Finish::Bias(bias) => {
                    out.iter_mut().zip(sums).zip(&bias[column..]).for_each(|((o, s), b)| *o = s + b)
                }
            }
            return;
        }
        let out = &mut strips_mut::<S, NV>(out)[0];
        match self {
            Finish::Set => *out = sums,
            Finish::Add => {
                for v in 0..NV {
                    out[v] = simd.add_f32s(out[v], sums[v]);
                }
            }
            Finish::Bias(bias) => {
                let bias = &strips::<S, NV>(&bias[column..column + width::<S, NV>()])[0];
                for v in 0..NV {
                    out[v] = simd.add_f32s(sums[v], bias[v]);
                }
            }
        }
    }
}

/// A matrix to be written: the first `columns` of rows of `stride` floats.
pub struct StridedMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    pub columns: usize,
}

impl StridedMut<'_> {
    /// Rows without gaps.
    pub fn dense(data: &mut [f32], columns: usize) -> StridedMut<'_> {
        StridedMut { data, stride: columns, columns }
    }
}

/// `out[i][j] = finish(sum over k of a[i][k] * right[k][j])`; `k` runs to `depth`.
pub fn multiply(
    engine: &Engine,
    out: StridedMut<'_>,
    a: Strided<'_>,
    right: RightOperand<'_>,
    depth: usize,
    finish: Finish<'_>,
) {
    let StridedMut { data: out, stride: out_stride, columns } = out;
    let rows = out.len().div_ceil(out_stride);
    let (band, block) = task_size(rows, columns, engine.threads);
    let across = columns.div_ceil(block);
    engine.install(|| {
        blocks(out, out_stride, columns, band, block).into_par_iter().enumerate().for_each(
            |(index, mut out)| {
                let (row, column) = (index / across * band, index % across * block);
                engine.with_scratch(multiply_scratch(out.len()), |scratch| {
                    let a = Strided { data: &a.data[row * a.stride..], stride: a.stride };
                    run_tiled(
                        engine.isa,
                        GemmTask { out: &mut out, a, right, column, depth, finish, scratch },
                    );
                });
            },
        );
    });
}

/// Scratch floats a thread needs in [`multiply`] of up to `rows` rows.
pub fn multiply_scratch(rows: usize) -> usize {
    DEPTH * WIDEST + rows.min(BAND) * BLOCK
}

/// Rows and columns that a task of [`multiply`] takes. Whole rows, if these make long tasks for all threads;
/// otherwise a few panels, so that the left operand is read seldom, while every thread gets its share. No
/// result depends on it.
fn task_size(rows: usize, columns: usize, threads: usize) -> (usize, usize) {
    if rows >= threads * BAND / 2 {
        return (band(rows, BAND, threads), columns);
    }
    let panels = columns.div_ceil(WIDEST);
    let fair = |each: usize| {
        let tasks = panels.div_ceil(each);
        tasks.is_multiple_of(threads) || tasks >= 16 * threads
    };
    let panels = [BLOCK / WIDEST, 3, 2].into_iter().find(|each| fair(*each)).unwrap_or(1);
    (band(rows, BAND, 1), panels * WIDEST)
}

/// Rows of as few bands as there can be of at most `most` rows each, the same number for each thread.
fn band(rows: usize, most: usize, threads: usize) -> usize {
    let bands = rows.max(1).div_ceil(most).next_multiple_of(threads);
    rows.max(1).div_ceil(bands).next_multiple_of(TILE)
}

/// One task of [`multiply`].
struct GemmTask<'a, 'b> {
    out: &'a mut [&'b mut [f32]],
    a: Strided<'a>,
    right: RightOperand<'a>,
    /// The first in the right operand.
    column: usize,
    depth: usize,
    finish: Finish<'a>,
    scratch: &'a mut [f32],
}

impl Vectored for GemmTask<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(mut self, simd: S) {
        let columns = self.out[0].len();
        for first in (0..columns).step_by(BLOCK) {
            self.block::<S, NV>(simd, first..columns.min(first + BLOCK));
        }
    }
}

impl GemmTask<'_, '_> {
    /// At most [`BLOCK`] of the columns of `out`.
    #[inline(always)]
    fn block<S: Simd, const NV: usize>(&mut self, simd: S, columns: Range<usize>) {
        let (rows, width) = (self.out.len(), width::<S, NV>());
        let (packed, sums) = self.scratch.split_at_mut(DEPTH * width);
        let sums = &mut sums[..columns.len().div_ceil(width) * rows * width];
        if self.depth > DEPTH {
            sums.fill(0.0);
        }
        for k0 in (0..self.depth).step_by(DEPTH) {
            let depth = DEPTH.min(self.depth - k0);
            let left = Strided { data: &self.a.data[k0..], stride: self.a.stride };
            for (first, sums) in columns.clone().step_by(width).zip(sums.chunks_exact_mut(rows * width)) {
                let columns = first..columns.end.min(first + width);
                pack::<S, NV>(packed, self.right, k0, depth, self.column + first, columns.len());
                let packed = &strips::<S, NV>(packed)[..depth];
                let sums = strips_mut::<S, NV>(sums);
                if k0 + depth < self.depth {
                    accumulate(simd, sums, rows, left, packed);
                } else {
                    let begun = (k0 > 0).then_some(&*sums);
                    let (finish, column) = (self.finish, self.column + first);
                    let mut sums = LastSums { begun, out: self.out, columns, finish, column };
                    accumulate(simd, &mut sums, rows, left, packed);
                }
            }
        }
    }
}

/// Sums over the last steps, which end in some columns of the output.
struct LastSums<'a, 'b, S: Simd, const NV: usize> {
    /// By the steps before, if there were any.
    begun: Option<&'a [Strip<S, NV>]>,
    out: &'a mut [&'b mut [f32]],
    /// Of each row of `out`.
    columns: Range<usize>,
    finish: Finish<'a>,
    /// Their first in a bias.
    column: usize,
}

impl<S: Simd, const NV: usize> TileSums<S, NV> for LastSums<'_, '_, S, NV> {
    #[inline(always)]
    fn start(&self, simd: S, row: usize) -> Strip<S, NV> {
        match self.begun {
            Some(begun) => begun[row],
            None => [simd.splat_f32s(0.0); NV],
        }
    }

    #[inline(always)]
    fn end(&mut self, simd: S, row: usize, sums: Strip<S, NV>) {
        let out = &mut self.out[row][self.columns.start..self.columns.end];
        self.finish.write::<S, NV>(simd, out, sums, self.column);
    }
}

/// Rows of the product a task of [`multiply_outer`] takes at most.
const OUTER_BAND: usize = BAND / 2;

/// Scratch floats a thread needs in [`multiply_outer`].
pub fn multiply_outer_scratch(chunk: usize) -> usize {
    (OUTER_BAND + WIDEST) * chunk
}

/// `out[i][j] (+)= sum over k of left[k][i] * right[k][j]`, where `k` is the row of both: the gradient of a
/// weight. A left fold over chunks of `chunk` steps, each one chain from zero.
///
/// `right` and `out` are dense with `right.stride` columns; of `left` the first `out.len() / right.stride`
/// columns count.
pub fn multiply_outer(
    engine: &Engine,
    out: &mut [f32],
    left: Strided<'_>,
    right: Strided<'_>,
    steps: Chunked,
    write: Write,
) {
    let columns = right.stride;
    let band = band(out.len() / columns, OUTER_BAND, engine.threads);
    engine.install(|| {
        out.par_chunks_mut(band * columns).enumerate().for_each(|(index, out)| {
            engine.with_scratch(multiply_outer_scratch(steps.chunk), |scratch| {
                let left = Strided { data: &left.data[index * band..], stride: left.stride };
                run_tiled(engine.isa, OuterTask { out, left, right, steps, write, scratch });
            });
        });
    });
}

/// Steps of a sum that is a left fold over chunks.
#[derive(Clone, Copy)]
pub struct Chunked {
    pub steps: usize,
    pub chunk: usize,
}

/// One task of [`multiply_outer`].
struct OuterTask<'a> {
    out: &'a mut [f32],
    left: Strided<'a>,
    right: Strided<'a>,
    steps: Chunked,
    write: Write,
    scratch: &'a mut [f32],
}

impl Vectored for OuterTask<'_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let OuterTask { out, left, right, steps: Chunked { steps, chunk }, write, scratch } = self;
        let (columns, width) = (right.stride, width::<S, NV>());
        let mut out: Vec<&mut [f32]> = out.chunks_exact_mut(columns).collect();
        let rows = out.len();
        let (packed_left, packed) = scratch.split_at_mut(rows * chunk);
        for k0 in (0..steps).step_by(chunk) {
            let depth = chunk.min(steps - k0);
            let finish = if k0 == 0 && write == Write::Set { Finish::Set } else { Finish::Add };
            let left = PackedLeft::new(packed_left, &left.data[k0 * left.stride..], left.stride, depth, rows);
            let right = RightOperand::Rows { data: right.data, stride: columns };
            for column in (0..columns).step_by(width) {
                let columns = column..columns.min(column + width);
                pack::<S, NV>(packed, right, k0, depth, column, columns.len());
                let packed = &strips::<S, NV>(packed)[..depth];
                let mut sums = LastSums { begun: None, out: &mut out, columns, finish, column };
                accumulate(simd, &mut sums, rows, left, packed);
            }
        }
    }
}
