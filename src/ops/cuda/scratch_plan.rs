//! How much scratch a model's operations need, from the shape.

use super::launch::{
    attention, classifier, classifier_hopper, digest, embedding, gemm_hopper, layernorm, muon, optimizer,
    qk_norm, reduce,
};
use super::scratch::{USES, Use};
use super::{act_dtype, gemm};
use crate::experiment::Compute;
use crate::ops::{Dtype, ParamCount, Rows, ScratchShape};

/// Memory taken when the device is opened, by name, in bytes: that of the newest GPUs.
pub fn opened_plan() -> Vec<(String, u64)> {
    vec![
        ("matrix multiplication workspace".to_owned(), gemm::workspace_bytes(9)),
        ("turns of split sums".to_owned(), gemm_hopper::TURNS_BYTES),
    ]
}

/// Scratch for micro-batches of `shape`, by name, in bytes: what `alloc_scratch` allocates on a Hopper GPU.
pub fn scratch_plan(shape: &ScratchShape, compute: Compute) -> Vec<(String, u64)> {
    planned(shape, compute, act_dtype(compute) == Dtype::BF16)
        .into_iter()
        .map(|(which, bytes)| (USES[which as usize].1.to_owned(), bytes))
        .collect()
}

/// `powers`: whether the classifier [ends in powers](super::classifier::ends_in_powers).
pub(super) fn planned(shape: &ScratchShape, compute: Compute, powers: bool) -> Vec<(Use, u64)> {
    let element = act_dtype(compute).size() as u64;
    let n = shape.rows.count() as u64;
    let (channels, padded) = (shape.channels as u64, shape.vocab.padded as u64);
    let chunk = classifier::chunk_rows(n, padded, element);
    let logits = (Use::Logits, chunk * padded * element);
    let mut plan = Vec::new();
    if powers {
        plan.push((Use::SoftmaxStripes, classifier_hopper::stripes_bytes(chunk, padded)));
        plan.push((Use::SoftmaxRows, classifier_hopper::RowScratch::bytes(chunk)));
        if shape.backward {
            plan.extend([logits, (Use::ScaledInput, chunk * channels * element)]);
        }
    } else {
        plan.push(logits);
    }
    if shape.backward {
        // The widest bias is that of the MLP's first layer, or of queries, keys and values.
        let columns =
            reduce::partials_bytes(n, (shape.mlp.inputs() as u64).max(shape.heads.qkv_channels() as u64));
        // A norm of queries and keys takes turns with the others.
        let norms =
            layernorm::partials_bytes(n, channels, shape.bias).max(qk_norm::partials_bytes(n, shape.heads));
        let [list, counts, partials] = embedding::sort_scratch_bytes(n, channels);
        plan.extend([
            (Use::AttentionDelta, attention_delta(shape)),
            (Use::LayernormPartials, norms),
            (Use::ColumnPartials, columns),
            (Use::GeluPartials, columns),
            (Use::SortFirst, list),
            (Use::SortSecond, list),
            (Use::SortCounts, counts),
            (Use::EmbeddingPartials, partials),
        ]);
        plan.extend(over_all_tensors(shape, element));
        plan.retain(|(which, _)| shape.bias || *which != Use::ColumnPartials);
    }
    plan
}

/// For whole sequences and for pieces of each length that they may be cut into, rounded up to tiles.
fn attention_delta(shape: &ScratchShape) -> u64 {
    let ScratchShape { rows: Rows { batch, seq }, least_seq, heads, .. } = *shape;
    let lengths = (least_seq.max(1)..=seq).filter(|piece| seq.is_multiple_of(*piece));
    let pieces = lengths.map(|piece| Rows { batch: batch * (seq / piece), seq: piece });
    let bytes = pieces.map(|rows| attention::delta_bytes(rows, heads));
    bytes.max().unwrap_or(0)
}

