//! Tests that need a GPU. Each test is ignored by default, so that the harness counts what was skipped,
//! and fails without a GPU: `cargo test --release --lib cuda -- --include-ignored`.

mod decoding;
mod embedded;
mod memory;
mod model;
mod operations;
mod plans;
mod products;

use super::classifier::ends_in_powers;
use super::gemm::plan::{Algorithm, GemmPlan};
use super::launch::gemm_hopper;
use super::linear::gemm_keys;
use super::memory::Buf;
use super::product::{Epilogue, GemmKey, Product, Tiling, Types};
use super::*;
use crate::experiment::{DeviceKeys, DeviceKind, Simd};
use crate::model::decode::{Decoder, NewToken, Room};
use crate::model::gpt2::{Gpt2, MicroBatch};
use crate::model::reference::{ROUNDINGS, bf16, logits, small_model, steep_weights, texts};
use crate::model::weights::Weights;
use crate::ops::cpu::Cpu;
use crate::ops::testing::{self, Limits};
use crate::ops::{
    Activate, AdamW, AdamWUpdate, Attention, AttentionBackward, Classifier, ClassifierLoss, DeviceError,
    Heads, Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate, LinearBackwardWeight,
    LinearShape, LogitTerms, MlpShape, Nonlinearity, Ops, ParamCount, ParamSlot, Role, Rows, ScratchShape,
    SumSquares, Vocab, Write,
};
use crate::rng::Key;

/// A device, or the reason why there is none.
fn open(options: &CudaOptions) -> Cuda {
    Cuda::open(&CudaOptions { user_plans: false, ..options.clone() })
        .unwrap_or_else(|why| panic!("this test needs a CUDA GPU: {why}"))
}

fn cuda() -> Cuda {
    open(&CudaOptions::default())
}

fn cpu() -> Cpu {
    Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 0, simd: Simd::Auto }).expect("a CPU")
}

/// Normal numbers, rounded so that bf16 holds them.
fn numbers(purpose: &str, len: usize, scale: f64) -> Vec<f32> {
    let key = Key::new(3, purpose);
    (0..len).map(|i| half::bf16::from_f64(scale * key.normal(0, i as u64)).to_f32()).collect()
}

fn filled<O: Ops>(ops: &mut O, role: Role, values: &[f32]) -> O::Buf {
    let mut buf = ops.alloc(role, values.len()).expect("memory");
    ops.upload(&mut buf, values).expect("an upload");
    buf
}

fn values<O: Ops>(ops: &mut O, buf: &O::Buf, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    ops.download(buf, &mut values).expect("a download");
    values
}

fn bytes(ops: &mut Cuda, buf: &Buf) -> Vec<u8> {
    let mut bytes = vec![0; buf.bytes() as usize];
    ops.read_bytes(buf, &mut bytes).expect("a download");
    bytes
}

/// `|a - b| / |b|`, infinite when anything is not a number.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    let distance = (difference / norm).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}
