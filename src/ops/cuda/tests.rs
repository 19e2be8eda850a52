//! What only a GPU can show. Without one these tests print `skipped: no CUDA device`; with
//! `REQUIRE_GPU=1` in the environment that is a failure.

use sha2::{Digest, Sha256};

// Named `tests.rs`, for tests may look up the layers.
#[path = "decoding/tests.rs"]
mod decoding;
#[path = "gemm/tests.rs"]
mod products;

use super::gemm::plan::Algorithm;
use super::linear::gemm_keys;
use super::*;
use crate::experiment::{Device, DeviceKind, Model, Simd};
use crate::model::gpt2::{Gpt2, MicroBatch};
use crate::model::weights::Weights;
use crate::ops::cpu::Cpu;
use crate::ops::testing::{self, Limits};
use crate::ops::{
    AdamW, AdamWUpdate, Attention, AttentionBackward, Classifier, ClassifierLoss, Gelu, Linear,
    LinearBackwardInput, LinearBackwardInputGelu, LinearBackwardWeight, LinearGelu, LinearShape, Ops,
    ParamCount, ParamSlot, Role, Rows, ScratchShape, SumSquares, Vocab, Write,
};
use crate::rng::Key;

fn open(options: &Options) -> Option<Cuda> {
    match Cuda::open(&Options { user_plans: false, ..options.clone() }) {
        Ok(cuda) => Some(cuda),
        Err(error) if std::env::var_os("REQUIRE_GPU").is_some() => panic!("a GPU is required: {error}"),
        Err(_) => {
            eprintln!("skipped: no CUDA device");
            None
        }
    }
}

fn cuda() -> Option<Cuda> {
    open(&Options::default())
}

fn cpu() -> Cpu {
    Cpu::new(&Device { kind: DeviceKind::Cpu, threads: 0, simd: Simd::Auto }).expect("a CPU")
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

fn bytes(ops: &mut Cuda, buf: &memory::Buf) -> Vec<u8> {
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

/// Runs the cases that every device runs, and names all that are off by `error`, the worst first.
fn agrees(cuda: &mut Cuda, head_sizes: &'static [usize], error: fn(&testing::Case) -> f64, tolerance: f64) {
    let limits = Limits { row_multiple: 8, head_sizes: Some(head_sizes) };
    let mut worst: Vec<(f64, String)> =
        testing::cases_within(cuda, limits).iter().map(|case| (error(case), case.name.clone())).collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    worst.iter().take(12).for_each(|(error, name)| println!("{error:.1e} {name}"));
    let off: Vec<_> = worst.iter().filter(|(error, _)| *error > tolerance).collect();
    assert!(off.is_empty(), "off by more than {tolerance:.0e}: {off:?}");
}

/// By the norm: a logit of 10 is rounded by up to 0.03, which moves a small probability by 3 % and so single
/// gradients by more. The next test holds the same kernels to each element.
#[test]
fn every_operation_agrees_with_f64_in_bf16() {
    let Some(mut cuda) = cuda() else { return };
    agrees(&mut cuda, &launch::attention::HEAD_SIZES, testing::Case::distance, 0.01);
    println!("heads of other sizes");
    agrees(&mut cuda, &[16, 32, 72, 120], testing::Case::distance, 0.01);
}

#[test]
fn every_operation_agrees_with_f64_in_fp32() {
    let Some(mut cuda) = open(&Options { compute: Compute::Fp32, ..Options::default() }) else { return };
    agrees(&mut cuda, &[16, 24, 64, 80, 128], testing::Case::worst, 2e-5);
}

#[test]
fn numbers_and_bytes_survive_the_way_there_and_back() {
    let Some(mut cuda) = cuda() else { return };
    // Less than a slot, a slot and a bit, and several rounds of slots.
    for len in [1, 5_000, (4 << 20) + 3, 13 << 20] {
        let sent: Vec<f32> = (0..len).map(|i| (i % 251) as f32).collect();
        for role in [Role::F32, Role::Activation] {
            let buf = filled(&mut cuda, role, &sent);
            assert_eq!(values(&mut cuda, &buf, len), sent, "{len} elements as {role:?}");
        }
        let mut buf = cuda.alloc(Role::F32, len).expect("memory");
        assert!(bytes(&mut cuda, &buf).iter().all(|byte| *byte == 0), "memory starts at zero");
        let noise: Vec<u8> = (0..4 * len).map(|i| (i * 31 % 253) as u8).collect();
        cuda.write_bytes(&mut buf, &noise).expect("an upload");
        assert_eq!(bytes(&mut cuda, &buf), noise);
    }
    // Rounding to nearest, ties to even.
    let halfway = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, -0.0];
    let buf = filled(&mut cuda, Role::Activation, &halfway);
    assert_eq!(values(&mut cuda, &buf, 4), [1.0, 1.0 + 4.0 / 256.0, f32::INFINITY, -0.0]);
}

/// RFC 9162's tree over leaves of 4096 bytes, as the digest's specification writes it.
fn merkle_root(bytes: &[u8]) -> [u8; 32] {
    fn hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
        let once = Sha256::digest(tag);
        let mut hash = Sha256::new().chain_update(once).chain_update(once);
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }
    fn tree(leaves: &[[u8; 32]]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                hash("runner/node/v1", &[&tree(left), &tree(right)])
            }
        }
    }
    tree(&bytes.chunks(4096).map(|leaf| hash("runner/leaf/v1", &[leaf])).collect::<Vec<_>>())
}

