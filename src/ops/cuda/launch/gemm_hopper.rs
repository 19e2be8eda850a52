//! Launches of `gemm_hopper.cu`: matrix products of our own for sm_90a, with everything fused that surrounds
//! them.

use std::f32::consts::LOG2_E;

use super::super::args::{Bf16, F32, In, Kernel, KernelInfo, Out, U16, U32, bindings};
use super::super::driver::{Gpu, GpuInfo};
use super::super::modules::{Geometry, Kernels};
use super::super::product::{Epilogue, GemmKey, Operands, Product, SoftmaxOperands, Tiling, Types};
use super::reduce;
use super::tensor_map::{Swizzle, TensorMap};
use crate::ops::Result;

bindings! {
    "gemm_hopper.cu" as HOPPER {
        struct GemmArgs {
            left: TensorMap, right: TensorMap, out: TensorMap, pre: TensorMap, again: TensorMap,
            weight: Out<F32>, sums: Out<F32>, turns: Out<U32>, bias: In<Bf16>, row_terms: In<F32>,
            targets: In<U16>, at_targets: Out<F32>, overflow: In<U32>,
            m: i32, n: i32, k: i32, splits: i32, shares: i32, group: i32, add: u32, used: i32, keep: u32,
            cap: f32, gate: f32,
        }
        each ENTRIES;
    }
}

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HopperProduct {
    Forward,
    ForwardGelu,
    ForwardRelu2,
    ForwardSwiglu,
    ForwardSoftmax,
    Input,
    InputGelu,
    InputRelu2,
    InputSwiglu,
    Weight,
}

/// A kernel for tiles of one width, in blocks or in clusters of two.
struct TileKernel {
    kind: HopperProduct,
    width: u32,
    cluster: u32,
    variant: Variant,
    kernel: Kernel<GemmArgs>,
}

/// What a kernel does beside its product. Plans do not tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Plain,
    /// Leaves the function of `pre` beside its gradient.
    Again,
    /// Caps logits softly.
    Capped,
}

impl Variant {
    /// A plan's tiling as this variant has it: with a soft-cap there are clusters of two alone.
    fn tiling(self, plan: Tiling) -> Tiling {
        match self {
            Variant::Capped => Tiling { cluster: 2, group: (plan.group * plan.cluster / 2).max(1), ..plan },
            Variant::Plain | Variant::Again => plan,
        }
    }

    /// The kernel for the product of `key` under this plan.
    fn kernel(self, key: &GemmKey, plan: Tiling) -> Option<&'static TileKernel> {
        let Tiling { width, cluster, .. } = self.tiling(plan);
        ENTRIES.iter().find(|entry| {
            Some(entry.kind) == kind(key)
                && (entry.width, entry.cluster, entry.variant) == (width, cluster, self)
        })
    }
}

impl TileKernel {
    fn info(&self) -> KernelInfo {
        self.kernel.info()
    }
}

const fn entry(kind: HopperProduct, width: u32, cluster: u32, name: &'static str) -> TileKernel {
    TileKernel { kind, width, cluster, variant: Variant::Plain, kernel: Kernel::new(name) }
}

const fn again(kind: HopperProduct, width: u32, cluster: u32, name: &'static str) -> TileKernel {
    TileKernel { variant: Variant::Again, ..entry(kind, width, cluster, name) }
}

const fn capped(kind: HopperProduct, width: u32, cluster: u32, name: &'static str) -> TileKernel {
    TileKernel { variant: Variant::Capped, ..entry(kind, width, cluster, name) }
}

