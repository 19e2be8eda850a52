//! What audits kept of a run (`docs/audit.md`), computed again in the mirror: the arithmetic of a GPU checked
//! without one.
//!
//! Nothing in a file is believed. Its matrices lead to the root in the ledger's entry of the step, its state
//! to the roots of the steps before and after; what must be in it is drawn again from the ledger; and which
//! operation reads what follows from the experiment.

use std::collections::{BTreeMap, BTreeSet};

use self::step::Step;
use super::files::WholeRun;
use super::{Checks, lock};
use crate::experiment::{Experiment, OptimizerKind};
use crate::model::{ParamSpec, Weights};
use crate::ops::Role;
use crate::ops::mirror::Mirror;
use crate::proof::ledger::RESUME;
use crate::proof::tree::{Frontier, tree_root};
use crate::proof::{Action, Entry, Head};
use crate::rng::Key;
use crate::run::messages::{LongWork, Report};
use crate::run::{UsageError, locked};
use crate::store::audit::{self, AuditFile};
use crate::train::audit::draw::{self, Drawn, ParamBlock, Terms, TracedPass};
use crate::train::state;
use crate::units::{self, noun, were};

mod contents;
mod step;
#[cfg(test)]
mod tests;

/// How many parts are checked, and which.
#[derive(Clone, Copy, Debug)]
pub struct AuditOptions {
    pub count: usize,
    pub seed: u64,
}

/// The largest `proof.audit_pieces`.
const MOST_PIECES: usize = 1 << 16;

/// What is wrong with an audit, in words.
type AuditFault = String;

/// One part that an audit kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeptPart {
    Excerpt(Drawn),
    Update(ParamBlock),
}

/// A run and its audited steps.
struct Audited {
    run: WholeRun,
    /// The ledger's head before each entry, and after the last.
    heads: Vec<Head>,
    specs: Weights<ParamSpec>,
    /// Names of the state's tensors, rising.
    names: Vec<String>,
    mirror: Mirror,
}

