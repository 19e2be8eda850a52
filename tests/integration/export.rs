//! A trained model in other programs' files, and the text it writes.

use std::path::Path;

use half::bf16;
use runner::formats::{Parameters, Precision, hf, llmc};
use runner::store::{self, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";
/// The width of the CI experiment.
const C: usize = 64;

fn trained() -> Lab {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    lab
}

/// The state of the last checkpoint.
fn state(lab: &Lab) -> Vec<Tensor> {
    store::load(&lab.path("ci/checkpoints/step_00000020")).expect("a whole checkpoint").1
}

#[track_caller]
fn export(lab: &Lab, arguments: &[&str]) -> std::path::PathBuf {
    let finished = lab.verb("export", "ci", arguments);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout.trim().into()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON")
}

#[test]
fn a_hugging_face_folder_has_their_names_shapes_and_orientation() {
    let lab = trained();
    let folder = export(&lab, &["--format", "hf"]);
    assert_eq!(folder, lab.path("ci/export/step_00000020_hf_fp32"));
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(file.len(), 2 + 12 * 2 + 2);
    let state = state(&lab);
    for ours in state.iter().filter(|t| !t.name.contains('/')) {
        let theirs = file.tensor(&format!("transformer.{}", ours.name)).expect("the same name");
        assert_eq!(theirs.dtype(), Dtype::F32);
        let conv1d = ours.shape.len() == 2 && !["wte.weight", "wpe.weight"].contains(&ours.name.as_str());
        if !conv1d {
            assert_eq!((theirs.shape(), theirs.data()), (&ours.shape[..], &ours.bytes[..]), "{}", ours.name);
            continue;
        }
        let (outs, ins) = (ours.shape[0], ours.shape[1]);
        assert_eq!(theirs.shape(), [ins, outs], "{}", ours.name);
        let element = |bytes: &[u8], i: usize| bytes[4 * i..4 * i + 4].to_vec();
        for (o, i) in (0..outs).flat_map(|o| (0..ins).map(move |i| (o, i))) {
            assert_eq!(
                element(theirs.data(), i * outs + o),
                element(&ours.bytes, o * ins + i),
                "{} {o} {i}",
                ours.name
            );
        }
    }
    assert_eq!(
        file.tensor("transformer.wte.weight").expect("there").shape(),
        [257, C],
        "padding rows were not dropped"
    );

    let config = json(&folder.join("config.json"));
    for (key, value) in
        [("n_layer", 2), ("n_head", 2), ("n_embd", C), ("n_positions", 64), ("vocab_size", 257)]
    {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!((&config["model_type"], &config["tie_word_embeddings"]), (&"gpt2".into(), &true.into()));
    assert_eq!(json(&folder.join("generation_config.json"))["eos_token_id"], 256);
    assert_eq!(json(&folder.join("tokenizer.json"))["model"]["merges"], serde_json::json!([]));
    lab.verb("export", "ci", &["--format", "hf"]).assert_fails(1, &["is already there", "--out"]);
}

#[test]
fn every_format_gives_back_the_bits_it_was_given() {
    let lab = trained();
    let state = state(&lab);
    let (fp32, bf16_file) =
        (export(&lab, &["--format", "llmc"]), export(&lab, &["--format", "llmc", "--dtype", "bf16"]));
    let (parameters, precision) = llmc::read(&fp32.join("model.bin")).expect("version 3");
    assert_eq!(precision, Precision::Fp32);
    assert_eq!((parameters.model.vocab, parameters.model.vocab_padded), (257, 384));
    let ours = Parameters::of_state(Path::new("state"), &parameters.model, state).expect("the same model");
    assert!(parameters.tensors.iter().eq(ours.tensors.iter()));
    let again = lab.path("again.bin");
    llmc::write(&again, &parameters, precision).expect("writable");
    assert!(std::fs::read(&again).expect("there") == std::fs::read(fp32.join("model.bin")).expect("there"));

    // bf16: each number is the nearest one, and from there nothing changes any more.
    let (narrow, precision) = llmc::read(&bf16_file.join("model.bin")).expect("version 5");
    assert_eq!(precision, Precision::Bf16);
    for (narrow, wide) in narrow.tensors.iter().zip(ours.tensors.iter()) {
        let rounded = wide.bytes.as_chunks().0.iter().map(|b| bf16::from_f32(f32::from_le_bytes(*b)));
        assert!(
            narrow.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).eq(rounded),
            "{}",
            wide.name
        );
    }
    llmc::write(&again, &narrow, precision).expect("writable");
    assert!(
        std::fs::read(&again).expect("there") == std::fs::read(bf16_file.join("model.bin")).expect("there")
    );

    // Through Hugging Face's folder, where weights are transposed, and back.
    for (dtype, expected) in [("fp32", &ours), ("bf16", &narrow)] {
        let out = lab.path(dtype);
        let folder =
            export(&lab, &["--format", "hf", "--dtype", dtype, "--out", out.to_str().expect("UTF-8")]);
        let back = hf::read(&folder).expect("readable");
        assert!(back.tensors.iter().eq(expected.tensors.iter()), "{dtype}");
    }
}

#[test]
fn an_older_checkpoint_is_exported_by_its_step() {
    let lab = trained();
    let folder = export(&lab, &["--format", "llmc", "--checkpoint", "10"]);
    assert!(folder.ends_with("step_00000010_llmc_fp32"), "{}", folder.display());
    lab.verb("export", "ci", &["--format", "llmc", "--checkpoint", "7"]).assert_fails(2, &["step_00000007"]);
    lab.verb("export", "none", &["--format", "llmc"]).assert_fails(2, &["there is no run in"]);
}

#[test]
fn the_same_seed_writes_the_same_text_and_another_seed_another() {
    let lab = trained();
    let sample = |arguments: &[&str]| -> Finished {
        let finished =
            lab.verb("sample", "ci", &[&["--prompt", "And God", "--tokens", "100"], arguments].concat());
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        assert!(finished.stdout.starts_with("And God"), "{}", finished.stdout);
        finished
    };
    let first = sample(&["--seed", "1"]).stdout;
    assert_eq!(sample(&["--seed", "1"]).stdout, first);
    assert_eq!(sample(&["--seed", "1", "--set", "device.threads=1"]).stdout, first);
    assert_ne!(sample(&["--seed", "2"]).stdout, first);
    // Three ways to the likeliest token.
    let greedy = sample(&["--temperature", "0"]).stdout;
    assert_eq!(sample(&["--top-k", "1"]).stdout, greedy);
    assert_eq!(sample(&["--top-p", "0.000001"]).stdout, greedy);
    lab.verb("sample", "ci", &["--top-p", "0"]).assert_fails(2, &["`--top-p` is 0, expected above 0"]);
    lab.verb("sample", "ci", &["--temperature=-1"]).assert_fails(2, &["`--temperature` is -1"]);
}