/// Those that came first somewhere, on an H100 at the widths of GPT-2 124M and 1.5B.
static ENTRIES: [TileKernel; 40] = [
    entry(HopperProduct::Forward, 192, 1, "gemm_forward_192_1"),
    entry(HopperProduct::Forward, 192, 2, "gemm_forward_192_2"),
    entry(HopperProduct::Forward, 160, 2, "gemm_forward_160_2"),
    entry(HopperProduct::Forward, 128, 2, "gemm_forward_128_2"),
    entry(HopperProduct::ForwardGelu, 192, 1, "gemm_forward_gelu_192_1"),
    entry(HopperProduct::ForwardGelu, 192, 2, "gemm_forward_gelu_192_2"),
    entry(HopperProduct::ForwardGelu, 160, 2, "gemm_forward_gelu_160_2"),
    entry(HopperProduct::ForwardGelu, 128, 2, "gemm_forward_gelu_128_2"),
    entry(HopperProduct::ForwardRelu2, 192, 1, "gemm_forward_relu2_192_1"),
    entry(HopperProduct::ForwardRelu2, 192, 2, "gemm_forward_relu2_192_2"),
    entry(HopperProduct::ForwardRelu2, 160, 2, "gemm_forward_relu2_160_2"),
    entry(HopperProduct::ForwardRelu2, 128, 2, "gemm_forward_relu2_128_2"),
    entry(HopperProduct::ForwardSwiglu, 192, 1, "gemm_forward_swiglu_192_1"),
    entry(HopperProduct::ForwardSwiglu, 192, 2, "gemm_forward_swiglu_192_2"),
    entry(HopperProduct::ForwardSwiglu, 128, 2, "gemm_forward_swiglu_128_2"),
    entry(HopperProduct::ForwardSoftmax, 192, 1, "gemm_forward_softmax_192_1"),
    entry(HopperProduct::ForwardSoftmax, 192, 2, "gemm_forward_softmax_192_2"),
    capped(HopperProduct::ForwardSoftmax, 192, 2, "gemm_forward_softmax_capped_192_2"),
    entry(HopperProduct::Input, 192, 1, "gemm_input_192_1"),
    entry(HopperProduct::Input, 192, 2, "gemm_input_192_2"),
    entry(HopperProduct::Input, 160, 2, "gemm_input_160_2"),
    entry(HopperProduct::Input, 128, 2, "gemm_input_128_2"),
    entry(HopperProduct::InputGelu, 160, 2, "gemm_input_gelu_160_2"),
    entry(HopperProduct::InputGelu, 128, 1, "gemm_input_gelu_128_1"),
    entry(HopperProduct::InputGelu, 128, 2, "gemm_input_gelu_128_2"),
    again(HopperProduct::InputGelu, 160, 2, "gemm_input_gelu_again_160_2"),
    again(HopperProduct::InputGelu, 128, 1, "gemm_input_gelu_again_128_1"),
    again(HopperProduct::InputGelu, 128, 2, "gemm_input_gelu_again_128_2"),
    entry(HopperProduct::InputRelu2, 160, 2, "gemm_input_relu2_160_2"),
    entry(HopperProduct::InputRelu2, 128, 1, "gemm_input_relu2_128_1"),
    entry(HopperProduct::InputRelu2, 128, 2, "gemm_input_relu2_128_2"),
    again(HopperProduct::InputRelu2, 160, 2, "gemm_input_relu2_again_160_2"),
    again(HopperProduct::InputRelu2, 128, 1, "gemm_input_relu2_again_128_1"),
    again(HopperProduct::InputRelu2, 128, 2, "gemm_input_relu2_again_128_2"),
    entry(HopperProduct::InputSwiglu, 128, 1, "gemm_input_swiglu_128_1"),
    entry(HopperProduct::InputSwiglu, 128, 2, "gemm_input_swiglu_128_2"),
    entry(HopperProduct::Weight, 192, 1, "gemm_weight_192_1"),
    entry(HopperProduct::Weight, 192, 2, "gemm_weight_192_2"),
    entry(HopperProduct::Weight, 160, 2, "gemm_weight_160_2"),
    entry(HopperProduct::Weight, 128, 2, "gemm_weight_128_2"),
];

/// Rows of a tile, terms of a stage, and threads of a block: ROWS, TERMS and THREADS of the source.
const ROWS: u64 = 128;
const TERMS: u64 = 64;
const THREADS: u32 = 384;
const SHARED_BYTES: u64 = 232_448;
/// Columns whose powers a softmax adds before memory: STRIPE of the source.
pub const STRIPE: u64 = 192;
// A tile of `gemm_input_gelu` leaves one partial row, as a block of `gelu_backward` does.
const _: () = assert!(ROWS == reduce::COLUMN_ROWS);

/// Room for the words of a split product: one a tile.
pub const TURNS: u64 = 1 << 16;
pub const TURNS_BYTES: u64 = 4 * TURNS;

/// Whether this GPU has what the kernels need.
pub fn fits(info: &GpuInfo) -> bool {
    info.architecture() == "sm_90a" && u64::from(info.shared_bytes_per_block) >= SHARED_BYTES
}

