//! Causal attention: exact softmax over whole rows, blocks of queries, one task a head.
//!
//! `S = scale Q Kᵀ`, `P = softmax(S)` over keys up to the query, `O = P V`. All products are chains
//! of fused multiply-adds in order of the summed index (see [`gemm`](super::gemm)); row sums are 16
//! partial sums in a tree. Only the log-sum-exp of a row is kept: the backward pass computes `P`
//! again. Within a tile of 6 queries later keys enter as `0 * v`, which changes nothing finite.

use pulp::Simd;
use rayon::prelude::*;

use super::super::{Attention, AttentionBackward, Heads, Perform, Qkv, Result, Rows};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{view, view_mut};
use super::engine::{Engine, blocks};
use super::gemm::StridedMut;
use super::math::{exp, ln};
use super::simd::{Isa, Vectored, dot, largest, run_vectors, sum_of};
use super::tile::{
    PackedLeft, RightOperand, Strided, TILE, accumulate, pack, run_tiled, strips, strips_mut, width,
};

/// Queries worked on together.
const QUERIES: usize = 48;
/// Key and channel counts are rounded up to this in scratch: the widest panel.
const PAD: usize = 64;

/// Where the parts of a head of a sequence lie.
#[derive(Clone, Copy)]
struct QkvHead<'a> {
    qkv: &'a [f32],
    values: &'a [f32],
    /// Floats between tokens of `qkv`.
    stride: usize,
    /// T
    tokens: usize,
    heads: Heads,
    /// Of NH heads of queries.
    index: usize,
}

impl<'a> QkvHead<'a> {
    /// Head `index` of sequence `sequence`.
    fn new(of: Qkv<&'a [f32]>, rows: Rows, heads: Heads, sequence: usize, index: usize) -> QkvHead<'a> {
        let stride = of.slices * heads.head_size;
        let first = sequence * rows.seq;
        let (qkv, values) = (&of.qkv[first * stride..], &of.values[first * heads.qkv_channels()..]);
        QkvHead { qkv, values, stride, tokens: rows.seq, heads, index }
    }

    /// Vectors of the head's queries, from the first token on.
    fn queries(&self) -> &'a [f32] {
        &self.qkv[self.index * self.heads.head_size..]
    }

    /// Vectors of the keys and of the values that it shares.
    fn keys_and_values(&self) -> [Strided<'a>; 2] {
        let Heads { heads, kv_heads, head_size } = self.heads;
        let key = heads + self.index / self.heads.sharing();
        [
            Strided { data: &self.qkv[key * head_size..], stride: self.stride },
            Strided { data: &self.values[(key + kv_heads) * head_size..], stride: self.heads.qkv_channels() },
        ]
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_size as f32).sqrt()
    }
}

/// Lengths of the parts of a task's scratch.
#[derive(Clone, Copy)]
struct ScratchSizes {
    /// T and HS, rounded up to [`PAD`].
    tokens: usize,
    head: usize,
}

impl ScratchSizes {
    fn new(tokens: usize, head_size: usize) -> ScratchSizes {
        ScratchSizes { tokens: tokens.next_multiple_of(PAD), head: head_size.next_multiple_of(PAD) }
    }

    /// A (T, HS) operand in panels.
    fn panels(self) -> usize {
        self.tokens * self.head
    }

    /// A block of rows of the score matrix.
    fn scores(self) -> usize {
        QUERIES * self.tokens
    }

    /// Sums of a block of queries over the wider of one key panel and all channel panels.
    fn sums(self) -> usize {
        QUERIES * self.head
    }
}

/// Scratch floats a thread needs.
pub fn scratch_len(tokens: usize, head_size: usize, backward: bool) -> usize {
    let sizes = ScratchSizes::new(tokens, head_size);
    if backward {
        5 * sizes.panels() + 4 * sizes.scores() + 3 * sizes.sums()
    } else {
        2 * sizes.panels() + sizes.scores() + sizes.sums()
    }
}

