//! Operations on all tensors at once: AdamW, the sums of squares, and the Merkle roots.
//!
//! One launch covers every tensor of one learning rate through a table of pointers in device memory. A table
//! is uploaded only when it differs from the one that is there: in training once, where all have one rate.

use std::ops::Range;

use super::Cuda;
use super::args::{In, KernelArgs, Out};
use super::launch::digest::{self, DigestRun, DigestTensor};
use super::launch::optimizer::{self as kernels, AdamwTensor, SquaresTensor};
use super::memory::Buf;
use super::scratch::Use;
use crate::ops::{AdamWUpdate, ChunkSquares, Perform, Result, SumSquares};

pub(super) fn bytes_of<A: KernelArgs>(rows: &[A]) -> &[u8] {
    const { assert!(align_of::<A>() <= 8, "more alignment may mean padding") };
    // SAFETY: the trait promises `repr(C)` without padding, so every byte is initialised.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

impl Cuda {
    /// The address of a table that holds `rows`.
    fn table<A: KernelArgs>(&mut self, op: &'static str, which: Use, rows: &[A]) -> Result<u64> {
        let bytes = bytes_of(rows);
        let address = self.scratch.get(&mut self.memory, which, bytes.len() as u64)?;
        let known = self.tables.of(which);
        if known != bytes {
            // SAFETY: the scratch is at least as long as the rows.
            unsafe {
                self.staging.upload(address, bytes.len() as u64, op, |at, piece| {
                    piece.copy_from_slice(&bytes[at..][..piece.len()])
                })
            }?;
            bytes.clone_into(known);
        }
        Ok(address)
    }

    /// Merkle roots of a range of bytes of each buffer.
    pub(super) fn roots(&mut self, bufs: &[(&Buf, Range<usize>)]) -> Result<Vec<[u8; 32]>> {
        const OP: &str = "merkle_roots";
        let mut rows = Vec::new();
        let mut leaves = 0;
        let mut counts = Vec::new();
        for (buf, range) in bufs {
            let fits = range.end as u64 <= buf.bytes() && range.start.is_multiple_of(16);
            self.kernels.check(OP, fits, || format!("bytes {range:?} of a tensor of {}", buf.bytes()))?;
            let bytes = range.len() as u64;
            let count = bytes.div_ceil(digest::LEAF_BYTES);
            if count > 0 {
                rows.push(DigestTensor {
                    data: In::at(buf.address() + range.start as u64),
                    bytes,
                    first: leaves,
                });
                counts.push(count);
                leaves += count;
            }
        }
        let mut roots = self.roots_of(&rows, leaves, counts)?.into_iter();
        let empty: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest([]).into();
        Ok(bufs
            .iter()
            .map(|(_, range)| {
                if range.is_empty() {
                    empty
                } else {
                    roots.next().expect("a root for each tensor that has bytes")
                }
            })
            .collect())
    }

    fn roots_of(&mut self, rows: &[DigestTensor], leaves: u64, counts: Vec<u64>) -> Result<Vec<[u8; 32]>> {
        const OP: &str = "merkle_roots";
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let levels = levels(counts);
        let runs: Vec<DigestRun> = levels.iter().flat_map(|level| level.runs.iter().copied()).collect();
        let count = rows.len() as u32;
        let table = self.table(OP, Use::DigestTable, rows)?;
        let mut run_table = self.table(OP, Use::DigestRuns, &runs)?;
        let mut source = self.scratch.get(&mut self.memory, Use::DigestLeaves, 32 * leaves)?;
        let mut target = self.scratch.get(&mut self.memory, Use::DigestNodes, 32 * levels[0].groups)?;
        // SAFETY: the tables describe live tensors and the digests of the level below; each level has no
        // more digests than the one that its target held before.
        unsafe {
            digest::leaves(&self.kernels, table, count, source, leaves)?;
            for (number, level) in levels.iter().enumerate() {
                let last = number + 1 == levels.len();
                digest::nodes(&self.kernels, run_table, count, source, target, level.groups, last)?;
                run_table += size_of_val(level.runs.as_slice()) as u64;
                std::mem::swap(&mut source, &mut target);
            }
        }
        let mut roots = Vec::with_capacity(rows.len());
        // SAFETY: after the swap `source` holds one digest a tensor.
        unsafe {
            self.staging.download(source, 32 * u64::from(count), OP, |_, piece| {
                roots.extend_from_slice(piece.as_chunks::<32>().0)
            })
        }?;
        Ok(roots)
    }
}

impl Perform<AdamWUpdate<'_, Buf>> for Cuda {
    fn perform(&mut self, op: AdamWUpdate<'_, Buf>) -> Result<()> {
        const OP: &str = "adamw";
        let AdamWUpdate { slots, scalars } = op;
        let k = &self.kernels;
        let mut rows = Vec::with_capacity(slots.len());
        let mut blocks = 0;
        for slot in slots {
            let len = slot.adam_m.len();
            let end = slot.at + len;
            self.kernels.check(OP, slot.at.is_multiple_of(kernels::CHUNK as usize), || {
                format!("a part at {}", slot.at)
            })?;
            let param = k.act(OP, "param", slot.param, end)? + (slot.at * slot.param.dtype().size()) as u64;
            let master = slot.master.as_deref().map_or(Ok(0), |master| k.f32(OP, "master", master, len))?;
            rows.push(AdamwTensor {
                param: Out::at(param),
                master: Out::at(master),
                grad: In::at(k.f32(OP, "grad", slot.grad, slot.grad_at + len)? + 4 * slot.grad_at as u64),
                adam_m: Out::at(k.f32(OP, "adam_m", slot.adam_m, len)?),
                adam_v: Out::at(k.f32(OP, "adam_v", slot.adam_v, len)?),
                length: len as u64,
                offset: slot.at as u64,
                first: blocks,
                weight_decay: slot.weight_decay,
                id: slot.id,
            });
            blocks += kernels::chunks(len as u64);
        }
        let table = self.table(OP, Use::UpdateTable, &rows)?;
        // SAFETY: all lengths were checked, and `first` counts the chunks before each tensor.
        unsafe { kernels::adamw(&self.kernels, table, rows.len() as u32, blocks, &scalars) }
    }
}

