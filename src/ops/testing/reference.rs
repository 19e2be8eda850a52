//! Plain f64 forms of the operations: loops that follow the formulas and nothing else.

use crate::ops::{Heads, LogitTerms, Nonlinearity, Rows, Vocab};

/// Row-major (rows, columns) times the transpose of (out, columns), plus bias.
pub fn linear(
    x: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    n: usize,
    c_in: usize,
    c_out: usize,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(n * c_out);
    for i in 0..n {
        for j in 0..c_out {
            let sum: f64 = (0..c_in).map(|k| x[i * c_in + k] * weight[j * c_in + k]).sum();
            out.push(sum + bias.map_or(0.0, |bias| bias[j]));
        }
    }
    out
}

/// `dout weight`.
pub fn linear_backward_input(dout: &[f64], weight: &[f64], n: usize, c_in: usize, c_out: usize) -> Vec<f64> {
    let mut dx = vec![0.0; n * c_in];
    for i in 0..n {
        for j in 0..c_out {
            for k in 0..c_in {
                dx[i * c_in + k] += dout[i * c_out + j] * weight[j * c_in + k];
            }
        }
    }
    dx
}

/// (`doutᵀ x`, column sums of `dout`).
pub fn linear_backward_weight(
    dout: &[f64],
    x: &[f64],
    n: usize,
    c_in: usize,
    c_out: usize,
) -> (Vec<f64>, Vec<f64>) {
    let (mut dweight, mut dbias) = (vec![0.0; c_out * c_in], vec![0.0; c_out]);
    for i in 0..n {
        for j in 0..c_out {
            let d = dout[i * c_out + j];
            dbias[j] += d;
            for k in 0..c_in {
                dweight[j * c_in + k] += d * x[i * c_in + k];
            }
        }
    }
    (dweight, dbias)
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::tanh((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)))
}

pub fn gelu_derivative(x: f64) -> f64 {
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let t = libm::tanh(scale * (x + 0.044715 * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * scale * (1.0 + 3.0 * 0.044715 * x * x)
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// Of SwiGLU, `pre` is pairs of gate and up.
pub fn activate(pre: &[f64], function: Nonlinearity) -> Vec<f64> {
    match function {
        Nonlinearity::Gelu => pre.iter().map(|x| gelu(*x)).collect(),
        Nonlinearity::SquaredRelu => pre.iter().map(|x| x.max(0.0) * x.max(0.0)).collect(),
        Nonlinearity::Swiglu => {
            pre.as_chunks().0.iter().map(|[gate, up]| gate * logistic(*gate) * up).collect()
        }
    }
}

/// `dpre`.
pub fn activate_backward(dout: &[f64], pre: &[f64], function: Nonlinearity) -> Vec<f64> {
    let each = |slope: fn(f64) -> f64| dout.iter().zip(pre).map(|(d, x)| d * slope(*x)).collect();
    match function {
        Nonlinearity::Gelu => each(gelu_derivative),
        Nonlinearity::SquaredRelu => each(|x| 2.0 * x.max(0.0)),
        Nonlinearity::Swiglu => {
            let gradients = |(d, [gate, up]): (&f64, &[f64; 2])| {
                let s = logistic(*gate);
                [d * up * s * (1.0 + gate * (1.0 - s)), d * gate * s]
            };
            dout.iter().zip(pre.as_chunks().0).flat_map(gradients).collect()
        }
    }
}

/// (out, mean, rstd)
pub fn layernorm(x: &[f64], weight: &[f64], bias: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut out, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
    for row in x.chunks(channels) {
        let mean = row.iter().sum::<f64>() / channels as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / channels as f64;
        let rstd = 1.0 / (variance + 1e-5).sqrt();
        out.extend(row.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) * rstd * w + b));
        means.push(mean);
        rstds.push(rstd);
    }
    (out, means, rstds)
}

/// (dx, dweight, dbias)
pub fn layernorm_backward(
    dout: &[f64],
    x: &[f64],
    weight: &[f64],
    channels: usize,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (_, means, rstds) = layernorm(x, weight, &vec![0.0; channels], channels);
    let (mut dx, mut dweight, mut dbias) = (Vec::new(), vec![0.0; channels], vec![0.0; channels]);
    for (i, (dout, x)) in dout.chunks(channels).zip(x.chunks(channels)).enumerate() {
        let h: Vec<f64> = x.iter().map(|x| (x - means[i]) * rstds[i]).collect();
        let g: Vec<f64> = dout.iter().zip(weight).map(|(d, w)| d * w).collect();
        let mean_g = g.iter().sum::<f64>() / channels as f64;
        let mean_gh = g.iter().zip(&h).map(|(g, h)| g * h).sum::<f64>() / channels as f64;
        for c in 0..channels {
            dx.push(rstds[i] * (g[c] - mean_g - h[c] * mean_gh));
            dweight[c] += dout[c] * h[c];
            dbias[c] += dout[c];
        }
    }
    (dx, dweight, dbias)
}

/// Queries and keys of `qkv` (N, NH + 2 KH, HS), each turned by `position theta^(-2i/HS)`, or by its
/// negative.
pub fn rotary(qkv: &[f64], positions: &[usize], heads: Heads, theta: f64, inverse: bool) -> Vec<f64> {
    let (wide, size) = (heads.qkv_channels(), heads.head_size);
    let mut out = qkv.to_vec();
    for (row, position) in out.chunks_mut(wide).zip(positions) {
        for head in row[..(heads.heads + heads.kv_heads) * size].chunks_mut(size) {
            for (i, pair) in head.chunks_mut(2).enumerate() {
                let angle = *position as f64 * libm::pow(theta, -2.0 * i as f64 / size as f64);
                let angle = if inverse { -angle } else { angle };
                let [a, b] = [pair[0], pair[1]];
                pair[0] = a * libm::cos(angle) - b * libm::sin(angle);
                pair[1] = a * libm::sin(angle) + b * libm::cos(angle);
            }
        }
    }
    out
}

/// (out, rstd)
pub fn rmsnorm(x: &[f64], weight: &[f64], bias: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut rstds) = (Vec::new(), Vec::new());
    for row in x.chunks(channels) {
        let square = row.iter().map(|x| x * x).sum::<f64>() / channels as f64;
        let rstd = 1.0 / (square + 1e-5).sqrt();
        out.extend(row.iter().zip(weight).zip(bias).map(|((x, w), b)| x * rstd * w + b));
        rstds.push(rstd);
    }
    (out, rstds)
}

