//! The report on an experiment with errors.

use super::*;

#[test]
fn all_faults_come_in_one_report() {
    let text = r#"seed = "x"

[model]
descripter = "d12"

[batch]
micro = 16
seq_len = 1024
tokens = 1_000_000

[schedule]
warmup = 700
steps = 1e5

[optmizer]
beta1 = 0.9

[data]
corpus = "kjv"
workers = 2
"#;
    let error = text_with(text, &[("RUNNER_MEMORY__RECOMPUTE", "3")], &["device.simd=basline", "log.evry=1"])
        .unwrap_err();
    assert_report(&error, SEVERAL_FAULTS);
}

const SEVERAL_FAULTS: &str = r#"
error: `seed` must be an integer, at least 0, not the string "x"
  --> x.toml:1:8
   |
 1 | seed = "x"
   |        ^^^ expected an integer, at least 0

error: unknown key `model.descripter`
  --> x.toml:4:1
   |
 4 | descripter = "d12"
   | ^^^^^^^^^^ not a key
   = note: `model` has init, descriptor, layers, heads, kv_heads, channels, context, vocab, norm,
   = note: positions, rope_theta, activation, bias, tied_head, qk_norm, logit_softcap
   hint: did you mean `model.descriptor`?

error: `batch.tokens` = 1000000 is not a multiple of micro × seq_len × workers = 16384
  --> x.toml:9:10
   |
 9 | tokens = 1_000_000
   |          ^^^^^^^^^
   = note: `batch.micro` is 16 (x.toml:7)
   = note: `batch.seq_len` is 1024 (x.toml:8)
   = note: `parallel.workers` is 1 (default)
   hint: the nearest valid `batch.tokens` are 999424 and 1015808

error: unknown key `schedule.warmup`
  --> x.toml:12:1
   |
12 | warmup = 700
   | ^^^^^^ not a key
   = note: `schedule` has kind, steps, epochs, learning_rate, warmup_steps, final_fraction, decay_fraction
   hint: did you mean `schedule.warmup_steps`?

error: `schedule.steps` must be an integer, at least 1, not the number 1e5
  --> x.toml:13:9
   |
13 | steps = 1e5
   |         ^^^ expected an integer, at least 1
   hint: write `100000`

error: unknown key `optmizer`
  --> x.toml:15:2
   |
15 | [optmizer]
   |  ^^^^^^^^
   hint: did you mean the section `optimizer`?

error: unknown key `data.workers`
  --> x.toml:20:1
   |
20 | workers = 2
   | ^^^^^^^ not a key
   = note: `data` has corpus, train, val, tokenizer, order, offset, overfit_single_batch, prefetch
   hint: did you mean `parallel.workers`?

error: `memory.recompute` is 3, but at most 2 is allowed
  --> environment
   |
   | RUNNER_MEMORY__RECOMPUTE=3
   |                          ^ expected an integer from 0 to 2

error: `device.simd` knows no "basline"
  --> --set
   |
   | device.simd=basline
   |             ^^^^^^^ expected "auto", "avx512", "avx2" or "baseline"
   hint: did you mean "baseline"?

error: unknown key `log.evry`
  --> --set
   |
   | log.evry=1
   | ^^^^^^^^ `log` has every, gpu_every, tensorboard
   hint: did you mean `log.every`?

x.toml has 10 faults; nothing was started
"#;

#[test]
fn several_syntax_faults_come_in_one_report() {
    let error = text_with("seed = \n[model\nlayers = 2\nheads == 3\n", &[], &["seed=1.5"]).unwrap_err();
    assert!(error.faults.len() >= 3, "{error}");
    assert!(
        error
            .faults
            .iter()
            .filter(|fault| fault.message.starts_with("not TOML"))
            .all(|fault| fault.place.is_some()),
        "{error}"
    );
}

#[test]
fn a_rule_points_at_the_layer_that_broke_it() {
    let sound = format!("{SMALL}[batch]\ntokens = 8192\n");
    text_with(&sound, &[], &[]).unwrap();
    let error = text_with(&sound, &[], &["batch.micro=3"]).unwrap_err();
    assert_report(&error, RULE_BROKEN_BY_SET);
}

const RULE_BROKEN_BY_SET: &str = r#"
error: `batch.tokens` = 8192 is not a multiple of micro × seq_len × workers = 3072
  --> --set
   |
   | batch.micro=3
   |             ^
   = note: `batch.tokens` is 8192 (x.toml:8)
   = note: `batch.seq_len` is 1024 (from model.context)
   = note: `parallel.workers` is 1 (default)
   hint: the nearest valid `batch.tokens` are 6144 and 9216

x.toml with --set has 1 fault; nothing was started
"#;

#[test]
fn bytes_that_are_not_text_are_refused_where_they_stand() {
    let error = load_layers(
        &ExperimentText::Text { name: "x.toml", bytes: b"seed = 1\nname = \"\xff\"\n" },
        &[],
        &[],
    )
    .unwrap_err();
    assert_eq!(error.faults[0].message, "the file is not UTF-8 text");
    assert_eq!(error.faults[0].place.as_ref().unwrap().position, Some((2, 9)));
}
