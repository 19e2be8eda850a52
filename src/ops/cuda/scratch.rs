//! Scratch: memory that operations need beside their operands, planned from the shape.

use super::launch::{attention, classifier, digest, embedding, gemm_hopper, layernorm, optimizer, reduce};
use super::memory::{Allocation, Memory};
use crate::experiment::Compute;
use crate::ops::{Dtype, ParamCount, Result, ScratchShape};

/// The use of a piece of scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Use {
    /// A chunk of logits, and of their gradients.
    Logits,
    /// Column sums of the attention's output and its gradient.
    AttentionDelta,
    LayernormPartials,
    ColumnPartials,
    /// Column sums that GELU's gradient leaves for the weight gradient after it.
    GeluPartials,
    SortFirst,
    SortSecond,
    SortCounts,
    EmbeddingPartials,
    /// Pointers and lengths of all tensors, for AdamW.
    UpdateTable,
    SquaresTable,
    SquaresPartials,
    SquaresSums,
    DigestTable,
    DigestRuns,
    DigestLeaves,
    DigestNodes,
}

/// Uses in the order of `Use`'s numbers, with their names in the memory plan.
const USES: [(Use, &str); 17] = [
    (Use::Logits, "logits of a chunk"),
    (Use::AttentionDelta, "attention delta"),
    (Use::LayernormPartials, "layernorm partial sums"),
    (Use::ColumnPartials, "bias partial sums"),
    (Use::GeluPartials, "GELU partial sums"),
    (Use::SortFirst, "sorted positions, first pass"),
    (Use::SortSecond, "sorted positions"),
    (Use::SortCounts, "sort counts"),
    (Use::EmbeddingPartials, "embedding partial sums"),
    (Use::UpdateTable, "table of tensors for AdamW"),
    (Use::SquaresTable, "table of gradients"),
    (Use::SquaresPartials, "partial sums of squares"),
    (Use::SquaresSums, "sums of squares"),
    (Use::DigestTable, "table of tensors to hash"),
    (Use::DigestRuns, "table of digests"),
    (Use::DigestLeaves, "leaf digests"),
    (Use::DigestNodes, "node digests"),
];

/// Element type of weights and activations under a precision.
pub fn act_dtype(compute: Compute) -> Dtype {
    match compute {
        Compute::Auto | Compute::Bf16 => Dtype::BF16,
        Compute::Fp32 | Compute::Tf32 => Dtype::F32,
    }
}

/// Memory taken when the device is opened, by name, in bytes: that of the newest GPUs.
pub fn opened_plan() -> Vec<(String, u64)> {
    vec![
        ("matrix multiplication workspace".to_owned(), super::gemm::workspace_bytes(9)),
        ("turns of split sums".to_owned(), gemm_hopper::TURNS_BYTES),
    ]
}

/// Scratch for micro-batches of `shape`, by name, in bytes: what `alloc_scratch` allocates.
pub fn scratch_plan(shape: &ScratchShape, compute: Compute) -> Vec<(String, u64)> {
    planned(shape, compute)
        .into_iter()
        .map(|(which, bytes)| (USES[which as usize].1.to_owned(), bytes))
        .collect()
}

pub(super) fn planned(shape: &ScratchShape, compute: Compute) -> Vec<(Use, u64)> {
    let element = act_dtype(compute).size() as u64;
    let n = shape.rows.count() as u64;
    let (channels, padded) = (shape.channels as u64, shape.vocab.padded as u64);
    let mut plan = vec![(Use::Logits, classifier::chunk_rows(n, padded, element) * padded * element)];
    if shape.backward {
        // The widest bias is that of the MLP's first layer.
        let columns = reduce::partials_bytes(n, 4 * channels);
        let [list, counts, partials] = embedding::sort_scratch_bytes(n, channels);
        plan.extend([
            (Use::AttentionDelta, attention::delta_bytes(shape.rows, shape.heads)),
            (Use::LayernormPartials, layernorm::partials_bytes(n, channels)),
            (Use::ColumnPartials, columns),
            (Use::GeluPartials, columns),
            (Use::SortFirst, list),
            (Use::SortSecond, list),
            (Use::SortCounts, counts),
            (Use::EmbeddingPartials, partials),
        ]);
        plan.extend(over_all_tensors(shape, element));
    }
    plan
}

