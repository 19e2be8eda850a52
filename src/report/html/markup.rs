//! The page's markup, section by section.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::config::Setting;
use super::numbers::{self, Numbers};
use super::{HtmlPage, Status};
use crate::proof::Entry;
use crate::proof::lock::Table;
use crate::report::run_data::references;
use crate::report::sources::{SourceRead, sources_read};
use crate::report::{Chart, dark_rules};
use crate::store::gpu_log::GpuSample;
use crate::store::metrics::MetricsRow;
use crate::units;

const STYLE: &str = include_str!("style.css");
/// The page may load nothing and run no script.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
/// Events shown one by one; a diverging run has thousands.
const EVENTS_SHOWN: usize = 200;

/// The whole page.
pub fn page(page: &HtmlPage, charts: &[Chart]) -> Markup {
    let numbers = Numbers::of(&page.run);
    let style = STYLE.replace("/*dark plots*/", &dark_rules(".plot"));
    let sections = [
        ("plots", "Curves", plots(charts)),
        ("samples", "What it writes", samples(page)),
        ("promises", "Promises", promises(page)),
        ("ledger", "Ledger and checkpoints", ledger(page)),
        ("events", "Guards and events", events(page)),
        ("speed", "Throughput and hardware", speed(page, &numbers)),
        ("configuration", "Configuration", configuration(page)),
        ("lock", "Lock", lock(page)),
    ];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="generator" content=(concat!("runner ", env!("CARGO_PKG_VERSION")));
                title { (page.run.name) " — runner report" }
                style { (PreEscaped(style)) }
            }
            body {
                header {
                    h1 { (page.run.name) }
                    p.quiet { (facts(page, &numbers)) }
                    @if let Some(why) = &page.run.unverified {
                        p.failed { "Figures and curves are not verified: " (why) }
                    }
                    (tiles(page, &numbers))
                    nav { @for (id, title, _) in &sections { a href={ "#" (id) } { (title) } } }
                }
                main {
                    @for (id, title, content) in &sections { section id=(id) { h2 { (title) } (content) } }
                }
                footer {
                    "Written by runner " (env!("CARGO_PKG_VERSION"))
                    " from the files of the run; equal files give an equal page."
                }
            }
        }
    }
}

/// One line: what was trained, and how far.
fn facts(page: &HtmlPage, numbers: &Numbers) -> String {
    let mut facts = Vec::new();
    if let Some(model) = &page.run.model {
        let size =
            model.parameters.map_or(String::new(), |n| format!(" with {} parameters", units::count(n)));
        let name = model.descriptor.as_ref().map_or(String::new(), |name| format!(" {name}"));
        facts.push(format!(
            "{}{name}{size}: {} {}, {} {}",
            model.kind,
            model.layers,
            units::noun(model.layers, "layer"),
            model.channels,
            units::noun(model.channels, "channel")
        ));
    }
    let steps = units::thousands(numbers.steps);
    let planned = page.setting("schedule.steps").and_then(|steps| steps.parse::<u64>().ok());
    let of_planned = match planned {
        Some(planned) if planned > numbers.steps => format!("{steps} of {} steps", units::thousands(planned)),
        _ => units::counted(numbers.steps, "step"),
    };
    facts.push(match page.failed() {
        Some(why) => format!("failed after {of_planned}: {why}"),
        None if planned.is_some_and(|planned| planned > numbers.steps) => format!("{of_planned} so far"),
        None if planned.is_some() => format!("finished after {of_planned}"),
        None => of_planned,
    });
    if let Some(device) =
        page.lock.as_ref().and_then(|lock| lock.as_ref().ok()).and_then(|lock| lock.environment.get("device"))
    {
        facts.push(format!("on {device}"));
    }
    facts.join(" · ")
}

fn tile(name: &str, value: &str, note: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) @if !note.is_empty() { small { (note) } } } } }
}

