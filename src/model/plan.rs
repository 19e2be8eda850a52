//! What training takes in device memory, known before anything is allocated.

use std::collections::BTreeMap;

use super::activations::Activations;
use super::weights::Weights;
use crate::experiment::Experiment;
use crate::ops::{Dtype, Role, Rows};

/// One kind of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanEntry {
    pub category: Category,
    pub name: String,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    Parameters,
    Gradients,
    Optimizer,
    Activations,
    Scratch,
}

/// The device memory of an experiment, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    pub entries: Vec<PlanEntry>,
}

/// How a device stores things: what the plan needs to know of it.
#[derive(Clone, Debug)]
pub struct Storage {
    pub param: Dtype,
    pub activation: Dtype,
    /// Whether fp32 masters are kept beside narrower parameters.
    pub masters: bool,
    /// The device's own scratch, by name, in bytes.
    pub scratch: Vec<(String, u64)>,
}

impl MemoryPlan {
    /// Everything that training `experiment` allocates.
    pub fn of(experiment: &Experiment, storage: &Storage) -> MemoryPlan {
        let specs = Weights::of(&experiment.model);
        let n = specs.parameters();
        let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
        let mut plan = MemoryPlan::default();
        let mut add = |category, name: &str, bytes: u64| {
            if bytes > 0 {
                plan.entries.push(PlanEntry { category, name: name.into(), bytes });
            }
        };
        add(Category::Parameters, "weights", n * storage.param.size() as u64);
        // The worker at hand, and one partial sum for each level of the tree over workers.
        let sums = 1 + u64::from(experiment.parallel.workers.trailing_zeros());
        add(Category::Gradients, "gradients", n * 4 * sums);
        add(Category::Optimizer, "moments", n * 8);
        add(Category::Optimizer, "master weights", if storage.masters { n * 4 } else { 0 });

        let layout = Activations::layout(&experiment.model, rows, experiment.memory.recompute, true);
        let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
        for spec in layout.specs() {
            let size = if spec.role == Role::F32 { 4 } else { storage.activation.size() };
            *kinds.entry(spec.name).or_default() += (spec.len * size) as u64;
        }
        for (name, bytes) in kinds {
            add(Category::Activations, name, bytes);
        }
        add(Category::Activations, "token losses", (experiment.batch.tokens + rows.count() as u64) * 4);
        for (name, bytes) in &storage.scratch {
            add(Category::Scratch, name, *bytes);
        }
        plan
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    /// Bytes of one category.
    pub fn category(&self, category: Category) -> u64 {
        self.entries.iter().filter(|e| e.category == category).map(|e| e.bytes).sum()
    }
}