fn kind(key: &GemmKey) -> Option<HopperProduct> {
    match (key.types, key.product, key.epilogue) {
        (Types::Bf16, Product::Forward, Epilogue::Nothing | Epilogue::Bias) => Some(HopperProduct::Forward),
        (Types::Bf16, Product::Forward, Epilogue::BiasThenGelu | Epilogue::ThenGelu) => {
            Some(HopperProduct::ForwardGelu)
        }
        (Types::Bf16, Product::Forward, Epilogue::BiasThenRelu2 | Epilogue::ThenRelu2) => {
            Some(HopperProduct::ForwardRelu2)
        }
        (Types::Bf16, Product::Forward, Epilogue::BiasThenSwiglu | Epilogue::ThenSwiglu) => {
            Some(HopperProduct::ForwardSwiglu)
        }
        (Types::Bf16, Product::Forward, Epilogue::Softmax) => Some(HopperProduct::ForwardSoftmax),
        (Types::Bf16, Product::BackwardInput, Epilogue::Nothing | Epilogue::RowFactors) => {
            Some(HopperProduct::Input)
        }
        (Types::Bf16, Product::BackwardInput, Epilogue::ThenSwigluGradient) => {
            Some(HopperProduct::InputSwiglu)
        }
        (Types::Bf16, Product::BackwardInput, Epilogue::ThenGeluGradient) => Some(HopperProduct::InputGelu),
        (Types::Bf16, Product::BackwardInput, Epilogue::ThenRelu2Gradient) => Some(HopperProduct::InputRelu2),
        (Types::Bf16ToF32, Product::BackwardWeight, Epilogue::Nothing | Epilogue::BiasGradient) => {
            Some(HopperProduct::Weight)
        }
        _ => None,
    }
}

/// Rows, columns and terms of a product as the kernels see it.
struct ProductSize {
    m: u64,
    n: u64,
    k: u64,
}

