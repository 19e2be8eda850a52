//! Decoding: the forward pass of a few new tokens, with the keys and values of all before them kept.
//!
//! One token costs one reading of the weights, whatever the length of the text before it. Prompt and
//! continuation take the same path, and each row of a pass is computed as if it were alone
//! ([`crate::ops::Ops::decode_linear`]), so that a text has the same bits however its tokens are cut into
//! passes and whatever is written beside it. Nothing here is shared with training but the parameters, which
//! are only read.
//!
//! The logits are those of [`super::Gpt2`] up to the order of sums: on the CPU within 1e-5 of their
//! norm, in bf16 as near as its rounding of the residual stream allows.

use super::activations::BufferSpec;
use super::gpt2::{cap_logits, heads, nonlinearity};
use super::weights::{Affine, Block, HeadNorms, Weights};
use crate::experiment::{ActivationKind, Model, NormKind, PositionKind};
use crate::ops::{
    Activate, DecodeAttention, DecodeEmbedding, DecodeLinear, KvCache, Layernorm, LinearShape, Nonlinearity,
    Ops, QkNorm, QkRotary, ReplayKey, ResidualLayernorm, Result, Role, Rotary, RotaryAt, RowPositions,
    rotary_table,
};

/// Rows a pass takes at least: what a prompt is cut into.
const LEAST_ROWS: usize = 32;
/// Token ids, positions and streams are 16 bits on a device.
const MOST_POSITIONS: usize = 1 << 16;

/// How many texts of what length a decoder has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub streams: usize,
    /// Tokens of each, at most the model's context.
    pub positions: usize,
}

/// A token that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewToken {
    pub token: u16,
    pub stream: usize,
    pub position: usize,
}

/// Room for texts on a device: their keys and values, and the activations of one pass.
pub struct Decoder<O: Ops> {
    model: Model,
    room: Room,
    /// Keys and values of each layer (S, KH, P, HS).
    layers: Vec<[O::Buf; 2]>,
    /// The residual stream before and after a branch (R, C).
    residual: [O::Buf; 2],
    /// A norm's output (R, C) and its statistics (R); an RMSNorm has no mean.
    normed: O::Buf,
    mean: Option<O::Buf>,
    rstd: O::Buf,
    /// (R, NH + 2 KH, HS)
    qkv: O::Buf,
    /// With QK-norm what attention reads in place of `qkv` (R, NH + 2 KH, HS), and statistics (R, NH + KH).
    head_normed: Option<[O::Buf; 2]>,
    /// Cosines and sines of rotary positions (P, HS/2, 2) f32.
    rotary: Option<O::Buf>,
    /// (R, C)
    att: O::Buf,
    branch: O::Buf,
    /// What SwiGLU reads (R, 2F).
    pairs: Option<O::Buf>,
    /// After the MLP's activation (R, F).
    hidden: O::Buf,
    /// (S, V) f32
    logits: O::Buf,
    /// On the host (S, V); memory of this size, taken anew for every token, costs as much as the token.
    host_logits: Vec<f32>,
    ids: O::Ids,
    positions: O::Ids,
    streams: O::Ids,
}

impl Room {
    /// Rows of the largest pass.
    fn rows(self) -> usize {
        self.streams.max(LEAST_ROWS)
    }
}

/// Every buffer of a decoder, in the order of allocation: what the memory plan counts.
pub fn layout(model: &Model, room: Room) -> Vec<BufferSpec> {
    let (rows, c, heads) = (room.rows(), model.channels, heads(model));
    let act = |name, len| BufferSpec { name, role: Role::Activation, len };
    let f32s = |name, len| BufferSpec { name, role: Role::F32, len };
    let cache = act("keys and values of samples", room.streams * room.positions * heads.kv_channels());
    let mut specs = vec![cache; 2 * model.layers];
    specs.extend([rows * c; 5].map(|len| act("activations of samples", len)));
    specs.extend(
        [heads.qkv_channels(), model.mlp_channels()].map(|width| act("activations of samples", rows * width)),
    );
    specs.push(f32s("activations of samples", rows));
    specs.push(f32s("logits of samples", room.streams * model.vocab_padded));
    if model.norm == NormKind::Layernorm {
        specs.push(f32s("activations of samples", rows));
    }
    if model.qk_norm {
        specs.push(act("activations of samples", rows * heads.qkv_channels()));
        specs.push(f32s("activations of samples", rows * heads.of_queries_and_keys()));
    }
    if model.activation == ActivationKind::Swiglu {
        specs.push(act("activations of samples", rows * model.mlp_inputs()));
    }
    if model.positions == PositionKind::Rotary {
        specs.push(f32s("activations of samples", room.positions * model.head_size()));
    }
    specs
}

