//! The embedding and its gradient.

use super::Bench;
use crate::ops::{Embedding, EmbeddingBackward, Ops, Role, Rows, Write};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("embedding", "364e1d03457c9564f75ff84876ac6656904609e7d958c69e1a6f8846840284f9"),
    ("embedding_backward", "233f363116136c0ac5f851715f86b4846091e07b04c8753f0492080fe1ba2e89"),
    ("embedding_of_tokens", "1af56ef2d52911416b2587f992da3b1a2f1b2888d7d685e0925f8b09a1c7397c"),
    ("embedding_of_tokens_backward", "c73f9708ce048d031cfa84cd470114f2e1257613fb62c069145c7da5516d6f7a"),
    ("embedding_set_backward", "851a9bae91468caf845d3753b67b9f7ed9fc36661b217ae819078f2485396991"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn embedding(&mut self) {
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
            let (wte_buf, wpe_buf) = (&wte.buf, Some(&wpe.buf));
            let op = Embedding { out: &mut out, ids: &ids, wte: wte_buf, wpe: wpe_buf, rows, channels };
            self.ops.embedding(op).unwrap();
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
                let op = EmbeddingBackward {
                    dwte: &mut dwte.buf,
                    dwte_write: Write::Add,
                    vocab,
                    dwpe: Some(&mut dwpe.buf),
                    write,
                    dout: &dout.buf,
                    ids: &ids,
                    rows,
                    channels,
                };
                self.ops.embedding_backward(op).unwrap();
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

    /// Without a table of positions; and gradients of a table of tokens that no classifier wrote before, with
    /// and without one.
    pub(super) fn embedding_of_tokens(&mut self) {
        for (rows, channels, vocab) in [
            (Rows { batch: 1, seq: 1 }, 1, 3),
            (Rows { batch: 3, seq: 17 }, 70, 11),
            (Rows { batch: 2, seq: 64 }, 48, 300),
        ] {
            let (n, channels) = (rows.count(), self.limits.row(channels));
            let (ids, tokens) = self.ids(n, vocab);
            let wte = self.input(Role::Param, vocab * channels, 1.0);
            let mut out = self.poisoned(Role::Activation, n * channels);
            let op = Embedding { out: &mut out, ids: &ids, wte: &wte.buf, wpe: None, rows, channels };
            self.ops.embedding(op).unwrap();
            let at = |i: usize| usize::from(tokens[i / channels]) * channels + i % channels;
            let want = (0..n * channels).map(|i| wte.values[at(i)]).collect();
            self.result(&format!("embedding_of_tokens {rows:?} {channels}"), &out, want);
            for (dwte_write, positions) in [(Write::Set, false), (Write::Add, false), (Write::Set, true)] {
                let dout = self.input(Role::Activation, n * channels, 1.0);
                let mut dwte = self.target(vocab * channels, dwte_write);
                let mut dwpe = self.target(rows.seq * channels, Write::Set);
                for i in 0..n * channels {
                    dwte.values[at(i)] += dout.values[i];
                    dwpe.values[i % (rows.seq * channels)] += dout.values[i];
                }
                let op = EmbeddingBackward {
                    dwte: &mut dwte.buf,
                    dwte_write,
                    vocab,
                    dwpe: positions.then_some(&mut dwpe.buf),
                    write: Write::Set,
                    dout: &dout.buf,
                    ids: &ids,
                    rows,
                    channels,
                };
                self.ops.embedding_backward(op).unwrap();
                let kind = if positions { "embedding_set_backward" } else { "embedding_of_tokens_backward" };
                let name = format!("{kind} dwte {rows:?} {channels} {dwte_write:?}");
                self.result(&name, &dwte.buf, dwte.values);
                if positions {
                    self.result(&format!("{kind} dwpe {rows:?} {channels}"), &dwpe.buf, dwpe.values);
                }
            }
        }
    }
}
