//! Tests of the program as a whole, one module a topic.

mod architecture;
mod data;
mod determinism;
mod diff;
mod divergence;
mod export;
mod fuzz;
mod hellaswag;
mod init;
mod launchers;
mod lock;
mod look;
mod mirror;
mod pytorch;
mod ranks;
mod report;
mod resume;
mod slsa;
mod support;
mod verify;
