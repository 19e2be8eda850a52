//! Operations without their tensors: what the audit of a step (`docs/audit.md`) knows of them.
//!
//! An [`Outline`] is an operation's kind and shape. It says which matrices the operation reads and writes,
//! and [`super::excerpt`] cuts it into excerpts that are operations of the same kind, but smaller.

use super::{
    Attention, AttentionBackward, Classifier, CopyPart, Embedding, EmbeddingBackward, Gelu, Layernorm,
    LayernormBackward, Linear, LinearBackwardInput, LinearBackwardInputGelu, LinearBackwardWeight,
    LinearGelu, LinearShape, LogitTerms, ResidualLayernorm,
};
use crate::ops::types::{Heads, Role, Rows, Vocab, Write};

/// An operation of a forward or backward pass without its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outline {
    Embedding {
        rows: Rows,
        channels: usize,
    },
    Layernorm {
        rows: usize,
        channels: usize,
    },
    ResidualLayernorm {
        rows: usize,
        channels: usize,
    },
    Linear {
        shape: LinearShape,
        bias: bool,
    },
    LinearGelu {
        shape: LinearShape,
    },
    Gelu {
        rows: usize,
        channels: usize,
    },
    Attention {
        rows: Rows,
        heads: Heads,
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
        dx_write: Write,
        write: Write,
    },
    LinearBackwardInput {
        shape: LinearShape,
    },
    LinearBackwardInputGelu {
        shape: LinearShape,
    },
    LinearBackwardWeight {
        shape: LinearShape,
        bias: bool,
        write: Write,
        order: WeightOrder,
    },
    AttentionBackward {
        rows: Rows,
        heads: Heads,
    },
    EmbeddingBackward {
        rows: Rows,
        channels: usize,
        write: Write,
    },
}

