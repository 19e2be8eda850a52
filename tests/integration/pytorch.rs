//! The model against PyTorch: every logit, loss and gradient of tiny models, GPT-2 and others.
//!
//! The fixtures and the scripts that wrote them stand in `tests/fixtures/`.

use runner::experiment::{ActivationKind, DeviceKeys, DeviceKind, Model, NormKind, PositionKind, Simd};
use runner::model::gpt2::MicroBatch;
use runner::model::{Gpt2, ParamSpec, Weights};
use runner::ops::{Ops, Role, Rows, Write, cpu::Cpu};
use safetensors::{Dtype, SafeTensors};

/// A model, and what PyTorch made of it.
struct Case {
    name: &'static str,
    fixture: &'static [u8],
    model: Model,
    rows: Rows,
}

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/", $name, "_reference.safetensors"))
    };
    (blocks $name:literal) => {
        include_bytes!(concat!("../fixtures/blocks_", $name, ".safetensors"))
    };
}

fn cases() -> Vec<Case> {
    let small = Model::gpt2(2, 2, 24, 16, 41);
    let llama = Model {
        norm: NormKind::Rmsnorm,
        positions: PositionKind::Rotary,
        activation: ActivationKind::Swiglu,
        bias: false,
        ..small.clone()
    };
    let blocks = |name, fixture, model| Case { name, fixture, model, rows: Rows { batch: 2, seq: 11 } };
    vec![
        Case {
            name: "gpt2",
            fixture: fixture!("gpt2"),
            model: Model::gpt2(3, 4, 48, 16, 97),
            rows: Rows { batch: 3, seq: 13 },
        },
        blocks(
            "rotary",
            fixture!(blocks "rotary"),
            Model { positions: PositionKind::Rotary, rope_theta: 100.0, ..small.clone() },
        ),
        blocks(
            "relu2",
            fixture!(blocks "relu2"),
            Model { activation: ActivationKind::Relu2, norm: NormKind::Rmsnorm, ..small.clone() },
        ),
        blocks(
            "bare",
            fixture!(blocks "bare"),
            Model { bias: false, qk_norm: true, tied_head: false, ..small.clone() },
        ),
        blocks(
            "swiglu",
            fixture!(blocks "swiglu"),
            Model {
                activation: ActivationKind::Swiglu,
                positions: PositionKind::Rotary,
                qk_norm: true,
                ..small.clone()
            },
        ),
        blocks(
            "grouped",
            fixture!(blocks "grouped"),
            Model { kv_heads: 1, positions: PositionKind::Rotary, rope_theta: 1e4, qk_norm: true, ..small },
        ),
        blocks("qwen3", fixture!(blocks "qwen3"), Model { qk_norm: true, tied_head: false, ..llama.clone() }),
        blocks("llama", fixture!(blocks "llama"), llama.clone()),
        blocks(
            "llama_grouped",
            fixture!(blocks "llama_grouped"),
            Model { kv_heads: 1, tied_head: false, ..llama },
        ),
    ]
}

fn floats(fixture: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = fixture.tensor(name).expect(name);
    assert_eq!(view.dtype(), Dtype::F32, "{name}");
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn ids(fixture: &SafeTensors<'_>, name: &str) -> Vec<u16> {
    let view = fixture.tensor(name).expect(name);
    view.data()
        .chunks_exact(4)
        .map(|b| i32::from_le_bytes(b.try_into().expect("four bytes")) as u16)
        .collect()
}

/// ‖a − b‖ / ‖b‖
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let distance: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (distance / norm).sqrt()
}

fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_close_beside(what, ours, theirs, 0.0);
}

/// Beside numbers of the size `floor` where theirs are smaller.
fn assert_close_beside(what: &str, ours: &[f32], theirs: &[f32], floor: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let size = norm(theirs);
    let error = relative_error(ours, theirs) * size / size.max(floor);
    assert!(error < 2e-6, "{what}: relative error {error:e}");
}

/// ‖a‖
fn norm(a: &[f32]) -> f64 {
    a.iter().map(|a| f64::from(*a) * f64::from(*a)).sum::<f64>().sqrt()
}

/// The case's model on `ops`, with the fixture's weights.
fn model(ops: &mut Cpu, case: &Case, fixture: &SafeTensors<'_>, recompute: u8) -> Gpt2<Cpu> {
    let mut model = Gpt2::new(ops, &case.model, case.rows, recompute, true, 1).expect("it fits");
    let specs = Weights::of(&case.model);
    let held = fixture.names().into_iter().filter(|name| name.starts_with("weight/")).count();
    assert_eq!(held, specs.iter().count(), "{}", case.name);
    for (spec, buf) in specs.iter().zip(model.params.iter_mut()) {
        let values = floats(fixture, &format!("weight/{}", spec.name));
        assert_eq!(values.len(), spec.logical_len(), "{}", spec.name);
        let mut padded = vec![0.0; spec.len];
        padded[..values.len()].copy_from_slice(&values);
        ops.upload(buf, &padded).expect("host memory");
    }
    model
}