impl<O: Ops> Decoder<O> {
    /// Takes all memory that decoding will need. `room` is cut to what the model can read.
    pub fn new(ops: &mut O, model: &Model, room: Room) -> Result<Decoder<O>> {
        let room = Room {
            streams: room.streams.max(1),
            positions: room.positions.clamp(1, model.context.min(MOST_POSITIONS)),
        };
        let specs = layout(model, room);
        let mut bufs =
            specs.iter().map(|spec| ops.alloc(spec.role, spec.len)).collect::<Result<Vec<_>>>()?.into_iter();
        let mut next = || bufs.next().expect("the layout lists every buffer");
        let mut decoder = Decoder {
            layers: (0..model.layers).map(|_| [next(), next()]).collect(),
            residual: [next(), next()],
            normed: next(),
            att: next(),
            branch: next(),
            qkv: next(),
            hidden: next(),
            rstd: next(),
            logits: next(),
            host_logits: vec![0.0; room.streams * model.vocab_padded],
            mean: (model.norm == NormKind::Layernorm).then(&mut next),
            head_normed: model.qk_norm.then(|| [next(), next()]),
            pairs: (model.activation == ActivationKind::Swiglu).then(&mut next),
            rotary: (model.positions == PositionKind::Rotary).then(&mut next),
            ids: ops.alloc_ids(room.rows())?,
            positions: ops.alloc_ids(room.rows())?,
            streams: ops.alloc_ids(room.rows())?,
            model: model.clone(),
            room,
        };
        if let Some(table) = &mut decoder.rotary {
            ops.upload(table, &rotary_table(room.positions, model.head_size(), model.rope_theta))?;
        }
        Ok(decoder)
    }

    pub fn room(&self) -> Room {
        self.room
    }

    /// Reads `tokens` as the positions `first ..` of a stream, into the cache.
    pub fn read(
        &mut self,
        ops: &mut O,
        params: &Weights<O::Buf>,
        stream: usize,
        first: usize,
        tokens: &[u16],
    ) -> Result<()> {
        let new = |(i, &token): (usize, &u16)| NewToken { token, stream, position: first + i };
        let new: Vec<NewToken> = tokens.iter().enumerate().map(new).collect();
        new.chunks(self.room.rows()).try_for_each(|new| self.replayed(ops, params, new, false))
    }

    /// Reads one token of each of some streams; the logits of the token after each, one row of the
    /// vocabulary after the other.
    pub fn logits(&mut self, ops: &mut O, params: &Weights<O::Buf>, new: &[NewToken]) -> Result<&[f32]> {
        let Model { vocab, vocab_padded, .. } = self.model;
        assert!(new.len() <= self.room.streams, "one token of each stream at a time");
        self.replayed(ops, params, new, true)?;
        let rows = &mut self.host_logits[..new.len() * vocab_padded];
        ops.download(&self.logits, rows)?;
        for row in 1..new.len() {
            rows.copy_within(row * vocab_padded..row * vocab_padded + vocab, row * vocab);
        }
        let rows = &mut rows[..new.len() * vocab];
        cap_logits(&self.model, rows);
        Ok(rows)
    }

    /// A pass over `new`, with logits or without. Passes of as many rows are the same work on the same
    /// buffers: which tokens they are, and where, is on the device.
    fn replayed(
        &mut self,
        ops: &mut O,
        params: &Weights<O::Buf>,
        new: &[NewToken],
        logits: bool,
    ) -> Result<()> {
        self.upload(ops, new)?;
        let Room { streams, positions } = self.room;
        let pass = (2 * new.len() + usize::from(logits)) as u64;
        let variant = [ops.identity(&self.logits), ops.identity(&params.wte), pass];
        let phase = [streams as u64, positions as u64, 0];
        let key = ReplayKey { of: ops.identity(&self.layers[0][0]), phase, variant };
        if ops.replay(key)? {
            return Ok(());
        }
        self.pass(ops, params, new.len())?;
        if logits {
            let Model { channels, vocab_padded, .. } = self.model;
            ops.decode_linear(DecodeLinear {
                out: &mut self.logits,
                x: &self.normed,
                weight: params.classifier(),
                bias: None,
                function: None,
                shape: LinearShape { rows: new.len(), c_in: channels, c_out: vocab_padded },
            })?;
        }
        ops.recorded(key)
    }

