//! Text from a model: one token after the other, each chosen by a counter-based random number.
//!
//! Sampling reads the weights and nothing else of the training state; the same seed gives the same
//! text. The window is the model's context: when it is full, the oldest half is dropped.

use crate::model::Gpt2;
use crate::ops::{Ops, Result};
use crate::rng::Key;

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
    /// Random numbers of this text.
    pub key: Key,
}

/// Continues `prompt` (at least one token) by up to `count` tokens, each handed to `emit`, which
/// ends the text by answering `false`.
pub fn generate<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    prompt: &[u16],
    count: usize,
    sampling: &Sampling,
    mut emit: impl FnMut(u16) -> bool,
) -> Result<()> {
    let window = model.capacity().count().min(model.config.context);
    let mut tokens = prompt[prompt.len().saturating_sub(window)..].to_vec();
    for i in 0..count {
        if tokens.len() == window {
            tokens.drain(..window / 2);
        }
        let logits = model.next_token_logits(ops, &tokens)?;
        let token = choose(&logits, sampling, i as u64);
        tokens.push(token);
        if !emit(token) {
            break;
        }
    }
    Ok(())
}

/// Draws a token: softmax in f64 with the pinned `libm`, summed in order of token.
fn choose(logits: &[f32], sampling: &Sampling, position: u64) -> u16 {
    let likeliest = argmax(logits);
    if sampling.temperature <= 0.0 {
        return likeliest as u16;
    }
    let floor = kth_largest(logits, sampling.top_k);
    let max = f64::from(logits[likeliest]);
    let weight = |logit: f32| {
        if logit < floor { 0.0 } else { libm::exp((f64::from(logit) - max) / sampling.temperature) }
    };
    let mut weights: Vec<f64> = logits.iter().map(|&l| weight(l)).collect();
    keep_nucleus(&mut weights, sampling.top_p);
    let mut left = sampling.key.uniform(0, position) * weights.iter().sum::<f64>();
    for (token, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return token as u16;
        }
    }
    likeliest as u16
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best
}

/// The k-th largest logit, below which tokens are not considered; all are when k is 0.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let mut sorted = logits.to_vec();
    let (_, kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    *kth
}

/// Sets to 0 all but the largest weights, as few as make up the share `top_p` of the sum. Of equal weights
/// those of lower tokens count as larger, so that the choice is one.
fn keep_nucleus(weights: &mut [f64], top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let enough = top_p * weights.iter().sum::<f64>();
    let mut order: Vec<usize> = (0..weights.len()).filter(|&token| weights[token] > 0.0).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let mut sum = 0.0;
    for token in order {
        if sum >= enough {
            weights[token] = 0.0;
        }
        sum += weights[token];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_k: usize) -> Sampling {
        Sampling { temperature, top_k, top_p: 1.0, key: Key::new(1, "test") }
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_likeliest() {
        assert_eq!(choose(&[0.0, 3.0, 3.0, -1.0], &sampling(0.0, 0), 0), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, libm::logf(3.0)];
        let draws = 20_000;
        let ones = (0..draws).filter(|&i| choose(&logits, &sampling(1.0, 0), i) == 1).count();
        let share = ones as f64 / draws as f64;
        assert!((share - 0.75).abs() < 0.01, "share {share}");
    }

    #[test]
    fn top_k_leaves_only_the_k_likeliest() {
        let logits = [1.0f32, 5.0, 4.9, 2.0];
        assert!((0..2000).all(|i| [1, 2].contains(&choose(&logits, &sampling(5.0, 2), i))));
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
            (0..2000).map(|i| choose(&logits, &sampling, i)).collect::<std::collections::BTreeSet<u16>>()
        };
        assert_eq!(draws(0, 0.9), [1, 2].into());
        // The likeliest has 0.51 of all, and 0.525 of the two likeliest.
        assert_eq!(draws(0, 0.515), [1, 2].into());
        assert_eq!(draws(2, 0.515), [1].into());
    }
}
