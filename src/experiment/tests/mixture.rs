//! `[data.mix]` in every layer: names, weights, what excludes what, and the resolved file.

use super::*;

const MIX: &str = "[model]\ndescriptor = \"d12\"\n[schedule]\nsteps = 10\n[eval]\nevery = 0\n\
                   [data.mix.web]\ntrain = \"web_*.bin\"\nweight = 3\n\
                   [data.mix.books]\ntrain = [\"a.bin\", \"b.bin\"]\nweight = 0.5\nmax_epochs = 4\n";

fn mix_with(sets: &[&str]) -> Result<Loaded, ExperimentError> {
    text_with(MIX, &[], sets)
}

#[test]
fn a_mixture_loads_with_its_origins_and_its_resolved_form_loads_back_equal() {
    let loaded = mix_with(&["data.mix.web.weight=1.5"]).unwrap_or_else(|error| panic!("{error}"));
    let mix = &loaded.experiment.data.mix;
    assert_eq!(mix.keys().collect::<Vec<_>>(), ["books", "web"]);
    assert_eq!((mix["books"].weight, mix["books"].max_epochs, mix["web"].max_epochs), (0.5, Some(4), None));
    assert!(mix["books"].train[1].starts_with('/') && mix["books"].train[1].ends_with("/b.bin"));
    assert_eq!(loaded.experiment.data.mix_weights(), [1, 3]);
    assert_eq!(loaded.origins["data.mix.web.weight"], Origin::Set);
    assert_eq!(loaded.origins["data.mix.books.weight"], Origin::File { path: "x.toml".into(), line: 12 });
    let text = loaded.to_toml();
    assert!(text.contains("\n[data.mix.books]\n# corpus is not set\ntrain = ["), "{text}");
    let back = text_with(&text, &[], &[]).unwrap_or_else(|error| panic!("{text}\n{error}"));
    assert_eq!(back.experiment, loaded.experiment);
    let keys: Vec<String> = write::flatten(&loaded.experiment).into_keys().collect();
    for key in ["corpus", "train", "weight", "val", "max_epochs"] {
        assert!(keys.contains(&format!("data.mix.web.{key}")), "{keys:?}");
    }
}

#[test]
fn sources_are_added_by_every_layer_and_a_stronger_one_takes_the_place_of_a_corpus() {
    let env = [("RUNNER_DATA__MIX__NEW__CORPUS", "kjv_nt"), ("RUNNER_DATA__MIX__NEW__WEIGHT", "2")];
    let loaded = text_with(SMALL, &env, &["data.mix.old.corpus=kjv_ot", "data.mix.old.weight=1"]).unwrap();
    let data = &loaded.experiment.data;
    assert_eq!((data.corpus.as_deref(), data.mix.len()), (None, 2));
    assert_eq!(data.mix["new"].corpus.as_deref(), Some("kjv_nt"));
    assert_eq!(loaded.remarks, ["`data.mix` (--set) takes the place of `data.corpus` (x.toml:6)"]);
    // And the other way round.
    let loaded = mix_with(&["data.train=x.bin"]).unwrap();
    assert!(loaded.experiment.data.mix.is_empty());
    assert_eq!(loaded.remarks, ["`data.train` (--set) takes the place of `data.mix` (x.toml:13)"]);
    let loaded = mix_with(&["data.corpus=kjv"]).unwrap();
    assert_eq!(loaded.remarks, ["`data.corpus` (--set) takes the place of `data.mix` (x.toml:13)"]);
    let nothing_replaced = mix_with(&["data.val=x.bin", "schedule.steps=3"]).unwrap();
    assert!(nothing_replaced.remarks.is_empty(), "{:?}", nothing_replaced.remarks);
}

#[test]
fn only_what_reaches_the_bits_of_a_mixture_is_locked_by_name() {
    for (key, reaches, content) in [
        ("data.mix.web.weight", true, false),
        ("data.mix.web.corpus", true, false),
        ("data.mix.web.train", false, true),
        ("data.mix.web.max_epochs", false, false),
    ] {
        assert_eq!((reaches_the_bits(key), pinned_by_content(key)), (reaches, content), "{key}");
    }
    let without = small_with(&[]).unwrap().experiment;
    assert!(!write::flatten(&without).keys().any(|key| key.contains("mix")), "no key without a mixture");
}

