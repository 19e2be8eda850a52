//! Layernorm and RMSNorm, with and without bias, alone and behind a residual addition, and their gradients.

use super::{Bench, Input, reference, sum};
use crate::ops::{Layernorm, LayernormBackward, NormAgain, Ops, ResidualLayernorm, Role, Write};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("layernorm", "091ff385e6ba8d7df993c943954aa175a11e18ca1880ee7f4ebce86f8fda1da4"),
    ("residual", "d8d01c5a5e799eac4375228b4bcf2a924a782dc59c20ac480e229fbe5463b438"),
    ("residual_layernorm", "5910dd9dcbebec6c9432062bf91953502a242f200bb190b9c838bf80d859bb70"),
    ("layernorm_backward", "1a290e3fd0e7f4a0cb845413cf53ee6bc9ce7c048cf2aaad603fda80dfbe0c95"),
    ("layernorm_unbiased", "4b766dbc98886891130730846d598305d0506c87bfb0c4ef005b7b6bbbbf77a0"),
    ("rmsnorm", "3c01811e70247e2a42e4ddfe704884c484ffaec0bfb8b6c95094fe9eb707716d"),
    ("rmsnorm_unbiased", "a99dbb414bcf6922e25ff2e82eb6700abd1eb690f97f34d511d9fb0ad2eeb37c"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn layernorm(&mut self) {
        for (n, c) in [(1, 3), (5, 16), (7, 67), (33, 130), (70, 768)] {
            let c = self.limits.row(c);
            let x = self.input(Role::Activation, n * c, 2.0);
            let branch = self.input(Role::Activation, n * c, 1.0);
            let weight = self.input(Role::Param, c, 1.0);
            let bias = self.input(Role::Param, c, 1.0);
            let [mut out, mut residual] = [(); 2].map(|()| self.poisoned(Role::Activation, n * c));
            let [mut mean, mut rstd] = [(); 2].map(|()| self.poisoned(Role::F32, n));
            let op = Layernorm {
                out: &mut out,
                mean: Some(&mut mean),
                rstd: &mut rstd,
                x: &x.buf,
                weight: &weight.buf,
                bias: Some(&bias.buf),
                rows: n,
                channels: c,
            };
            self.ops.layernorm(op).unwrap();
            let (want, want_mean, want_rstd) =
                reference::layernorm(&x.values, &weight.values, &bias.values, c);
            self.result(&format!("layernorm {n} {c}"), &out, want);
            self.result(&format!("layernorm mean {n} {c}"), &mean, want_mean);
            self.result(&format!("layernorm rstd {n} {c}"), &rstd, want_rstd);
            let kept = self.bits(&out, n * c);

            let [mut out, mut mean2, mut rstd2] = [(Role::Activation, n * c), (Role::F32, n), (Role::F32, n)]
                .map(|(role, len)| self.poisoned(role, len));
            let op = ResidualLayernorm {
                residual: &mut residual,
                out: &mut out,
                mean: Some(&mut mean2),
                rstd: &mut rstd2,
                x: &x.buf,
                branch: &branch.buf,
                weight: &weight.buf,
                bias: Some(&bias.buf),
                rows: n,
                channels: c,
            };
            self.ops.residual_layernorm(op).unwrap();
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
                let mut again = self.poisoned(Role::Activation, n * c);
                let op = LayernormBackward {
                    again: Some(NormAgain { out: &mut again, bias: Some(&bias.buf) }),
                    dx: &mut dx.buf,
                    dx_write,
                    dweight: &mut dweight.buf,
                    dbias: Some(&mut dbias.buf),
                    write,
                    dout: &dout.buf,
                    x: &x.buf,
                    weight: &weight.buf,
                    mean: Some(&mean),
                    rstd: &rstd,
                    rows: n,
                    channels: c,
                };
                self.ops.layernorm_backward(op).unwrap();
                assert_eq!(self.bits(&again, n * c), kept, "layernorm again {n} {c}");
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

    /// The norms that lack a mean, a bias or both. The last two rows take more than one warp on a GPU, the
    /// last one its kernel for wide rows.
    pub(super) fn other_norms(&mut self) {
        for (rms, bias) in [(false, false), (true, true), (true, false)] {
            for (n, c) in [(1, 3), (5, 16), (7, 67), (33, 130), (70, 768), (9, 2051), (6, 4997)] {
                self.norm_and_gradient(rms, bias, n, self.limits.row(c));
            }
        }
    }

    fn norm_and_gradient(&mut self, rms: bool, with_bias: bool, n: usize, c: usize) {
        let kind = format!(
            "{}{}",
            if rms { "rmsnorm" } else { "layernorm" },
            if with_bias { "" } else { "_unbiased" }
        );
        let x = self.input(Role::Activation, n * c, 2.0);
        let branch = self.input(Role::Activation, n * c, 1.0);
        let weight = self.input(Role::Param, c, 1.0);
        let bias = with_bias.then(|| self.input(Role::Param, c, 1.0));
        let added = bias.as_ref().map_or(vec![0.0; c], |bias| bias.values.clone());
        let forward = |x: &[f64]| match rms {
            true => {
                let (out, rstd) = reference::rmsnorm(x, &weight.values, &added, c);
                (out, None, rstd)
            }
            false => {
                let (out, mean, rstd) = reference::layernorm(x, &weight.values, &added, c);
                (out, Some(mean), rstd)
            }
        };
        let [mut out, mut residual] = [(); 2].map(|()| self.poisoned(Role::Activation, n * c));
        let mut mean = (!rms).then(|| self.poisoned(Role::F32, n));
        let mut rstd = self.poisoned(Role::F32, n);
        let op = ResidualLayernorm {
            residual: &mut residual,
            out: &mut out,
            mean: mean.as_mut(),
            rstd: &mut rstd,
            x: &x.buf,
            branch: &branch.buf,
            weight: &weight.buf,
            bias: bias.as_ref().map(|bias| &bias.buf),
            rows: n,
            channels: c,
        };
        self.ops.residual_layernorm(op).unwrap();
        self.result(&format!("{kind} residual {n} {c}"), &residual, sum(&x.values, &branch.values));
        let stored: Vec<f64> = self.read(&residual, n * c).into_iter().map(f64::from).collect();
        let (want, _, want_rstd) = forward(&stored);
        self.result(&format!("{kind} of residual {n} {c}"), &out, want);
        self.result(&format!("{kind} rstd of residual {n} {c}"), &rstd, want_rstd);

        let mut out = self.poisoned(Role::Activation, n * c);
        let mut rstd = self.poisoned(Role::F32, n);
        let op = Layernorm {
            out: &mut out,
            mean: mean.as_mut(),
            rstd: &mut rstd,
            x: &x.buf,
            weight: &weight.buf,
            bias: bias.as_ref().map(|bias| &bias.buf),
            rows: n,
            channels: c,
        };
        self.ops.layernorm(op).unwrap();
        let (want, want_mean, want_rstd) = forward(&x.values);
        self.result(&format!("{kind} out {n} {c}"), &out, want);
        self.result(&format!("{kind} rstd {n} {c}"), &rstd, want_rstd);
        if let (Some(mean), Some(want)) = (&mean, want_mean) {
            self.result(&format!("{kind} mean {n} {c}"), mean, want);
        }

        let gradient = if rms { reference::rmsnorm_backward } else { reference::layernorm_backward };
        for write in [Write::Set, Write::Add] {
            let dout = self.input(Role::Activation, n * c, 1.0);
            let mut dx = match write {
                Write::Set => Input { buf: self.poisoned(Role::Activation, n * c), values: vec![0.0; n * c] },
                Write::Add => self.input(Role::Activation, n * c, 1.0),
            };
            let mut dweight = self.target(c, write);
            let mut dbias = with_bias.then(|| self.target(c, write));
            let mut again = self.poisoned(Role::Activation, n * c);
            let of_out = bias.as_ref().map(|bias| &bias.buf);
            let op = LayernormBackward {
                again: (write == Write::Add).then_some(NormAgain { out: &mut again, bias: of_out }),
                dx: &mut dx.buf,
                dx_write: write,
                dweight: &mut dweight.buf,
                dbias: dbias.as_mut().map(|dbias| &mut dbias.buf),
                write,
                dout: &dout.buf,
                x: &x.buf,
                weight: &weight.buf,
                mean: mean.as_ref(),
                rstd: &rstd,
                rows: n,
                channels: c,
            };
            self.ops.layernorm_backward(op).unwrap();
            if write == Write::Add {
                assert_eq!(self.bits(&again, n * c), self.bits(&out, n * c), "{kind} again {n} {c}");
            }
            let (want_dx, want_dw, want_db) = gradient(&dout.values, &x.values, &weight.values, c);
            let written = [(Some(&dx), want_dx, "dx"), (Some(&dweight), want_dw, "dweight")];
            for (got, want, name) in written.into_iter().chain([(dbias.as_ref(), want_db, "dbias")]) {
                let Some(got) = got else { continue };
                self.result(&format!("{kind} {name} {n} {c} {write:?}"), &got.buf, sum(&got.values, &want));
            }
        }
    }
}
