//! What a training step of GPT-2 with AdamW does not do, on the same numbers: decoding, the average of the
//! weights, Muon, norms of queries and keys, rotary embeddings. And inputs that no kind of numbers reaches.

use super::*;
use crate::ops::{
    Activate, ActivateBackward, Average, DecodeAttention, DecodeEmbedding, DecodeLinear, KvCache, MatrixPart,
    MuonDirection, MuonPolynomial, MuonUpdate, Nonlinearity, QkNorm, QkNormBackward, QkRotary, Rotary,
    RotaryAt, RowPositions, rotary_table,
};

fn ids<O: Ops>(ops: &mut O, values: &[u16]) -> O::Ids {
    let mut ids = ops.alloc_ids(values.len()).expect("memory");
    ops.upload_ids(&mut ids, values).expect("an upload");
    ids
}

/// Rows of several streams at positions that end within a turn of the kernel's loop.
pub(super) fn decoding<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, heads: Heads) {
    let (rows, vocab, capacity, channels) = (5, 130, 75, heads.channels());
    let places = [0u16, 1, 30, 63, 74];
    let positions = ids(to.ops, &places);
    let tokens = ids(to.ops, &[0, 7, 129, 64, 7]);
    let wte = draw.buf(to.ops, Role::Param, vocab * channels, 1.0);
    let wpe = draw.buf(to.ops, Role::Param, capacity * channels, 1.0);
    let mut out = to.ops.alloc(Role::Activation, rows * channels).expect("memory");
    let op = DecodeEmbedding {
        out: &mut out,
        ids: &tokens,
        positions: &positions,
        wte: &wte,
        wpe: Some(&wpe),
        rows,
        channels,
    };
    to.ops.decode_embedding(op).expect("decode_embedding");
    to.add("decode_embedding", &out, rows * channels);
    let shape = LinearShape { rows, c_in: channels, c_out: vocab };
    let x = draw.buf(to.ops, Role::Activation, shape.input(), 1.0);
    let bias = draw.buf(to.ops, Role::Param, shape.c_out, 1.0);
    let functions = [Some(Nonlinearity::Gelu), Some(Nonlinearity::SquaredRelu), None];
    let activations = functions.map(|function| (Role::Activation, function));
    for (role, function) in activations.into_iter().chain([(Role::F32, None)]) {
        let mut out = to.ops.alloc(role, shape.output()).expect("memory");
        let op = DecodeLinear { out: &mut out, x: &x, weight: &wte, bias: Some(&bias), function, shape };
        to.ops.decode_linear(op).expect("decode_linear");
        to.add(format!("decode_linear {role:?}, {function:?}"), &out, shape.output());
        let op = DecodeLinear { out: &mut out, x: &x, weight: &wte, bias: None, function, shape };
        to.ops.decode_linear(op).expect("decode_linear");
        to.add(format!("decode_linear without bias {role:?}, {function:?}"), &out, shape.output());
    }
    let cached = rows * capacity * heads.kv_channels();
    let [mut keys, mut values] = [(); 2].map(|()| draw.buf(to.ops, Role::Activation, cached, 1.0));
    let qkv = draw.buf(to.ops, Role::Activation, rows * heads.qkv_channels(), 1.0);
    let streams = ids(to.ops, &[0, 1, 2, 3, 4]);
    let mut out = to.ops.alloc(Role::Activation, rows * channels).expect("memory");
    let op = DecodeAttention {
        out: &mut out,
        cache: KvCache { keys: &mut keys, values: &mut values, capacity },
        qkv: &qkv,
        at: RowPositions { streams: &streams, positions: &positions },
        rows,
        heads,
    };
    to.ops.decode_attention(op).expect("decode_attention");
    to.add("decode_attention", &out, rows * channels);
    to.add("decode_attention keys", &keys, cached);
    to.add("decode_attention values", &values, cached);
}

