//! The mirror against plain f64, and a GPU against the mirror: there every bit counts.

use rayon::prelude::*;

use self::numbers::{Draw, Numbers};
use crate::experiment::{DeviceKeys, DeviceKind, Simd, shipped};
use crate::ops::cuda::launch::gemm_hopper;
use crate::ops::cuda::{Cuda, CudaOptions};
use crate::ops::mirror::Mirror;
use crate::ops::testing::{self, Limits};
use crate::ops::{
    AdamW, AdamWUpdate, Attention, AttentionBackward, Classifier, ClassifierLoss, CopyPart, Embedding,
    EmbeddingBackward, Heads, Layernorm, LayernormBackward, Linear, LinearActivate, LinearBackwardInput,
    LinearBackwardInputActivate, LinearBackwardWeight, LinearShape, LogitTerms, MlpShape, Nonlinearity,
    NormAgain, Ops, ParamCount, ParamSlot, ResidualLayernorm, Role, Rows, ScratchShape, SumSquares, Vocab,
    Write,
};

mod beside;
mod norms;
mod numbers;

const LIMITS: Limits = Limits { row_multiple: 8, head_sizes: Some(&[64, 128]) };

fn mirror(threads: usize, simd: Simd) -> Mirror {
    Mirror::new(&DeviceKeys { kind: DeviceKind::Cpu, threads, simd }).expect("a CPU")
}

/// A Hopper GPU, which a test of one must have.
fn hopper() -> Cuda {
    let cuda = Cuda::open(&CudaOptions { user_plans: false, ..CudaOptions::default() }).expect("a GPU");
    assert!(gemm_hopper::fits(cuda.gpu()), "this GPU is not Hopper");
    cuda
}

#[test]
fn every_operation_agrees_with_f64() {
    let mut mirror = mirror(2, Simd::Auto);
    let mut cases = testing::cases_within(&mut mirror, LIMITS);
    cases.extend(testing::decoding_cases(&mut mirror, LIMITS));
    for case in cases {
        assert!(case.distance() <= 0.01, "{} is off by {:.1e}", case.name, case.distance());
    }
}

fn filled<O: Ops>(ops: &mut O, role: Role, values: &[f32]) -> O::Buf {
    let mut buf = ops.alloc(role, values.len()).expect("memory");
    ops.upload(&mut buf, values).expect("an upload");
    buf
}

/// Outputs by name, as bits.
struct Outputs<'a, O: Ops> {
    ops: &'a mut O,
    named: Vec<(String, Vec<u32>)>,
}

impl<O: Ops> Outputs<'_, O> {
    fn add(&mut self, name: impl Into<String>, buf: &O::Buf, len: usize) {
        let mut values = vec![0.0f32; len];
        self.ops.download(buf, &mut values).expect("a download");
        self.named.push((name.into(), values.into_iter().map(f32::to_bits).collect()));
    }
}

#[derive(Clone, Copy)]
struct Shape {
    rows: Rows,
    heads: Heads,
    vocab: Vocab,
}

impl Shape {
    fn new(batch: usize, seq: usize, heads: usize, head_size: usize, used: usize) -> Shape {
        Shape {
            rows: Rows { batch, seq },
            heads: Heads::new(heads, head_size),
            vocab: Vocab { used, padded: used.next_multiple_of(128) },
        }
    }
}

