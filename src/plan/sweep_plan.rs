//! What a sweep needs: the plan of each member, and their sums. Members train one after another; the whole
//! needs the memory of the largest.

use std::collections::BTreeSet;

use serde::Serialize;

use super::PlanError;
use super::data_facts::DataFacts;
use super::memory::Share;
use super::run_plan::{RunPlan, TargetFacts};
use super::target::Target;
use super::time::priced;
use crate::experiment::{Experiment, Sweep, settings_json};

/// Everything that the plan says.
#[derive(Debug, Serialize)]
pub struct SweepPlan {
    pub sweep: String,
    /// Of the first member.
    pub device: TargetFacts,
    pub runs: usize,
    pub tokens: u64,
    pub total_s: f64,
    #[serde(serialize_with = "priced")]
    pub dollars: f64,
    pub disk_bytes: u64,
    /// Of the largest member.
    pub memory_bytes: u64,
    /// Whether every member fits the device; not known for the CPU.
    pub fits: Option<bool>,
    pub members: Vec<MemberPlan>,
    /// Assumptions of any member, each once.
    pub notes: Vec<String>,
}

/// The plan of a member in short.
#[derive(Debug, Serialize)]
pub struct MemberPlan {
    pub number: usize,
    #[serde(skip)]
    pub settings_as_written: Vec<(String, String)>,
    pub settings: serde_json::Value,
    pub parameters: u64,
    pub steps: u64,
    pub tokens: u64,
    pub total_s: f64,
    #[serde(serialize_with = "priced")]
    pub dollars: f64,
    pub disk_bytes: u64,
    pub memory_bytes: u64,
    pub fits: Option<bool>,
}

impl SweepPlan {
    /// The plan of a sweep on the device of this name, each member spread as `share` says.
    ///
    /// # Errors
    /// No GPU has this name; a member counts in epochs and its data are missing.
    pub fn of(sweep: Sweep, gpu: Option<&str>, share: Share) -> Result<SweepPlan, PlanError> {
        let mut plans = Vec::new();
        let mut looked: Option<(Experiment, DataFacts)> = None;
        for mut member in sweep.members {
            let facts = match &looked {
                Some((before, facts))
                    if member.loaded.epochs.is_none() && same_data(before, &member.loaded.experiment) =>
                {
                    facts.clone()
                }
                _ => DataFacts::look(&mut member.loaded)?,
            };
            let experiment = member.loaded.experiment;
            looked = Some((experiment.clone(), facts.clone()));
            let target = Target::choose(gpu, &experiment)?;
            let plan = RunPlan::of(&experiment, target, share, facts)?;
            plans.push((MemberPlan::of(member.number, member.settings, &plan), plan));
        }
        let (members, plans): (Vec<MemberPlan>, Vec<RunPlan>) = plans.into_iter().unzip();
        let mut notes: Vec<String> = plans.iter().flat_map(|plan| plan.notes.clone()).collect();
        notes.sort();
        notes.dedup();
        let devices: BTreeSet<&str> = plans.iter().map(|plan| plan.device.name.as_str()).collect();
        if devices.len() > 1 {
            let devices: Vec<&str> = devices.into_iter().collect();
            notes.push(format!("members train on different devices: {}", devices.join("; ")));
        }
        let device = plans.into_iter().map(|plan| plan.device).next().expect("a sweep has members");
        Ok(SweepPlan {
            sweep: sweep.name,
            device,
            runs: members.len(),
            tokens: members.iter().map(|member| member.tokens).fold(0, u64::saturating_add),
            total_s: members.iter().map(|member| member.total_s).sum(),
            dollars: members.iter().map(|member| member.dollars).sum(),
            disk_bytes: members.iter().map(|member| member.disk_bytes).fold(0, u64::saturating_add),
            memory_bytes: members.iter().map(|member| member.memory_bytes).max().unwrap_or(0),
            fits: members.iter().try_fold(true, |all, member| Some(all && member.fits?)),
            members,
            notes,
        })
    }
}

/// Whether the facts about the data of one experiment are those of another.
fn same_data(a: &Experiment, b: &Experiment) -> bool {
    a.data == b.data
        && a.eval.hellaswag == b.eval.hellaswag
        && a.model.vocab == b.model.vocab
        && a.batch.seq_len == b.batch.seq_len
        // What is read of each source follows from the length of the run, and the steps that fit too.
        && (a.data.mix.is_empty()
            || (a.schedule.steps, a.step_sequences()) == (b.schedule.steps, b.step_sequences()))
}

impl MemberPlan {
    fn of(number: usize, settings: Vec<(String, String)>, plan: &RunPlan) -> MemberPlan {
        MemberPlan {
            number,
            settings: settings_json(&settings),
            settings_as_written: settings,
            parameters: plan.model.parameters,
            steps: plan.work.steps,
            tokens: plan.work.tokens,
            total_s: plan.time.total_s,
            dollars: plan.time.dollars,
            disk_bytes: plan.disk.total_bytes,
            memory_bytes: plan.memory.total_bytes,
            fits: plan.memory.fits,
        }
    }
}