/// The functions that no product ends in, and their gradients.
pub(super) fn activations<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, rows: usize, channels: usize) {
    let len = rows * channels;
    let dout = draw.buf(to.ops, Role::Activation, len, 1e-2);
    let pre = draw.buf(to.ops, Role::Activation, 2 * len, 2.0);
    for function in [Nonlinearity::Gelu, Nonlinearity::SquaredRelu, Nonlinearity::Swiglu] {
        let mut out = to.ops.alloc(Role::Activation, len).expect("memory");
        let op = Activate { out: &mut out, pre: &pre, function, rows, channels };
        to.ops.activate(op).expect("activate");
        to.add(format!("activate {function:?}"), &out, len);
        let mut dpre = to.ops.alloc(Role::Activation, 2 * len).expect("memory");
        let op = ActivateBackward { dpre: &mut dpre, dout: Some(&dout), pre: &pre, function, rows, channels };
        to.ops.activate_backward(op).expect("activate_backward");
        to.add(format!("activate_backward {function:?}"), &dpre, function.inputs() * len);
        if function != Nonlinearity::Swiglu {
            let op = ActivateBackward { dpre: &mut out, dout: None, pre: &pre, function, rows, channels };
            to.ops.activate_backward(op).expect("activate_backward");
            to.add(format!("activate_backward {function:?} in place"), &out, len);
        }
    }
}

pub(super) fn average_and_muon<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw) {
    let len = 16_384 + 1021;
    for with_master in [true, false] {
        let mut average = draw.buf(to.ops, Role::F32, len, 1.0);
        let param = draw.buf(to.ops, Role::Param, len, 1.0);
        let master = draw.buf(to.ops, Role::F32, len, 1.0);
        let master = with_master.then_some(&master);
        let op = Average { average: &mut average, param: &param, at: 0, master, rate: 0.3 };
        to.ops.average(op).expect("average");
        to.add(format!("average, masters {with_master}"), &average, len);
    }
    for (at, rows, cols) in [(0, 72, 200), (72 * 200, 200, 72), (0, 1, 1)] {
        let matrix = MatrixPart { at, rows, cols };
        let size = matrix.elements();
        let mut momentum = draw.buf(to.ops, Role::F32, matrix.end(), 0.1);
        let grad = draw.buf(to.ops, Role::F32, matrix.end(), 1.0);
        let mut direction = to.ops.alloc(Role::Activation, size).expect("memory");
        let op = MuonDirection {
            direction: &mut direction,
            momentum: &mut momentum,
            grad: &grad,
            grad_at: 0,
            matrix,
            beta: 0.95,
            grad_scale: 0.5,
        };
        to.ops.muon_direction(op).expect("muon_direction");
        to.add(format!("muon_direction of {rows} x {cols}"), &direction, size);
        to.add(format!("muon_direction momentum of {rows} x {cols}"), &momentum, matrix.end());
        let direction = draw.buf(to.ops, Role::Activation, size, 1.0);
        for with_master in [true, false] {
            let mut param = draw.buf(to.ops, Role::Param, matrix.end(), 1.0);
            let mut master = draw.buf(to.ops, Role::F32, matrix.end(), 1.0);
            let op = MuonUpdate {
                id: 3,
                param: &mut param,
                master: with_master.then_some(&mut master),
                direction: &direction,
                matrix,
                learning_rate: 0.02,
                weight_decay: 0.1,
                scale: 0.7,
                rounding_key: [1, 2],
                step: 2,
            };
            to.ops.muon_update(op).expect("muon_update");
            for (what, buf) in [("param", &param), ("master", &master)] {
                to.add(
                    format!("muon_update {what} of {rows} x {cols}, masters {with_master}"),
                    buf,
                    matrix.end(),
                );
            }
        }
    }
    let order = 72;
    let gram = draw.buf(to.ops, Role::Activation, order * order, 1.0);
    let mut square = draw.buf(to.ops, Role::Activation, order * order, 1.0);
    let coefficients = [3.4445, -4.775, 2.0315];
    let op = MuonPolynomial { square: &mut square, gram: &gram, order, coefficients };
    to.ops.muon_polynomial(op).expect("muon_polynomial");
    to.add("muon_polynomial", &square, order * order);
}