/// Every operation, each on inputs of its own.
fn run<O: Ops>(ops: &mut O, numbers: Numbers, shape: Shape) -> Vec<(String, Vec<u32>)> {
    let Shape { rows, heads, vocab } = shape;
    // Two heads of queries for each of keys.
    let grouped = Heads { heads: 2 * heads.heads, ..heads };
    let scratch = ScratchShape {
        rows,
        least_seq: rows.seq,
        channels: heads.channels(),
        heads: grouped,
        vocab,
        backward: true,
        bias: true,
        mlp: MlpShape::gpt2(heads.channels()),
        params: ParamCount::default(),
    };
    ops.alloc_scratch(&scratch).expect("scratch");
    let mut draw = Draw { numbers, count: 0 };
    let mut to = Outputs { ops, named: Vec::new() };
    let c = heads.channels();
    for (mean, bias) in norms::KINDS {
        norms::norms(&mut to, &mut draw, rows.count(), c, mean, bias);
    }
    for (c_in, c_out) in [(c, 3 * c), (4 * c, c)] {
        products(&mut to, &mut draw, LinearShape { rows: rows.count(), c_in, c_out });
    }
    for heads in [heads, grouped] {
        for apart in [false, true] {
            attention(&mut to, &mut draw, rows, heads, apart);
        }
        beside::decoding(&mut to, &mut draw, heads);
        beside::rotary(&mut to, &mut draw, rows, heads);
        beside::qk_norm(&mut to, &mut draw, rows, heads);
    }
    classifier(&mut to, &mut draw, shape);
    embedding(&mut to, &mut draw, shape);
    optimizer(&mut to, &mut draw);
    beside::average_and_muon(&mut to, &mut draw);
    beside::embedding_of_tokens(&mut to, &mut draw, shape);
    // Wide enough that a block does not end with the rows.
    beside::activations(&mut to, &mut draw, rows.count(), 4 * c);
    beside::activations(&mut to, &mut draw, 3, 8 * 43);
    to.named
}

fn products<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, shape: LinearShape) {
    let named = |what: &str| format!("{what} of {} x {} -> {}", shape.rows, shape.c_in, shape.c_out);
    let x = draw.buf(to.ops, Role::Activation, shape.input(), 1.0);
    let weight = draw.buf(to.ops, Role::Param, shape.weight(), 0.05);
    let bias = draw.buf(to.ops, Role::Param, shape.c_out, 0.1);
    let dout = draw.buf(to.ops, Role::Activation, shape.output(), 1e-2);
    let before = draw.buf(to.ops, Role::Activation, shape.input(), 1.5);
    let [mut out, mut pre] =
        [(); 2].map(|()| to.ops.alloc(Role::Activation, shape.output()).expect("memory"));
    let (weight, x) = (&weight, &x);
    to.ops.linear(Linear { out: &mut out, x, weight, bias: None, shape }).expect("linear");
    to.add(named("linear"), &out, shape.output());
    to.ops.linear(Linear { out: &mut out, x, weight, bias: Some(&bias), shape }).expect("linear");
    to.add(named("linear with bias"), &out, shape.output());
    for (bias, what) in [(Some(&bias), "linear_gelu"), (None, "linear_gelu without bias")] {
        let gelu = LinearActivate {
            out: &mut out,
            pre: &mut pre,
            x,
            weight,
            bias,
            function: Nonlinearity::Gelu,
            shape,
        };
        to.ops.linear_activate(gelu).expect("linear_gelu");
        to.add(named(&format!("{what} pre")), &pre, shape.output());
        to.add(named(what), &out, shape.output());
    }
    let mut dx = to.ops.alloc(Role::Activation, shape.input()).expect("memory");
    to.ops
        .linear_backward_input(LinearBackwardInput { dx: &mut dx, dout: &dout, weight, shape })
        .expect("backward_input");
    to.add(named("backward_input"), &dx, shape.input());
    let mut dweight = draw.buf(to.ops, Role::F32, shape.weight(), 1.0);
    let mut dbias = draw.buf(to.ops, Role::F32, shape.c_out, 1.0);
    for write in [Write::Set, Write::Add] {
        for of_bias in [Some(&mut dbias), None] {
            let what = if of_bias.is_some() { "dweight" } else { "dweight alone" };
            let (dweight_of, dout) = (&mut dweight, &dout);
            let op = LinearBackwardWeight { dweight: dweight_of, dbias: of_bias, dout, x, shape, write };
            to.ops.linear_backward_weight(op).expect("backward_weight");
            to.add(named(&format!("{what} {write:?}")), &dweight, shape.weight());
        }
        to.add(named(&format!("dbias {write:?}")), &dbias, shape.c_out);
    }
    let [mut dpre, mut again] =
        [(); 2].map(|()| to.ops.alloc(Role::Activation, shape.input()).expect("memory"));
    let gradient = LinearBackwardInputActivate {
        again: Some(&mut again),
        dpre: &mut dpre,
        room: None,
        dout: &dout,
        weight,
        pre: &before,
        function: Nonlinearity::Gelu,
        shape,
    };
    to.ops.linear_backward_input_activate(gradient).expect("backward_input_gelu");
    to.add(named("dpre"), &dpre, shape.input());
    to.add(named("gelu again"), &again, shape.input());
    // The bias gradient of the layer before takes the sums that were left.
    let square = LinearShape { rows: shape.rows, c_in: shape.c_in, c_out: shape.c_in };
    let mut dweight = to.ops.alloc(Role::F32, square.weight()).expect("memory");
    let mut dbias = to.ops.alloc(Role::F32, square.c_out).expect("memory");
    to.ops
        .linear_backward_weight(LinearBackwardWeight {
            dweight: &mut dweight,
            dbias: Some(&mut dbias),
            dout: &dpre,
            x,
            shape: square,
            write: Write::Set,
        })
        .expect("backward_weight");
    to.add(named("sums of dpre"), &dbias, square.c_out);
    for function in [Nonlinearity::SquaredRelu, Nonlinearity::Swiglu] {
        let wide = function.inputs() * shape.input();
        let before = draw.buf(to.ops, Role::Activation, wide, 1.5);
        let op =
            LinearActivate { out: &mut out, pre: &mut pre, x, weight, bias: Some(&bias), function, shape };
        let outputs = shape.rows * op.channels();
        to.ops.linear_activate(op).expect("linear_activate");
        to.add(named(&format!("linear, {function:?}: pre")), &pre, shape.output());
        to.add(named(&format!("linear, {function:?}")), &out, outputs);
        let mut dpre = to.ops.alloc(Role::Activation, wide).expect("memory");
        let op = LinearBackwardInputActivate {
            again: Some(&mut again),
            dpre: &mut dpre,
            room: Some(&mut dx),
            dout: &dout,
            weight,
            pre: &before,
            function,
            shape,
        };
        to.ops.linear_backward_input_activate(op).expect("linear_backward_input_activate");
        to.add(named(&format!("dpre, {function:?}")), &dpre, wide);
        to.add(named(&format!("{function:?} again")), &again, shape.input());
    }
}

