//! Files, variables and `--set`: which overrides which.

use super::*;

#[test]
fn layers_override_each_other_in_order_and_every_key_knows_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bases")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "bases/root.toml",
        "seed = 1\n[model]\ndescriptor = \"d12\"\n[batch]\nmicro = 1\n[data]\ntrain = \"t_*.bin\"\nval = \
         \"v.bin\"\n",
    );
    write("bases/middle.toml", "extends = \"root.toml\"\nseed = 2\n[batch]\nmicro = 2\nseq_len = 64\n");
    write("top.toml", "extends = \"bases/middle.toml\"\nseed = 3\n[schedule]\nsteps = 5\nwarmup_steps = 1\n");
    let path = folder.path().join("top.toml");
    let env = variables(&[
        ("RUNNER_SCHEDULE__STEPS", "100"),
        ("RUNNER_SCHEDULE__WARMUP_STEPS", "7"),
        ("OTHER", "1"),
    ]);
    let loaded = load_layers(&ExperimentText::Path(&path), &env, &["schedule.warmup_steps = 9".into()])
        .unwrap_or_else(|e| panic!("{e}"));
    let e = &loaded.experiment;
    assert_eq!(
        (e.seed, e.batch.micro, e.batch.seq_len, e.schedule.steps, e.schedule.warmup_steps),
        (3, 2, 64, 100, 9)
    );
    let origin = |key: &str| loaded.origins[key].to_string();
    assert_eq!(origin("seed"), format!("{}:2", path.display()));
    assert_eq!(origin("batch.micro"), format!("{}:4", folder.path().join("bases/middle.toml").display()));
    assert_eq!(origin("schedule.steps"), "RUNNER_SCHEDULE__STEPS");
    assert_eq!(loaded.origins["schedule.warmup_steps"], Origin::Set);
    assert_eq!(loaded.origins["optimizer.beta1"], Origin::Default);
    assert_eq!(origin("model.layers"), "from descriptor d12");
    assert_eq!(origin("name"), "default: the file's name");
    // Patterns start from the folder of the file that holds them, not from the one that extends it.
    let bases = folder.path().canonicalize().unwrap().join("bases");
    assert_eq!(e.data.train, [bases.join("t_*.bin").display().to_string()]);
    assert!(
        schema::KEYS
            .iter()
            .filter(|key| key.name != "schedule.epochs")
            .all(|key| loaded.origins.contains_key(key.name))
    );
}

#[test]
fn a_missing_file_and_a_missing_base_are_faults() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().join("top.toml");
    assert!(messages(file_with(&top))[0].starts_with("cannot read"));
    fs::write(&top, "seed = 1\nextends = \"nowhere.toml\"\n").unwrap();
    let error = file_with(&top).unwrap_err();
    assert!(error.faults[0].message.contains("nowhere.toml"), "{error}");
    assert_eq!(error.faults[0].place.as_ref().unwrap().position, Some((2, 11)));
    assert!(messages(file_with(folder.path()))[0].starts_with("cannot read"));
    fs::write(&top, "extends = \"~/base.toml\"\n").unwrap();
    let error = file_with(&top).unwrap_err();
    assert!(error.faults[0].hint.as_ref().unwrap().contains("by a shell alone"), "{error}");
}

#[test]
fn a_base_that_is_a_pipe_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
    assert!(made.success());
    let top = folder.path().join("top.toml");
    fs::write(&top, "extends = \"pipe\"\n").unwrap();
    let found = messages(file_with(&top));
    assert!(found[0].ends_with("pipe`: it is a pipe or a device, and no file"), "{found:?}");
}

#[test]
fn files_that_extend_one_another_in_a_circle_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.toml"), "extends = \"b.toml\"\n").unwrap();
    fs::write(folder.path().join("b.toml"), "extends = \"./a.toml\"\n").unwrap();
    assert_eq!(messages(file_with(&folder.path().join("a.toml"))), ["files extend one another in a circle"]);
    fs::write(folder.path().join("a.toml"), "extends = \"a.toml\"\n").unwrap();
    assert_eq!(messages(file_with(&folder.path().join("a.toml"))), ["files extend one another in a circle"]);
}

#[test]
fn an_extends_that_is_no_path_is_the_one_fault() {
    for extends in ["''", "['a.toml']", "1"] {
        let found = messages(text_with(&format!("extends = {extends}\n"), &[], &[]));
        assert_eq!(found, ["`extends` must be the path of a file"], "{extends}");
    }
}

