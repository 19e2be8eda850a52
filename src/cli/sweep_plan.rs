//! The plan of a sweep as text: a line a member, and the sums.

use std::fmt::Write;

use super::plan::{hours, wrapped};
use crate::experiment::settings_text;
use crate::plan::sweep_plan::SweepPlan;
use crate::store::sweep_folder::member_name;
use crate::units::{self, counted};

/// The whole plan. Settings stand last in a line, since they may be long.
pub fn to_text(plan: &SweepPlan) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_plan(plan, &mut out);
    out
}

fn dollars(amount: f64) -> String {
    if amount == 0.0 { "-".to_owned() } else { format!("${amount:.2}") }
}

fn write_plan(plan: &SweepPlan, out: &mut String) -> std::fmt::Result {
    let device = &plan.device;
    let count = if device.count > 1 { format!("{} × ", device.count) } else { String::new() };
    writeln!(out, "{}: {} on {count}{}", plan.sweep, counted(plan.runs as u64, "run"), device.name)?;
    let titles = ["member", "tokens", "time", "dollars", "disk", "memory"].map(str::to_owned);
    let mut rows = vec![(titles, "settings".to_owned())];
    for member in &plan.members {
        let full = if member.fits == Some(false) { "!" } else { "" };
        let cells = [
            member_name(member.number, plan.runs),
            units::count(member.tokens),
            hours(member.total_s),
            dollars(member.dollars),
            units::bytes(member.disk_bytes),
            format!("{}{full}", units::bytes(member.memory_bytes)),
        ];
        rows.push((cells, settings_text(&member.settings_as_written)));
    }
    let sums = [
        "all".to_owned(),
        units::count(plan.tokens),
        hours(plan.total_s),
        dollars(plan.dollars),
        units::bytes(plan.disk_bytes),
        units::bytes(plan.memory_bytes),
    ];
    rows.push((sums, "one after another; memory of the largest".to_owned()));
    let width = |at: usize| rows.iter().map(|(cells, _)| cells[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for (cells, settings) in &rows {
        for (cell, width) in cells.iter().zip(&widths) {
            write!(out, "{cell:>width$}  ", width = *width)?;
        }
        writeln!(out, "{settings}")?;
    }
    if plan.fits == Some(false) {
        writeln!(
            out,
            "!: does not fit the device; `runner plan` of one run with its settings says what would"
        )?;
    }
    for note in &plan.notes {
        wrapped(out, "note: ", note)?;
    }
    Ok(())
}