/// And its gradient; with the values beside queries and keys, or `apart` in a tensor of their own.
fn attention<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, rows: Rows, heads: Heads, apart: bool) {
    let (size, wide) = (rows.count() * heads.channels(), rows.count() * heads.qkv_channels());
    let read = rows.count() * heads.slices(!apart) * heads.head_size;
    let qkv = draw.buf(to.ops, Role::Activation, read, 1.0);
    let values = apart.then(|| draw.buf(to.ops, Role::Activation, wide, 1.0));
    let (qkv, values) = (&qkv, values.as_ref());
    let dout = draw.buf(to.ops, Role::Activation, size, 1e-2);
    let mut out = to.ops.alloc(Role::Activation, size).expect("memory");
    let mut lse = to.ops.alloc(Role::F32, rows.count() * heads.heads).expect("memory");
    to.ops
        .attention(Attention { out: &mut out, lse: &mut lse, qkv, values, rows, heads })
        .expect("attention");
    to.add(format!("attention {heads:?}, values apart {apart}"), &out, size);
    to.add(format!("lse, values apart {apart}"), &lse, rows.count() * heads.heads);
    let mut dqkv = draw.buf(to.ops, Role::Activation, wide, 1.0);
    let (dout, out, lse) = (&dout, &out, &lse);
    let op = AttentionBackward { dqkv: &mut dqkv, dout, qkv, values, out, lse, rows, heads };
    to.ops.attention_backward(op).expect("attention_backward");
    to.add(format!("attention_backward, values apart {apart}"), &dqkv, wide);
}

