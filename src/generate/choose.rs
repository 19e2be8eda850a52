//! Which token comes next: temperature, top-k, top-p and one random number.
//!
//! All in f64 with the pinned `libm`, summed in order of token, so that a choice is a function of the logits'
//! bits.

use crate::ops::cpu::libm_vectors::exp_all;
use crate::rng::Key;

/// Logits that are looked at together.
const BLOCK: usize = 1024;

/// How to choose the next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the k likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Only the fewest likeliest tokens whose probabilities add up to this, counted after `temperature` and
    /// `top_k` (nucleus sampling, Holtzman et al. 2020); 1 is all.
    pub top_p: f64,
    /// Random numbers of all texts of one request.
    pub key: Key,
}

/// Room for the work of a choice. A text keeps it from token to token: memory of this size, taken anew, costs
/// more than what is done in it.
#[derive(Default)]
pub struct ChoiceRoom {
    /// The tokens of the weights; empty where all are considered.
    considered: Vec<u16>,
    weights: Vec<f64>,
}

impl Sampling {
    /// Draws the token at `position` of the text `number`: the random number at that counter decides.
    pub fn choose(&self, logits: &[f32], number: u64, position: u64, room: &mut ChoiceRoom) -> u16 {
        let likeliest = argmax(logits);
        if self.temperature <= 0.0 {
            return likeliest as u16;
        }
        let floor = kth_largest(logits, self.top_k);
        // Tokens that are not considered would add zeros.
        let ChoiceRoom { considered, weights } = room;
        let max = f64::from(logits[likeliest]);
        considered.clear();
        weights.clear();
        let exponent = |logit: f32| (f64::from(logit) - max) / self.temperature;
        if floor == f32::NEG_INFINITY {
            weights.extend(logits.iter().map(|&logit| exponent(logit)));
        } else {
            considered.extend((0..=u16::MAX).zip(logits).filter(|(_, l)| **l >= floor).map(|(t, _)| t));
            weights.extend(considered.iter().map(|&token| exponent(logits[usize::from(token)])));
        }
        exp_all(weights);
        keep_nucleus(weights, self.top_p);
        let mut left = self.key.uniform(number, position) * weights.iter().sum::<f64>();
        for (at, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return considered.get(at).copied().unwrap_or(at as u16);
            }
        }
        likeliest as u16
    }
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> usize {
    // Without a branch, and so by vectors: of whole blocks, then within the first that has the largest.
    let largest =
        |block: &[f32]| block.iter().fold(f32::NEG_INFINITY, |max, &l| if l > max { l } else { max });
    let largest = logits.chunks(BLOCK).map(largest).fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0)
}

/// The k-th largest logit, below which tokens are not considered; all are when k is 0.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    // The k largest so far are among these.
    let (mut largest, mut floor) = (Vec::with_capacity(2 * k), f32::NEG_INFINITY);
    for &logit in logits {
        if logit > floor || largest.len() < k {
            largest.push(logit);
            if largest.len() == 2 * k {
                floor = *largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
                largest.truncate(k);
            }
        }
    }
    *largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Sets to 0 all but the largest weights, as few as make up the share `top_p` of the sum. Of equal weights
