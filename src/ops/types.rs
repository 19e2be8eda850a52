//! Types that operations share: the role of a buffer, element types, shapes, errors.

use std::fmt;

/// The role of a buffer; each device maps it to an element type.
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

/// The function between the two linear layers of a block's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// GELU in its tanh form (Hendrycks and Gimpel 2016).
    Gelu,
    /// `max(x, 0)²` (So et al. 2021).
    SquaredRelu,
    /// `silu(gate) up` with `silu(x) = x / (1 + exp(-x))` (Shazeer 2020). The columns 2i and 2i + 1 of what
    /// it reads are gate and up of its column i.
    Swiglu,
}

impl Nonlinearity {
    /// Its name, for tables of operations.
    pub const fn name(self) -> &'static str {
        match self {
            Nonlinearity::Gelu => "gelu",
            Nonlinearity::SquaredRelu => "squared relu",
            Nonlinearity::Swiglu => "swiglu",
        }
    }

    /// Columns that each column of the output is made of.
    pub const fn inputs(self) -> usize {
        match self {
            Nonlinearity::Gelu | Nonlinearity::SquaredRelu => 1,
            Nonlinearity::Swiglu => 2,
        }
    }

    /// Columns of the output where a row has `pre_width` columns before the function.
    pub const fn outputs_of(self, pre_width: usize) -> usize {
        pre_width / self.inputs()
    }
}

/// The MLP of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpShape {
    pub function: Nonlinearity,
    /// F: outputs of the function.
    pub channels: usize,
}

impl MlpShape {
    /// GPT-2's, in a model of this width.
    pub fn gpt2(channels: usize) -> MlpShape {
        MlpShape { function: Nonlinearity::Gelu, channels: 4 * channels }
    }

    /// Outputs of the first layer.
    pub fn inputs(self) -> usize {
        self.function.inputs() * self.channels
    }
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

/// NH, KH and HS of an attention operation. A row of queries, keys and values has NH heads of queries, KH of
/// keys and KH of values, one after the other: (NH + 2 KH, HS). Each key and value head serves the queries of
/// NH/KH heads, which are neighbours (Ainslie et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    /// KH, which divides NH.
    pub kv_heads: usize,
    pub head_size: usize,
}

impl Heads {
    /// Heads of queries that have keys and values of their own each.
    pub const fn new(heads: usize, head_size: usize) -> Heads {
        Heads { heads, kv_heads: heads, head_size }
    }

    /// C = NH*HS: of queries, and of what attention gives.
    pub fn channels(self) -> usize {
        self.heads * self.head_size
    }

    /// KH*HS: of keys, and of values.
    pub fn kv_channels(self) -> usize {
        self.kv_heads * self.head_size
    }

    /// (NH + 2 KH)*HS: of queries, keys and values.
    pub fn qkv_channels(self) -> usize {
        self.channels() + 2 * self.kv_channels()
    }

    /// NH + KH: heads of queries and of keys.
    pub fn of_queries_and_keys(self) -> usize {
        self.heads + self.kv_heads
    }

    /// NH + 2 KH, or without values NH + KH: heads of each token.
    pub fn slices(self, values: bool) -> usize {
        self.of_queries_and_keys() + if values { self.kv_heads } else { 0 }
    }

    /// NH/KH: heads of queries that share their keys.
    pub fn sharing(self) -> usize {
        self.heads / self.kv_heads
    }

    /// One head of keys and values, and the queries that share it.
    pub fn one_group(self) -> Heads {
        Heads { heads: self.sharing(), kv_heads: 1, ..self }
    }
}

/// The vocabulary: rows of the token table that mean a token, and rows in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocab {
    pub used: usize,
    pub padded: usize,
}

/// The largest shapes that the operations will see: what scratch is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchShape {
    pub rows: Rows,
    /// The shortest pieces that the rows of sequences are seen as; `rows.seq` where they never are.
    pub least_seq: usize,
    pub channels: usize,
    pub heads: Heads,
    pub vocab: Vocab,
    /// False for evaluation and sampling alone.
    pub backward: bool,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
    pub mlp: MlpShape,
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

/// A name for work that is repeated; see [`super::Ops::replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplayKey {
    /// Whose work it is: the identity of a buffer of it alone.
    pub of: u64,
    /// What holds for a time. In another phase, what was recorded of the same work may be forgotten.
    pub phase: [u64; 3],
    pub variant: [u64; 3],
}

/// A range of stored bytes of the buffer with this index in some list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub buf: usize,
    pub at: usize,
    pub len: usize,
}

/// How to need less memory for what an allocation is called.
fn room(what: &str) -> &'static str {
    let is = |names: [&str; 2]| names.iter().any(|name| what.starts_with(name));
    if is(["weights", "Param"]) {
        "lower `model.layers` or `model.channels`: every device holds all weights"
    } else if is(["fp32 tensors", "F32"]) {
        "lower `model.layers` or `model.channels`, or share moments and gradients among more ranks with \
         `parallel.zero`"
    } else {
        "lower `batch.micro` or raise `memory.recompute`"
    }
}

/// The result of a device's operation.
pub type Result<T, E = DeviceError> = std::result::Result<T, E>;

/// An error of a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// More memory was asked for than there is.
    #[error(
        "out of memory on {device}: `{what}` needs {need_bytes} bytes, {free_bytes} are free\n  \
         hint: {}",
        room(what)
    )]
    OutOfMemory { device: String, what: String, need_bytes: u64, free_bytes: u64 },
    /// A device call failed.
    #[error("{operation} failed on {device}: {message}")]
    Failed { device: String, operation: &'static str, message: String },
    /// This machine has no such device.
    #[error("{0}")]
    Unavailable(String),
}
