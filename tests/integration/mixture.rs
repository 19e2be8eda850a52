//! Mixtures: what is read of which source is a function of the experiment, whatever happens to the run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use runner::proof::ledger;

use crate::support::{Finished, Lab};
use crate::verify::{assert_finds, rewrite_records};

const CI: &str = "experiments/ci.toml";

/// Three parts of the New Testament and one of the Old, in the CI experiment: 8 sequences a step.
const MIX: [&str; 8] = [
    "--set",
    "data.mix.new.corpus=kjv_nt",
    "--set",
    "data.mix.new.weight=0.75",
    "--set",
    "data.mix.old.corpus=kjv_ot",
    "--set",
    "data.mix.old.weight=0.25",
];

fn mixed<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&MIX[..], more].concat()
}

/// The tokens of each source in the entry of each step.
fn counted(lab: &Lab) -> Vec<BTreeMap<String, u64>> {
    let (_, entries) = ledger::read(&lab.path("ci/ledger.jsonl")).expect("a ledger");
    entries.into_iter().filter(|entry| entry.loss.is_some()).map(|entry| entry.sources).collect()
}

#[test]
fn every_step_reads_each_source_by_its_weight_within_one_sequence_and_the_figures_say_so() {
    let lab = Lab::new();
    let run = lab.run(CI, &mixed(&["--set", "data.mix.new.weight=0.7", "--set", "data.mix.old.weight=0.3"]));
    run.root();
    let says = ["source new: 70.0%, 7,168 tokens, 0.01 epochs", "source old: 30.0%, 3,072 tokens"];
    assert!(says.iter().all(|text| run.stderr.contains(text)), "{}", run.stderr);
    let counted = counted(&lab);
    assert_eq!(counted.len(), 20);
    for (step, sources) in (1..).zip(&counted) {
        assert_eq!(sources.values().sum::<u64>(), step * 512);
        let off = sources["new"] as f64 / 64.0 - 0.7 * (step * 8) as f64;
        assert!(off.abs() <= 1.0, "step {step}: {sources:?}");
    }
    lab.verify("ci", &[]).assert_says(&["ok      sources: 20 steps, new 7,168, old 3,072"]);
    lab.verify("ci", &["--replay", "5..10"]).assert_says(&["ok"]);
    let held_out = lab.verb("eval", "ci", &["--task", "val", "--json"]);
    let measured: serde_json::Value = serde_json::from_str(&held_out.stdout).expect("JSON");
    assert_eq!(measured["val_data"], "kjv_nt");
    let last = lab.metrics("ci").pop().expect("rows");
    assert_eq!(measured["val_loss"], last["val_loss"], "the held-out parts of the sources' texts");
    let runs = lab.path("").display().to_string();
    lab.finish(&["show", "--columns", "data.mix.newer.weight", "--runs", &runs])
        .assert_fails(2, &["no run has the key `data.mix.newer.weight`", "data.mix.new.weight"]);
    lab.verb("show", "ci", &[]).assert_says(&["sources      new: 7,168 tokens, 0.01 epochs"]);
    let json: serde_json::Value =
        serde_json::from_str(&lab.verb("show", "ci", &["--json"]).stdout).expect("JSON");
    let text = json.to_string();
    assert!(text.contains(r#""name":"new""#) && text.contains(r#""tokens":7168"#), "{text}");
    let page = lab.path("page.html").display().to_string();
    assert_eq!(lab.verb("report", "ci", &["-o", &page]).code, Some(0));
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("old: 3,072 tokens"), "the page has no sources");
}

#[test]
fn killed_and_resumed_a_mixture_ends_in_the_uninterrupted_run() {
    let whole = Lab::new();
    let expected = whole.run(CI, &mixed(&["--set", "schedule.steps=40"])).root().to_owned();
    let lab = Lab::new();
    let mut run = lab.start("run", CI, &mixed(&["--set", "schedule.steps=40"]));
    run.wait_for_rows(&lab, 13);
    run.kill();
    assert!(lab.rows("ci") < whole.rows("ci"), "nothing was left to do");
    assert_eq!(lab.resume("ci", &[]).root(), expected);
    assert_eq!(lab.ledger("ci"), whole.ledger("ci"));
}

#[test]
fn a_run_keeps_its_mixture_whatever_drift_is_allowed() {
    let lab = Lab::new();
    lab.run(CI, &mixed(&[])).root();
    let before = std::fs::read(lab.path("ci/ledger.jsonl")).expect("a ledger");
    for change in [
        &["data.mix.new.weight=0.5"][..],
        &["data.mix.third.corpus=kjv", "data.mix.third.weight=1"],
        &["data.corpus=kjv"],
        &["batch.tokens=1024"],
        &["data.overfit_single_batch=true"],
    ] {
        let sets = change.iter().chain(&["schedule.steps=30"]).flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = sets.chain(["--allow-drift"]).collect();
        lab.resume("ci", &arguments).assert_fails(5, &["a run has one mixture", "model.init"]);
    }
    assert_eq!(std::fs::read(lab.path("ci/ledger.jsonl")).expect("a ledger"), before);
    lab.resume("ci", &["--set", "schedule.steps=30", "--allow-drift"]).root();
    lab.verify("ci", &[]).assert_says(&["ok      sources: 30 steps, new 11,520, old 3,840"]);
}

#[test]
fn ranks_one_two_and_four_read_the_same_mixture() {
    let on = |ranks: &str| {
        let lab = Lab::new();
        let more = [
            "--ranks",
            ranks,
            "--set",
            "parallel.workers=4",
            "--set",
            "batch.tokens=1024",
            "--set",
            "schedule.steps=6",
        ];
        let root = lab.run(CI, &mixed(&more)).root().to_owned();
        (root, lab.ledger("ci"))
    };
    let alone = on("1");
    assert_eq!(on("2"), alone);
    assert_eq!(on("4"), alone);
}

#[test]
fn a_ledger_whose_counts_were_changed_is_found_though_its_hashes_agree() {
    let lab = Lab::new();
    lab.run(CI, &mixed(&["--set", "checkpoint.every=0"])).root();
    let run = lab.path("ci");
    let (_, mut entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    *entries[7].sources.get_mut("new").expect("counted") -= 64;
    *entries[7].sources.get_mut("old").expect("counted") += 64;
    rewrite_records(&run, &entries);
    assert_finds(&lab, "ci", &[], &["FAILED  sources: the entry of step 7", "new 3,008", "make new 3,072"]);
    entries[7].sources.clear();
    rewrite_records(&run, &entries);
    assert_finds(&lab, "ci", &[], &["FAILED  sources: the entry of step 7 has the tokens of no source"]);
}

/// A learning rate that breaks the model within a few steps, and the data are taken to be at fault.
const BREAKING: [&str; 10] = [
    "--set",
    "schedule.learning_rate=1e30",
    "--set",
    "schedule.warmup_steps=0",
    "--set",
    "guards.patience=3",
    "--set",
    "checkpoint.every=1",
    "--set",
    "guards.on_diverge=\"rewind\"",
];

#[test]
fn what_a_rewind_passes_over_is_counted_and_the_ledger_is_held_to_it() {
    let lab = Lab::new();
    lab.run(CI, &mixed(&BREAKING)).assert_fails(4, &["back to the checkpoint of step"]);
    let counted = counted(&lab);
    let passed_over = counted.last().expect("steps").values().sum::<u64>() - counted.len() as u64 * 512;
    assert!(passed_over > 0 && passed_over.is_multiple_of(512), "{passed_over}");
    let verified = lab.verify("ci", &["--replay", &format!("0..{}", counted.len())]);
    verified.assert_says(&["ok      sources: ", "gave the same bits again"]);
}

/// llm.c's header and bytes of text as tokens.
fn shard(path: &Path, text: &str) {
    let mut bytes = vec![0; 1024];
    for (at, word) in [20_240_520, 1, text.len() as u32].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes.extend(text.bytes().flat_map(|byte| [byte, 0]));
    std::fs::write(path, bytes).expect("writable");
}

/// `mix.toml` over two folders of shards of one name; 2 sequences of 32 tokens a step.
fn shards(lab: &Lab) -> String {
    for (folder, text) in [("books", "it was a bright cold day. "), ("web", "click here for more of it. ")] {
        std::fs::create_dir(lab.path(folder)).expect("a folder");
        shard(&lab.path(folder).join("part_0.bin"), &text.repeat(40));
        shard(&lab.path(folder).join("part_1.bin"), &text.repeat(20));
    }
    let text = "[model]\nlayers = 1\nheads = 2\nchannels = 8\n[data]\ntokenizer = \"byte\"\n\
                [data.mix.books]\ntrain = \"books/*.bin\"\nweight = 3\nmax_epochs = 2\n\
                [data.mix.web]\ntrain = \"web/*.bin\"\nweight = 1\n\
                [batch]\nmicro = 2\nseq_len = 32\ntokens = 64\n[schedule]\nsteps = 20\n[eval]\nevery = 0\n\
                [precision]\ncompute = \"fp32\"\n[device]\nkind = \"cpu\"\n";
    std::fs::write(lab.path("mix.toml"), text).expect("writable");
    lab.path("mix.toml").display().to_string()
}

#[test]
fn what_takes_the_place_of_a_mixture_and_a_source_without_files_are_said_before_a_run() {
    let lab = Lab::new();
    let experiment = shards(&lab);
    let plan = |experiment: &str, more: &[&str]| {
        let planned = lab.finish(&[&["plan", experiment], more].concat());
        assert_eq!(planned.code, Some(0), "data need not be here yet: {}", planned.stderr);
        (planned.stdout.split_whitespace().collect::<Vec<_>>().join(" "), planned.stderr)
    };
    let (whole, _) = plan(&experiment, &[]);
    assert!(!whole.contains("would be refused"), "{whole}");
    let note = "note: `data.corpus` (--set) takes the place of `data.mix` (";
    let (_, said) = plan(&experiment, &["--set", "data.corpus=kjv"]);
    assert!(said.contains(note), "{said}");
    let val = format!("data.val={}", lab.path("web/*.bin").display());
    let sets = ["--set", "eval.every=5", "--set", &val, "--set", "eval.hellaswag=nowhere.jsonl"];
    let (text, _) = plan(&experiment, &sets);
    assert!(text.contains("nowhere.jsonl`: No such file"), "{text}");
    let swept = std::fs::read_to_string(&experiment).expect("text") + "[sweep.grid]\nseed = [1, 2]\n";
    let sweep = lab.path("sweep.toml").display().to_string();
    std::fs::write(&sweep, swept).expect("writable");
    std::fs::rename(lab.path("web"), lab.path("moved")).expect("renamed");
    for experiment in [&experiment, &sweep] {
        let (text, _) = plan(experiment, &[]);
        assert!(text.contains("a run would be refused: in the source `web` of `data.mix`"), "{text}");
    }
}

#[test]
fn an_edited_shard_of_the_second_source_and_one_that_is_missing_are_found() {
    let lab = Lab::new();
    lab.run(&shards(&lab), &[]).root();
    lab.verify("mix", &[])
        .assert_says(&["ok      data: 4 shards", "ok      sources: 20 steps, books 960, web 320"]);
    let path = lab.path("web/part_1.bin");
    let whole = std::fs::read(&path).expect("a shard");
    let mut edited = whole.clone();
    edited[1024 + 20] ^= 1;
    std::fs::write(&path, &edited).expect("writable");
    assert_finds(&lab, "mix", &[], &["FAILED  data", "data.mix.web.shard.00001"]);
    // The other source is away: what is here is still checked.
    std::fs::rename(lab.path("books"), lab.path("moved")).expect("renamed");
    assert_finds(&lab, "mix", &[], &["none of the lock's shards is this one: part_1.bin"]);
    std::fs::write(&path, &whole).expect("writable");
    lab.verify("mix", &[]).assert_says(&["source `books` of `data.mix`", "2 other files as in the lock"]);
}

#[test]
fn an_epoch_limit_is_told_before_the_first_step_with_the_number_of_steps_that_fit() {
    let lab = Lab::new();
    let toml = shards(&lab);
    let books = (26 * 40 - 1) / 32 + (26 * 20 - 1) / 32;
    // 3 of 4 sequences are of the books, 2 sequences a step.
    let fits = (2 * books * 2) / 3;
    let long = ["--set", "schedule.steps=200"];
    let says = ["source `books`", "6.25 epochs", "`data.mix.books.max_epochs` allows 2, 96 sequences"];
    let refused = lab.run(&toml, &long);
    refused.assert_fails(2, &says);
    assert!(refused.stderr.contains(&format!("set `schedule.steps` to {fits}")), "{}", refused.stderr);
    assert!(!lab.path("mix").exists(), "nothing is written of a run that is refused");
    lab.finish(&["plan", &toml, long[0], long[1]]).assert_fails(2, &says);
    lab.run(&toml, &["--set", &format!("schedule.steps={fits}")]).root();
    let more = ["--set", "schedule.steps=80", "--set", "data.mix.books.max_epochs=3"];
    lab.finish(&[&["plan", &toml][..], &more].concat())
        .assert_says(&["source books: 75.0%, 3,840 tokens, 2.50 epochs of at most 3"]);
    lab.finish(&[&["config", &toml][..], &more].concat())
        .assert_says(&["# books: 75.0%, 3,840 tokens, 2.50 epochs of at most 3"]);
}

/// Where a checkpoint's run had come to is known with the data alone, and then before anything is written.
#[test]
fn a_sweep_that_would_go_on_beyond_an_epoch_limit_is_refused_as_a_whole() {
    let lab = Lab::new();
    let toml = shards(&lab);
    lab.run(&toml, &["--set", "name=trunk"]).root();
    let on = "extends = \"mix.toml\"\nname = \"on\"\n[model]\ninit = \"run:trunk@20\"\n\
              [optimizer]\nfrom_init = true\n[sweep.grid]\n\"schedule.steps\" = [20, 60]\n";
    std::fs::write(lab.path("on.toml"), on).expect("writable");
    let file = lab.path("on.toml").display().to_string();
    let says = ["member 2 cannot start", "source `books`", "`data.mix.books.max_epochs` allows 2"];
    lab.run(&file, &[]).assert_fails(2, &says);
    assert!(!lab.path("on").exists(), "nothing is written of a sweep that is refused");
    let planned = lab.verb("plan", &file, &[]);
    let text = planned.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("a run would be refused: member 2 cannot start"), "{text}");
}

#[test]
fn weights_can_be_swept() {
    let lab = Lab::new();
    let text = std::fs::read_to_string(shards(&lab)).expect("readable");
    let sweep = "[sweep.grid]\n\"data.mix.books.weight\" = [1, 3]\n";
    std::fs::write(lab.path("sweep.toml"), text + sweep).expect("writable");
    let toml = lab.path("sweep.toml").display().to_string();
    assert_eq!(lab.run(&toml, &[]).code, Some(0));
    lab.verify("sweep", &[]).assert_says(&["ok"]);
    lab.verb("show", "sweep/002", &[]).assert_says(&["books: 960 tokens"]);
    let columns = ["--columns", "name,data.mix.books.weight"];
    let listed = Finished::from(
        lab.command(&[&["show", "--runs", &lab.path("").display().to_string()][..], &columns].concat())
            .output()
            .expect("it starts"),
    );
    listed.assert_says(&["sweep/001", "1", "sweep/002", "3"]);
}

#[test]
fn python_finds_the_same_sequences_by_the_page_alone() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mixture_order.py");
    let sources = [("a", 40u64, 7), ("b", 1, 1), ("c", 1000, 11), ("d", 64, 2), ("e", 65, 5)];
    let output = Command::new("python3")
        .arg(script)
        .args(["7", "123456789", "300"])
        .args(
            sources
                .map(|(name, sequences, weight)| format!("{name}:{sequences}:{}", f64::from(weight) / 10.0)),
        )
        .output()
        .expect("python3");
    let expected: Vec<u64> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("a number")).collect();
    let sources = sources.map(|(name, sequences, weight)| runner::data::order::MixedSource {
        name,
        sequences: sequences.try_into().expect("above 0"),
        weight: weight as u64,
    });
    let order = runner::data::SampleOrder::mixed(7, &sources, true);
    let found: Vec<u64> = (123_456_789..123_457_089).map(|p| order.sequence_at(p)).collect();
    assert_eq!(found, expected, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn eval_measures_each_source_by_what_it_holds_out_or_by_its_own_shards() {
    let lab = Lab::new();
    lab.run(CI, &MIX).root();
    // One text stands behind the other, and few tokens are of the first alone.
    let few = lab.verb("eval", "ci", &["--set", "eval.val_tokens=256", "--json"]);
    assert!(few.stderr.contains("are of `kjv_nt` alone, of 2 texts"), "{}", few.stderr);
    assert!(few.stdout.contains("\"val_data\":\"kjv_nt\""), "{}", few.stdout);
    let json = |arguments: &[&str]| -> serde_json::Value {
        let measured = lab.verb("eval", "ci", &[arguments, &["--json"]].concat());
        serde_json::from_str(&measured.stdout).unwrap_or_else(|_| panic!("{}", measured.stderr))
    };
    let by_source = json(&["--by-source"]);
    for (source, text) in [("new", "kjv_nt"), ("old", "kjv_ot")] {
        let alone = json(&["--task", "val", "--set", &format!("data.corpus={text}")]);
        for name in ["val_loss", "val_bits_per_byte"] {
            let of_source = &by_source[format!("{name}/{source}")];
            assert!(of_source.is_f64() && *of_source == alone[name], "{by_source}\n{alone}");
        }
    }
    let text = lab.verb("eval", "ci", &["--by-source"]);
    text.assert_says(&["val_loss/new", "val_bits_per_byte/old", "2,048 tokens"]);
    lab.verb("eval", "ci", &["--by-source", "--checkpoint", "all"]).assert_says(&["val_loss/new"]);

    // Shards of its own go before what is held out, and change no bit.
    let (file, out) = (lab.path("text.txt"), lab.path("shards"));
    std::fs::write(&file, "In the beginning was the word. ".repeat(400)).expect("writable");
    let [file, out] = [&file, &out].map(|path| path.to_str().expect("UTF-8"));
    lab.done(&["data", "prepare", "--tokenizer", "byte", "--out", out, file]);
    let val = format!("data.mix.old.val={out}/*.bin");
    let own = json(&["--by-source", "--set", &val]);
    assert_eq!(own["val_loss/new"], by_source["val_loss/new"]);
    assert_ne!(own["val_loss/old"], by_source["val_loss/old"]);
    let with_val = lab.run(CI, &[&mixed(&["--set", &val])[..], &["--name", "with_val"]].concat());
    assert_eq!(with_val.root(), lab.resume("ci", &[]).root());
    lab.run(CI, &["--name", "plain"]).root();
    lab.verb("eval", "plain", &["--by-source"]).assert_fails(2, &["was not trained on a mixture"]);
}
