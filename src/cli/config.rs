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
    /// The experiment's TOML file
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
    #[arg(long, requires = "explain", conflicts_with = "json")]
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

/// What the run reads of each source of a mixture, as comments; nothing for an experiment without one.
fn mixture(loaded: Loaded) -> String {
    let lines: Vec<String> = match sources(loaded) {
        None => return String::new(),
        Some(Ok(sources)) => sources.iter().map(SourceUse::to_string).collect(),
        Some(Err(problem)) => problem.lines().map(str::to_owned).collect(),
    };
    lines
        .into_iter()
        .fold("\n# The run reads of the sources:\n".to_owned(), |text, line| text + "# " + &line + "\n")
}

fn in_json(loaded: Loaded) -> serde_json::Value {
    let mut json = loaded.to_json();
    match sources(loaded) {
        None => {}
        Some(Ok(sources)) => json["sources"] = serde_json::json!(sources),
        Some(Err(problem)) => json["sources"] = serde_json::json!({ "problem": problem }),
    }
    json
}

/// The same with the data at hand, or why it is not known; none without a mixture.
fn sources(mut loaded: Loaded) -> Option<Result<Vec<SourceUse>, String>> {
    if loaded.experiment.data.mix.is_empty() {
        return None;
    }
    Some(match DataFacts::look(&mut loaded) {
        Ok(DataFacts { problem: Some(problem), .. }) => Err(format!("not known: {problem}")),
        Ok(facts) => Ok(facts.sources),
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