/// Runs the work of a head in panels of its width: wider ones would be half empty. No result depends on it.
fn run_head(isa: Isa, heads: Heads, work: impl Vectored) {
    if heads.head_size <= PAD / 2 { run_vectors::<2>(isa, work) } else { run_tiled(isa, work) }
}

/// Takes the next `len` floats of a scratch.
fn take<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(scratch).split_at_mut(len);
    *scratch = tail;
    head
}

/// `out` (B,T,NH,HS) and `lse` (B,NH,T).
pub fn forward(
    engine: &Engine,
    out: &mut [f32],
    lse: &mut [f32],
    qkv: Qkv<&[f32]>,
    rows: Rows,
    heads: Heads,
) {
    let channels = heads.heads * heads.head_size;
    let tasks = blocks(out, channels, channels, rows.seq, heads.head_size);
    engine.install(|| {
        tasks.into_par_iter().zip(lse.par_chunks_mut(rows.seq)).enumerate().for_each(
            |(index, (mut out, lse))| {
                let head = QkvHead::new(qkv, rows, heads, index / heads.heads, index % heads.heads);
                engine.with_scratch(scratch_len(rows.seq, heads.head_size, false), |scratch| {
                    run_head(engine.isa, heads, HeadForward { head, out: &mut out, lse, scratch });
                });
            },
        );
    });
}

struct HeadForward<'a, 'b> {
    head: QkvHead<'a>,
    out: &'a mut [&'b mut [f32]],
    lse: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Vectored for HeadForward<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let HeadForward { head, out, lse, mut scratch } = self;
        let QkvHead { tokens, stride, heads: Heads { head_size, .. }, .. } = head;
        let (sizes, scale) = (ScratchSizes::new(tokens, head_size), head.scale());
        let keys = take(&mut scratch, sizes.panels());
        let values = take(&mut scratch, sizes.panels());
        let scores = take(&mut scratch, sizes.scores());
        let sums = take(&mut scratch, sizes.sums());
        let [key, value] = head.keys_and_values();
        pack_all::<S, NV>(keys, columns(key), head_size, tokens);
        pack_all::<S, NV>(values, rows_of(value), tokens, head_size);
        for first in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - first);
            let query = &head.queries()[first * stride..];
            product::<S, NV>(
                simd,
                StridedMut { data: &mut *scores, stride: sizes.tokens, columns: first + rows },
                sums,
                Strided { data: query, stride },
                rows,
                Panels { data: keys, depth: head_size },
            );
            let mut inverse = [0.0f32; QUERIES];
            for row in 0..rows {
                let (seen, later) =
                    scores[row * sizes.tokens..][..first + rows].split_at_mut(first + row + 1);
                let max = largest(seen) * scale;
                seen.iter_mut().for_each(|s| *s = exp(s.mul_add(scale, -max)));
                let sum = sum_of(seen, |p| p);
                later.fill(0.0);
                inverse[row] = 1.0 / sum;
                lse[first + row] = max + ln(sum);
            }
            let (scores, values) =
                (Strided { data: scores, stride: sizes.tokens }, Panels { data: values, depth: tokens });
            causal_product::<S, NV>(simd, sums, scores, rows, first, values, head_size);
            write_rows::<S, NV>(&mut out[first..first + rows], sums, |row, sum| sum * inverse[row]);
        }
    }
}

/// Results of the forward pass that the backward pass reads.
#[derive(Clone, Copy)]
pub struct AttentionForward<'a> {
    pub qkv: Qkv<&'a [f32]>,
    /// (B, T, NH, HS)
    pub out: &'a [f32],
    /// (B, NH, T)
    pub lse: &'a [f32],
}

