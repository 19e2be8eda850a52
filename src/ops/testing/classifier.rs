//! The classifier, with and without gradients.

use std::f64::consts::LN_2;

use super::{Bench, Case, reference, sum};
use crate::ops::{Classifier, ClassifierLoss, Heads, LogitTerms, Ops, Role, Rows, Vocab, Write};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("classifier_loss", "7e83d5b73c326852345336ab87086ce5d62a7248388aeb755e4cc94dc5f18de6"),
    ("classifier", "9836899dd7b6819f85be20ece8a85a953f9c7e30cff89df52a57e315b457a87c"),
    ("classifier_loss_terms", "a56b4b4344de04e05f80f1e9cfc2e0d1a24af6ef632208197fbeef45ee2d2ea3"),
    ("classifier_loss_large", "690d4eb171e28297233ba07efe4b9c0dfaabbd93feda5043220b28082fe4e606"),
    ("classifier_large", "87405489d988e01feb6ce501a3a0666814400b1da0d27a8cf4231f7489128d4e"),
    ("classifier_terms", "22ef19d87cecadceabe3d2c935112eafe4c8d75aeec76122371fc01b9e70d773"),
];

/// Rows and sizes of a case.
struct ClassifierShape {
    n: usize,
    channels: usize,
    used: usize,
    padded: usize,
    /// Of the inputs.
    scale: f64,
}

impl ClassifierShape {
    fn new(n: usize, channels: usize, used: usize, padded: usize) -> ClassifierShape {
        ClassifierShape { n, channels, used, padded, scale: 1.0 }
    }
}

impl<O: Ops> Bench<'_, O> {
    pub(super) fn classifier(&mut self) {
        for (n, channels, used, padded) in
            [(1, 4, 3, 8), (3, 8, 10, 16), (300, 16, 257, 384), (7, 48, 1000, 1024)]
        {
            let shape = ClassifierShape::new(n, channels, used, padded);
            self.classified(["classifier_loss", "classifier"], &shape, LogitTerms::default());
        }
    }

    /// With a soft-cap and z-loss. A cap of 30 hardly bends these logits, one of 2 most of them.
    pub(super) fn classifier_terms(&mut self) {
        for (n, channels, used, padded) in [(1, 4, 3, 8), (300, 16, 257, 384), (7, 48, 1000, 1024)] {
            let shape = ClassifierShape::new(n, channels, used, padded);
            for (softcap, z_loss) in [
                (Some(30.0), 0.0),
                (Some(2.0), 0.0),
                (None, 1e-4),
                (None, 0.1),
                (Some(30.0), 1e-4),
                (Some(2.0), 0.1),
            ] {
                let terms = LogitTerms { softcap, z_loss };
                self.classified(["classifier_loss_terms", "classifier_terms"], &shape, terms);
            }
        }
    }

    /// Losses up to a hundred: 2 to their power passes what a device of our own may keep.
    pub(super) fn classifier_of_large_logits(&mut self) {
        for (n, channels, used, padded) in [(7, 48, 1000, 1024), (70, 16, 257, 384)] {
            let shape = ClassifierShape { scale: 10.0, ..ClassifierShape::new(n, channels, used, padded) };
            for (softcap, z_loss) in [(None, 0.0), (None, 0.01), (Some(100.0), 0.0)] {
                let terms = LogitTerms { softcap, z_loss };
                self.classified(["classifier_loss_large", "classifier_large"], &shape, terms);
            }
        }
    }

    /// Both operations, under these names.
    fn classified(&mut self, names: [&str; 2], shape: &ClassifierShape, terms: LogitTerms) {
        let (n, used) = (shape.n, shape.used);
        let (channels, padded) = (self.limits.row(shape.channels), self.limits.row(shape.padded));
        let vocab = Vocab { used, padded };
        let rows = Rows { batch: 1, seq: n };
        self.scratch(rows, channels, Heads::new(1, channels), vocab);
        let x = self.input(Role::Activation, n * channels, shape.scale);
        let wte = self.input(Role::Param, padded * channels, 0.5);
        let (ids, targets) = self.ids(n, used);
        let scale = 1.0 / n as f32;
        let case = match terms {
            LogitTerms { softcap: None, z_loss: 0.0 } => format!("{n} {channels} {used}"),
            _ => format!("{n} {channels} {used} {terms:?}"),
        };
        let want =
            reference::classifier(&x.values, &wte.values, &targets, channels, vocab, terms, f64::from(scale));
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
            terms,
        };
        self.ops.classifier_loss(op).unwrap();
        self.result(&format!("{} {case}", names[0]), &losses, behind.clone());
        for write in [Write::Set, Write::Add] {
            let mut losses = self.input_of(Role::F32, &[&[2.0, 3.0][..], &vec![f32::NAN; n]].concat()).buf;
            let mut denominators = self.poisoned(Role::F32, 2 * n);
            let mut dx = self.poisoned(Role::Activation, n * channels);
            let mut dwte = self.target(padded * channels, write);
            let op = Classifier {
                losses: &mut losses,
                losses_at: 2,
                denominators: &mut denominators,
                dx: &mut dx,
                dwte: &mut dwte.buf,
                x: &x.buf,
                wte: &wte.buf,
                targets: &ids,
                rows: n,
                channels,
                vocab,
                terms,
                scale,
                write,
            };
            self.ops.classifier(op).unwrap();
            self.result(&format!("{} losses {case} {write:?}", names[1]), &losses, behind.clone());
            // Which base a device takes is its own matter.
            let pairs = self.read(&denominators, 2 * n);
            let lse = |pair: &[f32; 2]| f64::from(pair[0]) * LN_2 + libm::log(f64::from(pair[1]));
            self.cases.push(Case {
                name: format!("{} lse {case} {write:?}", names[1]),
                got: pairs.as_chunks().0.iter().map(|pair| lse(pair) as f32).collect(),
                want: want.lse.clone(),
            });
            self.result(&format!("{} dx {case} {write:?}", names[1]), &dx, want.dx.clone());
            self.result(
                &format!("{} dwte {case} {write:?}", names[1]),
                &dwte.buf,
                sum(&dwte.values, &want.dwte),
            );
        }
    }
}
