//! AdamW, the average of the weights, sums of squares and sums of tensors, whole and by parts.

use std::ops::Range;

use super::{Bench, random, sum};
use crate::ops::{
    AdamW, AdamWUpdate, Add, AddPart, Average, ChunkSquares, CopyPart, Ops, ParamSlot, Role, SumSquares,
};

/// SHA-256 of the outputs of each operation's cases on the CPU, little-endian, in the order of the cases.
pub(super) const CPU_BITS: &[(&str, &str)] = &[
    ("sum_squares", "a9412502388bd5346ab0b49da26f9f1321d6c3906ee2b44ba468af3dcb854a6f"),
    ("add", "6216fec19f0af0e3857e5d63504c3494e4e9388ff45d6c0461bdc3b71f4d2205"),
    ("copy", "7e3c29635089d35a672399c727e8b39ad310621ac984ffe77e953c431f71ed4e"),
    ("adamw", "0f2fc1740b14942e92ad30456a2ae75788ef2e20ea391642ac79afbc2aaecdb6"),
    ("average", "599298ba7e49c31b3dfd216f47fa087891b3dbcf9a6f250b6fbc43f03eb38168"),
];

impl<O: Ops> Bench<'_, O> {
    pub(super) fn optimizer(&mut self) {
        for len in [1, 17, 70_001] {
            let x = self.input(Role::F32, len, 1.0);
            let squares = self.ops.sum_squares(SumSquares { tensors: &[&x.buf, &x.buf] }).unwrap();
            assert_eq!(squares[0].to_bits(), squares[1].to_bits());
            let got = self.input_of(Role::F32, &[squares[0] as f32]).buf;
            self.result(&format!("sum_squares {len}"), &got, vec![x.values.iter().map(|x| x * x).sum()]);
            // All bits of the double, which decides the clipping and stands in the ledger.
            let words = [squares[0].to_bits() >> 48, squares[0].to_bits() >> 24, squares[0].to_bits()];
            let words = words.map(|word| f64::from(word as u32 & 0xff_ffff));
            let got = self.input_of(Role::F32, &words.map(|word| word as f32)).buf;
            self.result(&format!("sum_squares {len}, bits"), &got, words.to_vec());

            let (a, b) = (self.input(Role::F32, len, 1.0), self.input(Role::F32, len, 1.0));
            let mut total = a.buf;
            self.ops.add(Add { dst: &mut total, src: &b.buf }).unwrap();
            self.result(&format!("add {len}"), &total, sum(&a.values, &b.values));
            let mut row = self.poisoned(Role::F32, 1);
            let op = CopyPart { dst: &mut row, at: 0, src: &total, from: len - 1, len: 1 };
            self.ops.copy(op).unwrap();
            self.result(&format!("copy {len}"), &row, vec![a.values[len - 1] + b.values[len - 1]]);

            self.adamw(len);
        }
        self.parts();
        self.average();
    }

    /// The average of parameters and of masters, and by parts the bits of the whole.
    fn average(&mut self) {
        let chunk = self.ops.chunk();
        for (len, masters) in [(1, true), (17, false), (chunk + 1021, true), (chunk + 1021, false)] {
            let (param, mut kept) = (self.input(Role::Param, len, 1.0), self.input(Role::F32, len, 1.0));
            let master = self.input(Role::F32, len, 1.0);
            let mut values = vec![0; 4 * len];
            self.ops.read_bytes(&kept.buf, &mut values).unwrap();
            for at in (0..len).step_by(chunk) {
                let part = at..len.min(at + chunk);
                let piece = |ops: &mut O, bytes: &[u8]| {
                    let mut buf = ops.alloc(Role::F32, part.len()).unwrap();
                    ops.write_bytes(&mut buf, bytes).unwrap();
                    buf
                };
                let mut average = piece(self.ops, &values[4 * part.start..4 * part.end]);
                let mut bytes = vec![0; 4 * part.len()];
                self.ops.read_at(&master.buf, 4 * at, &mut bytes).unwrap();
                let of_part = piece(self.ops, &bytes);
                let op = Average {
                    average: &mut average,
                    param: &param.buf,
                    at,
                    master: masters.then_some(&of_part),
                    rate: 0.3,
                };
                self.ops.average(op).unwrap();
                self.ops.read_bytes(&average, &mut values[4 * part.start..4 * part.end]).unwrap();
            }
            let op = Average {
                average: &mut kept.buf,
                param: &param.buf,
                at: 0,
                master: masters.then_some(&master.buf),
                rate: 0.3,
            };
            self.ops.average(op).unwrap();
            let mut whole = vec![0; 4 * len];
            self.ops.read_bytes(&kept.buf, &mut whole).unwrap();
            assert!(whole == values, "an average of {len} by parts, masters {masters}");
            let of = if masters { &master.values } else { &param.values };
            let want = kept.values.iter().zip(of).map(|(e, w)| e + f64::from(0.3f32) * (w - e)).collect();
            self.result(&format!("average {len} {masters}"), &kept.buf, want);
        }
    }

    /// Devices that share a tensor compute, part by part, the bits of one that has it whole.
    fn parts(&mut self) {
        let chunk = self.ops.chunk();
        let len = 3 * chunk - 17;
        let parts = [0..chunk, chunk..2 * chunk, 2 * chunk..len];
        let (grad, more) = (self.input(Role::F32, len, 1.0).buf, self.input(Role::F32, len, 1.0).buf);

        let whole = self.ops.sum_squares(SumSquares { tensors: &[&grad] }).unwrap()[0];
        let mut squares = |parts: &[Range<usize>]| {
            let parts: Vec<_> = parts.iter().map(|part| (&grad, part.clone())).collect();
            self.ops.chunk_squares(ChunkSquares { parts: &parts }).unwrap()
        };
        let chunks: Vec<f64> = parts.iter().flat_map(|part| squares(std::slice::from_ref(part))).collect();
        assert_eq!(chunks, squares(&[0..chunk, chunk..len]));
        assert_eq!(self.ops.fold_squares(&chunks).to_bits(), whole.to_bits());
        // More chunks than threads of any kernel that adds them.
        let many: Vec<f64> = (0..1000).map(|i| 1.0 / f64::from(i + 1)).collect();
        assert!((self.ops.fold_squares(&many) - many.iter().sum::<f64>()).abs() < 1e-12);

        let bytes = |ops: &mut O, buf: &O::Buf, elements: usize, size: usize| {
            let mut bytes = vec![0; elements * size];
            ops.read_bytes(buf, &mut bytes).unwrap();
            bytes
        };
        let wide = |ops: &mut O, values: &[u8]| {
            let mut buf = ops.alloc(Role::F32, values.len() / 4).unwrap();
            ops.write_bytes(&mut buf, values).unwrap();
            buf
        };
        let before = bytes(self.ops, &grad, len, 4);
        let mut sum = wide(self.ops, &before);
        self.ops.add(Add { dst: &mut sum, src: &more }).unwrap();
        let mut by_parts = wide(self.ops, &before);
        let content = bytes(self.ops, &more, len, 4);
        for part in &parts {
            let piece = wide(self.ops, &content[4 * part.start..4 * part.end]);
            let (at, len) = (part.start, part.len());
            self.ops.add_part(AddPart { dst: &mut by_parts, at, src: &piece, from: 0, len }).unwrap();
        }
        assert!(bytes(self.ops, &sum, len, 4) == bytes(self.ops, &by_parts, len, 4), "add_part");

        // AdamW, with masters and (where parameters are narrow, rounded stochastically) without.
        let update = AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            correction1: 1.2,
            correction2: 1.1,
            grad_scale: 0.5,
            rounding_key: [3, 4],
            step: 5,
        };
        let size = self.ops.dtype(Role::Param).size();
        for masters in [true, false] {
            let run = |test: &mut Self, parts: &[Range<usize>]| {
                let start = bytes(test.ops, &more, len, 4);
                let mut param = test.ops.alloc(Role::Param, len).unwrap();
                let values: Vec<f32> =
                    start.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                test.ops.upload(&mut param, &values).unwrap();
                let mut kept = Vec::new();
                for part in parts {
                    let mut master = wide(test.ops, &start[4 * part.start..4 * part.end]);
                    let (mut m, mut v) = (
                        test.ops.alloc(Role::F32, part.len()).unwrap(),
                        test.ops.alloc(Role::F32, part.len()).unwrap(),
                    );
                    let slot = ParamSlot {
                        id: 3,
                        at: part.start,
                        param: &mut param,
                        master: masters.then_some(&mut master),
                        grad: &grad,
                        grad_at: part.start,
                        adam_m: &mut m,
                        adam_v: &mut v,
                        weight_decay: 0.1,
                    };
                    test.ops.adamw(AdamWUpdate { slots: vec![slot], scalars: update }).unwrap();
                    kept.extend([&master, &m, &v].map(|buf| bytes(test.ops, buf, part.len(), 4)));
                }
                let [master, m, v] =
                    [0, 1, 2].map(|k| kept.iter().skip(k).step_by(3).flatten().copied().collect::<Vec<u8>>());
                [bytes(test.ops, &param, len, size), master, m, v]
            };
            let whole = run(self, std::slice::from_ref(&(0..len)));
            assert!(run(self, &parts) == whole, "AdamW of parts, masters {masters}");
        }

        let mut piece = vec![0; 64];
        self.ops.read_at(&more, 4 * chunk, &mut piece).unwrap();
        assert_eq!(piece, content[4 * chunk..4 * chunk + 64]);
        self.ops.write_at(&mut by_parts, 4 * (chunk + 8), &piece).unwrap();
        let mut back = vec![0; 128];
        self.ops.read_at(&by_parts, 4 * chunk, &mut back).unwrap();
        assert_eq!(back[32..96], piece[..]);
    }

    fn adamw(&mut self, len: usize) {
        let update = AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            correction1: 1.0 / (1.0 - 0.9 * 0.9),
            correction2: 1.0 / (1.0 - 0.95 * 0.95),
            grad_scale: 0.5,
            rounding_key: [1, 2],
            step: 2,
        };
        let (mut param, grad) = (self.input(Role::Param, len, 1.0), self.input(Role::F32, len, 1.0));
        let master: Vec<f32> = param.values.iter().map(|p| *p as f32).collect();
        let mut master = self.input_of(Role::F32, &master);
        let mut m = self.input(Role::F32, len, 0.1);
        let v: Vec<f32> = random(self.seed, len, 0.3).into_iter().map(|x| x * x + 0.01).collect();
        let mut v = self.input_of(Role::F32, &v);
        let slot = ParamSlot {
            id: 3,
            at: 0,
            param: &mut param.buf,
            master: Some(&mut master.buf),
            grad: &grad.buf,
            grad_at: 0,
            adam_m: &mut m.buf,
            adam_v: &mut v.buf,
            weight_decay: 0.1,
        };
        self.ops.adamw(AdamWUpdate { slots: vec![slot], scalars: update }).unwrap();
        let wide = |x: f32| f64::from(x);
        for i in 0..len {
            let g = grad.values[i] * wide(update.grad_scale);
            m.values[i] = wide(update.beta1) * m.values[i] + (1.0 - wide(update.beta1)) * g;
            v.values[i] = wide(update.beta2) * v.values[i] + (1.0 - wide(update.beta2)) * g * g;
            let root = (v.values[i] * wide(update.correction2)).sqrt() + wide(update.epsilon);
            let step = m.values[i] * wide(update.correction1) / root + 0.1 * master.values[i];
            master.values[i] -= wide(update.learning_rate) * step;
        }
        self.result(&format!("adamw m {len}"), &m.buf, m.values);
        self.result(&format!("adamw v {len}"), &v.buf, v.values);
        self.result(&format!("adamw master {len}"), &master.buf, master.values.clone());
        self.result(&format!("adamw param {len}"), &param.buf, master.values);
    }
}
