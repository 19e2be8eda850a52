//! Register tiles: the inner loop of every product.
//!
//! A tile of 6 rows by `NV` vectors stays in registers. The right operand is packed into panels
//! `[k][NV vectors]` that are read once a tile, in order, from L1 and L2; of the left operand the tile
//! reads one float a row and step, so it is never copied when `k` is its contiguous index.

use pulp::Simd;

use super::simd::{Isa, Vectored, run_vectors};

/// Rows of a tile: with 4 vectors 24 accumulators of AVX-512's 32 registers, with 2
/// vectors 12 of AVX2's 16.
pub const TILE: usize = 6;

/// The right operand `B[k][j]` of a product, where `k` is summed over.
#[derive(Clone, Copy)]
pub enum RightOperand<'a> {
    /// `B[k][j] = data[k * stride + j]`.
    Rows { data: &'a [f32], stride: usize },
    /// `B[k][j] = data[j * stride + k]`: the transpose of a row-major matrix.
    Columns { data: &'a [f32], stride: usize },
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

/// Copies `B[k0 .. k0+depth][j0 .. j0+columns]` into strips `packed[k]`; missing columns become zeros, whose
/// sums are not read.
#[inline(always)]
pub fn pack<S: Simd, const NV: usize>(
    packed: &mut [f32],
    right: RightOperand<'_>,
    k0: usize,
    depth: usize,
    j0: usize,
    columns: usize,
) {
    let width = width::<S, NV>();
    let packed = &mut packed[..depth * width];
    match right {
        RightOperand::Rows { data, stride } if columns == width => {
            for (k, strip) in strips_mut::<S, NV>(packed).iter_mut().enumerate() {
                let at = (k0 + k) * stride + j0;
                *strip = strips::<S, NV>(&data[at..at + width])[0];
            }
        }
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

/// The left operand of register tiles.
pub trait LeftOperand: Copy {
    /// `sums[i] + A[row + i] B`: one fused multiply-add an element and step of the panel `B`.
    fn tile<S: Simd, const MR: usize, const NV: usize>(
        self,
        simd: S,
        row: usize,
        sums: [Strip<S, NV>; MR],
        panel: &[Strip<S, NV>],
    ) -> [Strip<S, NV>; MR];
}

/// Where the sums of a row come from and go to.
pub trait TileSums<S: Simd, const NV: usize> {
    fn start(&self, simd: S, row: usize) -> Strip<S, NV>;
    fn end(&mut self, simd: S, row: usize, sums: Strip<S, NV>);
}

/// Runs the register tiles of `rows` rows and one panel.
#[inline(always)]
pub fn accumulate<S: Simd, const NV: usize>(
    simd: S,
    sums: &mut (impl TileSums<S, NV> + ?Sized),
    rows: usize,
    left: impl LeftOperand,
    panel: &[Strip<S, NV>],
) {
    for row in (0..rows).step_by(TILE) {
        match rows - row {
            1 => accumulate_tile::<S, 1, NV>(simd, sums, row, left, panel),
            2 => accumulate_tile::<S, 2, NV>(simd, sums, row, left, panel),
            3 => accumulate_tile::<S, 3, NV>(simd, sums, row, left, panel),
            4 => accumulate_tile::<S, 4, NV>(simd, sums, row, left, panel),
            5 => accumulate_tile::<S, 5, NV>(simd, sums, row, left, panel),
            _ => accumulate_tile::<S, TILE, NV>(simd, sums, row, left, panel),
        }
    }
}

#[inline(always)]
fn accumulate_tile<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    sums: &mut (impl TileSums<S, NV> + ?Sized),
    row: usize,
    left: impl LeftOperand,
    panel: &[Strip<S, NV>],
) {
    let mut tile = [[simd.splat_f32s(0.0); NV]; MR];
    for (i, strip) in tile.iter_mut().enumerate() {
        *strip = sums.start(simd, row + i);
    }
    let tile = left.tile::<S, MR, NV>(simd, row, tile, panel);
    for (i, strip) in tile.into_iter().enumerate() {
        sums.end(simd, row + i, strip);
    }
}

/// TileSums that go on where they are.
impl<S: Simd, const NV: usize> TileSums<S, NV> for [Strip<S, NV>] {
    #[inline(always)]
    fn start(&self, _: S, row: usize) -> Strip<S, NV> {
        self[row]
    }

    #[inline(always)]
    fn end(&mut self, _: S, row: usize, sums: Strip<S, NV>) {
        self[row] = sums;
    }
}

/// One step of a register tile: `sums[i] += a[i] b`.
#[inline(always)]
fn step<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    sums: &mut [Strip<S, NV>; MR],
    a: impl Fn(usize) -> f32,
    b: &Strip<S, NV>,
) {
    for (i, sums) in sums.iter_mut().enumerate() {
        let x = simd.splat_f32s(a(i));
        for v in 0..NV {
            sums[v] = simd.mul_add_f32s(x, b[v], sums[v]);
        }
    }
}

/// A matrix in rows of `stride` floats.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl LeftOperand for Strided<'_> {
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(
        self,
        simd: S,
        row: usize,
        mut sums: [Strip<S, NV>; MR],
        panel: &[Strip<S, NV>],
    ) -> [Strip<S, NV>; MR] {
        /// Steps between two looks at the lengths of the rows.
        const STEPS: usize = 4;
        // Loops, as closures of `map` and `from_fn` would not get the vector instructions.
        let mut rows: [&[f32]; MR] = [&[]; MR];
        for (i, row_of) in rows.iter_mut().enumerate() {
            *row_of = &self.data[(row + i) * self.stride..][..panel.len()];
        }
        let (groups, rest) = panel.as_chunks::<STEPS>();
        for (at, b) in groups.iter().enumerate() {
            let mut a = [&[0.0; STEPS]; MR];
            for (a, row) in a.iter_mut().zip(&rows) {
                *a = &row.as_chunks().0[at];
            }
            for k in 0..STEPS {
                step(
                    simd,
                    &mut sums,
                    #[inline(always)]
                    |i| a[i][k],
                    &b[k],
                );
            }
        }
        for (k, b) in rest.iter().enumerate() {
            step(
                simd,
                &mut sums,
                #[inline(always)]
                |i| rows[i][STEPS * groups.len() + k],
                b,
            );
        }
        sums
    }
}

/// The transpose of a matrix as a left operand: tiles of [`TILE`] of its columns, `[k][TILE]` each; the last
/// may have fewer.
#[derive(Clone, Copy)]
pub struct PackedLeft<'a> {
    data: &'a [f32],
    depth: usize,
}

