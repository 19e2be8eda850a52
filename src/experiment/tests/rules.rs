//! Rules between keys: what each refuses, and what follows from what.

use super::*;

/// Each line breaks one rule of a valid experiment and gives exactly one fault.
#[test]
fn every_rule_between_keys_is_kept() {
    let cases: &[(&[&str], &str)] = &[
        (&["model.descriptor=d13"], "no model is called `d13`"),
        (
            &["model.descriptor=gpt3:c5140"],
            "`gpt3:c5140` cannot be built: 5140 channels are not a multiple of the head size 128",
        ),
        (
            &["model.layers=1", "model.heads=3", "model.channels=64"],
            "`model.channels` = 64 is not a multiple of `model.heads` = 3",
        ),
        (
            &["model.layers=1", "model.heads=1", "model.channels=160", "device.kind=cuda"],
            "160 channels in heads of 160 cannot run on CUDA: it takes multiples of 8 in heads of at most \
             128",
        ),
        (&["batch.seq_len=2048"], "sequences of 2048 tokens do not fit a model that reads 1024"),
        (
            &["model.vocab=50000"],
            "a vocabulary of 50000 is too small for the tokenizer \"gpt2\", which has 50257 tokens",
        ),
        (&["parallel.workers=6"], "`parallel.workers` = 6 is not a power of two"),
        (
            &["model.context=8192", "batch.seq_len=8192", "batch.micro=1048576", "parallel.workers=65536"],
            "micro × seq_len × workers = 562949953421312 tokens a step, but at most 281,474,976,710,656 are \
             allowed",
        ),
        (
            &["batch.tokens=1000"],
            "`batch.tokens` = 1000 is not a multiple of micro × seq_len × workers = 4096",
        ),
        (
            &["parallel.zero=2", "batch.tokens=8192"],
            "`parallel.zero` = 2 needs one micro-step a worker, and `batch.tokens` makes it 2",
        ),
        (
            &["batch.tokens=16384", "batch.tokens_start=4096"],
            "`batch.tokens_start` does nothing: the number of tokens a step has no warm-up",
        ),
        (
            &["batch.tokens=16384", "batch.tokens_warmup_steps=5"],
            "`batch.tokens_warmup_steps` = 5 is of a warm-up without a start",
        ),
        (
            &["batch.tokens=16384", "batch.tokens_start=20480", "batch.tokens_warmup_steps=5"],
            "`batch.tokens_start` = 20480 is above `batch.tokens` = 16384: a warm-up goes up",
        ),
        (
            &["batch.tokens=16384", "batch.tokens_start=5000", "batch.tokens_warmup_steps=5"],
            "`batch.tokens_start` = 5000 is not a multiple of micro × seq_len × workers = 4096",
        ),
        (
            &["parallel.zero=2", "batch.tokens_start=1024", "batch.tokens_warmup_steps=5"],
            "`batch.tokens_start` = 1024 is not a multiple of micro × seq_len × workers = 4096",
        ),
        (
            &[
                "batch.tokens=16384",
                "batch.tokens_start=4096",
                "batch.tokens_warmup_steps=5",
                "data.overfit_single_batch=true",
            ],
            "`data.overfit_single_batch` trains every step on one batch, which has one size",
        ),
        (
            &["batch.seq_len_start=64"],
            "`batch.seq_len_start` does nothing: the length of sequences has no warm-up",
        ),
        (
            &["batch.seq_len_warmup_steps=5"],
            "`batch.seq_len_warmup_steps` = 5 is of a warm-up without a start",
        ),
        (
            &["batch.seq_len_start=2048", "batch.seq_len_warmup_steps=5"],
            "`batch.seq_len_start` = 2048 is above `batch.seq_len` = 1024: a warm-up goes up",
        ),
        (
            &["batch.seq_len_start=96", "batch.seq_len_warmup_steps=5"],
            "`batch.seq_len_start` = 96 is not a divisor of `batch.seq_len` = 1024",
        ),
        (
            &["batch.micro=64", "batch.seq_len_start=8", "batch.seq_len_warmup_steps=5", "device.kind=cuda"],
            "8192 pieces of `batch.seq_len_start` = 8 tokens cannot run on CUDA: with 12 heads it takes at \
             most 5461",
        ),
        (&["schedule.warmup_steps=11"], "the warm-up of 11 steps is longer than the run of 10"),
        (
            &["schedule.kind=range", "schedule.final_fraction=0"],
            "a range test that begins at a learning rate of 0 stays there",
        ),
        (
            &["schedule.kind=range", "schedule.final_fraction=1e-46"],
            "the first learning rate, `schedule.final_fraction` = 1e-46 of the peak, becomes 0.0 in the 32 \
             bits that are computed with",
        ),
        (
            &["schedule.final_fraction=1e-46"],
            "the last learning rate, `schedule.final_fraction` = 1e-46 of the peak, becomes 0.0 in the 32 \
             bits that are computed with",
        ),
        (
            &["schedule.kind=range", "schedule.warmup_steps=2"],
            "a range test has no warm-up: it begins with the smallest rate",
        ),
        (
            &["optimizer.rate_head=2"],
            "`optimizer.rate_head` does nothing: `model.tied_head` is true, and the classifier is the token \
             table",
        ),
        (
            &["optimizer.momentum_warmup_steps=3", "optimizer.momentum_start=0.5"],
            "`optimizer.momentum_warmup_steps` does nothing: it is Muon's, and `optimizer.kind` is \"adamw\"",
        ),
        (
            &["optimizer.momentum=0.9"],
            "`optimizer.momentum` does nothing: it is Muon's, and `optimizer.kind` is \"adamw\"",
        ),
        (
            &["optimizer.rate_tables=0", "optimizer.rate_vectors=0", "optimizer.rate_matrices=0"],
            "nothing would learn: every `optimizer.rate_*` is 0",
        ),
        (&["model.logit_softcap=1000.5"], "`model.logit_softcap` is 1000.5, which is out of range"),
        (
            &[
                "model.layers=1",
                "model.heads=1",
                "model.channels=63",
                "device.kind=mirror",
                "model.qk_norm=true",
            ],
            "63 channels in heads of 63 have no mirror: it has heads of 64 and 128, as Hopper's kernels do",
        ),
        (
            &[
                "model.layers=1",
                "model.heads=1",
                "model.channels=63",
                "device.kind=cuda",
                "model.qk_norm=true",
            ],
            "63 channels in heads of 63 cannot run on CUDA: it takes multiples of 8 in heads of at most 128",
        ),
        (
            &[
                "model.layers=1",
                "model.heads=8",
                "model.channels=504",
                "device.kind=cuda",
                "model.qk_norm=true",
            ],
            "heads of 63 cannot run on CUDA with `model.qk_norm`: it takes multiples of 8",
        ),
        (
            &["optimizer.momentum_start=0.5"],
            "`optimizer.momentum_start` does nothing: the momentum of Muon has no warm-up",
        ),
        (
            &["schedule.learning_rate=1e-30", "optimizer.rate_vectors=1e-30"],
            "the learning rate by `optimizer.rate_vectors` = 1e-30 becomes 0.0 in the 32 bits that are \
             computed with",
        ),
        (&["device.kind=cpu", "precision.compute=bf16"], "the CPU computes in fp32, not in bf16"),
        (&["device.kind=cpu", "precision.compute=tf32"], "the CPU computes in fp32, not in tf32"),
        (
            &["precision.compute=fp32", "precision.master_weights=false"],
            "`precision.master_weights = false` needs bf16 weights: in fp32 there is nothing to round",
        ),
        (
            &["kernels.gelu_fusion=1", "memory.recompute=2"],
            "`kernels.gelu_fusion` = 1 and `memory.recompute` = 2 do not go together in bf16",
        ),
        (&["data.train=a.bin"], "evaluation every 250 steps needs validation data"),
        (&["data.train=[]", "data.val=v.bin"], "the experiment has no data to train on"),
        (&["eval.val_tokens=1023"], "`eval.val_tokens` = 1023 is less than one sequence of 1024 tokens"),
        (
            &["guards.on_diverge=rewind", "checkpoint.every=0"],
            "`guards.on_diverge = \"rewind\"` needs checkpoints to go back to",
        ),
        (&["extends=a.toml"], "`extends` belongs in a file"),
        (&["seed"], "`--set` takes `key=value`"),
    ];
    for (sets, expected) in cases {
        assert_eq!(messages(small_with(sets)), [*expected], "{sets:?}");
    }
}

