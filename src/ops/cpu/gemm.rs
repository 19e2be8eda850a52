//! Matrix multiplication, the same bits on every machine.
//!
//! Every output element is one chain of fused multiply-adds over `k = 0, 1, 2, …` that starts at
//! zero; only then is a bias or the old value added. Blocking, threads and registers decide which
//! element is worked on when, never the order within an element: where the chain is cut into blocks
//! of [`DEPTH`], the accumulators are stored and loaded again, which rounds nothing.
//!
//! A tile of 6 rows by `NV` vectors stays in registers. The right operand is packed into panels
//! `[k][NV vectors]` that are read once a tile, in order, from L1 and L2; of the left operand the
//! tile reads one float a row and step, so it is never copied when `k` is its contiguous index.

use rayon::prelude::*;

use super::engine::{Engine, blocks};
use super::simd::{Isa, Vectored, run_vectors};
use pulp::Simd;

/// Rows of a register tile: with 4 vectors 24 accumulators of AVX-512's 32 registers, with 2
/// vectors 12 of AVX2's 16.
const TILE: usize = 6;
/// Steps of `k` a packed panel holds: 64 KiB a panel of 64 columns, a sixteenth of Zen 4's L2.
const DEPTH: usize = 256;
/// Widest panel of any instruction set, in columns.
const WIDEST: usize = 64;
/// Rows a task works on at most, so that the packed panel is reused that often.
const BAND: usize = 384;

/// The right operand `B[k][j]` of a product, where `k` is summed over.
#[derive(Clone, Copy)]
pub enum RightOperand<'a> {
    /// `B[k][j] = data[k * stride + j]`.
    Rows { data: &'a [f32], stride: usize },
    /// `B[k][j] = data[j * stride + k]`: the transpose of a row-major matrix.
    Columns { data: &'a [f32], stride: usize },
}

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
    /// Writes the sums of columns `column ..` of one row.
    #[inline(always)]
    fn write(self, out: &mut [f32], sums: &[f32], column: usize) {
        let sums = &sums[..out.len()];
        match self {
            Finish::Set => out.copy_from_slice(sums),
            Finish::Add => out.iter_mut().zip(sums).for_each(|(o, s)| *o += s),
            Finish::Bias(bias) => {
                out.iter_mut().zip(sums).zip(&bias[column..]).for_each(|((o, s), b)| *o = s + b)
            }
        }
    }
}

/// Runs work whose `NV` vectors are the width of a panel.
pub fn run_tiled(isa: Isa, work: impl Vectored) {
    run_vectors::<4>(isa, work);
}

/// One row of a panel: `NV` vectors.
pub type Strip<S, const NV: usize> = [<S as Simd>::f32s; NV];

/// Floats in a strip.
pub const fn width<S: Simd, const NV: usize>() -> usize {
    NV * S::F32_LANES
}

/// Sees floats as strips; `floats` must be a whole number of them.
#[inline(always)]
pub fn strips<S: Simd, const NV: usize>(floats: &[f32]) -> &[Strip<S, NV>] {
    bytemuck::cast_slice::<f32, S::f32s>(floats).as_chunks::<NV>().0
}

#[inline(always)]
pub fn strips_mut<S: Simd, const NV: usize>(floats: &mut [f32]) -> &mut [Strip<S, NV>] {
    bytemuck::cast_slice_mut::<f32, S::f32s>(floats).as_chunks_mut::<NV>().0
}

/// Copies `B[k0 .. k0+depth][j0 .. j0+columns]` into `packed[k][j]` of `width` columns; missing
/// columns become zeros, whose sums are not read.
#[inline(always)]
pub fn pack(
    packed: &mut [f32],
    width: usize,
    right: RightOperand<'_>,
    k0: usize,
    depth: usize,
    j0: usize,
    columns: usize,
) {
    let packed = &mut packed[..depth * width];
    match right {
        RightOperand::Rows { data, stride } => {
            for (k, strip) in packed.chunks_exact_mut(width).enumerate() {
                let at = (k0 + k) * stride + j0;
                strip[..columns].copy_from_slice(&data[at..at + columns]);
                strip[columns..].fill(0.0);
            }
        }
        RightOperand::Columns { data, stride } => {
            if columns < width {
                packed.fill(0.0);
            }
            let (wide, rest) = (columns / 8 * 8, columns % 8);
            for j in (0..wide).step_by(8) {
                let rows: [&[f32]; 8] = std::array::from_fn(|i| {
                    let at = (j0 + j + i) * stride + k0;
                    &data[at..at + depth]
                });
                pack_eight(&mut packed[j..], width, rows, depth);
            }
            for j in wide..wide + rest {
                let at = (j0 + j) * stride + k0;
                for (k, value) in data[at..at + depth].iter().enumerate() {
                    packed[k * width + j] = *value;
                }
            }
        }
    }
}

