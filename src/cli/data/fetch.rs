//! `runner data fetch`: fetches a data set to where the experiments look for it, and prints what to do next.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, ValueEnum};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::prepare::encode;
use crate::cli::exit;
use crate::cli::numbers::{from_one, from_zero};
use crate::cli::streams::{self, say};
use crate::data::Tokenizer;
use crate::data::fetch::{
    DataSet, Endpoints, FetchEvent, FetchRecord, FetchRequest, Fetched, Patience, RemoteFile, fetch,
};
use crate::data::prepare::{Input, PrepareOptions, ValSplit, is_shard_name};
use crate::experiment;
use crate::run::require_usage;
use crate::store::output;
use crate::units;

#[derive(Debug, Args)]
pub struct FetchArgs {
    /// What to fetch
    #[arg(value_enum, value_name = "DATA_SET")]
    data_set: DataSetArg,
    /// Fetch the first N files of the set [default: 100 of fineweb-edu-100b, all 14 of fineweb-edu]
    #[arg(long, value_name = "N", value_parser = from_zero::<usize>)]
    shards: Option<usize>,
    /// Folder for the data; the experiments look in `data`
    #[arg(short, long, value_name = "DIR", default_value = "data")]
    out: PathBuf,
    /// Commit, branch or tag [default: what was fetched into the folder before, else the set's own]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Files at a time
    #[arg(long, value_name = "N", default_value = "4", value_parser = from_one::<std::num::NonZeroUsize>)]
    parallel: std::num::NonZeroUsize,
    /// Leave the text of fineweb-edu as it is, instead of encoding it into token shards
    #[arg(long)]
    no_prepare: bool,
    /// Print the files as JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DataSetArg {
    /// FineWeb-Edu as GPT-2 tokens: 1000 shards of 100 M tokens (200 MB) each, and one to validate on
    #[value(name = "fineweb-edu-100b")]
    FinewebEdu100b,
    /// FineWeb-Edu's sample of 10 B tokens as text: 14 Parquet files, 29 GB, encoded into token shards
    FinewebEdu,
    /// The 10,042 validation tasks of HellaSwag, 12 MB
    #[value(name = "hellaswag")]
    HellaSwag,
    /// Plays by Shakespeare, 1.1 MB of text
    #[value(name = "tinyshakespeare")]
    TinyShakespeare,
}

impl From<DataSetArg> for DataSet {
    fn from(arg: DataSetArg) -> DataSet {
        match arg {
            DataSetArg::FinewebEdu100b => DataSet::FineWebEdu100B,
            DataSetArg::FinewebEdu => DataSet::FineWebEdu,
            DataSetArg::HellaSwag => DataSet::HellaSwag,
            DataSetArg::TinyShakespeare => DataSet::TinyShakespeare,
        }
    }
}

/// Runs `runner data fetch …`.
pub fn run(args: FetchArgs) -> anyhow::Result<()> {
    let data_set = DataSet::from(args.data_set);
    let files = data_set.files(args.shards)?;
    let request = FetchRequest {
        data_set,
        files,
        out: args.out.clone(),
        revision: args.revision.clone(),
        endpoints: Endpoints::from_variables(|name| std::env::var(name).ok())?,
        parallel: args.parallel.get(),
        patience: Patience::default(),
    };
    if data_set == DataSet::FineWebEdu && !args.no_prepare {
        require_no_shards(&args.out)?;
        output::require_folder(&args.out)?;
    }
    let missing = request.files.iter().map(|file| args.out.join(&file.name)).find(|path| !path.exists());
    missing.iter().try_for_each(|path| output::require_folder(path.parent().unwrap_or(path)))?;
    let (stop, mut handlers) = (Arc::new(AtomicBool::new(false)), Vec::new());
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // The first signal requests a stop, a second ends the process; either way a part is left on disk.
        let shutdown = i32::from(exit::INTERRUPTED);
        handlers.push(signal_hook::flag::register_conditional_shutdown(signal, shutdown, stop.clone())?);
        handlers.push(signal_hook::flag::register(signal, stop.clone())?);
    }
    let (host, repository) = data_set.repository();
    let count = units::counted(request.files.len() as u64, "file");
    say!("{}: {count} of {repository} ({host:?}) into {}", data_set.name(), args.out.display());
    let screen = Screen::new(&request.files);
    let fetched = fetch(&request, &stop, |index, event| screen.show(index, &event));
    screen.clear();
    let fetched = fetched?;
    print(&fetched, args.json)?;
    summarize(&request, &fetched);
    if data_set == DataSet::FineWebEdu && !args.no_prepare {
        // Nobody looks at the flag any more: encoding has handlers of its own.
        for handler in handlers {
            signal_hook::low_level::unregister(handler);
        }
        let table = prepare(&args.out, &fetched)?;
        if args.json {
            // Stdout has the files, as JSON.
            say!("{}", table.trim_end());
        } else {
            streams::print(&table)?;
        }
    }
    for line in next(data_set, &args, &fetched) {
        say!("next: {line}");
    }
    Ok(())
}