impl Perform<SumSquares<'_, Buf>, Vec<f64>> for Cuda {
    fn perform(&mut self, op: SumSquares<'_, Buf>) -> Result<Vec<f64>> {
        const OP: &str = "sum_squares";
        let k = &self.kernels;
        let mut rows = Vec::with_capacity(op.tensors.len());
        let mut blocks = 0;
        for buf in op.tensors {
            rows.push(SquaresTensor {
                data: In::at(k.f32(OP, "grad", buf, buf.len())?),
                length: buf.len() as u64,
                first: blocks,
            });
            blocks += kernels::chunks(buf.len() as u64);
        }
        let table = self.table(OP, Use::SquaresTable, &rows)?;
        let partials = self.scratch.get(&mut self.memory, Use::SquaresPartials, 8 * blocks)?;
        let sums = self.scratch.get(&mut self.memory, Use::SquaresSums, 8 * rows.len() as u64)?;
        // SAFETY: the table holds live tensors, and both results have room.
        unsafe { kernels::sum_squares(&self.kernels, table, partials, sums, rows.len() as u32, blocks) }?;
        let mut result = Vec::with_capacity(rows.len());
        // SAFETY: the sums lie in live scratch.
        unsafe {
            self.staging.download(sums, 8 * rows.len() as u64, OP, |_, piece| {
                result.extend(piece.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)));
            })
        }?;
        Ok(result)
    }
}

impl Perform<ChunkSquares<'_, Buf>, Vec<f64>> for Cuda {
    fn perform(&mut self, op: ChunkSquares<'_, Buf>) -> Result<Vec<f64>> {
        const OP: &str = "chunk_squares";
        let mut rows = Vec::with_capacity(op.parts.len());
        let mut blocks = 0;
        for (buf, part) in op.parts.iter().filter(|(_, part)| !part.is_empty()) {
            let data = self.kernels.f32(OP, "part", buf, part.end)? + 4 * part.start as u64;
            rows.push(SquaresTensor { data: In::at(data), length: part.len() as u64, first: blocks });
            blocks += kernels::chunks(part.len() as u64);
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let table = self.table(OP, Use::SquaresTable, &rows)?;
        let partials = self.scratch.get(&mut self.memory, Use::SquaresPartials, 8 * blocks)?;
        // SAFETY: the table holds parts of live tensors, and the partial sums have room.
        unsafe { kernels::chunk_squares(&self.kernels, table, partials, rows.len() as u32, blocks) }?;
        let mut result = Vec::with_capacity(blocks as usize);
        // SAFETY: the partial sums lie in live scratch.
        unsafe {
            self.staging.download(partials, 8 * blocks, OP, |_, piece| {
                result.extend(piece.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)));
            })
        }?;
        Ok(result)
    }
}

/// One launch of `digest_nodes`: the digests of each tensor, and the groups they make.
struct Level {
    runs: Vec<DigestRun>,
    groups: u64,
}

/// From the number of leaves of each tensor to one digest each.
fn levels(mut counts: Vec<u64>) -> Vec<Level> {
    let mut levels = Vec::new();
    loop {
        let (mut source, mut first) = (0, 0);
        let mut runs = Vec::with_capacity(counts.len());
        for count in &mut counts {
            let groups = count.div_ceil(digest::GROUP);
            runs.push(DigestRun { source, count: *count, first });
            source += *count;
            first += groups;
            *count = groups;
        }
        levels.push(Level { runs, groups: first });
        if counts.iter().all(|count| *count == 1) {
            return levels;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_end_with_one_digest_a_tensor() {
        let levels = levels(vec![1, 512, 513, 300_000]);
        let shape: Vec<(Vec<u64>, u64)> = levels
            .iter()
            .map(|level| (level.runs.iter().map(|run| run.count).collect(), level.groups))
            .collect();
        assert_eq!(
            shape,
            [(vec![1, 512, 513, 300_000], 590), (vec![1, 1, 2, 586], 5), (vec![1, 1, 1, 2], 4)]
        );
        let second: Vec<(u64, u64)> = levels[1].runs.iter().map(|run| (run.source, run.first)).collect();
        assert_eq!(second, [(0, 0), (1, 1), (2, 2), (4, 3)]);
    }
}
