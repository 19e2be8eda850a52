//! Measurements on a GPU, which print and check nothing:
//! `cargo test --release --lib measurements -- --ignored --nocapture`.

use std::time::Instant;

use super::decode::{Decoder, NewToken, Room};
use super::gpt2::scratch_shape;
use super::init::initial_values;
use super::reference::gpt2;
use super::weights::Weights;
use crate::ops::cuda::{Cuda, CudaOptions, gemm};
use crate::ops::{DeviceError, Ops, Role, Rows};

fn open(options: CudaOptions) -> Cuda {
    Cuda::open(&CudaOptions { user_plans: false, ..options })
        .unwrap_or_else(|why| panic!("this measurement needs a CUDA GPU: {why}"))
}

/// The plans that tuning chooses for the two models of the locks.
#[test]
#[ignore = "a measurement, not a check: needs a CUDA GPU"]
fn tuning() {
    for (name, model, batch) in [("d12 B64", gpt2(12, 12, 768), 64), ("d48 B16", gpt2(48, 25, 1600), 16)] {
        for gelu_fusion in [0, 2] {
            let mut cuda = open(CudaOptions { gelu_fusion, ..CudaOptions::default() });
            let started = Instant::now();
            cuda.alloc_scratch(&scratch_shape(&model, Rows { batch, seq: 1024 }, true))
                .expect("scratch and plans");
            println!(
                "{name}, fusion {gelu_fusion}: {} products in {:.1} s",
                cuda.tuned().len(),
                started.elapsed().as_secs_f64()
            );
            for gemm::Tuned { plan, us, first_us, candidates } in cuda.tuned() {
                let tflops = plan.key.flops() / f64::from(*us) * 1e-6;
                println!(
                    "  {:60} {us:8.1} us, {tflops:4.0} TFLOP/s, first of {candidates}: {first_us:8.1} us; \
                     {:?}",
                    plan.key.to_string(),
                    plan.algorithm
                );
            }
        }
    }
}

/// How fast GPT-2 124M writes.
#[test]
#[ignore = "a measurement, not a check: needs a CUDA GPU"]
fn decoding_speed() {
    let config = gpt2(12, 12, 768);
    for (cuda_graph, streams) in [(true, 1), (false, 1), (true, 4), (true, 8), (true, 32)] {
        let mut cuda = open(CudaOptions { cuda_graph, ..CudaOptions::default() });
        let params = Weights::of(&config)
            .try_map(|spec| {
                let mut buf = cuda.alloc(Role::Param, spec.len)?;
                cuda.upload(&mut buf, &initial_values(spec, 3))?;
                Ok::<_, DeviceError>(buf)
            })
            .expect("memory");
        let mut decoder =
            Decoder::new(&mut cuda, &config, Room { streams, positions: 1024 }).expect("a decoder");
        let prompt = vec![7u16; 900];
        for turn in 0..2 {
            let started = Instant::now();
            decoder.read(&mut cuda, &params, 0, 0, &prompt).expect("a prompt");
            cuda.synchronize().expect("it ends");
            if turn == 1 {
                println!(
                    "graph {cuda_graph}: a prompt of 900 tokens in {:.1} ms",
                    started.elapsed().as_secs_f64() * 1e3
                );
            }
        }
        for from in [0, 450, 900] {
            let mut pass = |position: usize| {
                let new: Vec<NewToken> =
                    (0..streams).map(|stream| NewToken { token: 9, stream, position }).collect();
                decoder.logits(&mut cuda, &params, &new).expect("logits").len()
            };
            (0..10).for_each(|i| _ = pass(from + i));
            let started = Instant::now();
            (10..110).for_each(|i| _ = pass(from + i));
            let ms = started.elapsed().as_secs_f64() * 10.0;
            let speed = streams as f64 / ms * 1e3;
            println!(
                "graph {cuda_graph}, {streams} streams from {from}: {ms:.3} ms a pass, {speed:.0} tok/s \
                 without choosing"
            );
        }
    }
}
