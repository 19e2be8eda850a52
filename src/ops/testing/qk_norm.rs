//! RMSNorm of queries and keys, and its gradient; with rotary positions too.

use super::{Bench, reference, sum};
use crate::ops::{Heads, Ops, QkNorm, QkNormBackward, QkRotary, Role, RotaryAt, Rows, Write, rotary_table};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("qk_norm_alone", "ffba7058d0649ad2bab0682300a3a62dbf558a1dc26e5f49f2e1b9989516f449"),
    ("qk_norm_rotary_alone", "2b321a07e356e4772be0877403e12cf144f9cf4e2b6e78b0e5f0c6e4bae37f95"),
    ("qk_norm_grouped_alone", "401d0b3e7e2c87d401378fa5eb0888ff012f399d0404d06ddd9dd40e0e6177d2"),
    ("qk_norm_grouped_rotary_alone", "544f231449f2e2dedaf54f3aaf04b4550c5c1997bfae884c281c96c6accfb5b8"),
    ("qk_norm", "4652d79ad411ef4908e115da0d4cffe1021a3a924690859eaa0a45fcc6d1a8b4"),
    ("qk_norm_rotary", "4a153d8d3a489daccddc039b75ccb115c33fae2271be99c5608d4ae8e9aa77cc"),
    ("qk_norm_rotary_backward", "0eba00b74ab559bdb42c11eeb2b516a25ce44e602d5ef52d82436ef91c14fa2a"),
    ("qk_norm_backward", "e926e343655bba1de3a3a676f94779d083fb40e98e89056e243464c15e4785b3"),
    ("qk_norm_grouped", "4add12a4048cbc4f937c9739b5d75a2e57de6ce368a229207d2987a5a8582d0e"),
    ("qk_norm_grouped_backward", "68ba840ac001ff6e28de1e4c0925b7162bb58114316fe923bc75917b5f642719"),
    ("qk_norm_grouped_rotary", "2bfedfa035b5f80a67a999818e3289d4dd3de6e1a9f42931b6bf88bdf28265fe"),
    ("qk_norm_grouped_rotary_backward", "8685ccb7c44ef2e77df13224094555318414f3b236ca833d35dd3ece4eba4cbc"),
];

/// What turns the rows of a case, and the position of each.
struct TurnedRows<'a, O: Ops> {
    rotary: QkRotary<'a, O::Buf, O::Ids>,
    positions: &'a [usize],
}

