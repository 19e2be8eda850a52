//! The functions between the layers of an MLP, and their gradients.

use super::{Bench, reference};
use crate::ops::{Activate, ActivateBackward, Nonlinearity, Ops, Role};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("gelu_backward", "288c7958ed6a60339bb44ed37143c3707d0c0ede37707978488d75da74dbb8fe"),
    ("squared_relu", "c371153cf6badb86422b2376c6347ed2dcf1da60e11d737d370e415ff85c3902"),
    ("squared_relu_backward", "bdc72f2b0bca96a18d569854994be5d8b25c4a5126ad7ca53aba8ac0eec14268"),
    ("swiglu", "d866a823313d976378542d4566633a6acaa7f88aa9c1e431208c07692625fb96"),
    ("swiglu_backward", "a590e4698f3b5804d3eda3b3073952a2e69f5368b72f3c9e44079963c07fac2e"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn activate(&mut self) {
        use Nonlinearity::{Gelu, SquaredRelu, Swiglu};
        // Past 16,384 elements the CPU's tasks are cut, past 4,096 and 2,048 a block's work on a GPU.
        for (n, channels) in [(1, 1), (3, 5), (7, 66), (31, 264), (9, 2731)] {
            let channels = self.limits.row(channels);
            let len = n * channels;
            let dout = self.input(Role::Activation, len, 1.0);
            let pre = self.input(Role::Activation, 2 * len, 2.0);
            for (function, name) in [(Gelu, "gelu"), (SquaredRelu, "squared_relu"), (Swiglu, "swiglu")] {
                let name = |what: &str| format!("{name}{what} {n} {channels}");
                let inputs = function.inputs() * len;
                let mut out = self.poisoned(Role::Activation, len);
                let pre_buf = &pre.buf;
                if function != Gelu {
                    self.ops
                        .activate(Activate { out: &mut out, pre: pre_buf, function, rows: n, channels })
                        .unwrap();
                    self.result(&name(""), &out, reference::activate(&pre.values[..inputs], function));
                }
                let want = reference::activate_backward(&dout.values, &pre.values[..inputs], function);
                let mut dpre = self.poisoned(Role::Activation, inputs);
                let gradient = |dpre: &mut O::Buf, dout, ops: &mut O| {
                    let op = ActivateBackward { dpre, dout, pre: pre_buf, function, rows: n, channels };
                    ops.activate_backward(op)
                };
                gradient(&mut dpre, Some(&dout.buf), self.ops).unwrap();
                self.result(&name("_backward"), &dpre, want.clone());
                let held: Vec<f32> = dout.values.iter().map(|x| *x as f32).collect();
                let mut dpre = self.input_of(Role::Activation, &held).buf;
                match gradient(&mut dpre, None, self.ops) {
                    Ok(()) => self.result(&name("_backward in place"), &dpre, want),
                    Err(why) => assert!(function == Swiglu, "{why}"),
                }
            }
        }
    }
}