/// those of lower tokens count as larger, so that the choice is one.
fn keep_nucleus(weights: &mut [f64], top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let enough = top_p * weights.iter().sum::<f64>();
    let mut order: Vec<usize> = (0..weights.len()).filter(|&token| weights[token] > 0.0).collect();
    let larger = |&a: &usize, &b: &usize| weights[b].total_cmp(&weights[a]).then(a.cmp(&b));
    // A nucleus is mostly small: only as many of the largest are put in order as it takes.
    let (mut sum, mut kept, mut sorted) = (0.0, 0, 0);
    while sum < enough && kept < order.len() {
        if kept == sorted {
            let rest = &mut order[sorted..];
            let more = (sorted * 4).max(64).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable_by(more, larger);
            }
            rest[..more].sort_unstable_by(larger);
            sorted += more;
        }
        sum += weights[order[kept]];
        kept += 1;
    }
    for token in order.split_off(kept) {
        weights[token] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> ChoiceRoom {
        ChoiceRoom::default()
    }

    fn sampling(temperature: f64, top_k: usize) -> Sampling {
        Sampling { temperature, top_k, top_p: 1.0, key: Key::new(1, "test") }
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_likeliest() {
        assert_eq!(sampling(0.0, 0).choose(&[0.0, 3.0, 3.0, -1.0], 0, 0, &mut room()), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, libm::logf(3.0)];
        let draws = 20_000;
        let ones = (0..draws).filter(|&i| sampling(1.0, 0).choose(&logits, 0, i, &mut room()) == 1).count();
        let share = ones as f64 / draws as f64;
        assert!((share - 0.75).abs() < 0.01, "share {share}");
    }

    #[test]
    fn top_k_leaves_only_the_k_likeliest() {
        let logits = [1.0f32, 5.0, 4.9, 2.0];
        assert!((0..2000).all(|i| [1, 2].contains(&sampling(5.0, 2).choose(&logits, 0, i, &mut room()))));
    }

    #[test]
    fn top_p_keeps_the_fewest_likeliest_that_reach_it() {
        let kept = |top_p: f64| {
            let mut weights = [1.0, 4.0, 2.0, 2.0, 1.0, 0.0];
            keep_nucleus(&mut weights, top_p);
            weights
        };
        assert_eq!(kept(1e-9), [0.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(0.4), [0.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(0.41), [0.0, 4.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(kept(0.8), [0.0, 4.0, 2.0, 2.0, 0.0, 0.0]);
        assert_eq!(kept(0.9), [1.0, 4.0, 2.0, 2.0, 0.0, 0.0]);
        assert_eq!(kept(1.0), [1.0, 4.0, 2.0, 2.0, 1.0, 0.0]);
    }

    #[test]
    fn top_p_draws_only_from_the_nucleus_and_counts_after_top_k() {
        let logits = [1.0f32, 5.0, 4.9, 2.0];
        let draws = |top_k: usize, top_p: f64| {
            let sampling = Sampling { top_p, ..sampling(1.0, top_k) };
            (0..2000)
                .map(|i| sampling.choose(&logits, 0, i, &mut room()))
                .collect::<std::collections::BTreeSet<u16>>()
        };
        assert_eq!(draws(0, 0.9), [1, 2].into());
        // The likeliest has 0.51 of all, and 0.525 of the two likeliest.
        assert_eq!(draws(0, 0.515), [1, 2].into());
        assert_eq!(draws(2, 0.515), [1].into());
    }

    #[test]
    fn a_nucleus_of_many_tokens_is_that_of_a_whole_sort() {
        let key = Key::new(2, "test");
        // Many ties, and sizes on both sides of the first piece that is sorted.
        let weights: Vec<f64> = (0..3000).map(|i| libm::floor(key.uniform(0, i) * 50.0)).collect();
        let mut order: Vec<usize> = (0..weights.len()).filter(|&token| weights[token] > 0.0).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        for top_p in [1e-9, 0.01, 0.03, 0.04, 0.2, 0.7, 0.999] {
            let enough = top_p * weights.iter().sum::<f64>();
            let mut want = vec![0.0; weights.len()];
            let mut sum = 0.0;
            for &token in order.iter().take_while(|&&token| {
                let before = sum;
                sum += weights[token];
                before < enough
            }) {
                want[token] = weights[token];
            }
            let mut got = weights.clone();
            keep_nucleus(&mut got, top_p);
            assert!(got == want, "top_p {top_p}");
        }
    }

    #[test]
    fn texts_of_one_key_draw_different_numbers() {
        let logits = [0.0f32; 1000];
        let draws = |number| {
            (0..20).map(|i| sampling(1.0, 0).choose(&logits, number, i, &mut room())).collect::<Vec<u16>>()
        };
        assert_ne!(draws(0), draws(1));
        assert_eq!(draws(1), draws(1));
    }
}
