//! Rotary position embeddings.

use super::{Bench, reference};
use crate::ops::{Heads, Ops, Role, Rotary, RotaryAt, Rows, rotary_table};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("rotary", "4565c9e6b15e0c7e6ebb2294876ccc5ff2c76c5118f19475876d68c5de6478f0"),
    ("rotary_inverse", "bcaaa1e46994dceafb1bab3d0d9581895130576bee657d6b145d26308e0ac265"),
    ("rotary_listed", "bed3d74005ca593e06d595d81f8d15e15a43fa7a2f59ac90c3a198ab58a81a8e"),
    ("rotary_grouped", "30354ab561eacfd5a445c55509efcd3413b291086f9edda0b7cbf28f3f80baad"),
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
            let name = format!("{rows:?} {heads} {head_size}");
            self.turns(
                ["rotary", "rotary_inverse", "rotary_listed"],
                &name,
                rows,
                Heads::new(heads, head_size),
                theta,
            );
        }
    }

    /// Heads of queries that share keys.
    pub(super) fn grouped_rotary(&mut self) {
        for (rows, heads, kv_heads, head_size) in [
            (Rows { batch: 3, seq: 17 }, 3, 1, 6),
            (Rows { batch: 2, seq: 40 }, 12, 4, 64),
            (Rows { batch: 1, seq: 70 }, 6, 2, 80),
        ] {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let heads = Heads { heads, kv_heads, head_size };
            self.turns(["rotary_grouped"; 3], &format!("{rows:?} {heads:?}"), rows, heads, 10_000.0);
        }
    }

    /// There and back, and at listed positions.
    fn turns(&mut self, kinds: [&str; 3], name: &str, rows: Rows, heads: Heads, theta: f64) {
        let (n, known, width) = (rows.count(), rows.seq + 3, heads.qkv_channels());
        let table = self.input_of(Role::F32, &rotary_table(known, heads.head_size, theta)).buf;
        let [there, back, elsewhere] = kinds;
        for inverse in [false, true] {
            let mut qkv = self.input(Role::Activation, n * width, 1.0);
            let at = RotaryAt::Sequences(rows);
            let op = Rotary { qkv: &mut qkv.buf, table: &table, theta, at, heads, inverse };
            self.ops.rotary(op).unwrap();
            let positions: Vec<usize> = (0..n).map(|row| row % rows.seq).collect();
            let want = reference::rotary(&qkv.values, &positions, heads, theta, inverse);
            let kind = if inverse { back } else { there };
            self.result(&format!("{kind} {name}"), &qkv.buf, want);
        }
        let mut qkv = self.input(Role::Activation, n * width, 1.0);
        let (listed, positions) = self.ids(n, known);
        let at = RotaryAt::Listed { positions: &listed, rows: n };
        let op = Rotary { qkv: &mut qkv.buf, table: &table, theta, at, heads, inverse: false };
        self.ops.rotary(op).unwrap();
        let positions: Vec<usize> = positions.into_iter().map(usize::from).collect();
        let want = reference::rotary(&qkv.values, &positions, heads, theta, false);
        self.result(&format!("{elsewhere} {name}"), &qkv.buf, want);
    }
}