impl ProductSize {
    fn of(key: &GemmKey) -> ProductSize {
        let GemmKey { rows, c_in, c_out, .. } = *key;
        match key.product {
            Product::Forward => ProductSize { m: rows, n: c_out, k: c_in },
            Product::BackwardInput => ProductSize { m: rows, n: c_in, k: c_out },
            Product::BackwardWeight => ProductSize { m: c_out, n: c_in, k: rows },
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
    let Tiling { width, cluster, group } = *tiling;
    if !ENTRIES.iter().any(|entry| entry.kind == kind && entry.width == width && entry.cluster == cluster) {
        return Some("names a tile that no kernel has");
    }
    let extent = ProductSize::of(key);
    // SwiGLU's outputs are half as wide.
    let c_out = if kind == HopperProduct::ForwardSwiglu { key.c_out / 2 } else { key.c_out };
    if [key.c_in, key.c_out, c_out].iter().any(|c| c % 8 != 0) || [extent.m, extent.n, extent.k].contains(&0)
    {
        return Some("needs rows that are multiples of 8");
    }
    let tiles = extent.cluster_tiles(width, cluster) * u64::from(cluster);
    // Past these, numbers of pieces would not fit the kernels' integers.
    let in_group = u64::from(group) * extent.column_tiles(width);
    let most_tiles = if order(key).splits > 1 { TURNS } else { 1 << 24 };
    if extent.m.max(extent.n).max(extent.k) > 1 << 24
        || tiles > most_tiles
        || group == 0
        || in_group > 1 << 30
    {
        return Some("is for matrices that are too large");
    }
    None
}

/// The order of sums of a product in bf16 with sums in fp32: a function of the shape alone, so that no plan
/// and no GPU of this architecture changes a bit. `ops::mirror` follows the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Parts of the sum over k, each a chain; they are added in order. 1 but for weight gradients.
    pub splits: u64,
    /// Whether the gradient of a bias is a product with ones beside that of the weights: for each part, the
    /// blocks of 64 rows are dealt to so many chains in turn. `None`: a pass of its own adds the columns.
    pub bias_chains: Option<u64>,
}

/// See [`Order`].
pub fn order(key: &GemmKey) -> Order {
    if key.product != Product::BackwardWeight {
        return Order { splits: 1, bias_chains: None };
    }
    let splits = splits(key);
    // One unsplit sum whose rows are longer than its columns is as fast in cuBLASLt, which has no such sums.
    let inside = key.epilogue == Epilogue::BiasGradient && (splits > 1 || key.c_in <= key.c_out);
    let chains = ProductSize::of(key).column_tiles(192).min(partial_rows(key) / splits).max(1);
    Order { splits, bias_chains: inside.then_some(chains) }
}

/// Whether no algorithm of cuBLASLt has the bits of this operation. For sums of fewer terms than a tensor
/// core adds at once it may have kernels that are no such chain: the weight gradient of one row differed.
pub fn only_own(key: &GemmKey) -> bool {
    let Order { splits, bias_chains } = order(key);
    ProductSize::of(key).k < 16
        || splits > 1
        || bias_chains.is_some()
        || matches!(key.epilogue, Epilogue::ThenGeluGradient | Epilogue::Softmax | Epilogue::RowFactors)
}

/// Rows of partial column sums for which there is room.
fn partial_rows(key: &GemmKey) -> u64 {
    key.rows.div_ceil(reduce::COLUMN_ROWS)
}

/// Partial rows that a product with chains for the gradient of a bias leaves.
pub fn sum_rows(key: &GemmKey) -> u64 {
    let Order { splits, bias_chains } = order(key);
    splits * bias_chains.unwrap_or(0)
}

/// Parts of a weight gradient's sum: what keeps 66 pairs of multiprocessors (an H100's) busiest under tiles
/// of 256 by 192, where a piece costs as much as some twenty blocks of terms beside its sum. One part unless
/// several promise to be faster by an eighth. A machine with other numbers has the same parts.
fn splits(key: &GemmKey) -> u64 {
    const PIECE: u64 = 20;
    const PAIRS: u64 = 66;
    let extent = ProductSize::of(key);
    let (tiles, blocks) = (extent.cluster_tiles(192, 2), extent.k.div_ceil(TERMS));
    let cost = |splits: u64| (tiles * splits).div_ceil(PAIRS) * (blocks.div_ceil(splits) + PIECE);
    // Each part has terms, and room for its column sums.
    let most = blocks.min(partial_rows(key)).clamp(1, 32);
    let best = (1..=most).min_by_key(|splits| cost(*splits)).unwrap_or(1);
    if cost(best) * 8 <= cost(1) * 7 { best } else { 1 }
}

/// The tilings that are worth trying.
pub fn tilings(key: &GemmKey) -> Vec<Tiling> {
    let Some(kind) = kind(key) else { return Vec::new() };
    let mut found = Vec::new();
    let once = |entry: &&TileKernel| entry.kind == kind && entry.variant == Variant::Plain;
    for TileKernel { width, cluster, .. } in ENTRIES.iter().filter(once) {
        let (width, cluster) = (*width, *cluster);
        let groups = match kind {
            HopperProduct::Weight => vec![4, 64],
            _ => vec![8 / cluster, 16 / cluster, 32 / cluster],
        };
        found.extend(groups.into_iter().map(|group| Tiling { width, cluster, group }));
    }
    found.retain(|tiling| flaw(key, tiling).is_none());
    found
}

/// Runs the product of `key`. Column sums go to `operands.sums` unless that is 0: a row of partial sums for
/// each 128 rows with [`Epilogue::ThenGeluGradient`], [`sum_rows`] where [`Order::bias_chains`] says so. The
/// function of `operands.pre` goes to `operands.again` unless that is 0, with the gradients of GELU and
/// squared ReLU alone. [`Epilogue::Softmax`] needs `operands.softmax`.
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
    let Order { splits, bias_chains } = order(key);
    let softmax = operands.softmax;
    let variant = match softmax {
        _ if operands.again != 0 => Variant::Again,
        Some(SoftmaxOperands { cap: Some(_), .. }) => Variant::Capped,
        _ => Variant::Plain,
    };
    let Tiling { width, cluster, group } = variant.tiling(*tiling);
    let entry = variant.kernel(key, *tiling).expect("a tiling without flaw has a kernel");
    let extent = ProductSize::of(key);
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
    let is_weight = entry.kind == HopperProduct::Weight;
    use HopperProduct::{Forward, ForwardSoftmax, Input, Weight};
    let has_pre = !matches!(entry.kind, Forward | ForwardSoftmax | Input | Weight);
    let out = match entry.kind {
        Weight => TensorMap::NONE,
        ForwardSoftmax if operands.out == 0 => TensorMap::NONE,
        HopperProduct::ForwardSwiglu => map(operands.out, extent.m, extent.n / 2, [panel / 2, 16])?,
        HopperProduct::InputSwiglu => map(operands.out, extent.m, 2 * extent.n, [panel, 16])?,
        _ => map(operands.out, extent.m, extent.n, [panel, 16])?,
    };
    let pre = match entry.kind {
        _ if !has_pre => TensorMap::NONE,
        HopperProduct::InputSwiglu => map(operands.pre, extent.m, 2 * extent.n, [panel, 16])?,
        _ => map(operands.pre, extent.m, extent.n, [panel, 16])?,
    };
    let again = match operands.again {
        0 => TensorMap::NONE,
        again => map(again, extent.m, extent.n, [panel, 16])?,
    };
    let cap = softmax.and_then(|softmax| softmax.cap).unwrap_or(1.0);
    let only = |address: u64, wanted: bool| if wanted { address } else { 0 };
    let args = GemmArgs {
        left,
        right,
        out,
        pre,
        again,
        weight: Out::at(only(operands.out, is_weight)),
        sums: Out::at(only(
            operands.sums,
            matches!(key.epilogue, Epilogue::ThenGeluGradient | Epilogue::Softmax) || bias_chains.is_some(),
        )),
        turns: Out::at(turns),
        bias: In::at(only(operands.bias, key.epilogue.adds_bias())),
        row_terms: In::at(operands.row_terms),
        targets: In::at(softmax.map_or(0, |softmax| softmax.targets)),
        at_targets: Out::at(softmax.map_or(0, |softmax| softmax.at_targets)),
        overflow: In::at(softmax.map_or(0, |softmax| softmax.overflow)),
        m: extent.m as i32,
        n: extent.n as i32,
        k: extent.k as i32,
        splits: splits as i32,
        shares: bias_chains.unwrap_or(1) as i32,
        group: group as i32,
        add: u32::from(operands.add),
        used: softmax.map_or(0, |softmax| softmax.used as i32),
        keep: u32::from(operands.out != 0),
        cap,
        gate: -2.0 * LOG2_E / cap,
    };
    // A piece of a split sum waits for the one before. That one has a lower number, so it is done or under
    // way where all blocks run at once: no more blocks than multiprocessors, one of which has room for one.
    // Work of the side lane may hold some of those for a while, a swap until its peer comes; it always ends,
    // for the peer's oldest work waits for nobody.
    let workers = u64::from(k.gpu.info.sm_count / cluster).min(extent.cluster_tiles(width, cluster) * splits);
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
    use super::super::sources;
    use super::*;

