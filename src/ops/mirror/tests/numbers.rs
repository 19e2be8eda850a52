//! The numbers that operations are tried on.

use rayon::prelude::*;

use super::filled;
use crate::ops::{Ops, Role};
use crate::rng::Key;

/// The kinds of numbers that operations meet, or should survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    Normal,
    /// Exponents spread over 60 doublings.
    Wide,
    /// Around the smallest normal number, most of them subnormal.
    Subnormal,
    /// Normal, and now and then an infinity, a NaN, a zero of either sign, or the largest number.
    Special,
    /// So large that scores lie below every start of a maximum, and their products are still finite.
    Huge,
    /// Normal with runs of 8192 that are wide or subnormal, and a few that are special.
    Mixed,
}

/// Inputs by number, the same for every device.
pub struct Draw {
    pub numbers: Numbers,
    pub count: u64,
}

impl Draw {
    pub fn values(&mut self, len: usize, scale: f64) -> Vec<f32> {
        self.count += 1;
        let key = Key::new(self.count, "ops/mirror");
        let number = |i: usize| {
            let (normal, words) = (key.normal(0, i as u64), key.block_at(1, i as u64));
            let spread = f64::from(words[0] % 60) - 30.0;
            let numbers = match (self.numbers, key.block_at(2, i as u64 / 8192)[0] % 32, words[1] % 200_000) {
                (Numbers::Mixed, 0, _) => Numbers::Wide,
                (Numbers::Mixed, 1, _) => Numbers::Subnormal,
                (Numbers::Mixed, _, 0) => Numbers::Special,
                (Numbers::Mixed, ..) => Numbers::Normal,
                (numbers, ..) => numbers,
            };
            let special = if self.numbers == Numbers::Mixed { words[0] % 6 } else { words[0] % 2000 };
            match numbers {
                Numbers::Normal | Numbers::Mixed => (scale * normal) as f32,
                Numbers::Huge => (1e15 * normal) as f32,
                Numbers::Wide => (normal * libm::exp2(spread)) as f32,
                Numbers::Subnormal => (normal * libm::exp2(-126.0 - spread.abs() / 8.0)) as f32,
                Numbers::Special => match special {
                    0 => f32::INFINITY,
                    1 => f32::NEG_INFINITY,
                    2 => f32::NAN,
                    3 => -0.0,
                    4 => 0.0,
                    5 => 3.38e38,
                    _ => (scale * normal) as f32,
                },
            }
        };
        (0..len).into_par_iter().map(number).collect()
    }

    pub fn buf<O: Ops>(&mut self, ops: &mut O, role: Role, len: usize, scale: f64) -> O::Buf {
        filled(ops, role, &self.values(len, scale))
    }

    /// Normal where others are mixed: what reaches every row of an output would hide the rest.
    pub fn even<O: Ops>(&mut self, ops: &mut O, role: Role, len: usize, scale: f64) -> O::Buf {
        let mixed = std::mem::replace(&mut self.numbers, Numbers::Normal);
        if mixed != Numbers::Mixed {
            self.numbers = mixed;
        }
        let buf = self.buf(ops, role, len, scale);
        self.numbers = mixed;
        buf
    }

    pub fn ids<O: Ops>(&mut self, ops: &mut O, len: usize, vocab: usize) -> O::Ids {
        self.count += 1;
        let key = Key::new(self.count, "ops/mirror/ids");
        // Squared, so that some tokens come often.
        let id = |i| (key.uniform(0, i) * key.uniform(1, i) * vocab as f64) as u16;
        let values: Vec<u16> = (0..len as u64).map(id).collect();
        let mut ids = ops.alloc_ids(len).expect("memory");
        ops.upload_ids(&mut ids, &values).expect("an upload");
        ids
    }
}
