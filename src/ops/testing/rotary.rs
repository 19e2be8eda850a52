//! Rotary position embeddings.

use super::{Bench, reference};
use crate::ops::{Heads, Ops, Role, Rotary, RotaryAt, Rows, rotary_table};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("rotary", "4565c9e6b15e0c7e6ebb2294876ccc5ff2c76c5118f19475876d68c5de6478f0"),
    ("rotary_inverse", "bcaaa1e46994dceafb1bab3d0d9581895130576bee657d6b145d26308e0ac265"),
    ("rotary_listed", "bed3d74005ca593e06d595d81f8d15e15a43fa7a2f59ac90c3a198ab58a81a8e"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn rotary(&mut self) {
        for (rows, heads, head_size, theta) in [
            (Rows { batch: 1, seq: 1 }, 1, 2, 10_000.0),
            (Rows { batch: 3, seq: 17 }, 3, 6, 10_000.0),
            (Rows { batch: 2, seq: 40 }, 2, 64, 500_000.0),
            (Rows { batch: 1, seq: 70 }, 7, 80, 10_000.0),
            (Rows { batch: 2, seq: 33 }, 5, 128, 100.0),
        ] {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let shape = Heads { heads, head_size };
            let (n, known, width) = (rows.count(), rows.seq + 3, 3 * shape.channels());
            let table = self.input_of(Role::F32, &rotary_table(known, head_size, theta)).buf;
            let name = format!("{rows:?} {shape:?}");
            for inverse in [false, true] {
                let mut qkv = self.input(Role::Activation, n * width, 1.0);
                let at = RotaryAt::Sequences(rows);
                let op = Rotary { qkv: &mut qkv.buf, table: &table, theta, at, heads: shape, inverse };
                self.ops.rotary(op).unwrap();
                let positions: Vec<usize> = (0..n).map(|row| row % rows.seq).collect();
                let want = reference::rotary(&qkv.values, &positions, shape, theta, inverse);
                let kind = if inverse { "rotary_inverse" } else { "rotary" };
                self.result(&format!("{kind} {name}"), &qkv.buf, want);
            }
            let mut qkv = self.input(Role::Activation, n * width, 1.0);
            let (listed, positions) = self.ids(n, known);
            let at = RotaryAt::Listed { positions: &listed, rows: n };
            let op = Rotary { qkv: &mut qkv.buf, table: &table, theta, at, heads: shape, inverse: false };
            self.ops.rotary(op).unwrap();
            let positions: Vec<usize> = positions.into_iter().map(usize::from).collect();
            let want = reference::rotary(&qkv.values, &positions, shape, theta, false);
            self.result(&format!("rotary_listed {name}"), &qkv.buf, want);
        }
    }
}
