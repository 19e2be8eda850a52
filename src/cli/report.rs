//! `runner report`: a run as one HTML page.

use std::path::{Path, PathBuf};

use super::{run_argument, verify};
use crate::report::html::{Check, Page, Status};
use crate::store::{RunPaths, atomic};

/// Write a run as one HTML page that needs nothing else.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder; the newest run by default
    run: Option<PathBuf>,
    /// The page [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Check nothing: `runner verify` reads every byte of checkpoints and data, which takes long for a large run
    #[arg(long)]
    no_verify: bool,
    /// Folder that holds the run folders
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Writes the page, and prints its path to stdout. Damage is on the page, and no failure of this verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    let folder = run_argument::find(args.run.as_deref(), &args.runs)?;
    let mut checks = if args.no_verify { unchecked(&folder) } else { verify::files_of(&folder)? };
    checks.extend(beyond_files(&folder));
    let failed = checks.iter().filter(|check| check.status == Status::Failed).count();
    let page = Page::gather(&folder, checks)?.render()?;
    let out = args.out.unwrap_or_else(|| RunPaths::new(&folder).report());
    atomic::write(&out, page.as_bytes())?;
    if failed > 0 {
        anstream::eprintln!("{failed} checks failed: `runner verify {}` says more", folder.display());
    }
    println!("{}", out.display());
    Ok(())
}

fn unchecked(folder: &Path) -> Vec<Check> {
    let check = |name: &str, command: &str| Check {
        status: Status::NotChecked,
        name: name.into(),
        detail: format!("runner {command} {}", folder.display()),
    };
    vec![check("files against checkpoints, ledger, lock, metrics and data", "verify")]
}

/// The promises that no file can show: each with the command that checks it.
fn beyond_files(folder: &Path) -> [Check; 2] {
    let open = |name: &str, detail: String| Check { status: Status::NotChecked, name: name.into(), detail };
    [
        open("trained again, it gives the same bits", format!("runner verify {} --replay 0..STEP", folder.display())),
        open(
            "killed and resumed, it ends in the same bits",
            "runner verify EXPERIMENT --twice, with the experiment's file".into(),
        ),
    ]
}
