//! Every excerpt of every operation of a micro-batch ends in the bits of the whole.

use std::collections::BTreeMap;

use super::*;
use crate::experiment::{DeviceKeys, DeviceKind, Model, Simd};
use crate::model::gpt2::MicroBatch;
use crate::model::{Gpt2, ParamSpec, Weights};
use crate::ops::cuda::launch::gemm_hopper;
use crate::ops::cuda::product::{Epilogue, GemmKey, Product, Types};
use crate::ops::op::grid::{Grid, GridUnit};
use crate::ops::op::outline::Tokens;
use crate::ops::traced::{FlowSource, Trace, Traced, TracedMatrix, TracedOperation};
use crate::ops::{DeviceError, Heads, LogitTerms, Nonlinearity, Role, Rows, Vocab};
use crate::rng::Key;

/// A pass, and the bytes of all that flowed in it.
struct RecordedPass {
    trace: Trace,
    matrices: BTreeMap<usize, Vec<u8>>,
    parameters: Vec<(Vec<usize>, Vec<u8>)>,
    inputs: Vec<u16>,
    targets: Vec<u16>,
}

fn mirror() -> Mirror {
    Mirror::new(&DeviceKeys { kind: DeviceKind::Mirror, threads: 2, simd: Simd::Auto }).expect("a CPU")
}

fn pass(rows: Rows, recompute: u8, write: Write) -> RecordedPass {
    let config = Model::gpt2(2, 2, 128, rows.seq + 8, 200);
    let mut ops = mirror();
    let mut model = Gpt2::new(&mut ops, &config, rows, recompute, true, 3).expect("a model");
    let key = Key::new(5, "excerpts");
    // Squared, so that some tokens come often.
    let token = |i: usize| (key.uniform(0, i as u64) * key.uniform(1, i as u64) * 200.0) as u16;
    let tokens: Vec<u16> = (0..=rows.count()).map(token).collect();
    let (inputs, targets) = (tokens[..rows.count()].to_vec(), tokens[1..].to_vec());
    let mut room = |spec: &ParamSpec| {
        let mut buf = ops.alloc(Role::F32, spec.len)?;
        let values: Vec<f32> = (0..spec.len).map(|i| 1e-3 * key.normal(2, i as u64) as f32).collect();
        ops.upload(&mut buf, &values)?;
        Ok::<_, DeviceError>(buf)
    };
    let mut grads: Weights<_> = model.specs.try_map(&mut room).expect("memory");
    let mut losses = ops.alloc(Role::F32, rows.count()).expect("memory");
    let parameters = model.specs.iter().zip(model.params.iter());
    let parameters = parameters.map(|(spec, buf)| (spec.shape.clone(), buf.bytes().to_vec())).collect();
    let mut matrices = BTreeMap::new();
    let mut keep = |_: &mut Mirror, number, matrix: &TracedMatrix, buf: &MirrorBuffer| {
        let size = if matrix.role == Role::F32 { 4 } else { 2 };
        matrices.insert(number, buf.bytes()[..matrix.rows * matrix.columns * size].to_vec());
        Ok(())
    };
    let mut traced = Traced::new(&mut ops, model.params.iter(), &mut keep);
    let micro = MicroBatch { inputs: &inputs, targets: &targets, rows, losses_at: 0 };
    model
        .forward_backward_by_groups(
            &mut traced,
            &micro,
            &mut losses,
            &mut grads,
            1e-2,
            write,
            |ops, group, grads| grads.group(group).into_iter().try_for_each(|buf| ops.release(buf).map(drop)),
        )
        .expect("a pass");
    traced.release(&model.denominators).expect("a look");
    let trace = traced.finish().expect("all was seen");
    RecordedPass { trace, matrices, parameters, inputs, targets }
}