/// Draws parts of what the run's audits kept and computes them again.
pub fn verify(
    run: WholeRun,
    options: AuditOptions,
    checks: &mut Checks<'_>,
    report: Report,
) -> anyhow::Result<()> {
    if !locked::is_mirrored(&run.lock.numerics) {
        let what = match run.entries.iter().any(|entry| entry.audit.is_some()) {
            true => "the mirror does not have the arithmetic of this run",
            false => "this run kept no audits, and could not: they are of a Hopper GPU's arithmetic",
        };
        let hint = "hint: `runner verify RUN --replay A..B` checks it on its own device";
        return Err(UsageError(format!("{what}\n  {hint}")).into());
    }
    let drift = lock::last_drift(run.log.notes(), &run.entries, &run.lock).before;
    let with_audit = |at: &usize| run.entries[*at].audit.is_some();
    let (before, steps): (Vec<usize>, Vec<usize>) =
        (0..run.entries.len()).filter(with_audit).partition(|at| run.entries[*at].step < drift);
    if steps.is_empty() {
        return Err(UsageError(format!(
            "no step in the ledger has an audit{}, so nothing was kept to compute again\n  \
             hint: set `proof.audit_every`, such as to 1000, when a run starts; step 0 has none",
            if before.is_empty() { "" } else { " since the run went on with other numerics" }
        ))
        .into());
    }
    undrawn(&run, &before, drift, checks);
    let is_here = |at: &usize| audit::path(&run.paths, run.entries[*at].step).is_file();
    let (steps, gone): (Vec<usize>, Vec<usize>) = steps.into_iter().partition(is_here);
    if !gone.is_empty() {
        let gone = gone.iter().map(|at| run.entries[*at].step.to_string()).collect::<Vec<_>>().join(", ");
        checks.skipped("audits", format!("of the steps {gone} no file is here: not drawn"));
    }
    if steps.is_empty() {
        let what = "no file of an audit is here, so nothing can be computed again\n  \
                    hint: `runner verify RUN --replay A..B` makes steps again";
        return Err(UsageError(what.into()).into());
    }
    let mut audited = Audited::of(run)?;
    let mut kept: Vec<(usize, KeptPart)> = Vec::new();
    let (mut without_blocks, mut other_pieces) = (Vec::new(), Vec::new());
    let mut tally = Tally::default();
    let Some(steps) = of_this_format(&audited, steps, checks)? else { return Ok(()) };
    for at in &steps {
        let opened = audited.open(*at).and_then(|opened| {
            let parts = audited.parts(*at, &opened)?;
            audited.hold_to(&opened, &parts)?;
            Ok((opened, parts))
        });
        match opened {
            Ok((OpenedAudit { file, pass }, parts)) => {
                let workers = audited.experiment().parallel.workers as u64;
                tally.batches = tally.batches.max(audited.experiment().micro_steps_of(file.step) * workers);
                tally.flops_of_batches += pass.trace.operations.iter().map(|it| it.flops as f64).sum::<f64>();
                if file.pieces != audited.experiment().proof.audit_pieces as u64 {
                    other_pieces.push(format!("{} of step {}", file.pieces, file.step));
                }
                let updated = audited.run.entries[*at].action == Action::Update;
                if updated && !parts.iter().any(|part| matches!(part, KeptPart::Update(_))) {
                    without_blocks.push(audited.run.entries[*at].step.to_string());
                }
                kept.extend(parts.into_iter().map(|part| (*at, part)));
            }
            Err(fault) => {
                checks.failed(&format!("audit of step {}", audited.run.entries[*at].step), fault);
                return Ok(());
            }
        }
    }
    if !without_blocks.is_empty() {
        let steps = without_blocks.join(", ");
        let lock = &audited.run.lock;
        let never = audited.experiment().parallel.zero == 0 || audited.experiment().parallel.workers == 1;
        let on_one = lock.environment.get("ranks").is_some_and(|ranks| ranks == "1");
        if never || on_one && !audited.was_resumed() {
            let what = format!("no block was kept in the steps {steps}, and every rank had the whole state");
            checks.failed("audit of the update", what);
            return Ok(());
        }
        let what = format!(
            "no block was kept in the steps {steps}: so it is where several ranks share the optimizer's \
             state, and nowhere else. The lock says that the last start had {} of them",
            lock.environment.get("ranks").map_or("an unknown number", String::as_str)
        );
        checks.skipped("audit of the update", what);
    }
    if !other_pieces.is_empty() {
        let what = format!(
            "`proof.audit_pieces = {}`, and drawn were {}: so it is where the key was changed at a resume",
            audited.experiment().proof.audit_pieces,
            other_pieces.join(", ")
        );
        if !audited.was_resumed() {
            checks.failed("audits", format!("{what}, and the ledger has no resume"));
            return Ok(());
        }
        checks.skipped("audits", what);
    }
    let all = kept.len();
    let chosen = choose(kept, options);
    let checked = report.progress(LongWork::Auditing, chosen.len() as u64);
    for at in chosen.iter().map(|(at, _)| *at).collect::<BTreeSet<_>>() {
        let parts: Vec<KeptPart> = chosen.iter().filter(|(of, _)| *of == at).map(|(_, part)| *part).collect();
        if let Err(fault) = audited.check(at, &parts, &mut tally, &checked) {
            checks.failed(&format!("audit of step {}", audited.run.entries[at].step), fault);
            return Ok(());
        }
    }
    tally.report(&audited, steps.len(), all, options.seed, checks);
    Ok(())
}