fn classifier<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, shape: Shape) {
    let (rows, channels, vocab) = (shape.rows.count(), shape.heads.channels(), shape.vocab);
    // Every 97th row is large: its loss is hundreds of nats.
    let large = draw.buf(to.ops, Role::Activation, channels, 40.0);
    let mut x = draw.buf(to.ops, Role::Activation, rows * channels, 1.0);
    for row in (0..rows).step_by(97) {
        let op = CopyPart { dst: &mut x, at: row * channels, src: &large, from: 0, len: channels };
        to.ops.copy(op).expect("a copy");
    }
    let wte = draw.even(to.ops, Role::Param, vocab.padded * channels, 0.3);
    let targets = draw.ids(to.ops, rows, vocab.used);
    let (x, wte, targets) = (&x, &wte, &targets);
    for (softcap, z_loss) in [(None, 0.0), (Some(30.0), 0.0), (Some(2.0), 0.1), (None, 1e-4)] {
        let terms = LogitTerms { softcap, z_loss };
        let add = |to: &mut Outputs<'_, O>, what: &str, buf: &O::Buf, len| {
            to.add(format!("classifier {what}, {terms:?}"), buf, len);
        };
        let mut losses = to.ops.alloc(Role::F32, rows + 3).expect("memory");
        to.ops
            .classifier_loss(ClassifierLoss {
                losses: &mut losses,
                losses_at: 3,
                x,
                wte,
                targets,
                rows,
                channels,
                vocab,
                terms,
            })
            .expect("classifier_loss");
        add(to, "losses alone", &losses, rows + 3);
        let mut denominators = to.ops.alloc(Role::F32, 2 * rows).expect("memory");
        let mut dx = to.ops.alloc(Role::Activation, rows * channels).expect("memory");
        let mut dwte = draw.buf(to.ops, Role::F32, vocab.padded * channels, 1.0);
        to.ops
            .classifier(Classifier {
                losses: &mut losses,
                losses_at: 0,
                denominators: &mut denominators,
                dx: &mut dx,
                dwte: &mut dwte,
                x,
                wte,
                targets,
                rows,
                channels,
                vocab,
                terms,
                scale: 1.0 / rows as f32,
                write: Write::Add,
            })
            .expect("classifier");
        add(to, "losses", &losses, rows);
        add(to, "denominators", &denominators, 2 * rows);
        add(to, "dx", &dx, rows * channels);
        add(to, "dwte", &dwte, vocab.padded * channels);
    }
}

fn embedding<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, shape: Shape) {
    let (rows, channels, vocab) = (shape.rows, shape.heads.channels(), shape.vocab.padded);
    let size = rows.count() * channels;
    let wte = draw.buf(to.ops, Role::Param, vocab * channels, 1.0);
    let wpe = draw.buf(to.ops, Role::Param, (rows.seq + 2) * channels, 1.0);
    let ids = draw.ids(to.ops, rows.count(), vocab);
    let mut out = to.ops.alloc(Role::Activation, size).expect("memory");
    to.ops
        .embedding(Embedding { out: &mut out, ids: &ids, wte: &wte, wpe: Some(&wpe), rows, channels })
        .expect("embedding");
    to.add("embedding", &out, size);
    let dout = draw.buf(to.ops, Role::Activation, size, 1.0);
    let mut dwte = draw.buf(to.ops, Role::F32, vocab * channels, 1.0);
    let mut dwpe = draw.buf(to.ops, Role::F32, (rows.seq + 2) * channels, 1.0);
    for write in [Write::Set, Write::Add] {
        to.ops
            .embedding_backward(EmbeddingBackward {
                dwte: &mut dwte,
                dwte_write: Write::Add,
                vocab,
                dwpe: Some(&mut dwpe),
                write,
                dout: &dout,
                ids: &ids,
                rows,
                channels,
            })
            .expect("embedding_backward");
        to.add(format!("embedding_backward dwte {write:?}"), &dwte, vocab * channels);
        to.add(format!("embedding_backward dwpe {write:?}"), &dwpe, (rows.seq + 2) * channels);
    }
}

