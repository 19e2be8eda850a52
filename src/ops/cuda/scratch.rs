//! Scratch: memory that operations need beside their operands. How much each needs is `scratch_plan`'s to
//! say.

use super::memory::{Allocation, Memory};
use crate::ops::Result;

/// The use of a piece of scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Use {
    /// A chunk of logits, and of their gradients, or of the powers that stand for both.
    Logits,
    /// What the product that makes powers leaves of its stripes.
    SoftmaxStripes,
    /// A few numbers a row.
    SoftmaxRows,
    /// The classifier's input times the factors of its rows.
    ScaledInput,
    /// Of each query the product of attention's output and its gradient, on Hopper beside its log-sum-exp.
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
    /// Sums of squares of one matrix.
    MuonPartials,
    DigestTable,
    DigestRuns,
    DigestLeaves,
    DigestNodes,
}

/// Uses in the order of `Use`'s numbers, with their names in the memory plan.
pub(super) const USES: [(Use, &str); 21] = [
    (Use::Logits, "logits or powers of a chunk"),
    (Use::SoftmaxStripes, "softmax partial sums"),
    (Use::SoftmaxRows, "softmax rows"),
    (Use::ScaledInput, "classifier's scaled input"),
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
    (Use::MuonPartials, "partial sums of a matrix's squares"),
    (Use::DigestTable, "table of tensors to hash"),
    (Use::DigestRuns, "table of digests"),
    (Use::DigestLeaves, "leaf digests"),
    (Use::DigestNodes, "node digests"),
];

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

/// The bytes of each table as they lie on the device.
#[derive(Default)]
pub struct Tables {
    update: Vec<u8>,
    squares: Vec<u8>,
    digest: Vec<u8>,
    runs: Vec<u8>,
}

impl Tables {
    /// Those of the table for `which`.
    pub fn of(&mut self, which: Use) -> &mut Vec<u8> {
        match which {
            Use::SquaresTable => &mut self.squares,
            Use::DigestTable => &mut self.digest,
            Use::DigestRuns => &mut self.runs,
            _ => &mut self.update,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_listed_in_their_own_order() {
        for (number, (which, _)) in USES.iter().enumerate() {
            assert_eq!(*which as usize, number, "{which:?}");
        }
    }
}
