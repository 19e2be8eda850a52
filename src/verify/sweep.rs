//! A sweep checked member by member, its lock held to them; and the first member in which two sweeps differ.

use std::fmt;
use std::path::Path;

use anyhow::ensure;

use super::diff::Diff;
use super::{Checks, Status, files};
use crate::experiment::{self, Sweep, settings_text};
use crate::proof::lock::{Lock, Table, differences};
use crate::proof::{Hash, SweepLock, ledger};
use crate::run::lock::list;
use crate::run::messages::Report;
use crate::run::sweep::{require_declared, require_no_drift, row};
use crate::store::{MemberFolder, RunPaths, SweepPaths, sweep_folder};
use crate::units::{have, noun};

/// Checks every member of the sweep in `folder` as a run is checked, and the sweep's lock. `expected` is the
/// hash of the sweep, kept elsewhere.
///
/// # Errors
/// The declaration cannot be read.
pub fn verify(
    folder: &Path,
    expected: Option<Hash>,
    checks: &mut Checks<'_>,
    report: Report,
) -> anyhow::Result<()> {
    let paths = SweepPaths::new(folder);
    let declared = experiment::load_recorded_sweep(&paths.declaration())?;
    let members = sweep_folder::members(folder)?;
    for member in &members {
        verify_member(member, &declared, checks, report)?;
    }
    for name in sweep_folder::undeclared(folder, members.len())? {
        checks.skipped("beside the members", format!("the sweep declares no `{name}`, which is not read"));
    }
    let found = lock(&paths, &members, checks);
    match (expected, found) {
        (None, _) => {}
        (Some(expected), Some(hash)) if hash == expected => {
            checks.passed("expected", "it is the hash of the sweep");
        }
        (Some(expected), Some(hash)) => {
            checks.failed("expected", format!("the hash of the sweep is {hash}, not {expected}"));
        }
        (Some(_), None) => checks.failed("expected", "not compared: the sweep has no hash yet"),
    }
    Ok(())
}

/// One line for a member whose checks have all passed; else a line for each that has not.
fn verify_member(
    member: &MemberFolder,
    declared: &Sweep,
    checks: &mut Checks<'_>,
    report: Report,
) -> anyhow::Result<()> {
    let name = &member.name;
    let paths = RunPaths::new(&member.folder);
    let experiment = paths.experiment();
    if paths.lack_experiment() {
        let (gone, folder) = (experiment.display(), member.folder.display());
        let what = format!(
            "`{gone}` is gone, of a run that has begun\n  do: restore it from a copy; or move `{folder}` \
             away, and `runner resume` of the sweep trains the member anew"
        );
        checks.failed(name, what);
        return Ok(());
    }
    if !experiment.is_file() {
        checks.skipped(name, format!("it has not begun: {}", settings_text(&member.settings)));
        return Ok(());
    }
    let run = match experiment::load_recorded(&experiment) {
        Ok(run) => run,
        Err(why) => {
            checks.failed(name, why.to_string().trim_start_matches("error: "));
            return Ok(());
        }
    };
    let mut unseen = |_: &_| {};
    let mut own = Checks::new(&mut unseen);
    files::verify(&member.folder, &mut own, report)?;
    if let Err(why) = require_declared(&run.experiment, &declared.members[member.number - 1].loaded) {
        own.failed("declaration", why.to_string());
    }
    // What is wrong with a ledger was said.
    if let Ok((_, entries)) = ledger::read(&paths.ledger())
        && let Err(why) = require_no_drift(&entries)
    {
        own.failed("declaration", why.to_string());
    }
    let passed = own.all_passed();
    let made = own.into_made();
    let count = made.iter().filter(|check| check.status == Status::Passed).count();
    for check in made.into_iter().filter(|check| check.status != Status::Passed) {
        checks.add(check.status, &format!("{name}: {}", check.name), check.detail);
    }
    if passed {
        checks.passed(name, format!("{count} {}: {}", noun(count, "check"), settings_text(&member.settings)));
    }
    Ok(())
}

/// Holds the sweep's lock to its members; the hash that they give, when all have ended.
fn lock(paths: &SweepPaths, members: &[MemberFolder], checks: &mut Checks<'_>) -> Option<Hash> {
    const CHECK: &str = "sweep.lock";
    let mut rows = Vec::new();
    let mut unended = Vec::new();
    for member in members {
        match row(member) {
            Ok(row) => rows.push(row),
            Err(why) => unended.push((member.name.as_str(), why.to_string())),
        }
    }
    let path = paths.lock_file();
    if let Some((name, why)) = unended.first() {
        let (open, all) = (unended.len(), members.len());
        let what = format!("{open} of {all} {} {} not ended; {name}: {why}", noun(all, "member"), have(open));
        if path.exists() {
            checks.failed(CHECK, what)
        } else {
            checks.skipped(CHECK, what)
        }
        return None;
    }
    let found = SweepLock { members: rows };
    let hash = found.hash();
    match path.exists().then(|| SweepLock::read(&path)) {
        None => checks.skipped(CHECK, format!("there is none yet, `runner resume` writes it; hash {hash}")),
        Some(Err(why)) => checks.failed(CHECK, why.to_string()),
        Some(Ok(kept)) if kept == found => {
            checks.passed(CHECK, format!("{} {}, hash {hash}", members.len(), noun(members.len(), "member")));
        }
        Some(Ok(kept)) => checks.failed(CHECK, changed(&kept, &found)),
    }
    Some(hash)
}