/// (out, rstd) of queries and keys of `x` (N, NH + 2 KH, HS); the weights are theirs in this order.
pub fn qk_norm(x: &[f64], weights: [&[f64]; 2], heads: Heads) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut rstds) = (x.to_vec(), Vec::new());
    for (i, head) in out.chunks_mut(heads.head_size).enumerate() {
        let Some(weight) = weights.get(part_of_row(heads, i)) else { continue };
        let rstd = 1.0 / (dot(head, head) / head.len() as f64 + 1e-5).sqrt();
        head.iter_mut().zip(*weight).for_each(|(x, w)| *x = *x * rstd * w);
        rstds.push(rstd);
    }
    (out, rstds)
}

/// (dx, dweight, dbias)
pub fn rmsnorm_backward(
    dout: &[f64],
    x: &[f64],
    weight: &[f64],
    channels: usize,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (_, rstds) = rmsnorm(x, weight, &vec![0.0; channels], channels);
    let (mut dx, mut dweight, mut dbias) = (Vec::new(), vec![0.0; channels], vec![0.0; channels]);
    for ((dout, x), rstd) in dout.chunks(channels).zip(x.chunks(channels)).zip(rstds) {
        let mean_gh = (0..channels).map(|c| dout[c] * weight[c] * x[c] * rstd).sum::<f64>() / channels as f64;
        for c in 0..channels {
            dx.push(rstd * (dout[c] * weight[c] - x[c] * rstd * mean_gh));
            dweight[c] += dout[c] * x[c] * rstd;
            dbias[c] += dout[c];
        }
    }
    (dx, dweight, dbias)
}

/// Whether head `i` of all rows is of queries (0), of keys (1) or of values (2).
fn part_of_row(heads: Heads, i: usize) -> usize {
    let slot = i % (heads.heads + 2 * heads.kv_heads);
    usize::from(slot >= heads.heads) + usize::from(slot >= heads.heads + heads.kv_heads)
}

