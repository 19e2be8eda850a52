//! Operations without their tensors: what the audit of a step (`docs/audit.md`) knows of them.
//!
//! An [`Outline`] is an operation's kind and shape. It says which matrices the operation reads and writes,
//! and [`super::excerpt`] cuts it into excerpts that are operations of the same kind, but smaller.

use super::{LinearShape, LogitTerms, QkRotary, RotaryAt};
use crate::ops::types::{Heads, Nonlinearity, Role, Rows, Vocab, Write};

/// An operation of a forward or backward pass without its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outline {
    Embedding {
        rows: Rows,
        channels: usize,
        /// Whether there is a table of positions.
        positions: bool,
    },
    /// RMSNorm where `rms` says so.
    Layernorm {
        rows: usize,
        channels: usize,
        rms: bool,
        bias: bool,
    },
    ResidualLayernorm {
        rows: usize,
        channels: usize,
        rms: bool,
        bias: bool,
    },
    Linear {
        shape: LinearShape,
        bias: bool,
    },
    LinearActivate {
        shape: LinearShape,
        bias: bool,
        function: Nonlinearity,
    },
    Activate {
        rows: usize,
        channels: usize,
        function: Nonlinearity,
    },
    /// `values`: whether `out` has them too.
    QkNorm {
        rows: usize,
        heads: Heads,
        values: bool,
        rotary: Option<SequenceAngles>,
    },
    QkNormBackward {
        rows: usize,
        heads: Heads,
        write: Write,
        rotary: Option<SequenceAngles>,
    },
    /// The queries or keys of a gradient of [`QkNorm`]: an excerpt of it alone, whose matrices it has.
    QkNormPart(QkNormPart),
    /// Of whole sequences; `first` is the position of their first row.
    Rotary {
        rows: Rows,
        heads: Heads,
        theta: f64,
        inverse: bool,
        first: usize,
    },
    /// `apart`: the values are in another matrix than queries and keys.
    Attention {
        rows: Rows,
        heads: Heads,
        apart: bool,
    },
    Classifier {
        rows: usize,
        channels: usize,
        vocab: Vocab,
        terms: LogitTerms,
        scale: f32,
        write: Write,
    },
    /// Rows of the table's gradient in a classifier: an excerpt of it alone, whose matrices it has.
    TableGradient(TableGradient),
    LayernormBackward {
        rows: usize,
        channels: usize,
        rms: bool,
        bias: bool,
        dx_write: Write,
        write: Write,
        /// Whether it leaves the norm's output too.
        again: bool,
    },
    LinearBackwardInput {
        shape: LinearShape,
    },
    LinearBackwardInputActivate {
        shape: LinearShape,
        function: Nonlinearity,
        /// Whether it leaves the function's output too.
        again: bool,
    },
    ActivateBackward {
        rows: usize,
        channels: usize,
        function: Nonlinearity,
        in_place: bool,
    },
    LinearBackwardWeight {
        shape: LinearShape,
        bias: bool,
        write: Write,
        order: WeightOrder,
    },
    /// As [`Outline::Attention`].
    AttentionBackward {
        rows: Rows,
        heads: Heads,
        apart: bool,
    },
    EmbeddingBackward {
        rows: Rows,
        channels: usize,
        /// Rows of the table of tokens.
        vocab: usize,
        dwte_write: Write,
        /// What is done with the table of positions, if there is one.
        dwpe_write: Option<Write>,
    },
}

/// What the order of a weight gradient's sums depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightOrder {
    /// The shape of the whole operation, of which this may be an excerpt.
    pub whole: LinearShape,
    /// Whether [`super::LinearBackwardInputActivate`] with GELU wrote `dout`: it leaves sums for the bias
    /// gradient.
    pub after_gelu: bool,
}

/// Some rows of the gradient of the token table that a classifier of this shape adds up over all of its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableGradient {
    pub rows: usize,
    pub channels: usize,
    pub vocab: Vocab,
    pub terms: LogitTerms,
    pub scale: f32,
    pub write: Write,
    /// First row of the table, and how many.
    pub first: usize,
    pub count: usize,
}

/// Rotary positions of whole sequences in a norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceAngles {
    /// Rows of each sequence.
    pub seq: usize,
    pub theta: f64,
    /// The position of the first row of each.
    pub first: usize,
}

