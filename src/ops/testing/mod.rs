//! Tests of a device: one body an operation, generic over [`Ops`], against plain f64.
//!
//! A device's own tests call [`check_all`] with the tolerance its element types allow. Outputs are
//! filled with NaN before every call, so that an element that is not written fails. [`cases`] gives the
//! raw outputs, which a device compares bit for bit between its own settings.

mod activate;
mod attention;
mod classifier;
mod decoding;
mod embedding;
pub mod faulty;
mod linear;
mod muon;
mod norm;
mod optimizer;
mod qk_norm;
pub mod reference;
mod rotary;

use std::collections::BTreeMap;

use super::{Heads, MlpShape, Ops, ParamCount, Role, Rows, ScratchShape, Vocab, Write};
use crate::rng::Key;
pub use decoding::{decoding_alone_and_together, decoding_cases};

/// How far an output may be from its value in f64: `|got - want| <= relative * (|want| + rms(want))`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub relative: f64,
}

/// A device's result, and the same in f64.
pub struct Case {
    pub name: String,
    pub got: Vec<f32>,
    pub want: Vec<f64>,
}

impl Case {
    /// `‖got - want‖ / ‖want‖` over the whole tensor; infinite when something is not a number.
    pub fn distance(&self) -> f64 {
        let square = |x: f64| x * x;
        let off: f64 =
            self.got.iter().zip(&self.want).map(|(got, want)| square(f64::from(*got) - want)).sum();
        match off.sqrt() {
            0.0 => 0.0,
            off if off.is_nan() => f64::INFINITY,
            off => off / self.want.iter().map(|x| square(*x)).sum::<f64>().sqrt(),
        }
    }

    /// The largest error, in units of `|want| + rms(want)`; infinite when something is not a number.
    pub fn worst(&self) -> f64 {
        let rms = (self.want.iter().map(|x| x * x).sum::<f64>() / self.want.len() as f64).sqrt();
        let error = |got: f32, want: f64| match (f64::from(got) - want).abs() {
            0.0 => 0.0,
            error if error.is_nan() => f64::INFINITY,
            error => error / (want.abs() + rms),
        };
        self.got.iter().zip(&self.want).map(|(got, want)| error(*got, *want)).fold(0.0, f64::max)
    }
}

/// `len` normal numbers times `scale`.
pub fn random(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    let key = Key::new(seed, "ops/testing");
    (0..len as u64).map(|i| (scale * key.normal(0, i)) as f32).collect()
}

/// Shapes that a device's kernels are written for. The shapes of the cases are rounded up to them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What the length of every row must be a multiple of.
    pub row_multiple: usize,
    /// The only head sizes, ascending; `None` for any. An empty list leaves attention out.
    pub head_sizes: Option<&'static [usize]>,
}

impl Limits {
    /// Any shape.
    pub const NONE: Limits = Limits { row_multiple: 1, head_sizes: None };

    fn row(self, length: usize) -> usize {
        length.next_multiple_of(self.row_multiple)
    }

    fn head_size(self, head_size: usize) -> Option<usize> {
        match self.head_sizes {
            None => Some(head_size),
            Some(sizes) => sizes.iter().copied().find(|size| *size >= head_size),
        }
    }
}

/// Compares every operation of a device with f64.
///
/// # Panics
/// At the first element that is too far off.
pub fn check_all<O: Ops>(ops: &mut O, tolerance: Tolerance) {
    check_within(ops, tolerance, Limits::NONE);
}

/// [`check_all`] for a device that does not take every shape.
///
/// # Panics
/// At the first element that is too far off.
pub fn check_within<O: Ops>(ops: &mut O, tolerance: Tolerance, limits: Limits) {
    for case in cases_within(ops, limits).into_iter().chain(decoding_cases(ops, limits)) {
        assert_eq!(case.got.len(), case.want.len(), "{}", case.name);
        let rms = (case.want.iter().map(|x| x * x).sum::<f64>() / case.want.len() as f64).sqrt();
        for (i, (got, want)) in case.got.iter().zip(&case.want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            let allowed = tolerance.relative * (want.abs() + rms);
            // Written so that a NaN fails.
            assert!(
                error <= allowed,
                "{}: element {i} is {got}, in f64 {want}, allowed {allowed:e}",
                case.name
            );
        }
    }
}

/// Runs every operation at odd shapes.
pub fn cases<O: Ops>(ops: &mut O) -> Vec<Case> {
    cases_within(ops, Limits::NONE)
}