/// (dx, gradients of the weights)
pub fn qk_norm_backward(
    dout: &[f64],
    x: &[f64],
    weights: [&[f64]; 2],
    heads: Heads,
) -> (Vec<f64>, [Vec<f64>; 2]) {
    let size = heads.head_size;
    let (mut dx, mut dweights) = (dout.to_vec(), [vec![0.0; size], vec![0.0; size]]);
    for (i, (dx, x)) in dx.chunks_mut(size).zip(x.chunks(size)).enumerate() {
        let part = part_of_row(heads, i);
        let Some(weight) = weights.get(part) else { continue };
        let rstd = 1.0 / (dot(x, x) / size as f64 + 1e-5).sqrt();
        let h: Vec<f64> = x.iter().map(|x| x * rstd).collect();
        let g: Vec<f64> = dx.iter().zip(*weight).map(|(d, w)| d * w).collect();
        let mean = dot(&g, &h) / size as f64;
        for c in 0..size {
            dweights[part][c] += dx[c] * h[c];
            dx[c] = rstd * (g[c] - h[c] * mean);
        }
    }
    (dx, dweights)
}

/// Where a vector of `head`'s queries (0), or of the keys (1) or values (2) that it shares, lies in
/// (B, T, NH + 2 KH, HS), of token `at` of all.
fn place(heads: Heads, at: usize, which: usize, head: usize) -> usize {
    let Heads { heads: queries, kv_heads, head_size } = heads;
    let shared = head / (queries / kv_heads);
    let slot = [head, queries + shared, queries + kv_heads + shared][which];
    (at * (queries + 2 * kv_heads) + slot) * head_size
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// (out, lse)
pub fn attention(qkv: &[f64], rows: Rows, shape: Heads) -> (Vec<f64>, Vec<f64>) {
    let (Rows { batch, seq }, Heads { heads, head_size, .. }) = (rows, shape);
    let scale = 1.0 / (head_size as f64).sqrt();
    let (mut out, mut lse) = (vec![0.0; batch * seq * heads * head_size], vec![0.0; batch * heads * seq]);
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..seq {
                let vector = |t, which| &qkv[place(shape, b * seq + t, which, h)..][..head_size];
                let scores: Vec<f64> = (0..=t).map(|s| scale * dot(vector(t, 0), vector(s, 1))).collect();
                let log_sum = log_sum_exp(&scores);
                lse[(b * heads + h) * seq + t] = log_sum;
                for (s, score) in scores.iter().enumerate() {
                    let p = libm::exp(score - log_sum);
                    for d in 0..head_size {
                        out[((b * seq + t) * heads + h) * head_size + d] += p * vector(s, 2)[d];
                    }
                }
            }
        }
    }
    (out, lse)
}

/// dqkv, straight from the softmax's Jacobian.
pub fn attention_backward(dout: &[f64], qkv: &[f64], rows: Rows, shape: Heads) -> Vec<f64> {
    let (Rows { batch, seq }, Heads { heads, head_size, .. }) = (rows, shape);
    let scale = 1.0 / (head_size as f64).sqrt();
    let mut dqkv = vec![0.0; qkv.len()];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..seq {
                let vector = |t, which| &qkv[place(shape, b * seq + t, which, h)..][..head_size];
                let dout = &dout[((b * seq + t) * heads + h) * head_size..][..head_size];
                let scores: Vec<f64> = (0..=t).map(|s| scale * dot(vector(t, 0), vector(s, 1))).collect();
                let log_sum = log_sum_exp(&scores);
                let p: Vec<f64> = scores.iter().map(|score| libm::exp(score - log_sum)).collect();
                let dp: Vec<f64> = (0..=t).map(|s| dot(dout, vector(s, 2))).collect();
                let mean = dot(&p, &dp);
                for s in 0..=t {
                    let ds = p[s] * (dp[s] - mean) * scale;
                    for d in 0..head_size {
                        dqkv[place(shape, b * seq + t, 0, h) + d] += ds * vector(s, 1)[d];
                        dqkv[place(shape, b * seq + s, 1, h) + d] += ds * vector(t, 0)[d];
                        dqkv[place(shape, b * seq + s, 2, h) + d] += p[s] * dout[d];
                    }
                }
            }
        }
    }
    dqkv
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + libm::log(x.iter().map(|x| libm::exp(x - max)).sum())
}

/// What a classifier gives over the first `used` of `padded` rows of `wte`.
pub struct ClassifierReference {
    pub losses: Vec<f64>,
    pub lse: Vec<f64>,
    pub dx: Vec<f64>,
    pub dwte: Vec<f64>,
}

