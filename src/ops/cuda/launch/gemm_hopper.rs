//! Launches of `gemm_hopper.cu`: matrix products of our own for sm_90a, with everything fused that surrounds
//! them.

use super::super::args::{Bf16, F32, In, Kernel, KernelInfo, Out, U32, bindings};
use super::super::driver::{Gpu, GpuInfo};
use super::super::modules::{Geometry, Kernels};
use super::super::product::{Epilogue, GemmKey, Operands, Product, Tiling, Types};
use super::reduce;
use super::tensor_map::{Swizzle, TensorMap};
use crate::ops::Result;

bindings! {
    "gemm_hopper.cu" {
        struct GemmArgs {
            left: TensorMap, right: TensorMap, out: TensorMap, pre: TensorMap, weight: Out<F32>,
            sums: Out<F32>, turns: Out<U32>, bias: In<Bf16>, m: i32, n: i32, k: i32, splits: i32,
            shares: i32, group: i32, add: u32, unused: u32,
        }
        each ENTRIES;
    }
}

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Forward,
    ForwardGelu,
    Input,
    InputGelu,
    Weight,
}

/// A kernel for tiles of one width, in blocks or in clusters of two.
struct Entry {
    kind: Kind,
    width: u32,
    cluster: u32,
    kernel: Kernel<GemmArgs>,
}

impl Entry {
    fn info(&self) -> KernelInfo {
        self.kernel.info()
    }
}

const fn entry(kind: Kind, width: u32, cluster: u32, name: &'static str) -> Entry {
    Entry { kind, width, cluster, kernel: Kernel::new(name) }
}

/// Those that came first somewhere, on an H100 at the widths of GPT-2 124M and 1.5B.
const ENTRIES: [Entry; 19] = [
    entry(Kind::Forward, 192, 1, "gemm_forward_192_1"),
    entry(Kind::Forward, 192, 2, "gemm_forward_192_2"),
    entry(Kind::Forward, 160, 2, "gemm_forward_160_2"),
    entry(Kind::Forward, 128, 2, "gemm_forward_128_2"),
    entry(Kind::ForwardGelu, 192, 1, "gemm_forward_gelu_192_1"),
    entry(Kind::ForwardGelu, 192, 2, "gemm_forward_gelu_192_2"),
    entry(Kind::ForwardGelu, 160, 2, "gemm_forward_gelu_160_2"),
    entry(Kind::ForwardGelu, 128, 2, "gemm_forward_gelu_128_2"),
    entry(Kind::Input, 192, 1, "gemm_input_192_1"),
    entry(Kind::Input, 192, 2, "gemm_input_192_2"),
    entry(Kind::Input, 160, 2, "gemm_input_160_2"),
    entry(Kind::Input, 128, 2, "gemm_input_128_2"),
    entry(Kind::InputGelu, 160, 2, "gemm_input_gelu_160_2"),
    entry(Kind::InputGelu, 128, 1, "gemm_input_gelu_128_1"),
    entry(Kind::InputGelu, 128, 2, "gemm_input_gelu_128_2"),
    entry(Kind::Weight, 192, 1, "gemm_weight_192_1"),
    entry(Kind::Weight, 192, 2, "gemm_weight_192_2"),
    entry(Kind::Weight, 160, 2, "gemm_weight_160_2"),
    entry(Kind::Weight, 128, 2, "gemm_weight_128_2"),
];

/// Rows of a tile, terms of a stage, and threads of a block: ROWS, TERMS and THREADS of the source.
const ROWS: u64 = 128;
const TERMS: u64 = 64;
const THREADS: u32 = 384;
const SHARED_BYTES: u64 = 232_448;
// A tile of `gemm_input_gelu` leaves one partial row, as a block of `gelu_backward` does.
const _: () = assert!(ROWS == reduce::COLUMN_ROWS);

/// Room for the words of a split product: one a tile.
pub const TURNS: u64 = 1 << 16;
pub const TURNS_BYTES: u64 = 4 * TURNS;

/// Whether this GPU has what the kernels need.
pub fn fits(info: &GpuInfo) -> bool {
    info.architecture() == "sm_90a" && u64::from(info.shared_bytes_per_block) >= SHARED_BYTES
}

fn kind(key: &GemmKey) -> Option<Kind> {
    match (key.types, key.product, key.epilogue) {
        (Types::Bf16, Product::Forward, Epilogue::Nothing | Epilogue::Bias) => Some(Kind::Forward),
        (Types::Bf16, Product::Forward, Epilogue::BiasThenGelu) => Some(Kind::ForwardGelu),
        (Types::Bf16, Product::BackwardInput, Epilogue::Nothing) => Some(Kind::Input),
        (Types::Bf16, Product::BackwardInput, Epilogue::ThenGeluGradient) => Some(Kind::InputGelu),
        (Types::Bf16ToF32, Product::BackwardWeight, Epilogue::Nothing | Epilogue::BiasGradient) => {
            Some(Kind::Weight)
        }
        _ => None,
    }
}

