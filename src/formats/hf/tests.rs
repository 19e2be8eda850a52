use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::experiment;
use crate::experiment::{ActivationKind, NormKind, PositionKind};
use crate::formats::parameters::{sample_of, sample_parameters};
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
    assert!(refusal("\"gpt2\"", "\"opt\"").contains("`model_type` is \"opt\""));
    assert!(refusal("\"n_layer\": 3", "\"n_layer\": -3").contains("`n_layer` is -3"));
    assert!(refusal("\"n_layer\": 3", "\"n_layer\": 4").contains("`h.3.ln_1.weight` is missing"));
    // A hole that is larger than memory.
    fs::File::options().write(true).open(&path).expect("there").set_len(1 << 36).expect("a hole");
    let endless = read(folder.path()).expect_err("no configuration").to_string();
    assert!(endless.contains("config.json`: it has more than 67108864 bytes"), "{endless}");
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
    assert!(untied.contains("`lm_head.weight` differs from the token table"), "{untied}");
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
        assert!(refusal(name).contains(&format!("holds the tensor `{name}`, which its model does not have")));
    }
    assert!(refusal("ln_f.bias").contains("parameter `ln_f.bias` is given twice"));
    for name in ["transformer.h.2.attn.bias", "h.0.attn.masked_bias"] {
        assert_eq!(refusal(name), "read");
    }
}

/// Models that other architectures hold.
fn llamas() -> Vec<Model> {
    let llama = Model {
        norm: NormKind::Rmsnorm,
        positions: PositionKind::Rotary,
        rope_theta: 500.5,
        activation: ActivationKind::Swiglu,
        bias: false,
        ..Model::gpt2(2, 2, 8, 5, 11)
    };
    let untied = Model { tied_head: false, ..llama.clone() };
    let qwen3 = Model { qk_norm: true, ..untied.clone() };
    let grouped = Model { kv_heads: 1, ..untied.clone() };
    vec![llama, untied, grouped, qwen3]
}

#[test]
fn llama_and_qwen3_come_back_bit_for_bit() {
    for model in llamas() {
        for (dtype, precision) in [(Dtype::F32, Precision::Fp32), (Dtype::BF16, Precision::Bf16)] {
            let parameters = sample_of(&model, dtype);
            let folder = written(&parameters, precision);
            let back = read(folder.path()).expect("readable");
            assert_eq!(back.model, parameters.model);
            assert!(back.tensors.iter().eq(parameters.tensors.iter()), "{model:?} {dtype}");
        }
    }
}

/// Which number stands where, by hand: two heads of four channels, rotated in pairs.
#[test]
fn rows_of_pairs_are_half_a_head_apart_and_gates_apart_from_factors() {
    let model = llamas().pop().expect("Qwen3");
    let parameters = sample_of(&model, Dtype::F32);
    let folder = written(&parameters, Precision::Fp32);
    let tensors = safetensors::read(&folder.path().join(WEIGHTS)).expect("readable");
    let theirs = |name: &str| tensors.iter().find(|t| t.name == name).expect("there");
    let row = |tensor: &Tensor, row: usize| {
        let width = tensor.bytes.len() / tensor.shape[0];
        tensor.bytes[row * width..(row + 1) * width].to_vec()
    };
    let block = &parameters.tensors.layers[1];
    let [query, key, value] =
        ["q", "k", "v"].map(|x| theirs(&format!("model.layers.1.self_attn.{x}_proj.weight")));
    for (their, our) in [0, 2, 1, 3, 4, 6, 5, 7].into_iter().enumerate() {
        assert_eq!(row(query, their), row(&block.qkv.weight, our), "query {their}");
        assert_eq!(row(key, their), row(&block.qkv.weight, 8 + our), "key {their}");
        assert_eq!(row(value, their), row(&block.qkv.weight, 16 + their), "value {their}");
    }
    let norm = theirs("model.layers.1.self_attn.k_norm.weight");
    let ours = block.head_norms.key.as_ref().expect("QK-norm");
    for (their, our) in [0, 2, 1, 3].into_iter().enumerate() {
        assert_eq!(row(norm, their), row(ours, our));
    }
    let [gate, up] = ["gate", "up"].map(|x| theirs(&format!("model.layers.1.mlp.{x}_proj.weight")));
    assert_eq!((&gate.shape, &up.shape), (&vec![64, 8], &vec![64, 8]));
    for i in [0, 1, 63] {
        assert_eq!(row(gate, i), row(&block.fc.weight, 2 * i));
        assert_eq!(row(up, i), row(&block.fc.weight, 2 * i + 1));
    }
    assert_eq!(theirs("lm_head.weight").shape, [11, 8]);
}