/// Norms of one kind, and layers with or without bias, forward and backward.
fn pass_of_norms(rms: bool, bias: bool) -> RecordedPass {
    let (rows, channels) = (300, 72);
    let shape = LinearShape { rows, c_in: channels, c_out: 136 };
    let mut ops = mirror();
    let key = Key::new(6, "excerpts of norms");
    let mut count = 0;
    let mut buf = |ops: &mut Mirror, role, len: usize| {
        let mut buf = ops.alloc(role, len).expect("memory");
        let values: Vec<f32> = (0..len).map(|i| key.normal(count, i as u64) as f32).collect();
        count += 1;
        ops.upload(&mut buf, &values).expect("an upload");
        buf
    };
    let parameters = [vec![channels], vec![channels], vec![shape.c_out, channels], vec![shape.c_out]];
    let parameters = parameters.map(|size| (buf(&mut ops, Role::Param, size.iter().product()), size));
    let [x, branch, dout] = [(); 3].map(|()| buf(&mut ops, Role::Activation, shape.input()));
    let [mut first, mut residual, mut second, mut dx] =
        [(); 4].map(|()| buf(&mut ops, Role::Activation, shape.input()));
    let [mut pre, mut act, dwide] = [(); 3].map(|()| buf(&mut ops, Role::Activation, shape.output()));
    let [mut mean, mut rstd] = [(); 2].map(|()| buf(&mut ops, Role::F32, rows));
    let [mut dvector, mut dbias] = [(); 2].map(|()| buf(&mut ops, Role::F32, channels));
    let mut dweight = buf(&mut ops, Role::F32, shape.weight());
    let mut matrices = BTreeMap::new();
    let mut keep = |_: &mut Mirror, number, matrix: &TracedMatrix, buf: &MirrorBuffer| {
        let size = if matrix.role == Role::F32 { 4 } else { 2 };
        matrices.insert(number, buf.bytes()[..matrix.rows * matrix.columns * size].to_vec());
        Ok(())
    };
    let [(weight, _), (of_bias, _), (matrix, _), (of_layer, _)] = &parameters;
    let mut traced = Traced::new(&mut ops, parameters.iter().map(|(buf, _)| buf), &mut keep);
    let mut run = || -> Result<()> {
        traced.layernorm(Layernorm {
            out: &mut first,
            mean: (!rms).then_some(&mut mean),
            rstd: &mut rstd,
            x: &x,
            weight,
            bias: bias.then_some(of_bias),
            rows,
            channels,
        })?;
        traced.residual_layernorm(ResidualLayernorm {
            residual: &mut residual,
            out: &mut second,
            mean: (!rms).then_some(&mut mean),
            rstd: &mut rstd,
            x: &x,
            branch: &branch,
            weight,
            bias: bias.then_some(of_bias),
            rows,
            channels,
        })?;
        traced.linear_activate(LinearActivate {
            out: &mut act,
            pre: &mut pre,
            x: &second,
            weight: matrix,
            bias: bias.then_some(of_layer),
            function: Nonlinearity::Gelu,
            shape,
        })?;
        for write in [Write::Set, Write::Add] {
            traced.linear_backward_weight(LinearBackwardWeight {
                dweight: &mut dweight,
                dbias: None,
                dout: &dwide,
                x: &second,
                shape,
                write,
            })?;
            traced.layernorm_backward(LayernormBackward {
                again: (write == Write::Add)
                    .then_some(NormAgain { out: &mut second, bias: bias.then_some(of_bias) }),
                dx: &mut dx,
                dx_write: write,
                dweight: &mut dvector,
                dbias: bias.then_some(&mut dbias),
                write,
                dout: &dout,
                x: &residual,
                weight,
                mean: (!rms).then_some(&mean),
                rstd: &rstd,
                rows,
                channels,
            })?;
        }
        for left in [&first, &second, &pre, &act, &dweight, &dx, &dvector, &dbias] {
            traced.release(left)?;
        }
        Ok(())
    };
    run().expect("a pass");
    let trace = traced.finish().expect("all was seen");
    let parameters = parameters.into_iter().map(|(buf, size)| (size, buf.bytes().to_vec())).collect();
    RecordedPass { trace, matrices, parameters, inputs: Vec::new(), targets: Vec::new() }
}

