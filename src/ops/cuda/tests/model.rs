//! A small model: close to the CPU, and the same bits when repeated and under recomputation.

use super::*;

const ROWS: Rows = Rows { batch: 3, seq: 150 };

/// Losses and all gradients of two micro-batches.
fn train_small<O: Ops>(ops: &mut O, recompute: u8) -> (Vec<f32>, Vec<(String, Vec<f32>)>) {
    let config = small_model();
    let mut model = Gpt2::new(ops, &config, ROWS, recompute, true, 11).expect("a model");
    let mut grads: Weights<O::Buf> =
        model.specs.try_map(|spec| ops.alloc(Role::F32, spec.len)).expect("memory");
    let n = ROWS.count();
    let mut losses = ops.alloc(Role::F32, 2 * n).expect("memory");
    for (micro, write) in [Write::Set, Write::Add].into_iter().enumerate() {
        let token = |i: usize| ((i * i + 31 * i + 1000 * micro) % config.vocab) as u16;
        let inputs: Vec<u16> = (0..n).map(token).collect();
        let targets: Vec<u16> = (1..=n).map(token).collect();
        let batch = MicroBatch { inputs: &inputs, targets: &targets, rows: ROWS, losses_at: micro * n };
        model
            .forward_backward(ops, &batch, &mut losses, &mut grads, 1.0 / 32.0, write)
            .expect("a micro-step");
    }
    let names: Vec<(String, usize)> = model.specs.iter().map(|spec| (spec.name.clone(), spec.len)).collect();
    let gradients =
        names.into_iter().zip(grads.iter()).map(|((name, len), buf)| (name, values(ops, buf, len))).collect();
    (values(ops, &losses, 2 * n), gradients)
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn a_model_has_the_losses_and_gradients_of_the_cpu() {
    let expected = train_small(&mut cpu(), 0);
    for (compute, gelu_fusion, losses, gradients) in
        [(Compute::Fp32, 0, 1e-5, 1e-4), (Compute::Bf16, 0, 2e-3, 3e-2), (Compute::Bf16, 2, 2e-3, 3e-2)]
    {
        let mut cuda = open(&CudaOptions { compute, gelu_fusion, ..CudaOptions::default() });
        let got = train_small(&mut cuda, 0);
        let mut worst = vec![(distance(&got.0, &expected.0) / losses, "losses".to_owned())];
        worst.extend(
            got.1
                .iter()
                .zip(&expected.1)
                .map(|((name, got), (_, expected))| (distance(got, expected) / gradients, name.clone())),
        );
        worst.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!("{compute:?} fusion {gelu_fusion}, parts of the tolerance: {:?}", &worst[..4]);
        assert!(worst[0].0 < 1.0, "{compute:?} fusion {gelu_fusion}: {worst:?}");
    }
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn the_same_work_gives_the_same_bits_again_and_under_recomputation() {
    let mut first = cuda();
    let expected = train_small(&mut first, 0);
    for recompute in [0, 1, 2] {
        let mut again = cuda();
        // Another history of allocations.
        let _shift = again.alloc(Role::F32, 12_345).expect("memory");
        let got = train_small(&mut again, recompute);
        assert_eq!(got.0, expected.0, "losses, recompute {recompute}");
        for ((name, got), (_, expected)) in got.1.iter().zip(&expected.1) {
            assert_eq!(got, expected, "gradient of {name}, recompute {recompute}");
        }
    }
}
