//! The statement of a run is one that in-toto and SLSA accept.
//!
//! `tests/fixtures/slsa_v1.json` has their published schemas (protobuf descriptors as JSON);
//! `tests/slsa/descriptors.py` wrote it, and checks a statement with their own library.

use serde_json::Value;

use crate::support::{Lab, flip_bit};

const SCHEMAS: &str = include_str!("../fixtures/slsa_v1.json");
const CI: &str = "experiments/ci.toml";

/// The descriptor of a message's name: `.google.protobuf.Struct` → its descriptor.
fn message<'a>(schemas: &'a Value, name: &str) -> &'a Value {
    let files = schemas["file"].as_array().expect("files");
    let (file, rest) = files
        .iter()
        .filter_map(|file| {
            Some((
                file,
                name.trim_start_matches('.').strip_prefix(file["package"].as_str()?)?.strip_prefix('.')?,
            ))
        })
        .find(|(file, rest)| {
            named(&file["messageType"], rest.split('.').next().unwrap_or_default()).is_some()
        })
        .unwrap_or_else(|| panic!("no schema of `{name}`"));
    let mut parts = rest.split('.');
    let outer = named(&file["messageType"], parts.next().unwrap_or_default()).expect("found above");
    parts.fold(outer, |outer, part| named(&outer["nestedType"], part).expect("the schema is whole"))
}

fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item["name"] == name)
}

/// Checks that `json` is a message of the schema by protobuf's mapping to JSON; an error says where it is
/// not.
fn check(schemas: &Value, name: &str, json: &Value) -> Result<(), String> {
    match name.trim_start_matches('.') {
        "google.protobuf.Struct" => {
            return json.as_object().map(|_| ()).ok_or(format!("{json} is no object"));
        }
        "google.protobuf.Timestamp" => return json.as_str().map(|_| ()).ok_or(format!("{json} is no time")),
        _ => {}
    }
    let descriptor = message(schemas, name);
    for (key, value) in json.as_object().ok_or(format!("{json} is no `{name}`"))? {
        let fields = descriptor["field"].as_array().expect("fields");
        let field = fields
            .iter()
            .find(|field| json_name(field) == *key)
            .ok_or(format!("`{name}` has no field `{key}`"))?;
        let entry = field["typeName"]
            .as_str()
            .filter(|t| field["type"] == "TYPE_MESSAGE" && message_is_map(schemas, t));
        let one = |value: &Value| match field["type"].as_str() {
            Some("TYPE_STRING" | "TYPE_BYTES") => {
                value.as_str().map(|_| ()).ok_or(format!("`{key}` is {value}, expected a text"))
            }
            Some("TYPE_MESSAGE") => check(schemas, field["typeName"].as_str().expect("a name"), value),
            other => panic!("the schemas have no {other:?}"),
        };
        match (entry, field["label"] == "LABEL_REPEATED") {
            (Some(entry), _) => {
                let of = named(&message(schemas, entry)["field"], "value").expect("a map has values");
                for value in value.as_object().ok_or(format!("`{key}` is no map"))?.values() {
                    match of["type"].as_str() {
                        Some("TYPE_STRING") if value.is_string() => {}
                        Some("TYPE_MESSAGE") => {
                            check(schemas, of["typeName"].as_str().expect("a name"), value)?
                        }
                        _ => return Err(format!("`{key}` has the value {value}")),
                    }
                }
            }
            (None, true) => {
                value.as_array().ok_or(format!("`{key}` is no list"))?.iter().try_for_each(one)?
            }
            (None, false) => one(value)?,
        }
    }
    Ok(())
}

/// The key of a field in JSON: as the schema says, else its name in camel case.
fn json_name(field: &Value) -> String {
    if let Some(name) = field["jsonName"].as_str() {
        return name.to_owned();
    }
    let mut words = field["name"].as_str().expect("a name").split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}

fn message_is_map(schemas: &Value, name: &str) -> bool {
    name != ".google.protobuf.Struct"
        && name != ".google.protobuf.Timestamp"
        && message(schemas, name)["options"]["mapEntry"] == true
}

/// Checks `json` against the published schema of `message`.
fn parse(message: &str, json: &Value) -> Result<(), String> {
    check(&serde_json::from_str(SCHEMAS).expect("the schemas are JSON"), message, json)
}

const STATEMENT: &str = "in_toto_attestation.v1.Statement";
const PROVENANCE: &str = "in_toto_attestation.predicates.provenance.v1.Provenance";

#[test]
fn the_statement_of_a_run_fits_the_published_schemas_and_names_its_bytes() {
    let lab = Lab::new();
    let root =
        lab.run(CI, &["--set", "schedule.steps=4", "--set", "schedule.warmup_steps=1"]).root().to_owned();
    let export =
        || lab.finish(&["export", "ci", "--format", "slsa", "--runs", &lab.path("").display().to_string()]);
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
    let subjects = statement["subject"].as_array().expect("subjects");
    assert!(!subjects.is_empty());
    for resource in subjects {
        let file = lab.path("ci").join(resource["name"].as_str().expect("a name"));
        let sha256 = runner::proof::Hash::of(&std::fs::read(file).expect("a file")).to_string();
        assert_eq!(resource["digest"]["sha256"], sha256);
    }
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["experiment"]["schedule.steps"], 4);
    let text = definition["resolvedDependencies"].to_string();
    assert!(
        text.contains("kjv/train") && text.contains("Cargo.lock") && !text.contains("unknown\"}"),
        "{text}"
    );
    let run = &statement["predicate"]["runDetails"];
    assert!(run["builder"]["id"].as_str().is_some_and(|id| id.contains(':')), "an URI");
    assert!(run["byproducts"].to_string().contains(&root));
    assert_eq!(export().stdout, exported.stdout, "a function of the run");

    // Nothing damaged is attested.
    flip_bit(&lab.path("ci/checkpoints/step_00000004/state.safetensors"), 0.99);
    let refused = export();
    refused.assert_fails(5, &["is damaged"]);
    assert_eq!(refused.stdout, "");
}
