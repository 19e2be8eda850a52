//! Launches of `rotary.cu`: rotary position embeddings.

use super::super::Cuda;
use super::super::args::{Act, F32, In, Out, U16, bindings};
use super::super::memory::{Buf, CudaIds};
use super::super::modules::{Geometry, Kernels};
use crate::ops::{Heads, Perform, Result, Rotary, RotaryAt};

bindings! {
    "rotary.cu" {
        struct RotaryArgs {
            qkv: Out<Act>, table: In<F32>, positions: In<U16>, rows: u32, seq: u32, heads: u32,
            kv_heads: u32, head_size: u32, inverse: u32,
        }
        kernel ROTARY(RotaryArgs) = "rotary";
    }
}

/// Heads that one thread turns.
const HEADS: usize = 4;

/// The angles of rows, as kernels take them.
#[derive(Clone, Copy)]
pub struct AngleArgs {
    pub table: In<F32>,
    /// Null: row i has position i % `seq`.
    pub positions: In<U16>,
    /// 1 with positions.
    pub seq: u32,
}

impl AngleArgs {
    /// No angles.
    pub fn none() -> AngleArgs {
        AngleArgs { table: In::null(), positions: In::null(), seq: 1 }
    }

    /// Listed positions within the table are the caller's promise, as for every operation on ids.
    pub fn of(
        k: &Kernels,
        op: &'static str,
        table: &Buf,
        at: RotaryAt<'_, CudaIds>,
        head_size: usize,
    ) -> Result<AngleArgs> {
        let (positions, seq) = match at {
            RotaryAt::Sequences(rows) => (In::null(), rows.seq),
            RotaryAt::Listed { positions, rows } => (In::at(k.ids(op, "positions", positions, rows)?), 1),
        };
        let table = In::at(k.f32(op, "table", table, seq * head_size)?);
        Ok(AngleArgs { table, positions, seq: seq as u32 })
    }
}

fn rotate(k: &Kernels, op: Rotary<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "rotary";
    let Rotary { qkv, table, at, heads, inverse, .. } = op;
    let (n, Heads { head_size, .. }) = (at.rows(), heads);
    k.row_length(OP, head_size)?;
    let threads = (n * heads.of_queries_and_keys().div_ceil(HEADS) * (head_size / 8)) as u64;
    k.check(OP, threads < (1 << 32) - 256, || {
        format!("{n} rows of {} heads are more than fit 32 bits", heads.heads)
    })?;
    let AngleArgs { table, positions, seq } = AngleArgs::of(k, OP, table, at, head_size)?;
    let args = RotaryArgs {
        qkv: Out::at(k.act(OP, "qkv", qkv, n * heads.qkv_channels())?),
        table,
        positions,
        rows: n as u32,
        seq,
        heads: heads.heads as u32,
        kv_heads: heads.kv_heads as u32,
        head_size: head_size as u32,
        inverse: u32::from(inverse),
    };
    // SAFETY: lengths were checked; listed positions within the table are the caller's promise.
    unsafe { k.launch(OP, &ROTARY, Geometry::new(threads.div_ceil(256), 256), &args) }
}

impl Perform<Rotary<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: Rotary<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.qkv);
        rotate(&self.kernels, op)
    }
}
