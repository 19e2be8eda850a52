//! The classifier, with and without gradients.

use super::{Bench, reference, sum};
use crate::ops::{Classifier, ClassifierLoss, Heads, Ops, Role, Rows, Vocab, Write};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("classifier_loss", "7e83d5b73c326852345336ab87086ce5d62a7248388aeb755e4cc94dc5f18de6"),
    ("classifier", "7c9b308e8e6e4effd8df9c6288b49084b045ee005bce1109509ab85464def220"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn classifier(&mut self) {
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
            let want = reference::classifier(
                &x.values,
                &wte.values,
                &targets,
                channels,
                used,
                padded,
                f64::from(scale),
            );
            // Losses go behind two that must stay.
            let behind: Vec<f64> = [2.0, 3.0].into_iter().chain(want.losses).collect();
            let mut losses = self.input_of(Role::F32, &[&[2.0, 3.0][..], &vec![f32::NAN; n]].concat()).buf;
            let op = ClassifierLoss {
                losses: &mut losses,
                losses_at: 2,
                x: &x.buf,
                wte: &wte.buf,
                targets: &ids,
                rows: n,
                channels,
                vocab,
            };
            self.ops.classifier_loss(op).unwrap();
            self.result(&format!("classifier_loss {n} {channels} {used}"), &losses, behind.clone());
            for write in [Write::Set, Write::Add] {
                let mut losses =
                    self.input_of(Role::F32, &[&[2.0, 3.0][..], &vec![f32::NAN; n]].concat()).buf;
                let mut lse = self.poisoned(Role::F32, n);
                let mut dx = self.poisoned(Role::Activation, n * channels);
                let mut dwte = self.target(padded * channels, write);
                let op = Classifier {
                    losses: &mut losses,
                    losses_at: 2,
                    lse: &mut lse,
                    dx: &mut dx,
                    dwte: &mut dwte.buf,
                    x: &x.buf,
                    wte: &wte.buf,
                    targets: &ids,
                    rows: n,
                    channels,
                    vocab,
                    scale,
                    write,
                };
                self.ops.classifier(op).unwrap();
                self.result(
                    &format!("classifier losses {n} {channels} {used} {write:?}"),
                    &losses,
                    behind.clone(),
                );
                self.result(
                    &format!("classifier lse {n} {channels} {used} {write:?}"),
                    &lse,
                    want.lse.clone(),
                );
                self.result(&format!("classifier dx {n} {channels} {used} {write:?}"), &dx, want.dx.clone());
                self.result(
                    &format!("classifier dwte {n} {channels} {used} {write:?}"),
                    &dwte.buf,
                    sum(&dwte.values, &want.dwte),
                );
            }
        }
    }
}