/// Operations that the model of [`pass`] does not have, one after the other.
fn others(rows: Rows, write: Write, heads: Heads) -> RecordedPass {
    let (vocab, theta) = (200, 10_000.0);
    let (n, c, wide) = (rows.count(), heads.channels(), rows.count() * heads.qkv_channels());
    let mut ops = mirror();
    let key = Key::new(6, "excerpts");
    let inputs: Vec<u16> =
        (0..n).map(|i| (key.uniform(0, i as u64) * key.uniform(1, i as u64) * 150.0) as u16).collect();
    let mut count = 0;
    let mut filled = |ops: &mut Mirror, role, len: usize| {
        count += 1;
        let values: Vec<f32> = (0..len).map(|i| key.normal(1 + count, i as u64) as f32).collect();
        let mut buf = ops.alloc(role, len).expect("memory");
        ops.upload(&mut buf, &values).expect("an upload");
        buf
    };
    let wte = filled(&mut ops, Role::Param, vocab * c);
    let functions = [Nonlinearity::SquaredRelu, Nonlinearity::Swiglu];
    let downs = functions.map(|function| [c, function.outputs_of(vocab)]);
    let downs = downs.map(|size| (filled(&mut ops, Role::Param, size[0] * size[1]), size));
    let [mut dwte, mut dwpe] = [vocab, rows.seq + 1].map(|len| filled(&mut ops, Role::F32, len * c));
    let dout = filled(&mut ops, Role::Activation, n * c);
    let mut qkv = filled(&mut ops, Role::Activation, wide);
    let [q_weight, k_weight] = [(); 2].map(|()| filled(&mut ops, Role::Param, heads.head_size));
    let mut dweights = [(); 2].map(|()| filled(&mut ops, Role::F32, heads.head_size));
    let mut dqkv = filled(&mut ops, Role::Activation, wide);
    let mut normed = ops.alloc(Role::Activation, wide).expect("memory");
    let mut rstd = ops.alloc(Role::F32, n * heads.of_queries_and_keys()).expect("memory");
    let mut lse = ops.alloc(Role::F32, n * heads.heads).expect("memory");
    let mut out = ops.alloc(Role::Activation, n * c).expect("memory");
    let [mut acts, mut pre, mut dpre, mut room] =
        [(); 4].map(|()| ops.alloc(Role::Activation, n * vocab).expect("memory"));
    let mut table = ops.alloc(Role::F32, rows.seq * heads.head_size).expect("memory");
    ops.upload(&mut table, &rotary_table(rows.seq, heads.head_size, theta)).expect("an upload");
    let mut ids = ops.alloc_ids(n).expect("memory");
    ops.upload_ids(&mut ids, &inputs).expect("an upload");

    let weights = [&q_weight, &k_weight].map(|weight| (vec![heads.head_size], weight.bytes().to_vec()));
    let of_layers = downs.iter().map(|(weight, size)| (size.to_vec(), weight.bytes().to_vec()));
    let parameters = [(vec![vocab, c], wte.bytes().to_vec())].into_iter().chain(weights);
    let parameters = parameters.chain(of_layers).collect();
    let mut matrices = BTreeMap::new();
    let mut keep = |_: &mut Mirror, number, matrix: &TracedMatrix, buf: &MirrorBuffer| {
        let size = if matrix.role == Role::F32 { 4 } else { 2 };
        matrices.insert(number, buf.bytes()[..matrix.rows * matrix.columns * size].to_vec());
        Ok(())
    };
    let known = [&wte, &q_weight, &k_weight].into_iter().chain(downs.iter().map(|(weight, _)| weight));
    let mut traced = Traced::new(&mut ops, known, &mut keep);
    let ids = &ids;
    traced
        .embedding(Embedding { out: &mut out, ids, wte: &wte, wpe: None, rows, channels: c })
        .expect("embedding");
    for inverse in [false, true] {
        let at = RotaryAt::Sequences(rows);
        traced.rotary(Rotary { qkv: &mut qkv, table: &table, theta, at, heads, inverse }).expect("rotary");
    }
    let [q_weight, k_weight] = [&q_weight, &k_weight];
    let turn = QkRotary { table: &table, theta, at: RotaryAt::Sequences(rows) };
    for rotary in [None, Some(turn)] {
        let (out, rstd, x, values) = (&mut normed, &mut rstd, &qkv, rotary.is_none());
        let op = QkNorm { out, rstd, x, q_weight, k_weight, rows: n, heads, values, rotary };
        traced.qk_norm(op).expect("qk_norm");
        let [dq_weight, dk_weight] = &mut dweights;
        let op = QkNormBackward {
            dqkv: &mut dqkv,
            dq_weight,
            dk_weight,
            write,
            x: &qkv,
            q_weight,
            k_weight,
            rstd,
            rows: n,
            heads,
            rotary,
        };
        traced.qk_norm_backward(op).expect("qk_norm_backward");
    }
    let (queries_and_keys, values, att, lse) = (&normed, Some(&qkv), &mut out, &mut lse);
    let op = Attention { out: &mut *att, lse: &mut *lse, qkv: queries_and_keys, values, rows, heads };
    traced.attention(op).expect("attention");
    let (dqkv, out) = (&mut dqkv, &*att);
    let (dqkv_set, qkv_read, dout) = (&mut *dqkv, queries_and_keys, &dout);
    let op = AttentionBackward { dqkv: dqkv_set, dout, qkv: qkv_read, values, out, lse, rows, heads };
    traced.attention_backward(op).expect("attention_backward");
    // A layer from out to room and back, with each function between.
    for (function, (weight, _)) in functions.into_iter().zip(&downs) {
        let shape = LinearShape { rows: n, c_in: c, c_out: vocab };
        let op = LinearActivate {
            out: &mut acts,
            pre: &mut pre,
            x: out,
            weight: &wte,
            bias: None,
            function,
            shape,
        };
        traced.linear_activate(op).expect("linear_activate");
        let shape = LinearShape { rows: n, c_in: vocab / function.inputs(), c_out: c };
        let op = LinearBackwardInputActivate {
            again: Some(&mut acts),
            dpre: &mut dpre,
            room: Some(&mut room),
            dout,
            weight,
            pre: &pre,
            function,
            shape,
        };
        traced.linear_backward_input_activate(op).expect("linear_backward_input_activate");
    }
    for dwpe in [Some(&mut dwpe), None] {
        let op = EmbeddingBackward {
            dwte: &mut dwte,
            dwte_write: write,
            vocab,
            dwpe,
            write,
            dout,
            ids,
            rows,
            channels: c,
        };
        traced.embedding_backward(op).expect("embedding_backward");
    }
    let [dq_weight, dk_weight] = &dweights;
    for buf in [&acts, &pre, &dpre] {
        traced.release(buf).expect("a look");
    }
    for buf in [out, &qkv, &normed, &rstd, dqkv, dq_weight, dk_weight, &dwte, &dwpe] {
        traced.release(buf).expect("a look");
    }
    let trace = traced.finish().expect("all was seen");
    RecordedPass { trace, matrices, parameters, inputs, targets: Vec::new() }
}

