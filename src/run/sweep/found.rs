//! What a sweep's folder holds of each member: nothing, a run to go on with, or one that is finished and
//! agrees with itself.

use crate::experiment::{self, Experiment, Loaded, Member, names_files};
use crate::proof::lock::{Lock, Table};
use crate::proof::{Entry, ledger};
use crate::run::error::refuse_lock;
use crate::run::messages::Report;
use crate::run::resume;
use crate::store::derived::{self, Reach};
use crate::store::metrics::REBUILD;
use crate::store::{MemberFolder, RunPaths};

/// What is there of a member.
pub(super) enum FoundMember {
    Missing,
    /// A run that has steps left, or whose files a resume must judge.
    Begun,
    /// Its row in the sweep's lock.
    Finished(Table),
    /// Something else than the sweep's member, or a finished run whose files disagree.
    Refused(String),
}

/// Looks at a member. A finished one is checked: newest checkpoint, ledger, lock and metrics.
pub(super) fn find(member: &MemberFolder, declared: &Member, report: Report) -> FoundMember {
    let paths = RunPaths::new(&member.folder);
    if !paths.experiment().exists() {
        return FoundMember::Missing;
    }
    match checked(&paths, member, declared, report) {
        Ok(Some(row)) => FoundMember::Finished(row),
        Ok(None) => FoundMember::Begun,
        Err(why) => FoundMember::Refused(format!("{why:#}")),
    }
}

fn checked(
    paths: &RunPaths,
    member: &MemberFolder,
    declared: &Member,
    report: Report,
) -> anyhow::Result<Option<Table>> {
    let loaded = experiment::load_recorded(&paths.experiment())?;
    require_declared(&loaded.experiment, &declared.loaded)?;
    if resume::finished(paths, &loaded, None, false, report)?.is_none() {
        return Ok(None);
    }
    let (_, entries) = ledger::read(&paths.ledger())?;
    require_no_drift(&entries)?;
    let reach = Reach { saved: loaded.experiment.schedule.steps, ended: true, running: false };
    let faults = derived::check(paths, &entries, reach).into_iter().filter_map(|(_, found)| found.err());
    if let Some(fault) = faults.into_iter().next() {
        anyhow::bail!("{fault}\n  hint: {REBUILD}");
    }
    row(member).map(Some)
}

/// Refuses a run whose keys give other bits than the sweep's member has.
///
/// # Errors
/// A key that reaches the bits has another value.
pub fn require_declared(run: &Experiment, declared: &Loaded) -> anyhow::Result<()> {
    experiment::other_bits(run, declared).map_or(Ok(()), |(key, has, asked)| {
        anyhow::bail!(
            "its experiment has `{key}` = {has}, the sweep declares {asked}\n  hint: it was changed after \
             the sweep began; move its folder away, and `runner resume` trains the member anew"
        )
    })
}

/// Refuses a run that went on under other settings, even if it came back to those that the sweep declares.
///
/// # Errors
/// The first step before which they were changed.
pub fn require_no_drift(entries: &[Entry]) -> anyhow::Result<()> {
    let drifted = entries.iter().find(|entry| entry.drifts().next().is_some());
    drifted.map_or(Ok(()), |entry| {
        anyhow::bail!(
            "it went on under other settings from step {} on (`--allow-drift`), which the sweep does not \
             declare\n  hint: move its folder away, and `runner resume` trains the member anew",
            entry.step
        )
    })
}

/// What the sweep's lock says of a finished member: number, settings, numerics and outputs. The value of a
/// key that names files is left out: what they hold is in the numerics, under the same names anywhere.
///
/// # Errors
/// The member has not begun, or its experiment is gone; its lock is missing, damaged, or of a run that has
/// not ended.
pub fn row(member: &MemberFolder) -> anyhow::Result<Table> {
    let paths = RunPaths::new(&member.folder);
    let (experiment, path) = (paths.experiment(), paths.lock_file());
    let shown = experiment.display();
    anyhow::ensure!(!paths.lack_experiment(), "`{shown}` is gone, of a run that has begun");
    anyhow::ensure!(experiment.is_file(), "there is no `{shown}`: the run has not begun");
    let lock = Lock::read(&path).map_err(refuse_lock)?;
    let mut row = Table::from([
        ("number".to_owned(), member.number.to_string()),
        ("numerics_id".to_owned(), lock.numerics_id().to_string()),
    ]);
    for key in ["step", "state_root", "end_size", "end_root"] {
        let Some(output) = lock.outputs.get(key) else {
            anyhow::bail!("`{}` has no output `{key}`: the run has not ended", path.display());
        };
        row.insert(key.to_owned(), output.clone());
    }
    for (key, value) in member.settings.iter().filter(|(key, _)| !names_files(key)) {
        row.insert(format!("setting.{key}"), value.clone());
    }
    Ok(row)
}