/// Rows, columns and terms of a product as the kernels see it.
struct Extent {
    m: u64,
    n: u64,
    k: u64,
}

impl Extent {
    fn of(key: &GemmKey) -> Extent {
        let GemmKey { rows, c_in, c_out, .. } = *key;
        match key.product {
            Product::Forward => Extent { m: rows, n: c_out, k: c_in },
            Product::BackwardInput => Extent { m: rows, n: c_in, k: c_out },
            Product::BackwardWeight => Extent { m: c_out, n: c_in, k: rows },
        }
    }

    fn column_tiles(&self, width: u32) -> u64 {
        self.n.div_ceil(width.into())
    }

    /// Pieces of work without splits, in units of clusters.
    fn cluster_tiles(&self, width: u32, cluster: u32) -> u64 {
        self.m.div_ceil(ROWS * u64::from(cluster)) * self.column_tiles(width)
    }
}

/// Why a plan cannot run, or `None` if it can: a function of shape and tiling alone.
pub fn flaw(key: &GemmKey, tiling: &Tiling) -> Option<&'static str> {
    let Some(kind) = kind(key) else { return Some("is for a product that our own kernels do not have") };
    let Tiling { width, cluster, group, splits } = *tiling;
    if !ENTRIES.iter().any(|entry| entry.kind == kind && entry.width == width && entry.cluster == cluster) {
        return Some("names a tile that no kernel has");
    }
    let extent = Extent::of(key);
    if [key.c_in, key.c_out].iter().any(|c| c % 8 != 0) || [extent.m, extent.n, extent.k].contains(&0) {
        return Some("needs rows that are multiples of 8");
    }
    let tiles = extent.cluster_tiles(width, cluster) * u64::from(cluster);
    // Past these, numbers of pieces would not fit the kernels' integers.
    let in_group = u64::from(group) * extent.column_tiles(width);
    if extent.m.max(extent.n).max(extent.k) > 1 << 24 || tiles > 1 << 24 || group == 0 || in_group > 1 << 30 {
        return Some("is for matrices that are too large");
    }
    let parts = u64::from(splits);
    let most = if kind == Kind::Weight { most_splits(key) } else { 1 };
    if !(1..=most).contains(&parts) || (parts > 1 && tiles > TURNS) {
        return Some("splits the sum in too many parts, or in none");
    }
    None
}

/// Rows of partial column sums for which there is room.
fn partial_rows(key: &GemmKey) -> u64 {
    key.rows.div_ceil(reduce::COLUMN_ROWS)
}

/// Parts of a weight gradient's sum: each has terms, and room for its column sums.
fn most_splits(key: &GemmKey) -> u64 {
    key.rows.div_ceil(TERMS).min(partial_rows(key)).min(32)
}

/// Column tiles that share the work of the bias's gradient: all for which there is room.
fn shares(key: &GemmKey, tiling: &Tiling) -> u64 {
    Extent::of(key).column_tiles(tiling.width).min(partial_rows(key) / u64::from(tiling.splits)).max(1)
}

/// Partial rows that a product with [`Epilogue::BiasGradient`] leaves.
pub fn sum_rows(key: &GemmKey, tiling: &Tiling) -> u64 {
    u64::from(tiling.splits) * shares(key, tiling)
}

/// The tilings that are worth trying on a GPU with this many multiprocessors.
pub fn tilings(key: &GemmKey, sm_count: u32) -> Vec<Tiling> {
    let Some(kind) = kind(key) else { return Vec::new() };
    let mut found = Vec::new();
    for Entry { width, cluster, .. } in ENTRIES.iter().filter(|entry| entry.kind == kind) {
        let (width, cluster) = (*width, *cluster);
        let (splits, groups) = match kind {
            Kind::Weight => (likely_splits(key, width, cluster, sm_count), vec![4, 64]),
            _ => (vec![1], vec![8 / cluster, 16 / cluster, 32 / cluster]),
        };
        for splits in splits {
            found.extend(groups.iter().map(|group| Tiling { width, cluster, group: *group, splits }));
        }
    }
    found.retain(|tiling| flaw(key, tiling).is_none());
    found
}