impl RecordedPass {
    /// The excerpt's part of a matrix or parameter, by way of its units.
    fn gather(&self, origin: FlowSource, pick: &Pick) -> Vec<u8> {
        let (grid, bytes) = match origin {
            FlowSource::Matrix(number) => {
                let matrix = &self.trace.matrices[number];
                let element = if matrix.role == Role::F32 { 4 } else { 2 };
                let (rows, columns) = (matrix.rows, matrix.columns);
                (Grid { rows, columns, element, unit: GridUnit::Tile }, &self.matrices[&number])
            }
            FlowSource::Parameter(at) => {
                let (shape, bytes) = &self.parameters[at];
                let (rows, columns) = if shape.len() == 2 { (shape[0], shape[1]) } else { (1, shape[0]) };
                (Grid { rows, columns, element: 2, unit: GridUnit::Leaf }, bytes)
            }
        };
        let units = grid.wanted(pick).into_iter().map(|unit| (unit, grid.cut(&bytes[..grid.bytes()], unit)));
        grid.gather(pick, &units.collect())
    }

    /// How many excerpts agree, by operation.
    fn check(&self) -> BTreeMap<&'static str, usize> {
        let mut ops = mirror();
        let mut counts = BTreeMap::new();
        for (number, operation) in self.trace.operations.iter().enumerate() {
            let tokens = match operation.outline.tokens() {
                None => &[][..],
                Some(Tokens::Inputs) => &self.inputs,
                Some(Tokens::Targets) => &self.targets,
            };
            for index in 0..operation.outline.excerpts() {
                let excerpt = operation.outline.excerpt(index, tokens);
                let accesses = excerpt.outline.matrices().into_iter().map(|matrix| matrix.access);
                let given: Vec<_> = (operation.flow.iter().zip(&excerpt.picks).zip(accesses))
                    .map(|((flow, pick), access)| Some(self.gather(flow.found(access)?, pick.as_ref()?)))
                    .collect();
                let again = ops.recompute(&excerpt, &given).expect("an operation");
                for ((flow, pick), again) in operation.flow.iter().zip(&excerpt.picks).zip(again) {
                    let (Some(after), Some(pick)) = (flow.after, pick) else { continue };
                    let whole = self.gather(FlowSource::Matrix(after), pick);
                    let unfinished = again.len() / pick.size()[0] * pick.unfinished_rows;
                    let name = &self.trace.matrices[after].name;
                    assert!(
                        again[unfinished..] == whole[unfinished..],
                        "excerpt {index} of {number}, {name}"
                    );
                }
                *counts.entry(operation.outline.name()).or_default() += 1;
            }
        }
        counts
    }
}