/// The audits whose files this version reads, and says which it does not; none, and a failure, where both
/// are of one process.
///
/// # Errors
/// It reads none of them.
fn of_this_format(
    audited: &Audited,
    steps: Vec<usize>,
    checks: &mut Checks<'_>,
) -> anyhow::Result<Option<Vec<usize>>> {
    let entries = &audited.run.entries;
    let earlier = |at: &usize| audit::earlier_format(&audit::path(&audited.run.paths, entries[*at].step));
    let (others, steps): (Vec<usize>, Vec<usize>) = steps.into_iter().partition(|at| earlier(at).is_some());
    let Some(format) = others.first().and_then(earlier) else { return Ok(Some(steps)) };
    if steps.is_empty() {
        return Err(UsageError(format!(
            "all audits of this run have the format `{format}` of an earlier runner, or one before\n  \
             hint: `runner verify --audit` of the program in the lock's `[source]` checks them"
        ))
        .into());
    }
    let listed = others.iter().map(|at| entries[*at].step.to_string()).collect::<Vec<_>>().join(", ");
    let what =
        format!("of the steps {listed} have the format `{format}` of an earlier runner, or one before");
    if !audited.was_resumed() {
        checks.failed(
            "audits",
            format!(
                "{what}, others have this one's, and the ledger has no resume: one program made them all\n  \
                 do: restore `{}` from a copy",
                audited.run.paths.audits().display()
            ),
        );
        return Ok(None);
    }
    checks.skipped("audits", format!("{what}: not drawn"));
    Ok(Some(steps))
}

/// Says which audits are not drawn from, because they were made with other numerics, and which are not there.
fn undrawn(run: &WholeRun, before: &[usize], drift: u64, checks: &mut Checks<'_>) {
    let every = run.loaded.experiment.proof.audit_every;
    if !before.is_empty() {
        let (steps, were) = (noun(before.len(), "step"), were(before.len()));
        let what = format!(
            "of {} {steps} before step {drift} {were} made with other numerics: not drawn",
            before.len()
        );
        checks.skipped("audits", what);
    }
    let is_due = |entry: &&Entry| entry.loss.is_some() && entry.step >= drift && draw::due(every, entry.step);
    let missing: Vec<String> = (run.entries.iter().filter(is_due))
        .filter(|entry| entry.audit.is_none())
        .map(|entry| entry.step.to_string())
        .collect();
    if !missing.is_empty() {
        let what = format!(
            "the ledger has none of {} {} that `proof.audit_every = {every}` asks for: {}\n  \
             it has none either where the run went back, or where the key was changed at a resume",
            missing.len(),
            noun(missing.len(), "step"),
            missing.join(", ")
        );
        checks.skipped("audits", what);
    }
}

/// `count` of the parts, by the seed, in the order in which they were kept.
fn choose(mut kept: Vec<(usize, KeptPart)>, options: AuditOptions) -> Vec<(usize, KeptPart)> {
    let key = Key::new(options.seed, "verify --audit");
    for at in 0..options.count.min(kept.len()) {
        let [high, low, ..] = key.block_at(0, at as u64);
        let left = (kept.len() - at) as u128;
        let number = ((u128::from(high) << 32 | u128::from(low)) * left) >> 64;
        kept.swap(at, at + number as usize);
    }
    kept.truncate(options.count);
    kept.sort();
    kept
}

/// A file whose digests are the ledger's, and the pass that it is of.
struct OpenedAudit {
    file: AuditFile,
    pass: TracedPass,
}

impl Audited {
    fn of(run: WholeRun) -> anyhow::Result<Audited> {
        let experiment = &run.loaded.experiment;
        let mut log = Frontier::new();
        let mut heads = vec![Head { size: 0, root: log.root() }];
        for entry in &run.entries {
            log.push(entry.digest());
            heads.push(Head { size: log.size(), root: log.root() });
        }
        let specs = Weights::of(&experiment.model);
        let table = state::table(experiment, &specs, draw::dtype(Role::Param), false);
        let mut names: Vec<String> = table.into_iter().map(|row| row.name).collect();
        names.sort();
        let mirror = Mirror::new(&experiment.device)?;
        Ok(Audited { run, heads, specs, names, mirror })
    }

    fn experiment(&self) -> &Experiment {
        &self.run.loaded.experiment
    }

    /// Whether the ledger notes that the run went on in another process, perhaps with other keys.
    fn was_resumed(&self) -> bool {
        self.run.log.notes().iter().any(|note| note.kind == RESUME)
    }

    fn parameters(&self) -> Vec<&ParamSpec> {
        self.specs.iter().collect()
    }