/// The first member of a lock that is not what the folders give.
fn changed(kept: &SweepLock, found: &SweepLock) -> String {
    let none = Table::new();
    let rows = |at: usize| (kept.members.get(at).unwrap_or(&none), found.members.get(at).unwrap_or(&none));
    let count = kept.members.len().max(found.members.len());
    let first = (0..count).find(|at| rows(*at).0 != rows(*at).1).unwrap_or_default();
    let (was, is) = rows(first);
    format!("member {} is not what was locked:{}", first + 1, list(&differences(was, is)))
}

/// How two sweeps differ.
#[derive(Debug)]
pub struct SweepDiff {
    /// Members of both.
    pub members: (usize, usize),
    /// How many of them have begun in both and are equal.
    pub equal: usize,
    /// How many of these have not ended.
    pub open: usize,
    pub first: Option<MemberDiff>,
}

/// The first member that differs.
#[derive(Debug)]
pub struct MemberDiff {
    pub number: usize,
    /// As text; none where the sweep has no such member.
    pub settings: (Option<String>, Option<String>),
    /// Its runs compared, where the settings are equal and both have begun.
    pub diff: Option<Diff>,
}

impl SweepDiff {
    /// Compares the members of two sweeps in the order of their numbers, up to the first that differs.
    ///
    /// # Errors
    /// A declaration or a file of a run is damaged; no member has begun.
    pub fn of(a: &Path, b: &Path) -> anyhow::Result<SweepDiff> {
        let [ours, theirs] = [sweep_folder::members(a)?, sweep_folder::members(b)?];
        let members = (ours.len(), theirs.len());
        let (mut equal, mut open) = (0, 0);
        for at in 0..ours.len().max(theirs.len()) {
            match MemberDiff::of(at + 1, ours.get(at), theirs.get(at))? {
                Ok(compared) => {
                    equal += usize::from(compared);
                    open += usize::from(compared && !ours.get(at).is_some_and(has_ended));
                }
                Err(first) => return Ok(SweepDiff { members, equal, open, first: Some(first) }),
            }
        }
        ensure!(
            equal > 0,
            "no member of `{}` and `{}` has begun: there is nothing to compare",
            a.display(),
            b.display()
        );
        Ok(SweepDiff { members, equal, open, first: None })
    }
}

/// Whether the lock of a member has its outputs.
fn has_ended(member: &MemberFolder) -> bool {
    Lock::read(&RunPaths::new(&member.folder).lock_file()).is_ok_and(|lock| !lock.outputs.is_empty())
}

impl MemberDiff {
    /// Whether a member has begun in both sweeps, and then is equal; or how it differs.
    fn of(
        number: usize,
        a: Option<&MemberFolder>,
        b: Option<&MemberFolder>,
    ) -> anyhow::Result<Result<bool, MemberDiff>> {
        let text = |member: Option<&MemberFolder>| member.map(|member| settings_text(&member.settings));
        let settings = (text(a), text(b));
        let (Some(a), Some(b)) = (a, b) else { return Ok(Err(MemberDiff { number, settings, diff: None })) };
        let begun = |member: &MemberFolder| RunPaths::new(&member.folder).ledger().is_file();
        if settings.0 != settings.1 || begun(a) != begun(b) {
            return Ok(Err(MemberDiff { number, settings, diff: None }));
        }
        if !begun(a) {
            return Ok(Ok(false));
        }
        let diff = Diff::of(&a.folder, &b.folder)?;
        let same = diff.same_bits() && diff.same_length();
        Ok(if same { Ok(true) } else { Err(MemberDiff { number, settings, diff: Some(diff) }) })
    }
}

impl fmt::Display for SweepDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(MemberDiff { number, settings, diff }) = &self.first else {
            let (members, equal) = (self.members.0, self.equal);
            match members - equal {
                0 => write!(f, "members: {members}, all equal")?,
                missing => {
                    let have = have(missing);
                    write!(f, "members: {members}, {equal} equal, {missing} {have} begun in neither")?;
                }
            }
            return match self.open {
                0 => writeln!(f),
                open => writeln!(f, "; {open} of them {} not ended", have(open)),
            };
        };
        writeln!(f, "member {number} is the first that differs")?;
        match (settings, diff) {
            ((Some(a), Some(b)), None) if a == b => {
                writeln!(f, "  {a}\n  only one of the two has begun")
            }
            ((a, b), None) => {
                let text =
                    |settings: &Option<String>| settings.clone().unwrap_or_else(|| "no such member".into());
                writeln!(f, "  settings: {}\n  and:      {}", text(a), text(b))
            }
            ((a, _), Some(diff)) => {
                write!(f, "  {}\n{diff}", a.clone().unwrap_or_default())
            }
        }
    }
}

/// Reads the hash of the sweep in `folder` from its lock, if it has one that is whole.
pub fn kept_hash(folder: &Path) -> Option<Hash> {
    let path = SweepPaths::new(folder).lock_file();
    SweepLock::read(&path).ok().map(|lock| lock.hash())
}
