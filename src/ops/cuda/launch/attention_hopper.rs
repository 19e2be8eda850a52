//! Launches of `attention_forward_hopper.cu` and `attention_backward_hopper.cu`: attention by the tensor
//! memory accelerator and warpgroup products of sm_90a.

use super::super::args::{Bf16, F32, In, Out, bindings};
use super::super::driver::Gpu;
use super::super::modules::{Geometry, Kernels};
use super::tensor_map::{Swizzle, TensorMap};
use crate::ops::{Dtype, Heads, Qkv, Result, Rows};

bindings! {
    "attention_forward_hopper.cu" as HOPPER_HEAD_SIZES {
        struct ForwardArgs {
            qkv: TensorMap, values: TensorMap, out: Out<Bf16>, lse: Out<F32>, tokens: i32, heads: i32,
            kv_heads: i32, unused: i32,
        }
        kernel FORWARD(ForwardArgs) = "attention_forward";
    }
    "attention_backward_hopper.cu" as HOPPER_HEAD_SIZES {
        struct BackwardArgs {
            qkv_map: TensorMap, values_map: TensorMap, dout_map: TensorMap, dqkv: Out<Bf16>, rows: Out<F32>,
            dout: In<Bf16>, out: In<Bf16>, lse: In<F32>, tokens: i32, heads: i32, kv_heads: i32, unused: i32,
        }
        kernel BACKWARD_QUERY(BackwardArgs) = "attention_backward_query";
        kernel BACKWARD_KEY(BackwardArgs) = "attention_backward_key";
        kernel BACKWARD_KEY_GROUPED(BackwardArgs) = "attention_backward_key_grouped";
    }
}

/// Head sizes that the kernels are written for.
const HEAD_SIZES: [usize; 2] = [64, 128];
/// Rows of a tile of keys or queries, and of one box of the accelerator.
const TILE: u64 = 64;

/// GROUPS of the source: warpgroups of a block, each with 64 query rows.
fn groups(head_size: usize) -> u64 {
    if head_size == 64 { 2 } else { 3 }
}

/// Whether these kernels run here.
pub fn fits(gpu: &Gpu, act: Dtype, head_size: usize) -> bool {
    act == Dtype::BF16 && gpu.info.architecture() == "sm_90a" && HEAD_SIZES.contains(&head_size)
}

/// Describes a (B, T, slices, HS) tensor: boxes of 64 tokens by 64 columns of one slice.
fn tensor_map(
    k: &Kernels,
    op: &'static str,
    address: u64,
    rows: Rows,
    slices: usize,
    head_size: usize,
) -> Result<TensorMap> {
    let (head_size, slices) = (head_size as u64, slices as u64);
    let token = 2 * head_size * slices;
    let dimensions = [head_size, slices, rows.seq as u64, rows.batch as u64];
    let strides = [2 * head_size, token, token * rows.seq as u64];
    let boxes = [64, 1, TILE as u32, 1];
    TensorMap::new(&k.gpu, op, address, dimensions, &strides, boxes, Swizzle::Bytes128)
}

/// Operands and shape, checked by the caller: addresses of tensors that are long enough.
pub struct HopperForward {
    pub out: u64,
    pub lse: u64,
    pub qkv: Qkv<u64>,
}

pub fn forward(k: &Kernels, op: &'static str, t: &HopperForward, rows: Rows, heads: Heads) -> Result<()> {
    let Heads { heads: count, kv_heads, head_size } = heads;
    let args = ForwardArgs {
        qkv: tensor_map(k, op, t.qkv.qkv, rows, t.qkv.slices, head_size)?,
        values: tensor_map(k, op, t.qkv.values, rows, count + 2 * kv_heads, head_size)?,
        out: Out::at(t.out),
        lse: Out::at(t.lse),
        tokens: rows.seq as i32,
        heads: count as i32,
        kv_heads: kv_heads as i32,
        unused: 0,
    };
    // STAGES of the source.
    let (groups, stages) = (groups(head_size), 4);
    let block_rows = 64 * groups;
    let shared = 2 * head_size as u64 * (block_rows + 2 * stages * TILE) + 8 * (1 + 3 * stages);
    let grid = Geometry::new2(
        (rows.seq as u64).div_ceil(block_rows),
        (rows.batch * count) as u64,
        128 * groups as u32,
    );
    // SAFETY: the caller has checked all lengths.
    unsafe { k.launch(op, &FORWARD, Geometry { shared, ..grid }, &args) }
}