fn optimizer<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw) {
    // A whole chunk and an odd rest.
    let len = 16_384 + 8 * 611 + 3;
    let grad = draw.buf(to.ops, Role::F32, len, 1e-2);
    let sums = to.ops.sum_squares(SumSquares { tensors: &[&grad] }).expect("sum_squares");
    let bits = sums.iter().flat_map(|sum| [sum.to_bits() as u32, (sum.to_bits() >> 32) as u32]);
    to.named.push(("sum_squares".into(), bits.collect()));
    for with_master in [true, false] {
        let mut param = draw.buf(to.ops, Role::Param, len, 1.0);
        let mut master = draw.buf(to.ops, Role::F32, len, 1.0);
        let mut adam_m = draw.buf(to.ops, Role::F32, len, 1e-2);
        let squares: Vec<f32> = draw.values(len, 1e-4).into_iter().map(|x| x * x).collect();
        let mut adam_v = filled(to.ops, Role::F32, &squares);
        let scalars = AdamW {
            learning_rate: 6e-4,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            correction1: 1.25,
            correction2: 1.5,
            grad_scale: 0.75,
            rounding_key: [12, 34],
            step: 7,
        };
        let slots = vec![ParamSlot {
            id: 5,
            at: 0,
            param: &mut param,
            master: with_master.then_some(&mut master),
            grad: &grad,
            grad_at: 0,
            adam_m: &mut adam_m,
            adam_v: &mut adam_v,
            weight_decay: 0.1,
        }];
        to.ops.adamw(AdamWUpdate { slots, scalars }).expect("adamw");
        for (what, buf) in [("param", &param), ("master", &master), ("m", &adam_m), ("v", &adam_v)] {
            to.add(format!("adamw {what}, masters {with_master}"), buf, len);
        }
    }
}

/// How many bits differ, by output; prints those that do.
fn differences(got: &[(String, Vec<u32>)], want: &[(String, Vec<u32>)], what: &str) -> usize {
    assert_eq!(got.len(), want.len(), "as many outputs");
    let mut wrong = 0;
    for ((name, got), (other, want)) in got.iter().zip(want) {
        assert_eq!((name, got.len()), (other, want.len()), "{what}: outputs come in one order");
        let off: Vec<usize> = (0..got.len()).into_par_iter().filter(|i| got[*i] != want[*i]).collect();
        if let Some(first) = off.first() {
            wrong += 1;
            let show = |bits: u32| format!("{bits:08x} {:e}", f32::from_bits(bits));
            println!(
                "{what}: {name}: {} of {} differ, element {first} is {}, the mirror has {}",
                off.len(),
                got.len(),
                show(got[*first]),
                show(want[*first])
            );
        }
    }
    wrong
}

#[test]
fn rows_past_the_last_are_in_no_sum_beside_an_infinite_weight() {
    infinite_weight(&mut mirror(2, Simd::Auto));
    let mut constant = beside::constant_rows(&mut mirror(1, Simd::Auto));
    constant.retain(|(name, _)| name.ends_with("dweight"));
    assert!(constant.iter().flat_map(|it| &it.1).all(|bits| f32::from_bits(*bits).is_finite()));
}

#[test]
fn a_row_whose_scores_are_all_below_every_start_has_no_weight_at_all() {
    for head_size in [64, 128] {
        let (rows, heads) = (Rows { batch: 1, seq: 2 }, Heads::new(1, head_size));
        let mut mirror = mirror(1, Simd::Auto);
        let slice = |value: f32| [vec![value], vec![0.0; head_size - 1]].concat();
        let token = [slice(2e15), slice(-2e15), slice(1.0)].concat();
        let qkv = filled(&mut mirror, Role::Activation, &[token.clone(), token].concat());
        let mut out = mirror.alloc(Role::Activation, 2 * head_size).expect("memory");
        let mut lse = mirror.alloc(Role::F32, 2).expect("memory");
        mirror
            .attention(Attention { out: &mut out, lse: &mut lse, qkv: &qkv, values: None, rows, heads })
            .expect("attention");
        let mut values = [0.0; 2];
        mirror.download(&lse, &mut values).expect("a download");
        assert_eq!(values, [f32::NEG_INFINITY; 2], "heads of {head_size}");
    }
}