#[test]
fn merkle_roots_on_the_device_are_those_of_the_host() {
    let Some(mut cuda) = cuda() else { return };
    let lengths = [0, 1, 55, 56, 64, 4095, 4096, 4097, 3 * 4096, 512 * 4096, 513 * 4096 + 17, 5_000_001];
    let tensors: Vec<(Vec<u8>, memory::Buf)> = lengths
        .iter()
        .map(|&len| {
            let content: Vec<u8> = (0..len).map(|i| ((i * 2_654_435_761_usize) >> 7) as u8).collect();
            let mut buf = cuda.alloc(Role::F32, len / 4 + 1).expect("memory");
            cuda.write_bytes(&mut buf, &content).expect("an upload");
            (content, buf)
        })
        .collect();
    let (long, buf) = tensors.last().expect("there are tensors");
    let ranges = [16..48, 8 * 4096..12 * 4096, 1024 * 4096..long.len()];
    let parts = cuda
        .merkle_roots(&ranges.clone().map(|range| (buf, range)))
        .expect("roots")
        .expect("the device hashes");
    for (range, root) in ranges.into_iter().zip(parts) {
        assert_eq!(hex::encode(root), hex::encode(merkle_root(&long[range.clone()])), "{range:?}");
    }
    let asked: Vec<(&memory::Buf, std::ops::Range<usize>)> =
        tensors.iter().map(|(content, buf)| (buf, 0..content.len())).collect();
    for round in 0..2 {
        let roots = cuda.merkle_roots(&asked).expect("roots").expect("the device hashes");
        for ((content, _), root) in tensors.iter().zip(roots) {
            assert_eq!(
                hex::encode(root),
                hex::encode(merkle_root(content)),
                "{} bytes, round {round}",
                content.len()
            );
        }
    }
}

