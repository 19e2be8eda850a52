//! Tests of the program as a whole, one module a topic.

mod architecture;
mod determinism;
mod diff;
mod divergence;
mod export;
mod hellaswag;
mod lock;
mod pytorch;
mod report;
mod resume;
mod slsa;
mod support;
mod verify;
