//! Launches of `reduce.cu`: sums over rows, in a fixed order.

use super::super::args::{Act, F32, In, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use crate::ops::{Result, Write};

bindings! {
    "reduce.cu" {
        struct ColumnSumArgs { partials: Out<F32>, dout: In<Act>, rows: u64, width: u64 }
        struct ReducePartialsArgs {
            out0: Out<F32>, out1: Out<F32>, partials: In<F32>, count: u64, width: u64, split: u64,
            add: u32, unused: u32,
        }
        kernel COLUMN_SUM(ColumnSumArgs) = "column_sum";
        kernel REDUCE_PARTIALS(ReducePartialsArgs) = "reduce_partials";
    }
}

/// Rows that one block adds; `gelu_backward` uses the same tiles.
pub const COLUMN_ROWS: u64 = 128;

/// Bytes of the partial sums of (n, width).
pub fn partials_bytes(n: u64, width: u64) -> u64 {
    n.div_ceil(COLUMN_ROWS) * width * 4
}

pub fn column_geometry(n: u64, width: u64) -> Geometry {
    Geometry::new2(width.div_ceil(256), n.div_ceil(COLUMN_ROWS), 256)
}

/// Leaves partial column sums of `dout` (n, width), of [`partials_bytes`], in `partials`.
pub fn column_sum(
    k: &Kernels,
    op: &'static str,
    partials: u64,
    dout: &Buf,
    n: usize,
    width: usize,
) -> Result<()> {
    k.row_length(op, width)?;
    let dout = k.act(op, "dout", dout, n * width)?;
    // SAFETY: the length was checked; the scratch is the caller's promise.
    unsafe { column_sum_at(k, op, partials, dout, n as u64, width as u64) }
}

/// # Safety
/// `dout` is the address of `rows` times `width` elements, and `partials` has room for their sums.
pub unsafe fn column_sum_at(
    k: &Kernels,
    op: &'static str,
    partials: u64,
    dout: u64,
    rows: u64,
    width: u64,
) -> Result<()> {
    let args = ColumnSumArgs { partials: Out::at(partials), dout: In::at(dout), rows, width };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &COLUMN_SUM, column_geometry(rows, width), &args) }
}

/// Where reduced columns go: the first `split` of `width` to `first`, the rest to `second`.
pub struct Targets {
    pub first: u64,
    pub second: u64,
    pub split: u64,
    pub width: u64,
}

/// Adds `count` partial rows.
pub fn reduce_partials(
    k: &Kernels,
    op: &'static str,
    targets: Targets,
    partials: u64,
    count: u64,
    write: Write,
) -> Result<()> {
    let Targets { first, second, split, width } = targets;
    let args = ReducePartialsArgs {
        out0: Out::at(first),
        out1: Out::at(second),
        partials: In::at(partials),
        count,
        width,
        split,
        add: u32::from(write == Write::Add),
        unused: 0,
    };
    // SAFETY: callers have checked the lengths of both targets and sized the partials.
    unsafe { k.launch(op, &REDUCE_PARTIALS, Geometry::new(width.div_ceil(32), 1024), &args) }
}
