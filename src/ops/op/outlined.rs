//! What each operation touches: its outline and its tensors, in the outline's order.

use super::outline::{Outline, Outlined, SequenceAngles, WeightOrder};
use super::{
    Activate, ActivateBackward, Attention, AttentionBackward, Classifier, CopyPart, Embedding,
    EmbeddingBackward, Layernorm, LayernormBackward, Linear, LinearActivate, LinearBackwardInput,
    LinearBackwardInputActivate, LinearBackwardWeight, QkNorm, QkNormBackward, QkRotary, ResidualLayernorm,
    Rotary, RotaryAt,
};

/// An outline with the positions of whole sequences or without any; none where they are listed.
fn turned<B, I>(
    rotary: Option<&QkRotary<'_, B, I>>,
    outline: impl Fn(Option<SequenceAngles>) -> Outline,
) -> Option<Outline> {
    match rotary {
        Some(rotary) => SequenceAngles::of(rotary).map(|angles| outline(Some(angles))),
        None => Some(outline(None)),
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
    Embedding<B, I>: |op| Some(Outline::Embedding {
            rows: op.rows,
            channels: op.channels,
            positions: op.wpe.is_some(),
        }),
        [&*op.out, op.wte].into_iter().chain(op.wpe).collect();
    Layernorm<B>: |op| Some(Outline::Layernorm {
            rows: op.rows,
            channels: op.channels,
            rms: op.is_rms(),
            bias: op.bias.is_some(),
        }),
        [&*op.out]
            .into_iter()
            .chain(op.mean.as_deref())
            .chain([&*op.rstd, op.x, op.weight])
            .chain(op.bias)
            .collect();
    ResidualLayernorm<B>: |op| Some(Outline::ResidualLayernorm {
            rows: op.rows,
            channels: op.channels,
            rms: op.is_rms(),
            bias: op.bias.is_some(),
        }),
        [&*op.residual, op.out]
            .into_iter()
            .chain(op.mean.as_deref())
            .chain([&*op.rstd, op.x, op.branch, op.weight])
            .chain(op.bias)
            .collect();
    Linear<B>: |op| Some(Outline::Linear { shape: op.shape, bias: op.bias.is_some() }),
        [&*op.out, op.x, op.weight].into_iter().chain(op.bias).collect();
    LinearActivate<B>: |op| Some(Outline::LinearActivate {
            shape: op.shape,
            bias: op.bias.is_some(),
            function: op.function,
        }),
        [&*op.out, op.pre, op.x, op.weight].into_iter().chain(op.bias).collect();
    // A decoding pass, whose positions are listed, is not audited.
    QkNorm<B, I>: |op| turned(op.rotary.as_ref(), |rotary| Outline::QkNorm {
            rows: op.rows,
            heads: op.heads,
            values: op.values,
            rotary,
        }),
        vec![op.out, op.rstd, op.x, op.q_weight, op.k_weight];
    QkNormBackward<B, I>: |op| turned(op.rotary.as_ref(), |rotary| Outline::QkNormBackward {
            rows: op.rows,
            heads: op.heads,
            write: op.write,
            rotary,
        }),
        vec![op.dqkv, op.dq_weight, op.dk_weight, op.x, op.q_weight, op.k_weight, op.rstd];
    // A decoding pass is not audited.
    Rotary<B, I>: |op| match op.at {
            RotaryAt::Sequences(rows) => Some(Outline::Rotary {
                rows,
                heads: op.heads,
                theta: op.theta,
                inverse: op.inverse,
                first: 0,
            }),
            RotaryAt::Listed { .. } => None,
        },
        match op.at {
            RotaryAt::Sequences(_) => vec![op.qkv],
            RotaryAt::Listed { .. } => Vec::new(),
        };
    Activate<B>: |op| Some(Outline::Activate {
            rows: op.rows,
            channels: op.channels,
            function: op.function,
        }),
        vec![op.out, op.pre];
    Attention<B>: |op| Some(Outline::Attention {
            rows: op.rows,
            heads: op.heads,
            apart: op.values.is_some(),
        }),
        [&*op.out, op.lse, op.qkv].into_iter().chain(op.values).collect();
    // In a pass the losses begin at 0, so that they are a matrix of their own.
    Classifier<B, I>: |op| (op.losses_at == 0).then_some(Outline::Classifier {
            rows: op.rows,
            channels: op.channels,
            vocab: op.vocab,
            terms: op.terms,
            scale: op.scale,
            write: op.write,
        }),
        vec![op.losses, op.denominators, op.dx, op.dwte, op.x, op.wte];
    LayernormBackward<B>: |op| Some(Outline::LayernormBackward {
            rows: op.rows,
            channels: op.channels,
            rms: op.is_rms(),
            bias: op.dbias.is_some(),
            dx_write: op.dx_write,
            write: op.write,
            again: op.again.is_some(),
        }),
        [&*op.dx, op.dweight]
            .into_iter()
            .chain(op.dbias.as_deref())
            .chain([op.dout, op.x, op.weight])
            .chain(op.mean)
            .chain([op.rstd])
            .chain(op.again.iter().flat_map(|again| std::iter::once(&*again.out).chain(again.bias)))
            .collect();
    LinearBackwardInput<B>: |op| Some(Outline::LinearBackwardInput { shape: op.shape }),
        vec![op.dx, op.dout, op.weight];
    // What is in its room is no matrix of the pass.
    LinearBackwardInputActivate<B>: |op| Some(Outline::LinearBackwardInputActivate {
            shape: op.shape,
            function: op.function,
            again: op.again.is_some(),
        }),
        [&*op.dpre, op.dout, op.weight, op.pre].into_iter().chain(op.again.as_deref()).collect();
    ActivateBackward<B>: |op| Some(Outline::ActivateBackward {
            rows: op.rows,
            channels: op.channels,
            function: op.function,
            in_place: op.dout.is_none(),
        }),
        [&*op.dpre].into_iter().chain(op.dout).chain([op.pre]).collect();
    LinearBackwardWeight<B>: |op| Some(Outline::LinearBackwardWeight {
            shape: op.shape,
            bias: op.dbias.is_some(),
            write: op.write,
            order: WeightOrder { whole: op.shape, after_gelu: false },
        }),
        [&*op.dweight].into_iter().chain(op.dbias.as_deref()).chain([op.dout, op.x]).collect();
    AttentionBackward<B>: |op| Some(Outline::AttentionBackward {
            rows: op.rows,
            heads: op.heads,
            apart: op.values.is_some(),
        }),
        [&*op.dqkv, op.dout, op.qkv, op.out, op.lse].into_iter().chain(op.values).collect();
    EmbeddingBackward<B, I>: |op| Some(Outline::EmbeddingBackward {
            rows: op.rows,
            channels: op.channels,
            vocab: op.vocab,
            dwte_write: op.dwte_write,
            dwpe_write: op.dwpe.is_some().then_some(op.write),
        }),
        [&*op.dwte].into_iter().chain(op.dwpe.as_deref()).chain([op.dout]).collect();
}

/// The losses of a micro-batch go to their place among those of the step.
impl<B> Outlined<B> for CopyPart<'_, B> {
    fn tensors(&self) -> Vec<&B> {
        vec![self.src]
    }
}
