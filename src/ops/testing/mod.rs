//! Tests of a device: one body an operation, generic over [`Ops`], against plain f64.
//!
//! A device's own tests call [`check_all`] with the tolerance its element types allow. Outputs are
//! filled with NaN before every call, so that an element nobody writes fails. [`cases`] gives the
//! raw outputs, which a device compares bit for bit between its own settings.

mod decoding;
mod reference;

use super::{AdamW, Heads, Ops, ParamSlot, Role, Rows, ScratchShape, Vocab, Write};
use crate::rng::Key;
pub use decoding::{decoding_alone_and_together, decoding_cases};
use reference::AttentionShape;

/// How far an output may be from the f64 reference: `|got - want| <= relative * (|want| + rms(want))`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub relative: f64,
}

/// What a device computed and what the reference says.
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

/// Compares every operation of a device with the reference.
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
                "{}: element {i} is {got}, the reference {want}, allowed {allowed:e}",
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
    bench.embedding();
    bench.layernorm();
    bench.linear();
    bench.attention();
    bench.classifier();
    bench.optimizer();
    bench.cases
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
        let params = super::ParamCount::default();
        self.ops
            .alloc_scratch(&ScratchShape { rows, channels, heads, vocab, backward: true, params })
            .unwrap();
    }

    fn embedding(&mut self) {
        for (rows, channels, vocab, positions) in [
            (Rows { batch: 1, seq: 1 }, 1, 3, 1),
            (Rows { batch: 3, seq: 17 }, 70, 11, 20),
            (Rows { batch: 2, seq: 64 }, 48, 300, 64),
        ] {
            let (n, channels) = (rows.count(), self.limits.row(channels));
            let (ids, tokens) = self.ids(n, vocab);
            let wte = self.input(Role::Param, vocab * channels, 1.0);
            let wpe = self.input(Role::Param, positions * channels, 1.0);
            let mut out = self.poisoned(Role::Activation, n * channels);
            self.ops.embedding(&mut out, &ids, &wte.buf, &wpe.buf, rows, channels).unwrap();
            let at = |i: usize| {
                (
                    usize::from(tokens[i / channels]) * channels + i % channels,
                    (i / channels % rows.seq) * channels + i % channels,
                )
            };
            let want = (0..n * channels).map(|i| wte.values[at(i).0] + wpe.values[at(i).1]).collect();
            self.result(&format!("embedding {rows:?} {channels}"), &out, want);

            for write in [Write::Set, Write::Add] {
                let dout = self.input(Role::Activation, n * channels, 1.0);
                let mut dwte = self.input(Role::F32, vocab * channels, 1.0);
                let mut dwpe = self.target(positions * channels, write);
                for i in 0..n * channels {
                    dwte.values[at(i).0] += dout.values[i];
                    dwpe.values[at(i).1] += dout.values[i];
                }
                self.ops
                    .embedding_backward(&mut dwte.buf, &mut dwpe.buf, write, &dout.buf, &ids, rows, channels)
                    .unwrap();
                self.result(
                    &format!("embedding_backward dwte {rows:?} {channels} {write:?}"),
                    &dwte.buf,
                    dwte.values,
                );
                self.result(
                    &format!("embedding_backward dwpe {rows:?} {channels} {write:?}"),
                    &dwpe.buf,
                    dwpe.values,
                );
            }
        }
    }

    fn layernorm(&mut self) {
        for (n, c) in [(1, 3), (5, 16), (7, 67), (33, 130), (70, 768)] {
            let c = self.limits.row(c);
            let x = self.input(Role::Activation, n * c, 2.0);
            let branch = self.input(Role::Activation, n * c, 1.0);
            let weight = self.input(Role::Param, c, 1.0);
            let bias = self.input(Role::Param, c, 1.0);
            let [mut out, mut residual] = [(); 2].map(|()| self.poisoned(Role::Activation, n * c));
            let [mut mean, mut rstd] = [(); 2].map(|()| self.poisoned(Role::F32, n));
            self.ops.layernorm(&mut out, &mut mean, &mut rstd, &x.buf, &weight.buf, &bias.buf, n, c).unwrap();
            let (want, want_mean, want_rstd) =
                reference::layernorm(&x.values, &weight.values, &bias.values, c);
            self.result(&format!("layernorm {n} {c}"), &out, want);
            self.result(&format!("layernorm mean {n} {c}"), &mean, want_mean);
            self.result(&format!("layernorm rstd {n} {c}"), &rstd, want_rstd);

            let [mut out, mut mean2, mut rstd2] = [(Role::Activation, n * c), (Role::F32, n), (Role::F32, n)]
                .map(|(role, len)| self.poisoned(role, len));
            self.ops
                .residual_layernorm(
                    &mut residual,
                    &mut out,
                    &mut mean2,
                    &mut rstd2,
                    &x.buf,
                    &branch.buf,
                    &weight.buf,
                    &bias.buf,
                    n,
                    c,
                )
                .unwrap();
            self.result(
                &format!("residual {n} {c}"),
                &residual,
                x.values.iter().zip(&branch.values).map(|(x, b)| x + b).collect(),
            );
            let stored: Vec<f64> = self.read(&residual, n * c).into_iter().map(f64::from).collect();
            let (want, want_mean, want_rstd) = reference::layernorm(&stored, &weight.values, &bias.values, c);
            self.result(&format!("residual_layernorm {n} {c}"), &out, want);
            self.result(&format!("residual_layernorm mean {n} {c}"), &mean2, want_mean);
            self.result(&format!("residual_layernorm rstd {n} {c}"), &rstd2, want_rstd);

            for (dx_write, write) in [(Write::Set, Write::Set), (Write::Add, Write::Add)] {
                let dout = self.input(Role::Activation, n * c, 1.0);
                let mut dx = match dx_write {
                    Write::Set => {
                        Input { buf: self.poisoned(Role::Activation, n * c), values: vec![0.0; n * c] }
                    }
                    Write::Add => self.input(Role::Activation, n * c, 1.0),
                };
                let (mut dweight, mut dbias) = (self.target(c, write), self.target(c, write));
                self.ops
                    .layernorm_backward(
                        &mut dx.buf,
                        dx_write,
                        &mut dweight.buf,
                        &mut dbias.buf,
                        write,
                        &dout.buf,
                        &x.buf,
                        &weight.buf,
                        &mean,
                        &rstd,
                        n,
                        c,
                    )
                    .unwrap();
                let (want_dx, want_dw, want_db) =
                    reference::layernorm_backward(&dout.values, &x.values, &weight.values, c);
                self.result(
                    &format!("layernorm_backward dx {n} {c} {write:?}"),
                    &dx.buf,
                    sum(&dx.values, &want_dx),
                );
                self.result(
                    &format!("layernorm_backward dweight {n} {c} {write:?}"),
                    &dweight.buf,
                    sum(&dweight.values, &want_dw),
                );
                self.result(
                    &format!("layernorm_backward dbias {n} {c} {write:?}"),
                    &dbias.buf,
                    sum(&dbias.values, &want_db),
                );
            }
        }
    }

    fn linear(&mut self) {
        // Past 256 the sums and the row chunks are cut, past 384 the tasks; 64, 16 and 6 are tile sides.
        for (n, c_in, c_out) in [
            (1, 1, 1),
            (5, 7, 3),
            (6, 64, 64),
            (13, 520, 70),
            (300, 65, 40),
            (257, 16, 130),
            (390, 8, 67),
            (12, 130, 600),
        ] {
            let (c_in, c_out) = (self.limits.row(c_in), self.limits.row(c_out));
            let shape = format!("{n} {c_in} {c_out}");
            let x = self.input(Role::Activation, n * c_in, 1.0);
            let weight = self.input(Role::Param, c_out * c_in, 0.3);
            let bias = self.input(Role::Param, c_out, 1.0);
            let [mut out, mut plain, mut act, mut pre, mut again] =
                [(); 5].map(|()| self.poisoned(Role::Activation, n * c_out));
            self.ops.linear(&mut out, &x.buf, &weight.buf, Some(&bias.buf), n, c_in, c_out).unwrap();
            self.ops.linear(&mut plain, &x.buf, &weight.buf, None, n, c_in, c_out).unwrap();
            self.ops.linear_gelu(&mut act, &mut pre, &x.buf, &weight.buf, &bias.buf, n, c_in, c_out).unwrap();
            self.ops.gelu(&mut again, &pre, n * c_out).unwrap();
            let want = reference::linear(&x.values, &weight.values, Some(&bias.values), n, c_in, c_out);
            let bare = reference::linear(&x.values, &weight.values, None, n, c_in, c_out);
            let stored: Vec<f64> = self.read(&pre, n * c_out).into_iter().map(f64::from).collect();
            self.result(&format!("linear {shape}"), &out, want.clone());
            self.result(&format!("linear without bias {shape}"), &plain, bare);
            self.result(&format!("linear_gelu pre {shape}"), &pre, want.clone());
            self.result(
                &format!("linear_gelu out {shape}"),
                &act,
                want.iter().map(|x| reference::gelu(*x)).collect(),
            );
            self.result(
                &format!("gelu {shape}"),
                &again,
                stored.iter().map(|x| reference::gelu(*x)).collect(),
            );

            let dout = self.input(Role::Activation, n * c_out, 1.0);
            let pre = self.input(Role::Activation, n * c_in, 1.5);
            let [mut dx, mut dpre] = [(); 2].map(|()| self.poisoned(Role::Activation, n * c_in));
            self.ops.linear_backward_input(&mut dx, &dout.buf, &weight.buf, n, c_in, c_out).unwrap();
            self.ops
                .linear_backward_input_gelu(&mut dpre, &dout.buf, &weight.buf, &pre.buf, n, c_in, c_out)
                .unwrap();
            let want = reference::linear_backward_input(&dout.values, &weight.values, n, c_in, c_out);
            self.result(&format!("linear_backward_input {shape}"), &dx, want.clone());
            let want =
                want.iter().zip(&pre.values).map(|(d, x)| d * reference::gelu_derivative(*x)).collect();
            self.result(&format!("linear_backward_input_gelu {shape}"), &dpre, want);

            let (want_dw, want_db) =
                reference::linear_backward_weight(&dout.values, &x.values, n, c_in, c_out);
            for write in [Write::Set, Write::Add] {
                let (mut dweight, mut dbias) = (self.target(c_out * c_in, write), self.target(c_out, write));
                self.ops
                    .linear_backward_weight(
                        &mut dweight.buf,
                        Some(&mut dbias.buf),
                        &dout.buf,
                        &x.buf,
                        n,
                        c_in,
                        c_out,
                        write,
                    )
                    .unwrap();
                self.result(
                    &format!("linear_backward_weight {shape} {write:?}"),
                    &dweight.buf,
                    sum(&dweight.values, &want_dw),
                );
                self.result(
                    &format!("linear_backward_weight dbias {shape} {write:?}"),
                    &dbias.buf,
                    sum(&dbias.values, &want_db),
                );
            }
        }
    }

    fn attention(&mut self) {
        for (batch, seq, heads, head_size) in
            [(1, 1, 1, 16), (2, 5, 2, 16), (1, 50, 2, 24), (2, 97, 1, 80), (1, 130, 2, 64), (1, 49, 1, 128)]
        {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let shape = AttentionShape { batch, seq, heads, head_size };
            let name = format!("{batch} {seq} {heads} {head_size}");
            let (rows, heads) = (Rows { batch, seq }, Heads { heads, head_size });
            let len = rows.count() * heads.heads * head_size;
            self.scratch(rows, heads.heads * head_size, heads, Vocab { used: 1, padded: self.limits.row(1) });
            let qkv = self.input(Role::Activation, 3 * len, 1.0);
            let mut out = self.poisoned(Role::Activation, len);
            let mut lse = self.poisoned(Role::F32, rows.count() * heads.heads);
            self.ops.attention(&mut out, &mut lse, &qkv.buf, rows, heads).unwrap();
            let (want, want_lse) = reference::attention(&qkv.values, shape);
            self.result(&format!("attention {name}"), &out, want);
            self.result(&format!("attention lse {name}"), &lse, want_lse);
            let dout = self.input(Role::Activation, len, 1.0);
            let mut dqkv = self.poisoned(Role::Activation, 3 * len);
            self.ops.attention_backward(&mut dqkv, &dout.buf, &qkv.buf, &out, &lse, rows, heads).unwrap();
            self.result(
                &format!("attention_backward {name}"),
                &dqkv,
                reference::attention_backward(&dout.values, &qkv.values, shape),
            );
        }
    }

    fn classifier(&mut self) {
        for (n, channels, used, padded) in
            [(1, 4, 3, 8), (3, 8, 10, 16), (300, 16, 257, 384), (7, 48, 1000, 1024)]
        {
            let (channels, padded) = (self.limits.row(channels), self.limits.row(padded));
            let vocab = Vocab { used, padded };
            let rows = Rows { batch: 1, seq: n };
            self.scratch(rows, channels, Heads { heads: 1, head_size: channels }, vocab);
            let x = self.input(Role::Activation, n * channels, 1.0);
            let wte = self.input(Role::Param, padded * channels, 0.5);
            let (ids, targets) = self.ids(n, used);
            let scale = 1.0 / n as f32;
            let (want, want_dx, want_dwte) = reference::classifier(
                &x.values,
                &wte.values,
                &targets,
                channels,
                used,
                padded,
                f64::from(scale),
            );
            // Losses go behind two that must stay.
            let behind: Vec<f64> = [2.0, 3.0].into_iter().chain(want).collect();
            let mut losses = self.input_of(Role::F32, &[&[2.0, 3.0][..], &vec![f32::NAN; n]].concat()).buf;
            self.ops.classifier_loss(&mut losses, 2, &x.buf, &wte.buf, &ids, n, channels, vocab).unwrap();
            self.result(&format!("classifier_loss {n} {channels} {used}"), &losses, behind.clone());
            for write in [Write::Set, Write::Add] {
                let mut losses =
                    self.input_of(Role::F32, &[&[2.0, 3.0][..], &vec![f32::NAN; n]].concat()).buf;
                let mut dx = self.poisoned(Role::Activation, n * channels);
                let mut dwte = self.target(padded * channels, write);
                self.ops
                    .classifier(
                        &mut losses,
                        2,
                        &mut dx,
                        &mut dwte.buf,
                        &x.buf,
                        &wte.buf,
                        &ids,
                        n,
                        channels,
                        vocab,
                        scale,
                        write,
                    )
                    .unwrap();
                self.result(
                    &format!("classifier losses {n} {channels} {used} {write:?}"),
                    &losses,
                    behind.clone(),
                );
                self.result(&format!("classifier dx {n} {channels} {used} {write:?}"), &dx, want_dx.clone());
                self.result(
                    &format!("classifier dwte {n} {channels} {used} {write:?}"),
                    &dwte.buf,
                    sum(&dwte.values, &want_dwte),
                );
            }
        }
    }

    fn optimizer(&mut self) {
        for len in [1, 17, 70_001] {
            let x = self.input(Role::F32, len, 1.0);
            let squares = self.ops.sum_squares(&[&x.buf, &x.buf]).unwrap();
            assert_eq!(squares[0].to_bits(), squares[1].to_bits());
            let got = self.input_of(Role::F32, &[squares[0] as f32]).buf;
            self.result(&format!("sum_squares {len}"), &got, vec![x.values.iter().map(|x| x * x).sum()]);

            let (a, b) = (self.input(Role::F32, len, 1.0), self.input(Role::F32, len, 1.0));
            let mut total = a.buf;
            self.ops.add(&mut total, &b.buf).unwrap();
            self.result(&format!("add {len}"), &total, sum(&a.values, &b.values));
            let mut row = self.poisoned(Role::F32, 1);
            self.ops.copy(&mut row, 0, &total, len - 1, 1).unwrap();
            self.result(&format!("copy {len}"), &row, vec![a.values[len - 1] + b.values[len - 1]]);

            self.adamw(len);
        }
        self.parts();
    }

    /// What devices that share a tensor do to its parts gives the bits of one that has it whole.
    fn parts(&mut self) {
        let chunk = self.ops.chunk();
        let len = 3 * chunk - 17;
        let parts = [0..chunk, chunk..2 * chunk, 2 * chunk..len];
        let (grad, more) = (self.input(Role::F32, len, 1.0).buf, self.input(Role::F32, len, 1.0).buf);

        let whole = self.ops.sum_squares(&[&grad]).unwrap()[0];
        let chunks: Vec<f64> =
            parts.iter().flat_map(|part| self.ops.chunk_squares(&[(&grad, part.clone())]).unwrap()).collect();
        assert_eq!(chunks, self.ops.chunk_squares(&[(&grad, 0..chunk), (&grad, chunk..len)]).unwrap());
        assert_eq!(self.ops.fold_squares(&chunks).to_bits(), whole.to_bits());
        // More chunks than threads of any kernel that adds them.
        let many: Vec<f64> = (0..1000).map(|i| 1.0 / f64::from(i + 1)).collect();
        assert!((self.ops.fold_squares(&many) - many.iter().sum::<f64>()).abs() < 1e-12);

        let bytes = |ops: &mut O, buf: &O::Buf, elements: usize, size: usize| {
            let mut bytes = vec![0; elements * size];
            ops.read_bytes(buf, &mut bytes).unwrap();
            bytes
        };
        let wide = |ops: &mut O, values: &[u8]| {
            let mut buf = ops.alloc(Role::F32, values.len() / 4).unwrap();
            ops.write_bytes(&mut buf, values).unwrap();
            buf
        };
        let before = bytes(self.ops, &grad, len, 4);
        let mut sum = wide(self.ops, &before);
        self.ops.add(&mut sum, &more).unwrap();
        let mut by_parts = wide(self.ops, &before);
        let content = bytes(self.ops, &more, len, 4);
        for part in &parts {
            let piece = wide(self.ops, &content[4 * part.start..4 * part.end]);
            self.ops.add_part(&mut by_parts, part.start, &piece, 0, part.len()).unwrap();
        }
        assert!(bytes(self.ops, &sum, len, 4) == bytes(self.ops, &by_parts, len, 4), "add_part");

        // AdamW, with masters and (where parameters are narrow, rounded stochastically) without.
        let update = AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            correction1: 1.2,
            correction2: 1.1,
            grad_scale: 0.5,
            rounding_key: [3, 4],
            step: 5,
        };
        let size = self.ops.dtype(Role::Param).size();
        for masters in [true, false] {
            let run = |test: &mut Self, parts: &[std::ops::Range<usize>]| {
                let start = bytes(test.ops, &more, len, 4);
                let mut param = test.ops.alloc(Role::Param, len).unwrap();
                let values: Vec<f32> =
                    start.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                test.ops.upload(&mut param, &values).unwrap();
                let mut kept = Vec::new();
                for part in parts {
                    let mut master = wide(test.ops, &start[4 * part.start..4 * part.end]);
                    let (mut m, mut v) = (
                        test.ops.alloc(Role::F32, part.len()).unwrap(),
                        test.ops.alloc(Role::F32, part.len()).unwrap(),
                    );
                    let slot = ParamSlot {
                        id: 3,
                        at: part.start,
                        param: &mut param,
                        master: masters.then_some(&mut master),
                        grad: &grad,
                        grad_at: part.start,
                        adam_m: &mut m,
                        adam_v: &mut v,
                        weight_decay: 0.1,
                    };
                    test.ops.adamw(&mut [slot], &update).unwrap();
                    kept.extend([&master, &m, &v].map(|buf| bytes(test.ops, buf, part.len(), 4)));
                }
                let [master, m, v] =
                    [0, 1, 2].map(|k| kept.iter().skip(k).step_by(3).flatten().copied().collect::<Vec<u8>>());
                [bytes(test.ops, &param, len, size), master, m, v]
            };
            let whole = run(self, std::slice::from_ref(&(0..len)));
            assert!(run(self, &parts) == whole, "AdamW of parts, masters {masters}");
        }

        let mut piece = vec![0; 64];
        self.ops.read_at(&more, 4 * chunk, &mut piece).unwrap();
        assert_eq!(piece, content[4 * chunk..4 * chunk + 64]);
        self.ops.write_at(&mut by_parts, 4 * (chunk + 8), &piece).unwrap();
        let mut back = vec![0; 128];
        self.ops.read_at(&by_parts, 4 * chunk, &mut back).unwrap();
        assert_eq!(back[32..96], piece[..]);
    }

    fn adamw(&mut self, len: usize) {
        let update = AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            correction1: 1.0 / (1.0 - 0.9 * 0.9),
            correction2: 1.0 / (1.0 - 0.95 * 0.95),
            grad_scale: 0.5,
            rounding_key: [1, 2],
            step: 2,
        };
        let (mut param, grad) = (self.input(Role::Param, len, 1.0), self.input(Role::F32, len, 1.0));
        let master: Vec<f32> = param.values.iter().map(|p| *p as f32).collect();
        let mut master = self.input_of(Role::F32, &master);
        let mut m = self.input(Role::F32, len, 0.1);
        let v: Vec<f32> = random(self.seed, len, 0.3).into_iter().map(|x| x * x + 0.01).collect();
        let mut v = self.input_of(Role::F32, &v);
        let slot = ParamSlot {
            id: 3,
            at: 0,
            param: &mut param.buf,
            master: Some(&mut master.buf),
            grad: &grad.buf,
            grad_at: 0,
            adam_m: &mut m.buf,
            adam_v: &mut v.buf,
            weight_decay: 0.1,
        };
        self.ops.adamw(&mut [slot], &update).unwrap();
        let wide = |x: f32| f64::from(x);
        for i in 0..len {
            let g = grad.values[i] * wide(update.grad_scale);
            m.values[i] = wide(update.beta1) * m.values[i] + (1.0 - wide(update.beta1)) * g;
            v.values[i] = wide(update.beta2) * v.values[i] + (1.0 - wide(update.beta2)) * g * g;
            let root = (v.values[i] * wide(update.correction2)).sqrt() + wide(update.epsilon);
            let step = m.values[i] * wide(update.correction1) / root + 0.1 * master.values[i];
            master.values[i] -= wide(update.learning_rate) * step;
        }
        self.result(&format!("adamw m {len}"), &m.buf, m.values);
        self.result(&format!("adamw v {len}"), &v.buf, v.values);
        self.result(&format!("adamw master {len}"), &master.buf, master.values.clone());
        self.result(&format!("adamw param {len}"), &param.buf, master.values);
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
