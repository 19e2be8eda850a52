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
use crate::ops::{DeviceError, LogitTerms, Role, Rows, Vocab};
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
    let config = Model {
        init: None,
        descriptor: None,
        layers: 2,
        heads: 2,
        channels: 128,
        context: rows.seq + 8,
        vocab: 200,
        vocab_padded: 256,
    };
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
    traced.release(&model.log_sums).expect("a look");
    let trace = traced.finish().expect("all was seen");
    RecordedPass { trace, matrices, parameters, inputs, targets }
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
    assert_eq!(counts.len(), 14, "{counts:?}");
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
    let x = filled(&mut ops, Role::Activation, rows * channels, 1.0);
    let wte = filled(&mut ops, Role::Param, vocab.padded * channels, 0.3);
    let mut dwte = filled(&mut ops, Role::F32, vocab.padded * channels + 1, 1e-3);
    let targets: Vec<u16> =
        (0..rows).map(|i| (key.uniform(0, i as u64) * vocab.used as f64) as u16).collect();
    let mut ids = ops.alloc_ids(rows).expect("memory");
    ops.upload_ids(&mut ids, &targets).expect("an upload");
    let [mut losses, mut lse] = [(); 2].map(|()| ops.alloc(Role::F32, rows).expect("memory"));
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
            lse: &mut lse,
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
    for buf in [&losses, &lse, &dx, &dwte] {
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
