//! The operations a device must offer to train GPT-2: one trait, two implementations.
//!
//! The model in [`crate::model`] is written once over [`Ops`]. `cpu` is the reference, the oracle of
//! every kernel test and the embedded default; `cuda` is the product. An operation is as large as
//! fusing pays for on a GPU, and no larger: what a device keeps secret (launch geometry, packing,
//! algorithm plans, scratch) stays behind the trait.
//!
//! # Promises every implementation keeps
//!
//! * The result of an operation is a function of its inputs' bits and of the shapes: not of threads,
//!   SIMD width, launch geometry, time or what ran before.
//! * Float sums have an order given by the shape. No float atomics.
//! * Every output element is written; buffers marked `Write::Set` need no clearing before.
//!
//! Shape letters: `B` sequences, `T` tokens a sequence, `C` channels, `NH` heads, `HS = C/NH`,
//! `V` vocabulary as padded in memory. `N = B*T` rows. All matrices are row-major and dense.

pub mod cpu;
pub mod cuda;
pub mod dry;
#[cfg(test)]
pub mod testing;
pub mod timed;

use std::fmt;
use std::ops::Range;

/// What a buffer is for; each device maps it to an element type.
///
/// On the CPU everything is `f32`. On CUDA `Param` and `Activation` follow `precision.compute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weights as the forward pass reads them.
    Param,
    /// Activations and their gradients.
    Activation,
    /// Always `f32`: parameter gradients, moments, master weights, losses, statistics.
    F32,
}

/// Element type of a stored tensor, named as safetensors names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    F32,
    BF16,
    F64,
    U32,
    U64,
    I64,
}

impl Dtype {
    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::BF16 => "BF16",
            Dtype::F64 => "F64",
            Dtype::U32 => "U32",
            Dtype::U64 => "U64",
            Dtype::I64 => "I64",
        }
    }

    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            Dtype::BF16 => 2,
            Dtype::F32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::U64 | Dtype::I64 => 8,
        }
    }

    /// The type a safetensors header names, if it is one that a state can hold.
    pub fn parse(name: &str) -> Option<Dtype> {
        [Dtype::F32, Dtype::BF16, Dtype::F64, Dtype::U32, Dtype::U64, Dtype::I64]
            .into_iter()
            .find(|d| d.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether an operation replaces what its output held or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Set,
    Add,
}

/// Sequences by tokens: the shape of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// B, sequences.
    pub batch: usize,
    /// T, tokens a sequence.
    pub seq: usize,
}

impl Rows {
    /// B*T, the number of rows of an activation matrix.
    pub fn count(self) -> usize {
        self.batch * self.seq
    }
}

/// NH and HS of an attention operation; `channels = heads * head_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub head_size: usize,
}

/// One parameter tensor with all that AdamW reads and writes.
///
/// The update covers the elements `at..at + adam_m.len()` of the tensor: all of it, or the part of it whose
/// moments are kept here. `param` holds the whole tensor, the moments and the master that part alone, and
/// `grad` either.
/// `id` numbers the tensor in the model's order and enters the counter of stochastic rounding.
pub struct ParamSlot<'a, O: Ops + ?Sized> {
    pub id: u32,
    /// First element of the part, a multiple of [`Ops::chunk`].
    pub at: usize,
    pub param: &'a mut O::Buf,
    /// fp32 copy that takes the update, when `param` is narrower and masters are kept.
    pub master: Option<&'a mut O::Buf>,
    pub grad: &'a O::Buf,
    /// Where in `grad` the part begins: `at`, or 0 where `grad` holds the part alone.
    pub grad_at: usize,
    pub adam_m: &'a mut O::Buf,
    pub adam_v: &'a mut O::Buf,
    /// Weight decay of this tensor: the experiment's for 2-D weights, else 0.
    pub weight_decay: f32,
}

/// Scalars of one AdamW update, computed on the host in f64 and rounded once.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// `1 / (1 - beta1^t)` and `1 / (1 - beta2^t)`, t the number of updates including this one.
    pub correction1: f32,
    pub correction2: f32,
    /// Every gradient is multiplied by this first: the clip factor, at most 1.
    pub grad_scale: f32,
    /// Key and step of stochastic rounding, used when a narrow `param` has no master.
    pub rounding_key: [u32; 2],
    pub step: u64,
}