#[test]
fn the_products_of_a_wide_layer_agree_with_the_cpu_in_every_mode() {
    let (n, c_in, c_out) = (384, 768, 3072);
    let x = numbers("x", n * c_in, 1.0);
    let w = numbers("w", c_out * c_in, 0.02);
    let b = numbers("b", c_out, 0.1);
    let d = numbers("d", n * c_out, 1.0);
    let mut results: Vec<(String, f64, [Vec<f32>; 6])> = Vec::new();
    fn run<O: Ops>(ops: &mut O, shape: (usize, usize, usize), data: [&[f32]; 4]) -> [Vec<f32>; 6] {
        let (n, c_in, c_out) = shape;
        let [x, w, b, d] = data;
        let (x, w, b, d) = (
            filled(ops, Role::Activation, x),
            filled(ops, Role::Param, w),
            filled(ops, Role::Param, b),
            filled(ops, Role::Activation, d),
        );
        let mut out = ops.alloc(Role::Activation, n * c_out).expect("memory");
        let mut pre = ops.alloc(Role::Activation, n * c_out).expect("memory");
        let shape = LinearShape { rows: n, c_in, c_out };
        let op = LinearGelu { out: &mut out, pre: &mut pre, x: &x, weight: &w, bias: &b, shape };
        ops.linear_gelu(op).expect("linear_gelu");
        // The gradient of a layer that came after a GELU at `x`.
        let mut dx = ops.alloc(Role::Activation, n * c_in).expect("memory");
        ops.linear_backward_input(LinearBackwardInput { dx: &mut dx, dout: &d, weight: &w, shape })
            .expect("linear_backward_input");
        let mut dpre = ops.alloc(Role::Activation, n * c_in).expect("memory");
        let op = LinearBackwardInputGelu { dpre: &mut dpre, dout: &d, weight: &w, pre: &x, shape };
        ops.linear_backward_input_gelu(op).expect("linear_backward_input_gelu");
        let mut dw = ops.alloc(Role::F32, c_out * c_in).expect("memory");
        let mut db = ops.alloc(Role::F32, c_out).expect("memory");
        for write in [Write::Set, Write::Add] {
            let (dweight, dbias) = (&mut dw, Some(&mut db));
            ops.linear_backward_weight(LinearBackwardWeight {
                dweight,
                dbias,
                dout: &d,
                x: &x,
                shape,
                write,
            })
            .expect("linear_backward_weight");
        }
        [
            values(ops, &out, n * c_out),
            values(ops, &pre, n * c_out),
            values(ops, &dx, n * c_in),
            values(ops, &dpre, n * c_in),
            values(ops, &dw, c_out * c_in),
            values(ops, &db, c_out),
        ]
    }
    let data = [x.as_slice(), &w, &b, &d];
    for (compute, gelu_fusion, tolerance) in [
        (Compute::Bf16, 0, 4e-3),
        (Compute::Bf16, 1, 4e-3),
        (Compute::Bf16, 2, 4e-3),
        (Compute::Fp32, 0, 2e-6),
        (Compute::Tf32, 0, 1e-3),
    ] {
        let Some(mut cuda) = open(&Options { compute, gelu_fusion, ..Options::default() }) else { return };
        results.push((
            format!("{compute:?} fusion {gelu_fusion}"),
            tolerance,
            run(&mut cuda, (n, c_in, c_out), data),
        ));
    }
    let expected = run(&mut cpu(), (n, c_in, c_out), data);
    for (mode, tolerance, got) in &results {
        for (name, (got, expected)) in
            ["out", "pre", "dx", "dpre", "dweight", "dbias"].iter().zip(got.iter().zip(&expected))
        {
            let distance = distance(got, expected);
            println!("{mode}: {name} {distance:.1e}");
            // Weight gradients are summed and stored in fp32 whatever the inputs are.
            let tolerance =
                if name.starts_with("dw") || *name == "dbias" { tolerance.min(1e-3) } else { *tolerance };
            assert!(distance < tolerance, "{mode}: {name} is off by {distance:.2e}, at most {tolerance:.0e}");
        }
    }
}

