//! Tests of the program as a whole, one module a topic.

mod architecture;
mod determinism;
mod divergence;
mod export;
mod hellaswag;
mod pytorch;
mod resume;
mod support;