    /// From token ids to the final norm's output, in `normed`; keys and values are kept.
    fn pass(&mut self, ops: &mut O, params: &Weights<O::Buf>, rows: usize) -> Result<()> {
        let c = self.model.channels;
        ops.decode_embedding(DecodeEmbedding {
            out: &mut self.residual[0],
            ids: &self.ids,
            positions: &self.positions,
            wte: &params.wte,
            wpe: params.wpe.as_ref(),
            rows,
            channels: c,
        })?;
        let Affine { weight, bias } = &params.layers[0].ln_1;
        ops.layernorm(Layernorm {
            out: &mut self.normed,
            mean: self.mean.as_mut(),
            rstd: &mut self.rstd,
            x: &self.residual[0],
            weight,
            bias: bias.as_ref(),
            rows,
            channels: c,
        })?;
        for (l, w) in params.layers.iter().enumerate() {
            self.attention(ops, l, w, rows)?;
            self.branch_in(ops, [0, 1], &w.ln_2, rows)?;
            self.mlp(ops, w, rows)?;
            let next = params.layers.get(l + 1).map_or(&params.ln_f, |next| &next.ln_1);
            self.branch_in(ops, [1, 0], next, rows)?;
        }
        Ok(())
    }

    /// From `normed` to `branch`.
    fn attention(&mut self, ops: &mut O, l: usize, w: &Block<O::Buf>, rows: usize) -> Result<()> {
        let (c, heads) = (self.model.channels, heads(&self.model));
        let shape = |c_in, c_out| LinearShape { rows, c_in, c_out };
        let Decoder { layers, normed, qkv, head_normed, att, branch, .. } = self;
        ops.decode_linear(linear(qkv, normed, &w.qkv, None, shape(c, heads.qkv_channels())))?;
        let (at, theta) = (RotaryAt::Listed { positions: &self.positions, rows }, self.model.rope_theta);
        let qkv = match (head_normed, &w.head_norms) {
            (Some([out, rstd]), HeadNorms { query: Some(q_weight), key: Some(k_weight) }) => {
                let rotary = self.rotary.as_ref().map(|table| QkRotary { table, theta, at });
                ops.qk_norm(QkNorm {
                    out: &mut *out,
                    rstd,
                    x: qkv,
                    q_weight,
                    k_weight,
                    rows,
                    heads,
                    values: true,
                    rotary,
                })?;
                out
            }
            _ => {
                if let Some(table) = &self.rotary {
                    ops.rotary(Rotary { qkv: &mut *qkv, table, theta, at, heads, inverse: false })?;
                }
                qkv
            }
        };
        let [keys, values] = &mut layers[l];
        ops.decode_attention(DecodeAttention {
            out: att,
            cache: KvCache { keys, values, capacity: self.room.positions },
            qkv,
            at: RowPositions { streams: &self.streams, positions: &self.positions },
            rows,
            heads,
        })?;
        ops.decode_linear(linear(branch, att, &w.attn_proj, None, shape(c, c)))
    }

    /// From `normed` to `branch`.
    fn mlp(&mut self, ops: &mut O, w: &Block<O::Buf>, rows: usize) -> Result<()> {
        let Model { channels: c, .. } = self.model;
        let (f, function) = (self.model.mlp_channels(), nonlinearity(&self.model));
        let up = LinearShape { rows, c_in: c, c_out: self.model.mlp_inputs() };
        let Decoder { normed, pairs, hidden, branch, .. } = self;
        match pairs {
            Some(pairs) => {
                ops.decode_linear(linear(pairs, normed, &w.fc, None, up))?;
                ops.activate(Activate { out: &mut *hidden, pre: pairs, rows, channels: f, function })?;
            }
            None => ops.decode_linear(linear(hidden, normed, &w.fc, Some(function), up))?,
        }
        ops.decode_linear(linear(branch, hidden, &w.fc_proj, None, LinearShape { rows, c_in: f, c_out: c }))
    }