#[test]
fn an_excerpt_of_any_operation_has_the_bits_of_the_whole() {
    // Ragged sizes that keep every gradient in one chain; then enough rows that weight gradients have parts.
    let counts = pass(Rows { batch: 3, seq: 72 }, 1, Write::Add).check();
    assert_eq!(counts.len(), 13, "{counts:?}");
    let rows = Rows { batch: 8, seq: 128 };
    let parts = |operation: &TracedOperation| match operation.outline {
        Outline::LinearBackwardWeight { order: WeightOrder { whole, .. }, .. } => {
            let key = GemmKey {
                product: Product::BackwardWeight,
                rows: whole.rows as u64,
                c_in: whole.c_in as u64,
                c_out: whole.c_out as u64,
                types: Types::Bf16ToF32,
                epilogue: Epilogue::BiasGradient,
            };
            gemm_hopper::order(&key).splits
        }
        _ => 1,
    };
    let large = pass(rows, 0, Write::Set);
    assert!(large.trace.operations.iter().any(|operation| parts(operation) > 1), "some sum has parts");
    large.check();
}

#[test]
fn an_excerpt_of_an_operation_of_other_models_has_the_bits_of_the_whole() {
    let rows = Rows { batch: 3, seq: 72 };
    for (write, heads) in [
        (Write::Set, Heads::new(3, 64)),
        (Write::Add, Heads::new(3, 64)),
        (Write::Add, Heads { heads: 4, kv_heads: 2, head_size: 64 }),
    ] {
        let counts = others(rows, write, heads).check();
        // Tokens, and where the table is set its 7 blocks, twice; positions once.
        let cleared = if write == Write::Set { 7 } else { 0 };
        let groups = heads.kv_heads;
        let want = [
            ("attention", 3 * groups),
            ("attention_backward", 3 * groups),
            ("linear_squared_relu", 7 * 4),
            ("linear_swiglu", 7 * 2),
            ("linear_backward_input_squared_relu", 7 * 4),
            ("linear_backward_input_swiglu", 7 * 2),
            ("embedding", 3 * 3),
            ("embedding_backward", 2 * (3 * 72 + cleared) + 3),
            // Blocks of all rows, with rotary positions of each sequence.
            ("qk_norm", (7 + 3 * 3) * groups),
            ("qk_norm_backward", (7 + 3 * 3) * groups + 2 * 2),
            ("rotary", 2 * 3 * 3 * groups),
        ];
        assert_eq!(counts, BTreeMap::from(want), "{write:?} {heads:?}");
    }
}