/// See [`ClassifierReference`].
pub fn classifier(
    x: &[f64],
    wte: &[f64],
    targets: &[u16],
    channels: usize,
    vocab: Vocab,
    terms: LogitTerms,
    scale: f64,
) -> ClassifierReference {
    let (n, Vocab { used, padded }) = (targets.len(), vocab);
    let products = linear(x, &wte[..used * channels], None, n, channels, used);
    let cap = terms.softcap.map(f64::from);
    let tanh = |x: f64| cap.map_or(0.0, |cap| libm::tanh(x / cap));
    let logits: Vec<f64> = products.iter().map(|x| cap.map_or(*x, |cap| cap * tanh(*x))).collect();
    let (mut losses, mut lse) = (Vec::new(), Vec::new());
    let mut dlogits = Vec::new();
    for (row, target) in logits.chunks(used).zip(targets) {
        let log_sum = log_sum_exp(row);
        lse.push(log_sum);
        losses.push(log_sum - row[usize::from(*target)]);
        let weight = 1.0 + 2.0 * f64::from(terms.z_loss) * log_sum;
        dlogits.extend(row.iter().enumerate().map(|(j, x)| {
            scale * (libm::exp(x - log_sum) * weight - f64::from(u8::from(j == usize::from(*target))))
        }));
    }
    dlogits.iter_mut().zip(&products).for_each(|(gradient, x)| *gradient *= 1.0 - tanh(*x) * tanh(*x));
    let dx = linear_backward_input(&dlogits, wte, n, channels, used);
    let (mut dwte, _) = linear_backward_weight(&dlogits, x, n, channels, used);
    dwte.resize(padded * channels, 0.0);
    ClassifierReference { losses, lse, dx, dwte }
}

#[cfg(test)]
mod tests {
    //! The gradients above against central differences of the forward forms: a check of the oracle itself.

    use super::super::random;
    use super::*;