impl<'a> PackedLeft<'a> {
    /// Copies `rows` columns of `from`, each `depth` long, to `data`.
    #[inline(always)]
    pub fn new(
        data: &'a mut [f32],
        from: &[f32],
        stride: usize,
        depth: usize,
        rows: usize,
    ) -> PackedLeft<'a> {
        for (tile, to) in data[..rows * depth].chunks_mut(TILE * depth).enumerate() {
            let from = &from[tile * TILE..];
            if to.len() == TILE * depth {
                for (k, to) in to.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
                    *to = *from[k * stride..].first_chunk().expect("the tile has all its columns");
                }
            } else {
                let height = to.len() / depth;
                for (k, to) in to.chunks_exact_mut(height).enumerate() {
                    to.copy_from_slice(&from[k * stride..][..height]);
                }
            }
        }
        PackedLeft { data, depth }
    }
}

impl LeftOperand for PackedLeft<'_> {
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(
        self,
        simd: S,
        row: usize,
        mut sums: [Strip<S, NV>; MR],
        panel: &[Strip<S, NV>],
    ) -> [Strip<S, NV>; MR] {
        let steps = self.data[row * self.depth..].as_chunks::<MR>().0;
        for (a, b) in steps.iter().zip(panel) {
            step(
                simd,
                &mut sums,
                #[inline(always)]
                |i| a[i],
                b,
            );
        }
        sums
    }
}