#[test]
fn what_the_rules_allow_loads() {
    for sets in [
        &["kernels.gelu_fusion=2", "memory.recompute=0"][..],
        &["kernels.gelu_fusion=1", "memory.recompute=1", "precision.compute=fp32"],
        &["kernels.gelu_fusion=1", "memory.recompute=1", "device.kind=cpu"],
        &["precision.master_weights=false"],
        &["data.train=a.bin", "eval.every=0"],
        &["schedule.warmup_steps=10"],
        &["schedule.kind=range", "schedule.final_fraction=1e-4"],
        &["model.descriptor=gpt3:c5120", "device.kind=cuda"],
        &["model.context=4096", "batch.seq_len=2048"],
        &["model.vocab=65536"],
        &["batch.tokens=32768", "parallel.workers=8"],
        &["batch.tokens=32768", "parallel.workers=8", "parallel.zero=2"],
        &["batch.tokens=16384", "batch.tokens_start=4096", "batch.tokens_warmup_steps=5"],
        &["batch.tokens_start=4096", "batch.tokens_warmup_steps=5", "parallel.zero=2"],
        &["batch.seq_len_start=1", "batch.seq_len_warmup_steps=5", "data.overfit_single_batch=true"],
        &["optimizer.rate_head=2", "model.tied_head=false"],
        &["optimizer.rate_head=1", "optimizer.rate_tables=10", "optimizer.rate_vectors=0"],
        &["optimizer.kind=muon", "optimizer.momentum_warmup_steps=300", "optimizer.momentum_start=0.7"],
        &["optimizer.momentum_start=0.85", "optimizer.momentum=0.95"],
        &["optimizer.kind=muon", "optimizer.momentum=0.9"],
        &["optimizer.rate_tables=0", "optimizer.rate_vectors=0", "optimizer.rate_matrices=1"],
        &["model.logit_softcap=1000"],
    ] {
        small_with(sets).unwrap_or_else(|error| panic!("{sets:?}\n{error}"));
    }
}