    fn key(product: Product, rows: u64, c_in: u64, c_out: u64, epilogue: Epilogue) -> GemmKey {
        let types = if product == Product::BackwardWeight { Types::Bf16ToF32 } else { Types::Bf16 };
        GemmKey { product, rows, c_in, c_out, types, epilogue }
    }

    #[test]
    fn constants_are_those_of_the_source() {
        let source =
            sources().find(|source| source.file == "gemm_hopper.cu").expect("the file is embedded").text;
        for line in [
            format!("constexpr int THREADS = {THREADS}, ROWS = {ROWS}, TERMS = {TERMS};"),
            format!("constexpr int SHARED_BYTES = {SHARED_BYTES};"),
            format!("constexpr int STRIPE = {STRIPE};"),
        ] {
            assert!(source.lines().any(|l| l == line), "the source says `{line}`: the launch counts on it");
        }
        for TileKernel { width, cluster, kernel, variant, .. } in &ENTRIES {
            let name = kernel.name.strip_suffix(&format!("_{width}_{cluster}")).unwrap_or_default();
            let launch = format!("\nKERNEL({name}, {width}, {cluster}, ");
            let line = source.lines().find(|line| format!("\n{line}").starts_with(&launch));
            let line = line.unwrap_or_else(|| panic!("{}: the source has no `{launch}`", kernel.name));
            let (again, capped) = (*variant == Variant::Again, *variant == Variant::Capped);
            let switches = line.split(", ").skip(4).count();
            assert_eq!((again, name.ends_with("_again")), (switches == 3, switches == 3), "{line}");
            assert_eq!((capped, name.ends_with("_capped")), (line.contains("_CAPPED"), capped), "{line}");
        }
    }