/// A device that can train GPT-2.
///
/// All methods take `&mut self`: a device is one ordered stream of work, with a second one at its side for
/// work that nobody waits for yet ([`aside`]). On CUDA they return before the work is done;
/// [`Ops::download`], [`Ops::sum_squares`] and [`Ops::synchronize`] wait.
pub trait Ops {
    /// A dense float tensor on the device. Its length is fixed when it is allocated.
    type Buf: Send;
    /// Token ids on the device.
    type Ids: Send;

    // ---- memory ----------------------------------------------------------------------------

    /// Name of the device for people: `AMD EPYC 9354, 2 threads` or `NVIDIA H100 80GB HBM3`.
    fn device_name(&self) -> String;
    /// Element type in which this device stores `role`.
    fn dtype(&self, role: Role) -> Dtype;
    /// A zeroed buffer of `len` elements.
    fn alloc(&mut self, role: Role, len: usize) -> Result<Self::Buf>;
    /// `len` elements of f32 in the host's memory, where the device has its own; what they are is not
    /// defined. For [`Ops::copy`] alone, which can move them while other work goes on.
    fn alloc_host(&mut self, len: usize) -> Result<Self::Buf> {
        self.alloc(Role::F32, len)
    }
    /// Room for `len` token ids.
    fn alloc_ids(&mut self, len: usize) -> Result<Self::Ids>;
    /// Scratch that the operations need for micro-batches of this shape, in bytes, by name.
    /// Allocated here, once, before the first operation.
    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()>;
    fn upload_ids(&mut self, dst: &mut Self::Ids, ids: &[u16]) -> Result<()>;
    /// Replaces the first `src.len()` elements, rounded to the buffer's type, to nearest even.
    fn upload(&mut self, dst: &mut Self::Buf, src: &[f32]) -> Result<()>;
    /// The first `dst.len()` elements, widened to f32.
    fn download(&mut self, src: &Self::Buf, dst: &mut [f32]) -> Result<()>;
    /// `dst.len()` stored bytes from byte `at` on, little-endian, exactly.
    fn read_at(&mut self, src: &Self::Buf, at: usize, dst: &mut [u8]) -> Result<()>;
    /// Replaces `src.len()` stored bytes from byte `at` on.
    fn write_at(&mut self, dst: &mut Self::Buf, at: usize, src: &[u8]) -> Result<()>;
    /// The first `dst.len()` stored bytes.
    fn read_bytes(&mut self, src: &Self::Buf, dst: &mut [u8]) -> Result<()> {
        self.read_at(src, 0, dst)
    }
    /// Replaces the first `src.len()` stored bytes.
    fn write_bytes(&mut self, dst: &mut Self::Buf, src: &[u8]) -> Result<()> {
        self.write_at(dst, 0, src)
    }
    fn synchronize(&mut self) -> Result<()>;
    /// Merkle roots of a range of stored bytes of each buffer, as `docs/digest.md` specifies, when the
    /// device can hash where the bytes are; `None` sends the caller to [`Ops::read_at`]. A range starts
    /// at a multiple of 16.
    fn merkle_roots(&mut self, _bufs: &[(&Self::Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        Ok(None)
    }

    // ---- two lanes -------------------------------------------------------------------------
    //
    // A device without a second stream does all work in the order it is asked for, which is the order that
    // the two lanes promise.

    /// From here on work goes to the side lane, where it comes after everything asked for so far, on either
    /// lane. See [`aside`].
    fn turn_aside(&mut self) -> Result<()> {
        Ok(())
    }
    /// Work goes to the main lane again, and does not wait for the side lane.
    fn turn_back(&mut self) -> Result<()> {
        Ok(())
    }
    /// What is asked for after this, on either lane, comes after all that the side lane was asked for.
    fn join_lanes(&mut self) -> Result<()> {
        Ok(())
    }

    // ---- work that comes again -------------------------------------------------------------

    /// A number that tells this buffer from every other live one, on devices where [`Ops::replay`] needs it.
    fn identity(&self, _buf: &Self::Buf) -> u64 {
        0
    }
    /// Does again the work that was last recorded under `key`, and says whether it did. When not, the
    /// caller does the work and ends it with [`Ops::recorded`]; a device may record it meanwhile.
    /// Equal keys promise the same operations on the same buffers with the same scalars.
    fn replay(&mut self, _key: [u64; 4]) -> Result<bool> {
        Ok(false)
    }
    /// The end of work that [`Ops::replay`] left to the caller.
    fn recorded(&mut self, _key: [u64; 4]) -> Result<()> {
        Ok(())
    }

    // ---- the forward pass ------------------------------------------------------------------

    /// `out[b,t,:] = wte[ids[b,t],:] + wpe[t,:]`. out (B,T,C), wte (V,C), wpe (>=T,C).
    fn embedding(
        &mut self,
        out: &mut Self::Buf,
        ids: &Self::Ids,
        wte: &Self::Buf,
        wpe: &Self::Buf,
        rows: Rows,
        channels: usize,
    ) -> Result<()>;

    /// `out = (x - mean) * rstd * weight + bias` a row, epsilon 1e-5. x, out (N,C); mean, rstd (N) f32.
    fn layernorm(
        &mut self,
        out: &mut Self::Buf,
        mean: &mut Self::Buf,
        rstd: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Self::Buf,
        bias: &Self::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()>;

    /// `residual = x + branch`, then layernorm of `residual` into `out`. Statistics are of the
    /// residual as stored.
    fn residual_layernorm(
        &mut self,
        residual: &mut Self::Buf,
        out: &mut Self::Buf,
        mean: &mut Self::Buf,
        rstd: &mut Self::Buf,
        x: &Self::Buf,
        branch: &Self::Buf,
        weight: &Self::Buf,
        bias: &Self::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()>;

    /// `out = x weightᵀ + bias`. x (n, c_in), weight (c_out, c_in), bias (c_out), out (n, c_out).
    fn linear(
        &mut self,
        out: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Self::Buf,
        bias: Option<&Self::Buf>,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()>;

    /// `pre = x weightᵀ + bias`, `out = gelu(pre)`, the tanh form of GELU.
    fn linear_gelu(
        &mut self,
        out: &mut Self::Buf,
        pre: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Self::Buf,
        bias: &Self::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()>;

    /// `out = gelu(pre)`, the bits that `linear_gelu` gave: for recomputation.
    fn gelu(&mut self, out: &mut Self::Buf, pre: &Self::Buf, len: usize) -> Result<()>;

    /// Causal attention. qkv (B,T,3,NH,HS), out (B,T,NH,HS), lse (B,NH,T) f32: log-sum-exp of the
    /// scaled scores, scale `1/sqrt(HS)`.
    fn attention(
        &mut self,
        out: &mut Self::Buf,
        lse: &mut Self::Buf,
        qkv: &Self::Buf,
        rows: Rows,
        heads: Heads,
    ) -> Result<()>;

    /// Token losses without gradients: `losses[at + i] = logsumexp(x_i wteᵀ) - (x_i wteᵀ)[target_i]`
    /// over the first `vocab` columns. x (n, C), wte (V, C); losses f32.
    fn classifier_loss(
        &mut self,
        losses: &mut Self::Buf,
        at: usize,
        x: &Self::Buf,
        wte: &Self::Buf,
        targets: &Self::Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
    ) -> Result<()>;

    /// `dst[to..][..len] = src[from..][..len]`, of one type.
    fn copy(
        &mut self,
        dst: &mut Self::Buf,
        to: usize,
        src: &Self::Buf,
        from: usize,
        len: usize,
    ) -> Result<()>;

    // ---- decoding --------------------------------------------------------------------------
    //
    // Few rows, each the newest token of a text so far. The bits of a row depend on that row, its
    // stream and its position alone, never on how many rows there are: a text is the same whether it
    // is written alone or beside others. They need not be the bits of the operations above.

    /// `out[i,:] = wte[ids[i],:] + wpe[positions[i],:]`. out (n, C).
    fn decode_embedding(
        &mut self,
        out: &mut Self::Buf,
        ids: &Self::Ids,
        positions: &Self::Ids,
        wte: &Self::Buf,
        wpe: &Self::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()>;

    /// `out = x weightᵀ + bias`, then GELU where `gelu` says so. x (n, c_in), weight (c_out, c_in), out
    /// (n, c_out) an activation or f32; bias may be left out.
    fn decode_linear(
        &mut self,
        out: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Self::Buf,
        bias: Option<&Self::Buf>,
        gelu: bool,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()>;

    /// Writes the keys and values of qkv (n, 3, NH, HS) into the cache, then attends: row i sees the
    /// positions 0 to `at.positions[i]` of its stream. out (n, NH, HS). Rows of one stream may come
    /// together, each sees those before it.
    fn decode_attention(
        &mut self,
        out: &mut Self::Buf,
        cache: KvCache<'_, Self::Buf>,
        qkv: &Self::Buf,
        at: Places<'_, Self::Ids>,
        n: usize,
        heads: Heads,
    ) -> Result<()>;

    // ---- the backward pass -----------------------------------------------------------------

    /// Losses as [`Ops::classifier_loss`], and the gradient of `scale * sum of losses`:
    /// `dx` is set, `dwte` (V,C) f32 is written as `write` says. Rows past `vocab.used` get zeros.
    /// Works through `x` in chunks of rows, so that the logits never exist whole.
    fn classifier(
        &mut self,
        losses: &mut Self::Buf,
        at: usize,
        dx: &mut Self::Buf,
        dwte: &mut Self::Buf,
        x: &Self::Buf,
        wte: &Self::Buf,
        targets: &Self::Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
        scale: f32,
        write: Write,
    ) -> Result<()>;

    /// Gradient of layernorm: `dx` as `dx_write` says (a residual stream adds), `dweight` and `dbias`
    /// (C) f32 as `write` says. `x` is the input of the forward pass.
    fn layernorm_backward(
        &mut self,
        dx: &mut Self::Buf,
        dx_write: Write,
        dweight: &mut Self::Buf,
        dbias: &mut Self::Buf,
        write: Write,
        dout: &Self::Buf,
        x: &Self::Buf,
        weight: &Self::Buf,
        mean: &Self::Buf,
        rstd: &Self::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()>;

    /// `dx = dout weight`. dout (n, c_out), dx (n, c_in).
    fn linear_backward_input(
        &mut self,
        dx: &mut Self::Buf,
        dout: &Self::Buf,
        weight: &Self::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()>;

    /// `dpre = (dout weight) * gelu'(pre)`. pre, dpre (n, c_in).
    fn linear_backward_input_gelu(
        &mut self,
        dpre: &mut Self::Buf,
        dout: &Self::Buf,
        weight: &Self::Buf,
        pre: &Self::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()>;

    /// `dweight += doutᵀ x`, `dbias += column sums of dout`, both f32, `+=` or `=` as `write` says.
    fn linear_backward_weight(
        &mut self,
        dweight: &mut Self::Buf,
        dbias: Option<&mut Self::Buf>,
        dout: &Self::Buf,
        x: &Self::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
        write: Write,
    ) -> Result<()>;

    /// Gradient of [`Ops::attention`]: dqkv (B,T,3,NH,HS) is set.
    fn attention_backward(
        &mut self,
        dqkv: &mut Self::Buf,
        dout: &Self::Buf,
        qkv: &Self::Buf,
        out: &Self::Buf,
        lse: &Self::Buf,
        rows: Rows,
        heads: Heads,
    ) -> Result<()>;

    /// Adds the gradient of the token table to `dwte` (V,C) f32, in order of position within each token;
    /// writes that of the positions to `dwpe` (>=T,C) f32 as `write` says (rows past T: zeros on `Set`).
    fn embedding_backward(
        &mut self,
        dwte: &mut Self::Buf,
        dwpe: &mut Self::Buf,
        write: Write,
        dout: &Self::Buf,
        ids: &Self::Ids,
        rows: Rows,
        channels: usize,
    ) -> Result<()>;

    // ---- the optimizer ---------------------------------------------------------------------

    /// Sum of squares of each f32 buffer in f64, one number a buffer, over fixed chunks: the
    /// caller adds them in order. Waits for the device.
    fn sum_squares(&mut self, bufs: &[&Self::Buf]) -> Result<Vec<f64>>;

    /// Elements of a fixed chunk of [`Ops::sum_squares`]; a multiple of 2048, so that a chunk is whole
    /// leaves of the state digest at every width. Tensors are divided among devices at such chunks only.
    fn chunk(&self) -> usize;

    /// The sums of squares of the chunks of parts of f32 tensors, part after part: what
    /// [`Ops::sum_squares`] adds up. Each part starts at a multiple of [`Ops::chunk`] and ends at one or
    /// with its tensor. Waits for the device.
    fn chunk_squares(&mut self, parts: &[(&Self::Buf, Range<usize>)]) -> Result<Vec<f64>>;

    /// One tensor's sum of squares from those of all its chunks, to the bits of [`Ops::sum_squares`].
    fn fold_squares(&self, chunks: &[f64]) -> f64;

    /// AdamW over all tensors: decoupled decay, bias-corrected moments, epsilon outside the root.
    fn adamw(&mut self, slots: &mut [ParamSlot<'_, Self>], update: &AdamW) -> Result<()>;

    /// `dst += src`, f32: the tree over virtual workers.
    fn add(&mut self, dst: &mut Self::Buf, src: &Self::Buf) -> Result<()>;

    /// `dst[at..at + len] += src[from..from + len]`, f32; `at` and `from` are multiples of 4.
    fn add_part(
        &mut self,
        dst: &mut Self::Buf,
        at: usize,
        src: &Self::Buf,
        from: usize,
        len: usize,
    ) -> Result<()>;
}

/// Asks for `work` on the side lane of `ops`: it comes after all that was asked for before, and what is asked
/// for after it does not wait, until [`Ops::join_lanes`]. What it reads must not be written meanwhile, and
/// what it writes not be touched.
pub fn aside<O: Ops, E: From<DeviceError>>(
    ops: &mut O,
    work: impl FnOnce(&mut O) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    ops.turn_aside()?;
    let done = work(ops);
    let back = ops.turn_back();
    // What failed first is the reason.
    done?;
    Ok(back?)
}

/// A range of stored bytes of the buffer with this index in some list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub buf: usize,
    pub at: usize,
    pub len: usize,
}

/// Keys and values of one layer, (S, NH, P, HS) each, activations: S streams of P positions.
pub struct KvCache<'a, B> {
    pub keys: &'a mut B,
    pub values: &'a mut B,
    /// P. Positions are below it.
    pub capacity: usize,
}

/// Which position of which stream each row of a decoding pass is.
pub struct Places<'a, I> {
    pub streams: &'a I,
    pub positions: &'a I,
}

/// The vocabulary: rows of `wte` that mean a token, and rows in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocab {
    pub used: usize,
    pub padded: usize,
}

/// The largest shapes that the operations will see: what scratch is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchShape {
    pub rows: Rows,
    pub channels: usize,
    pub heads: Heads,
    pub vocab: Vocab,
    /// False for evaluation and sampling alone.
    pub backward: bool,
    pub params: ParamCount,
}

/// How much the optimizer and the state digest go through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParamCount {
    /// Parameter tensors.
    pub tensors: u64,
    /// Their elements in all.
    pub elements: u64,
}

pub type Result<T, E = DeviceError> = std::result::Result<T, E>;

/// What can go wrong on a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// More memory was asked for than there is.
    #[error(
        "out of memory on {device}: `{what}` needs {need_bytes} bytes, {free_bytes} are free\n  hint: lower `batch.micro` or raise `memory.recompute`"
    )]
    OutOfMemory { device: String, what: String, need_bytes: u64, free_bytes: u64 },
    /// A device call failed.
    #[error("{operation} failed on {device}: {message}")]
    Failed { device: String, operation: &'static str, message: String },
    /// No such device here.
    #[error("{0}")]
    Unavailable(String),
}