/// What the order of a weight gradient's sums depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightOrder {
    /// The shape of the whole operation, of which this may be an excerpt.
    pub whole: LinearShape,
    /// Whether [`super::LinearBackwardInputGelu`] wrote `dout`: it leaves sums for the bias gradient.
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
    /// The name of the operation's method.
    pub fn name(&self) -> &'static str {
        match self {
            Outline::Embedding { .. } => "embedding",
            Outline::Layernorm { .. } => "layernorm",
            Outline::ResidualLayernorm { .. } => "residual_layernorm",
            Outline::Linear { .. } => "linear",
            Outline::LinearGelu { .. } => "linear_gelu",
            Outline::Gelu { .. } => "gelu",
            Outline::Attention { .. } => "attention",
            Outline::Classifier { .. } | Outline::TableGradient(_) => "classifier",
            Outline::LayernormBackward { .. } => "layernorm_backward",
            Outline::LinearBackwardInput { .. } => "linear_backward_input",
            Outline::LinearBackwardInputGelu { .. } => "linear_backward_input_gelu",
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
            Outline::Embedding { rows, channels: c } => vec![
                m("out", Activation, Set, rows.count(), c),
                m("wte", Param, Read, 0, c),
                m("wpe", Param, Read, rows.seq, c),
            ],
            Outline::Layernorm { rows: n, channels: c } => vec![
                m("out", Activation, Set, n, c),
                m("mean", F32, Set, n, 1),
                m("rstd", F32, Set, n, 1),
                m("x", Activation, Read, n, c),
                m("weight", Param, Read, 1, c),
                m("bias", Param, Read, 1, c),
            ],
            Outline::ResidualLayernorm { rows: n, channels: c } => vec![
                m("residual", Activation, Set, n, c),
                m("out", Activation, Set, n, c),
                m("mean", F32, Set, n, 1),
                m("rstd", F32, Set, n, 1),
                m("x", Activation, Read, n, c),
                m("branch", Activation, Read, n, c),
                m("weight", Param, Read, 1, c),
                m("bias", Param, Read, 1, c),
            ],
            Outline::Linear { shape: s, bias } => {
                let mut all = vec![
                    m("out", Activation, Set, s.rows, s.c_out),
                    m("x", Activation, Read, s.rows, s.c_in),
                    m("weight", Param, Read, s.c_out, s.c_in),
                ];
                all.extend(bias.then(|| m("bias", Param, Read, 1, s.c_out)));
                all
            }
            Outline::LinearGelu { shape: s } => vec![
                m("out", Activation, Set, s.rows, s.c_out),
                m("pre", Activation, Set, s.rows, s.c_out),
                m("x", Activation, Read, s.rows, s.c_in),
                m("weight", Param, Read, s.c_out, s.c_in),
                m("bias", Param, Read, 1, s.c_out),
            ],
            Outline::Gelu { rows: n, channels: c } => {
                vec![m("out", Activation, Set, n, c), m("pre", Activation, Read, n, c)]
            }
            Outline::Attention { rows, heads } => vec![
                m("out", Activation, Set, rows.count(), heads.channels()),
                m("lse", F32, Set, rows.count() * heads.heads, 1),
                m("qkv", Activation, Read, rows.count(), 3 * heads.channels()),
            ],
            Outline::Classifier { rows: n, channels: c, vocab, write, .. } => vec![
                m("losses", F32, Set, n, 1),
                m("lse", F32, Set, n, 1),
                m("dx", Activation, Set, n, c),
                m("dwte", F32, write.into(), vocab.padded, c),
                m("x", Activation, Read, n, c),
                m("wte", Param, Read, vocab.padded, c),
            ],
            // The excerpt reads what the rest of the classifier wrote, and its own rows of the table.
            Outline::TableGradient(TableGradient { rows: n, channels: c, write, count, .. }) => vec![
                m("losses", F32, Set, n, 1),
                m("lse", F32, Read, n, 1),
                m("dx", Activation, Set, n, c),
                m("dwte", F32, write.into(), count, c),
                m("x", Activation, Read, n, c),
                m("wte", Param, Read, count, c),
            ],
            Outline::LayernormBackward { rows: n, channels: c, dx_write, write } => vec![
                m("dx", Activation, dx_write.into(), n, c),
                m("dweight", F32, write.into(), 1, c),
                m("dbias", F32, write.into(), 1, c),
                m("dout", Activation, Read, n, c),
                m("x", Activation, Read, n, c),
                m("weight", Param, Read, 1, c),
                m("mean", F32, Read, n, 1),
                m("rstd", F32, Read, n, 1),
            ],
            Outline::LinearBackwardInput { shape: s } => vec![
                m("dx", Activation, Set, s.rows, s.c_in),
                m("dout", Activation, Read, s.rows, s.c_out),
                m("weight", Param, Read, s.c_out, s.c_in),
            ],
            Outline::LinearBackwardInputGelu { shape: s } => vec![
                m("dpre", Activation, Set, s.rows, s.c_in),
                m("dout", Activation, Read, s.rows, s.c_out),
                m("weight", Param, Read, s.c_out, s.c_in),
                m("pre", Activation, Read, s.rows, s.c_in),
            ],
            Outline::LinearBackwardWeight { shape: s, bias, write, .. } => {
                let mut all = vec![m("dweight", F32, write.into(), s.c_out, s.c_in)];
                all.extend(bias.then(|| m("dbias", F32, write.into(), 1, s.c_out)));
                all.push(m("dout", Activation, Read, s.rows, s.c_out));
                all.push(m("x", Activation, Read, s.rows, s.c_in));
                all
            }
            Outline::AttentionBackward { rows, heads } => vec![
                m("dqkv", Activation, Set, rows.count(), 3 * heads.channels()),
                m("dout", Activation, Read, rows.count(), heads.channels()),
                m("qkv", Activation, Read, rows.count(), 3 * heads.channels()),
                m("out", Activation, Read, rows.count(), heads.channels()),
                m("lse", F32, Read, rows.count() * heads.heads, 1),
            ],
            Outline::EmbeddingBackward { rows, channels: c, write } => vec![
                m("dwte", F32, Access::Add, 0, c),
                m("dwpe", F32, write.into(), rows.seq, c),
                m("dout", Activation, Read, rows.count(), c),
            ],
        }
    }
}