#[test]
fn sizes_follow_the_tokenizer_the_descriptor_and_each_other() {
    let e = small_with(&["model.descriptor=gpt3:c768", "data.tokenizer=byte", "parallel.workers=2"])
        .unwrap()
        .experiment;
    assert_eq!((e.model.vocab, e.model.vocab_padded), (257, 384));
    assert_eq!((e.model.context, e.batch.seq_len), (2048, 2048));
    assert_eq!(e.batch.tokens, 4 * 2048 * 2, "one micro-batch a worker");
}

#[test]
fn missing_keys_are_reported_together() {
    assert_eq!(
        messages(text_with("", &[], &[])),
        [
            "the experiment has no model",
            "the experiment does not say how long to train",
            "the experiment has no data to train on"
        ]
    );
}

#[test]
fn epochs_become_steps_when_the_data_are_open() {
    let mut loaded =
        text_with(&SMALL.replace("steps = 10", "epochs = 2\nwarmup_steps = 5"), &[], &["batch.tokens=8192"])
            .unwrap();
    assert_eq!((loaded.epochs, loaded.experiment.schedule.steps), (Some(2), 0));
    let unresolved = text_with(&loaded.to_toml(), &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&unresolved.experiment, unresolved.epochs), (&loaded.experiment, Some(2)));
    assert!(loaded.clone().resolve_epochs(3).unwrap_err().to_string().contains("less than one step"));
    assert!(
        loaded
            .clone()
            .resolve_epochs(16)
            .unwrap_err()
            .to_string()
            .contains("warm-up of 5 steps is longer than the run of 4")
    );
    loaded.resolve_epochs(103).unwrap();
    assert_eq!((loaded.epochs, loaded.experiment.schedule.steps), (None, 25), "206 sequences, 8 a step");
    let back = text_with(&loaded.to_toml(), &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(back.experiment, loaded.experiment);

    // Four steps of 4 sequences before the first of 8: 16, and then 23 of 8 are 200.
    let warming = ["batch.tokens=8192", "batch.tokens_start=4096", "batch.tokens_warmup_steps=4"];
    let mut loaded = text_with(&SMALL.replace("steps = 10", "epochs = 2"), &[], &warming).unwrap();
    assert!(loaded.clone().resolve_epochs(1).unwrap_err().to_string().contains("one step of 4 sequences"));
    loaded.resolve_epochs(103).unwrap();
    assert_eq!(loaded.experiment.schedule.steps, 27, "206 sequences");
}

