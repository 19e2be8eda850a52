//! Launches of `qk_norm.cu`: RMSNorm of queries and keys.

use super::super::Cuda;
use super::super::args::{Act, F32, In, Out, U16, bindings};
use super::super::memory::{Buf, CudaIds};
use super::super::modules::{Geometry, Kernels};
use super::super::scratch::Use;
use super::reduce::{self, Targets};
use super::rotary::AngleArgs;
use crate::ops::{Heads, Perform, QkNorm, QkNormBackward, QkRotary, Result};

bindings! {
    "qk_norm.cu" {
        struct QkNormArgs {
            out: Out<Act>, rstd: Out<F32>, x: In<Act>, q_weight: In<Act>, k_weight: In<Act>,
            table: In<F32>, positions: In<U16>, vectors: u32, heads: u32, kv_heads: u32, head_size: u32,
            lanes: u32, seq: u32, slices: u32, unused: u32,
        }
        struct QkNormBackwardArgs {
            dqkv: Out<Act>, partials: Out<F32>, x: In<Act>, q_weight: In<Act>, k_weight: In<Act>,
            rstd: In<F32>, table: In<F32>, positions: In<U16>, rows: u32, block_vectors: u32, heads: u32,
            kv_heads: u32, head_size: u32, lanes: u32, seq: u32, unused: u32,
        }
        kernel FORWARD(QkNormArgs) = "qk_norm";
        kernel FORWARD_ROTARY(QkNormArgs) = "qk_norm_rotary";
        kernel BACKWARD(QkNormBackwardArgs) = "qk_norm_backward";
        kernel BACKWARD_ROTARY(QkNormBackwardArgs) = "qk_norm_backward_rotary";
    }
}

/// The widest head that a warp holds.
const MOST_HEAD_SIZE: usize = 256;
/// Heads that a group of lanes has in flight in the forward pass.
const IN_FLIGHT: usize = 4;

/// Lanes of a head: eight columns each.
fn lanes(head_size: usize) -> usize {
    (head_size / 8).next_power_of_two().max(8)
}

fn check(k: &Kernels, op: &'static str, rows: usize, heads: Heads) -> Result<()> {
    let Heads { heads: count, kv_heads, head_size } = heads;
    k.row_length(op, head_size)?;
    k.check(op, head_size <= MOST_HEAD_SIZE, || {
        format!("heads of {head_size} channels are wider than {MOST_HEAD_SIZE}")
    })?;
    k.check(op, rows * (count + 2 * kv_heads) < 1 << 31, || {
        format!("{rows} rows of {count} heads are more than fit 32 bits")
    })
}

/// The angles of `n` rows, if they are turned.
fn angles(
    k: &Kernels,
    op: &'static str,
    rotary: Option<QkRotary<'_, Buf, CudaIds>>,
    n: usize,
    head_size: usize,
) -> Result<AngleArgs> {
    let Some(QkRotary { table, at, .. }) = rotary else { return Ok(AngleArgs::none()) };
    k.check(op, at.rows() == n, || format!("{} positions of {n} rows", at.rows()))?;
    AngleArgs::of(k, op, table, at, head_size)
}

