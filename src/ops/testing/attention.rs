//! Attention over whole sequences and its gradient.

use super::Bench;
use super::reference::{self, AttentionShape};
use crate::ops::{Attention, AttentionBackward, Heads, Ops, Role, Rows, Vocab};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("attention", "e785ac8d217cc28cf62bc9019445bd7bbfb1954998b34acb49cdf202dbcc298b"),
    ("attention_backward", "575187d794beb80c878d4210572f4d42e7f54139914c2ebe975192821f23133c"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn attention(&mut self) {
        for (batch, seq, heads, head_size) in
            [(1, 1, 1, 16), (2, 5, 2, 16), (1, 50, 2, 24), (2, 97, 1, 80), (1, 130, 2, 64), (1, 49, 1, 128)]
        {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let shape = AttentionShape { batch, seq, heads, head_size };
            let name = format!("{batch} {seq} {heads} {head_size}");
            let (rows, heads) = (Rows { batch, seq }, Heads { heads, head_size });
            let len = rows.count() * heads.heads * head_size;
            self.scratch(rows, heads.heads * head_size, heads, Vocab { used: 1, padded: self.limits.row(1) });
            let qkv = self.input(Role::Activation, 3 * len, 1.0);
            let mut out = self.poisoned(Role::Activation, len);
            let mut lse = self.poisoned(Role::F32, rows.count() * heads.heads);
            let op = Attention { out: &mut out, lse: &mut lse, qkv: &qkv.buf, rows, heads };
            self.ops.attention(op).unwrap();
            let (want, want_lse) = reference::attention(&qkv.values, shape);
            self.result(&format!("attention {name}"), &out, want);
            self.result(&format!("attention lse {name}"), &lse, want_lse);
            let dout = self.input(Role::Activation, len, 1.0);
            let mut dqkv = self.poisoned(Role::Activation, 3 * len);
            let op = AttentionBackward {
                dqkv: &mut dqkv,
                dout: &dout.buf,
                qkv: &qkv.buf,
                out: &out,
                lse: &lse,
                rows,
                heads,
            };
            self.ops.attention_backward(op).unwrap();
            self.result(
                &format!("attention_backward {name}"),
                &dqkv,
                reference::attention_backward(&dout.values, &qkv.values, shape),
            );
        }
    }
}
