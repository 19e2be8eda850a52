//! The reference of keys as a JSON schema, by which editors complete and check experiments.
//!
//! Draft 7, which Taplo (Even Better TOML) and Tombi read. A schema knows keys, types, ranges and words;
//! rules between keys are only the program's.

use serde_json::{Map, Value as Json, json};

use super::check::LONGEST_NAME;
use super::reference::{KeyReference, KeysReference, SectionReference};
use super::schema::{self, Default, KeyRow, Open, ValueKind};

/// What a source of a mixture is called.
const SOURCE_NAME: &str = "[a-z0-9][a-z0-9_-]{0,39}";

/// The schema of an experiment's file.
pub fn json_schema() -> Json {
    let KeysReference(sections) = KeysReference::all();
    let mut top = Map::new();
    for SectionReference { section, about, keys } in &sections {
        let properties = keys.iter().map(|key| (key.leaf().to_owned(), of_key(key)));
        if section.is_empty() {
            top.extend(properties);
        } else if *section == schema::SOURCE_SECTION {
            top["data"]["properties"]["mix"] = of_mixture(of_table(properties.collect()), about);
        } else {
            let mut table = of_table(properties.collect());
            table["description"] = json!(about);
            top.insert((*section).to_owned(), table);
        }
    }
    top.insert("sweep".to_owned(), of_sweep());
    let mut schema = of_table(top);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("An experiment of runner");
    schema["description"] = json!("What a run trains, on what, and how it is recorded and proven.");
    schema
}

/// `[data.mix]`: tables that have any name a source may have.
fn of_mixture(mut source: Json, about: &str) -> Json {
    source["description"] = json!(about);
    json!({
        "type": "object",
        "description": "The sources of a mixture by name.",
        "additionalProperties": source,
        "propertyNames": { "pattern": format!("^{SOURCE_NAME}$") },
    })
}

/// `[sweep]`: lists and ranges of values, each value as its key takes it.
fn of_sweep() -> Json {
    let swept = |of: &dyn Fn(Json) -> Json| -> Json {
        let reference = |name: &str| {
            let path = format!("#/properties/{}", name.replace('.', "/properties/"));
            of(json!({ "$ref": path.replace("/properties/NAME", "/additionalProperties") }))
        };
        let keys = schema::KEYS
            .iter()
            .filter(|key| key.name != "name")
            .map(|key| (key.name.to_owned(), reference(key.name)));
        let pattern = |name: &str| format!("^{}$", name.replace('.', "\\.").replace("NAME", SOURCE_NAME));
        let of_sources: Map<String, Json> =
            schema::SOURCE_KEYS.iter().map(|key| (pattern(key.name), reference(key.name))).collect();
        let mut table = of_table(keys.collect());
        table["patternProperties"] = Json::Object(of_sources);
        table
    };
    let list = |value: Json| json!({ "type": "array", "items": value, "minItems": 1 });
    let bounds = json!({ "type": "array", "items": { "type": "number" }, "minItems": 2, "maxItems": 2 });
    let above_zero = json!({ "type": "array", "items": { "type": "number", "exclusiveMinimum": 0 },
        "minItems": 2, "maxItems": 2 });
    let drawn = |value: Json| {
        let draws = [("uniform", &bounds), ("log_uniform", &above_zero), ("integers", &bounds)];
        let draws = draws.map(|(name, bounds)| (name.to_owned(), bounds.clone()));
        let mut draw = of_table(draws.into_iter().chain([("choices".to_owned(), list(value))]).collect());
        (draw["minProperties"], draw["maxProperties"]) = (json!(1), json!(1));
        draw
    };
    let mut random = of_table(Map::new());
    random["properties"] = json!({
        "samples": { "type": "integer", "minimum": 1 },
        "seed": { "type": "integer", "minimum": 0 },
        "keys": swept(&drawn),
    });
    random["required"] = json!(["samples", "seed", "keys"]);
    random["properties"]["keys"]["minProperties"] = json!(1);
    let mut sweep = of_table(Map::new());
    sweep["minProperties"] = json!(1);
    sweep["description"] = json!("Many runs: a grid of values, lists walked together, random samples.");
    sweep["properties"] = json!({ "grid": swept(&list), "zip": swept(&list), "random": random });
    sweep
}

