//! Times every operation of a training step by itself, on random data: what `runner bench` prints, so
//! that a regression names its operation.

use super::Cuda;
use super::linear::{Shape, gemm_keys};
use super::memory::Buf;
use crate::ops::{AdamW, Ops, ParamSlot, Result, Role, ScratchShape, Write};

/// One operation's time, with the least bytes it must move and the arithmetic it must do.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    pub name: String,
    /// How often a micro-step of a model with `layers` layers runs it: `calls_per_layer * layers + calls`.
    pub calls_per_layer: u32,
    pub calls: u32,
    pub us: f64,
    pub bytes: f64,
    pub flops: f64,
}

impl OpTime {
    pub fn gb_per_s(&self) -> f64 {
        self.bytes / self.us * 1e-3
    }

    pub fn tflops(&self) -> f64 {
        self.flops / self.us * 1e-6
    }

    /// Its share of a micro-step in microseconds.
    pub fn total_us(&self, layers: u32) -> f64 {
        self.us * f64::from(self.calls_per_layer * layers + self.calls)
    }
}

/// Runs of each operation after one to warm up; the median counts.
const REPEATS: usize = 7;

/// The operations of one micro-step at `shape`. Takes about thirteen activations of width C in memory.
pub fn operations(cuda: &mut Cuda, shape: &ScratchShape) -> Result<Vec<OpTime>> {
    cuda.alloc_scratch(shape)?;
    let mut bench = Bench::new(cuda, shape)?;
    bench.pointwise()?;
    bench.attention()?;
    bench.products()?;
    bench.classifier()?;
    bench.optimizer()?;
    Ok(bench.times)
}

struct Bench<'a> {
    cuda: &'a mut Cuda,
    shape: ScratchShape,
    /// (n, 4C) each.
    wide: [Buf; 3],
    /// (n, C) each.
    narrow: [Buf; 4],
    statistics: [Buf; 2],
    weight: Buf,
    gradient: Buf,
    times: Vec<OpTime>,
}