impl<O: Ops> Bench<'_, O> {
    pub(super) fn qk_norm(&mut self) {
        for (n, heads, head_size) in [(1, 1, 2), (7, 3, 18), (70, 12, 64), (33, 2, 80), (150, 5, 128)] {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let name = format!("{n} {heads} {head_size}");
            self.passes("qk_norm", &name, n, Heads::new(heads, head_size), None);
        }
    }

    /// Heads of queries that share keys, with positions and without.
    pub(super) fn grouped_qk_norm(&mut self) {
        for (n, heads, kv_heads, head_size) in [(1, 2, 1, 8), (70, 12, 4, 64), (33, 3, 1, 80)] {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let heads = Heads { heads, kv_heads, head_size };
            self.passes("qk_norm_grouped", &format!("{n} {heads:?}"), n, heads, None);
            let table = self.input_of(Role::F32, &rotary_table(n, head_size, 10_000.0)).buf;
            let at = RotaryAt::Sequences(Rows { batch: 1, seq: n });
            let rotary = QkRotary { table: &table, theta: 10_000.0, at };
            let positions: Vec<usize> = (0..n).collect();
            let rows = Some(TurnedRows { rotary, positions: &positions });
            self.passes("qk_norm_grouped_rotary", &format!("{n} {heads:?}"), n, heads, rows);
        }
    }

    pub(super) fn qk_norm_rotary(&mut self) {
        for (rows, heads, head_size, theta) in [
            (Rows { batch: 1, seq: 1 }, 1, 2, 10_000.0),
            (Rows { batch: 3, seq: 17 }, 3, 18, 10_000.0),
            (Rows { batch: 2, seq: 40 }, 12, 64, 500_000.0),
            (Rows { batch: 1, seq: 70 }, 2, 80, 10_000.0),
            (Rows { batch: 2, seq: 33 }, 5, 128, 100.0),
        ] {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let shape = Heads::new(heads, head_size);
            let table = self.input_of(Role::F32, &rotary_table(rows.seq + 3, head_size, theta)).buf;
            let positions: Vec<usize> = (0..rows.count()).map(|row| row % rows.seq).collect();
            let n = rows.count();
            let name = format!("{rows:?} {heads} {head_size}");
            let rotary = QkRotary { table: &table, theta, at: RotaryAt::Sequences(rows) };
            let turned = TurnedRows { rotary, positions: &positions };
            self.passes("qk_norm_rotary", &name, n, shape, Some(turned));
            let (listed, positions) = self.ids(n, rows.seq + 3);
            let positions: Vec<usize> = positions.into_iter().map(usize::from).collect();
            let rotary = QkRotary { at: RotaryAt::Listed { positions: &listed, rows: n }, ..rotary };
            let turned = TurnedRows { rotary, positions: &positions };
            self.passes("qk_norm_rotary", &format!("listed {name}"), n, shape, Some(turned));
        }
    }

    /// Both passes of `n` rows, turned or not.
    fn passes(&mut self, what: &str, name: &str, n: usize, heads: Heads, turned: Option<TurnedRows<'_, O>>) {
        let (wide, size) = (n * heads.qkv_channels(), heads.head_size);
        let rotary = turned.as_ref().map(|rows| rows.rotary);
        let turn = |x: Vec<f64>, inverse: bool| match &turned {
            Some(rows) => reference::rotary(&x, rows.positions, heads, rows.rotary.theta, inverse),
            None => x,
        };
        let x = self.input(Role::Activation, wide, 2.0);
        let [q_weight, k_weight] = [(); 2].map(|()| self.input(Role::Param, size, 1.0));
        let weights = [&q_weight.values[..], &k_weight.values];
        let mut rstd = self.poisoned(Role::F32, n * heads.of_queries_and_keys());
        let (want, want_rstd) = reference::qk_norm(&x.values, weights, heads);
        let want = turn(want, false);
        for values in [false, true] {
            let width = heads.slices(values) * size;
            let mut out = self.poisoned(Role::Activation, n * width);
            let op = QkNorm {
                out: &mut out,
                rstd: &mut rstd,
                x: &x.buf,
                q_weight: &q_weight.buf,
                k_weight: &k_weight.buf,
                rows: n,
                heads,
                values,
                rotary,
            };
            self.ops.qk_norm(op).unwrap();
            let part = want.chunks(heads.qkv_channels()).flat_map(|row| &row[..width]).copied().collect();
            let of = if values { what.to_owned() } else { format!("{what}_alone") };
            self.result(&format!("{of} {name}"), &out, part);
        }
        self.result(&format!("{what} rstd {name}"), &rstd, want_rstd);
        for write in [Write::Set, Write::Add] {
            let mut dqkv = self.input(Role::Activation, wide, 1.0);
            let mut dq_weight = self.target(size, write);
            let mut dk_weight = self.target(size, write);
            let op = QkNormBackward {
                dqkv: &mut dqkv.buf,
                dq_weight: &mut dq_weight.buf,
                dk_weight: &mut dk_weight.buf,
                write,
                x: &x.buf,
                q_weight: &q_weight.buf,
                k_weight: &k_weight.buf,
                rstd: &rstd,
                rows: n,
                heads,
                rotary,
            };
            self.ops.qk_norm_backward(op).unwrap();
            let dout = turn(dqkv.values.clone(), true);
            let (want, [want_q, want_k]) = reference::qk_norm_backward(&dout, &x.values, weights, heads);
            let name = |of: &str| format!("{what}_backward {of} {name} {write:?}");
            self.result(&name("dqkv"), &dqkv.buf, want);
            self.result(&name("dq_weight"), &dq_weight.buf, sum(&dq_weight.values, &want_q));
            self.result(&name("dk_weight"), &dk_weight.buf, sum(&dk_weight.values, &want_k));
        }
    }
}