/// Bars on a terminal: all files, and each one under way. Elsewhere a line for each finished file.
struct Screen {
    names: Vec<String>,
    bars: Option<Bars>,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    open: Mutex<BTreeMap<usize, ProgressBar>>,
}

impl Screen {
    fn new(files: &[RemoteFile]) -> Screen {
        let bars = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let total = all.add(ProgressBar::new(files.len() as u64));
            total.set_style(style("{pos}/{len} files {wide_bar} {elapsed}"));
            total.tick();
            Bars { all, total, open: Mutex::new(BTreeMap::new()) }
        });
        Screen { names: files.iter().map(|file| file.name.clone()).collect(), bars }
    }

    fn show(&self, index: usize, event: &FetchEvent<'_>) {
        let name = &self.names[index];
        match event {
            FetchEvent::Retry { error, wait_s } => self.line(&format!("{error}; trying again in {wait_s} s")),
            FetchEvent::Done(file) if self.bars.is_none() && !file.was_there => {
                self.line(&format!("{name}  {}  {}", units::bytes(file.bytes), how(file)));
            }
            _ => {}
        }
        let Some(bars) = &self.bars else { return };
        let mut open = bars.open.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let bar = bars.all.insert_before(&bars.total, ProgressBar::new(0));
            bar.set_style(style("{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}"));
            bar.with_prefix(name.clone())
        };
        match event {
            FetchEvent::Started { have_bytes, total_bytes } => {
                let bar = open.entry(index).or_insert_with(new);
                bar.set_length(total_bytes.unwrap_or(0));
                bar.set_position(*have_bytes);
                bar.reset_eta();
            }
            FetchEvent::Received(bytes) => {
                if let Some(bar) = open.get(&index) {
                    bar.inc(*bytes);
                }
            }
            FetchEvent::Checking => {
                if let Some(bar) = open.get(&index) {
                    bar.set_message("checking");
                }
            }
            FetchEvent::Retry { .. } => {}
            FetchEvent::Done(_) => {
                if let Some(bar) = open.remove(&index) {
                    bar.finish_and_clear();
                    bars.all.remove(&bar);
                }
                bars.total.inc(1);
            }
        }
    }

    /// A line above the bars.
    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.all.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            // A closed terminal is ignored.
            let _ = bars.all.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// How a file's bytes were checked.
fn how(file: &Fetched) -> &'static str {
    match (file.verified, file.was_there) {
        (true, _) => "SHA-256 as published",
        (false, false) => "checked by length and format",
        (false, true) => "was there; checked by format",
    }
}

/// The files on stdout.
fn print(fetched: &[Fetched], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let file = |file: &Fetched| {
            json!({
                "path": units::path_text(&file.path), "bytes": file.bytes, "sha256": file.sha256,
                "verified": file.verified, "was_there": file.was_there,
            })
        };
        let files = serde_json::Value::from(fetched.iter().map(file).collect::<Vec<_>>());
        return streams::print(&format!("{files}\n"));
    }
    let paths: String = fetched.iter().map(|file| format!("{}\n", file.path.display())).collect();
    streams::print(&paths)
}