/// [`cases`] for a device that does not take every shape.
pub fn cases_within<O: Ops>(ops: &mut O, limits: Limits) -> Vec<Case> {
    let mut bench = Bench { ops, limits, cases: Vec::new(), seed: 0 };
    // Each family's inputs begin at a number of its own but for two that share 1000: a new case at a family's
    // end changes no input of another's.
    bench.family(0, Bench::embedding);
    bench.family(24, Bench::layernorm);
    bench.family(69, Bench::linear);
    bench.family(125, Bench::attention);
    bench.family(137, Bench::classifier);
    bench.family(153, Bench::optimizer);
    bench.family(171, Bench::muon);
    bench.family(2000, Bench::rotary);
    bench.family(2050, Bench::qk_norm);
    bench.family(2100, Bench::embedding_of_tokens);
    bench.family(2200, Bench::qk_norm_rotary);
    bench.family(400, Bench::activate);
    bench.family(1000, Bench::other_norms);
    bench.family(1200, Bench::unbiased_linear);
    bench.family(1000, Bench::classifier_terms);
    bench.family(2300, Bench::grouped_attention);
    bench.family(2350, Bench::grouped_rotary);
    bench.family(2400, Bench::grouped_qk_norm);
    bench.family(2500, Bench::activated_linear);
    bench.family(2600, Bench::classifier_of_large_logits);
    bench.family(2700, Bench::attention_of_values_apart);
    bench.cases
}

/// The pinned bits of [`cases`] on the CPU: each operation, which is the first word of its cases' names, with
/// the SHA-256 of its outputs.
pub fn cpu_bits() -> BTreeMap<&'static str, &'static str> {
    let families = [
        embedding::CPU_BITS,
        norm::CPU_BITS,
        linear::CPU_BITS,
        attention::CPU_BITS,
        classifier::CPU_BITS,
        optimizer::CPU_BITS,
        muon::CPU_BITS,
        qk_norm::CPU_BITS,
        rotary::CPU_BITS,
        activate::CPU_BITS,
    ];
    families.into_iter().flatten().copied().collect()
}

/// An input: the device's buffer and the values it holds after rounding to its element type.
struct Input<O: Ops> {
    buf: O::Buf,
    values: Vec<f64>,
}

struct Bench<'a, O: Ops> {
    ops: &'a mut O,
    limits: Limits,
    cases: Vec<Case>,
    seed: u64,
}

impl<O: Ops> Bench<'_, O> {
    fn family(&mut self, seed: u64, cases: fn(&mut Self)) {
        self.seed = seed;
        cases(self);
    }

    fn input_of(&mut self, role: Role, values: &[f32]) -> Input<O> {
        let mut buf = self.ops.alloc(role, values.len()).unwrap();
        self.ops.upload(&mut buf, values).unwrap();
        let values = self.read(&buf, values.len()).into_iter().map(f64::from).collect();
        Input { buf, values }
    }

    /// Random values that no other input has.
    fn input(&mut self, role: Role, len: usize, scale: f64) -> Input<O> {
        self.seed += 1;
        let values = random(self.seed, len, scale);
        self.input_of(role, &values)
    }

    fn poisoned(&mut self, role: Role, len: usize) -> O::Buf {
        self.input_of(role, &vec![f32::NAN; len]).buf
    }

    /// An output of a `write` operation: poisoned on `Set`, random on `Add`; and what it held, zeros on
    /// `Set`.
    fn target(&mut self, len: usize, write: Write) -> Input<O> {
        match write {
            Write::Set => Input { buf: self.poisoned(Role::F32, len), values: vec![0.0; len] },
            Write::Add => self.input(Role::F32, len, 1.0),
        }
    }

    fn read(&mut self, buf: &O::Buf, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        self.ops.download(buf, &mut values).unwrap();
        values
    }

    /// The bits of what [`Self::read`] reads.
    fn bits(&mut self, buf: &O::Buf, len: usize) -> Vec<u32> {
        self.read(buf, len).into_iter().map(f32::to_bits).collect()
    }

    fn ids(&mut self, len: usize, vocab: usize) -> (O::Ids, Vec<u16>) {
        self.seed += 1;
        let key = Key::new(self.seed, "ops/testing/ids");
        let values: Vec<u16> = (0..len as u64).map(|i| (key.uniform(0, i) * vocab as f64) as u16).collect();
        let mut ids = self.ops.alloc_ids(len).unwrap();
        self.ops.upload_ids(&mut ids, &values).unwrap();
        (ids, values)
    }

    fn result(&mut self, name: &str, buf: &O::Buf, want: Vec<f64>) {
        let got = self.read(buf, want.len());
        self.cases.push(Case { name: name.to_owned(), got, want });
    }

    fn scratch(&mut self, rows: Rows, channels: usize, heads: Heads, vocab: Vocab) {
        let params = ParamCount::default();
        self.ops
            .alloc_scratch(&ScratchShape {
                rows,
                least_seq: rows.seq,
                channels,
                heads,
                vocab,
                backward: true,
                bias: true,
                mlp: MlpShape::gpt2(channels),
                params,
            })
            .unwrap();
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