#[test]
fn two_variables_for_one_key_are_refused_unless_they_agree() {
    let both = |second| [("RUNNER_SCHEDULE__STEPS", "5"), ("RUNNER_schedule__steps", second)];
    assert_eq!(
        messages(text_with(SMALL, &both("6"), &[])),
        ["`RUNNER_SCHEDULE__STEPS` and `RUNNER_schedule__steps` both set `schedule.steps`"]
    );
    assert_eq!(text_with(SMALL, &both("5"), &[]).unwrap().experiment.schedule.steps, 5);
}

#[test]
fn one_key_in_two_settings_is_refused_also_where_they_agree() {
    for (sets, values) in [
        (["schedule.steps=5", "schedule.steps=6"], "\"5\" and \"6\""),
        (["schedule.steps=5", " schedule.steps =5"], "\"5\" and \"5\""),
        (["schedule.steps=5", "schedule.steps=6 "], "\"5\" and \"6 \""),
    ] {
        let expected = format!("`--set` gives `schedule.steps` twice: {values}");
        assert_eq!(messages(small_with(&sets)), [expected], "{sets:?}");
    }
    let cleared = small_with(&["eval.hellaswag=", "eval.hellaswag=h.jsonl"]);
    assert_eq!(messages(cleared), ["`--set` gives `eval.hellaswag` twice: \"\" and \"h.jsonl\""]);
    let source = small_with(&["data.mix.a.corpus=kjv", "data.mix.a.weight=1", "data.mix.a.weight=2"]);
    assert_eq!(messages(source), ["`--set` gives `data.mix.a.weight` twice: \"1\" and \"2\""]);
    let over = text_with(SMALL, &[("RUNNER_SCHEDULE__STEPS", "5")], &["schedule.steps=6"]).unwrap();
    assert_eq!(over.experiment.schedule.steps, 6, "a stronger layer may say it again");
}

#[test]
fn a_prompt_keeps_its_spaces_and_no_other_value_does() {
    let e = small_with(&["sample.prompt= x ", "name = a", "schedule.steps= 7 "]).unwrap().experiment;
    assert_eq!((e.sample.prompt.as_str(), e.name.as_str(), e.schedule.steps), (" x ", "a", 7));
    let quoted = small_with(&["sample.prompt = \" x\""]).unwrap().experiment;
    assert_eq!(quoted.sample.prompt, " x");
}

#[test]
fn a_stronger_layer_takes_back_the_other_way_to_say_it() {
    let sized =
        small_with(&["model.layers=2", "model.heads=2", "model.channels=64", "batch.seq_len=32"]).unwrap();
    assert_eq!((sized.experiment.model.descriptor, sized.experiment.model.channels), (None, 64));
    assert_eq!(sized.experiment.model.context, 32, "follows the sequence length");
    let shards = small_with(&["data.train=a.bin", "data.val=b.bin"]).unwrap().experiment.data;
    assert_eq!((shards.corpus, shards.train.len()), (None, 1));
    assert_eq!(
        messages(small_with(&["model.layers=2"])),
        ["`model.heads` and `model.channels` must be given too"]
    );
}

#[test]
fn both_ways_in_one_layer_are_refused() {
    let both =
        SMALL.replace("[schedule]", "layers = 2\n[schedule]").replace("corpus", "train = \"a\"\ncorpus");
    let both = both.replace("steps = 10", "steps = 10\nepochs = 1");
    let found = messages(text_with(&both, &[], &[]));
    assert_eq!(
        found,
        [
            "`model.layers` and `model.descriptor` exclude each other",
            "`schedule.epochs` and `schedule.steps` exclude each other",
            "`data.train` and `data.corpus` exclude each other"
        ]
    );
}

#[test]
fn bare_text_is_a_string_where_a_string_is_wanted() {
    let e =
        small_with(&["name=2024", "sample.prompt=true", "schedule.kind = linear", "optimizer.grad_clip=1"])
            .unwrap()
            .experiment;
    assert_eq!(
        (e.name.as_str(), e.sample.prompt.as_str(), e.schedule.kind),
        ("2024", "true", ScheduleKind::Linear)
    );
    let e = small_with(&["sample.prompt=\"a # b = c\"", "data.train=['a.bin', 'b.bin']", "eval.every=0"])
        .unwrap()
        .experiment;
    assert_eq!((e.sample.prompt.as_str(), e.data.train.len()), ("a # b = c", 2));
}