/// The MLP of a block in ragged sizes, forward and backward, with a function that no product ends in.
fn mlp_pass(function: Nonlinearity, in_place: bool) -> RecordedPass {
    let (rows, channels, width) = (77, 72, 200);
    let wide = function.inputs() * width;
    let mut ops = mirror();
    let key = Key::new(6, "excerpts");
    let mut filled = |stream: u64, role, len: usize, scale: f32| {
        let values: Vec<f32> = (0..len).map(|i| scale * key.normal(stream, i as u64) as f32).collect();
        let mut buf = ops.alloc(role, len).expect("memory");
        ops.upload(&mut buf, &values).expect("an upload");
        buf
    };
    let x = filled(0, Role::Activation, rows * channels, 1.0);
    let up = filled(1, Role::Param, wide * channels, 0.2);
    let down = filled(2, Role::Param, channels * width, 0.2);
    let dout = filled(3, Role::Activation, rows * channels, 1.0);
    let [mut pre, mut dpre] = [(); 2].map(|()| filled(4, Role::Activation, rows * wide, 0.0));
    let [mut act, mut dact] = [(); 2].map(|()| filled(4, Role::Activation, rows * width, 0.0));
    let mut out = filled(4, Role::Activation, rows * channels, 0.0);
    let mut dweight = filled(4, Role::F32, wide * channels, 0.0);
    let parameters =
        [(vec![wide, channels], up.bytes().to_vec()), (vec![channels, width], down.bytes().to_vec())];
    let mut matrices = BTreeMap::new();
    let mut keep = |_: &mut Mirror, number, matrix: &TracedMatrix, buf: &MirrorBuffer| {
        let size = if matrix.role == Role::F32 { 4 } else { 2 };
        matrices.insert(number, buf.bytes()[..matrix.rows * matrix.columns * size].to_vec());
        Ok(())
    };
    let mut traced = Traced::new(&mut ops, [&up, &down].into_iter(), &mut keep);
    let shape = LinearShape { rows, c_in: channels, c_out: wide };
    let narrow = LinearShape { rows, c_in: width, c_out: channels };
    let mut pass = || -> Result<()> {
        traced.linear(Linear { out: &mut pre, x: &x, weight: &up, bias: None, shape })?;
        traced.activate(Activate { out: &mut act, pre: &pre, function, rows, channels: width })?;
        traced.linear(Linear { out: &mut out, x: &act, weight: &down, bias: None, shape: narrow })?;
        let dx = if in_place { &mut dpre } else { &mut dact };
        traced.linear_backward_input(LinearBackwardInput {
            dx,
            dout: &dout,
            weight: &down,
            shape: narrow,
        })?;
        let dout = (!in_place).then_some(&dact);
        let (dpre, pre) = (&mut dpre, &pre);
        traced.activate_backward(ActivateBackward { dpre, dout, pre, function, rows, channels: width })?;
        let (dweight, dout, write) = (&mut dweight, &*dpre, Write::Set);
        let op = LinearBackwardWeight { dweight, dbias: None, dout, x: &x, shape, write };
        traced.linear_backward_weight(op)?;
        [&out, &*dweight].into_iter().try_for_each(|buf| traced.release(buf).map(drop))
    };
    pass().expect("a pass");
    let trace = traced.finish().expect("all was seen");
    RecordedPass { trace, matrices, parameters: parameters.into(), inputs: Vec::new(), targets: Vec::new() }
}

#[test]
fn an_excerpt_of_a_function_or_its_gradient_has_the_bits_of_the_whole() {
    use Nonlinearity::{Gelu, SquaredRelu, Swiglu};
    for (function, name, gradient) in [
        (Gelu, "gelu", "gelu_backward"),
        (SquaredRelu, "squared_relu", "squared_relu_backward"),
        (Swiglu, "swiglu", "swiglu_backward"),
    ] {
        for in_place in [false, true] {
            if function == Swiglu && in_place {
                continue;
            }
            // Three tiles of rows by four of columns.
            let counts = mlp_pass(function, in_place).check();
            assert_eq!((counts[name], counts[gradient]), (12, 12), "{counts:?}");
        }
    }
}

#[test]
fn an_excerpt_of_a_norm_has_the_bits_of_the_whole_without_mean_and_bias() {
    for (rms, bias) in [(false, false), (true, true), (true, false)] {
        let pass = pass_of_norms(rms, bias);
        let matrices = pass.trace.operations.iter().map(|operation| operation.flow.len());
        let (r, b) = (usize::from(rms), usize::from(!bias));
        // The last has its output again too, which needs the bias.
        let expected = [6 - r - b, 8 - r - b, 5 - b, 3, 8 - r - b, 3, 10 - r - 2 * b];
        assert!(matrices.eq(expected), "RMSNorm {rms}, bias {bias}: what is not there is no matrix");
        assert_eq!(pass.check().len(), 5, "RMSNorm {rms}, bias {bias}");
    }
}

