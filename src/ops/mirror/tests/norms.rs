//! Layernorm and RMSNorm, with and without bias.

use super::*;
use crate::experiment::Simd;
use crate::ops::cpu::Cpu;

/// Whether there is a mean, and a bias.
pub(super) const KINDS: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

/// One kind of norm and its gradient, on inputs of its own.
pub(super) fn norms<O: Ops>(
    to: &mut Outputs<'_, O>,
    draw: &mut Draw,
    rows: usize,
    channels: usize,
    with_mean: bool,
    with_bias: bool,
) {
    let size = rows * channels;
    let named = |what: &str| format!("{what}, mean {with_mean}, bias {with_bias}, of {rows} x {channels}");
    let x = draw.buf(to.ops, Role::Activation, size, 1.0);
    let branch = draw.buf(to.ops, Role::Activation, size, 1.0);
    let weight = draw.buf(to.ops, Role::Param, channels, 1.0);
    let bias = draw.buf(to.ops, Role::Param, channels, 1.0);
    let bias = with_bias.then_some(&bias);
    let dout = draw.buf(to.ops, Role::Activation, size, 1e-3);
    let mut residual = to.ops.alloc(Role::Activation, size).expect("memory");
    let mut out = to.ops.alloc(Role::Activation, size).expect("memory");
    let [mut mean, mut rstd] = [(); 2].map(|()| to.ops.alloc(Role::F32, rows).expect("memory"));
    to.ops
        .layernorm(Layernorm {
            out: &mut out,
            mean: with_mean.then_some(&mut mean),
            rstd: &mut rstd,
            x: &x,
            weight: &weight,
            bias,
            rows,
            channels,
        })
        .expect("layernorm");
    to.add(named("layernorm"), &out, size);
    to.ops
        .residual_layernorm(ResidualLayernorm {
            residual: &mut residual,
            out: &mut out,
            mean: with_mean.then_some(&mut mean),
            rstd: &mut rstd,
            x: &x,
            branch: &branch,
            weight: &weight,
            bias,
            rows,
            channels,
        })
        .expect("residual_layernorm");
    to.add(named("residual"), &residual, size);
    to.add(named("residual_layernorm"), &out, size);
    to.add(named("mean"), &mean, rows);
    to.add(named("rstd"), &rstd, rows);
    let [mut dweight, mut dbias] = [(); 2].map(|()| draw.buf(to.ops, Role::F32, channels, 1.0));
    let mut dx = draw.buf(to.ops, Role::Activation, size, 1e-3);
    let mut again = to.ops.alloc(Role::Activation, size).expect("memory");
    for write in [Write::Set, Write::Add] {
        to.ops
            .layernorm_backward(LayernormBackward {
                again: (write == Write::Set).then_some(NormAgain { out: &mut again, bias }),
                dx: &mut dx,
                dx_write: write,
                dweight: &mut dweight,
                dbias: with_bias.then_some(&mut dbias),
                write,
                dout: &dout,
                x: &residual,
                weight: &weight,
                mean: with_mean.then_some(&mean),
                rstd: &rstd,
                rows,
                channels,
            })
            .expect("layernorm_backward");
        to.add(named(&format!("layernorm_backward dx {write:?}")), &dx, size);
        to.add(named("layernorm_backward again"), &again, size);
        to.add(named(&format!("layernorm_backward dweight {write:?}")), &dweight, channels);
        to.add(named(&format!("layernorm_backward dbias {write:?}")), &dbias, channels);
    }
}

/// Rows that take several warps of a GPU, and those of its kernel for wide rows.
pub(super) fn wide_norms<O: Ops>(ops: &mut O, numbers: Numbers) -> Vec<(String, Vec<u32>)> {
    let (mut draw, mut to) = (Draw { numbers, count: 0 }, Outputs { ops, named: Vec::new() });
    for channels in [2056, 4096, 4104, 8200, 16_384] {
        for (mean, bias) in KINDS {
            norms(&mut to, &mut draw, 9, channels, mean, bias);
        }
    }
    to.named
}

/// What a norm, a layer with GELU and their gradients make of no bias, and of zeros in its place.
fn without_and_with_zeros<O: Ops>(
    ops: &mut O,
    numbers: Numbers,
    with_mean: bool,
) -> [Vec<(String, Vec<u32>)>; 2] {
    let (rows, channels) = (37, 72);
    let shape = LinearShape { rows, c_in: channels, c_out: 40 };
    let zeros = filled(ops, Role::Param, &vec![0.0; channels]);
    [None, Some(&zeros)].map(|bias| {
        let mut draw = Draw { numbers, count: 0 };
        let x = draw.buf(ops, Role::Activation, rows * channels, 1.0);
        let dout = draw.buf(ops, Role::Activation, rows * channels, 1.0);
        let weight = draw.buf(ops, Role::Param, channels, 1.0);
        let matrix = draw.buf(ops, Role::Param, shape.weight(), 1.0);
        let [mut out, mut dx] =
            [(); 2].map(|()| ops.alloc(Role::Activation, rows * channels).expect("memory"));
        let [mut act, mut pre] =
            [(); 2].map(|()| ops.alloc(Role::Activation, shape.output()).expect("memory"));
        let [mut mean, mut rstd] = [(); 2].map(|()| ops.alloc(Role::F32, rows).expect("memory"));
        let [mut dweight, mut dbias] = [(); 2].map(|()| ops.alloc(Role::F32, channels).expect("memory"));
        let mean_of = with_mean.then_some(&mut mean);
        let (out_of, rstd_of, x, weight) = (&mut out, &mut rstd, &x, &weight);
        let op = Layernorm { out: out_of, mean: mean_of, rstd: rstd_of, x, weight, bias, rows, channels };
        ops.layernorm(op).expect("layernorm");
        let op = LinearActivate {
            out: &mut act,
            pre: &mut pre,
            x: &out,
            weight: &matrix,
            bias,
            function: Nonlinearity::Gelu,
            shape,
        };
        ops.linear_activate(op).expect("linear_gelu");
        let op = LayernormBackward {
            again: None,
            dx: &mut dx,
            dx_write: Write::Set,
            dweight: &mut dweight,
            dbias: bias.is_some().then_some(&mut dbias),
            write: Write::Set,
            dout: &dout,
            x,
            weight,
            mean: with_mean.then_some(&mean),
            rstd: &rstd,
            rows,
            channels,
        };
        ops.layernorm_backward(op).expect("layernorm_backward");
        let mut to = Outputs { ops, named: Vec::new() };
        to.add("norm", &out, rows * channels);
        to.add("gelu", &act, shape.output());
        to.add("dx", &dx, rows * channels);
        to.add("dweight", &dweight, channels);
        to.named
    })
}

#[test]
fn no_bias_has_the_bits_of_a_bias_of_zeros() {
    for with_mean in [true, false] {
        let mut mirror = mirror(2, Simd::Auto);
        let [without, zeros] = without_and_with_zeros(&mut mirror, Numbers::Mixed, with_mean);
        assert_eq!(differences(&without, &zeros, "without bias"), 0, "mean {with_mean}");
        let keys = DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto };
        let mut cpu = Cpu::new(&keys).expect("a CPU");
        let [without, zeros] = without_and_with_zeros(&mut cpu, Numbers::Normal, with_mean);
        assert_eq!(differences(&without, &zeros, "without bias on the CPU"), 0, "mean {with_mean}");
    }
}