    /// Reads the file of an entry and holds its digests to the ledger.
    fn open(&self, at: usize) -> Result<OpenedAudit, AuditFault> {
        let entry = &self.run.entries[at];
        let path = audit::path(&self.run.paths, entry.step);
        let file = AuditFile::read(&path).map_err(|why| why.to_string())?;
        if file.step != entry.step {
            return Err(format!("`{}` is of step {}", path.display(), file.step));
        }
        let pass =
            TracedPass::of(self.experiment(), entry.step, file.recompute).map_err(|why| why.to_string())?;
        let roots = [
            ("what the micro-batch computed", &file.trace, entry.audit),
            (
                "the state before the step",
                &file.states[0],
                at.checked_sub(1).and_then(|at| self.run.entries[at].root),
            ),
            ("the state after the step", &file.states[1], entry.root),
        ];
        for (what, digests, recorded) in roots {
            let root = tree_root(digests);
            if Some(root) != recorded {
                let recorded = recorded.map_or("none".into(), |root| root.to_string());
                return Err(format!("the digests of {what} have the root {root}, the ledger has {recorded}"));
            }
        }
        let expected = [draw::PREMISES + pass.trace.matrices.len(), self.names.len(), self.names.len()];
        let found = [file.trace.len(), file.states[0].len(), file.states[1].len()];
        if expected != found {
            return Err(format!("it has digests of {found:?} tensors, this experiment has {expected:?}"));
        }
        let (rows, _) = draw::micro_batch(self.experiment(), entry.step);
        if [file.inputs.len(), file.targets.len()] != [rows.count(); 2] {
            return Err(format!("it has not the {} tokens of a micro-batch", rows.count()));
        }
        let terms = Terms { recompute: file.recompute, pieces: file.pieces };
        let premises = draw::premises(rows, terms, [&file.inputs, &file.targets]);
        if file.trace[0] != premises[0] {
            return Err("it was not drawn under the terms of the digest in the ledger: another \
                        `memory.recompute` or `proof.audit_pieces`"
                .into());
        }
        if file.trace[1..draw::PREMISES] != premises[1..] {
            return Err("the tokens are not those of the digest in the ledger".into());
        }
        let beyond = file.matrices.range(pass.trace.matrices.len()..).next().is_some()
            || file.tensors.iter().any(|tensors| tensors.range(self.names.len()..).next().is_some());
        if beyond {
            return Err("it holds more tensors than there are".into());
        }
        Ok(OpenedAudit { file, pass })
    }

    /// The parts that the file of an entry must have.
    fn parts(&self, at: usize, opened: &OpenedAudit) -> Result<Vec<KeptPart>, AuditFault> {
        let entry = &self.run.entries[at];
        let Some(root) = entry.audit else { return Ok(Vec::new()) };
        let count =
            usize::try_from(opened.file.pieces).ok().filter(|count| (1..=MOST_PIECES).contains(count));
        let count = count.ok_or_else(|| {
            format!(
                "it says that {} pieces were drawn, which `proof.audit_pieces` cannot be",
                opened.file.pieces
            )
        })?;
        let excerpts = draw::excerpts(&opened.pass.trace, &self.heads[at], &root, count);
        let mut parts: Vec<KeptPart> = excerpts.into_iter().map(KeptPart::Excerpt).collect();
        let has_blocks = !opened.file.tensors[1].is_empty();
        // Ranks that share the optimizer's state keep none, as whoever checks the run is told.
        if entry.action == Action::Update && has_blocks {
            parts.extend(self.blocks(at).into_iter().map(KeptPart::Update));
        }
        Ok(parts)
    }