/// The two numbers of parts that keep the multiprocessors busiest: rounds of work times the length of one,
/// where a piece costs as much as some six blocks of terms beside its sum.
fn likely_splits(key: &GemmKey, width: u32, cluster: u32, sm_count: u32) -> Vec<u32> {
    const PIECE: u64 = 6;
    let extent = Extent::of(key);
    let (tiles, workers) = (extent.cluster_tiles(width, cluster), u64::from((sm_count / cluster).max(1)));
    let blocks = extent.k.div_ceil(TERMS);
    let mut splits: Vec<u32> = (1..=most_splits(key) as u32).collect();
    splits.sort_by_key(|splits| {
        let splits = u64::from(*splits);
        (tiles * splits).div_ceil(workers) * (blocks.div_ceil(splits) + PIECE)
    });
    splits.truncate(2);
    splits
}

/// Runs the product of `key`. Column sums go to `operands.sums` unless that is 0: a row of partial sums for
/// each 128 rows with [`Epilogue::ThenGeluGradient`], [`sum_rows`] with [`Epilogue::BiasGradient`].
///
/// # Safety
/// The addresses are those of live device buffers that hold the matrices of `key`, 256-byte aligned; `turns`
/// is that of [`TURNS`] words that are zero, as every product leaves them.
pub unsafe fn launch(
    k: &Kernels,
    op: &'static str,
    key: &GemmKey,
    tiling: &Tiling,
    operands: &Operands,
    turns: u64,
) -> Result<()> {
    if let Some(flaw) = flaw(key, tiling) {
        return Err(k.gpu.refuse(op, format!("the plan for {key} {flaw}")));
    }
    let Tiling { width, cluster, group, splits } = *tiling;
    let entry = ENTRIES
        .iter()
        .find(|entry| Some(entry.kind) == kind(key) && entry.width == width && entry.cluster == cluster)
        .expect("a tiling without flaw has a kernel");
    let extent = Extent::of(key);
    let map = |address: u64, rows: u64, columns: u64, boxes: [u32; 2]| {
        matrix(&k.gpu, op, address, rows, columns, boxes)
    };
    let panel = panel(width);
    let (left, right) = match key.product {
        Product::Forward => (
            map(operands.left, extent.m, extent.k, [64, 128])?,
            map(operands.right, extent.n, extent.k, [64, width / cluster])?,
        ),
        Product::BackwardInput => (
            map(operands.left, extent.m, extent.k, [64, 128])?,
            map(operands.right, extent.k, extent.n, [panel, 64 / cluster])?,
        ),
        Product::BackwardWeight => (
            map(operands.left, extent.k, extent.m, [64, 64])?,
            map(operands.right, extent.k, extent.n, [panel, 64 / cluster])?,
        ),
    };
    let rounded = |address: u64, wanted: bool| {
        if wanted { map(address, extent.m, extent.n, [panel, 16]) } else { Ok(TensorMap::NONE) }
    };
    let is_weight = entry.kind == Kind::Weight;
    let only = |address: u64, wanted: bool| if wanted { address } else { 0 };
    let args = GemmArgs {
        left,
        right,
        out: rounded(operands.out, !is_weight)?,
        pre: rounded(operands.pre, matches!(entry.kind, Kind::ForwardGelu | Kind::InputGelu))?,
        weight: Out::at(only(operands.out, is_weight)),
        sums: Out::at(only(
            operands.sums,
            matches!(key.epilogue, Epilogue::ThenGeluGradient | Epilogue::BiasGradient),
        )),
        turns: Out::at(turns),
        bias: In::at(only(operands.bias, matches!(key.epilogue, Epilogue::Bias | Epilogue::BiasThenGelu))),
        m: extent.m as i32,
        n: extent.n as i32,
        k: extent.k as i32,
        splits: splits as i32,
        shares: shares(key, tiling) as i32,
        group: group as i32,
        add: u32::from(operands.add),
        unused: 0,
    };
    // A piece of a split sum waits for the one before. That one has a lower number, so it is done or under
    // way where all blocks run at once: no more blocks than multiprocessors, one of which has room for one.
    // Work of the side lane may hold some of those for a while, a swap until its peer comes; it always ends,
    // because the peer's oldest work waits for no rank.
    let workers = u64::from(k.gpu.info.sm_count / cluster)
        .min(extent.cluster_tiles(width, cluster) * u64::from(splits));
    let geometry = Geometry { shared: SHARED_BYTES, ..Geometry::new(workers * u64::from(cluster), THREADS) };
    // SAFETY: the caller's promise; the maps hold the true extents.
    unsafe { k.launch(op, &entry.kernel, geometry, &args) }
}

/// PANEL of the source.
fn panel(width: u32) -> u32 {
    if width.is_multiple_of(64) { 64 } else { 32 }
}