#[test]
fn a_llama_that_computes_something_else_is_refused() {
    let model = llamas().remove(0);
    let folder = written(&sample_of(&model, Dtype::F32), Precision::Fp32);
    let path = folder.path().join(CONFIG);
    let good: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    let refusal = |change: &dyn Fn(&mut Value)| {
        let mut config = good.clone();
        change(&mut config);
        fs::write(&path, config.to_string()).expect("writable");
        read(folder.path()).map_or_else(|error| error.to_string(), |back| format!("{:?}", back.model))
    };
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 33] = [
        (|c| c["hidden_act"] = json!("gelu"), "`hidden_act` is \"gelu\", expected \"silu\""),
        (|c| c["rms_norm_eps"] = json!(1e-6), "`rms_norm_eps` is 1e-6, expected 1e-5"),
        (|c| _ = c.as_object_mut().unwrap().remove("rms_norm_eps"), "`rms_norm_eps` is missing"),
        (|c| c["num_key_value_heads"] = json!(1), "k_proj.weight` has the shape [8, 8], expected [4, 8]"),
        (|c| c["num_key_value_heads"] = json!(3), "`num_key_value_heads` is 3, which does not divide"),
        (|c| c["num_key_value_heads"] = json!(0), "`num_key_value_heads` is 0, expected a whole number"),
        (|c| c["intermediate_size"] = json!(128), "`intermediate_size` is 128, expected 64"),
        (|c| c["num_attention_heads"] = json!(8), "a head has 1 channel, expected an even number"),
        (|c| c["head_dim"] = json!(8), "`head_dim` is 8"),
        (|c| c["attention_bias"] = json!(true), "`attention_bias` is true, expected false"),
        (|c| c["rope_scaling"] = json!({"rope_type": "yarn"}), "`rope_scaling.rope_type` is \"yarn\""),
        (|c| c["rope_scaling"] = json!({"type": "linear", "factor": 8.0}), "`rope_scaling.factor` is 8.0"),
        (|c| c["rope_scaling"] = json!({"type": "linear"}), "`rope_scaling.type` is \"linear\", expected"),
        (
            |c| c["rope_scaling"] = json!({"rope_type": "default", "type": "linear"}),
            "`rope_scaling.type` is \"linear\", expected \"default\"",
        ),
        (|c| c["rope_scaling"] = json!({"rope_type": 5}), "`rope_scaling.rope_type` is 5"),
        (|c| c["rope_scaling"] = json!({"rope_type": null}), "`rope_scaling.rope_type` is null"),
        (|c| c["rope_scaling"] = json!("linear"), "`rope_scaling` is \"linear\", expected null or an object"),
        (|c| c["rope_scaling"] = json!([]), "`rope_scaling` is [], expected null or an object"),
        (
            |c| c["rope_scaling"] = json!({"rope_theta": 9.0}),
            "as 500.5 and, by `rope_scaling.rope_theta`, as 9",
        ),
        (|c| c["rope_scaling"] = json!({"mrope_section": [1]}), "`rope_scaling.mrope_section` is [1]"),
        (|c| c["rope_parameters"]["rope_type"] = json!("llama3"), "`rope_parameters.rope_type` is"),
        (|c| c["rope_parameters"]["type"] = json!("linear"), "`rope_parameters.type` is \"linear\""),
        (|c| c["rope_parameters"]["attention_factor"] = json!(3.0), "`rope_parameters.attention_factor` is"),
        (
            |c| c["rope_parameters"]["partial_rotary_factor"] = json!(0.5),
            "`rope_parameters.partial_rotary_factor` is 0.5, expected 1.0",
        ),
        (|c| c["rope_parameters"] = json!("x"), "`rope_parameters` is \"x\", expected null or an object"),
        (|c| c["partial_rotary_factor"] = json!(0.5), "`partial_rotary_factor` is 0.5, expected 1.0"),
        (
            |c| c["rope_theta"] = json!(1e300),
            "`rope_theta` is 1e+300, expected a number above 1 that 32 bits",
        ),
        (|c| c["is_causal"] = json!(false), "`is_causal` is false, expected true"),
        (|c| c["layer_types"] = json!(["full_attention", "sliding_attention"]), "`layer_types` is [\"full"),
        (|c| c["per_layer_config"] = json!({"0": {"rms_norm_eps": 1.0}}), "`per_layer_config` is"),
        (
            |c| c["rope_theta"] = json!(7.0),
            "`rope_theta` is given as 7 and, by `rope_parameters.rope_theta`, as 500.5",
        ),
        (|c| c["tie_word_embeddings"] = json!(false), "`lm_head.weight` is missing"),
        (|c| c["model_type"] = json!("qwen3"), "q_norm.weight` is missing"),
    ];
    for (change, says) in cases {
        let got = refusal(&change);
        assert!(got.contains(says), "{says}: {got}");
    }
    // As older and newer versions of `transformers` write it.
    let theirs: [Change; 9] = [
        |c| _ = c.as_object_mut().unwrap().remove("rope_parameters"),
        |c| _ = c.as_object_mut().unwrap().remove("rope_theta"),
        |c| c["rope_parameters"] = json!({"rope_type": "default"}),
        |c| c["rope_parameters"] = json!({"rope_theta": 500.5, "partial_rotary_factor": 1.0}),
        |c| c["rope_parameters"] = json!({}),
        |c| c["rope_scaling"] = json!({}),
        |c| c["rope_scaling"] = json!(null),
        |c| c["rope_scaling"] = json!({"type": "default", "rope_type": "default", "rope_theta": 500.5}),
        |c| {
            c["layer_types"] = json!(["full_attention", "full_attention"]);
            c["is_causal"] = json!(true);
        },
    ];
    for (number, change) in theirs.into_iter().enumerate() {
        let read_back = refusal(&change);
        assert!(read_back.contains("rope_theta: 500.5"), "{number}: {read_back}");
    }
}