/// Transposes eight rows into eight neighbouring columns of `packed`.
#[inline(always)]
fn pack_eight(packed: &mut [f32], width: usize, rows: [&[f32]; 8], depth: usize) {
    let rows = rows.map(|row| &row[..depth]);
    for k in 0..depth {
        let eight: &mut [f32] = &mut packed[k * width..k * width + 8];
        for i in 0..8 {
            eight[i] = rows[i][k];
        }
    }
}

/// `sums[i] += A[i] B` for `rows` rows of `A`, which are `stride` apart and `panel.len()` long.
#[inline(always)]
pub fn accumulate<S: Simd, const NV: usize>(
    simd: S,
    sums: &mut [Strip<S, NV>],
    rows: usize,
    a: &[f32],
    stride: usize,
    panel: &[Strip<S, NV>],
) {
    let mut row = 0;
    while row < rows {
        let (sums, a) = (&mut sums[row..], &a[row * stride..]);
        match rows - row {
            1 => tile::<S, 1, NV>(simd, sums, a, stride, panel),
            2 => tile::<S, 2, NV>(simd, sums, a, stride, panel),
            3 => tile::<S, 3, NV>(simd, sums, a, stride, panel),
            4 => tile::<S, 4, NV>(simd, sums, a, stride, panel),
            5 => tile::<S, 5, NV>(simd, sums, a, stride, panel),
            _ => tile::<S, TILE, NV>(simd, sums, a, stride, panel),
        }
        row += TILE;
    }
}

/// The register tile: `MR` rows by `NV` vectors, one fused multiply-add an element and step.
#[inline(always)]
fn tile<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    sums: &mut [Strip<S, NV>],
    a: &[f32],
    stride: usize,
    panel: &[Strip<S, NV>],
) {
    let depth = panel.len();
    let a: [&[f32]; MR] = std::array::from_fn(|i| &a[i * stride..i * stride + depth]);
    let sums: &mut [Strip<S, NV>; MR] = (&mut sums[..MR]).try_into().expect("the slice has MR strips");
    let mut tile = *sums;
    for k in 0..depth {
        let b = panel[k];
        for i in 0..MR {
            let x = simd.splat_f32s(a[i][k]);
            for v in 0..NV {
                tile[i][v] = simd.mul_add_f32s(x, b[v], tile[i][v]);
            }
        }
    }
    *sums = tile;
}

/// A matrix in rows of `stride` floats.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub stride: usize,
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
    let Strided { data: a, stride: a_stride } = a;
    let block = block_width(columns, engine.threads);
    let across = columns.div_ceil(block);
    engine.install(|| {
        blocks(out, out_stride, columns, BAND, block).into_par_iter().enumerate().for_each(
            |(index, mut out)| {
                let (band, column) = (index / across, index % across * block);
                let scratch = DEPTH * WIDEST + out.len() * block.next_multiple_of(WIDEST);
                engine.with_scratch(scratch, |scratch| {
                    let a = &a[band * BAND * a_stride..];
                    run_tiled(
                        engine.isa,
                        GemmTask { out: &mut out, a, a_stride, right, column, depth, finish, scratch },
                    );
                });
            },
        );
    });
}

/// Scratch floats a thread needs in [`multiply`] of up to `rows` rows.
pub fn multiply_scratch(rows: usize) -> usize {
    DEPTH * WIDEST + rows.min(BAND) * 4 * WIDEST
}

/// Columns a task takes: a few panels, so that the left operand is read seldom, while every thread
/// gets its share. No result depends on it.
fn block_width(columns: usize, threads: usize) -> usize {
    let panels = columns.div_ceil(WIDEST);
    let fair = |each: usize| {
        let tasks = panels.div_ceil(each);
        tasks.is_multiple_of(threads) || tasks >= 16 * threads
    };
    WIDEST * [4, 3, 2].into_iter().find(|each| fair(*each)).unwrap_or(1)
}

/// One task of [`multiply`].
struct GemmTask<'a, 'b> {
    out: &'a mut [&'b mut [f32]],
    a: &'a [f32],
    a_stride: usize,
    right: RightOperand<'a>,
    column: usize,
    depth: usize,
    finish: Finish<'a>,
    scratch: &'a mut [f32],
}

impl Vectored for GemmTask<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let width = width::<S, NV>();
        let rows = self.out.len();
        let columns = self.out[0].len();
        let panels = columns.div_ceil(width);
        let (packed, sums) = self.scratch.split_at_mut(DEPTH * width);
        let sums = &mut sums[..panels * rows * width];
        sums.fill(0.0);
        for k0 in (0..self.depth).step_by(DEPTH) {
            let depth = DEPTH.min(self.depth - k0);
            for panel in 0..panels {
                let used = width.min(columns - panel * width);
                pack(packed, width, self.right, k0, depth, self.column + panel * width, used);
                let sums = strips_mut::<S, NV>(&mut sums[panel * rows * width..(panel + 1) * rows * width]);
                accumulate(simd, sums, rows, &self.a[k0..], self.a_stride, &strips::<S, NV>(packed)[..depth]);
            }
        }
        for (row, out) in self.out.iter_mut().enumerate() {
            for (panel, part) in out.chunks_mut(width).enumerate() {
                let at = (panel * rows + row) * width;
                self.finish.write(part, &sums[at..at + width], self.column + panel * width);
            }
        }
    }
}

