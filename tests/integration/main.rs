//! Tests of the program as a whole, one module a topic.

mod architecture;
mod data;
mod data_prepare;
mod data_shards;
mod determinism;
mod diff;
mod divergence;
mod export;
mod foreign_models;
mod fuzz;
mod hellaswag;
mod init;
mod launchers;
mod lock;
mod look;
mod mirror;
mod process;
mod python;
mod pytorch;
mod ranks;
mod report;
mod resume;
mod slsa;
mod support;
mod twice;
mod verify;
