//! Operations as values: one struct an operation, with named fields, declared here and nowhere else.
//!
//! A device takes the struct and does the work; the timer asks the same struct how fast such work is
//! ([`Family`]), what the bench table calls it, and how many FLOPs and bytes it takes at least. The list of
//! all operations is the macro `operations`: the methods of [`super::Ops`], of the device without memory
//! and of the timer are made from it, so that those files name no operation.
//!
//! `B` is a device's tensor and `I` its list of token ids. Shape letters are those of [`super`]. A tensor
//! may be longer than the operation needs. "Activation", "parameter" and "f32" in the comments are the
//! roles of [`super::Role`].

pub(in crate::ops) mod activate;
mod attention;
mod classifier;
pub(in crate::ops) mod decode;
mod elementwise;
mod embedding;
pub mod excerpt;
pub mod grid;
pub(in crate::ops) mod linear;
mod muon;
pub(in crate::ops) mod norm;
mod optimizer;
pub mod outline;
mod outlined;
mod qk_norm;
mod rotary;

use super::types::{Dtype, Result, Role};
pub use activate::{Activate, ActivateBackward};
pub use attention::{Attention, AttentionBackward, Qkv};
pub use classifier::{Classifier, ClassifierLoss, LogitTerms, softcapped};
pub use decode::{DecodeAttention, DecodeEmbedding, DecodeLinear, KvCache, RowPositions};
pub use elementwise::{Add, AddPart, CopyPart};
pub use embedding::{Embedding, EmbeddingBackward};
pub use linear::{
    Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate, LinearBackwardWeight,
    LinearShape,
};
pub use muon::{MatrixPart, MuonDirection, MuonPolynomial, MuonUpdate};
pub use norm::{Layernorm, LayernormBackward, NormAgain, ResidualLayernorm};
pub use optimizer::{AdamW, AdamWUpdate, Average, ChunkSquares, ParamSlot, SumSquares};
pub use qk_norm::{QkNorm, QkNormBackward, QkRotary};
pub use rotary::{Rotary, RotaryAt, rotary_table};

/// Hands the list of operations to the macro named in its argument: a row is the method, its struct with
/// the buffers that it holds, and what the method gives.
macro_rules! operations {
    ($write:ident) => {
        $write! {
            // The forward pass.
            embedding(Embedding<Buf, Ids>) -> ();
            layernorm(Layernorm<Buf>) -> ();
            residual_layernorm(ResidualLayernorm<Buf>) -> ();
            linear(Linear<Buf>) -> ();
            linear_activate(LinearActivate<Buf>) -> ();
            qk_norm(QkNorm<Buf, Ids>) -> ();
            rotary(Rotary<Buf, Ids>) -> ();
            activate(Activate<Buf>) -> ();
            attention(Attention<Buf>) -> ();
            classifier_loss(ClassifierLoss<Buf, Ids>) -> ();
            copy(CopyPart<Buf>) -> ();
            // Decoding.
            decode_embedding(DecodeEmbedding<Buf, Ids>) -> ();
            decode_linear(DecodeLinear<Buf>) -> ();
            decode_attention(DecodeAttention<Buf, Ids>) -> ();
            // The backward pass.
            classifier(Classifier<Buf, Ids>) -> ();
            layernorm_backward(LayernormBackward<Buf>) -> ();
            linear_backward_input(LinearBackwardInput<Buf>) -> ();
            linear_backward_input_activate(LinearBackwardInputActivate<Buf>) -> ();
            activate_backward(ActivateBackward<Buf>) -> ();
            linear_backward_weight(LinearBackwardWeight<Buf>) -> ();
            attention_backward(AttentionBackward<Buf>) -> ();
            qk_norm_backward(QkNormBackward<Buf, Ids>) -> ();
            embedding_backward(EmbeddingBackward<Buf, Ids>) -> ();
            // The optimizer, and sums over workers.
            sum_squares(SumSquares<Buf>) -> Vec<f64>;
            chunk_squares(ChunkSquares<Buf>) -> Vec<f64>;
            adamw(AdamWUpdate<Buf>) -> ();
            average(Average<Buf>) -> ();
            muon_direction(MuonDirection<Buf>) -> ();
            muon_polynomial(MuonPolynomial<Buf>) -> ();
            muon_update(MuonUpdate<Buf>) -> ();
            add(Add<Buf>) -> ();
            add_part(AddPart<Buf>) -> ();
        }
    };
}
pub(in crate::ops) use operations;

