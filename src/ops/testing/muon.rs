//! What surrounds the products of Muon: matrices of either form, alone and below others in a tensor.

use super::Bench;
use crate::ops::{MatrixPart, MuonDirection, MuonPolynomial, MuonUpdate, Ops, Role};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("muon_direction", "1a41c3a493651013e57b422a3f4b642ae7c1985bf2971897836e3df550f9194c"),
    ("muon_polynomial", "cc4cdc36bbaf786f8ed51d28217721dda8bd4b0337c2ebcdff324106e2729ea5"),
    ("muon_update", "7644b8c37cddc47a421ed50772ae19d7c52a4992ac0f524437c46dca4592b0dd"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn muon(&mut self) {
        for (at, rows, cols) in [(0, 1, 1), (0, 5, 3), (6, 3, 7), (0, 72, 200), (72 * 200, 200, 72)] {
            let matrix = MatrixPart { at, rows, cols };
            self.muon_direction(matrix);
            self.muon_update(matrix, true);
            self.muon_update(matrix, false);
        }
        for order in [1, 7, 72] {
            self.muon_polynomial(order);
        }
    }

    fn muon_direction(&mut self, matrix: MatrixPart) {
        const GRAD_AT: usize = 3;
        let MatrixPart { at, rows, cols } = matrix;
        let (mut momentum, grad) =
            (self.input(Role::F32, matrix.end(), 0.1), self.input(Role::F32, GRAD_AT + matrix.end(), 1.0));
        let mut direction = self.poisoned(Role::Activation, matrix.elements());
        let op = MuonDirection {
            direction: &mut direction,
            momentum: &mut momentum.buf,
            grad: &grad.buf,
            grad_at: GRAD_AT,
            matrix,
            beta: 0.95,
            grad_scale: 0.5,
        };
        self.ops.muon_direction(op).unwrap();
        let (beta, rest) = (f64::from(0.95f32), f64::from(1.0 - 0.95f32));
        let mut ahead = vec![0.0; matrix.elements()];
        for (i, ahead) in ahead.iter_mut().enumerate() {
            let (m, g) = (&mut momentum.values[at + i], 0.5 * grad.values[GRAD_AT + at + i]);
            *m = beta * *m + rest * g;
            *ahead = beta * *m + rest * g;
        }
        let norm = ahead.iter().map(|u| u * u).sum::<f64>().sqrt();
        let mut want = vec![0.0; matrix.elements()];
        for (i, ahead) in ahead.iter().enumerate() {
            want[matrix.in_direction(i / cols, i % cols)] = ahead / norm;
        }
        self.result(&format!("muon_direction m {rows} {cols}"), &momentum.buf, momentum.values);
        self.result(&format!("muon_direction {rows} {cols}"), &direction, want);
    }

    fn muon_polynomial(&mut self, order: usize) {
        let coefficients = [3.4445, -4.775, 2.0315];
        let gram = self.input(Role::Activation, order * order, 1.0);
        let mut square = self.input(Role::Activation, order * order, 1.0);
        let op = MuonPolynomial { square: &mut square.buf, gram: &gram.buf, order, coefficients };
        self.ops.muon_polynomial(op).unwrap();
        let [a, b, c] = coefficients.map(f64::from);
        let one = |i: usize| if i / order == i % order { a } else { 0.0 };
        let both = square.values.iter().zip(&gram.values).enumerate();
        let want = both.map(|(i, (square, gram))| one(i) + b * gram + c * square).collect();
        self.result(&format!("muon_polynomial {order}"), &square.buf, want);
    }

    fn muon_update(&mut self, matrix: MatrixPart, masters: bool) {
        let MatrixPart { at, rows, cols } = matrix;
        let mut param = self.input(Role::Param, matrix.end(), 1.0);
        let mut master = self.input(Role::F32, matrix.end(), 1.0);
        let direction = self.input(Role::Activation, matrix.elements(), 1.0);
        let op = MuonUpdate {
            id: 3,
            param: &mut param.buf,
            master: masters.then_some(&mut master.buf),
            direction: &direction.buf,
            matrix,
            learning_rate: 0.02,
            weight_decay: 0.1,
            scale: 0.7,
            rounding_key: [1, 2],
            step: 2,
        };
        self.ops.muon_update(op).unwrap();
        let [rate, decay, scale] = [0.02f32, 0.1, 0.7].map(f64::from);
        let kept = if masters { &mut master.values } else { &mut param.values };
        for i in 0..matrix.elements() {
            let x = direction.values[matrix.in_direction(i / cols, i % cols)];
            kept[at + i] -= rate * (decay * kept[at + i] + scale * x);
        }
        let name = |what| format!("muon_update {what} {rows} {cols} {masters}");
        if masters {
            self.result(&name("master"), &master.buf, master.values.clone());
            param.values[at..].copy_from_slice(&master.values[at..]);
        }
        self.result(&name("param"), &param.buf, param.values);
    }
}