fn cpu() -> Cpu {
    Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto }).expect("a CPU")
}

#[test]
fn losses_and_gradients_agree_with_pytorch_at_every_recompute_level() {
    for case in cases() {
        let mut first = None;
        for recompute in 0..=2 {
            let gradients = gradients(&case, recompute);
            assert!(
                *first.get_or_insert_with(|| gradients.clone()) == gradients,
                "{}: recompute {recompute} changes bits",
                case.name
            );
        }
    }
}

/// The bits of losses and gradients, once they have been compared.
fn gradients(case: &Case, recompute: u8) -> Vec<u32> {
    let fixture = SafeTensors::deserialize(case.fixture).expect("the fixture is whole");
    let (inputs, targets) = (ids(&fixture, "inputs"), ids(&fixture, "targets"));
    let mut ops = cpu();
    let mut model = model(&mut ops, case, &fixture, recompute);
    let specs = Weights::of(&case.model);
    let mut grads = specs.try_map(|spec| ops.alloc(Role::F32, spec.len)).expect("it fits");
    // Poison: every element must be written.
    for (spec, grad) in specs.iter().zip(grads.iter_mut()) {
        ops.upload(grad, &vec![f32::NAN; spec.len]).expect("host memory");
    }
    let (rows, name) = (case.rows, case.name);
    let mut losses = ops.alloc(Role::F32, rows.count()).expect("it fits");
    let batch = MicroBatch { inputs: &inputs, targets: &targets, rows, losses_at: 0 };
    let scale = 1.0 / rows.count() as f32;
    model.forward_backward(&mut ops, &batch, &mut losses, &mut grads, scale, Write::Set).expect("it runs");

    let mut ours = vec![0.0; rows.count()];
    ops.download(&losses, &mut ours).expect("host memory");
    assert_close(&format!("{name}: losses"), &ours, &floats(&fixture, "losses"));
    let mut bits: Vec<u32> = ours.iter().map(|x| x.to_bits()).collect();
    let theirs = |spec: &ParamSpec| floats(&fixture, &format!("gradient/{}", spec.name));
    // Gradients that are far smaller are sums that cancel.
    let floor = specs.iter().map(|spec| norm(&theirs(spec))).fold(0.0, f64::max) / 1000.0;
    for (spec, grad) in specs.iter().zip(grads.iter()) {
        let mut ours = vec![0.0; spec.len];
        ops.download(grad, &mut ours).expect("host memory");
        let (logical, padding) = ours.split_at(spec.logical_len());
        assert_close_beside(&format!("{name}: {}", spec.name), logical, &theirs(spec), floor);
        assert!(padding.iter().all(|&g| g == 0.0), "{name}: padding of {} has a gradient", spec.name);
        bits.extend(ours.iter().map(|x| x.to_bits()));
    }

    // Adding the same gradients once more doubles them, up to the last bit.
    model.forward_backward(&mut ops, &batch, &mut losses, &mut grads, scale, Write::Add).expect("it runs");
    for (spec, grad) in specs.iter().zip(grads.iter()) {
        let mut doubled = vec![0.0; spec.len];
        ops.download(grad, &mut doubled).expect("host memory");
        let twice: Vec<f32> = theirs(spec).iter().map(|g| 2.0 * g).collect();
        let what = format!("{name}: {} added twice", spec.name);
        assert_close_beside(&what, &doubled[..spec.logical_len()], &twice, 2.0 * floor);
    }
    bits
}

#[test]
fn next_token_logits_agree_with_pytorch_at_every_length() {
    for case in cases() {
        let fixture = SafeTensors::deserialize(case.fixture).expect("the fixture is whole");
        let inputs = ids(&fixture, "inputs");
        let logits = floats(&fixture, "logits");
        let mut ops = cpu();
        let mut model = model(&mut ops, &case, &fixture, 0);
        let vocab = case.model.vocab;
        for t in 1..=case.rows.seq {
            let ours = model.next_token_logits(&mut ops, &inputs[..t]).expect("it runs");
            assert_close(
                &format!("{}: logits at {t}", case.name),
                &ours,
                &logits[(t - 1) * vocab..t * vocab],
            );
        }
    }
}
