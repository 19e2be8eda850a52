use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::experiment;
use crate::formats::parameters::sample_parameters;
use crate::ops::Dtype;

fn sample() -> SampleKeys {
    SampleKeys { every: 0, tokens: 8, prompt: String::new(), temperature: 0.8, top_k: 40 }
}

fn written(parameters: &Parameters, precision: Precision) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let tokenizer = Tokenizer::new(experiment::Tokenizer::Byte);
    let (parameters, sample, origin) = (parameters.clone(), &sample(), BTreeMap::new());
    write(folder.path(), Export { parameters, precision, tokenizer, sample, origin }).expect("written");
    folder
}

#[test]
fn a_folder_comes_back_bit_for_bit_in_both_precisions() {
    for (dtype, precision) in [(Dtype::F32, Precision::Fp32), (Dtype::BF16, Precision::Bf16)] {
        let parameters = sample_parameters(dtype);
        let folder = written(&parameters, precision);
        let back = read(folder.path()).expect("readable");
        assert_eq!(back.model, parameters.model);
        assert!(back.tensors.iter().eq(parameters.tensors.iter()), "{dtype}");
        let again = written(&back, precision);
        let bytes = |folder: &tempfile::TempDir| fs::read(folder.path().join(WEIGHTS)).expect("readable");
        assert_eq!(bytes(&folder), bytes(&again));
    }
}

#[test]
fn transposing_moves_rows_to_columns() {
    assert_eq!(transposed::<2>(b"aabbccddeeff", 2, 3), b"aaddbbeeccff");
    assert_eq!(transposed::<2>(b"aaddbbeeccff", 3, 2), b"aabbccddeeff");
}

#[test]
fn a_config_of_another_model_is_refused() {
    let folder = written(&sample_parameters(Dtype::F32), Precision::Fp32);
    let path = folder.path().join(CONFIG);
    let text = fs::read_to_string(&path).expect("readable");
    let refusal = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("writable");
        read(folder.path()).expect_err("another model").to_string()
    };
    assert!(refusal("\"gpt2\"", "\"llama\"").contains("`model_type` is \"llama\""));
    assert!(refusal("\"n_layer\": 3", "\"n_layer\": -3").contains("`n_layer` is -3"));
    assert!(refusal("\"n_layer\": 3", "\"n_layer\": 4").contains("`h.3.ln_1.weight` is missing"));
}

/// The folder with its weights changed as tensors.
fn changed(folder: &tempfile::TempDir, change: impl FnOnce(&mut Vec<Tensor>)) -> Result<Parameters> {
    let path = folder.path().join(WEIGHTS);
    let mut tensors = safetensors::read(&path).expect("readable");
    change(&mut tensors);
    safetensors::write(&path, &tensors, &BTreeMap::new()).expect("writable");
    read(folder.path())
}

#[test]
fn names_without_prefix_masks_and_a_tied_classifier_are_read_as_the_same_model() {
    let parameters = sample_parameters(Dtype::F32);
    let folder = written(&parameters, Precision::Fp32);
    let back = changed(&folder, |tensors| {
        let wte = tensors.iter().find(|t| t.name == "transformer.wte.weight").expect("there").clone();
        tensors.iter_mut().for_each(|t| t.name = t.name.strip_prefix(PREFIX).expect("prefixed").to_owned());
        tensors.push(Tensor { name: CLASSIFIER.into(), ..wte });
        tensors.push(Tensor {
            name: "h.0.attn.bias".into(),
            dtype: Dtype::I64,
            shape: vec![2],
            bytes: vec![7; 16],
        });
    });
    assert!(back.expect("readable").tensors.iter().eq(parameters.tensors.iter()));
}

#[test]
fn tensors_that_are_missing_misshapen_or_untied_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut Vec<Tensor>)| {
        changed(&written(&sample_parameters(Dtype::F32), Precision::Fp32), change)
            .expect_err("refused")
            .to_string()
    };
    let at = |tensors: &[Tensor], name: &str| tensors.iter().position(|t| t.name == name).expect("there");
    let missing = refusal(&|t| _ = t.remove(at(t, "transformer.h.2.mlp.c_fc.weight")));
    assert!(missing.contains("`h.2.mlp.c_fc.weight` is missing"), "{missing}");
    let misshapen = refusal(&|t| {
        let at = at(t, "transformer.h.0.attn.c_attn.weight");
        t[at].shape.reverse();
    });
    assert!(
        misshapen.contains("`h.0.attn.c_attn.weight` has the shape [8, 24], expected [24, 8]"),
        "{misshapen}"
    );
    let counted = refusal(&|t| {
        let at = at(t, "transformer.ln_f.bias");
        t[at] = Tensor { dtype: Dtype::U64, bytes: vec![0; 64], ..t[at].clone() };
    });
    let says = "tensor `transformer.ln_f.bias` in `";
    assert!(counted.starts_with(says) && counted.contains("is stored as U64, expected F32, BF16 or F16"));
    let untied = refusal(&|t| {
        let mut classifier = t[at(t, "transformer.wte.weight")].clone();
        classifier.name = CLASSIFIER.into();
        classifier.bytes[0] ^= 1;
        t.push(classifier);
    });
    assert!(untied.contains("`lm_head.weight` differs from `wte.weight`"), "{untied}");
}

#[test]
fn each_tensor_may_have_its_own_precision() {
    let (wide, narrow) = (sample_parameters(Dtype::F32), sample_parameters(Dtype::BF16));
    let folder = written(&wide, Precision::Fp32);
    let back = changed(&folder, |tensors| {
        let wpe = tensors.iter_mut().find(|t| t.name == "transformer.wpe.weight").expect("there");
        *wpe = Tensor { name: wpe.name.clone(), ..narrow.tensors.wpe.clone().expect("learned positions") };
    });
    let back = back.expect("readable").tensors;
    assert_eq!((&back.wpe, &back.wte), (&narrow.tensors.wpe, &wide.tensors.wte));
}

#[test]
fn tensors_that_gpt2_does_not_have_or_that_come_twice_are_refused_by_name() {
    let refusal = |name: &str| {
        let folder = written(&sample_parameters(Dtype::F32), Precision::Fp32);
        let refused = changed(&folder, |tensors| {
            let extra = tensors.iter().find(|t| t.name == "transformer.ln_f.bias").expect("there").clone();
            tensors.push(Tensor { name: name.into(), ..extra });
        });
        refused.map(|_| "read".to_owned()).unwrap_or_else(|error| error.to_string())
    };
    // The model has three layers.
    let extra = ["transformer.h.0.attn.q_norm.weight", "h.3.ln_1.bias", "score.weight", "h.3.attn.bias"];
    for name in extra {
        assert!(refusal(name).contains(&format!("holds the tensor `{name}`, which GPT-2 does not have")));
    }
    assert!(refusal("ln_f.bias").contains("parameter `ln_f.bias` is given twice"));
    for name in ["transformer.h.2.attn.bias", "h.0.attn.masked_bias"] {
        assert_eq!(refusal(name), "read");
    }
}