/// Gradient of [`forward`]: `dqkv` (B,T,NH+2*KH,HS) is set.
pub fn backward(
    engine: &Engine,
    dqkv: &mut [f32],
    dout: &[f32],
    forward: AttentionForward<'_>,
    rows: Rows,
    heads: Heads,
) {
    let AttentionForward { qkv, out, lse } = forward;
    let (channels, wide, sharing) = (heads.channels(), heads.qkv_channels(), heads.sharing());
    let mut parts = blocks(dqkv, wide, wide, rows.seq, heads.head_size).into_iter();
    let mut tasks = Vec::with_capacity(rows.batch * heads.kv_heads);
    for _ in 0..rows.batch {
        let mut next = |count| parts.by_ref().take(count).collect::<Vec<_>>();
        let mut dq = next(heads.heads).into_iter();
        let (dk, dv) = (next(heads.kv_heads), next(heads.kv_heads));
        tasks.extend(
            dk.into_iter().zip(dv).map(|(dk, dv)| (dq.by_ref().take(sharing).collect::<Vec<_>>(), dk, dv)),
        );
    }
    engine.install(|| {
        tasks.into_par_iter().enumerate().for_each(|(index, (mut dq, mut dk, mut dv))| {
            let (sequence, index) = (index / heads.kv_heads, index % heads.kv_heads * sharing);
            let first = QkvHead::new(qkv, rows, heads, sequence, index);
            let at = sequence * rows.seq * channels + index * heads.head_size;
            let lse = &lse[(sequence * heads.heads + index) * rows.seq..][..sharing * rows.seq];
            engine.with_scratch(scratch_len(rows.seq, heads.head_size, true), |scratch| {
                let (dq, dk, dv) = (&mut dq[..], &mut dk[..], &mut dv[..]);
                let (dout, out) = (&dout[at..], &out[at..]);
                run_head(engine.isa, heads, GroupBackward { first, dq, dk, dv, dout, out, lse, scratch });
            });
        });
    });
}

/// The heads of queries that share keys and values.
struct GroupBackward<'a, 'b> {
    first: QkvHead<'a>,
    /// Rows of dQ of each head, of dK and of dV.
    dq: &'a mut [Vec<&'b mut [f32]>],
    dk: &'a mut [&'b mut [f32]],
    dv: &'a mut [&'b mut [f32]],
    /// From the first head's first element on, as `out`.
    dout: &'a [f32],
    out: &'a [f32],
    /// (NH/KH, T)
    lse: &'a [f32],
    scratch: &'a mut [f32],
}

