//! Virtual workers: how the gradients of one step are folded, whatever the number of devices.

pub mod tree;

pub use tree::GradientTree;