/// Scratch of the optimizer and the state digest: tables of all tensors, partial sums, digests. Each tensor's
/// last chunk, leaf or group may be short, so each counts one more.
fn over_all_tensors(shape: &ScratchShape, element: u64) -> [(Use, u64); 9] {
    const HASH: u64 = 32;
    let ParamCount { tensors, elements } = shape.params;
    let chunks = optimizer::chunks(elements) + tensors;
    // Parameters, masters, two moments and an average.
    let hashed = 5 * tensors;
    let leaves = (elements * (element + 16)).div_ceil(digest::LEAF_BYTES) + hashed;
    let groups = leaves.div_ceil(digest::GROUP) + hashed;
    let rows = |count, size: usize| count * size as u64;
    [
        (Use::UpdateTable, rows(tensors, size_of::<optimizer::AdamwTensor>())),
        (Use::SquaresTable, rows(tensors, size_of::<optimizer::SquaresTensor>())),
        (Use::SquaresPartials, 8 * chunks),
        (Use::SquaresSums, 8 * tensors),
        (Use::MuonPartials, muon::partials_bytes(widest_matrix(shape))),
        (Use::DigestTable, rows(hashed, size_of::<digest::DigestTensor>())),
        (Use::DigestRuns, rows(digest::MOST_LEVELS * hashed, size_of::<digest::DigestRun>())),
        (Use::DigestLeaves, HASH * leaves),
        (Use::DigestNodes, HASH * groups),
    ]
}

/// Elements of the largest matrix in a block.
fn widest_matrix(shape: &ScratchShape) -> u64 {
    (shape.channels * shape.mlp.inputs().max(3 * shape.channels)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Heads, MlpShape, Vocab};

    /// 2 heads: the bytes of 2 floats a row. Pieces of 8 tokens take a tile of 64 rows each, those of 96 two.
    #[test]
    fn attention_has_scratch_for_the_shortest_pieces_and_all_between() {
        let delta = |seq, least_seq| {
            let rows = Rows { batch: 3, seq };
            let shape = ScratchShape { rows, least_seq, ..scratch_shape_of_tests() };
            attention_delta(&shape)
        };
        assert_eq!(delta(192, 192), 3 * 2 * 192 * 8);
        assert_eq!(delta(192, 96), 6 * 2 * 128 * 8);
        assert_eq!(delta(192, 8), 72 * 2 * 64 * 8);
        // Of pieces of 128 and 160 tokens, the longer ones are rounded up by more.
        assert_eq!(delta(640, 128), 3 * 4 * 2 * 192 * 8);
    }

    fn scratch_shape_of_tests() -> ScratchShape {
        ScratchShape {
            rows: Rows { batch: 1, seq: 64 },
            least_seq: 64,
            channels: 128,
            heads: Heads::new(2, 64),
            vocab: Vocab { used: 257, padded: 384 },
            backward: true,
            bias: true,
            mlp: MlpShape::gpt2(128),
            params: ParamCount { tensors: 4, elements: 1000 },
        }
    }

    #[test]
    fn the_plan_of_gpt2_1558m_fits_in_a_gigabyte() {
        let shape = ScratchShape {
            rows: Rows { batch: 16, seq: 1024 },
            least_seq: 1024,
            channels: 1600,
            heads: Heads::new(25, 64),
            vocab: Vocab { used: 50_257, padded: 50_304 },
            backward: true,
            bias: true,
            mlp: MlpShape::gpt2(1600),
            params: ParamCount { tensors: 580, elements: 1_557_611_200 },
        };
        let plan = scratch_plan(&shape, Compute::Bf16);
        assert!(plan.contains(&("logits or powers of a chunk".to_owned(), 8192 * 50_304 * 2)));
        let total: u64 = opened_plan().iter().chain(&plan).map(|(_, bytes)| bytes).sum();
        assert!(total < 1200 << 20, "{} MiB", total >> 20);
        let names = |shape: ScratchShape| -> Vec<String> {
            scratch_plan(&shape, Compute::Bf16).into_iter().map(|(name, _)| name).collect()
        };
        let unbiased = names(ScratchShape { bias: false, ..shape });
        let missing: Vec<_> = names(shape).into_iter().filter(|name| !unbiased.contains(name)).collect();
        assert_eq!(missing, ["bias partial sums"]);
        let evaluation = scratch_plan(&ScratchShape { backward: false, ..shape }, Compute::Bf16);
        let names: Vec<&str> = evaluation.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["softmax partial sums", "softmax rows"]);
        let single = scratch_plan(&ScratchShape { backward: false, ..shape }, Compute::Fp32);
        assert_eq!(single.len(), 1, "evaluation in fp32 needs logits alone: {single:?}");
    }
}
