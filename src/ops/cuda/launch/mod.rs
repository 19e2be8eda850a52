//! Typed launches: one Rust function a kernel, which checks lengths and limits, computes the geometry
//! and passes one argument struct. One file for each .cu file.

pub mod attention;
pub mod attention_hopper;
pub mod classifier;
pub mod decode;
pub mod digest;
pub mod elementwise;
pub mod embedding;
pub mod gelu;
pub mod gemm_hopper;
pub mod layernorm;
pub mod optimizer;
pub mod reduce;
pub mod tensor_map;

use super::args::KernelInfo;

/// Threads of the kernels that own eight channels a thread.
const SLICE: u32 = 128;

/// Blocks that it takes to cover a row with [`SLICE`] threads of eight channels.
fn slices(channels: usize) -> u64 {
    (channels as u64 / 8).div_ceil(u64::from(SLICE))
}

/// Every kernel that is launched anywhere.
pub fn kernels() -> Vec<KernelInfo> {
    let mut all = vec![
        embedding::FORWARD.describe(),
        embedding::SORT_COUNT.describe(),
        embedding::SORT_SCATTER.describe(),
        embedding::TOKENS.describe(),
        embedding::CROSSING.describe(),
        embedding::POSITIONS.describe(),
        layernorm::FORWARD.describe(),
        layernorm::RESIDUAL_FORWARD.describe(),
        layernorm::BACKWARD.describe(),
        layernorm::BACKWARD_WIDE.describe(),
        reduce::COLUMN_SUM.describe(),
        reduce::REDUCE_PARTIALS.describe(),
        gelu::FORWARD.describe(),
        gelu::BACKWARD.describe(),
        classifier::LOSS.describe(),
        classifier::GRADIENT.describe(),
        optimizer::ADAMW.describe(),
        optimizer::SQUARES_PARTIAL.describe(),
        optimizer::SQUARES_REDUCE.describe(),
        elementwise::ADD.describe(),
        digest::LEAVES.describe(),
        digest::NODES.describe(),
        attention::ANY_FORWARD.describe(),
        attention::ANY_QUERY.describe(),
        attention::ANY_KEY.describe(),
        attention::FORWARD.describe(),
        attention::BACKWARD_QUERY.describe(),
        attention::BACKWARD_KEY.describe(),
        attention_hopper::FORWARD.describe(),
        attention_hopper::BACKWARD_QUERY.describe(),
        attention_hopper::BACKWARD_KEY.describe(),
        decode::EMBEDDING.describe(),
        decode::LINEAR[0].describe(),
        decode::LINEAR[1].describe(),
        decode::LINEAR[2].describe(),
        decode::LINEAR[3].describe(),
        decode::STORE.describe(),
        decode::ATTENTION[0].describe(),
        decode::ATTENTION[1].describe(),
    ];
    all.extend(gemm_hopper::kernels());
    all
}

#[cfg(test)]
mod tests {
    use super::super::args::{FieldLayout, KernelArgs};
    use super::super::sources::SOURCES;
    use super::*;

