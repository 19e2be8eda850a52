//! Attention over whole sequences and its gradient.

use super::{Bench, reference};
use crate::ops::{Attention, AttentionBackward, Heads, Ops, Role, Rows, Vocab};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("attention", "e785ac8d217cc28cf62bc9019445bd7bbfb1954998b34acb49cdf202dbcc298b"),
    ("attention_backward", "575187d794beb80c878d4210572f4d42e7f54139914c2ebe975192821f23133c"),
    ("attention_apart", "02115edeee94cfc3c1e015e99740bf536502219e7d0321073422113abbe0cb5b"),
    ("attention_apart_backward", "3e5db1c8587636f9bf1c46ef5cca62207349b7a73f09e41ca57bd48d2943609d"),
    ("attention_grouped", "c0b1028a6d6ae1acc01fc02ad4971b790cd95f943d7162476c90d738d0c25d6e"),
    ("attention_grouped_backward", "2383cddfb486c4d35ffd51319b6a50a8dc78f54e090b7cc49e6cd5a40ff7d2ca"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn attention(&mut self) {
        for (batch, seq, heads, head_size) in
            [(1, 1, 1, 16), (2, 5, 2, 16), (1, 50, 2, 24), (2, 97, 1, 80), (1, 130, 2, 64), (1, 49, 1, 128)]
        {
            let name = |size| format!("{batch} {seq} {heads} {size}");
            self.attends("attention", name, Rows { batch, seq }, Heads::new(heads, head_size), false);
        }
    }

    /// Heads of queries that share keys and values.
    pub(super) fn grouped_attention(&mut self) {
        for (batch, seq, heads, kv_heads, head_size) in [
            (1, 1, 2, 1, 16),
            (2, 5, 4, 2, 16),
            (1, 50, 3, 1, 24),
            (2, 97, 4, 2, 80),
            (1, 130, 6, 2, 64),
            (1, 200, 4, 1, 128),
        ] {
            let heads = Heads { heads, kv_heads, head_size };
            let name = |_| format!("{batch} {seq} {heads:?}");
            self.attends("attention_grouped", name, Rows { batch, seq }, heads, false);
        }
    }

    /// Values in another tensor than queries and keys.
    pub(super) fn attention_of_values_apart(&mut self) {
        for (batch, seq, heads, kv_heads, head_size) in
            [(1, 3, 2, 2, 8), (2, 70, 3, 3, 64), (1, 97, 4, 2, 80), (1, 130, 2, 1, 128)]
        {
            let heads = Heads { heads, kv_heads, head_size };
            let name = |_| format!("{batch} {seq} {heads:?}");
            self.attends("attention_apart", name, Rows { batch, seq }, heads, true);
        }
    }

    /// Both passes, where the device has such heads.
    fn attends(&mut self, what: &str, name: impl Fn(usize) -> String, rows: Rows, heads: Heads, apart: bool) {
        let Some(head_size) = self.limits.head_size(heads.head_size) else { return };
        let (name, heads) = (name(head_size), Heads { head_size, ..heads });
        let (len, wide) = (rows.count() * heads.channels(), rows.count() * heads.qkv_channels());
        self.scratch(rows, heads.channels(), heads, Vocab { used: 1, padded: self.limits.row(1) });
        let qkv = self.input(Role::Activation, wide, 1.0);
        let mut out = self.poisoned(Role::Activation, len);
        let mut lse = self.poisoned(Role::F32, rows.count() * heads.heads);
        // What is not to be read there is not a number.
        let [pair, values] = [false, true].map(|is_value| {
            let row = heads.qkv_channels();
            let split = row - heads.kv_channels();
            let taken = |i: usize| is_value || i % row < split;
            let held = |(i, x): (usize, &f64)| if is_value && i % row < split { f32::NAN } else { *x as f32 };
            let all = qkv.values.iter().enumerate().filter(|(i, _)| taken(*i)).map(held);
            self.input_of(Role::Activation, &all.collect::<Vec<_>>()).buf
        });
        let (read, values) = if apart { (&pair, Some(&values)) } else { (&qkv.buf, None) };
        let op = Attention { out: &mut out, lse: &mut lse, qkv: read, values, rows, heads };
        self.ops.attention(op).unwrap();
        let (want, want_lse) = reference::attention(&qkv.values, rows, heads);
        self.result(&format!("{what} {name}"), &out, want);
        self.result(&format!("{what} lse {name}"), &lse, want_lse);
        let dout = self.input(Role::Activation, len, 1.0);
        let mut dqkv = self.poisoned(Role::Activation, wide);
        let op = AttentionBackward {
            dqkv: &mut dqkv,
            dout: &dout.buf,
            qkv: read,
            values,
            out: &out,
            lse: &lse,
            rows,
            heads,
        };
        self.ops.attention_backward(op).unwrap();
        self.result(
            &format!("{what}_backward {name}"),
            &dqkv,
            reference::attention_backward(&dout.values, &qkv.values, rows, heads),
        );
    }
}