#[test]
fn blocks_that_no_architecture_has_are_refused_by_the_keys_that_stand_in_the_way() {
    let gpt2 = Model::gpt2(1, 1, 8, 5, 11);
    let [.., qwen3] = &llamas()[..] else { panic!("there are some") };
    let cases: [(Model, &str); 5] = [
        (
            Model { norm: NormKind::Rmsnorm, ..gpt2.clone() },
            ": `model.norm` = \"rmsnorm\"\n  hint: the nearest is `GPT2LMHeadModel`: a model trained with \
             `model.norm` = \"layernorm\" is",
        ),
        (
            Model { tied_head: false, ..gpt2.clone() },
            ": `model.tied_head` = false\n  hint: the nearest is `GPT2LMHeadModel`: a model trained with \
             `model.tied_head` = true is",
        ),
        (
            Model { logit_softcap: 30.0, ..gpt2 },
            ": `model.logit_softcap` = 30.0\n  hint: the nearest is `GPT2LMHeadModel`: a model trained with \
             `model.logit_softcap` = 0.0 is",
        ),
        (
            Model { logit_softcap: 30.0, ..qwen3.clone() },
            ": `model.logit_softcap` = 30.0\n  hint: the nearest is `Qwen3ForCausalLM`: a model trained with \
             `model.logit_softcap` = 0.0 is",
        ),
        (
            Model { activation: ActivationKind::Relu2, bias: true, ..llamas().remove(2) },
            ": `model.activation` = \"relu2\", `model.bias` = true\n  hint: the nearest is \
             `LlamaForCausalLM`: a model trained with `model.activation` = \"swiglu\", `model.bias` = false \
             is",
        ),
    ];
    for (model, says) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let tokenizer = Tokenizer::new(experiment::Tokenizer::Byte);
        let export = Export {
            parameters: sample_of(&model, Dtype::F32),
            precision: Precision::Fp32,
            tokenizer,
            sample: &sample(),
            origin: BTreeMap::new(),
        };
        let refused = write(folder.path(), export).expect_err("refused").to_string();
        assert!(refused.contains(says), "{says}\n{refused}");
        assert!(fs::read_dir(folder.path()).expect("there").next().is_none(), "nothing is left");
    }
}