#[test]
fn a_weight_whose_decimals_all_count_is_taken() {
    for exact in ["9007199254740992", "0.30000000000000004", "2.50", "1e3", "1000.0"] {
        mix_with(&[&format!("data.mix.web.weight={exact}")]).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn every_fault_of_a_mixture_is_named() {
    let cases: &[(&[&str], &str)] = &[
        (&["data.mix.web.weight=0"], "`data.mix.web.weight` is 0, which is out of range"),
        (&["data.mix.web.weight=-1"], "`data.mix.web.weight` is -1, which is out of range"),
        (&["data.mix.web.weight=nan"], "`data.mix.web.weight` is nan, which is out of range"),
        (&["data.mix.web.weight=inf"], "`data.mix.web.weight` is inf, which is out of range"),
        (
            &["data.mix.web.weight=9007199254740993"],
            "`data.mix.web.weight` is 9007199254740993, which has more digits than count",
        ),
        (
            &["data.mix.web.weight=0.10000000000000001"],
            "`data.mix.web.weight` is 0.10000000000000001, which has more digits than count",
        ),
        (&["data.mix.web.weight=x"], "`data.mix.web.weight` must be a number, not the string \"x\""),
        (&["data.mix.web.max_epochs=0"], "`data.mix.web.max_epochs` is 0, but at least 1 is needed"),
        (
            &["data.mix.web.weight=1e-30"],
            "the weights of `data.mix` differ too much: as whole numbers their sum is over 2^63",
        ),
        (&["data.mix.new.corpus=kjv"], "the source `new` has no weight"),
        (&["data.mix.new.weight=1"], "the source `new` has no data"),
        (&["data.mix.web.corpus=kjv"], "`data.mix.web.train` and `data.mix.web.corpus` exclude each other"),
        (&["data.mix.web.wieght=1"], "unknown key `data.mix.web.wieght`"),
        (
            &["data.mix.Web.weight=1"],
            "`Web` cannot name a source of `data.mix`: it does not begin with a lower-case letter or a digit",
        ),
        (
            &["data.mix.wéb.weight=1"],
            "`wéb` cannot name a source of `data.mix`: it has other characters than a to z, 0 to 9, `_` and \
             `-`",
        ),
        (&["data.mix..weight=1"], "`` cannot name a source of `data.mix`: it is empty"),
        (&["data.mix=1"], "`data.mix` is a section, not a key"),
        (&["data.mix.a=kjv"], "`data.mix.a` is a section, not a key"),
        (
            &["data.mix.A=kjv"],
            "`A` cannot name a source of `data.mix`: it does not begin with a lower-case letter or a digit",
        ),
        (&["model=d12"], "`model` is a section, not a key"),
    ];
    for (sets, expected) in cases {
        assert_eq!(messages(mix_with(sets)), [*expected], "{sets:?}");
    }
    let text = MIX.replace("[eval]", "[data]\ntrain = \"t.bin\"\n[eval]");
    assert_eq!(
        messages(text_with(&text, &[], &[])),
        ["`data.mix.books.max_epochs` and `data.train` exclude each other"]
    );
    let text = MIX.replace("steps = 10", "epochs = 2");
    assert_eq!(
        messages(text_with(&text, &[], &[])),
        ["`schedule.epochs` counts no passes over a mixture: each source has its own"]
    );
    let named =
        |name: &str| text_with(&format!("{MIX}[data.mix.{name}]\nweight = 1\ntrain = 'a'\n"), &[], &[]);
    for name in ["\"a b\"", "\"a.b\"", "\"\"", "\"é\"", "\"a\\nb\"", "A"] {
        assert!(messages(named(name))[0].contains("cannot name a source"), "{name}");
    }
    assert!(named("\"0-x_9\"").is_ok());
    assert!(messages(named(&"a".repeat(41)))[0].contains("longer than 40"));
    let hint = mix_with(&["data.mix.web.wieght=1"]).unwrap_err().faults[0].hint.clone();
    assert_eq!(hint.as_deref(), Some("did you mean `data.mix.web.weight`?"));
    let text = SMALL.replace("corpus = \"kjv\"", "mix = 3");
    assert_eq!(messages(text_with(&text, &[], &[])), ["`data.mix` is a section, not integer"]);
    let text = SMALL.replace("corpus = \"kjv\"", "mix.a = \"kjv\"");
    assert_eq!(messages(text_with(&text, &[], &[])), ["`data.mix.a` is a section, not string"]);
    let hint = |variable: &str, set: &str| {
        let environment: &[_] = if variable.is_empty() { &[] } else { &[(variable, "kjv")] };
        let sets: &[&str] = if set.is_empty() { &[] } else { &[set] };
        text_with(MIX, environment, sets).unwrap_err().faults[0].hint.clone().unwrap()
    };
    assert_eq!(
        hint("", "data.mix.a=kjv"),
        "set `data.mix.a.train` to a pattern of token shards, or `data.mix.a.corpus`, and `data.mix.a.weight`"
    );
    assert!(hint("RUNNER_DATA__MIX__A", "").contains("`RUNNER_DATA__MIX__A__WEIGHT`"));
    assert!(hint("", "data.mix=kjv").contains("`data.mix.NAME.corpus`"));
    assert!(hint("", "model=d12").starts_with("set a key of it, such as `model."));
}

#[test]
fn a_source_is_explained_by_any_name() {
    let explained = |asked: &str| KeysReference::find(asked).unwrap().in_full();
    assert!(explained("data.mix.web.weight").starts_with("data.mix.NAME.weight\n"));
    assert!(explained("data.mix").starts_with("[data.mix.NAME]"));
    assert_eq!(explained("data.mix.web"), explained("[data.mix.NAME]"));
    let unknown = KeysReference::find("data.mix.web.wight").unwrap_err();
    assert_eq!(
        (unknown.asked.as_str(), unknown.hint.as_str()),
        ("data.mix.web.wight", "did you mean `data.mix.NAME.weight`?")
    );
}