/// Training computes in 32 bits: a number that becomes infinite, 0 or 1 there is another one than was asked
/// for.
#[test]
fn a_number_that_no_32_bit_float_holds_is_refused() {
    for (set, says) in [
        ("schedule.learning_rate=1e39", "`schedule.learning_rate` is 1e39, which becomes inf in the 32 bits"),
        ("schedule.learning_rate=1e-320", "is 1e-320, which becomes 0.0 in"),
        ("optimizer.epsilon=1e-50", "becomes 0.0 in"),
        ("optimizer.beta1=0.99999999999", "becomes 1.0 in"),
        ("optimizer.beta1=1e-46", "becomes 0.0 in"),
        ("optimizer.weight_decay=1e-46", "`optimizer.weight_decay` is 1e-46, which becomes 0.0 in"),
        ("optimizer.rate_vectors=1e-46", "becomes 0.0 in"),
        ("optimizer.z_loss=1e-46", "becomes 0.0 in"),
        ("model.logit_softcap=1e-46", "becomes 0.0 in"),
        ("optimizer.weight_decay=1e308", "becomes inf in"),
        ("optimizer.beta2=1.5", "`optimizer.beta2` is 1.5, which is out of range"),
    ] {
        let found = messages(small_with(&[set]));
        assert!(found.len() == 1 && found[0].contains(says), "{set}: {found:?}");
    }
    for set in [
        "schedule.learning_rate=3e38",
        "schedule.learning_rate=2e-38",
        "optimizer.beta2=0.9999999",
        "optimizer.weight_decay=0",
        "guards.loss_z=1e-46",
        "sample.temperature=1e-46",
        "plan.dollars_per_gpu_hour=1e39",
    ] {
        small_with(&[set]).unwrap();
    }
}

#[test]
fn a_share_that_the_schedule_does_not_use_is_remarked_on() {
    let remarks = |sets: &[&str]| small_with(sets).unwrap().remarks;
    let cosine = remarks(&["schedule.kind=cosine", "schedule.decay_fraction=0.5"]);
    assert_eq!(cosine, ["`schedule.decay_fraction` does nothing: `schedule.kind` is \"cosine\""]);
    let constant = remarks(&["schedule.kind=constant", "schedule.final_fraction=0.5"]);
    assert_eq!(constant, ["`schedule.final_fraction` does nothing: `schedule.kind` is \"constant\""]);
    assert!(remarks(&["schedule.kind=wsd", "schedule.decay_fraction=0.5"]).is_empty());
    assert!(remarks(&["schedule.kind=constant", "schedule.final_fraction=0.1"]).is_empty());
}