/// Does an operation and gives `R`: how a device spreads its operations over files, each beside its
/// arithmetic. [`super::Ops`] is then one line, and an operation that is left out does not compile.
pub trait Perform<Op, R = ()> {
    fn perform(&mut self, op: Op) -> Result<R>;
}

/// Writes the methods of [`super::Ops`] for a device that has a [`Perform`] for each operation.
macro_rules! perform {
    ($($name:ident($Op:ident<$($of:ident),+>) -> $gives:ty;)*) => {
        $(
            fn $name(
                &mut self,
                op: $crate::ops::op::$Op<'_, $(Self::$of),+>,
            ) -> $crate::ops::types::Result<$gives> {
                $crate::ops::op::Perform::perform(self, op)
            }
        )*
    };
}
pub(in crate::ops) use perform;

/// What decides how fast an operation is: [`crate::plan`] has a rate for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Linear,
    LinearGelu,
    InputGradient,
    InputGradientGelu,
    WeightGradient,
    Attention,
    AttentionBackward,
    /// Bound by its passes over the logits.
    Classifier,
    Layernorm,
    ResidualLayernorm,
    LayernormBackward,
    Gelu,
    Rotary,
    Embedding,
    EmbeddingBackward,
    Optimizer,
    GradientNorm,
    /// Sums over workers: two reads and a write.
    Sum,
    Digest,
    /// Copies between host and device, and waiting for them.
    Host,
}

/// The least that an operation must do: floating-point operations, and bytes when each input is read once
/// and each output written once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
}

impl Work {
    /// Work that counts no FLOPs.
    pub fn bytes(bytes: f64) -> Work {
        Work { flops: 0.0, bytes }
    }
}

/// Bytes of an element of a weight and of an activation on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementBytes {
    pub param: usize,
    pub activation: usize,
}

impl ElementBytes {
    /// Those of a device that stores a role as `dtype` says.
    pub fn of(dtype: impl Fn(Role) -> Dtype) -> ElementBytes {
        ElementBytes { param: dtype(Role::Param).size(), activation: dtype(Role::Activation).size() }
    }

    /// Bytes of these numbers of elements of activations and of weights.
    fn moved(self, activations: usize, weights: usize) -> f64 {
        activations as f64 * self.activation as f64 + weights as f64 * self.param as f64
    }

    /// Work that reads and writes activations and computes next to nothing.
    fn pass(self, activations: usize) -> Work {
        Work::bytes(self.moved(activations, 0))
    }

    /// A product of activations (n, k) and weights (k, m).
    fn product(self, n: usize, k: usize, m: usize) -> Work {
        Work { flops: 2.0 * volume(&[n, k, m]), bytes: self.moved(n * (k + m), k * m) }
    }
}

/// The product of sizes. Those of three and more may be beyond 64 bits: a micro-batch of 2^20 sequences of
/// 2^20 tokens has 2^40 rows.
fn volume(sizes: &[usize]) -> f64 {
    sizes.iter().map(|size| *size as f64).product()
}

/// How a label says that an operation computes again what the forward pass did not keep.
fn again(is_again: bool) -> &'static str {
    if is_again { ", again" } else { "" }
}

/// What an operation reports of itself, on any device.
pub trait Operation {
    fn family(&self) -> Family;
    /// Its row in the table of `runner bench`, with the shape where that decides the speed.
    fn label(&self) -> String;
    fn work(&self, element: ElementBytes) -> Work;
}