#[test]
fn the_bias_gradient_after_gelu_has_the_bits_of_a_pass_of_its_own() {
    let Some(mut cuda) = cuda() else { return };
    let (n, c, wide) = (300, 64, 256);
    let dout = filled(&mut cuda, Role::Activation, &numbers("dout", n * c, 1.0));
    let weight = filled(&mut cuda, Role::Param, &numbers("weight", c * wide, 0.1));
    let pre = filled(&mut cuda, Role::Activation, &numbers("pre", n * wide, 1.0));
    let x = filled(&mut cuda, Role::Activation, &numbers("x", n * c, 1.0));
    let mut dpre = cuda.alloc(Role::Activation, n * wide).expect("memory");
    let mut dw = cuda.alloc(Role::F32, wide * c).expect("memory");
    let mut gradient = |cuda: &mut Cuda, dpre: &memory::Buf| {
        let mut db = cuda.alloc(Role::F32, wide).expect("memory");
        let shape = LinearShape { rows: n, c_in: c, c_out: wide };
        let (dweight, dbias, write) = (&mut dw, Some(&mut db), Write::Set);
        cuda.linear_backward_weight(LinearBackwardWeight { dweight, dbias, dout: dpre, x: &x, shape, write })
            .expect("gradient");
        bytes(cuda, &db)
    };
    let shape = LinearShape { rows: n, c_in: wide, c_out: c };
    let op = LinearBackwardInputGelu { dpre: &mut dpre, dout: &dout, weight: &weight, pre: &pre, shape };
    cuda.linear_backward_input_gelu(op).expect("gradient");
    assert!(cuda.gelu_sums.is_some(), "the sums wait for the weight gradient");
    let kept = gradient(&mut cuda, &dpre);
    let stored = bytes(&mut cuda, &dpre);
    cuda.write_bytes(&mut dpre, &stored).expect("an upload");
    assert!(cuda.gelu_sums.is_none(), "a tensor that was written is not known any more");
    assert_eq!(gradient(&mut cuda, &dpre), kept);
}

#[test]
fn the_classifier_crosses_chunks_without_a_seam() {
    let Some(mut cuda) = cuda() else { return };
    let (n, c) = (8192 + 300, 64);
    let vocab = Vocab { used: 50_257, padded: 50_304 };
    let x = numbers("x", n * c, 1.0);
    let wte = numbers("wte", vocab.padded * c, 0.3);
    let targets: Vec<u16> = (0..n).map(|i| (i * 7919 % vocab.used) as u16).collect();
    fn run<O: Ops>(
        ops: &mut O,
        x: &[f32],
        wte: &[f32],
        targets: &[u16],
        c: usize,
        vocab: Vocab,
    ) -> [Vec<f32>; 4] {
        let n = targets.len();
        let (x, wte) = (filled(ops, Role::Activation, x), filled(ops, Role::Param, wte));
        let mut ids = ops.alloc_ids(n).expect("memory");
        ops.upload_ids(&mut ids, targets).expect("an upload");
        let mut losses = ops.alloc(Role::F32, n + 5).expect("memory");
        let mut alone = ops.alloc(Role::F32, n).expect("memory");
        let mut dx = ops.alloc(Role::Activation, n * c).expect("memory");
        let mut dwte = filled(ops, Role::F32, &vec![7.0; vocab.padded * c]);
        ops.classifier(Classifier {
            losses: &mut losses,
            losses_at: 5,
            dx: &mut dx,
            dwte: &mut dwte,
            x: &x,
            wte: &wte,
            targets: &ids,
            rows: n,
            channels: c,
            vocab,
            scale: 1.0 / 64.0,
            write: Write::Set,
        })
        .expect("classifier");
        ops.classifier_loss(ClassifierLoss {
            losses: &mut alone,
            losses_at: 0,
            x: &x,
            wte: &wte,
            targets: &ids,
            rows: n,
            channels: c,
            vocab,
        })
        .expect("classifier_loss");
        [
            values(ops, &losses, n + 5)[5..].to_vec(),
            values(ops, &alone, n),
            values(ops, &dx, n * c),
            values(ops, &dwte, vocab.padded * c),
        ]
    }
    let got = run(&mut cuda, &x, &wte, &targets, c, vocab);
    let expected = run(&mut cpu(), &x, &wte, &targets, c, vocab);
    assert_eq!(got[0], got[1], "the losses are the same bits with and without gradients");
    for ((name, tolerance), (got, expected)) in
        [("losses", 2e-3), ("losses", 2e-3), ("dx", 1e-2), ("dwte", 1e-2)]
            .iter()
            .zip(got.iter().zip(&expected))
    {
        let distance = distance(got, expected);
        println!("classifier {name} {distance:.1e}");
        assert!(distance < *tolerance, "{name} is off by {distance:.2e}");
    }
    let past = vocab.used * c..;
    assert!(got[3][past].iter().all(|gradient| *gradient == 0.0), "rows past the vocabulary get zeros");
}