#[test]
fn a_key_that_another_leaves_without_effect_is_remarked_on_where_it_was_given() {
    for (sets, says) in [
        (
            &["checkpoint.keep_every=5"][..],
            "`checkpoint.keep_every` does nothing: `checkpoint.keep_last` is 0",
        ),
        (&["proof.audit_pieces=7"], "`proof.audit_pieces` does nothing: `proof.audit_every` is 0"),
        (
            &["kernels.gelu_fusion=1", "device.kind=cpu"],
            "`kernels.gelu_fusion` does nothing: `device.kind` is \"cpu\"",
        ),
        (
            &["memory.partial_sums=host", "device.kind=cpu"],
            "`memory.partial_sums` does nothing: `device.kind` is \"cpu\"",
        ),
        (
            &["kernels.gelu_fusion=1", "precision.compute=tf32"],
            "`kernels.gelu_fusion` does nothing: `precision.compute` is \"tf32\"",
        ),
        (
            &["kernels.cuda_graph=false", "device.kind=mirror"],
            "`kernels.cuda_graph` does nothing: `device.kind` is \"mirror\"",
        ),
        (
            &["device.threads=2", "device.kind=cuda"],
            "`device.threads` does nothing: `device.kind` is \"cuda\"",
        ),
        (&["device.simd=avx2", "device.kind=cuda"], "`device.simd` does nothing: `device.kind` is \"cuda\""),
        (&["memory.partial_sums=host"], "`memory.partial_sums` does nothing: `parallel.workers` is 1"),
        (&["parallel.zero=0"], "`parallel.zero` does nothing: `parallel.workers` is 1"),
        (&["parallel.timeout_s=60"], "`parallel.timeout_s` does nothing: `parallel.workers` is 1"),
        (
            &["schedule.kind=wsd", "schedule.decay_fraction=0.0", "schedule.final_fraction=0.5"],
            "`schedule.final_fraction` does nothing: `schedule.decay_fraction` is 0",
        ),
        (
            &["schedule.kind=wsd", "schedule.decay_fraction=1e-46"],
            "`schedule.decay_fraction` does nothing: it is less than half a step of the run",
        ),
        (&["eval.hellaswag=h.jsonl", "eval.every=0"], "`eval.hellaswag` is for `runner eval` alone"),
    ] {
        let remarks = small_with(sets).unwrap().remarks;
        assert!(remarks.len() == 1 && remarks[0].starts_with(says), "{sets:?}: {remarks:?}");
    }
    for sets in [
        &["checkpoint.keep_every=5", "checkpoint.keep_last=2"][..],
        &["proof.audit_pieces=32"],
        &["kernels.gelu_fusion=1"],
        &["memory.partial_sums=device", "device.kind=cpu"],
        &["memory.partial_sums=host", "parallel.workers=2", "device.kind=cuda"],
        &["kernels.cuda_graph=false"],
        &["device.threads=2", "device.simd=avx2", "device.kind=cpu"],
        &["memory.recompute=1", "device.kind=cpu"],
        &["parallel.zero=0", "parallel.timeout_s=60", "parallel.workers=2"],
        &["parallel.zero=0", "parallel.workers=2", "parallel.ranks=2", "device.kind=cpu"],
        &["parallel.zero=0", "parallel.timeout_s=60", "parallel.workers=2", "device.kind=cpu"],
        &["parallel.zero=1", "device.kind=cpu"],
        &["schedule.kind=wsd", "schedule.decay_fraction=0.0"],
        &["schedule.kind=wsd", "schedule.decay_fraction=0.05"],
        &["eval.hellaswag=h.jsonl"],
    ] {
        assert_eq!(small_with(sets).unwrap().remarks, [""; 0], "{sets:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.toml"), format!("{SMALL}[proof]\naudit_pieces = 7\n")).unwrap();
    let on = folder.path().join("on.toml");
    fs::write(&on, "extends = \"base.toml\"\n").unwrap();
    assert_eq!(file_with(&on).unwrap().remarks, [""; 0], "what a base gives");
}
