use super::*;
use crate::experiment::{DeviceKeys, DeviceKind, Model, Simd};
use crate::model::gpt2::MicroBatch;
use crate::ops::{Role, Rows, cpu::Cpu};
use crate::parallel::{Solo, threads};

const SEQ: usize = 150;

fn set(folder: &Path) -> TaskSet {
    let path = folder.join("tasks.jsonl");
    let line = |i: usize| {
        let words = "and he saw that it was good ".repeat(i % 7);
        let endings: Vec<String> =
            (0..4).map(|e| format!("end {e} {}", "so ".repeat((i * 5 + e * 3) % 9))).collect();
        let ctx = format!("In the beginning {words}he");
        serde_json::json!({"activity_label": "Making", "ctx": ctx, "label": i % 4, "endings": endings})
    };
    let text: String = (0..23).map(|i| format!("{}\n", line(i))).collect();
    std::fs::write(&path, text).unwrap();
    TaskSet::open(&path, &Tokenizer::Byte, 257, SEQ).unwrap()
}

/// A small model and a buffer for its losses.
pub fn model(ops: &mut Cpu, capacity: Rows) -> (Gpt2<Cpu>, <Cpu as Ops>::Buf) {
    let config = Model::gpt2(2, 2, 32, 512, 257);
    let model = Gpt2::new(ops, &config, capacity, 0, false, 3).unwrap();
    let losses = ops.alloc(Role::F32, capacity.count()).unwrap();
    (model, losses)
}

pub fn cpu() -> Cpu {
    Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto }).unwrap()
}

fn bits(outcomes: &[TaskOutcome]) -> Vec<u64> {
    let wordings = outcomes.iter().flat_map(|o| [Some(o.plain), o.harness]).flatten();
    wordings.flatten().map(|surprise| surprise.nats.to_bits()).collect()
}

#[test]
fn no_bit_depends_on_the_shape_of_the_batches() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path());
    let mut first: Option<Vec<u64>> = None;
    for (batch, seq) in [(1, SEQ), (3, SEQ), (64, SEQ), (1, 256), (5, 512)] {
        let mut ops = cpu();
        let (mut model, mut losses) = model(&mut ops, Rows { batch, seq });
        let outcomes = outcomes(&mut ops, &mut model, &mut losses, &mut Solo, &set, &mut |_, _| {}).unwrap();
        assert_eq!(outcomes.len(), 23);
        let bits = bits(&outcomes);
        assert!(bits.iter().all(|b| f64::from_bits(*b) > 0.0));
        assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "capacity {batch} x {seq}");
    }
}

#[test]
fn a_row_alone_without_padding_has_the_same_losses() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path());
    let mut ops = cpu();
    let (mut model, mut losses) = model(&mut ops, Rows { batch: 2, seq: 256 });
    let outcomes = outcomes(&mut ops, &mut model, &mut losses, &mut Solo, &set, &mut |_, _| {}).unwrap();
    for (i, row) in set.make_rows().iter().enumerate() {
        let rows = Rows { batch: 1, seq: row.inputs() };
        let batch =
            MicroBatch { inputs: &row.tokens[..rows.seq], targets: &row.tokens[1..], rows, losses_at: 0 };
        model.forward(&mut ops, &batch, &mut losses).unwrap();
        let mut host = vec![0.0; rows.seq];
        ops.download(&losses, &mut host).unwrap();
        let alone: f64 = host[rows.seq - row.scored..].iter().map(|&l| f64::from(l)).sum();
        let outcome = &outcomes[i / 8];
        let packed = if i % 8 < 4 { &outcome.plain } else { outcome.harness.as_ref().unwrap() };
        assert_eq!(packed[i % 4].nats.to_bits(), alone.to_bits());
    }
}

#[test]
fn long_contexts_lose_their_start_and_keep_every_completion() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path());
    let rows = set.make_rows();
    let cut = rows.iter().filter(|row| row.inputs() == SEQ).count();
    assert!(cut > 0 && cut < rows.len(), "{cut} of {} are cut", rows.len());
    for (i, row) in rows.iter().enumerate() {
        let prompt = set.tasks[i / 8].prompts().nth(i % 8 / 4).unwrap();
        assert!(row.tokens.ends_with(&prompt.completions[i % 4]));
        let context = &row.tokens[..row.tokens.len() - row.scored];
        assert!(prompt.context.ends_with(context) && !context.is_empty());
    }
}

/// With NaN losses every comparison is false, and a score of 25 % would mean nothing.
#[test]
fn a_loss_that_is_not_finite_is_an_error_that_names_the_task() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path());
    let mut ops = cpu();
    let (mut model, mut losses) = model(&mut ops, Rows { batch: 2, seq: 256 });
    let width = model.config.channels;
    ops.upload(model.params.ln_f.bias.as_mut().unwrap(), &vec![f32::NAN; width]).unwrap();
    let error = hellaswag(&mut ops, &mut model, &mut losses, &mut Solo, &set, &mut |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("tasks.jsonl` line 1, completion 0, token 0 is NaN"), "{error}");
}