/// Bytes of the scratch of the gradient: two floats a row, rows rounded up to whole tiles.
pub fn rows_bytes(rows: Rows, heads: Heads) -> u64 {
    (rows.batch * heads.heads) as u64 * (rows.seq as u64).next_multiple_of(TILE) * 8
}

/// As [`HopperForward`]; `rows` has [`rows_bytes`].
pub struct HopperBackward {
    pub dqkv: u64,
    pub rows: u64,
    pub dout: u64,
    pub qkv: Qkv<u64>,
    pub out: u64,
    pub lse: u64,
}

pub fn backward(k: &Kernels, op: &'static str, t: &HopperBackward, rows: Rows, heads: Heads) -> Result<()> {
    let Heads { heads: count, kv_heads, head_size } = heads;
    let args = BackwardArgs {
        qkv_map: tensor_map(k, op, t.qkv.qkv, rows, t.qkv.slices, head_size)?,
        values_map: tensor_map(k, op, t.qkv.values, rows, count + 2 * kv_heads, head_size)?,
        dout_map: tensor_map(k, op, t.dout, rows, count, head_size)?,
        dqkv: Out::at(t.dqkv),
        rows: Out::at(t.rows),
        dout: In::at(t.dout),
        out: In::at(t.out),
        lse: In::at(t.lse),
        tokens: rows.seq as i32,
        heads: count as i32,
        kv_heads: kv_heads as i32,
        unused: 0,
    };
    let (seq, blocks, row_bytes) = (rows.seq as u64, (rows.batch * count) as u64, 2 * head_size as u64);
    // QUERY_STAGES and KEY_STAGES of the source.
    let (groups, stages) = (groups(head_size), if head_size == 64 { 4 } else { 3 });
    let query = Geometry {
        shared: row_bytes * (2 * 64 * groups + 2 * stages * TILE) + 8 * (1 + 2 * stages),
        ..Geometry::new2(seq.div_ceil(64 * groups), blocks, 128 * groups as u32)
    };
    let stages = if head_size == 64 { 3 } else { 2 };
    let key = Geometry {
        shared: row_bytes * (2 * TILE + 2 * stages * TILE) + 8 * stages * TILE + 8 * (1 + 2 * stages),
        ..Geometry::new2(seq.div_ceil(TILE), (rows.batch * kv_heads) as u64, 128)
    };
    let of_keys = if heads.sharing() == 1 { &BACKWARD_KEY } else { &BACKWARD_KEY_GROUPED };
    // SAFETY: the caller has checked all lengths; the first kernel writes the `rows` that the second reads.
    unsafe {
        k.launch(op, &BACKWARD_QUERY, query, &args)?;
        k.launch(op, of_keys, key, &args)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources;

    #[test]
    fn tile_sizes_are_those_of_the_source() {
        let (forward, backward) = ("attention_forward_hopper.cu", "attention_backward_hopper.cu");
        for (file, line) in [
            (forward, "constexpr int GROUPS = HS == 64 ? 2 : 3, ROWS = 64 * GROUPS, KEYS = 64, STAGES = 4;"),
            (backward, "constexpr int GROUPS = HS == 64 ? 2 : 3, QUERY_STAGES = HS == 64 ? 4 : 3;"),
            (backward, "constexpr int KEY_STAGES = HS == 64 ? 3 : 2, KEY_BLOCKS = HS == 64 ? 3 : 2;"),
        ] {
            let source = sources().find(|source| source.file == file).expect("the file is embedded");
            assert!(source.text.lines().any(|l| l == line), "{file} says `{line}`: the launch counts on it");
        }
    }
}