    #[test]
    fn every_product_of_a_model_has_tilings_and_all_of_them_can_run() {
        for (rows, c) in [(65_536, 768), (16_384, 1600), (2048, 256), (1000, 64)] {
            for (product, c_in, c_out, epilogue) in [
                (Product::Forward, c, 3 * c, Epilogue::Bias),
                (Product::Forward, c, 4 * c, Epilogue::BiasThenGelu),
                (Product::Forward, c, 4 * c, Epilogue::ThenGelu),
                (Product::BackwardInput, c, 3 * c, Epilogue::Nothing),
                (Product::BackwardInput, 4 * c, c, Epilogue::ThenGeluGradient),
                (Product::Forward, c, 4 * c, Epilogue::BiasThenRelu2),
                (Product::BackwardInput, 4 * c, c, Epilogue::ThenRelu2Gradient),
                (Product::Forward, c, 8 * c, Epilogue::ThenSwiglu),
                (Product::BackwardInput, 4 * c, c, Epilogue::ThenSwigluGradient),
                (Product::BackwardWeight, 4 * c, c, Epilogue::BiasGradient),
                (Product::Forward, c, 50_304, Epilogue::Softmax),
                (Product::BackwardInput, c, 50_304, Epilogue::RowFactors),
                (Product::BackwardWeight, c, 50_304, Epilogue::Nothing),
            ] {
                let key = key(product, rows, c_in, c_out, epilogue);
                let found = tilings(&key);
                assert!(found.len() >= 4, "{key}: {found:?}");
                for tiling in &found {
                    assert_eq!(flaw(&key, tiling), None);
                    let softmax = epilogue == Epilogue::Softmax;
                    let function =
                        matches!(epilogue, Epilogue::ThenGeluGradient | Epilogue::ThenRelu2Gradient);
                    for (variant, is_there) in
                        [(Variant::Plain, true), (Variant::Capped, softmax), (Variant::Again, function)]
                    {
                        assert_eq!(variant.kernel(&key, *tiling).is_some(), is_there, "{key}: {variant:?}");
                    }
                    assert!(
                        sum_rows(&key) * 4 * c_out <= reduce::partials_bytes(rows, c_out),
                        "{key}: {tiling:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_cublaslt_fuses_otherwise_is_left_to_it() {
        for epilogue in [Epilogue::BiasGelu, Epilogue::Gelu, Epilogue::GeluGradient] {
            assert!(tilings(&key(Product::Forward, 1024, 768, 3072, epilogue)).is_empty());
        }
        let single = GemmKey { types: Types::F32, ..key(Product::Forward, 1024, 768, 3072, Epilogue::Bias) };
        assert!(tilings(&single).is_empty());
    }

    #[test]
    fn a_plan_that_nobody_could_run_is_named() {
        let forward = key(Product::Forward, 1024, 768, 3072, Epilogue::Bias);
        let tiling = Tiling { width: 192, cluster: 2, group: 8 };
        assert_eq!(flaw(&forward, &tiling), None);
        assert!(
            flaw(&forward, &Tiling { width: 176, ..tiling }).is_some_and(|flaw| flaw.contains("no kernel"))
        );
        assert!(
            flaw(&GemmKey { c_in: 772, ..forward }, &tiling)
                .is_some_and(|flaw| flaw.contains("multiples of 8"))
        );
    }

    /// Other numbers here are other bits: `hopper-bf16-v3` would need a new name.
    #[test]
    fn the_order_of_a_weight_gradient_is_a_function_of_its_shape() {
        let order = |rows, c_in, c_out| {
            let Order { splits, bias_chains } =
                order(&key(Product::BackwardWeight, rows, c_in, c_out, Epilogue::BiasGradient));
            (splits, bias_chains)
        };
        assert_eq!(order(65_536, 768, 768), (5, Some(4)));
        assert_eq!(order(65_536, 768, 2304), (7, Some(4)));
        assert_eq!(order(65_536, 768, 3072), (4, Some(4)));
        assert_eq!(order(65_536, 3072, 768), (4, Some(16)));
        assert_eq!(order(16_384, 1600, 1600), (1, Some(9)));
        assert_eq!(order(16_384, 1600, 4800), (1, Some(9)));
        assert_eq!(order(16_384, 6400, 1600), (1, None));
        assert_eq!(order(512, 128, 128), (4, Some(1)));
        assert_eq!(order(1, 8, 8), (1, Some(1)));
    }
}