    /// Checks parts of one step.
    fn check(
        &mut self,
        at: usize,
        parts: &[KeptPart],
        tally: &mut Tally,
        checked: &dyn Fn(u64),
    ) -> Result<(), AuditFault> {
        let OpenedAudit { file, pass } = self.open(at)?;
        let (specs, blocks) = (self.specs.clone(), self.blocks(at));
        let step = Step {
            entry: &self.run.entries[at],
            experiment: &self.run.loaded.experiment,
            names: &self.names,
            specs: specs.iter().collect(),
            file: &file,
            pass: &pass,
        };
        step.tokens(self.run.data.as_ref(), tally)?;
        for part in parts {
            match part {
                KeptPart::Excerpt(drawn) => step.excerpt(&mut self.mirror, *drawn, tally)?,
                KeptPart::Update(block) => step.update(&mut self.mirror, block, &blocks, tally)?,
            }
            checked(1);
        }
        Ok(())
    }

    fn blocks(&self, at: usize) -> BTreeSet<ParamBlock> {
        draw::blocks(self.experiment(), &self.parameters(), &self.heads[at + 1])
    }
}

/// What was checked.
#[derive(Default)]
struct Tally {
    /// Excerpts by kind of operation.
    excerpts: BTreeMap<&'static str, usize>,
    updates: usize,
    /// Micro-batches whose tokens were held to the data.
    tokens: usize,
    /// Floating-point operations of the excerpts, and of the micro-batches of all audited steps.
    flops: f64,
    flops_of_batches: f64,
    /// The most micro-batches that one of these steps has.
    batches: u64,
}

impl Tally {
    fn report(self, audited: &Audited, steps: usize, kept: usize, seed: u64, checks: &mut Checks<'_>) {
        let experiment = audited.experiment();
        for (kind, count) in &self.excerpts {
            checks.passed(&format!("audit of {kind}"), format!("{count} computed again, no bit differs"));
        }
        match self.updates {
            0 => checks.skipped("audit of the update", "no block was kept and drawn"),
            count => checks.passed("audit of the update", format!("{count} made again, no bit differs")),
        }
        match self.tokens {
            0 => checks.skipped("audit of the tokens", "the data are not here, or no step was drawn"),
            count => {
                let what = format!("the data's, in {count} of {steps} {}", noun(steps, "step"));
                checks.passed("audit of the tokens", what);
            }
        }
        let excerpts = self.excerpts.values().sum::<usize>();
        let checked = excerpts + self.updates;
        let batches = self.batches;
        let share = match self.flops / self.flops_of_batches {
            0.0 => "none".to_owned(),
            share => format!("1 in {}", units::thousands((1.0 / share).round() as u64)),
        };
        let missed = match 100.0 * libm::pow(0.99, excerpts as f64) {
            missed if missed < 0.1 => "under 0.1 %".to_owned(),
            missed => format!("{missed:.1} %"),
        };
        checks.passed(
            "audit",
            format!(
                "{checked} of {kept} {} that {steps} {} kept, drawn by `--seed {seed}`; {share} of the \
                 floating-point operations \
                 of their micro-batches, which are 1 in {batches} of a step; a fault that a draw meets \
                 with a chance of 1 % would have been missed with a probability of {missed}{}",
                noun(kept, "part"),
                noun(steps, "step"),
                left_open(experiment, batches, self.updates),
            ),
        );
    }
}

/// What no part of an audit shows.
fn left_open(experiment: &Experiment, batches: u64, updates: usize) -> String {
    let workers = experiment.parallel.workers as u64;
    let mut open = vec!["steps without an audit".to_owned()];
    if batches > 1 {
        open.push(format!("{} of {batches} micro-batches of a step", batches - 1));
    }
    if batches / workers > 1 {
        open.push("the gradients that the micro-batches before left".into());
    }
    if workers > 1 {
        open.push("that the gradients of the update are the sum of all workers'".into());
    }
    if experiment.optimizer.kind == OptimizerKind::Muon {
        open.push("the updates of matrices, which Muon makes as a whole".into());
    }
    for what in [
        if updates > 0 { "all but a few blocks of an update" } else { "all of the updates" },
        "the gradient's norm, the mean loss and the guards' decision, which are the ledger's",
        "the counters, the guards' windows and the place in the data after a step, and that a skipped step \
         changes nothing",
    ] {
        open.push(what.into());
    }
    format!("\n  left open: {}", open.join("; "))
}