#[test]
fn attention_over_many_tiles_agrees_with_the_cpu_and_repeats_its_bits() {
    fn run<O: Ops>(ops: &mut O, qkv: &[f32], dout: &[f32], rows: Rows, heads: Heads) -> [Vec<f32>; 3] {
        let (qkv, dout) = (filled(ops, Role::Activation, qkv), filled(ops, Role::Activation, dout));
        let len = rows.count() * heads.heads * heads.head_size;
        let mut out = filled(ops, Role::Activation, &vec![f32::NAN; len]);
        let mut lse = filled(ops, Role::F32, &vec![f32::NAN; rows.count() * heads.heads]);
        let mut dqkv = filled(ops, Role::Activation, &vec![f32::NAN; 3 * len]);
        ops.attention(Attention { out: &mut out, lse: &mut lse, qkv: &qkv, rows, heads }).expect("attention");
        ops.attention_backward(AttentionBackward {
            dqkv: &mut dqkv,
            dout: &dout,
            qkv: &qkv,
            out: &out,
            lse: &lse,
            rows,
            heads,
        })
        .expect("attention_backward");
        [values(ops, &out, len), values(ops, &lse, rows.count() * heads.heads), values(ops, &dqkv, 3 * len)]
    }
    let Some(mut cuda) = cuda() else { return };
    for (batch, seq, count, head_size) in
        [(2, 1024, 3, 64), (1, 777, 2, 80), (1, 500, 2, 96), (2, 650, 2, 128), (1, 300, 2, 40)]
    {
        let (rows, heads) = (Rows { batch, seq }, Heads { heads: count, head_size });
        let len = rows.count() * count * head_size;
        let (qkv, dout) = (numbers("qkv", 3 * len, 1.0), numbers("dout", len, 1.0));
        let got = run(&mut cuda, &qkv, &dout, rows, heads);
        let expected = run(&mut cpu(), &qkv, &dout, rows, heads);
        for ((name, tolerance), (got, expected)) in
            [("out", 5e-3), ("lse", 1e-4), ("dqkv", 8e-3)].iter().zip(got.iter().zip(&expected))
        {
            let distance = distance(got, expected);
            println!("{rows:?} {heads:?}: {name} {distance:.1e}");
            assert!(distance < *tolerance, "{rows:?} {heads:?}: {name} is off by {distance:.2e}");
        }
        for _ in 0..5 {
            assert_eq!(run(&mut cuda, &qkv, &dout, rows, heads), got, "{rows:?} {heads:?}");
        }
    }
}