/// Only the longer rows fail, which come late and not to every rank.
#[test]
fn a_loss_that_is_not_finite_is_the_same_error_on_every_rank_of_any_number() {
    let folder = tempfile::tempdir().unwrap();
    let set = set(folder.path());
    let errors = |ranks: usize| {
        threads::run(ranks, |mut link| {
            let mut ops = cpu();
            let (mut model, mut losses) = model(&mut ops, Rows { batch: 2, seq: 256 });
            let (width, context) = (model.config.channels, model.config.context);
            let mut positions = vec![0.0; width * context];
            let wpe = model.params.wpe.as_mut().unwrap();
            ops.download(wpe, &mut positions).unwrap();
            positions[100 * width..].fill(f32::NAN);
            ops.upload(wpe, &positions).unwrap();
            let scored = hellaswag(&mut ops, &mut model, &mut losses, &mut link, &set, &mut |_, _| {});
            scored.unwrap_err().to_string()
        })
    };
    let alone = errors(1).remove(0);
    assert!(alone.contains("tasks.jsonl` line") && alone.contains("is NaN"), "{alone}");
    assert!(!alone.contains("line 1,"), "the first row is short: {alone}");
    for ranks in [2, 4] {
        assert_eq!(errors(ranks), vec![alone.clone(); ranks], "{ranks} ranks");
    }
}

#[test]
fn the_scores_pick_by_mean_by_sum_and_by_sum_a_character_or_byte_and_the_first_of_equals() {
    let surprises =
        |values: [(f64, usize); 4]| values.map(|(nats, tokens)| Surprise { nats, tokens, greedy: None });
    let prompt = Prompt { context: vec![1], completions: Default::default() };
    let lengths = [(10, 10), (10, 10), (40, 40), (20, 80)].map(|(chars, bytes)| Length { chars, bytes });
    let task = Task { plain: prompt.clone(), harness: Some(prompt), label: 0, lengths };
    let outcome = TaskOutcome {
        plain: surprises([(6.0, 2), (8.0, 4), (9.0, 3), (4.0, 2)]),
        harness: Some(surprises([(6.0, 1), (5.0, 1), (8.0, 1), (5.0, 1)])),
    };
    let decisions = outcome.decisions(&task);
    assert_eq!(decisions[0].values, [3.0, 2.0, 3.0, 2.0]);
    assert_eq!(decisions.map(|d| d.picked), [1, 1, 2, 3]);
    let plain_only = TaskOutcome { harness: None, ..outcome };
    assert_eq!(plain_only.decisions(&task).map(|d| d.picked), [1, 3, 3, 3]);
}

/// A missing file must not turn HellaSwag off without an error.
#[test]
fn files_that_cannot_be_used_are_refused_when_they_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h.jsonl");
    let open = |vocab, seq_len| {
        TaskSet::open(&path, &Tokenizer::Byte, vocab, seq_len).map(|_| ()).map_err(|e| e.to_string())
    };
    let says = |text: &str, result: Result<(), String>| {
        let error = result.unwrap_err();
        assert!(error.contains(text), "{error}\nlacks: {text}");
    };
    says("h.jsonl`: No such file", open(257, 64));
    std::fs::write(&path, "").unwrap();
    says("has no tasks: the file is empty", open(257, 64));
    std::fs::write(&path, [b'{', 0xff]).unwrap();
    says("not UTF-8 text: invalid at byte 1 (0xff)", open(257, 64));
    std::fs::write(
        &path,
        r#"{"activity_label": "J", "ctx": "A", "label": 0, "endings": ["abcdefghi", "b", "c", "d"]}"#,
    )
    .unwrap();
    says("line 1 holds token 105, expected less than 105", open(105, 64));
    says("line 1: a completion of 10 tokens does not fit sequences of 9", open(257, 9));
    assert_eq!(open(257, 10), Ok(()));
}

#[test]
fn files_of_other_kinds_and_tokens_out_of_range_are_refused_by_name() {
    let tokenizer = Tokenizer::new(crate::experiment::Tokenizer::Gpt2);
    let refusal = |bytes: &[u8], vocab| {
        let parsed = TaskSet::parse(std::path::Path::new("h.bin"), bytes, &tokenizer, vocab, 64);
        parsed.map(|set| set.tasks().len()).expect_err("refused").to_string()
    };
    let says = |text: &str, error: String| assert!(error.contains(text), "{error}\nlacks: {text}");
    let mut bytes = crate::data::shard::header(1).to_vec();
    bytes.extend([1, 0]);
    says(
        "`h.bin` is a token shard already: expected JSON lines, plain or compressed with gzip or zstd",
        refusal(&bytes, 50_257),
    );
    says("`h.bin` is a web page (HTML): expected JSON lines", refusal(b"<!DOCTYPE html>", 50_257));
    let mut bytes = vec![0; 1024];
    for (i, word) in [crate::eval::eval_bin::MAGIC, 1, 1, 30].into_iter().enumerate() {
        bytes[4 * i..4 * i + 4].copy_from_slice(&word.to_le_bytes());
    }
    let example: [u16; 15] = [u16::MAX, 30, 0, 0, 4, 1, 32, 1, 257, 1, 582, 1, 50_300, 1, 257];
    bytes.extend(example.into_iter().flat_map(u16::to_le_bytes));
    // Those of a padded vocabulary are no tokens of GPT-2.
    for vocab in [50_257, 50_304] {
        says("`h.bin` example 0 holds token 50300, expected less than 50257", refusal(&bytes, vocab));
    }
}
