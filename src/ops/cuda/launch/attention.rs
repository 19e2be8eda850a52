//! Launches of `attention_forward.cu` and `attention_backward.cu` for bf16 and the usual head sizes, and of
//! `attention_any.cu` for the rest.

use super::super::Cuda;
use super::super::args::{Act, Bf16, F32, In, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use super::super::scratch::Use;
use super::attention_hopper;
use crate::ops::{Attention, AttentionBackward, Dtype, Heads, Perform, Qkv, Result, Rows};

bindings! {
    "attention_forward.cu" as HEAD_SIZES {
        struct ForwardArgs {
            out: Out<Bf16>, lse: Out<F32>, qkv: In<Bf16>, values: In<Bf16>, tokens: i32, heads: i32,
            kv_heads: i32, slices: i32,
        }
        kernel FORWARD(ForwardArgs) = "attention_forward";
    }
    "attention_backward.cu" as HEAD_SIZES {
        struct BackwardArgs {
            dqkv: Out<Bf16>, delta: Out<F32>, dout: In<Bf16>, qkv: In<Bf16>, values: In<Bf16>,
            out: In<Bf16>, lse: In<F32>, tokens: i32, heads: i32, kv_heads: i32, slices: i32,
        }
        kernel BACKWARD_QUERY(BackwardArgs) = "attention_backward_query";
        kernel BACKWARD_KEY(BackwardArgs) = "attention_backward_key";
        kernel BACKWARD_KEY_GROUPED(BackwardArgs) = "attention_backward_key_grouped";
    }
    "attention_any.cu" {
        struct AttentionAnyArgs {
            out: Out<Act>, lse: Out<F32>, qkv: In<Act>, values: In<Act>, tokens: u32, heads: u32,
            kv_heads: u32, head_size: u32, scale: f32, slices: u32,
        }
        struct AttentionAnyBackwardArgs {
            dqkv: Out<Act>, delta: Out<F32>, dout: In<Act>, qkv: In<Act>, values: In<Act>, out: In<Act>,
            lse: In<F32>, tokens: u32, heads: u32, kv_heads: u32, head_size: u32, scale: f32, slices: u32,
        }
        kernel ANY_FORWARD(AttentionAnyArgs) = "attention_any_forward";
        kernel ANY_QUERY(AttentionAnyBackwardArgs) = "attention_any_query";
        kernel ANY_KEY(AttentionAnyBackwardArgs) = "attention_any_key";
    }
}

/// Head sizes that the fast kernels are written for: those of GPT-2 and GPT-3.
pub const HEAD_SIZES: [usize; 4] = [64, 80, 96, 128];

/// The widest head of any kernel.
pub const MOST_HEAD_SIZE: usize = 128;

/// Bytes of one row of a tile in shared memory.
fn row_bytes(head_size: usize) -> u64 {
    2 * head_size as u64 + 16
}

/// Whether the fast kernels know these heads.
pub fn is_fast(act: Dtype, head_size: usize) -> bool {
    act == Dtype::BF16 && HEAD_SIZES.contains(&head_size)
}

fn check(k: &Kernels, op: &'static str, rows: Rows, heads: Heads) -> Result<()> {
    let Heads { heads: count, head_size, .. } = heads;
    k.check(op, head_size <= MOST_HEAD_SIZE, || {
        format!("heads of {head_size} channels are wider than {MOST_HEAD_SIZE}")
    })?;
    k.check(op, rows.batch * count <= 65_535, || {
        format!("{} sequences of {count} heads are more than a grid holds", rows.batch)
    })?;
    // Kernels count the rows of a batch in 31 bits.
    k.check(op, i32::try_from(rows.count()).is_ok(), || format!("{} rows are 2^31 or more", rows.count()))
}

/// Four rows a block, a warp each, of each of so many heads.
fn any_geometry(rows: Rows, heads: usize) -> Geometry {
    Geometry::new2((rows.seq as u64).div_ceil(4), (rows.batch * heads) as u64, 128)
}

pub fn scale(head_size: usize) -> f32 {
    (1.0 / (head_size as f64).sqrt()) as f32
}

fn forward(k: &Kernels, op: Attention<'_, Buf>) -> Result<()> {
    const OP: &str = "attention";
    let Attention { out, lse, qkv, values, rows, heads } = op;
    check(k, OP, rows, heads)?;
    let size = rows.count() * heads.channels();
    let of = Qkv::of(qkv, values, rows, heads, |name, buf, len| k.act(OP, name, buf, len))?;
    if !is_fast(k.act, heads.head_size) {
        let args = AttentionAnyArgs {
            out: Out::at(k.act(OP, "out", out, size)?),
            lse: Out::at(k.f32(OP, "lse", lse, rows.count() * heads.heads)?),
            qkv: In::at(of.qkv),
            values: In::at(of.values),
            tokens: rows.seq as u32,
            heads: heads.heads as u32,
            kv_heads: heads.kv_heads as u32,
            head_size: heads.head_size as u32,
            scale: scale(heads.head_size),
            slices: of.slices as u32,
        };
        // SAFETY: all lengths were checked.
        return unsafe { k.launch(OP, &ANY_FORWARD, any_geometry(rows, heads.heads), &args) };
    }
    if attention_hopper::fits(&k.gpu, k.act, heads.head_size) {
        let tensors = attention_hopper::HopperForward {
            out: k.act(OP, "out", out, size)?,
            lse: k.f32(OP, "lse", lse, rows.count() * heads.heads)?,
            qkv: of,
        };
        return attention_hopper::forward(k, OP, &tensors, rows, heads);
    }
    let args = ForwardArgs {
        out: Out::at(k.act(OP, "out", out, size)?),
        lse: Out::at(k.f32(OP, "lse", lse, rows.count() * heads.heads)?),
        qkv: In::at(of.qkv),
        values: In::at(of.values),
        tokens: rows.seq as i32,
        heads: heads.heads as i32,
        kv_heads: heads.kv_heads as i32,
        slices: of.slices as i32,
    };
    // ROWS of the source.
    let block_rows = if heads.head_size == 64 { 128 } else { 64 };
    let shared = (block_rows + 4 * 64) * row_bytes(heads.head_size);
    let grid = Geometry::new2((rows.seq as u64).div_ceil(block_rows), (rows.batch * heads.heads) as u64, 128);
    // SAFETY: all lengths were checked.
    unsafe { k.launch(OP, &FORWARD, Geometry { shared, ..grid }, &args) }
}

/// Bytes of the scratch of the gradient, enough for the kernels of any machine.
pub fn delta_bytes(rows: Rows, heads: Heads) -> u64 {
    attention_hopper::rows_bytes(rows, heads)
}

/// `delta` has [`delta_bytes`].
fn backward(k: &Kernels, delta: u64, op: AttentionBackward<'_, Buf>) -> Result<()> {
    const OP: &str = "attention_backward";
    let AttentionBackward { dqkv, dout, qkv, values, out, lse, rows, heads } = op;
    check(k, OP, rows, heads)?;
    let (size, wide) = (rows.count() * heads.channels(), rows.count() * heads.qkv_channels());
    let of = Qkv::of(qkv, values, rows, heads, |name, buf, len| k.act(OP, name, buf, len))?;
    if !is_fast(k.act, heads.head_size) {
        let args = AttentionAnyBackwardArgs {
            dqkv: Out::at(k.act(OP, "dqkv", dqkv, wide)?),
            delta: Out::at(delta),
            dout: In::at(k.act(OP, "dout", dout, size)?),
            qkv: In::at(of.qkv),
            values: In::at(of.values),
            out: In::at(k.act(OP, "out", out, size)?),
            lse: In::at(k.f32(OP, "lse", lse, rows.count() * heads.heads)?),
            tokens: rows.seq as u32,
            heads: heads.heads as u32,
            kv_heads: heads.kv_heads as u32,
            head_size: heads.head_size as u32,
            scale: scale(heads.head_size),
            slices: of.slices as u32,
        };
        // SAFETY: all lengths were checked; the scratch is the caller's promise; the first kernel writes the
        // `delta` that the second reads.
        return unsafe {
            k.launch(OP, &ANY_QUERY, any_geometry(rows, heads.heads), &args)?;
            k.launch(OP, &ANY_KEY, any_geometry(rows, heads.kv_heads), &args)
        };
    }
    if attention_hopper::fits(&k.gpu, k.act, heads.head_size) {
        let tensors = attention_hopper::HopperBackward {
            dqkv: k.act(OP, "dqkv", dqkv, wide)?,
            rows: delta,
            dout: k.act(OP, "dout", dout, size)?,
            qkv: of,
            out: k.act(OP, "out", out, size)?,
            lse: k.f32(OP, "lse", lse, rows.count() * heads.heads)?,
        };
        return attention_hopper::backward(k, OP, &tensors, rows, heads);
    }
    let args = BackwardArgs {
        dqkv: Out::at(k.act(OP, "dqkv", dqkv, wide)?),
        delta: Out::at(delta),
        dout: In::at(k.act(OP, "dout", dout, size)?),
        qkv: In::at(of.qkv),
        values: In::at(of.values),
        out: In::at(k.act(OP, "out", out, size)?),
        lse: In::at(k.f32(OP, "lse", lse, rows.count() * heads.heads)?),
        tokens: rows.seq as i32,
        heads: heads.heads as i32,
        kv_heads: heads.kv_heads as i32,
        slices: of.slices as i32,
    };
    let (seq, count) = (rows.seq as u64, (rows.batch * heads.heads) as u64);
    // KEYS of the query kernel and ROWS of the key kernel in the source.
    let query_keys = if heads.head_size <= 80 { 64 } else { 32 };
    let key_rows = 32;
    let query = Geometry {
        shared: (2 * 64 + 4 * query_keys) * row_bytes(heads.head_size),
        ..Geometry::new2(seq.div_ceil(64), count, 128)
    };
    let key = Geometry {
        shared: (2 * 64 + 4 * key_rows) * row_bytes(heads.head_size) + 16 * key_rows,
        ..Geometry::new2(seq.div_ceil(64), (rows.batch * heads.kv_heads) as u64, 128)
    };
    let of_keys = if heads.sharing() == 1 { &BACKWARD_KEY } else { &BACKWARD_KEY_GROUPED };
    // SAFETY: all lengths were checked; the scratch is the caller's promise; the first kernel writes the
    // `delta` that the second reads.
    unsafe {
        k.launch(OP, &BACKWARD_QUERY, query, &args)?;
        k.launch(OP, of_keys, key, &args)
    }
}

impl Perform<Attention<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Attention<'_, Buf>) -> Result<()> {
        self.load_attention(op.heads)?;
        self.written(op.out);
        forward(&self.kernels, op)
    }
}