    /// d(sum of weights * f(x)) / dx by central differences.
    fn differences(x: &[f64], weights: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let step = 1e-5;
        let value = |x: &[f64]| dot(&f(x), weights);
        (0..x.len())
            .map(|i| {
                let mut moved = x.to_vec();
                moved[i] = x[i] + step;
                let above = value(&moved);
                moved[i] = x[i] - step;
                (above - value(&moved)) / (2.0 * step)
            })
            .collect()
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() < 1e-7 * (1.0 + want.abs()), "element {i}: {got} and not {want}");
        }
    }

    fn wide(seed: u64, len: usize) -> Vec<f64> {
        random(seed, len, 1.0).into_iter().map(f64::from).collect()
    }

    #[test]
    fn linear_gradients_are_the_slopes() {
        let (n, c_in, c_out) = (3, 4, 5);
        let (x, w, b, r) = (wide(1, n * c_in), wide(2, c_in * c_out), wide(3, c_out), wide(4, n * c_out));
        assert_close(
            &linear_backward_input(&r, &w, n, c_in, c_out),
            &differences(&x, &r, |x| linear(x, &w, Some(&b), n, c_in, c_out)),
        );
        let (dw, db) = linear_backward_weight(&r, &x, n, c_in, c_out);
        assert_close(&dw, &differences(&w, &r, |w| linear(&x, w, Some(&b), n, c_in, c_out)));
        assert_close(&db, &differences(&b, &r, |b| linear(&x, &w, Some(b), n, c_in, c_out)));
    }

    #[test]
    fn gelu_gradient_is_the_slope() {
        let x = wide(5, 50);
        let slopes: Vec<f64> = x.iter().map(|x| gelu_derivative(*x)).collect();
        assert_close(&slopes, &differences(&x, &[1.0; 50], |x| x.iter().map(|x| gelu(*x)).collect()));
    }

    #[test]
    fn gradients_of_functions_are_the_slopes() {
        for function in [Nonlinearity::Gelu, Nonlinearity::SquaredRelu, Nonlinearity::Swiglu] {
            let (x, r) = (wide(5, 50), wide(6, function.outputs_of(50)));
            assert_close(
                &activate_backward(&r, &x, function),
                &differences(&x, &r, |x| activate(x, function)),
            );
        }
    }

    #[test]
    fn layernorm_gradients_are_the_slopes() {
        let (n, c) = (3, 7);
        let (x, w, b, r) = (wide(6, n * c), wide(7, c), wide(8, c), wide(9, n * c));
        let (dx, dw, db) = layernorm_backward(&r, &x, &w, c);
        assert_close(&dx, &differences(&x, &r, |x| layernorm(x, &w, &b, c).0));
        assert_close(&dw, &differences(&w, &r, |w| layernorm(&x, w, &b, c).0));
        assert_close(&db, &differences(&b, &r, |b| layernorm(&x, &w, b, c).0));
    }

    #[test]
    fn qk_norm_gradients_are_the_slopes() {
        for heads in [Heads::new(2, 4), Heads { heads: 4, kv_heads: 2, head_size: 4 }] {
            let width = heads.qkv_channels();
            let (x, q, k, r) = (wide(30, 2 * width), wide(31, 4), wide(32, 4), wide(33, 2 * width));
            let (dx, [dq, dk]) = qk_norm_backward(&r, &x, [&q, &k], heads);
            assert_close(&dx, &differences(&x, &r, |x| qk_norm(x, [&q, &k], heads).0));
            assert_close(&dq, &differences(&q, &r, |q| qk_norm(&x, [q, &k], heads).0));
            assert_close(&dk, &differences(&k, &r, |k| qk_norm(&x, [&q, k], heads).0));
        }
    }

    #[test]
    fn turning_back_is_the_gradient_of_turning() {
        for heads in [Heads::new(2, 4), Heads { heads: 4, kv_heads: 2, head_size: 4 }] {
            let width = heads.qkv_channels();
            let (qkv, r) = (wide(20, 3 * width), wide(21, 3 * width));
            let turn = |x: &[f64], inverse| rotary(x, &[0, 1, 7], heads, 30.0, inverse);
            assert_close(&turn(&r, true), &differences(&qkv, &r, |qkv| turn(qkv, false)));
            assert_close(&turn(&turn(&qkv, false), true), &qkv);
        }
    }

    #[test]
    fn rmsnorm_gradients_are_the_slopes() {
        let (n, c) = (3, 7);
        let (x, w, b, r) = (wide(14, n * c), wide(15, c), wide(16, c), wide(17, n * c));
        let (dx, dw, db) = rmsnorm_backward(&r, &x, &w, c);
        assert_close(&dx, &differences(&x, &r, |x| rmsnorm(x, &w, &b, c).0));
        assert_close(&dw, &differences(&w, &r, |w| rmsnorm(&x, w, &b, c).0));
        assert_close(&db, &differences(&b, &r, |b| rmsnorm(&x, &w, b, c).0));
    }

    #[test]
    fn attention_gradient_is_the_slope() {
        let rows = Rows { batch: 2, seq: 4 };
        for heads in [Heads::new(2, 3), Heads { heads: 4, kv_heads: 2, head_size: 3 }] {
            let (qkv, r) = (wide(10, 8 * heads.qkv_channels()), wide(11, 8 * heads.channels()));
            assert_close(
                &attention_backward(&r, &qkv, rows, heads),
                &differences(&qkv, &r, |qkv| attention(qkv, rows, heads).0),
            );
        }
    }

    #[test]
    fn classifier_gradients_are_the_slopes() {
        let (c, vocab, targets) = (3, Vocab { used: 5, padded: 8 }, [1u16, 4, 0]);
        let (x, wte) = (wide(12, 9), wide(13, vocab.padded * c));
        for (softcap, z_loss) in [(None, 0.0), (Some(0.5), 0.0), (None, 0.125), (Some(2.0), 0.125)] {
            let terms = LogitTerms { softcap, z_loss };
            let of = |x: &[f64], wte: &[f64]| classifier(x, wte, &targets, c, vocab, terms, 0.3);
            let objective = |x: &[f64], wte: &[f64]| {
                let ClassifierReference { losses, lse, .. } = of(x, wte);
                losses.iter().zip(lse).map(|(loss, lse)| loss + f64::from(z_loss) * lse * lse).collect()
            };
            let ClassifierReference { dx, dwte, .. } = of(&x, &wte);
            assert_close(&dx, &differences(&x, &[0.3; 3], |x| objective(x, &wte)));
            assert_close(&dwte, &differences(&wte, &[0.3; 3], |wte| objective(&x, wte)));
        }
    }
}