fn forward(k: &Kernels, op: QkNorm<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "qk_norm";
    let QkNorm { out, rstd, x, q_weight, k_weight, rows: n, heads, values, rotary } = op;
    check(k, OP, n, heads)?;
    let of_row = heads.slices(values);
    let head_size = heads.head_size;
    let (lanes, vectors) = (lanes(head_size), n * of_row);
    let AngleArgs { table, positions, seq } = angles(k, OP, rotary, n, head_size)?;
    let args = QkNormArgs {
        out: Out::at(k.act(OP, "out", out, n * of_row * head_size)?),
        rstd: Out::at(k.f32(OP, "rstd", rstd, n * heads.of_queries_and_keys())?),
        x: In::at(k.act(OP, "x", x, n * heads.qkv_channels())?),
        q_weight: In::at(k.act(OP, "q_weight", q_weight, head_size)?),
        k_weight: In::at(k.act(OP, "k_weight", k_weight, head_size)?),
        table,
        positions,
        vectors: vectors as u32,
        heads: heads.heads as u32,
        kv_heads: heads.kv_heads as u32,
        head_size: head_size as u32,
        lanes: lanes as u32,
        seq,
        slices: of_row as u32,
        unused: 0,
    };
    // With rotary no group of lanes has heads of two rows.
    let (kernel, groups) = match rotary {
        Some(_) => (&FORWARD_ROTARY, n * of_row.div_ceil(IN_FLIGHT)),
        None => (&FORWARD, vectors.div_ceil(IN_FLIGHT)),
    };
    let blocks = groups.div_ceil(256 / lanes) as u64;
    // SAFETY: all lengths were checked; listed positions within the table are the caller's promise.
    unsafe { k.launch(OP, kernel, Geometry::new(blocks, 256), &args) }
}

/// Heads of queries that one block of the gradient adds, as many of keys while there are any, and the number
/// of blocks.
fn blocks(n: u64, heads: u64) -> (u64, u64) {
    let of_block = (n * heads).div_ceil(1024).max(n.div_ceil(512) + 3).next_multiple_of(64);
    (of_block, (n * heads).div_ceil(of_block))
}

/// Bytes of the partial weight gradients.
pub fn partials_bytes(n: u64, heads: Heads) -> u64 {
    blocks(n, heads.heads as u64).1 * 2 * heads.head_size as u64 * 4
}

/// `partials` has the bytes of [`partials_bytes`].
fn backward(k: &Kernels, partials: u64, op: QkNormBackward<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "qk_norm_backward";
    let QkNormBackward { dqkv, dq_weight, dk_weight, write, x, q_weight, k_weight, rstd, rows: n, .. } = op;
    check(k, OP, n, op.heads)?;
    let (size, normed) = (n * op.heads.qkv_channels(), n * op.heads.of_queries_and_keys());
    let Heads { heads, kv_heads, head_size } = op.heads;
    let AngleArgs { table, positions, seq } = angles(k, OP, op.rotary, n, head_size)?;
    let (of_block, count) = blocks(n as u64, heads as u64);
    let args = QkNormBackwardArgs {
        dqkv: Out::at(k.act(OP, "dqkv", dqkv, size)?),
        partials: Out::at(partials),
        x: In::at(k.act(OP, "x", x, size)?),
        q_weight: In::at(k.act(OP, "q_weight", q_weight, head_size)?),
        k_weight: In::at(k.act(OP, "k_weight", k_weight, head_size)?),
        rstd: In::at(k.f32(OP, "rstd", rstd, normed)?),
        table,
        positions,
        rows: n as u32,
        block_vectors: of_block as u32,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_size: head_size as u32,
        lanes: lanes(head_size) as u32,
        seq,
        unused: 0,
    };
    let targets = Targets {
        first: k.f32(OP, "dq_weight", dq_weight, head_size)?,
        second: k.f32(OP, "dk_weight", dk_weight, head_size)?,
        split: head_size as u64,
        width: 2 * head_size as u64,
    };
    let kernel = if op.rotary.is_some() { &BACKWARD_ROTARY } else { &BACKWARD };
    // SAFETY: all lengths were checked; the scratch, and listed positions within the table, are the caller's
    // promise.
    unsafe { k.launch(OP, kernel, Geometry::new(count, 256), &args) }?;
    reduce::reduce_partials(k, OP, targets, partials, count, write)
}

impl Perform<QkNorm<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: QkNorm<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.out);
        forward(&self.kernels, op)
    }
}

impl Perform<QkNormBackward<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: QkNormBackward<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.dqkv);
        let bytes = partials_bytes(op.rows as u64, op.heads);
        let partials = self.scratch.get(&mut self.memory, Use::LayernormPartials, bytes)?;
        backward(&self.kernels, partials, op)
    }
}