/// Rows of the product a task of [`multiply_outer`] takes.
const OUTER_BAND: usize = 96;

/// Scratch floats a thread needs in [`multiply_outer`].
pub fn multiply_outer_scratch(depth: usize) -> usize {
    OUTER_BAND * depth
}

/// `out[i][j] = finish(sum over k of left[k][i] * right[k][j])`, where `k` is the row of both: the
/// gradient of a weight. `right` and `out` are dense with `right.stride` columns; of `left` the first
/// `out.len() / right.stride` columns count.
///
/// `packed` takes the right operand: `depth * right.stride.next_multiple_of(64)` floats.
pub fn multiply_outer(
    engine: &Engine,
    out: &mut [f32],
    left: Strided<'_>,
    right: Strided<'_>,
    depth: usize,
    finish: Finish<'_>,
    packed: &mut [f32],
) {
    let Strided { data: left, stride: left_stride } = left;
    let Strided { data: right, stride: columns } = right;
    let packed = &mut packed[..depth * columns.next_multiple_of(WIDEST)];
    engine.install(|| {
        packed.par_chunks_mut(depth * WIDEST).enumerate().for_each(|(index, packed)| {
            run_tiled(
                engine.isa,
                PackGroup {
                    packed,
                    right: RightOperand::Rows { data: right, stride: columns },
                    depth,
                    column: index * WIDEST,
                    columns,
                },
            );
        });
        out.par_chunks_mut(OUTER_BAND * columns).enumerate().for_each(|(index, out)| {
            engine.with_scratch(multiply_outer_scratch(depth), |scratch| {
                run_tiled(
                    engine.isa,
                    Outer {
                        out,
                        columns,
                        left,
                        left_stride,
                        first: index * OUTER_BAND,
                        packed,
                        depth,
                        finish,
                        scratch,
                    },
                );
            });
        });
    });
}

/// Packs up to [`WIDEST`] columns as consecutive panels of the instruction set's own width.
struct PackGroup<'a> {
    packed: &'a mut [f32],
    right: RightOperand<'a>,
    depth: usize,
    column: usize,
    columns: usize,
}

impl Vectored for PackGroup<'_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, _: S) {
        let width = width::<S, NV>();
        for (panel, packed) in self.packed.chunks_exact_mut(self.depth * width).enumerate() {
            let column = self.column + panel * width;
            let used = width.min(self.columns.saturating_sub(column));
            if used > 0 {
                pack(packed, width, self.right, 0, self.depth, column, used);
            }
        }
    }
}

/// One task of [`multiply_outer`].
struct Outer<'a> {
    out: &'a mut [f32],
    columns: usize,
    left: &'a [f32],
    left_stride: usize,
    /// The column of `left` that is the task's first row of `out`.
    first: usize,
    packed: &'a [f32],
    depth: usize,
    finish: Finish<'a>,
    scratch: &'a mut [f32],
}

impl Vectored for Outer<'_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let width = width::<S, NV>();
        let rows = self.out.len() / self.columns;
        transpose(self.scratch, self.depth, &self.left[self.first..], self.left_stride, self.depth, rows);
        for (panel, packed) in
            self.packed.chunks_exact(self.depth * width).enumerate().take(self.columns.div_ceil(width))
        {
            let packed = strips::<S, NV>(packed);
            let column = panel * width;
            let used = width.min(self.columns - column);
            for row in (0..rows).step_by(TILE) {
                let height = TILE.min(rows - row);
                let mut sums = [[simd.splat_f32s(0.0); NV]; TILE];
                accumulate(
                    simd,
                    &mut sums[..height],
                    height,
                    &self.scratch[row * self.depth..],
                    self.depth,
                    packed,
                );
                for (i, sums) in sums[..height].iter().enumerate() {
                    let at = (row + i) * self.columns + column;
                    self.finish.write(&mut self.out[at..at + used], bytemuck::cast_slice(sums), column);
                }
            }
        }
    }
}

/// `to[j][i] = from[i][j]` for `rows` rows and `columns` columns of `from`, in blocks that stay in L1.
#[inline(always)]
pub fn transpose(
    to: &mut [f32],
    to_stride: usize,
    from: &[f32],
    from_stride: usize,
    rows: usize,
    columns: usize,
) {
    const SIDE: usize = 16;
    for i0 in (0..rows).step_by(SIDE) {
        let height = SIDE.min(rows - i0);
        for j0 in (0..columns).step_by(SIDE) {
            for j in j0..columns.min(j0 + SIDE) {
                let to = &mut to[j * to_stride + i0..j * to_stride + i0 + height];
                for (i, to) in to.iter_mut().enumerate() {
                    *to = from[(i0 + i) * from_stride + j];
                }
            }
        }
    }
}