impl<'a> Bench<'a> {
    fn new(cuda: &'a mut Cuda, shape: &ScratchShape) -> Result<Bench<'a>> {
        let (n, c) = (shape.rows.count(), shape.channels);
        let mut random = |role, len, seed| {
            let mut buf = cuda.alloc(role, len)?;
            cuda.fill_random(&mut buf, seed)?;
            Ok(buf)
        };
        let largest = (shape.vocab.padded * c).max(4 * c * c);
        let wide = [
            random(Role::Activation, 4 * n * c, 1)?,
            random(Role::Activation, 4 * n * c, 2)?,
            random(Role::Activation, 4 * n * c, 3)?,
        ];
        let mut narrow = || random(Role::Activation, n * c, 4);
        let narrow = [narrow()?, narrow()?, narrow()?, narrow()?];
        let statistics = [random(Role::F32, n * shape.heads.heads.max(1), 5)?, random(Role::F32, n, 6)?];
        let weight = random(Role::Param, largest, 7)?;
        let gradient = random(Role::F32, largest, 8)?;
        Ok(Bench { cuda, shape: *shape, wide, narrow, statistics, weight, gradient, times: Vec::new() })
    }

    fn element(&self) -> f64 {
        self.cuda.dtype(Role::Activation).size() as f64
    }

    fn record(
        &mut self,
        name: &str,
        calls: (u32, u32),
        bytes: f64,
        flops: f64,
        mut run: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        run(self)?;
        let mut times = Vec::with_capacity(REPEATS);
        for _ in 0..REPEATS {
            let (start, end) = self.cuda.marks()?;
            start.record()?;
            run(self)?;
            end.record()?;
            times.push(f64::from(end.ms_since(&start)?) * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let (calls_per_layer, calls) = calls;
        self.times.push(OpTime { name: name.to_owned(), calls_per_layer, calls, us: times[REPEATS / 2], bytes, flops });
        Ok(())
    }

    fn pointwise(&mut self) -> Result<()> {
        let ScratchShape { rows, channels: c, vocab, .. } = self.shape;
        let n = rows.count();
        let tensor = (n * c) as f64 * self.element();
        let mut ids = self.cuda.alloc_ids(n)?;
        let tokens: Vec<u16> = (0..n).map(|i| (i * 7919 % vocab.used) as u16).collect();
        self.cuda.upload_ids(&mut ids, &tokens)?;
        let positions = self.cuda.alloc(Role::Param, rows.seq * c)?;
        let mut dwpe = self.cuda.alloc(Role::F32, rows.seq * c)?;
        self.record("embedding", (0, 1), 2.0 * tensor, 0.0, |b| {
            b.cuda.embedding(&mut b.narrow[0], &ids, &b.weight, &positions, rows, c)
        })?;
        self.record("embedding_backward", (0, 1), 2.0 * tensor, 0.0, |b| {
            b.cuda.embedding_backward(&mut b.gradient, &mut dwpe, Write::Add, &b.narrow[0], &ids, rows, c)
        })?;
        let affine = self.cuda.alloc(Role::Param, 4 * c)?;
        self.record("residual_layernorm", (2, 0), 4.0 * tensor, 0.0, |b| {
            let [x, branch, residual, out] = &mut b.narrow;
            let [mean, rstd] = &mut b.statistics;
            b.cuda.residual_layernorm(residual, out, mean, rstd, x, branch, &affine, &affine, n, c)
        })?;
        let mut dbias = self.cuda.alloc(Role::F32, 4 * c)?;
        self.record("layernorm_backward", (2, 1), 4.0 * tensor, 0.0, |b| {
            let [dx, dout, x, _] = &mut b.narrow;
            let [mean, rstd] = &b.statistics;
            b.cuda.layernorm_backward(dx, Write::Add, &mut b.gradient, &mut dbias, Write::Add, dout, x, &affine, mean, rstd, n, c)
        })?;
        self.record("gelu", (1, 0), 8.0 * tensor, 0.0, |b| {
            let [pre, out, _] = &mut b.wide;
            super::launch::gelu::forward(&b.cuda.kernels, "gelu", out, pre, 4 * n * c)
        })?;
        self.record("gelu_backward", (1, 0), 12.0 * tensor, 0.0, |b| {
            let [dpre, pre, _] = &mut b.wide;
            let bytes = super::launch::reduce::partials_bytes(n as u64, 4 * c as u64);
            let partials = b.cuda.scratch.get(&mut b.cuda.memory, super::scratch::Use::GeluPartials, bytes)?;
            super::launch::gelu::backward_in_place(&b.cuda.kernels, "gelu", partials, dpre, pre, n, 4 * c)
        })?;
        for (name, width, per_layer) in [("bias gradient, C", c, 2), ("bias gradient, 3C", 3 * c, 1)] {
            self.record(name, (per_layer, 0), (n * width) as f64 * self.element(), 0.0, |b| {
                let bytes = super::launch::reduce::partials_bytes(n as u64, width as u64);
                let partials = b.cuda.scratch.get(&mut b.cuda.memory, super::scratch::Use::ColumnPartials, bytes)?;
                super::launch::reduce::column_sum(&b.cuda.kernels, "bias", partials, &b.wide[0], n, width)
            })?;
        }
        Ok(())
    }

    fn attention(&mut self) -> Result<()> {
        // GELU's gradient has shrunk it, and small numbers are quick to multiply.
        self.cuda.fill_random(&mut self.wide[0], 1)?;
        let ScratchShape { rows, channels: c, heads, .. } = self.shape;
        let tensor = (rows.count() * c) as f64 * self.element();
        // Two products of T x T x HS a head, half of them masked; five in the gradient.
        let product = (rows.batch * rows.seq * rows.seq * c) as f64;
        self.record("attention", (1, 0), 4.0 * tensor, 2.0 * product, |b| {
            b.cuda.attention(&mut b.narrow[0], &mut b.statistics[0], &b.wide[0], rows, heads)
        })?;
        self.record("attention_backward", (1, 0), 8.0 * tensor, 5.0 * product, |b| {
            let [qkv, dqkv, _] = &mut b.wide;
            b.cuda.attention_backward(dqkv, &b.narrow[1], qkv, &b.narrow[0], &b.statistics[0], rows, heads)
        })
    }

    fn products(&mut self) -> Result<()> {
        let (n, c) = (self.shape.rows.count() as u64, self.shape.channels as u64);
        let options = self.cuda.options.clone();
        for key in gemm_keys(&self.shape, &options).into_iter().filter(|key| key.rows == n && key.c_in.max(key.c_out) <= 4 * c) {
            let bytes = (key.rows * (key.c_in + key.c_out) + key.c_in * key.c_out) as f64 * self.element();
            self.record(&key.to_string(), (1, 0), bytes, key.flops(), |b| {
                use super::gemm::plan::Product;
                let [left, right, out] = &mut b.wide;
                match key.product {
                    Product::BackwardWeight => b.cuda.run_gemm(key, left, right, &mut b.gradient, &b.narrow[0]),
                    Product::Forward | Product::BackwardInput => b.cuda.run_gemm(key, left, &b.weight, out, right),
                }
            })?;
        }
        Ok(())
    }

    fn classifier(&mut self) -> Result<()> {
        let ScratchShape { rows, channels, vocab, .. } = self.shape;
        let n = rows.count();
        let mut targets = self.cuda.alloc_ids(n)?;
        let tokens: Vec<u16> = (0..n).map(|i| (i * 104_729 % vocab.used) as u16).collect();
        self.cuda.upload_ids(&mut targets, &tokens)?;
        let mut losses = self.cuda.alloc(Role::F32, n)?;
        let product = Shape { n, c_in: channels, c_out: vocab.padded };
        let flops = 6.0 * product.n as f64 * product.c_in as f64 * product.c_out as f64;
        let bytes = 4.0 * (n * vocab.padded) as f64 * self.element();
        self.record("classifier", (0, 1), bytes, flops, |b| {
            let [x, dx, ..] = &mut b.narrow;
            b.cuda.classifier(&mut losses, 0, dx, &mut b.gradient, x, &b.weight, &targets, n, channels, vocab, 1e-4, Write::Add)
        })
    }

    /// Once a step, not a micro-step: listed with no calls.
    fn optimizer(&mut self) -> Result<()> {
        let len = self.gradient.len();
        let mut moments = [self.cuda.alloc(Role::F32, len)?, self.cuda.alloc(Role::F32, len)?, self.cuda.alloc(Role::F32, len)?];
        let update = AdamW {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            correction1: 1.0,
            correction2: 1.0,
            grad_scale: 1.0,
            rounding_key: [1, 2],
            step: 1,
        };
        let width = self.element();
        self.record("adamw", (0, 0), len as f64 * (28.0 + width), 0.0, |b| {
            let [master, adam_m, adam_v] = &mut moments;
            let slot = ParamSlot {
                id: 0,
                param: &mut b.weight,
                master: Some(master),
                grad: &b.gradient,
                adam_m,
                adam_v,
                weight_decay: 0.1,
            };
            b.cuda.adamw(&mut [slot], &update)
        })?;
        self.record("sum_squares", (0, 0), 4.0 * len as f64, 0.0, |b| b.cuda.sum_squares(&[&b.gradient]).map(drop))?;
        self.record("merkle_roots", (0, 0), 4.0 * len as f64, 0.0, |b| b.cuda.merkle_roots(&[(&b.gradient, 4 * len)]).map(drop))
    }
}
