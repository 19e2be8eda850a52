//! Launches of `embedding.cu`: the embedding and its gradient.

use super::super::Cuda;
use super::super::args::{Act, F32, In, Out, U16, U32, bindings};
use super::super::memory::{Buf, CudaIds};
use super::super::modules::{Geometry, Kernels};
use super::super::scratch::Use;
use super::{SLICE, slices};
use crate::ops::{Embedding, EmbeddingBackward, Perform, Result, Write};

bindings! {
    "embedding.cu" {
        struct EmbeddingArgs {
            out: Out<Act>, ids: In<U16>, wte: In<Act>, wpe: In<Act>, rows: u64, seq: u32, channels: u32,
        }
        struct SortArgs {
            ids: In<U16>, source: In<U32>, target: Out<U32>, counts: Out<U32>, rows: u32, shift: u32,
        }
        struct TokenGradArgs {
            dwte: Out<F32>, partials: Out<F32>, dout: In<Act>, ids: In<U16>, sorted: In<U32>, rows: u32,
            channels: u32,
        }
        struct PositionGradArgs {
            dwpe: Out<F32>, dout: In<Act>, batch: u32, seq: u32, channels: u32, add: u32,
        }
        kernel FORWARD(EmbeddingArgs) = "embedding_forward";
        kernel SORT_COUNT(SortArgs) = "sort_count";
        kernel SORT_SCATTER(SortArgs) = "sort_scatter";
        kernel TOKENS(TokenGradArgs) = "embedding_backward_tokens";
        kernel CROSSING(TokenGradArgs) = "embedding_backward_crossing";
        kernel POSITIONS(PositionGradArgs) = "embedding_backward_positions";
    }
}

/// Positions that one block sorts.
const SORT_TILE: u64 = 1024;
/// Sorted positions that one block adds.
const PIECE: u64 = 32;

fn forward(k: &Kernels, op: Embedding<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "embedding";
    let Embedding { out, ids, wte, wpe, rows, channels } = op;
    k.row_length(OP, channels)?;
    let n = rows.count();
    let args = EmbeddingArgs {
        out: Out::at(k.act(OP, "out", out, n * channels)?),
        ids: In::at(k.ids(OP, "ids", ids, n)?),
        wte: In::at(k.act(OP, "wte", wte, channels)?),
        wpe: wpe.map_or(Ok(In::null()), |wpe| k.act(OP, "wpe", wpe, rows.seq * channels).map(In::at))?,
        rows: n as u64,
        seq: rows.seq as u32,
        channels: channels as u32,
    };
    let chunks = n as u64 * (channels as u64 / 8);
    // SAFETY: lengths were checked; ids below V are the caller's promise, as for every operation on ids.
    unsafe { k.launch(OP, &FORWARD, Geometry::new(chunks.div_ceil(256), 256), &args) }
}

/// Scratch of the gradient.
#[derive(Clone, Copy)]
struct SortScratch {
    /// Two lists of n u32.
    lists: [u64; 2],
    /// 256 u32 a tile.
    counts: u64,
    /// 2C floats a piece.
    partials: u64,
}

/// Bytes of each part of [`SortScratch`]: one list, counts, partials.
pub fn sort_scratch_bytes(n: u64, channels: u64) -> [u64; 3] {
    [4 * n, 1024 * n.div_ceil(SORT_TILE), 8 * n.div_ceil(PIECE) * channels]
}

fn backward(k: &Kernels, scratch: SortScratch, op: EmbeddingBackward<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "embedding_backward";
    let EmbeddingBackward { dwte, dwte_write, vocab, dwpe, write, dout, ids, rows, channels } = op;
    k.row_length(OP, channels)?;
    let n = rows.count();
    k.check(OP, n < 1 << 32, || format!("{n} rows are more than fit 32 bits"))?;
    let dout = k.act(OP, "dout", dout, n * channels)?;
    let ids = k.ids(OP, "ids", ids, n)?;
    let dwte = k.f32(OP, "dwte", dwte, vocab * channels)?;
    if dwte_write == Write::Set {
        // SAFETY: the length was checked.
        unsafe { k.gpu.zero(dwte, 4 * (vocab * channels) as u64, OP) }?;
    }
    let tiles = (n as u64).div_ceil(SORT_TILE);
    let [first, second] = scratch.lists;
    for (shift, source, target) in [(0, 0, first), (8, first, second)] {
        let args = SortArgs {
            ids: In::at(ids),
            source: In::at(source),
            target: Out::at(target),
            counts: Out::at(scratch.counts),
            rows: n as u32,
            shift,
        };
        // SAFETY: the scratch has the bytes of `sort_scratch_bytes`; a null source counts from 0.
        unsafe {
            k.launch(OP, &SORT_COUNT, Geometry::new(tiles, 256), &args)?;
            k.launch(OP, &SORT_SCATTER, Geometry::new(tiles, 256), &args)?;
        }
    }
    let args = TokenGradArgs {
        dwte: Out::at(dwte),
        partials: Out::at(scratch.partials),
        dout: In::at(dout),
        ids: In::at(ids),
        sorted: In::at(second),
        rows: n as u32,
        channels: channels as u32,
    };
    let geometry = Geometry::new2((n as u64).div_ceil(PIECE), slices(channels), SLICE);
    // SAFETY: as above.
    unsafe {
        k.launch(OP, &TOKENS, geometry, &args)?;
        k.launch(OP, &CROSSING, geometry, &args)?;
    }
    let Some(dwpe) = dwpe else { return Ok(()) };
    k.check(OP, dwpe.len().is_multiple_of(channels), || {
        format!("`dwpe` has {} elements, not rows of {channels}", dwpe.len())
    })?;
    let add = write == Write::Add;
    let args = PositionGradArgs {
        dwpe: Out::at(k.f32(OP, "dwpe", dwpe, rows.seq * channels)?),
        dout: In::at(dout),
        batch: rows.batch as u32,
        seq: rows.seq as u32,
        channels: channels as u32,
        add: u32::from(add),
    };
    let table_rows = if add { rows.seq } else { dwpe.len() / channels };
    // SAFETY: `dwpe` has at least T rows, and as many as the grid when it is set.
    unsafe { k.launch(OP, &POSITIONS, Geometry::new2(table_rows as u64, slices(channels), SLICE), &args) }
}

impl Perform<Embedding<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: Embedding<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.out);
        forward(&self.kernels, op)
    }
}

impl Perform<EmbeddingBackward<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: EmbeddingBackward<'_, Buf, CudaIds>) -> Result<()> {
        let [list, counts, partials] = sort_scratch_bytes(op.rows.count() as u64, op.channels as u64);
        let (scratch, memory) = (&mut self.scratch, &mut self.memory);
        let scratch = SortScratch {
            lists: [scratch.get(memory, Use::SortFirst, list)?, scratch.get(memory, Use::SortSecond, list)?],
            counts: scratch.get(memory, Use::SortCounts, counts)?,
            partials: scratch.get(memory, Use::EmbeddingPartials, partials)?,
        };
        backward(&self.kernels, scratch, op)
    }
}