#[test]
fn threads_and_instruction_sets_change_no_bit() {
    let shape = Shape::new(2, 72, 1, 64, 200);
    for numbers in [Numbers::Normal, Numbers::Special, Numbers::Huge, Numbers::Mixed] {
        let want = run(&mut mirror(1, Simd::Auto), numbers, shape);
        let got = run(&mut mirror(3, Simd::Baseline), numbers, shape);
        assert_eq!(differences(&got, &want, "three threads"), 0);
    }
}

#[test]
#[ignore = "skipped: needs a Hopper GPU; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror() {
    let mut cuda = hopper();
    let mut mirror = mirror(0, Simd::Auto);
    let mut wrong = 0;
    for (shape, kinds) in [
        (
            Shape::new(2, 200, 2, 64, 300),
            &[Numbers::Normal, Numbers::Wide, Numbers::Subnormal, Numbers::Special, Numbers::Huge][..],
        ),
        (
            Shape::new(1, 130, 1, 128, 130),
            &[Numbers::Normal, Numbers::Wide, Numbers::Subnormal, Numbers::Special, Numbers::Huge],
        ),
        (Shape::new(4, 512, 3, 64, 1000), &[Numbers::Normal, Numbers::Mixed]),
        (Shape::new(1, 1024, 6, 128, 257), &[Numbers::Normal, Numbers::Mixed]),
    ] {
        for numbers in kinds {
            let what = format!("{numbers:?} numbers, {:?}, {:?}", shape.rows, shape.heads);
            let started = std::time::Instant::now();
            let want = run(&mut mirror, *numbers, shape);
            let middle = started.elapsed();
            let got = run(&mut cuda, *numbers, shape);
            println!("{what}: {} outputs, mirror {middle:.1?}, all {:.1?}", got.len(), started.elapsed());
            wrong += differences(&got, &want, &what);
        }
    }
    for (name, cases) in [
        ("cases", testing::cases_within as fn(&mut Cuda, Limits) -> Vec<testing::Case>),
        ("decoding", testing::decoding_cases),
    ] {
        let bits = |cases: Vec<testing::Case>| -> Vec<(String, Vec<u32>)> {
            cases.into_iter().map(|c| (c.name, c.got.into_iter().map(f32::to_bits).collect())).collect()
        };
        let want = match name {
            "cases" => testing::cases_within(&mut mirror, LIMITS),
            _ => testing::decoding_cases(&mut mirror, LIMITS),
        };
        wrong += differences(&bits(cases(&mut cuda, LIMITS)), &bits(want), name);
    }
    let (want, got) = (infinite_weight(&mut mirror), infinite_weight(&mut cuda));
    wrong += differences(&got, &want, "an infinite weight and rows past the last");
    let (want, got) = (beside::constant_rows(&mut mirror), beside::constant_rows(&mut cuda));
    wrong += differences(&got, &want, "constant rows");
    for numbers in [Numbers::Normal, Numbers::Mixed] {
        let (want, got) = (norms::wide_norms(&mut mirror, numbers), norms::wide_norms(&mut cuda, numbers));
        wrong += differences(&got, &want, &format!("norms of wide rows, {numbers:?} numbers"));
    }
    assert_eq!(wrong, 0, "outputs differ from the mirror's");
}