    /// Adds `branch` to the residual stream, from one of its buffers to the other, and norms it into
    /// `normed`.
    fn branch_in(
        &mut self,
        ops: &mut O,
        [from, to]: [usize; 2],
        norm: &Affine<O::Buf>,
        rows: usize,
    ) -> Result<()> {
        let [x, residual] = self.residual.get_disjoint_mut([from, to]).expect("there are two buffers");
        ops.residual_layernorm(ResidualLayernorm {
            residual,
            out: &mut self.normed,
            mean: self.mean.as_mut(),
            rstd: &mut self.rstd,
            x,
            branch: &self.branch,
            weight: &norm.weight,
            bias: norm.bias.as_ref(),
            rows,
            channels: self.model.channels,
        })
    }

    fn upload(&mut self, ops: &mut O, new: &[NewToken]) -> Result<()> {
        let Room { streams, positions } = self.room;
        assert!(
            !new.is_empty() && new.len() <= self.room.rows(),
            "{} rows in a pass of {}",
            new.len(),
            self.room.rows()
        );
        assert!(
            new.iter().all(|new| new.stream < streams && new.position < positions),
            "a token outside {:?}: {new:?}",
            self.room
        );
        assert!(
            new.iter().all(|new| usize::from(new.token) < self.model.vocab),
            "a token outside the vocabulary: {new:?}"
        );
        let list = |of: fn(&NewToken) -> usize| new.iter().map(|new| of(new) as u16).collect::<Vec<u16>>();
        ops.upload_ids(&mut self.ids, &list(|new| usize::from(new.token)))?;
        ops.upload_ids(&mut self.positions, &list(|new| new.position))?;
        ops.upload_ids(&mut self.streams, &list(|new| new.stream))
    }
}