impl Perform<AttentionBackward<'_, Buf>> for Cuda {
    fn perform(&mut self, op: AttentionBackward<'_, Buf>) -> Result<()> {
        self.load_attention(op.heads)?;
        self.written(op.dqkv);
        let bytes = delta_bytes(op.rows, op.heads);
        let delta = self.scratch.get(&mut self.memory, Use::AttentionDelta, bytes)?;
        backward(&self.kernels, delta, op)
    }
}

impl Cuda {
    /// Makes sure that the fast attention kernels are loaded, where there are any for these heads.
    pub(in super::super) fn load_attention(&mut self, heads: Heads) -> Result<()> {
        if !is_fast(self.kernels.act, heads.head_size) {
            return Ok(());
        }
        let define = format!("HEAD_SIZE={}", heads.head_size);
        if self.attention_define() == Some(&define) {
            return Ok(());
        }
        let hopper = attention_hopper::fits(&self.kernels.gpu, self.kernels.act, heads.head_size);
        self.load_sources(&define, |source| source.only.is_some() == hopper)
    }

    /// The head size of the attention kernels in use.
    fn attention_define(&self) -> Option<&str> {
        let cubins = self.kernels.cubins().iter().rev();
        cubins
            .flat_map(|cubin| &cubin.options)
            .find_map(|option| option.strip_prefix("-D").filter(|d| d.starts_with("HEAD_SIZE=")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources;

    #[test]
    fn tile_sizes_are_those_of_the_source() {
        for (file, line) in [
            ("attention_forward.cu", "constexpr int M = HS == 64 ? 2 : 1;"),
            ("attention_forward.cu", "constexpr int ROWS = 64 * M;"),
            ("attention_backward.cu", "    constexpr int M = 1, ROWS = 64, KEYS = HS <= 80 ? 64 : 32;"),
            ("attention_backward.cu", "    constexpr int KEYS = 64, ROWS = 32;"),
        ] {
            let source = sources().find(|source| source.file == file).expect("the file is embedded");
            assert!(source.text.lines().any(|l| l == line), "{file} says `{line}`: the launch counts on it");
        }
    }
}
