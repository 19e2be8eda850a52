//! Rotary position embeddings (Su et al. 2021).

use super::{ElementBytes, Family, Operation, Work};
use crate::ops::types::{Heads, Rows};

/// Turns the queries and keys of `qkv` by angles that grow with the position; values are left alone. The
/// pairs are neighbours (2i, 2i + 1) of a head, as in GPT-J: `(a, b) -> (a cos - b sin, a sin + b cos)`,
/// computed as `fma(a, cos, -(b sin))` and `fma(a, sin, b cos)`. The inverse takes `-sin` in the place of
/// `sin`: it is also how the gradient of the turned vectors becomes that of the ones before.
pub struct Rotary<'a, B, I> {
    /// (N, NH + 2 KH, HS), activation: written in place.
    pub qkv: &'a mut B,
    /// (P, HS/2, 2), f32: [`rotary_table`] of at least as many positions as `at` has.
    pub table: &'a B,
    /// The base that `table` was made with: from it the audit makes the table again.
    pub theta: f64,
    pub at: RotaryAt<'a, I>,
    /// HS is even.
    pub heads: Heads,
    pub inverse: bool,
}

/// Which position each row has.
pub enum RotaryAt<'a, I> {
    /// Row `b T + t` has position t.
    Sequences(Rows),
    /// Decoding: positions (n) of `rows` = n rows, each below P.
    Listed { positions: &'a I, rows: usize },
}

impl<I> Clone for RotaryAt<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for RotaryAt<'_, I> {}

impl<I> RotaryAt<'_, I> {
    /// N.
    pub fn rows(&self) -> usize {
        match self {
            RotaryAt::Sequences(rows) => rows.count(),
            RotaryAt::Listed { rows, .. } => *rows,
        }
    }
}

/// Cosine and sine of `position theta^(-2i / HS)`, (positions, HS/2, 2): computed in f64 by `libm`, the same
/// on every machine, and rounded once.
pub fn rotary_table(positions: usize, head_size: usize, theta: f64) -> Vec<f32> {
    let pairs = head_size / 2;
    let frequencies: Vec<f64> =
        (0..pairs).map(|i| libm::pow(theta, -((2 * i) as f64) / head_size as f64)).collect();
    let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
    angles.flat_map(|angle| [libm::cos(angle) as f32, libm::sin(angle) as f32]).collect()
}

impl<B, I> Operation for Rotary<'_, B, I> {
    fn family(&self) -> Family {
        Family::Rotary
    }

    fn label(&self) -> String {
        if self.inverse { "rotary backward".into() } else { "rotary".into() }
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(2 * self.at.rows() * self.heads.of_queries_and_keys() * self.heads.head_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_cosines_and_sines_of_its_angles() {
        let (positions, head_size, theta) = (70, 6, 10_000.0);
        let table = rotary_table(positions, head_size, theta);
        assert_eq!(table.len(), positions * head_size);
        assert!(
            table[..head_size].as_chunks::<2>().0.iter().all(|pair| *pair == [1.0, 0.0]),
            "no angle at 0"
        );
        for position in 0..positions {
            for i in 0..head_size / 2 {
                // theta^(-2i/HS) by roots: 1, theta^(-1/3), its square.
                let root = 1.0 / libm::cbrt(theta);
                let angle = position as f64 * [1.0, root, root * root][i];
                let at = (position * head_size / 2 + i) * 2;
                assert!((f64::from(table[at]) - libm::cos(angle)).abs() < 1e-7, "{position} {i}");
                assert!((f64::from(table[at + 1]) - libm::sin(angle)).abs() < 1e-7, "{position} {i}");
            }
        }
        // A position far out, where an angle in f32 would have lost all of its digits.
        let far = rotary_table(60_000, 2, theta);
        assert_eq!(far[2 * 59_999], libm::cos(59_999.0) as f32);
        // A longer table begins with the shorter one.
        assert_eq!(rotary_table(9, head_size, theta), table[..9 * head_size]);
    }
}