/// Scratch of the optimizer and the state digest: tables of all tensors, partial sums, digests. Each tensor's
/// last chunk, leaf or group may be short, so each counts one more.
fn over_all_tensors(shape: &ScratchShape, element: u64) -> [(Use, u64); 8] {
    const HASH: u64 = 32;
    let ParamCount { tensors, elements } = shape.params;
    let chunks = optimizer::chunks(elements) + tensors;
    // Parameters, masters and two moments.
    let hashed = 4 * tensors;
    let leaves = (elements * (element + 12)).div_ceil(digest::LEAF_BYTES) + hashed;
    let groups = leaves.div_ceil(digest::GROUP) + hashed;
    let rows = |count, size: usize| count * size as u64;
    [
        (Use::UpdateTable, rows(tensors, size_of::<optimizer::AdamwTensor>())),
        (Use::SquaresTable, rows(tensors, size_of::<optimizer::SquaresTensor>())),
        (Use::SquaresPartials, 8 * chunks),
        (Use::SquaresSums, 8 * tensors),
        (Use::DigestTable, rows(hashed, size_of::<digest::DigestTensor>())),
        (Use::DigestRuns, rows(digest::MOST_LEVELS * hashed, size_of::<digest::DigestRun>())),
        (Use::DigestLeaves, HASH * leaves),
        (Use::DigestNodes, HASH * groups),
    ]
}

/// The scratch of one device.
#[derive(Default)]
pub struct Scratch {
    allocations: [Option<Allocation>; USES.len()],
    generation: u64,
}

impl Scratch {
    /// Changes whenever an address may have.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The address of at least `bytes` bytes for `which`; the contents are whatever they are. What was
    /// planned for the shape is there already, and nothing is allocated.
    pub fn get(&mut self, memory: &mut Memory, which: Use, bytes: u64) -> Result<u64> {
        let slot = &mut self.allocations[which as usize];
        if let Some(allocation) = slot
            && allocation.bytes() >= bytes
        {
            return Ok(allocation.address());
        }
        self.generation += 1;
        // The old one goes first, or both would have to fit.
        *slot = None;
        Ok(slot.insert(memory.allocate(USES[which as usize].1, bytes)?).address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Heads, Rows, Vocab};

    #[test]
    fn uses_are_listed_in_their_own_order() {
        for (number, (which, _)) in USES.iter().enumerate() {
            assert_eq!(*which as usize, number, "{which:?}");
        }
    }

    #[test]
    fn the_plan_of_gpt2_1558m_fits_in_a_gigabyte() {
        let shape = ScratchShape {
            rows: Rows { batch: 16, seq: 1024 },
            channels: 1600,
            heads: Heads { heads: 25, head_size: 64 },
            vocab: Vocab { used: 50_257, padded: 50_304 },
            backward: true,
            params: ParamCount { tensors: 580, elements: 1_557_611_200 },
        };
        let plan = scratch_plan(&shape, Compute::Bf16);
        let logits = &plan[0];
        assert_eq!(logits, &("logits of a chunk".to_owned(), 8192 * 50_304 * 2));
        let total: u64 = opened_plan().iter().chain(&plan).map(|(_, bytes)| bytes).sum();
        assert!(total < 1200 << 20, "{} MiB", total >> 20);
        let evaluation = scratch_plan(&ScratchShape { backward: false, ..shape }, Compute::Bf16);
        assert_eq!(evaluation.len(), 1, "evaluation needs logits alone: {evaluation:?}");
    }
}