    fn text_of(file: &str) -> &'static str {
        SOURCES.iter().find(|source| source.file == file).unwrap_or_else(|| panic!("{file} is embedded")).text
    }

    /// The fields of `struct name` in CUDA source: type and name, without comments.
    fn fields_in_source(text: &str, name: &str) -> Vec<(String, String)> {
        let start = text
            .find(&format!("struct {name} {{"))
            .unwrap_or_else(|| panic!("struct {name} is in the source"));
        let body = &text[start..][..text[start..].find("};").expect("the struct ends")];
        let lines = body
            .lines()
            .skip(1)
            .map(|line| line.split("//").next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let line =
                    line.strip_suffix(';').unwrap_or_else(|| panic!("`{line}` of {name} is one field"));
                let (c_type, field) = line.rsplit_once(' ').expect("type and name");
                match field.split_once('[') {
                    Some((field, count)) => (format!("{c_type}[{count}"), field.to_owned()),
                    None => (c_type.to_owned(), field.to_owned()),
                }
            })
            .collect()
    }

    fn check<A: KernelArgs>() {
        let layout = A::layout();
        let bound: Vec<(String, String)> =
            layout.iter().map(|field| (field.c_type.clone(), field.name.to_owned())).collect();
        assert_eq!(
            fields_in_source(text_of(A::FILE), A::NAME),
            bound,
            "fields of {} in {}",
            A::NAME,
            A::FILE
        );
        // C lays fields out by the same rule; without padding the sizes alone fix every offset.
        let mut end = 0;
        for FieldLayout { name, offset, bytes, .. } in &layout {
            assert_eq!(*offset, end, "{}.{name} follows without padding", A::NAME);
            end += bytes;
        }
        let tail = if align_of::<A>() <= 8 { end } else { end.next_multiple_of(align_of::<A>()) };
        assert_eq!(tail, size_of::<A>(), "{} ends without padding", A::NAME);
    }

    #[test]
    fn every_argument_struct_matches_the_source() {
        check::<embedding::EmbeddingArgs>();
        check::<embedding::SortArgs>();
        check::<embedding::TokenGradArgs>();
        check::<embedding::PositionGradArgs>();
        check::<layernorm::LayernormArgs>();
        check::<layernorm::LayernormBackwardArgs>();
        check::<reduce::ColumnSumArgs>();
        check::<reduce::ReducePartialsArgs>();
        check::<gelu::GeluArgs>();
        check::<gelu::GeluBackwardArgs>();
        check::<classifier::ClassifierArgs>();
        check::<optimizer::AdamwTensor>();
        check::<optimizer::AdamwArgs>();
        check::<optimizer::SquaresTensor>();
        check::<optimizer::SquaresArgs>();
        check::<elementwise::AddArgs>();
        check::<digest::DigestTensor>();
        check::<digest::DigestLeavesArgs>();
        check::<digest::DigestRun>();
        check::<digest::DigestNodesArgs>();
        check::<attention::AttentionAnyArgs>();
        check::<attention::AttentionAnyBackwardArgs>();
        check::<attention::ForwardArgs>();
        check::<attention::BackwardArgs>();
        check::<attention_hopper::ForwardArgs>();
        check::<attention_hopper::BackwardArgs>();
        check::<gemm_hopper::GemmArgs>();
        check::<decode::DecodeEmbeddingArgs>();
        check::<decode::DecodeLinearArgs>();
        check::<decode::DecodeStoreArgs>();
        check::<decode::DecodeAttentionArgs>();
    }

    /// `name(const __grid_constant__ Args args)` behind `__global__`, as (name, Args without namespace).
    fn kernels_in_source(text: &str) -> Vec<(String, String)> {
        text.split("__global__")
            .skip(1)
            .map(|rest| {
                let at = rest.find("(const __grid_constant__ ").expect("a kernel takes one argument struct");
                let name = rest[..at].split_whitespace().last().expect("a name");
                let parameter = rest[at..]
                    .trim_start_matches("(const __grid_constant__ ")
                    .split_whitespace()
                    .next()
                    .expect("a type");
                (name.to_owned(), parameter.rsplit("::").next().expect("a type").to_owned())
            })
            .collect()
    }

    #[test]
    fn every_binding_names_a_kernel_and_every_kernel_has_its_struct() {
        let bound = kernels();
        for source in SOURCES {
            let written = kernels_in_source(source.text);
            for kernel in bound.iter().filter(|kernel| kernel.file == source.file) {
                let pair = (kernel.name.to_owned(), kernel.args.to_owned());
                assert!(written.contains(&pair), "{} has {written:?}, not {pair:?}", source.file);
            }
        }
        let mut names: Vec<_> = bound.iter().map(|kernel| (kernel.file, kernel.name)).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a kernel is bound once");
    }
}
