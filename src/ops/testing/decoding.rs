//! The operations of decoding: each row against f64, and alone against decoded beside others.

use super::{Bench, Case, Limits, random, reference};
use crate::ops::{
    Activate, DecodeAttention, DecodeEmbedding, DecodeLinear, Heads, KvCache, LinearShape, Nonlinearity, Ops,
    Role, RowPositions, Rows,
};

/// Runs every decoding operation at odd shapes.
pub fn decoding_cases<O: Ops>(ops: &mut O, limits: Limits) -> Vec<Case> {
    let mut bench = Bench { ops, limits, cases: Vec::new(), seed: 10_000 };
    bench.decode_embedding();
    bench.decode_linear();
    bench.decode_attention();
    bench.cases
}

impl<O: Ops> Bench<'_, O> {
    fn listed(&mut self, values: &[u16]) -> O::Ids {
        let mut ids = self.ops.alloc_ids(values.len()).unwrap();
        self.ops.upload_ids(&mut ids, values).unwrap();
        ids
    }

    fn decode_embedding(&mut self) {
        for (n, channels) in [(1, 1), (3, 70), (9, 768)] {
            let (vocab, context, channels) = (11, 20, self.limits.row(channels));
            let (ids, tokens) = self.ids(n, vocab);
            let (positions, places) = self.ids(n, context);
            let wte = self.input(Role::Param, vocab * channels, 1.0);
            let wpe = self.input(Role::Param, context * channels, 1.0);
            let mut out = self.poisoned(Role::Activation, n * channels);
            let op = DecodeEmbedding {
                out: &mut out,
                ids: &ids,
                positions: &positions,
                wte: &wte.buf,
                wpe: Some(&wpe.buf),
                rows: n,
                channels,
            };
            self.ops.decode_embedding(op).unwrap();
            let at = |row: u16, c: usize| usize::from(row) * channels + c;
            let want = (0..n * channels).map(|i| {
                let (row, c) = (i / channels, i % channels);
                wte.values[at(tokens[row], c)] + wpe.values[at(places[row], c)]
            });
            self.result(&format!("decode_embedding {n} {channels}"), &out, want.collect());
            let mut out = self.poisoned(Role::Activation, n * channels);
            let op = DecodeEmbedding {
                out: &mut out,
                ids: &ids,
                positions: &positions,
                wte: &wte.buf,
                wpe: None,
                rows: n,
                channels,
            };
            self.ops.decode_embedding(op).unwrap();
            let want = (0..n * channels).map(|i| wte.values[at(tokens[i / channels], i % channels)]);
            self.result(&format!("decode_embedding of tokens {n} {channels}"), &out, want.collect());
        }
    }

    fn decode_linear(&mut self) {
        for (n, c_in, c_out) in
            [(1, 1, 1), (1, 768, 131), (2, 7, 3), (3, 520, 70), (5, 64, 64), (8, 1100, 9), (13, 130, 65)]
        {
            let c_in = self.limits.row(c_in);
            let (name, shape) = (format!("{n} {c_in} {c_out}"), LinearShape { rows: n, c_in, c_out });
            let x = self.input(Role::Activation, n * c_in, 1.0);
            let weight = self.input(Role::Param, c_out * c_in, 0.3);
            let bias = self.input(Role::Param, c_out, 1.0);
            let [mut out, mut act, mut square, mut bare_act] =
                [(); 4].map(|()| self.poisoned(Role::Activation, n * c_out));
            let mut wide = self.poisoned(Role::F32, n * c_out);
            let biased = Some(&bias.buf);
            for (out, bias, function) in [
                (&mut out, biased, None),
                (&mut act, biased, Some(Nonlinearity::Gelu)),
                (&mut square, biased, Some(Nonlinearity::SquaredRelu)),
                (&mut bare_act, None, Some(Nonlinearity::Gelu)),
                (&mut wide, None, None),
            ] {
                let op = DecodeLinear { out, x: &x.buf, weight: &weight.buf, bias, function, shape };
                self.ops.decode_linear(op).unwrap();
            }
            let want = reference::linear(&x.values, &weight.values, Some(&bias.values), n, c_in, c_out);
            let bare = reference::linear(&x.values, &weight.values, None, n, c_in, c_out);
            self.result(&format!("decode_linear {name}"), &out, want.clone());
            self.result(
                &format!("decode_linear gelu {name}"),
                &act,
                want.iter().map(|x| reference::gelu(*x)).collect(),
            );
            self.result(
                &format!("decode_linear squared relu {name}"),
                &square,
                reference::activate(&want, Nonlinearity::SquaredRelu),
            );
            self.result(&format!("decode_linear f32 {name}"), &wide, bare.clone());
            self.result(
                &format!("decode_linear gelu without bias {name}"),
                &bare_act,
                bare.iter().map(|x| reference::gelu(*x)).collect(),
            );
        }
    }

    /// A sequence comes in pieces of one row and of several, beside another stream that must not show.
    fn decode_attention(&mut self) {
        for (seq, heads, kv_heads, head_size) in [
            (1, 1, 1, 16),
            (5, 2, 2, 16),
            (70, 3, 3, 24),
            (200, 2, 2, 64),
            (90, 1, 1, 80),
            (300, 2, 2, 128),
            (70, 4, 2, 24),
            (120, 6, 2, 64),
            (90, 3, 1, 128),
        ] {
            let Some(head_size) = self.limits.head_size(head_size) else { continue };
            let heads = Heads { heads, kv_heads, head_size };
            let (channels, wide, capacity) = (heads.channels(), heads.qkv_channels(), seq + 3);
            let qkv = self.input(Role::Activation, seq * wide, 1.0);
            let noise = random(self.seed + 1, wide, 5.0);
            let host = self.read(&qkv.buf, seq * wide);
            let cache = 2 * capacity * heads.kv_channels();
            let mut caches = [(); 2].map(|()| self.poisoned(Role::Activation, cache));
            let mut got = Vec::new();
            let (mut at, mut piece) = (0, 1);
            while at < seq {
                let n = piece.min(seq - at);
                // The last row belongs to the other stream.
                let mut rows = host[at * wide..(at + n) * wide].to_vec();
                rows.extend_from_slice(&noise);
                let rows = self.input_of(Role::Activation, &rows).buf;
                let streams: Vec<u16> = (0..=n).map(|i| u16::from(i < n)).collect();
                let positions: Vec<u16> = (at..at + n).chain([0]).map(|p| p as u16).collect();
                let (streams, positions) = (self.listed(&streams), self.listed(&positions));
                let mut out = self.poisoned(Role::Activation, (n + 1) * channels);
                let [keys, values] = &mut caches;
                let op = DecodeAttention {
                    out: &mut out,
                    cache: KvCache { keys, values, capacity },
                    qkv: &rows,
                    at: RowPositions { streams: &streams, positions: &positions },
                    rows: n + 1,
                    heads,
                };
                self.ops.decode_attention(op).unwrap();
                got.extend(self.read(&out, n * channels));
                at += n;
                piece = piece % 7 + 1;
            }
            let (want, _) = reference::attention(&qkv.values, Rows { batch: 1, seq }, heads);
            self.cases.push(Case { name: format!("decode_attention {seq} {heads:?}"), got, want });
        }
    }
}

