//! `runner config`: the resolved experiment, and where each key came from; or what a key is.
//!
//! Reads what `runner run` would read and starts nothing. The resolved form is itself an experiment, or a
//! sweep.

use std::path::PathBuf;

use super::{experiment, streams};
use crate::data::mixture::SourceUse;
use crate::experiment::{Declared, KeysReference, Loaded, json_schema};
use crate::plan::data_facts::DataFacts;
use crate::run::UsageError;

/// Print the resolved experiment with the origin of every key, or explain a key
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// A TOML file, or the name of a shipped experiment: quickstart, ci, …
    #[arg(value_name = "EXPERIMENT", required_unless_present_any = ["explain", "json_schema"])]
    pub experiment: Option<PathBuf>,
    /// Set a key, over the file and the environment: `--set schedule.steps=100`
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "experiment")]
    pub sets: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Explain a key or a section: type, default, unit, meaning, bits, example. Alone, list every key
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    #[arg(conflicts_with = "experiment")]
    pub explain: Option<String>,
    /// Explain in Markdown: `docs/configuration.md`
    #[arg(long, requires = "explain", conflicts_with_all = ["json", "json_schema", "experiment"])]
    pub markdown: bool,
    /// Print the JSON schema by which editors complete and check experiments
    #[arg(long, conflicts_with_all = ["experiment", "explain", "json"])]
    pub json_schema: bool,
    /// Folder that holds the runs that `model.init` may name
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub runs: PathBuf,
}

/// Prints on stdout. A fault in the experiment is an [`experiment::ExperimentError`] inside the error: a
/// matter of usage, exit code 2.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = match (&args.experiment, &args.explain) {
        (Some(path), _) => {
            let declared = experiment::load_declared(path, &args.sets, &args.runs)?;
            experiment::say_all_replaced(&declared);
            match declared {
                Declared::Experiment(loaded) if args.json => format!("{:#}\n", in_json(*loaded)),
                Declared::Experiment(loaded) => loaded.to_toml() + &mixture(*loaded),
                Declared::Sweep(sweep) if args.json => format!("{:#}\n", sweep.to_json()),
                Declared::Sweep(sweep) => sweep.to_toml(),
            }
        }
        (None, Some(asked)) => explain(asked, &args)?,
        (None, None) => format!("{:#}\n", json_schema()),
    };
    streams::print(&text)
}

/// What the run reads of each source of a mixture, and what `data.offset` passes over, as comments; nothing
/// for an experiment without either.
fn mixture(loaded: Loaded) -> String {
    let of_sources = !loaded.experiment.data.mix.is_empty();
    let said = match facts(loaded) {
        None => return String::new(),
        Some(Err(problem)) => problem,
        Some(Ok(DataFacts { sources, passed_over, .. })) => {
            let lines: Vec<String> = sources.iter().map(SourceUse::to_string).chain(passed_over).collect();
            lines.join("\n")
        }
    };
    let title = if of_sources { "# The run reads of the sources:\n" } else { "" };
    said.lines().fold(format!("\n{title}"), |text, line| text + "# " + line + "\n")
}

fn in_json(loaded: Loaded) -> serde_json::Value {
    let (mut json, of_sources) = (loaded.to_json(), !loaded.experiment.data.mix.is_empty());
    match facts(loaded) {
        None => {}
        Some(Ok(facts)) => {
            if of_sources {
                json["sources"] = serde_json::json!(facts.sources);
            }
            if let Some(passed_over) = facts.passed_over {
                json["passed_over"] = passed_over.into();
            }
        }
        Some(Err(problem)) => json["sources"] = serde_json::json!({ "problem": problem }),
    }
    json
}

/// What is known of the data, or why nothing is; none without a mixture or an offset, where nobody asks.
fn facts(mut loaded: Loaded) -> Option<Result<DataFacts, String>> {
    if loaded.experiment.data.mix.is_empty() && loaded.experiment.data.offset == 0 {
        return None;
    }
    Some(match DataFacts::look(&mut loaded) {
        Ok(DataFacts { problem: Some(problem), .. }) => Err(format!("not known: {problem}")),
        Ok(facts) => Ok(facts),
        Err(error) => Err(error.to_string()),
    })
}

fn explain(asked: &str, args: &Args) -> anyhow::Result<String> {
    let reference = match asked {
        "" => KeysReference::all(),
        asked => KeysReference::find(asked).map_err(|error| UsageError(error.to_string()))?,
    };
    Ok(if args.json {
        serde_json::to_string_pretty(&reference)? + "\n"
    } else if args.markdown {
        reference.markdown()
    } else if asked.is_empty() {
        reference.overview() + "`runner config --explain KEY` tells all of a key or a section.\n"
    } else {
        reference.in_full()
    })
}