/// Both ways over whole sequences, and rows at listed positions.
pub(super) fn rotary<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, rows: Rows, heads: Heads) {
    let (theta, known) = (10_000.0, rows.seq + 5);
    let table = filled(to.ops, Role::F32, &rotary_table(known, heads.head_size, theta));
    let size = rows.count() * heads.qkv_channels();
    for inverse in [false, true] {
        let mut qkv = draw.buf(to.ops, Role::Activation, size, 1.0);
        let at = RotaryAt::Sequences(rows);
        let op = Rotary { qkv: &mut qkv, table: &table, theta, at, heads, inverse };
        to.ops.rotary(op).expect("rotary");
        to.add(format!("rotary, inverse {inverse}"), &qkv, size);
    }
    let places = [known as u16 - 1, 0, 3, 3, 1];
    let positions = ids(to.ops, &places);
    let size = places.len() * heads.qkv_channels();
    let mut qkv = draw.buf(to.ops, Role::Activation, size, 1.0);
    let at = RotaryAt::Listed { positions: &positions, rows: places.len() };
    let op = Rotary { qkv: &mut qkv, table: &table, theta, at, heads, inverse: false };
    to.ops.rotary(op).expect("rotary");
    to.add("rotary at listed positions", &qkv, size);
}

/// Without rotary positions, with those of whole sequences, and with listed ones.
pub(super) fn qk_norm<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, rows: Rows, heads: Heads) {
    qk_norm_at(to, draw, rows.count(), heads, None);
    let (theta, known) = (10_000.0, rows.seq + 5);
    let table = filled(to.ops, Role::F32, &rotary_table(known, heads.head_size, theta));
    let at = RotaryAt::Sequences(rows);
    qk_norm_at(to, draw, rows.count(), heads, Some(QkRotary { table: &table, theta, at }));
    let places = [known as u16 - 1, 0, 3, 3, 1];
    let positions = ids(to.ops, &places);
    let at = RotaryAt::Listed { positions: &positions, rows: places.len() };
    qk_norm_at(to, draw, places.len(), heads, Some(QkRotary { table: &table, theta, at }));
}

fn qk_norm_at<O: Ops>(
    to: &mut Outputs<'_, O>,
    draw: &mut Draw,
    rows: usize,
    heads: Heads,
    rotary: Option<QkRotary<'_, O::Buf, O::Ids>>,
) {
    let name = match rotary.map(|rotary| rotary.at) {
        None => "qk_norm",
        Some(RotaryAt::Sequences(_)) => "qk_norm, rotary",
        Some(RotaryAt::Listed { .. }) => "qk_norm, rotary at listed positions",
    };
    let (wide, size, normed) =
        (rows * heads.qkv_channels(), heads.head_size, rows * heads.of_queries_and_keys());
    let x = draw.buf(to.ops, Role::Activation, wide, 1.0);
    let [q_weight, k_weight] = [(); 2].map(|()| draw.buf(to.ops, Role::Param, size, 1.0));
    let (q_weight, k_weight) = (&q_weight, &k_weight);
    let mut rstd = to.ops.alloc(Role::F32, normed).expect("memory");
    for values in [true, false] {
        let len = rows * heads.slices(values) * size;
        let mut out = to.ops.alloc(Role::Activation, len).expect("memory");
        let (written, rstd, x) = (&mut out, &mut rstd, &x);
        let op = QkNorm { out: written, rstd, x, q_weight, k_weight, rows, heads, values, rotary };
        to.ops.qk_norm(op).expect("qk_norm");
        to.add(format!("{name}, values {values}"), &out, len);
        to.add(format!("{name}: rstd"), rstd, normed);
    }
    let [mut dq_weight, mut dk_weight] = [(); 2].map(|()| draw.buf(to.ops, Role::F32, size, 1.0));
    for write in [Write::Set, Write::Add] {
        let mut dqkv = draw.buf(to.ops, Role::Activation, wide, 1e-2);
        let op = QkNormBackward {
            dqkv: &mut dqkv,
            dq_weight: &mut dq_weight,
            dk_weight: &mut dk_weight,
            write,
            x: &x,
            q_weight,
            k_weight,
            rstd: &rstd,
            rows,
            heads,
            rotary,
        };
        to.ops.qk_norm_backward(op).expect("qk_norm_backward");
        to.add(format!("{name}, backward: dqkv {write:?}"), &dqkv, wide);
        to.add(format!("{name}, backward: dq_weight {write:?}"), &dq_weight, size);
        to.add(format!("{name}, backward: dk_weight {write:?}"), &dk_weight, size);
    }
}