fn small_model() -> Model {
    Model {
        init: None,
        descriptor: None,
        layers: 3,
        heads: 2,
        channels: 128,
        context: 160,
        vocab: 500,
        vocab_padded: 512,
    }
}

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
fn a_model_has_the_losses_and_gradients_of_the_cpu() {
    let expected = train_small(&mut cpu(), 0);
    for (compute, gelu_fusion, losses, gradients) in
        [(Compute::Fp32, 0, 1e-5, 1e-4), (Compute::Bf16, 0, 2e-3, 3e-2), (Compute::Bf16, 2, 2e-3, 3e-2)]
    {
        let Some(mut cuda) = open(&Options { compute, gelu_fusion, ..Options::default() }) else { return };
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
fn the_same_work_gives_the_same_bits_again_and_under_recomputation() {
    let Some(mut first) = cuda() else { return };
    let expected = train_small(&mut first, 0);
    for recompute in [0, 1, 2] {
        let mut again = cuda().expect("the device is still there");
        // Another history of allocations.
        let _shift = again.alloc(Role::F32, 12_345).expect("memory");
        let got = train_small(&mut again, recompute);
        assert_eq!(got.0, expected.0, "losses, recompute {recompute}");
        for ((name, got), (_, expected)) in got.1.iter().zip(&expected.1) {
            assert_eq!(got, expected, "gradient of {name}, recompute {recompute}");
        }
    }
}

#[test]
fn updates_agree_with_the_cpu_with_and_without_masters() {
    let Some(mut cuda) = cuda() else { return };
    let lengths = [16_384 * 2 + 5, 3, 100_000];
    fn run<O: Ops>(ops: &mut O, lengths: &[usize], masters: bool) -> Vec<Vec<f32>> {
        let start: Vec<Vec<f32>> = lengths.iter().map(|len| numbers(&format!("p{len}"), *len, 0.5)).collect();
        let mut buffers: Vec<[O::Buf; 5]> = Vec::new();
        for values in &start {
            let grad = numbers(&format!("g{}", values.len()), values.len(), 2.0);
            buffers.push([
                filled(ops, Role::Param, values),
                filled(ops, Role::F32, values),
                filled(ops, Role::F32, &grad),
                ops.alloc(Role::F32, values.len()).expect("memory"),
                ops.alloc(Role::F32, values.len()).expect("memory"),
            ]);
        }
        for step in 1..=3u64 {
            let correction = |beta: f64| (1.0 / (1.0 - beta.powi(step as i32))) as f32;
            let scalars = AdamW {
                learning_rate: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                correction1: correction(0.9),
                correction2: correction(0.95),
                grad_scale: 0.25,
                rounding_key: [5, 6],
                step,
            };
            let slots: Vec<ParamSlot<'_, O::Buf>> = buffers
                .iter_mut()
                .enumerate()
                .map(|(id, [param, master, grad, adam_m, adam_v])| ParamSlot {
                    id: id as u32,
                    at: 0,
                    param,
                    master: masters.then_some(master),
                    grad,
                    grad_at: 0,
                    adam_m,
                    adam_v,
                    weight_decay: 0.1,
                })
                .collect();
            ops.adamw(AdamWUpdate { slots, scalars }).expect("an update");
        }
        let tensors: Vec<&O::Buf> = buffers.iter().map(|b| &b[2]).collect();
        let squares = ops.sum_squares(SumSquares { tensors: &tensors }).expect("sums");
        let mut result = vec![squares.iter().map(|s| *s as f32).collect()];
        for (b, len) in buffers.iter().zip(lengths) {
            let [param, master, _, adam_m, adam_v] = b;
            result.push(values(ops, if masters { master } else { param }, *len));
            result.push(values(ops, adam_m, *len));
            result.push(values(ops, adam_v, *len));
        }
        result
    }
    for masters in [true, false] {
        let got = run(&mut cuda, &lengths, masters);
        let expected = run(&mut cpu(), &lengths, masters);
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let distance = distance(got, expected);
            // Without masters the parameter itself is rounded to bf16, up or down.
            let tolerance = if masters || i == 0 || i % 3 != 1 { 1e-6 } else { 8e-3 };
            println!("masters {masters}, result {i}: {distance:.1e}");
            // The CPU's parameter is fp32, so its decayed moments differ only by what p was rounded to.
            assert!(distance < tolerance, "masters {masters}, result {i} is off by {distance:.2e}");
        }
    }
}

fn shape(batch: usize, seq: usize, channels: usize, heads: usize) -> ScratchShape {
    let vocab = Vocab { used: 50_257, padded: 50_304 };
    ScratchShape {
        rows: Rows { batch, seq },
        channels,
        heads: Heads { heads, head_size: channels / heads },
        vocab,
        backward: true,
        params: ParamCount::default(),
    }
}

#[test]
fn plans_are_restored_and_a_wrong_one_is_refused() {
    let Some(mut cuda) = cuda() else { return };
    let shape = ScratchShape { vocab: Vocab { used: 500, padded: 512 }, ..shape(4, 256, 256, 4) };
    cuda.alloc_scratch(&shape).expect("scratch and plans");
    let plans = cuda.plans();
    let keys = gemm_keys(&shape, &Options::default());
    assert_eq!(plans.iter().map(|plan| plan.key).collect::<Vec<_>>(), keys, "one plan a product");
    let mut again = self::cuda().expect("the device is still there");
    again.restore_plans(&cuda.numerics().expect("numerics")).expect("the plans fit");
    again.alloc_scratch(&shape).expect("scratch");
    assert_eq!(again.plans(), plans);
    assert!(again.tuned().is_empty(), "nothing was left to tune");
    assert_eq!(again.numerics().expect("numerics"), cuda.numerics().expect("numerics"));
    for mut wrong in plans {
        let reason = match &mut wrong.algorithm {
            Algorithm::CublasLt(plan) => {
                plan.attributes.tile += 1;
                "64 bytes mean"
            }
            Algorithm::Hopper { hopper } => {
                hopper.width += 8;
                "no kernel has"
            }
        };
        let error = again.load_plans(&[wrong]).expect_err("the plan is wrong").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn too_little_memory_and_wrong_operands_are_refused_by_name() {
    let Some(mut cuda) = cuda() else { return };
    let all = cuda.gpu().total_bytes;
    assert!(cuda.free_bytes().expect("the driver knows") < all, "some of it is taken");
    let Err(error) = cuda.alloc(Role::F32, all as usize) else { panic!("four times the memory there is") };
    assert!(
        error.to_string().contains("`fp32 tensors`") && error.to_string().contains("out of memory"),
        "{error}"
    );
    let mut short = cuda.alloc(Role::Activation, 64).expect("memory");
    let x = cuda.alloc(Role::Activation, 128).expect("memory");
    let layer = LinearShape { rows: 2, c_in: 64, c_out: 64 };
    let op = Linear { out: &mut short, x: &x, weight: &x, bias: None, shape: layer };
    let error = cuda.linear(op).expect_err("`weight` is short").to_string();
    assert!(
        error.contains("linear failed on") && error.contains("`weight` has 128 elements, 4096 are needed"),
        "{error}"
    );
    let floats = cuda.alloc(Role::F32, 128).expect("memory");
    let op = Gelu { out: &mut short, pre: &floats, len: 64 };
    let error = cuda.gelu(op).expect_err("`pre` is fp32").to_string();
    assert!(error.contains("gelu failed on") && error.contains("`pre` is F32, expected BF16"), "{error}");
}

/// What tuning chooses for the two models that the locks are for:
/// `cargo test --release --lib cuda::tests::tuning -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn tuning() {
    for (name, shape) in [("d12 B64", shape(64, 1024, 768, 12)), ("d48 B16", shape(16, 1024, 1600, 25))] {
        for gelu_fusion in [0, 2] {
            let Some(mut cuda) = open(&Options { gelu_fusion, ..Options::default() }) else { return };
            let started = std::time::Instant::now();
            cuda.alloc_scratch(&shape).expect("scratch and plans");
            println!(
                "{name}, fusion {gelu_fusion}: {} products in {:.1} s",
                cuda.tuned().len(),
                started.elapsed().as_secs_f64()
            );
            for gemm::Tuned { plan, us, first_us, candidates } in cuda.tuned() {
                let tflops = plan.key.flops() / f64::from(*us) * 1e-6;
                println!(
                    "  {:60} {us:8.1} us, {tflops:4.0} TFLOP/s, first of {candidates}: {first_us:8.1} us; {:?}",
                    plan.key.to_string(),
                    plan.algorithm
                );
            }
        }
    }
}