/// The result in a few boxes.
fn tiles(page: &HtmlPage, numbers: &Numbers) -> Markup {
    let level = page.run.model.as_ref().and_then(|model| references(model).next());
    let beside = |value: Option<f64>| match (level, value) {
        (Some(level), Some(value)) => format!("{}: {value:.3}", level.name),
        _ => String::new(),
    };
    let failed = page.checks.iter().filter(|check| check.status == Status::Failed).count();
    let passed = page.checks.iter().filter(|check| check.status == Status::Passed).count();
    let open = page.checks.len() - failed - passed;
    html! {
        dl.tiles {
            @if let Some((last, best, step)) = numbers.val_loss {
                @let best = match best < last {
                    true => format!("best {best:.4} at step {}. ", units::thousands(step)),
                    false => String::new(),
                };
                @let published = beside(level.and_then(|level| level.val_loss));
                (tile("Validation loss", &format!("{last:.4}"), &format!("{best}{published}")))
            }
            @if let Some((loss, over)) = numbers.loss {
                @let of = match over {
                    1 => "of the last update".to_owned(),
                    _ => format!("mean of the last {} updates", units::thousands(over as u64)),
                };
                (tile("Training loss", &format!("{loss:.4}"), &of))
            }
            @if let Some(accuracy) = numbers.hellaswag {
                @let harness = numbers.hellaswag_acc.zip(numbers.hellaswag_acc_norm)
                    .map_or(String::new(), |(acc, norm)| format!("acc {acc:.4}, acc_norm {norm:.4}. "));
                @let published = beside(level.map(|level| level.hellaswag));
                (tile("HellaSwag", &format!("{accuracy:.4}"), &format!("{harness}{published}")))
            }
            @if let Some(loss) = numbers.ema_val_loss {
                @let score =
                    numbers.ema_hellaswag.map_or(String::new(), |score| format!(" HellaSwag {score:.4}."));
                (tile("Validation loss of the average", &format!("{loss:.4}"),
                    &format!("Weights averaged over the updates.{score}")))
            }
            @if page.run.has_tokens {
                @let steps = units::counted(numbers.steps, "step");
                (tile("Tokens", &units::count(numbers.tokens), &steps))
            } @else {
                (tile("Steps", &units::thousands(numbers.steps), "the log has no tokens"))
            }
            @if let Some([median, ..]) = numbers.tokens_per_s {
                @let share = |mfu| format!("; {:.1} % of the peak (MFU)", 100.0 * mfu);
                @let mfu = numbers.mfu.map_or(String::new(), share);
                (tile("Tokens/s", &units::rounded(median), &format!("median of the {}{mfu}", timed(numbers))))
            }
            @if numbers.seconds > 0.0 {
                @let time = match numbers.seconds < 10.0 {
                    true => format!("{:.1} s", numbers.seconds),
                    false => units::duration(numbers.seconds),
                };
                (tile("Time in steps", &time, "without evaluation and checkpoints"))
            }
            (tile("Skipped updates", &units::thousands(numbers.skipped as u64),
                &format!("resumed {}×, rewound {}×", numbers.resumed, numbers.rewound)))
            (tile("Checks passed", &passed.to_string(), &format!("{failed} failed, {open} not made")))
        }
    }
}

fn plots(charts: &[Chart]) -> Markup {
    html! {
        div.plots {
            @for chart in charts { figure.plot { (PreEscaped(inline(chart))) } }
        }
    }
}

/// The picture as part of a page: scaled by the page, named for those who cannot see it.
fn inline(chart: &Chart) -> String {
    let svg = chart.svg.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1);
    let Some((_, rest)) = svg.split_once("viewBox") else { return svg };
    let name = html! { (chart.title) }.into_string();
    format!("<svg role=\"img\" aria-label=\"{name}\" viewBox{rest}")
}

fn samples(page: &HtmlPage) -> Markup {
    let text = |text: &str| html! { pre { (text.trim_end()) } };
    html! {
        @match page.samples.split_first() {
            None => p.quiet { "No samples were asked for (" code { "sample.every" } ")." },
            Some((last, earlier)) => {
                h3 { "After step " (units::thousands(last.step)) }
                (text(&last.text))
                @for sample in earlier {
                    details { summary { "After step " (units::thousands(sample.step)) } (text(&sample.text)) }
                }
            }
        }
    }
}

fn promises(page: &HtmlPage) -> Markup {
    let badge = |status: Status| match status {
        Status::Passed => html! { span.badge.passed { "✓ passed" } },
        Status::Failed => html! { span.badge.failed { "✗ FAILED" } },
        Status::NotChecked => html! { span.badge.unchecked { "○ not checked" } },
    };
    html! {
        table.stack {
            thead { tr { th { "Result" } th { "Promise" } th { "Finding" } } }
            tbody {
                @for check in &page.checks {
                    tr { td { (badge(check.status)) } td { (check.name) } td.detail { (check.detail) } }
                }
            }
        }
    }
}

/// What was read of each source of a mixture.
fn sources(page: &HtmlPage, entries: &[Entry]) -> Vec<SourceRead> {
    let lock = page.lock.as_ref().and_then(|lock| lock.as_ref().ok());
    let seq_len = page.setting("batch.seq_len").and_then(|tokens| tokens.parse().ok());
    seq_len.map_or_else(Vec::new, |seq_len| sources_read(entries, lock, seq_len))
}

fn fault(what: &str, why: &str) -> Markup {
    html! { p.fault { (what) ": " (why) } }
}