impl SequenceAngles {
    /// None of listed positions.
    pub(super) fn of<B, I>(rotary: &QkRotary<'_, B, I>) -> Option<SequenceAngles> {
        match rotary.at {
            RotaryAt::Sequences(rows) => {
                Some(SequenceAngles { seq: rows.seq, theta: rotary.theta, first: 0 })
            }
            RotaryAt::Listed { .. } => None,
        }
    }
}

/// The gradient of the norm of all queries, or of all keys: no fewer give the gradient of their weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormPart {
    pub rows: usize,
    pub heads: Heads,
    pub write: Write,
    pub rotary: Option<SequenceAngles>,
    pub keys: bool,
}

impl QkNormPart {
    /// How many heads it has a row.
    pub fn count(&self) -> usize {
        if self.keys { self.heads.kv_heads } else { self.heads.heads }
    }
}

/// What an operation does with one of its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Set,
    /// Read and written.
    Add,
}

impl From<Write> for Access {
    fn from(write: Write) -> Access {
        match write {
            Write::Set => Access::Set,
            Write::Add => Access::Add,
        }
    }
}

/// A matrix that an operation reads or writes, row-major and dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// The field of the operation.
    pub name: &'static str,
    pub role: Role,
    pub access: Access,
    /// 0 for a table of tokens: the operation does not know how long it is.
    pub rows: usize,
    pub columns: usize,
}

/// The token ids of a micro-batch that an operation reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    Inputs,
    Targets,
}

