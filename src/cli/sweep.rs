//! What a sweep says while it runs, and how it ends: lines for people, or events as JSON.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::exit;
use super::streams::{self, say};
use crate::experiment::{settings_json, settings_text};
use crate::report::summary::RunSummary;
use crate::run::sweep::{ChildOptions, MemberEnd, SweepEvent, SweepOutcome};
use crate::store::MemberFolder;
use crate::units;

/// Digits of a root that a line shows.
const SHOWN: usize = 16;

/// How the members of a sweep are trained.
pub fn options(jobs: Option<NonZeroUsize>, ranks: Option<usize>, json: bool) -> ChildOptions {
    ChildOptions { jobs: jobs.map_or(1, NonZeroUsize::get), ranks, json }
}

/// Prints the events of a sweep.
pub struct SweepPrinter {
    json: bool,
    /// Whether stdout has refused an event; then no more are written, and the sweep goes on.
    refused: bool,
}

impl SweepPrinter {
    pub fn new(json: bool) -> SweepPrinter {
        SweepPrinter { json, refused: false }
    }

    /// Shows an event.
    pub fn on(&mut self, event: &SweepEvent<'_>) {
        if self.json {
            if let Some(value) = to_json(event) {
                self.print(&value);
            }
        } else if let Some(text) = to_text(event) {
            say!("{}", units::printable_lines(&text));
        }
    }

    fn print(&mut self, event: &Value) {
        if !self.refused && streams::try_print(&format!("{event}\n")).is_err() {
            self.refused = true;
            say!("stdout takes no more events; the sweep goes on without");
        }
    }

    /// Says how the sweep ended; its exit code.
    pub fn conclude(&mut self, outcome: &SweepOutcome) -> anyhow::Result<ExitCode> {
        let SweepOutcome { paths, hash, failed, left, nothing_to_do } = outcome;
        let code = match (left, failed.is_empty()) {
            (1.., _) => exit::INTERRUPTED,
            (0, false) => exit::FAILED,
            (0, true) => 0,
        };
        if self.json {
            let failed: Vec<usize> = failed.iter().map(|(member, _)| member.number).collect();
            let hash = hash.map(|hash| hash.to_string());
            self.print(&json!({"event": "sweep_ended", "hash": hash, "failed": failed, "left": left}));
            return Ok(ExitCode::from(code));
        }
        let (folder, name) = (paths.folder().display(), paths.name());
        for (member, end) in failed {
            say!("{}", units::printable_lines(&ended_text(member, end, "")));
        }
        if !failed.is_empty() {
            say!("what they said is in `{}`{}", paths.logs().display(), again(failed, &name));
        }
        if *left > 0 {
            let (members, are) = (units::noun(*left, "member"), if *left == 1 { "is" } else { "are" });
            say!("stopped as asked: {left} {members} {are} left; `runner resume {name}` goes on");
        }
        let Some(hash) = hash else { return Ok(ExitCode::from(code)) };
        if *nothing_to_do {
            say!("nothing to do: all members of `{folder}` are finished");
        }
        if io::stdout().is_terminal() && io::stderr().is_terminal() {
            say!("sweep hash {hash}");
        } else {
            streams::print(&format!("{hash}\n"))?;
        }
        Ok(ExitCode::from(code))
    }
}

/// What to do about failed members: one that diverged would do so again, to the bit.
fn again(failed: &[(MemberFolder, MemberEnd)], name: &str) -> String {
    let code = Some(i32::from(exit::DIVERGED));
    let diverged = |end: &MemberEnd| matches!(end, MemberEnd::Failed { code: of, .. } if *of == code);
    match failed.iter().filter(|(_, end)| diverged(end)).count() {
        0 => format!("; `runner resume {name}` tries again"),
        all if all == failed.len() => ": what diverged does so again".to_owned(),
        _ => {
            format!("; `runner resume {name}` tries the others again, and what diverged does so again")
        }
    }
}