/// The rows of a pass of `n` beside those of `n` passes of one: bit for bit the same, as (together, alone).
pub fn decoding_alone_and_together<O: Ops>(ops: &mut O, n: usize) -> [Vec<f32>; 2] {
    let (c_in, c_out, capacity) = (768, 200, 150);
    let heads = Heads { heads: 6, kv_heads: 3, head_size: 64 };
    let (channels, wide) = (heads.channels(), heads.qkv_channels());
    let mut bench = Bench { ops, limits: Limits::NONE, cases: Vec::new(), seed: 20_000 + n as u64 };
    let weight = bench.input(Role::Param, c_out * c_in, 0.3).buf;
    let bias = bench.input(Role::Param, c_out, 1.0).buf;
    let x = random(1, n * c_in, 1.0);
    let qkv = random(2, n * wide, 1.0);
    let stream = capacity * heads.kv_channels();
    let cache = random(3, n * stream, 1.0);
    let positions: Vec<u16> = (0..n).map(|i| (i * 53 % capacity) as u16).collect();
    let mut pass = |rows: std::ops::Range<usize>| {
        let n = rows.len();
        let x = bench.input_of(Role::Activation, &x[rows.start * c_in..rows.end * c_in]).buf;
        let qkv = bench.input_of(Role::Activation, &qkv[rows.start * wide..rows.end * wide]).buf;
        let mut all = Vec::new();
        for (role, function) in [
            (Role::Activation, Some(Nonlinearity::Gelu)),
            (Role::Activation, Some(Nonlinearity::SquaredRelu)),
            (Role::Activation, Some(Nonlinearity::Swiglu)),
            (Role::Activation, None),
            (Role::F32, None),
        ] {
            let mut out = bench.poisoned(role, n * c_out);
            let shape = LinearShape { rows: n, c_in, c_out };
            let gated = function == Some(Nonlinearity::Swiglu);
            let op = DecodeLinear {
                out: &mut out,
                x: &x,
                weight: &weight,
                bias: Some(&bias),
                function: function.filter(|_| !gated),
                shape,
            };
            bench.ops.decode_linear(op).unwrap();
            all.push((c_out, bench.read(&out, n * c_out)));
            if gated {
                let (pre, function, channels) = (out, Nonlinearity::Swiglu, c_out / 2);
                let mut out = bench.poisoned(role, n * channels);
                let op = Activate { out: &mut out, pre: &pre, function, rows: n, channels };
                bench.ops.activate(op).unwrap();
                all.push((channels, bench.read(&out, n * channels)));
            }
        }
        let [mut keys, mut values] = [(); 2]
            .map(|()| bench.input_of(Role::Activation, &cache[rows.start * stream..rows.end * stream]).buf);
        let streams = bench.listed(&(0..n as u16).collect::<Vec<_>>());
        let at = bench.listed(&positions[rows]);
        let mut out = bench.poisoned(Role::Activation, n * channels);
        let op = DecodeAttention {
            out: &mut out,
            cache: KvCache { keys: &mut keys, values: &mut values, capacity },
            qkv: &qkv,
            at: RowPositions { streams: &streams, positions: &at },
            rows: n,
            heads,
        };
        bench.ops.decode_attention(op).unwrap();
        all.push((channels, bench.read(&out, n * channels)));
        // Row by row, so that passes of one row line up with a pass of several.
        (0..n)
            .flat_map(|i| {
                all.iter()
                    .flat_map(move |(width, values)| values[i * width..(i + 1) * width].to_vec())
                    .collect::<Vec<f32>>()
            })
            .collect::<Vec<f32>>()
    };
    let together = pass(0..n);
    let alone = (0..n).flat_map(|i| pass(i..i + 1)).collect();
    [together, alone]
}