#[test]
fn an_empty_setting_turns_off_a_key_that_may_be_left_out_and_no_other() {
    let text = format!("{SMALL}[eval]\nhellaswag = \"h.jsonl\"\n");
    assert!(text_with(&text, &[], &[]).unwrap().experiment.eval.hellaswag.is_some());
    for (env, sets) in [
        (&[][..], &["eval.hellaswag="][..]),
        (&[("RUNNER_EVAL__HELLASWAG", "")], &[]),
        (&[], &["eval.hellaswag = "]),
    ] {
        let off = text_with(&text, env, sets).unwrap();
        assert_eq!((off.experiment.eval.hellaswag, &off.origins["eval.hellaswag"]), (None, &Origin::Default));
    }
    let env = [("RUNNER_EVAL__HELLASWAG", "")];
    let again = text_with(&text, &env, &["eval.hellaswag=other.jsonl"]).unwrap();
    assert!(again.experiment.eval.hellaswag.unwrap().ends_with("other.jsonl"));
    assert_eq!(messages(text_with(&text, &[], &["schedule.steps="])).len(), 1);
}

#[test]
fn variables_of_ci_services_set_nothing_and_slips_are_refused() {
    let ci = [
        ("RUNNER_NAME", "Hosted Agent 2"),
        ("RUNNER_OS", "Linux"),
        ("RUNNER_TEMP", "/tmp"),
        ("RUNNER_LOG", "debug"),
    ];
    assert_eq!(text_with(SMALL, &ci, &[]).unwrap(), small_with(&[]).unwrap());
    assert_eq!(text_with(SMALL, &[("RUNNER_SEED", "7")], &[]).unwrap().experiment.seed, 7);
    let slip = text_with(SMALL, &[("RUNNER_SCHEDULE_WARMUP_STEPS", "7")], &[]).unwrap_err();
    assert_eq!(slip.faults[0].hint.as_deref(), Some("did you mean `RUNNER_SCHEDULE__WARMUP_STEPS`?"));
    let alert = text_with(SMALL, &[("RUNNER_ALERTS_COMAND", "mail me")], &[]).unwrap_err();
    assert_eq!(alert.faults[0].hint.as_deref(), Some("did you mean `RUNNER_ALERTS_COMMAND`?"));
    for (name, hint) in [
        ("RUNNER_SCHEDULE", "set a key of it, such as `RUNNER_SCHEDULE__KIND`"),
        ("RUNNER_MODEL", "set a key of it, such as `RUNNER_MODEL__INIT`"),
        ("RUNNER_EXTENDS", "`extends` belongs in a file"),
        ("RUNNER_SWEEP", "`sweep` belongs in a file"),
    ] {
        let table = text_with(SMALL, &[(name, "x")], &[]).unwrap_err();
        assert_eq!(table.faults[0].message, format!("`{name}` sets nothing"));
        assert_eq!(table.faults[0].hint.as_deref(), Some(hint), "{name}");
    }
    let ours = [("RUNNER_ALERTS_COMMAND", "mail me"), ("RUNNER_RUN_ID", "7"), ("RUNNER_RUN", "/runs/a")];
    assert_eq!(text_with(SMALL, &ours, &[]).unwrap(), small_with(&[]).unwrap());
    let told = ["RUNNER_EVENT", "RUNNER_STEP", "RUNNER_ROOT", "RUNNER_MESSAGE", "RUNNER_JOBS"];
    let told = told.map(|name| (name, "1"));
    assert_eq!(text_with(SMALL, &told, &[]).unwrap(), small_with(&[]).unwrap());
    let unknown = text_with(SMALL, &[("RUNNER_SCHEDULE__STEP", "7")], &[]).unwrap_err();
    assert_eq!(unknown.faults[0].hint.as_deref(), Some("did you mean `RUNNER_SCHEDULE__STEPS`?"));
}

#[cfg(unix)]
#[test]
fn a_variable_whose_value_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStringExt;

    let env = [(OsString::from("RUNNER_EVAL__HELLASWAG"), OsString::from_vec(b"/r\xff/h.jsonl".to_vec()))];
    let input = ExperimentText::Text { name: "x.toml", bytes: SMALL.as_bytes() };
    let expected = "the value of `RUNNER_EVAL__HELLASWAG` is not UTF-8";
    assert_eq!(messages(load_layers(&input, &env, &[])), [expected]);
}