/// A line of an event; none for what members say of themselves.
fn to_text(event: &SweepEvent<'_>) -> Option<String> {
    Some(match event {
        SweepEvent::Opened { folder, members } => {
            format!("folder: {}, {members} {}", folder.display(), units::noun(*members, "member"))
        }
        SweepEvent::Verified(member) => {
            format!("{} is finished, its files agree: {}", member.name, settings_text(&member.settings))
        }
        SweepEvent::Began { member, resumed } => {
            let how = if *resumed { "goes on" } else { "begins" };
            format!("{} {how}: {}", member.name, settings_text(&member.settings))
        }
        SweepEvent::Said { .. } => return None,
        SweepEvent::Ended { member, end: MemberEnd::Finished, seconds } => {
            let run = RunSummary::read(&member.folder);
            let loss = match (run.figures.get("val_loss"), run.figures.get("mean_loss")) {
                (Some(val_loss), _) => format!("val loss {val_loss:.6}"),
                (None, Some(loss)) => format!("loss {loss:.6}"),
                (None, None) => "no loss".to_owned(),
            };
            let root = run.root.unwrap_or_default().chars().take(SHOWN).collect::<String>();
            format!("{} done in {}: {loss}, root {root}…", member.name, units::duration(*seconds))
        }
        SweepEvent::Ended { member, end, seconds } => {
            let after = format!(" after {}", units::duration(*seconds));
            ended_text(member, end, if *seconds > 0.0 { &after } else { "" })
        }
    })
}

fn ended_text(member: &MemberFolder, end: &MemberEnd, after: &str) -> String {
    let name = &member.name;
    match end {
        MemberEnd::Finished => format!("{name} done{after}"),
        MemberEnd::Stopped => format!("{name} stopped{after}, saved"),
        MemberEnd::Failed { code: Some(code), why } => {
            format!("{name} failed{after}, exit code {code}: {why}")
        }
        MemberEnd::Failed { code: None, why } => format!("{name} failed{after}: {why}"),
    }
}

/// An event as an object; that of a member's run has the member's number.
fn to_json(event: &SweepEvent<'_>) -> Option<Value> {
    Some(match event {
        SweepEvent::Opened { folder, members } => {
            json!({"event": "sweep_began", "folder": units::path_text(folder), "members": members})
        }
        SweepEvent::Verified(member) => json!({
            "event": "member_verified", "member": member.number, "settings": settings_json(&member.settings),
        }),
        SweepEvent::Began { member, resumed } => json!({
            "event": "member_began", "member": member.number, "resumed": resumed,
            "folder": units::path_text(&member.folder),
            "settings": settings_json(&member.settings),
        }),
        SweepEvent::Said { number, line } => {
            let mut event: Value = serde_json::from_str(line).ok().filter(Value::is_object)?;
            event["member"] = (*number).into();
            event
        }
        SweepEvent::Ended { member, end, seconds } => {
            let (end, code, why) = match end {
                MemberEnd::Finished => ("finished", Some(0), None),
                MemberEnd::Stopped => ("stopped", Some(i32::from(exit::INTERRUPTED)), None),
                MemberEnd::Failed { code, why } => ("failed", *code, Some(why)),
            };
            json!({
                "event": "member_ended", "member": member.number, "end": end, "code": code, "why": why,
                "seconds": seconds,
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_try_again_what_diverges_again() {
        let ended = |code: u8| {
            let member =
                MemberFolder { number: 1, name: "001".into(), settings: Vec::new(), folder: "lr/001".into() };
            (member, MemberEnd::Failed { code: Some(i32::from(code)), why: String::new() })
        };
        let [failed, diverged] = [exit::FAILED, exit::DIVERGED].map(ended);
        assert!(again(std::slice::from_ref(&failed), "lr").contains("`runner resume lr` tries again"));
        assert!(!again(std::slice::from_ref(&diverged), "lr").contains("runner resume"));
        assert!(again(&[failed, diverged], "lr").contains("tries the others again"));
    }
}