/// Without positions; the gradient of a table of tokens that it sets.
pub(super) fn embedding_of_tokens<O: Ops>(to: &mut Outputs<'_, O>, draw: &mut Draw, shape: Shape) {
    let (rows, channels, vocab) = (shape.rows, shape.heads.channels(), shape.vocab.padded);
    let size = rows.count() * channels;
    let wte = draw.buf(to.ops, Role::Param, vocab * channels, 1.0);
    let tokens = draw.ids(to.ops, rows.count(), shape.vocab.used);
    let mut out = to.ops.alloc(Role::Activation, size).expect("memory");
    let op = Embedding { out: &mut out, ids: &tokens, wte: &wte, wpe: None, rows, channels };
    to.ops.embedding(op).expect("embedding");
    to.add("embedding of tokens", &out, size);
    let op = DecodeEmbedding {
        out: &mut out,
        ids: &tokens,
        positions: &tokens,
        wte: &wte,
        wpe: None,
        rows: 5,
        channels,
    };
    to.ops.decode_embedding(op).expect("decode_embedding");
    to.add("decode_embedding of tokens", &out, 5 * channels);
    let dout = draw.buf(to.ops, Role::Activation, size, 1.0);
    let mut dwte = draw.buf(to.ops, Role::F32, vocab * channels, 1.0);
    for dwte_write in [Write::Set, Write::Add] {
        let op = EmbeddingBackward {
            dwte: &mut dwte,
            dwte_write,
            vocab,
            dwpe: None,
            write: Write::Set,
            dout: &dout,
            ids: &tokens,
            rows,
            channels,
        };
        to.ops.embedding_backward(op).expect("embedding_backward");
        to.add(format!("embedding_backward of tokens {dwte_write:?}"), &dwte, vocab * channels);
    }
}

/// The gradient of a norm whose rows are constant and so large that mean times rstd is no number of fp32: a
/// thread without columns must not add that. C / 8 is no multiple of 32, so there are such threads.
pub(super) fn constant_rows<O: Ops>(ops: &mut O) -> Vec<(String, Vec<u32>)> {
    let mut named = Vec::new();
    for channels in [64, 128, 192] {
        let rows = 9;
        let row = |row: usize| vec![[1.2e36, -1.3e36, 1.0][row % 3]; channels];
        let x = filled(ops, Role::Activation, &(0..rows).flat_map(row).collect::<Vec<f32>>());
        let weight = filled(ops, Role::Param, &vec![1.5; channels]);
        let bias = filled(ops, Role::Param, &vec![0.5; channels]);
        let dout = filled(ops, Role::Activation, &vec![0.01; rows * channels]);
        let mut out = ops.alloc(Role::Activation, rows * channels).expect("memory");
        let [mut mean, mut rstd] = [(); 2].map(|()| ops.alloc(Role::F32, rows).expect("memory"));
        let op = Layernorm {
            out: &mut out,
            mean: Some(&mut mean),
            rstd: &mut rstd,
            x: &x,
            weight: &weight,
            bias: Some(&bias),
            rows,
            channels,
        };
        ops.layernorm(op).expect("layernorm");
        let [mut dweight, mut dbias] = [(); 2].map(|()| ops.alloc(Role::F32, channels).expect("memory"));
        let [mut dx, mut again] =
            [(); 2].map(|()| ops.alloc(Role::Activation, rows * channels).expect("memory"));
        let op = LayernormBackward {
            again: Some(NormAgain { out: &mut again, bias: Some(&bias) }),
            dx: &mut dx,
            dx_write: Write::Set,
            dweight: &mut dweight,
            dbias: Some(&mut dbias),
            write: Write::Set,
            dout: &dout,
            x: &x,
            weight: &weight,
            mean: Some(&mean),
            rstd: &rstd,
            rows,
            channels,
        };
        ops.layernorm_backward(op).expect("layernorm_backward");
        let mut to = Outputs { ops, named: Vec::new() };
        for (what, buf, len) in [
            ("out", &out, rows * channels),
            ("mean", &mean, rows),
            ("rstd", &rstd, rows),
            ("dx", &dx, rows * channels),
            ("again", &again, rows * channels),
            ("dweight", &dweight, channels),
            ("dbias", &dbias, channels),
        ] {
            to.add(format!("constant rows of {channels}: {what}"), buf, len);
        }
        named.extend(to.named);
    }
    named
}