fn ledger(page: &HtmlPage) -> Markup {
    html! {
        @match &page.ledger {
            None => p.quiet { "There is no ledger." },
            Some(Err(why)) => (fault("The ledger cannot be trusted", why)),
            Some(Ok((log, entries))) => {
                @let head = log.head();
                table.stack {
                    tbody {
                        tr {
                            th { "Entries" }
                            td { (units::thousands(head.size)) ", one a step, an append-only Merkle log" }
                        }
                        tr { th { "Head" } td { code.hash { (head.root) } } }
                        @let hashed = entries.iter().rev().find_map(|entry| Some((entry.step, entry.root?)));
                        @if let Some((step, root)) = hashed {
                            tr {
                                th { "State root" }
                                td { code.hash { (root) } " at step " (units::thousands(step + 1)) }
                            }
                        }
                        @for source in sources(page, entries) {
                            tr { th { "Source" } td { (source) } }
                        }
                        @if let Some(torn) = log.torn() {
                            tr {
                                th { "Unfinished" }
                                td { "line " (torn.line) " was left unfinished by a kill" }
                            }
                        }
                    }
                }
            }
        }
        @if page.checkpoints.is_empty() {
            p.quiet { "There is no checkpoint." }
        } @else {
            h3 { "Checkpoints" }
            table.stack {
                thead { tr { th.n { "Step" } th.n { "Size" } th { "State root" } th { "Ledger head" } } }
                tbody {
                    @for checkpoint in &page.checkpoints {
                        tr {
                            td.n data-name="step" { (units::thousands(checkpoint.step)) }
                            @match &checkpoint.manifest {
                                Ok(manifest) => {
                                    td.n { (units::bytes(manifest.file.bytes)) }
                                    td.hash.code data-name="root" { (manifest.state_root) }
                                    td.hash.code data-name="head" { (manifest.ledger.root) }
                                }
                                Err(why) => td.failed colspan="3" { (why) },
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The events of a row, in words.
fn happened(row: &MetricsRow) -> Vec<String> {
    let z = |z: Option<f64>| z.map_or(String::new(), |z| format!(", z-score {z:.2}"));
    let value = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let skip = match row.action {
        _ if !row.action.is_skip() => None,
        crate::store::metrics::Action::SkipLossZ => {
            Some(format!("skipped: loss {}{}", value(row.loss), z(row.loss_z)))
        }
        crate::store::metrics::Action::SkipGradZ => {
            Some(format!("skipped: gradient norm {}{}", value(row.grad_norm), z(row.grad_z)))
        }
        _ => Some(format!(
            "skipped: loss {}, gradient norm {}: not finite",
            value(row.loss),
            value(row.grad_norm)
        )),
    };
    skip.into_iter().chain(row.events.iter().cloned()).collect()
}

fn events(page: &HtmlPage) -> Markup {
    let mut events: Vec<(u64, String)> =
        page.run.rows.iter().flat_map(|row| happened(row).into_iter().map(|what| (row.step, what))).collect();
    if let Some(Ok((log, entries))) = &page.ledger {
        events.extend(
            entries
                .iter()
                .flat_map(|entry| entry.events.iter().map(|event| (entry.step, format!("ledger: {event}")))),
        );
        events.extend(
            log.notes().iter().map(|note| (note.after, format!("note, {}: {}", note.kind, note.text))),
        );
    }
    events.sort_by_key(|(step, _)| *step);
    let set = |key: &str| page.setting(key).unwrap_or("not set").to_owned();
    html! {
        @if page.setting("guards.window").is_some() {
            p.quiet {
                "A step is skipped when its loss or gradient norm is not finite, or stands out of the last "
                (set("guards.window")) " by more than "
                code { "guards.loss_z" } " = " (set("guards.loss_z")) " or "
                code { "guards.grad_z" } " = " (set("guards.grad_z"))
                " standard deviations (0 is off); after "
                (set("guards.patience")) " in a row: " (set("guards.on_diverge").trim_matches('"')) "."
            }
        }
        @if events.is_empty() {
            p { "Nothing happened: no step was skipped, and the run was never interrupted." }
        } @else {
            table.stack {
                thead { tr { th.n { "Step" } th { "Event" } } }
                tbody {
                    @for (step, what) in events.iter().take(EVENTS_SHOWN) {
                        tr { td.n data-name="step" { (units::thousands(*step)) } td { (what) } }
                    }
                }
            }
            @if events.len() > EVENTS_SHOWN {
                @let more = units::thousands((events.len() - EVENTS_SHOWN) as u64);
                p.quiet { "and " (more) " more in metrics.jsonl and ledger.jsonl" }
            }
        }
    }
}

/// Of which steps times are summarised.
fn timed(numbers: &Numbers) -> String {
    match numbers.timed {
        1 => "last step".to_owned(),
        over => format!("last {over} steps"),
    }
}

fn speed(page: &HtmlPage, numbers: &Numbers) -> Markup {
    let sensor =
        |value: fn(&GpuSample) -> Option<f64>| numbers::spread(page.sensors.iter().filter_map(value));
    let whole: fn(f64) -> String = |value| format!("{value:.0}");
    let of = |what: &str| format!("{what}, {}", timed(numbers));
    let spread = |name: &str, values: Option<[f64; 3]>, show: fn(f64) -> String| {
        html! {
            @if let Some(values) = values {
                tr {
                    th { (name) }
                    @for (name, value) in ["median", "5 %", "95 %"].iter().zip(values) {
                        td.n data-name=(name) { (show(value)) }
                    }
                }
            }
        }
    };
    html! {
        @if numbers.step_ms.is_none() && page.sensors.is_empty() && numbers.tokens_per_s.is_none() {
            p.quiet { "No row has a time." }
        } @else {
            table.stack {
                thead { tr { th {} th.n { "median" } th.n { "5 %" } th.n { "95 %" } } }
                tbody {
                    (spread(&of("Tokens per second"), numbers.tokens_per_s, units::rounded))
                    (spread(&of("Milliseconds a step"), numbers.step_ms, |value| format!("{value:.1}")))
                    (spread("GPU clock, MHz", sensor(|at| at.sm_mhz.map(f64::from)), whole))
                    (spread("GPU power, W", sensor(|at| at.watts), whole))
                    (spread("GPU temperature, °C", sensor(|at| at.celsius.map(f64::from)), whole))
                }
            }
        }
        @if !page.sensors.is_empty() {
            @let throttled: Vec<&GpuSample> =
                page.sensors.iter().filter(|at| !at.throttled.is_empty()).collect();
            @let reasons: BTreeSet<&str> =
                throttled.iter().flat_map(|at| &at.throttled).map(String::as_str).collect();
            p.quiet {
                (units::thousands(throttled.len() as u64)) " of "
                (units::thousands(page.sensors.len() as u64))
                " samples of the GPU's sensors found it throttled"
                @if !reasons.is_empty() { ": " (reasons.into_iter().collect::<Vec<_>>().join(", ")) } "."
            }
        }
        h3 { "Machine" }
        @match &page.lock {
            None => p.quiet { "There is no lock, which would describe the machine." },
            Some(Ok(lock)) => (table(&lock.environment)),
            Some(Err(why)) => (fault("The lock, which describes the machine, cannot be trusted", why)),
        }
    }
}

fn table(table: &Table) -> Markup {
    html! { table.stack { tbody { @for (key, value) in table { tr { th { (key) } td.code { (value) } } } } } }
}

fn configuration(page: &HtmlPage) -> Markup {
    let section = |setting: &Setting| {
        setting.key.split_once('.').map_or(String::new(), |(section, _)| section.to_owned())
    };
    html! {
        @if page.settings.is_empty() { p.quiet { "The run has no experiment.toml." } } @else {
            table.stack {
                thead { tr { th { "Key" } th { "Value" } th { "Origin" } } }
                @for group in page.settings.chunk_by(|a, b| section(a) == section(b)) {
                    tbody {
                        @if !section(&group[0]).is_empty() {
                            tr.group { th colspan="3" { (section(&group[0])) } }
                        }
                        @for setting in group {
                            tr {
                                td.code { (setting.key) }
                                @match &setting.value {
                                    Some(value) => td.code { (value) },
                                    None => td.quiet { "not set" },
                                }
                                td.quiet { (setting.origin) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn lock(page: &HtmlPage) -> Markup {
    html! {
        @match &page.lock {
            None => p.quiet { "There is no lock: what the bits depended on was not written down." },
            Some(Err(why)) => (fault("The lock cannot be trusted", why)),
            Some(Ok(lock)) => {
                p { "Equal numerics give equal bits. Their digest, the " code { "numerics_id" } ":" }
                p { code.hash { (lock.numerics_id()) } }
                @let tables =
                    [("Outputs", &lock.outputs), ("Numerics", &lock.numerics), ("Source", &lock.source)];
                @for (name, content) in tables {
                    details open[name == "Outputs"] {
                        summary { (name) " (" (content.len()) ")" }
                        @if content.is_empty() { p.quiet { "Nothing yet." } } @else { (table(content)) }
                    }
                }
                p.quiet { "The lock's environment stands under “Throughput and hardware”." }
            }
        }
    }
}
