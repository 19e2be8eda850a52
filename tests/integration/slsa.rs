//! The statement of a run is one that in-toto and SLSA accept.
//!
//! `tests/fixtures/slsa_v1.binpb` has their published schemas; `tests/slsa/descriptors.py` wrote it, and
//! checks a statement with their own library.

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage};
use serde_json::Value;

use crate::support::Lab;

const SCHEMAS: &[u8] = include_bytes!("../fixtures/slsa_v1.binpb");
const CI: &str = "experiments/ci.toml";

/// Reads `json` as a message of the schema; unknown fields and wrong types are errors.
fn parse(message: &str, json: &Value) -> Result<DynamicMessage, String> {
    let pool = DescriptorPool::decode(SCHEMAS).expect("the schemas are whole");
    let descriptor = pool.get_message_by_name(message).expect("the schema has it");
    let text = json.to_string();
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options).map_err(|e| e.to_string())
}

const STATEMENT: &str = "in_toto_attestation.v1.Statement";
const PROVENANCE: &str = "in_toto_attestation.predicates.provenance.v1.Provenance";

#[test]
fn the_statement_of_a_run_fits_the_published_schemas_and_names_its_bytes() {
    let lab = Lab::new();
    let root = lab.run(CI, &["--set", "schedule.steps=4", "--set", "schedule.warmup_steps=1"]).root().to_owned();
    let export = || lab.finish(&["export", "ci", "--format", "slsa", "--runs", &lab.path("").display().to_string()]);
    let exported = export();
    assert_eq!(exported.code, Some(0), "{}", exported.stderr);
    let statement: Value = serde_json::from_str(&exported.stdout).expect("JSON alone");
    parse(STATEMENT, &statement).expect("a statement");
    parse(PROVENANCE, &statement["predicate"]).expect("a provenance");
    let mut wrong = statement["predicate"].clone();
    wrong["buildDefinition"]["buildTypo"] = Value::from("x");
    parse(PROVENANCE, &wrong).expect_err("the schema is strict");

    // What the specifications require beyond types.
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    for resource in statement["subject"].as_array().expect("subjects") {
        let file = lab.path("ci").join(resource["name"].as_str().expect("a name"));
        let sha256 = runner::proof::Hash::of(&std::fs::read(file).expect("a file")).to_string();
        assert_eq!(resource["digest"]["sha256"], sha256);
    }
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["experiment"]["schedule.steps"], 4);
    let text = definition["resolvedDependencies"].to_string();
    assert!(text.contains("kjv/train") && text.contains("Cargo.lock") && !text.contains("unknown\"}"), "{text}");
    let run = &statement["predicate"]["runDetails"];
    assert!(run["builder"]["id"].as_str().is_some_and(|id| id.contains(':')), "an URI");
    assert!(run["byproducts"].to_string().contains(&root));
    assert_eq!(export().stdout, exported.stdout, "a function of the run");

    // Nothing damaged is attested.
    let state = lab.path("ci/checkpoints/step_00000004/state.safetensors");
    let mut bytes = std::fs::read(&state).expect("a file");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&state, bytes).expect("writable");
    let refused = export();
    refused.assert_fails(5, &["is damaged"]);
    assert_eq!(refused.stdout, "");
}
