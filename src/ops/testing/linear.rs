//! Linear layers, GELU, and their gradients.

use super::{Bench, reference, sum};
use crate::ops::{
    Activate, Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate, LinearBackwardWeight,
    LinearShape, Nonlinearity, Ops, Role, Write,
};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("linear", "6744c52e4d31a9e7acca6aad23ba536f946b5c72f647de07d134749d3a1ea392"),
    ("linear_gelu", "1a88c52dbb2241aaf468665412edf7e7e57bd1d5b934e42448875b39803ff36c"),
    ("gelu", "3d8b0d7b7e0bbafa413af74e1350536ea741107c79e779627e50a21576c396e7"),
    ("linear_backward_input", "25dac70e9eb9a2f7b8d7749f09186ff7f0c6653337a1fe0b306c586c2dbc302d"),
    ("linear_backward_input_gelu", "0df5da28fb32a5c7653b78f8b3e84b9d4b96678ccdd38b8a465682b1b8e61646"),
    ("linear_backward_weight", "7121ac6098f8c1887ccf6993f26e43a1465b9bac8a2100f03aa258dc14926899"),
    ("linear_unbiased", "1092f7afc6ad0fdacdde26c399d6ad7d3552eac9113a02e2aa70fb79da9790a3"),
    ("linear_squared_relu", "ea9a620d5aafa6558572a26e5f472c360655c161472bb03adf3027cb055b0195"),
    ("linear_squared_relu_backward", "9c32f5804ac1549c6656db7baada2936a43b052d573d440c5e8852fe71d95a34"),
    ("linear_swiglu", "62dee6410668dc524e635e9c68bd47527ee2a6331f74a75c430a0af20671613e"),
    ("linear_swiglu_backward", "17e45d737884740fb79904075761f11b5e709b09952b0cdce9d4370f53dfd8a3"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn linear(&mut self) {
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
            let (name, shape) = (format!("{n} {c_in} {c_out}"), LinearShape { rows: n, c_in, c_out });
            let x = self.input(Role::Activation, n * c_in, 1.0);
            let weight = self.input(Role::Param, c_out * c_in, 0.3);
            let bias = self.input(Role::Param, c_out, 1.0);
            let [mut out, mut plain, mut act, mut pre, mut again] =
                [(); 5].map(|()| self.poisoned(Role::Activation, n * c_out));
            for (out, bias) in [(&mut out, Some(&bias.buf)), (&mut plain, None)] {
                self.ops.linear(Linear { out, x: &x.buf, weight: &weight.buf, bias, shape }).unwrap();
            }
            let op = LinearActivate {
                out: &mut act,
                pre: &mut pre,
                x: &x.buf,
                weight: &weight.buf,
                bias: Some(&bias.buf),
                function: Nonlinearity::Gelu,
                shape,
            };
            self.ops.linear_activate(op).unwrap();
            let function = Nonlinearity::Gelu;
            self.ops
                .activate(Activate { out: &mut again, pre: &pre, function, rows: n, channels: c_out })
                .unwrap();
            let want = reference::linear(&x.values, &weight.values, Some(&bias.values), n, c_in, c_out);
            let bare = reference::linear(&x.values, &weight.values, None, n, c_in, c_out);
            let stored: Vec<f64> = self.read(&pre, n * c_out).into_iter().map(f64::from).collect();
            self.result(&format!("linear {name}"), &out, want.clone());
            self.result(&format!("linear without bias {name}"), &plain, bare);
            self.result(&format!("linear_gelu pre {name}"), &pre, want.clone());
            self.result(
                &format!("linear_gelu out {name}"),
                &act,
                want.iter().map(|x| reference::gelu(*x)).collect(),
            );
            self.result(
                &format!("gelu {name}"),
                &again,
                stored.iter().map(|x| reference::gelu(*x)).collect(),
            );

            let dout = self.input(Role::Activation, n * c_out, 1.0);
            let pre = self.input(Role::Activation, n * c_in, 1.5);
            let [mut dx, mut dpre, mut gave, mut again] =
                [(); 4].map(|()| self.poisoned(Role::Activation, n * c_in));
            let op = Activate { out: &mut gave, pre: &pre.buf, function, rows: n, channels: c_in };
            self.ops.activate(op).unwrap();
            let (dout_buf, weight_buf) = (&dout.buf, &weight.buf);
            let op = LinearBackwardInput { dx: &mut dx, dout: dout_buf, weight: weight_buf, shape };
            self.ops.linear_backward_input(op).unwrap();
            let op = LinearBackwardInputActivate {
                again: Some(&mut again),
                dpre: &mut dpre,
                room: None,
                dout: dout_buf,
                weight: weight_buf,
                pre: &pre.buf,
                function: Nonlinearity::Gelu,
                shape,
            };
            self.ops.linear_backward_input_activate(op).unwrap();
            assert_eq!(self.bits(&again, n * c_in), self.bits(&gave, n * c_in), "gelu again {name}");
            let want = reference::linear_backward_input(&dout.values, &weight.values, n, c_in, c_out);
            self.result(&format!("linear_backward_input {name}"), &dx, want.clone());
            let want =
                want.iter().zip(&pre.values).map(|(d, x)| d * reference::gelu_derivative(*x)).collect();
            self.result(&format!("linear_backward_input_gelu {name}"), &dpre, want);

            let (want_dw, want_db) =
                reference::linear_backward_weight(&dout.values, &x.values, n, c_in, c_out);
            for write in [Write::Set, Write::Add] {
                let (mut dweight, mut dbias) = (self.target(c_out * c_in, write), self.target(c_out, write));
                let op = LinearBackwardWeight {
                    dweight: &mut dweight.buf,
                    dbias: Some(&mut dbias.buf),
                    dout: &dout.buf,
                    x: &x.buf,
                    shape,
                    write,
                };
                self.ops.linear_backward_weight(op).unwrap();
                self.result(
                    &format!("linear_backward_weight {name} {write:?}"),
                    &dweight.buf,
                    sum(&dweight.values, &want_dw),
                );
                self.result(
                    &format!("linear_backward_weight dbias {name} {write:?}"),
                    &dbias.buf,
                    sum(&dbias.values, &want_db),
                );
            }
        }
    }

    /// A layer with each of the other functions behind it, and the gradient through it.
    pub(super) fn activated_linear(&mut self) {
        for (n, c_in, channels, function) in [
            (5, 7, 3, Nonlinearity::SquaredRelu),
            (257, 40, 130, Nonlinearity::SquaredRelu),
            (1, 1, 1, Nonlinearity::Swiglu),
            (13, 70, 24, Nonlinearity::Swiglu),
            (300, 96, 160, Nonlinearity::Swiglu),
        ] {
            let (c_in, channels) = (self.limits.row(c_in), self.limits.row(channels));
            let (wide, name) = (function.inputs() * channels, format!("{n} {c_in} {channels}"));
            let what = if function == Nonlinearity::Swiglu { "linear_swiglu" } else { "linear_squared_relu" };
            let x = self.input(Role::Activation, n * c_in, 1.0);
            let weight = self.input(Role::Param, wide * c_in, 0.3);
            let bias = self.input(Role::Param, wide, 1.0);
            for with_bias in [true, false] {
                let mut pre = self.poisoned(Role::Activation, n * wide);
                let mut out = self.poisoned(Role::Activation, n * channels);
                let op = LinearActivate {
                    out: &mut out,
                    pre: &mut pre,
                    x: &x.buf,
                    weight: &weight.buf,
                    bias: with_bias.then_some(&bias.buf),
                    function,
                    shape: LinearShape { rows: n, c_in, c_out: wide },
                };
                self.ops.linear_activate(op).unwrap();
                let bias = with_bias.then_some(&bias.values[..]);
                let want = reference::linear(&x.values, &weight.values, bias, n, c_in, wide);
                self.result(&format!("{what} pre {name}, bias {with_bias}"), &pre, want.clone());
                let want = reference::activate(&want, function);
                self.result(&format!("{what} {name}, bias {with_bias}"), &out, want);
            }
            // The layer that reads the function's output.
            let shape = LinearShape { rows: n, c_in: channels, c_out: c_in };
            let down = self.input(Role::Param, shape.weight(), 0.3);
            let dout = self.input(Role::Activation, shape.output(), 1.0);
            let pre = self.input(Role::Activation, n * wide, 1.5);
            let mut dpre = self.poisoned(Role::Activation, n * wide);
            let [mut room, mut gave, mut again] =
                [(); 3].map(|()| self.poisoned(Role::Activation, n * channels));
            let op = Activate { out: &mut gave, pre: &pre.buf, function, rows: n, channels };
            self.ops.activate(op).unwrap();
            let op = LinearBackwardInputActivate {
                again: Some(&mut again),
                dpre: &mut dpre,
                room: (function == Nonlinearity::Swiglu).then_some(&mut room),
                dout: &dout.buf,
                weight: &down.buf,
                pre: &pre.buf,
                function,
                shape,
            };
            self.ops.linear_backward_input_activate(op).unwrap();
            let [gave, again] = [&gave, &again].map(|buf| self.bits(buf, n * channels));
            assert_eq!(again, gave, "{what} again {name}");
            let want = reference::linear_backward_input(&dout.values, &down.values, n, channels, c_in);
            let want = reference::activate_backward(&want, &pre.values, function);
            self.result(&format!("{what}_backward {name}"), &dpre, want);
        }
    }

    /// A layer without bias: GELU behind it, and the gradient of the weights alone, also behind GELU's.
    pub(super) fn unbiased_linear(&mut self) {
        for (n, c_in, c_out) in [(1, 1, 1), (5, 7, 3), (13, 520, 70), (257, 16, 130), (1030, 65, 40)] {
            let (c_in, c_out) = (self.limits.row(c_in), self.limits.row(c_out));
            let (name, shape) = (format!("{n} {c_in} {c_out}"), LinearShape { rows: n, c_in, c_out });
            let x = self.input(Role::Activation, n * c_in, 1.0);
            let weight = self.input(Role::Param, c_out * c_in, 0.3);
            let [mut out, mut pre] = [(); 2].map(|()| self.poisoned(Role::Activation, n * c_out));
            let op = LinearActivate {
                out: &mut out,
                pre: &mut pre,
                x: &x.buf,
                weight: &weight.buf,
                bias: None,
                function: Nonlinearity::Gelu,
                shape,
            };
            self.ops.linear_activate(op).unwrap();
            let want = reference::linear(&x.values, &weight.values, None, n, c_in, c_out);
            self.result(&format!("linear_unbiased pre {name}"), &pre, want.clone());
            let want = want.iter().map(|x| reference::gelu(*x)).collect();
            self.result(&format!("linear_unbiased gelu {name}"), &out, want);

            let dout = self.input(Role::Activation, n * c_out, 1.0);
            let before = self.input(Role::Activation, n * c_in, 1.5);
            let mut dpre = self.poisoned(Role::Activation, n * c_in);
            let op = LinearBackwardInputActivate {
                again: None,
                dpre: &mut dpre,
                room: None,
                dout: &dout.buf,
                weight: &weight.buf,
                pre: &before.buf,
                function: Nonlinearity::Gelu,
                shape,
            };
            self.ops.linear_backward_input_activate(op).unwrap();
            let stored: Vec<f64> = self.read(&dpre, n * c_in).into_iter().map(f64::from).collect();
            let square = LinearShape { c_out: c_in, ..shape };
            for write in [Write::Set, Write::Add] {
                for (shape, buf, values) in [(shape, &dout.buf, &dout.values), (square, &dpre, &stored)] {
                    let mut dweight = self.target(shape.weight(), write);
                    let op = LinearBackwardWeight {
                        dweight: &mut dweight.buf,
                        dbias: None,
                        dout: buf,
                        x: &x.buf,
                        shape,
                        write,
                    };
                    self.ops.linear_backward_weight(op).unwrap();
                    let LinearShape { rows, c_in, c_out } = shape;
                    let (want, _) = reference::linear_backward_weight(values, &x.values, rows, c_in, c_out);
                    let name = format!("linear_unbiased dweight {rows} {c_in} {c_out} {write:?}");
                    self.result(&name, &dweight.buf, sum(&dweight.values, &want));
                }
            }
        }
    }
}