/// A classifier alone, with terms.
fn classified(rows: usize, vocab: Vocab, terms: LogitTerms, write: Write) -> RecordedPass {
    let channels = 64;
    let mut ops = mirror();
    let key = Key::new(6, "excerpts");
    let filled = |ops: &mut Mirror, role, len: usize, scale: f64| {
        let mut buf = ops.alloc(role, len).expect("memory");
        let values: Vec<f32> = (0..len).map(|i| (scale * key.normal(len as u64, i as u64)) as f32).collect();
        ops.upload(&mut buf, &values).expect("an upload");
        buf
    };
    let mut x = filled(&mut ops, Role::Activation, rows * channels, 1.0);
    // The powers of its row pass what a sum may hold.
    let large = filled(&mut ops, Role::Activation, channels, 60.0);
    ops.copy(crate::ops::CopyPart { dst: &mut x, at: 70 * channels, src: &large, from: 0, len: channels })
        .expect("a copy");
    let wte = filled(&mut ops, Role::Param, vocab.padded * channels, 0.3);
    let mut dwte = filled(&mut ops, Role::F32, vocab.padded * channels + 1, 1e-3);
    let targets: Vec<u16> =
        (0..rows).map(|i| (key.uniform(0, i as u64) * vocab.used as f64) as u16).collect();
    let mut ids = ops.alloc_ids(rows).expect("memory");
    ops.upload_ids(&mut ids, &targets).expect("an upload");
    let [mut losses, mut denominators] =
        [1, 2].map(|each| ops.alloc(Role::F32, each * rows).expect("memory"));
    let mut dx = ops.alloc(Role::Activation, rows * channels).expect("memory");
    let parameters = vec![(vec![vocab.padded, channels], wte.bytes().to_vec())];
    let mut matrices = BTreeMap::new();
    let mut keep = |_: &mut Mirror, number, matrix: &TracedMatrix, buf: &MirrorBuffer| {
        let size = if matrix.role == Role::F32 { 4 } else { 2 };
        matrices.insert(number, buf.bytes()[..matrix.rows * matrix.columns * size].to_vec());
        Ok(())
    };
    let mut traced = Traced::new(&mut ops, std::iter::once(&wte), &mut keep);
    traced
        .classifier(Classifier {
            losses: &mut losses,
            losses_at: 0,
            denominators: &mut denominators,
            dx: &mut dx,
            dwte: &mut dwte,
            x: &x,
            wte: &wte,
            targets: &ids,
            rows,
            channels,
            vocab,
            terms,
            scale: 1.0 / rows as f32,
            write,
        })
        .expect("classifier");
    for buf in [&losses, &denominators, &dx, &dwte] {
        traced.release(buf).expect("a look");
    }
    let trace = traced.finish().expect("all was seen");
    RecordedPass { trace, matrices, parameters, inputs: Vec::new(), targets }
}

#[test]
fn an_excerpt_of_a_classifier_with_terms_has_the_bits_of_the_whole() {
    let vocab = Vocab { used: 200, padded: 256 };
    for (softcap, z_loss, write) in [
        (Some(30.0), 0.0, Write::Set),
        (Some(2.0), 0.1, Write::Add),
        (None, 1e-4, Write::Add),
        (None, 0.1, Write::Set),
    ] {
        let terms = LogitTerms { softcap, z_loss };
        let pass = classified(150, vocab, terms, write);
        let outline = pass.trace.operations[0].outline;
        assert!(matches!(outline, Outline::Classifier { terms: known, .. } if known == terms));
        // Five blocks of 32 rows and four of 64 rows of the table.
        assert_eq!(pass.check()["classifier"], 9);
        let plain = classified(150, vocab, LogitTerms::default(), write);
        assert_ne!(plain.matrices, pass.matrices, "{terms:?} change something");
    }
}