fn of_table(properties: Map<String, Json>) -> Json {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn of_key(key: &KeyReference) -> Json {
    let mut description = format!("{}\n\nDefault: {}.", key.meaning, key.default);
    if !key.unit.is_empty() {
        description += &format!(" Unit: {}.", key.unit);
    }
    description += &format!("\n\nBits: {}.", key.bits);
    let mut schema = json!({ "description": description });
    // `extends` is in no table.
    let Some(row) = schema::described(key.key) else {
        schema["type"] = json!("string");
        schema["minLength"] = json!(1);
        return schema;
    };
    restrict(row, &mut schema);
    if let ValueKind::Choice(_) = row.kind {
        let meanings: Vec<&str> = key.words.iter().map(|word| word.meaning).collect();
        schema["x-taplo"] = json!({ "docs": { "enumValues": meanings } });
    }
    match row.default {
        Default::Integer(n) => schema["default"] = json!(n),
        Default::Number(x) => schema["default"] = json!(x),
        Default::Boolean(b) => schema["default"] = json!(b),
        Default::Text(text) => schema["default"] = json!(text),
        Default::Absent | Default::Ruled => {}
    }
    schema
}

/// The type, and what limits it.
fn restrict(row: &KeyRow, schema: &mut Json) {
    let mut set = |name: &str, value: Json| schema[name] = value;
    match row.kind {
        ValueKind::Integer { min, max } => {
            set("type", json!("integer"));
            set("minimum", json!(min));
            set("maximum", json!(max));
        }
        ValueKind::Number { min, max, open } => {
            set("type", json!("number"));
            set(if open == Open::Below { "exclusiveMinimum" } else { "minimum" }, json!(min));
            if max < f64::MAX {
                set(if open == Open::Above { "exclusiveMaximum" } else { "maximum" }, json!(max));
            }
        }
        ValueKind::Boolean => set("type", json!("boolean")),
        ValueKind::Text => set("type", json!("string")),
        ValueKind::Name => {
            set("type", json!("string"));
            set("minLength", json!(1));
            set("maxLength", json!(LONGEST_NAME));
        }
        ValueKind::File | ValueKind::Model | ValueKind::Place => {
            set("type", json!("string"));
            set("minLength", json!(1));
        }
        ValueKind::Choice(words) => {
            set("type", json!("string"));
            set("enum", words.iter().map(|word| json!(word.name)).collect());
        }
        ValueKind::Patterns => {
            set("type", json!(["string", "array"]));
            set("minLength", json!(1));
            set("items", json!({ "type": "string", "minLength": 1 }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_in_the_documentation_is_what_the_program_prints() {
        assert!(
            include_str!("../../docs/runner.schema.json") == format!("{:#}\n", json_schema()),
            "docs/runner.schema.json is stale: `runner config --json-schema > docs/runner.schema.json`"
        );
    }

    #[test]
    fn every_key_has_its_type_and_limits() {
        let schema = json_schema();
        for row in schema::KEYS {
            let properties = match row.section() {
                "" => &schema["properties"],
                section => &schema["properties"][section]["properties"],
            };
            assert!(properties[row.leaf()]["type"] != Json::Null, "{}", row.name);
        }
        let beta1 = &schema["properties"]["optimizer"]["properties"]["beta1"];
        assert_eq!((&beta1["minimum"], &beta1["exclusiveMaximum"]), (&json!(0.0), &json!(1.0)));
        let kinds = &schema["properties"]["schedule"]["properties"]["kind"]["enum"];
        assert_eq!([&kinds[0], &kinds[3]], [&json!("cosine"), &json!("wsd")]);
    }
}
