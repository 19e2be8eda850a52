//! GPT-2: which tensors it has, how they start, and what it computes.
//!
//! The forward pass in [`gpt2`], the backward pass in `backward`, and the pass of single new tokens in
//! [`decode`] are written once over [`crate::ops::Ops`]; everything else here is arithmetic that needs no
//! device.

pub mod activations;
mod backward;
pub mod decode;
pub mod flops;
pub mod gpt2;
pub mod init;
mod logits;
#[cfg(test)]
mod measurements;
#[cfg(test)]
pub mod reference;
pub mod weights;

pub use decode::Decoder;
pub use gpt2::Gpt2;
pub use logits::LogitRows;
pub use weights::{Group, ParamSpec, Weights};