/// What an operation touches, for [`crate::ops::traced`]. Operations of a forward or backward pass stand
/// below; the others say beside their struct that they are none.
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

/// Writes what an operation touches: the buffers that it is generic over, its outline and its tensors.
macro_rules! outlined {
    ($($op:ident<$($of:ident),+>: |$it:ident| $outline:expr, $tensors:expr;)*) => {
        $(
            impl<$($of),+> Outlined<B> for $op<'_, $($of),+> {
                fn outline(&self) -> Option<Outline> {
                    let $it = self;
                    $outline
                }

                fn tensors(&self) -> Vec<&B> {
                    let $it = self;
                    $tensors
                }
            }
        )*
    };
}

outlined! {
    Embedding<B, I>: |op| Some(Outline::Embedding { rows: op.rows, channels: op.channels }),
        vec![op.out, op.wte, op.wpe];
    Layernorm<B>: |op| Some(Outline::Layernorm { rows: op.rows, channels: op.channels }),
        vec![op.out, op.mean, op.rstd, op.x, op.weight, op.bias];
    ResidualLayernorm<B>: |op| Some(Outline::ResidualLayernorm { rows: op.rows, channels: op.channels }),
        vec![op.residual, op.out, op.mean, op.rstd, op.x, op.branch, op.weight, op.bias];
    Linear<B>: |op| Some(Outline::Linear { shape: op.shape, bias: op.bias.is_some() }),
        [&*op.out, op.x, op.weight].into_iter().chain(op.bias).collect();
    LinearGelu<B>: |op| Some(Outline::LinearGelu { shape: op.shape }),
        vec![op.out, op.pre, op.x, op.weight, op.bias];
    Gelu<B>: |op| Some(Outline::Gelu { rows: 1, channels: op.len }), vec![op.out, op.pre];
    Attention<B>: |op| Some(Outline::Attention { rows: op.rows, heads: op.heads }),
        vec![op.out, op.lse, op.qkv];
    // In a pass the losses begin at 0, so that they are a matrix of their own.
    Classifier<B, I>: |op| (op.losses_at == 0).then_some(Outline::Classifier {
            rows: op.rows,
            channels: op.channels,
            vocab: op.vocab,
            terms: op.terms,
            scale: op.scale,
            write: op.write,
        }),
        vec![op.losses, op.lse, op.dx, op.dwte, op.x, op.wte];
    LayernormBackward<B>: |op| Some(Outline::LayernormBackward {
            rows: op.rows,
            channels: op.channels,
            dx_write: op.dx_write,
            write: op.write,
        }),
        vec![op.dx, op.dweight, op.dbias, op.dout, op.x, op.weight, op.mean, op.rstd];
    LinearBackwardInput<B>: |op| Some(Outline::LinearBackwardInput { shape: op.shape }),
        vec![op.dx, op.dout, op.weight];
    LinearBackwardInputGelu<B>: |op| Some(Outline::LinearBackwardInputGelu { shape: op.shape }),
        vec![op.dpre, op.dout, op.weight, op.pre];
    LinearBackwardWeight<B>: |op| Some(Outline::LinearBackwardWeight {
            shape: op.shape,
            bias: op.dbias.is_some(),
            write: op.write,
            order: WeightOrder { whole: op.shape, after_gelu: false },
        }),
        [&*op.dweight].into_iter().chain(op.dbias.as_deref()).chain([op.dout, op.x]).collect();
    AttentionBackward<B>: |op| Some(Outline::AttentionBackward { rows: op.rows, heads: op.heads }),
        vec![op.dqkv, op.dout, op.qkv, op.out, op.lse];
    EmbeddingBackward<B, I>: |op| Some(Outline::EmbeddingBackward {
            rows: op.rows,
            channels: op.channels,
            write: op.write,
        }),
        vec![op.dwte, op.dwpe, op.dout];
}

/// The losses of a micro-batch go to their place among those of the step.
impl<B> Outlined<B> for CopyPart<'_, B> {
    fn tensors(&self) -> Vec<&B> {
        vec![self.src]
    }
}
