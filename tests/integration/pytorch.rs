//! The model against PyTorch: every logit, loss and gradient of a tiny GPT-2.
//!
//! The fixture and the script that wrote it stand in `tests/fixtures/`.

use runner::experiment::{DeviceKeys, DeviceKind, Model, Simd};
use runner::model::gpt2::MicroBatch;
use runner::model::{Gpt2, Weights};
use runner::ops::{Ops, Role, Rows, Write, cpu::Cpu};
use safetensors::{Dtype, SafeTensors};

const FIXTURE: &[u8] = include_bytes!("../fixtures/gpt2_reference.safetensors");
const ROWS: Rows = Rows { batch: 3, seq: 13 };

fn config() -> Model {
    Model {
        init: None,
        descriptor: None,
        layers: 3,
        heads: 4,
        channels: 48,
        context: 16,
        vocab: 97,
        vocab_padded: 128,
    }
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
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let error = relative_error(ours, theirs);
    assert!(error < 2e-6, "{what}: relative error {error:e}");
}

/// The fixture's model on `ops`, with the fixture's weights.
fn model(ops: &mut Cpu, fixture: &SafeTensors<'_>, recompute: u8) -> Gpt2<Cpu> {
    let mut model = Gpt2::new(ops, &config(), ROWS, recompute, true, 1).expect("it fits");
    let specs = Weights::of(&config());
    for (spec, buf) in specs.iter().zip(model.params.iter_mut()) {
        let values = floats(fixture, &format!("weight/{}", spec.name));
        assert_eq!(values.len(), spec.logical_len(), "{}", spec.name);
        let mut padded = vec![0.0; spec.len];
        padded[..values.len()].copy_from_slice(&values);
        ops.upload(buf, &padded).expect("host memory");
    }
    model
}

#[test]
fn logits_losses_and_gradients_agree_with_pytorch_at_every_recompute_level() {
    let fixture = SafeTensors::deserialize(FIXTURE).expect("the fixture is whole");
    let (inputs, targets) = (ids(&fixture, "inputs"), ids(&fixture, "targets"));
    for recompute in 0..=2 {
        let mut ops =
            Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto }).expect("a CPU");
        let mut model = model(&mut ops, &fixture, recompute);
        let specs = Weights::of(&config());
        let mut grads = specs.try_map(|spec| ops.alloc(Role::F32, spec.len)).expect("it fits");
        // Poison: every element must be written.
        for (spec, grad) in specs.iter().zip(grads.iter_mut()) {
            ops.upload(grad, &vec![f32::NAN; spec.len]).expect("host memory");
        }
        let mut losses = ops.alloc(Role::F32, ROWS.count()).expect("it fits");
        let batch = MicroBatch { inputs: &inputs, targets: &targets, rows: ROWS, losses_at: 0 };
        let scale = 1.0 / ROWS.count() as f32;
        model
            .forward_backward(&mut ops, &batch, &mut losses, &mut grads, scale, Write::Set)
            .expect("it runs");

        let mut ours = vec![0.0; ROWS.count()];
        ops.download(&losses, &mut ours).expect("host memory");
        assert_close("losses", &ours, &floats(&fixture, "losses"));

        for (spec, grad) in specs.iter().zip(grads.iter()) {
            let mut ours = vec![0.0; spec.len];
            ops.download(grad, &mut ours).expect("host memory");
            let (logical, padding) = ours.split_at(spec.logical_len());
            assert_close(&spec.name, logical, &floats(&fixture, &format!("gradient/{}", spec.name)));
            assert!(padding.iter().all(|&g| g == 0.0), "{}: padding rows have a gradient", spec.name);
        }

        // Adding the same gradients once more doubles them exactly.
        model
            .forward_backward(&mut ops, &batch, &mut losses, &mut grads, scale, Write::Add)
            .expect("it runs");
        let mut doubled = vec![0.0; specs.ln_f.bias.len];
        ops.download(&grads.ln_f.bias, &mut doubled).expect("host memory");
        let single = floats(&fixture, "gradient/ln_f.bias");
        assert_close("ln_f.bias added twice", &doubled, &single.iter().map(|g| 2.0 * g).collect::<Vec<_>>());
    }
}

#[test]
fn next_token_logits_agree_with_pytorch_at_every_length() {
    let fixture = SafeTensors::deserialize(FIXTURE).expect("the fixture is whole");
    let inputs = ids(&fixture, "inputs");
    let logits = floats(&fixture, "logits");
    let mut ops =
        Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto }).expect("a CPU");
    let mut model = model(&mut ops, &fixture, 0);
    for t in 1..=ROWS.seq {
        let ours = model.next_token_logits(&mut ops, &inputs[..t]).expect("it runs");
        assert_close(&format!("logits at {t}"), &ours, &logits[(t - 1) * 97..t * 97]);
    }
}