/// A linear layer of a block, and what follows it.
fn linear<'a, B>(
    out: &'a mut B,
    x: &'a B,
    layer: &'a Affine<B>,
    function: Option<Nonlinearity>,
    shape: LinearShape,
) -> DecodeLinear<'a, B> {
    DecodeLinear { out, x, weight: &layer.weight, bias: layer.bias.as_ref(), function, shape }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::{DeviceKeys, DeviceKind, Simd};
    use crate::model::{Gpt2, reference};
    use crate::ops::Rows;
    use crate::ops::cpu::Cpu;
    use crate::rng::Key;

    const VOCAB: usize = 300;

    fn cpu() -> Cpu {
        Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto }).expect("a CPU")
    }

    /// Weights five times as large as at the start of training, so that attention is not flat.
    fn model(ops: &mut Cpu, config: &Model) -> Gpt2<Cpu> {
        let mut model = Gpt2::new(ops, config, Rows { batch: 1, seq: 150 }, 0, false, 3).expect("a model");
        for buf in model.params.iter_mut() {
            let mut values = vec![0.0; buf.len()];
            ops.download(buf, &mut values).expect("a download");
            values.iter_mut().for_each(|x| *x *= 5.0);
            ops.upload(buf, &values).expect("an upload");
        }
        model
    }

    fn text(number: u64, len: usize) -> Vec<u16> {
        let key = Key::new(number, "decode tests");
        (0..len as u64).map(|i| (key.uniform(0, i) * VOCAB as f64) as u16).collect()
    }

    /// The logits after each token, decoded one by one.
    fn one_by_one(ops: &mut Cpu, model: &Gpt2<Cpu>, tokens: &[u16]) -> Vec<Vec<f32>> {
        let mut decoder =
            Decoder::new(ops, &model.config, Room { streams: 1, positions: 150 }).expect("a decoder");
        let mut logits = |(position, &token)| {
            let new = [NewToken { token, stream: 0, position }];
            decoder.logits(ops, &model.params, &new).expect("it runs").to_vec()
        };
        tokens.iter().enumerate().map(&mut logits).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn logits_are_those_of_the_whole_forward_pass() {
        for config in reference::variants(Model::gpt2(3, 3, 96, 150, VOCAB)) {
            let mut ops = cpu();
            let mut model = model(&mut ops, &config);
            let tokens = text(1, 150);
            let decoded = one_by_one(&mut ops, &model, &tokens);
            let mut worst = 0.0f64;
            for t in [1, 2, 17, 64, 149, 150] {
                let whole = model.next_token_logits(&mut ops, &tokens[..t]).expect("it runs");
                assert_eq!(decoded[t - 1].len(), whole.len());
                let square = |x: f64| x * x;
                let off: f64 = decoded[t - 1].iter().zip(&whole).map(|(a, b)| square(f64::from(a - b))).sum();
                let norm: f64 = whole.iter().map(|x| square(f64::from(*x))).sum();
                worst = worst.max((off / norm).sqrt());
            }
            println!("relative error {worst:.1e}");
            // Written so that a NaN fails.
            assert!(worst < 1e-5, "relative error {worst:.1e}");
        }
    }

    /// The plain model in f64, to which devices are compared, compared with this one.
    #[test]
    fn logits_are_those_of_f64_and_rounding_to_bf16_would_show() {
        for config in reference::variants(Model::gpt2(3, 3, 96, 150, VOCAB)) {
            let mut ops = cpu();
            let model = model(&mut ops, &config);
            let mut read = |buf: &crate::ops::cpu::Buffer| {
                let mut values = vec![0.0; buf.len()];
                ops.download(buf, &mut values).map(|()| values)
            };
            let weights = model.params.try_map(&mut read).expect("a download");
            let tokens = text(1, 150);
            let decoded = one_by_one(&mut ops, &model, &tokens)[146..].concat();
            let distance = |a: &[f32], b: &[f32]| {
                assert_eq!(a.len(), b.len());
                let square = |x: f64| x * x;
                let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
                (off / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
            };
            let exact = reference::logits(&config, &weights, &tokens, 4, |x| x);
            let rounded = reference::logits(&config, &weights, &tokens, 4, reference::bf16);
            println!("CPU {:.1e}, rounded {:.1e}", distance(&decoded, &exact), distance(&rounded, &exact));
            // fp32 has 2^16 times the precision of bf16, of which a few roundings in a sum leave 2^12.
            // Written so that a NaN fails.
            let (off, rounding) = (distance(&decoded, &exact), distance(&rounded, &exact));
            assert!(off < rounding / 4096.0, "{off:.1e}, beside {rounding:.1e}");
            assert!(rounding > 1e-3, "{rounding:.1e}");
        }
    }

    #[test]
    fn a_prompt_read_in_pieces_and_a_text_among_others_change_no_bit() {
        for config in reference::variants(Model::gpt2(3, 3, 96, 150, VOCAB)) {
            let mut ops = cpu();
            let model = model(&mut ops, &config);
            let texts: Vec<Vec<u16>> =
                [90, 75, 3].into_iter().zip(2..).map(|(len, number)| text(number, len)).collect();
            let alone: Vec<Vec<Vec<f32>>> =
                texts.iter().map(|text| one_by_one(&mut ops, &model, text)).collect();
            let mut decoder = Decoder::new(&mut ops, &model.config, Room { streams: 3, positions: 120 })
                .expect("a decoder");
            // All but the last two tokens as prompts, then two tokens of all three together.
            for (stream, text) in texts.iter().enumerate() {
                decoder.read(&mut ops, &model.params, stream, 0, &text[..text.len() - 2]).expect("it runs");
            }
            for back in [2, 1] {
                let new = |(stream, text): (usize, &Vec<u16>)| {
                    let position = text.len() - back;
                    NewToken { token: text[position], stream, position }
                };
                let new: Vec<NewToken> = texts.iter().enumerate().map(new).collect();
                let logits = decoder.logits(&mut ops, &model.params, &new).expect("it runs");
                for (stream, logits) in logits.chunks(VOCAB).enumerate() {
                    assert_eq!(
                        bits(logits),
                        bits(&alone[stream][new[stream].position]),
                        "stream {stream}, {back} from the end"
                    );
                }
            }
        }
    }

    #[test]
    fn a_stream_that_starts_again_forgets_what_it_held() {
        for config in reference::variants(Model::gpt2(3, 3, 96, 150, VOCAB)) {
            let mut ops = cpu();
            let model = model(&mut ops, &config);
            let (old, new) = (text(5, 60), text(6, 20));
            let mut decoder =
                Decoder::new(&mut ops, &model.config, Room { streams: 1, positions: 60 }).expect("a decoder");
            decoder.read(&mut ops, &model.params, 0, 0, &old).expect("it runs");
            decoder.read(&mut ops, &model.params, 0, 0, &new[..19]).expect("it runs");
            let last = NewToken { token: new[19], stream: 0, position: 19 };
            let logits = decoder.logits(&mut ops, &model.params, &[last]).expect("it runs");
            assert_eq!(bits(logits), bits(&one_by_one(&mut ops, &model, &new)[19]));
        }
    }
}
