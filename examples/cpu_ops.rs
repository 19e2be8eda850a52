//! Times every operation of one GPT-2 124M training step on the CPU and prints a table.
//!
//! `cargo run --release --example cpu_ops -- [threads] [repeats] [batch] [seq] [avx512|avx2|baseline]`;
//! all threads, 5 repeats, B 4, T 64 and the widest instruction set where not given.
//! Each line is the minimum over the repeats, times the calls a step makes.

use std::time::Instant;

use runner::experiment::{Device, DeviceKind, Simd};
use runner::ops::cpu::Cpu;
use runner::ops::{AdamW, Heads, Ops, ParamSlot, Role, Rows, ScratchShape, Vocab, Write};

type Buf = <Cpu as Ops>::Buf;

struct Bench {
    repeats: usize,
    total_ms: f64,
}

impl Bench {
    /// `work` is floating-point operations (`"GFLOP/s"`) or bytes (`"GB/s"`) of one call.
    fn line(&mut self, name: &str, calls: usize, work: f64, unit: &str, mut call: impl FnMut()) {
        let mut best = f64::INFINITY;
        for _ in 0..self.repeats {
            let start = Instant::now();
            call();
            best = best.min(start.elapsed().as_secs_f64());
        }
        let step_ms = 1e3 * best * calls as f64;
        self.total_ms += step_ms;
        println!("{name:<34} {calls:>4} x {:>9.3} ms = {step_ms:>8.2} ms  {:>8.1} {unit}", 1e3 * best, work / best / 1e9);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(default, |arg| arg.parse().expect("a number"));
    let threads = number(0, 0);
    let mut bench = Bench { repeats: number(1, 5), total_ms: 0.0 };
    let simd = match args.get(4).map(String::as_str) {
        Some("avx512") => Simd::Avx512,
        Some("avx2") => Simd::Avx2,
        Some("baseline") => Simd::Baseline,
        _ => Simd::Auto,
    };
    let mut cpu = Cpu::new(&Device { kind: DeviceKind::Cpu, threads, simd }).expect("a CPU");
    let rows = Rows { batch: number(2, 4), seq: number(3, 64) };
    let (heads, vocab) = (Heads { heads: 12, head_size: 64 }, Vocab { used: 50257, padded: 50304 });
    let (layers, n, c) = (12, rows.count(), 768);
    cpu.alloc_scratch(&ScratchShape { rows, channels: c, heads, vocab, backward: true }).expect("scratch");
    println!("{}, {simd:?}; B {}, T {}, 12 layers, 768 channels", cpu.device_name(), rows.batch, rows.seq);

    let mut seed = 1u32;
    let mut random = |cpu: &mut Cpu, len: usize, scale: f32| -> Buf {
        let values: Vec<f32> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                scale * ((seed >> 8) as f32 / 8_388_608.0 - 1.0)
            })
            .collect();
        let mut buf = cpu.alloc(Role::F32, len).expect("memory");
        cpu.upload(&mut buf, &values).expect("upload");
        buf
    };
    let ids: Vec<u16> = (0..n).map(|i| (i * 7919 % vocab.used) as u16).collect();
    let mut tokens = cpu.alloc_ids(n).expect("ids");
    cpu.upload_ids(&mut tokens, &ids).expect("ids");

    let x = random(&mut cpu, n * c, 1.0);
    let gain = random(&mut cpu, c, 1.0);
    let shift = random(&mut cpu, c, 1.0);
    let wte = random(&mut cpu, vocab.padded * c, 0.02);
    let mut dwte = random(&mut cpu, vocab.padded * c, 0.02);
    let wpe = random(&mut cpu, 1024 * c, 0.02);
    let mut dwpe = random(&mut cpu, 1024 * c, 0.02);
    let (mut out, mut residual, mut mean, mut rstd) =
        (random(&mut cpu, n * c, 1.0), random(&mut cpu, n * c, 1.0), random(&mut cpu, n, 1.0), random(&mut cpu, n, 1.0));
    let (mut dgain, mut dshift) = (random(&mut cpu, c, 1.0), random(&mut cpu, c, 1.0));
    let row_bytes = 4.0 * (n * c) as f64;

    bench.line("embedding", 1, 3.0 * row_bytes, "GB/s", || cpu.embedding(&mut out, &tokens, &wte, &wpe, rows, c).unwrap());
    bench.line("residual_layernorm", 2 * layers + 1, 4.0 * row_bytes, "GB/s", || {
        cpu.residual_layernorm(&mut residual, &mut out, &mut mean, &mut rstd, &x, &x, &gain, &shift, n, c).unwrap();
    });
    bench.line("layernorm_backward", 2 * layers + 1, 4.0 * row_bytes, "GB/s", || {
        cpu.layernorm_backward(
            &mut out,
            Write::Add,
            &mut dgain,
            &mut dshift,
            Write::Set,
            &x,
            &residual,
            &gain,
            &mean,
            &rstd,
            n,
            c,
        )
        .unwrap();
    });
    for (name, c_in, c_out) in [("qkv", c, 3 * c), ("attproj", c, c), ("fc", c, 4 * c), ("fcproj", 4 * c, c)] {
        let input = random(&mut cpu, n * c_in, 1.0);
        let weight = random(&mut cpu, c_in * c_out, 0.02);
        let bias = random(&mut cpu, c_out, 0.02);
        let (mut pre, mut act, mut dx) =
            (random(&mut cpu, n * c_out, 1.0), random(&mut cpu, n * c_out, 1.0), random(&mut cpu, n * c_in, 1.0));
        let (mut dweight, mut dbias) = (random(&mut cpu, c_in * c_out, 1.0), random(&mut cpu, c_out, 1.0));
        let flops = 2.0 * (n * c_in * c_out) as f64;
        bench.line(&format!("linear {name}"), layers, flops, "GFLOP/s", || {
            if name == "fc" {
                cpu.linear_gelu(&mut act, &mut pre, &input, &weight, &bias, n, c_in, c_out).unwrap();
            } else {
                cpu.linear(&mut pre, &input, &weight, Some(&bias), n, c_in, c_out).unwrap();
            }
        });
        bench.line(&format!("linear_backward_input {name}"), layers, flops, "GFLOP/s", || {
            if name == "fcproj" {
                cpu.linear_backward_input_gelu(&mut dx, &pre, &weight, &input, n, c_in, c_out).unwrap();
            } else {
                cpu.linear_backward_input(&mut dx, &pre, &weight, n, c_in, c_out).unwrap();
            }
        });
        bench.line(&format!("linear_backward_weight {name}"), layers, flops, "GFLOP/s", || {
            cpu.linear_backward_weight(&mut dweight, Some(&mut dbias), &pre, &input, n, c_in, c_out, Write::Set).unwrap();
        });
    }
    let qkv = random(&mut cpu, 3 * n * c, 1.0);
    let mut dqkv = random(&mut cpu, 3 * n * c, 1.0);
    let mut lse = random(&mut cpu, n * heads.heads, 1.0);
    let causal_flops = 2.0 * (n * rows.seq * c) as f64;
    bench.line("attention", layers, causal_flops, "GFLOP/s", || cpu.attention(&mut out, &mut lse, &qkv, rows, heads).unwrap());
    bench.line("attention_backward", layers, 2.5 * causal_flops, "GFLOP/s", || {
        cpu.attention_backward(&mut dqkv, &x, &qkv, &out, &lse, rows, heads).unwrap();
    });
    let mut losses = random(&mut cpu, n, 1.0);
    let logits_flops = 2.0 * (n * c * vocab.padded) as f64;
    bench.line("classifier", 1, 3.0 * logits_flops, "GFLOP/s", || {
        cpu.classifier(&mut losses, 0, &mut out, &mut dwte, &x, &wte, &tokens, n, c, vocab, 1.0 / n as f32, Write::Set).unwrap();
    });
    bench.line("embedding_backward", 1, 2.0 * row_bytes, "GB/s", || {
        cpu.embedding_backward(&mut dwte, &mut dwpe, Write::Set, &x, &tokens, rows, c).unwrap();
    });

    let params = 124_475_904;
    let grad = random(&mut cpu, params, 1.0);
    let (mut param, mut m, mut v) =
        (random(&mut cpu, params, 1.0), cpu.alloc(Role::F32, params).unwrap(), cpu.alloc(Role::F32, params).unwrap());
    bench.line("sum_squares", 1, 4.0 * params as f64, "GB/s", || {
        cpu.sum_squares(&[&grad]).unwrap();
    });
    let update = AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        correction1: 1.1,
        correction2: 1.2,
        grad_scale: 0.5,
        rounding_key: [0; 2],
        step: 1,
    };
    bench.line("adamw", 1, 28.0 * params as f64, "GB/s", || {
        let slot =
            ParamSlot { id: 0, param: &mut param, master: None, grad: &grad, adam_m: &mut m, adam_v: &mut v, weight_decay: 0.1 };
        cpu.adamw(&mut [slot], &update).unwrap();
    });
    println!("one step: {:.0} ms", bench.total_ms);
}
