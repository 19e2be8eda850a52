//! `runner report`: a run as one HTML page.

use std::path::PathBuf;

use super::reporter::reporter;
use super::streams::{self, say};
use crate::report::html::{HtmlPage, Status};
use crate::run::{find, require_usage};
use crate::store::RunPaths;
use crate::store::output::{self, OutputKind};
use crate::units;
use crate::verify::{Checks, files, promises};

/// Write a run as one self-contained HTML page.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder; the newest run by default
    run: Option<PathBuf>,
    /// The page [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Check nothing: `runner verify` reads every byte of checkpoints and data, which takes long for a large
    /// run
    #[arg(long)]
    no_verify: bool,
    /// Folder that holds the run folders
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Writes the page, and prints its path to stdout. Damage is shown on the page and is no failure of this
/// verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(out) = &args.out {
        let is_page = out.extension().is_some_and(|ending| ["html", "htm"].iter().any(|it| ending == *it));
        // A device, such as `/dev/stdout`, has no ending.
        let is_device = std::fs::metadata(out).is_ok_and(|found| !found.is_file() && !found.is_dir());
        require_usage(is_page || is_device, || {
            format!("`{}` does not end in .html, and a report is a page in HTML", out.display())
        })?;
    }
    let folder = find::find(args.run.as_deref(), &args.runs)?;
    let out = args.out.unwrap_or_else(|| RunPaths::new(&folder).report());
    output::require(&out, OutputKind::Page)?;
    let checks = if args.no_verify {
        promises::unchecked(&folder)
    } else {
        say!("checking every byte of {} (`--no-verify` leaves that out)", folder.display());
        let mut silent = |_: &_| {};
        let mut checks = Checks::new(&mut silent);
        files::verify(&folder, &mut checks, reporter(false))?;
        checks.into_made()
    };
    let checks = promises::of_run(checks, &folder)?;
    let failed = checks.iter().filter(|check| check.status == Status::Failed).count();
    let page = HtmlPage::gather(&folder, checks)?.render()?;
    require_usage(folder.is_dir(), || format!("`{}` is not there any more", folder.display()))?;
    output::write(&out, page.as_bytes(), OutputKind::Page)?;
    if failed > 0 {
        let checks = units::noun(failed, "check");
        say!("{failed} {checks} failed: `runner verify {}` says more", folder.display());
    }
    streams::print(&format!("{}\n", out.display()))
}