impl Vectored for GroupBackward<'_, '_> {
    /// With `D = rowsum(dO ∘ O)`: `dS = scale P ∘ (dO Vᵀ - D)`, `dQ = dS K`, `dK = dSᵀ Q`,
    /// `dV = Pᵀ dO`, each summed in order of its index; those of keys and values head by head.
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let GroupBackward { first: first_head, dq, dk, dv, dout, out, lse, mut scratch } = self;
        let QkvHead { tokens, stride, heads: Heads { heads, head_size, .. }, .. } = first_head;
        let sizes = ScratchSizes::new(tokens, head_size);
        let (channels, scale) = (heads * head_size, first_head.scale());
        let [keys_across, values_across, keys, dk_sums, dv_sums] =
            std::array::from_fn(|_| take(&mut scratch, sizes.panels()));
        let [p, ds, p_across, ds_across] = std::array::from_fn(|_| take(&mut scratch, sizes.scores()));
        let [sums, query_panels, dout_panels] = std::array::from_fn(|_| take(&mut scratch, sizes.sums()));
        let [key, value] = first_head.keys_and_values();
        pack_all::<S, NV>(keys_across, columns(key), head_size, tokens);
        pack_all::<S, NV>(values_across, columns(value), head_size, tokens);
        pack_all::<S, NV>(keys, rows_of(key), tokens, head_size);
        dk_sums.fill(0.0);
        dv_sums.fill(0.0);
        for (member, (dq, lse)) in dq.iter_mut().zip(lse.chunks_exact(tokens)).enumerate() {
            let head = QkvHead { index: first_head.index + member, ..first_head };
            let (dout, out) = (&dout[member * head_size..], &out[member * head_size..]);
            for first in (0..tokens).step_by(QUERIES) {
                let rows = QUERIES.min(tokens - first);
                let seen = first + rows;
                let query = &head.queries()[first * stride..];
                let dout = &dout[first * channels..];
                for (to, a, stride, across) in
                    [(&mut *p, query, stride, &*keys_across), (&mut *ds, dout, channels, &*values_across)]
                {
                    product::<S, NV>(
                        simd,
                        StridedMut { data: to, stride: sizes.tokens, columns: seen },
                        sums,
                        Strided { data: a, stride },
                        rows,
                        Panels { data: across, depth: head_size },
                    );
                }
                for row in 0..rows {
                    let at = row * channels;
                    let d = dot(&dout[at..at + head_size], &out[(first + row) * channels..][..head_size]);
                    let lse = lse[first + row];
                    let (p, p_later) = p[row * sizes.tokens..][..seen].split_at_mut(first + row + 1);
                    let (ds, ds_later) = ds[row * sizes.tokens..][..seen].split_at_mut(first + row + 1);
                    for (p, ds) in p.iter_mut().zip(ds) {
                        *p = exp(p.mul_add(scale, -lse));
                        *ds = *p * (*ds - d) * scale;
                    }
                    p_later.fill(0.0);
                    ds_later.fill(0.0);
                }
                let (ds_rows, keys) =
                    (Strided { data: ds, stride: sizes.tokens }, Panels { data: keys, depth: tokens });
                causal_product::<S, NV>(simd, sums, ds_rows, rows, first, keys, head_size);
                write_rows::<S, NV>(&mut dq[first..seen], sums, |_, sum| sum);

                let p_across = PackedLeft::new(p_across, p, sizes.tokens, rows, seen);
                let ds_across = PackedLeft::new(ds_across, ds, sizes.tokens, rows, seen);
                let douts = RightOperand::Rows { data: dout, stride: channels };
                pack_all::<S, NV>(query_panels, RightOperand::Rows { data: query, stride }, rows, head_size);
                pack_all::<S, NV>(dout_panels, douts, rows, head_size);
                let [queries, douts] =
                    [&*query_panels, &*dout_panels].map(|data| Panels { data, depth: rows });
                add_product::<S, NV>(simd, dk_sums, tokens, seen, ds_across, queries, head_size);
                add_product::<S, NV>(simd, dv_sums, tokens, seen, p_across, douts, head_size);
            }
        }
        write_rows::<S, NV>(dk, dk_sums, |_, sum| sum);
        write_rows::<S, NV>(dv, dv_sums, |_, sum| sum);
    }
}

/// A matrix as a right operand, summed along its rows.
fn columns(of: Strided<'_>) -> RightOperand<'_> {
    RightOperand::Columns { data: of.data, stride: of.stride }
}

/// A matrix as a right operand, its rows the terms of the sum.
fn rows_of(of: Strided<'_>) -> RightOperand<'_> {
    RightOperand::Rows { data: of.data, stride: of.stride }
}

/// Packs all `columns` of a right operand of `depth` steps as consecutive panels.
#[inline(always)]
fn pack_all<S: Simd, const NV: usize>(
    packed: &mut [f32],
    right: RightOperand<'_>,
    depth: usize,
    columns: usize,
) {
    let width = width::<S, NV>();
    for (panel, packed) in packed.chunks_exact_mut(depth * width).enumerate().take(columns.div_ceil(width)) {
        let column = panel * width;
        pack::<S, NV>(packed, right, 0, depth, column, width.min(columns - column));
    }
}

/// A right operand as [`pack_all`] leaves it: panels of `depth` steps.
#[derive(Clone, Copy)]
struct Panels<'a> {
    data: &'a [f32],
    depth: usize,
}

/// `to[i][j] = sum over k of a[i][k] B[k][j]` for `rows` rows and at least the columns of `to`.
#[inline(always)]
fn product<S: Simd, const NV: usize>(
    simd: S,
    to: StridedMut<'_>,
    sums: &mut [f32],
    a: Strided<'_>,
    rows: usize,
    panels: Panels<'_>,
) {
    let StridedMut { data: to, stride: to_stride, columns } = to;
    let Panels { data: panels, depth } = panels;
    let width = width::<S, NV>();
    for (panel, packed) in panels.chunks_exact(depth * width).enumerate().take(columns.div_ceil(width)) {
        let sums = &mut sums[..rows * width];
        sums.fill(0.0);
        accumulate(simd, strips_mut::<S, NV>(sums), rows, a, strips::<S, NV>(packed));
        for (row, sums) in sums.chunks_exact(width).enumerate() {
            to[row * to_stride + panel * width..][..width].copy_from_slice(sums);
        }
    }
}

/// Sums over the keys that a tile of queries sees, in panels: `sums[panel][row]`.
#[inline(always)]
fn causal_product<S: Simd, const NV: usize>(
    simd: S,
    sums: &mut [f32],
    a: Strided<'_>,
    rows: usize,
    first: usize,
    panels: Panels<'_>,
    columns: usize,
) {
    let (Strided { data: a, stride }, Panels { data: panels, depth: tokens }) = (a, panels);
    let width = width::<S, NV>();
    for (panel, packed) in panels.chunks_exact(tokens * width).enumerate().take(columns.div_ceil(width)) {
        let packed = strips::<S, NV>(packed);
        let sums = &mut sums[panel * rows * width..][..rows * width];
        sums.fill(0.0);
        for row in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - row);
            let seen = first + row + height;
            let sums = strips_mut::<S, NV>(&mut sums[row * width..(row + height) * width]);
            let a = Strided { data: &a[row * stride..], stride };
            accumulate(simd, sums, height, a, &packed[..seen]);
        }
    }
}