/// Describes a row-major bf16 matrix.
fn matrix(
    gpu: &Gpu,
    op: &'static str,
    address: u64,
    rows: u64,
    columns: u64,
    boxes: [u32; 2],
) -> Result<TensorMap> {
    let swizzle = if boxes[0] == 64 { Swizzle::Bytes128 } else { Swizzle::Bytes64 };
    TensorMap::new(gpu, op, address, [columns, rows], &[2 * columns], boxes, swizzle)
}

#[cfg(test)]
mod tests {
    use super::super::super::sources::SOURCES;
    use super::*;

    fn key(product: Product, rows: u64, c_in: u64, c_out: u64, epilogue: Epilogue) -> GemmKey {
        let types = if product == Product::BackwardWeight { Types::Bf16ToF32 } else { Types::Bf16 };
        GemmKey { product, rows, c_in, c_out, types, epilogue }
    }

    #[test]
    fn constants_are_those_of_the_source() {
        let source =
            SOURCES.iter().find(|source| source.file == "gemm_hopper.cu").expect("the file is embedded").text;
        for line in [
            format!("constexpr int THREADS = {THREADS}, ROWS = {ROWS}, TERMS = {TERMS};"),
            format!("constexpr int SHARED_BYTES = {SHARED_BYTES};"),
        ] {
            assert!(source.lines().any(|l| l == line), "the source says `{line}`: the launch counts on it");
        }
        for Entry { width, cluster, kernel, .. } in &ENTRIES {
            assert!(kernel.name.ends_with(&format!("_{width}_{cluster}")), "{}", kernel.name);
            let launch = format!(
                "BLOCK({cluster}) {}(const __grid_constant__ GemmArgs args) {{ Product<{width}, {cluster},",
                kernel.name
            );
            assert!(source.contains(&launch), "{launch}");
        }
    }

    #[test]
    fn every_product_of_a_model_has_tilings_and_all_of_them_can_run() {
        for (rows, c) in [(65_536, 768), (16_384, 1600), (2048, 256), (1000, 64)] {
            for (product, c_in, c_out, epilogue) in [
                (Product::Forward, c, 3 * c, Epilogue::Bias),
                (Product::Forward, c, 4 * c, Epilogue::BiasThenGelu),
                (Product::BackwardInput, c, 3 * c, Epilogue::Nothing),
                (Product::BackwardInput, 4 * c, c, Epilogue::ThenGeluGradient),
                (Product::BackwardWeight, 4 * c, c, Epilogue::BiasGradient),
                (Product::BackwardWeight, c, 50_304, Epilogue::Nothing),
            ] {
                let key = key(product, rows, c_in, c_out, epilogue);
                let found = tilings(&key, 132);
                assert!(found.len() >= 4, "{key}: {found:?}");
                for tiling in &found {
                    assert_eq!(flaw(&key, tiling), None);
                    assert!(
                        sum_rows(&key, tiling) * 4 * c_out <= reduce::partials_bytes(rows, c_out),
                        "{key}: {tiling:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_cublaslt_fuses_otherwise_is_left_to_it() {
        for epilogue in [Epilogue::BiasGelu, Epilogue::GeluGradient] {
            assert!(tilings(&key(Product::Forward, 1024, 768, 3072, epilogue), 132).is_empty());
        }
        let single = GemmKey { types: Types::F32, ..key(Product::Forward, 1024, 768, 3072, Epilogue::Bias) };
        assert!(tilings(&single, 132).is_empty());
    }

    #[test]
    fn a_plan_that_nobody_could_run_is_named() {
        let forward = key(Product::Forward, 1024, 768, 3072, Epilogue::Bias);
        let tiling = Tiling { width: 192, cluster: 2, group: 8, splits: 1 };
        assert_eq!(flaw(&forward, &tiling), None);
        assert!(
            flaw(&forward, &Tiling { width: 176, ..tiling }).is_some_and(|flaw| flaw.contains("no kernel"))
        );
        assert!(flaw(&forward, &Tiling { splits: 2, ..tiling }).is_some_and(|flaw| flaw.contains("parts")));
        assert!(flaw(&forward, &Tiling { splits: 0, ..tiling }).is_some_and(|flaw| flaw.contains("none")));
        assert!(
            flaw(&GemmKey { c_in: 772, ..forward }, &tiling)
                .is_some_and(|flaw| flaw.contains("multiples of 8"))
        );
        let weight = key(Product::BackwardWeight, 1024, 768, 768, Epilogue::Nothing);
        assert_eq!(flaw(&weight, &Tiling { splits: 8, ..tiling }), None);
        assert!(
            flaw(&weight, &Tiling { splits: 9, ..tiling }).is_some(),
            "more parts than there is room for their sums"
        );
    }
}