fn summarize(request: &FetchRequest, fetched: &[Fetched]) {
    let bytes: u64 = fetched.iter().map(|file| file.bytes).sum();
    let there = fetched.iter().filter(|file| file.was_there).count();
    let verified = fetched.iter().filter(|file| file.verified).count();
    let checked = match (verified, fetched.len() - verified) {
        (_, 0) => "each with its published SHA-256".to_owned(),
        (0, _) if there == fetched.len() => "checked by length and format".to_owned(),
        (0, _) => "checked by length and format; no digest was published".to_owned(),
        (verified, rest) => {
            format!("{verified} with their published SHA-256, {rest} checked by length and format")
        }
    };
    let were_there = if there > 0 { format!(", {there} of them were there") } else { String::new() };
    say!("{}, {}{were_there}; {checked}", units::counted(fetched.len() as u64, "file"), units::bytes(bytes));
    if let Some(record) = FetchRecord::read(&request.out, request.data_set.name()) {
        let path = FetchRecord::path(&request.out, request.data_set.name());
        say!("revision {}, recorded in {}", record.revision, path.display());
    }
}

/// How the names of FineWeb-Edu's shards begin, which the experiments look for.
const SHARDS: &str = "edu_fineweb";

/// What [`prepare`] writes has a name of its own: found out before anything is downloaded.
fn require_no_shards(out: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let is_shard = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| is_shard_name(name, SHARDS))
    };
    let shard = entries.map(|entry| entry.path()).find(is_shard);
    require_usage(shard.is_none(), || {
        format!(
            "`{}` is there already, and the text would be encoded into shards of these names\n  hint: \
             `--no-prepare` fetches the text alone, `--out` names another folder",
            shard.unwrap_or_default().display()
        )
    })?;
    Ok(())
}

/// Encodes the text of FineWeb-Edu under the names that the experiments look for: the first 100 M tokens to
/// validate on, then shards of 100 M.
fn prepare(out: &Path, fetched: &[Fetched]) -> anyhow::Result<String> {
    say!("encoding {} into shards", units::counted(fetched.len() as u64, "file"));
    let inputs = fetched.iter().map(|file| Input::file(&file.path, None)).collect::<Result<Vec<_>, _>>()?;
    let options = PrepareOptions {
        val: ValSplit::Tokens(100_000_000),
        ..PrepareOptions::new(out, SHARDS, Tokenizer::new(experiment::Tokenizer::Gpt2))
    };
    encode(&inputs, &options)
}

/// The command to run next.
fn next(data_set: DataSet, args: &FetchArgs, fetched: &[Fetched]) -> Vec<String> {
    let out = args.out.display();
    let elsewhere = args.out != Path::new("data");
    let run = |experiment: &str| {
        let shards = format!(
            " --set 'data.train={out}/edu_fineweb_train_*.bin' --set 'data.val={out}/edu_fineweb_val_*.bin'"
        );
        format!("runner run {experiment}{}", if elsewhere { &shards } else { "" })
    };
    match data_set {
        // The headline run reads 33.6 B tokens once.
        DataSet::FineWebEdu100B if fetched.len() > 336 => {
            vec![format!("runner data fetch hellaswag --out {out}"), run("gpt2_33b")]
        }
        DataSet::FineWebEdu100B => vec![run("gpt2_124m")],
        DataSet::FineWebEdu if args.no_prepare => {
            vec![format!("runner data prepare --out {out} {out}/fineweb-edu/*.parquet")]
        }
        DataSet::FineWebEdu => vec![run("gpt2_124m")],
        DataSet::HellaSwag => {
            vec![format!("runner eval RUN --task hellaswag --data {out}/hellaswag_val.jsonl")]
        }
        DataSet::TinyShakespeare => vec![
            format!(
                "runner data prepare --tokenizer byte --val-fraction 0.1 --out {out} \
                 {out}/tinyshakespeare.txt"
            ),
            format!(
                "runner run quickstart --name tinyshakespeare --set \
                 'data.train={out}/tinyshakespeare_train_*.bin' --set \
                 'data.val={out}/tinyshakespeare_val_*.bin'"
            ),
        ],
    }
}