/// `sums[panel][key] += sum over queries of across[key][query] B[query]` for the first `seen` keys.
#[inline(always)]
fn add_product<S: Simd, const NV: usize>(
    simd: S,
    sums: &mut [f32],
    tokens: usize,
    seen: usize,
    across: PackedLeft<'_>,
    panels: Panels<'_>,
    columns: usize,
) {
    let Panels { data: panels, depth } = panels;
    let width = width::<S, NV>();
    for (panel, packed) in panels.chunks_exact(depth * width).enumerate().take(columns.div_ceil(width)) {
        let sums = &mut sums[panel * tokens * width..][..seen * width];
        accumulate(simd, strips_mut::<S, NV>(sums), seen, across, strips::<S, NV>(packed));
    }
}

/// Writes `f(row, sums[panel][row][..])` to the rows of an output.
#[inline(always)]
fn write_rows<S: Simd, const NV: usize>(out: &mut [&mut [f32]], sums: &[f32], f: impl Fn(usize, f32) -> f32) {
    let width = width::<S, NV>();
    let rows = out.len();
    for (row, out) in out.iter_mut().enumerate() {
        for (panel, out) in out.chunks_mut(width).enumerate() {
            let at = (panel * rows + row) * width;
            out.iter_mut().zip(&sums[at..at + width]).for_each(|(out, sum)| *out = f(row, *sum));
        }
    }
}

impl Perform<Attention<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Attention<'_, Buffer>) -> Result<()> {
        const OP: &str = "attention";
        let Attention { out, lse, qkv, values, rows, heads } = op;
        let out = view_mut(OP, "out", out, rows.count() * heads.channels())?;
        let lse = view_mut(OP, "lse", lse, rows.count() * heads.heads)?;
        let qkv = Qkv::of(qkv, values, rows, heads, |name, buf, len| view(OP, name, buf, len))?;
        forward(&self.engine, out, lse, qkv, rows, heads);
        Ok(())
    }
}

impl Perform<AttentionBackward<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: AttentionBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "attention_backward";
        let AttentionBackward { dqkv, dout, qkv, values, out, lse, rows, heads } = op;
        let (len, wide) = (rows.count() * heads.channels(), rows.count() * heads.qkv_channels());
        let forward = AttentionForward {
            qkv: Qkv::of(qkv, values, rows, heads, |name, buf, len| view(OP, name, buf, len))?,
            out: view(OP, "out", out, len)?,
            lse: view(OP, "lse", lse, rows.count() * heads.heads)?,
        };
        let dqkv = view_mut(OP, "dqkv", dqkv, wide)?;
        backward(&self.engine, dqkv, view(OP, "dout", dout, len)?, forward, rows, heads);
        Ok(())
    }
}