impl Outline {
    /// The name of the operation's method; of [`Activate`] and its gradient that of the function.
    pub fn name(&self) -> &'static str {
        match self {
            Outline::Embedding { .. } => "embedding",
            Outline::Layernorm { .. } => "layernorm",
            Outline::ResidualLayernorm { .. } => "residual_layernorm",
            Outline::Linear { .. } => "linear",
            Outline::LinearActivate { function, .. } => match function {
                Nonlinearity::Gelu => "linear_gelu",
                Nonlinearity::SquaredRelu => "linear_squared_relu",
                Nonlinearity::Swiglu => "linear_swiglu",
            },
            Outline::QkNorm { .. } => "qk_norm",
            Outline::QkNormBackward { .. } | Outline::QkNormPart(_) => "qk_norm_backward",
            Outline::Rotary { .. } => "rotary",
            Outline::Activate { function, .. } => match function {
                Nonlinearity::Gelu => "gelu",
                Nonlinearity::SquaredRelu => "squared_relu",
                Nonlinearity::Swiglu => "swiglu",
            },
            Outline::ActivateBackward { function, .. } => match function {
                Nonlinearity::Gelu => "gelu_backward",
                Nonlinearity::SquaredRelu => "squared_relu_backward",
                Nonlinearity::Swiglu => "swiglu_backward",
            },
            Outline::Attention { .. } => "attention",
            Outline::Classifier { .. } | Outline::TableGradient(_) => "classifier",
            Outline::LayernormBackward { .. } => "layernorm_backward",
            Outline::LinearBackwardInput { .. } => "linear_backward_input",
            Outline::LinearBackwardInputActivate { function, .. } => match function {
                Nonlinearity::Gelu => "linear_backward_input_gelu",
                Nonlinearity::SquaredRelu => "linear_backward_input_squared_relu",
                Nonlinearity::Swiglu => "linear_backward_input_swiglu",
            },
            Outline::LinearBackwardWeight { .. } => "linear_backward_weight",
            Outline::AttentionBackward { .. } => "attention_backward",
            Outline::EmbeddingBackward { .. } => "embedding_backward",
        }
    }

    /// The token ids that it reads.
    pub fn tokens(&self) -> Option<Tokens> {
        match self {
            Outline::Embedding { .. } | Outline::EmbeddingBackward { .. } => Some(Tokens::Inputs),
            Outline::Classifier { .. } | Outline::TableGradient(_) => Some(Tokens::Targets),
            _ => None,
        }
    }

    /// Its matrices, in the order of the operation's fields.
    pub fn matrices(&self) -> Vec<Matrix> {
        use Access::{Read, Set};
        use Role::{Activation, F32, Param};
        let m = |name, role, access, rows, columns| Matrix { name, role, access, rows, columns };
        match *self {
            Outline::Embedding { rows, channels: c, positions } => {
                let mut all = vec![m("out", Activation, Set, rows.count(), c), m("wte", Param, Read, 0, c)];
                all.extend(positions.then(|| m("wpe", Param, Read, rows.seq, c)));
                all
            }
            Outline::Layernorm { rows: n, channels: c, rms, bias } => listed([
                Some(m("out", Activation, Set, n, c)),
                (!rms).then(|| m("mean", F32, Set, n, 1)),
                Some(m("rstd", F32, Set, n, 1)),
                Some(m("x", Activation, Read, n, c)),
                Some(m("weight", Param, Read, 1, c)),
                bias.then(|| m("bias", Param, Read, 1, c)),
            ]),
            Outline::ResidualLayernorm { rows: n, channels: c, rms, bias } => listed([
                Some(m("residual", Activation, Set, n, c)),
                Some(m("out", Activation, Set, n, c)),
                (!rms).then(|| m("mean", F32, Set, n, 1)),
                Some(m("rstd", F32, Set, n, 1)),
                Some(m("x", Activation, Read, n, c)),
                Some(m("branch", Activation, Read, n, c)),
                Some(m("weight", Param, Read, 1, c)),
                bias.then(|| m("bias", Param, Read, 1, c)),
            ]),
            Outline::Linear { shape: s, bias } => {
                let mut all = vec![
                    m("out", Activation, Set, s.rows, s.c_out),
                    m("x", Activation, Read, s.rows, s.c_in),
                    m("weight", Param, Read, s.c_out, s.c_in),
                ];
                all.extend(bias.then(|| m("bias", Param, Read, 1, s.c_out)));
                all
            }
            Outline::LinearActivate { shape: s, bias, function } => listed([
                Some(m("out", Activation, Set, s.rows, function.outputs_of(s.c_out))),
                Some(m("pre", Activation, Set, s.rows, s.c_out)),
                Some(m("x", Activation, Read, s.rows, s.c_in)),
                Some(m("weight", Param, Read, s.c_out, s.c_in)),
                bias.then(|| m("bias", Param, Read, 1, s.c_out)),
            ]),
            Outline::Activate { rows: n, channels: c, function } => {
                vec![m("out", Activation, Set, n, c), m("pre", Activation, Read, n, function.inputs() * c)]
            }
            // A table of angles is made again from its base.
            Outline::QkNorm { rows: n, heads, values, .. } => vec![
                m("out", Activation, Set, n, heads.slices(values) * heads.head_size),
                m("rstd", F32, Set, n, heads.of_queries_and_keys()),
                m("x", Activation, Read, n, heads.qkv_channels()),
                m("q_weight", Param, Read, 1, heads.head_size),
                m("k_weight", Param, Read, 1, heads.head_size),
            ],
            Outline::QkNormBackward { rows: n, heads, write, .. } => vec![
                m("dqkv", Activation, Access::Add, n, heads.qkv_channels()),
                m("dq_weight", F32, write.into(), 1, heads.head_size),
                m("dk_weight", F32, write.into(), 1, heads.head_size),
                m("x", Activation, Read, n, heads.qkv_channels()),
                m("q_weight", Param, Read, 1, heads.head_size),
                m("k_weight", Param, Read, 1, heads.head_size),
                m("rstd", F32, Read, n, heads.of_queries_and_keys()),
            ],
            // Each row has one part.
            Outline::QkNormPart(part @ QkNormPart { rows: n, heads, write, .. }) => vec![
                m("dqkv", Activation, Access::Add, n, part.count() * heads.head_size),
                m("dq_weight", F32, write.into(), 1, heads.head_size),
                m("dk_weight", F32, write.into(), 1, heads.head_size),
                m("x", Activation, Read, n, part.count() * heads.head_size),
                m("q_weight", Param, Read, 1, heads.head_size),
                m("k_weight", Param, Read, 1, heads.head_size),
                m("rstd", F32, Read, n, part.count()),
            ],
            // The table is made again from `theta`.
            Outline::Rotary { rows, heads, .. } => {
                vec![m("qkv", Activation, Access::Add, rows.count(), heads.qkv_channels())]
            }
            Outline::Attention { rows, heads, apart } => listed([
                Some(m("out", Activation, Set, rows.count(), heads.channels())),
                Some(m("lse", F32, Set, rows.count() * heads.heads, 1)),
                Some(m("qkv", Activation, Read, rows.count(), heads.slices(!apart) * heads.head_size)),
                apart.then(|| m("values", Activation, Read, rows.count(), heads.qkv_channels())),
            ]),
            Outline::Classifier { rows: n, channels: c, vocab, write, .. } => vec![
                m("losses", F32, Set, n, 1),
                m("denominators", F32, Set, n, 2),
                m("dx", Activation, Set, n, c),
                m("dwte", F32, write.into(), vocab.padded, c),
                m("x", Activation, Read, n, c),
                m("wte", Param, Read, vocab.padded, c),
            ],
            // The excerpt reads what the rest of the classifier wrote, and its own rows of the table.
            Outline::TableGradient(TableGradient { rows: n, channels: c, write, count, .. }) => vec![
                m("losses", F32, Set, n, 1),
                m("denominators", F32, Read, n, 2),
                m("dx", Activation, Set, n, c),
                m("dwte", F32, write.into(), count, c),
                m("x", Activation, Read, n, c),
                m("wte", Param, Read, count, c),
            ],
            Outline::LayernormBackward { rows: n, channels: c, rms, bias, dx_write, write, again } => {
                listed([
                    Some(m("dx", Activation, dx_write.into(), n, c)),
                    Some(m("dweight", F32, write.into(), 1, c)),
                    bias.then(|| m("dbias", F32, write.into(), 1, c)),
                    Some(m("dout", Activation, Read, n, c)),
                    Some(m("x", Activation, Read, n, c)),
                    Some(m("weight", Param, Read, 1, c)),
                    (!rms).then(|| m("mean", F32, Read, n, 1)),
                    Some(m("rstd", F32, Read, n, 1)),
                    again.then(|| m("out", Activation, Set, n, c)),
                    (again && bias).then(|| m("bias", Param, Read, 1, c)),
                ])
            }
            Outline::LinearBackwardInput { shape: s } => vec![
                m("dx", Activation, Set, s.rows, s.c_in),
                m("dout", Activation, Read, s.rows, s.c_out),
                m("weight", Param, Read, s.c_out, s.c_in),
            ],
            Outline::LinearBackwardInputActivate { shape: s, function, again } => listed([
                Some(m("dpre", Activation, Set, s.rows, function.inputs() * s.c_in)),
                Some(m("dout", Activation, Read, s.rows, s.c_out)),
                Some(m("weight", Param, Read, s.c_out, s.c_in)),
                Some(m("pre", Activation, Read, s.rows, function.inputs() * s.c_in)),
                again.then(|| m("out", Activation, Set, s.rows, s.c_in)),
            ]),
            Outline::ActivateBackward { rows: n, channels: c, function, in_place } => {
                let wide = function.inputs() * c;
                let mut all = vec![m("dpre", Activation, if in_place { Access::Add } else { Set }, n, wide)];
                all.extend((!in_place).then(|| m("dout", Activation, Read, n, c)));
                all.push(m("pre", Activation, Read, n, wide));
                all
            }
            Outline::LinearBackwardWeight { shape: s, bias, write, .. } => {
                let mut all = vec![m("dweight", F32, write.into(), s.c_out, s.c_in)];
                all.extend(bias.then(|| m("dbias", F32, write.into(), 1, s.c_out)));
                all.push(m("dout", Activation, Read, s.rows, s.c_out));
                all.push(m("x", Activation, Read, s.rows, s.c_in));
                all
            }
            Outline::AttentionBackward { rows, heads, apart } => listed([
                Some(m("dqkv", Activation, Set, rows.count(), heads.qkv_channels())),
                Some(m("dout", Activation, Read, rows.count(), heads.channels())),
                Some(m("qkv", Activation, Read, rows.count(), heads.slices(!apart) * heads.head_size)),
                Some(m("out", Activation, Read, rows.count(), heads.channels())),
                Some(m("lse", F32, Read, rows.count() * heads.heads, 1)),
                apart.then(|| m("values", Activation, Read, rows.count(), heads.qkv_channels())),
            ]),
            Outline::EmbeddingBackward { rows, channels: c, vocab, dwte_write, dwpe_write } => {
                let mut all = vec![m("dwte", F32, dwte_write.into(), vocab, c)];
                all.extend(dwpe_write.map(|write| m("dwpe", F32, write.into(), rows.seq, c)));
                all.push(m("dout", Activation, Read, rows.count(), c));
                all
            }
        }
    }
}

/// Those that are there, in order.
fn listed<T>(all: impl IntoIterator<Item = Option<T>>) -> Vec<T> {
    all.into_iter().flatten().collect()
}

/// What an operation touches, for [`crate::ops::traced`]. Operations of a forward or backward pass stand
/// in [`super::outlined`]; the others say beside their struct that they are none.
pub trait Outlined<B> {
    /// Its outline; none of an operation that is no part of a forward or backward pass.
    fn outline(&self) -> Option<Outline> {
        None
    }

    /// The tensors of [`Outline::matrices`], in that order; without an outline, tensors of a pass that it
    /// reads.
    fn tensors(&self) -> Vec<&B> {
        Vec::new()
    }
}