/// The bias gradient before a GELU where a weight is infinite and the last tile has rows past the last.
fn infinite_weight<O: Ops>(ops: &mut O) -> Vec<(String, Vec<u32>)> {
    let shape = LinearShape { rows: 100, c_in: 128, c_out: 128 };
    let mut weights = vec![0.01; shape.weight()];
    weights[0] = f32::INFINITY;
    let weight = filled(ops, Role::Param, &weights);
    let [dout, pre] = [1e-2, 1.5].map(|value| filled(ops, Role::Activation, &vec![value; shape.output()]));
    let mut dpre = ops.alloc(Role::Activation, shape.input()).expect("memory");
    let mut dweight = ops.alloc(Role::F32, shape.weight()).expect("memory");
    let mut dbias = ops.alloc(Role::F32, shape.c_in).expect("memory");
    let gradient = LinearBackwardInputActivate {
        again: None,
        dpre: &mut dpre,
        room: None,
        dout: &dout,
        weight: &weight,
        pre: &pre,
        function: Nonlinearity::Gelu,
        shape,
    };
    ops.linear_backward_input_activate(gradient).expect("backward_input_gelu");
    let sums = LinearBackwardWeight {
        dweight: &mut dweight,
        dbias: Some(&mut dbias),
        dout: &dpre,
        x: &pre,
        shape,
        write: Write::Set,
    };
    ops.linear_backward_weight(sums).expect("backward_weight");
    let mut to = Outputs { ops, named: Vec::new() };
    to.add("dbias", &dbias, shape.c_in);
    assert_eq!(to.named[0].1[0], f32::INFINITY.to_bits(), "rows past the last do not count");
    to.named
}

/// Every operation in the shapes of a shipped experiment: ten TMAC, some minutes on sixteen cores. Numbers
/// that are not normal take the mirror several times as long: at most 16 sequences of them.
fn has_the_bits_of_the_mirror_in_the_shapes_of(name: &str, numbers: Numbers) {
    let experiment = shipped(name, &[]);
    let (batch, model) = (&experiment.batch, &experiment.model);
    let head_size = model.channels / model.heads;
    let sequences = if numbers == Numbers::Normal { batch.micro } else { batch.micro.min(16) };
    let shape = Shape::new(sequences, batch.seq_len, model.heads, head_size, 50_257);
    let started = std::time::Instant::now();
    let want = run(&mut mirror(0, Simd::Auto), numbers, shape);
    let middle = started.elapsed();
    let got = run(&mut hopper(), numbers, shape);
    println!(
        "{name}, {numbers:?} numbers: {} outputs, mirror {middle:.1?}, all {:.1?}",
        got.len(),
        started.elapsed()
    );
    assert_eq!(differences(&got, &want, name), 0, "outputs differ from the mirror's");
}

#[test]
#[ignore = "skipped: needs a Hopper GPU and minutes; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror_in_the_shapes_of_gpt2_124m() {
    has_the_bits_of_the_mirror_in_the_shapes_of("gpt2_124m.toml", Numbers::Normal);
}

#[test]
#[ignore = "skipped: needs a Hopper GPU and minutes; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror_in_the_shapes_of_gpt2_124m_in_odd_numbers() {
    has_the_bits_of_the_mirror_in_the_shapes_of("gpt2_124m.toml", Numbers::Mixed);
}

#[test]
#[ignore = "skipped: needs a Hopper GPU and minutes; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror_in_the_shapes_of_gpt2_33b() {
    has_the_bits_of_the_mirror_in_the_shapes_of("gpt2_33b.toml", Numbers::Normal);
}

#[test]
#[ignore = "skipped: needs a Hopper GPU and minutes; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror_in_the_shapes_of_gpt2_33b_in_odd_numbers() {
    has_the_bits_of_the_mirror_in_the_shapes_of("gpt2_33b.toml", Numbers::Mixed);
}

#[test]
#[ignore = "skipped: needs a Hopper GPU and minutes; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror_in_the_shapes_of_gpt3_125m() {
    has_the_bits_of_the_mirror_in_the_shapes_of("gpt3_125m.toml", Numbers::Normal);
}

#[test]
#[ignore = "skipped: needs a Hopper GPU and minutes; run with --include-ignored"]
fn cuda_has_the_bits_of_the_mirror_in_the_shapes_of_gpt3_125m_in_odd_numbers() {
    has_the_bits_of_the_mirror_in_the_shapes_of("gpt3_125m.toml", Numbers::Mixed);
}
