//! The memory that training takes, computed before anything is allocated.
//!
//! There is one plan: the trainer asks for it before it allocates, `runner bench` prints it beside what was
//! taken, and `runner plan` shows it without a device. A test compares it with what [`crate::train::Trainer`]
//! allocates on [`crate::ops::dry::Dry`], buffer by buffer.

use serde::Serialize;

use crate::experiment::{Compute, Experiment, PartialSums};
use crate::model::activations::{Activations, BufferSpec};
use crate::model::decode::{self, Room};
use crate::model::weights::{ParamSpec, Weights};
use crate::ops::{Dtype, Role, Rows, cpu, cuda};
use crate::optim::{UpdateRule, update_rule};
use crate::parallel::{Shards, sums, tree};
use crate::store::checkpoint::GROUP_BYTES;
use crate::train::shapes::training_shape;
use crate::train::state::{Division, Home, Row, table};

/// One kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanEntry {
    pub category: Category,
    pub name: String,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    Parameters,
    Gradients,
    Optimizer,
    Activations,
    /// Of texts written in training. Evaluation uses the training's own buffers.
    Samples,
    Scratch,
    /// Memory of the host, not of the device: no part of [`MemoryPlan::total`].
    Host,
}

impl Category {
    pub const ALL: [Category; 7] = [
        Category::Parameters,
        Category::Gradients,
        Category::Optimizer,
        Category::Activations,
        Category::Samples,
        Category::Scratch,
        Category::Host,
    ];
}

/// The memory of an experiment, by kind; that of one device where there are several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    pub entries: Vec<PlanEntry>,
}

/// Memory that NCCL takes of each GPU, measured with two: docs/log.md, 2026-11-24.
const NCCL_BYTES: u64 = 970 << 20;

/// How a device stores things: what the plan needs to know of it.
#[derive(Clone, Debug)]
pub struct Storage {
    pub param: Dtype,
    pub activation: Dtype,
    pub scratch: ScratchBytes,
    /// Bytes that the device's allocator takes for buffers of these sizes in this order.
    pub taken: fn(&[u64]) -> u64,
    /// Pinned host memory for copies.
    pub pinned: u64,
    /// Whether the host's memory is another than the device's.
    pub host_apart: bool,
}

/// A device's own scratch, by name, in bytes, and when it is taken.
#[derive(Clone, Debug, Default)]
pub struct ScratchBytes {
    /// When the device is opened.
    pub opened: Vec<(String, u64)>,
    /// With the model's activations.
    pub model: Vec<(String, u64)>,
}

impl Storage {
    /// Bytes of a buffer of activations.
    fn bytes(&self, spec: &BufferSpec) -> u64 {
        (spec.len * if spec.role == Role::F32 { 4 } else { self.activation.size() }) as u64
    }

    /// How the CPU stores an experiment.
    pub fn cpu(experiment: &Experiment, threads: usize) -> Storage {
        Storage {
            param: Dtype::F32,
            activation: Dtype::F32,
            scratch: ScratchBytes {
                model: cpu::scratch_bytes(&training_shape(experiment), threads),
                ..ScratchBytes::default()
            },
            taken: |sizes| sum(sizes.iter().copied()),
            pinned: 0,
            host_apart: false,
        }
    }

    /// How the mirror stores an experiment: as a GPU does in bf16, in the host's memory.
    pub fn mirror() -> Storage {
        Storage {
            param: Dtype::BF16,
            activation: Dtype::BF16,
            scratch: ScratchBytes::default(),
            taken: |sizes| sum(sizes.iter().copied()),
            pinned: 0,
            host_apart: false,
        }
    }

    /// How a GPU stores an experiment at its precision, whether there is one here or not.
    pub fn cuda(experiment: &Experiment) -> Storage {
        let compute = match experiment.precision.compute {
            Compute::Auto => Compute::Bf16,
            compute => compute,
        };
        let dtype = cuda::act_dtype(compute);
        Storage {
            param: dtype,
            activation: dtype,
            scratch: ScratchBytes {
                opened: cuda::opened_plan(),
                model: cuda::scratch_plan(&training_shape(experiment), compute),
            },
            taken: cuda::taken_bytes,
            pinned: cuda::PINNED_BYTES,
            host_apart: true,
        }
    }
}

/// Bytes of the training state's tensors: what is hashed, and what a checkpoint holds.
pub fn state_bytes(experiment: &Experiment, storage: &Storage) -> u64 {
    table(experiment, &Weights::of(&experiment.model), storage.param, false)
        .iter()
        .map(|row| row.bytes() as u64)
        .sum()
}

/// Tensors of the training state.
pub fn state_tensors(experiment: &Experiment, storage: &Storage) -> u64 {
    table(experiment, &Weights::of(&experiment.model), storage.param, false).len() as u64
}

/// How a run is spread over devices, as far as memory and work depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub devices: u64,
}

impl Share {
    /// A run on one device.
    pub const ALONE: Share = Share { devices: 1 };

    /// Virtual workers that one device runs: at least one, whatever the experiment has.
    pub fn workers(self, experiment: &Experiment) -> u64 {
        (experiment.parallel.workers as u64).div_ceil(self.devices)
    }

    /// Elements of a sharded vector of `n` that one device holds.
    fn of(self, n: u64) -> u64 {
        n.div_ceil(self.devices)
    }
}

impl MemoryPlan {
    /// Everything that training `experiment` on one device allocates.
    pub fn of(experiment: &Experiment, storage: &Storage) -> MemoryPlan {
        MemoryPlan::shared(experiment, storage, Share::ALONE)
    }

    /// The same for one of several devices, which share evenly what `parallel.zero` says.
    pub fn shared(experiment: &Experiment, storage: &Storage, share: Share) -> MemoryPlan {
        let specs = Weights::of(&experiment.model);
        let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
        let mut plan = Builder::default();
        let scratch = |plan: &mut Builder, pieces: &[(String, u64)]| {
            pieces.iter().for_each(|(name, bytes)| plan.add(Category::Scratch, name, *bytes));
        };
        scratch(&mut plan, &storage.scratch.opened);
        let sharded = experiment.parallel.zero > 0;
        let table = table(experiment, &specs, storage.param, sharded);
        let rule = update_rule(experiment, storage.param);
        let division = Divided::new(&specs, share, |spec| rule.is_whole(&spec.parameter()));
        plan.rows(Category::Parameters, &table, &division);

        let layout = Activations::layout(&experiment.model, rows, experiment.memory.recompute, true);
        for spec in layout.specs() {
            plan.add(Category::Activations, spec.name, storage.bytes(&spec));
        }
        scratch(&mut plan, &storage.scratch.model);
        plan.all(Category::Activations, "token ids", [2 * rows.count() as u64; 2].into_iter());
        for (name, size) in [("token losses", 4), ("denominators of the softmax", 8)] {
            plan.add(Category::Activations, name, size * rows.count() as u64);
        }

        let tensors = || specs.iter().map(|spec| 4 * spec.len as u64);
        let divided = share.devices > 1 && sums::are_gradients_sharded(experiment, share.devices as usize);
        let written = sums::written(&specs, divided);
        plan.all(Category::Gradients, "gradients", written.iter().map(|spec| 4 * spec.len as u64));
        if divided {
            let held = specs.iter().enumerate().map(|(at, spec)| division.held(at, 4 * spec.len as u64));
            plan.all(Category::Gradients, "sums of gradients", held);
        }
        plan.rows(Category::Optimizer, &table, &division);
        let parameters: Vec<_> = specs.iter().map(ParamSpec::parameter).collect();
        let room = rule.workspace(&parameters).buffers.into_iter();
        let room = room.map(|len| (len * storage.activation.size()) as u64);
        plan.all(Category::Optimizer, "room for an update", room);
        // One partial sum for each level of the tree over the workers of this device.
        let levels = share.workers(experiment).next_power_of_two().trailing_zeros();
        let elsewhere = experiment.memory.partial_sums == PartialSums::Host;
        if elsewhere && storage.host_apart {
            plan.count(Category::Host, "sums of virtual workers", u64::from(levels) * tensors().sum::<u64>());
        } else {
            (0..levels).for_each(|_| plan.all(Category::Gradients, "sums of virtual workers", tensors()));
        }
        if elsewhere && levels > 0 {
            plan.add(
                Category::Scratch,
                "sums of virtual workers on their way back",
                4 * tree::staged(&specs) as u64,
            );
        }
        if let Some(positions) = experiment.sample_positions() {
            for spec in decode::layout(&experiment.model, Room { streams: 1, positions }) {
                plan.add(Category::Samples, spec.name, storage.bytes(&spec));
            }
        }
        plan.add(Category::Activations, "token losses", experiment.batch.tokens * 4);
        if share.devices > 1 {
            let half = division.shards.largest_half();
            plan.add(Category::Scratch, "gradients on their way in", 4 * half as u64);
        }
        if share.devices > 1 && storage.host_apart {
            plan.count(Category::Scratch, "NCCL", NCCL_BYTES);
        }
        let rounding = (storage.taken)(&plan.sizes).saturating_sub(sum(plan.sizes.iter().copied()));
        plan.count(Category::Scratch, "rounding by the allocator", rounding);
        plan.host(experiment, storage, share);
        MemoryPlan { entries: plan.entries }
    }

    /// Device bytes in all.
    pub fn total(&self) -> u64 {
        sum(self.entries.iter().filter(|e| e.category != Category::Host).map(|e| e.bytes))
    }

    /// Bytes of one category.
    pub fn category(&self, category: Category) -> u64 {
        sum(self.entries.iter().filter(|e| e.category == category).map(|e| e.bytes))
    }
}

/// The sum of sizes, each of which fits 64 bits; a larger sum is the largest number of them.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// How several devices divide what they share.
struct Divided {
    share: Share,
    shards: Shards,
    /// The part of each parameter that the fullest device has; where all can be cut, they share evenly.
    fullest: Option<Vec<f64>>,
}

impl Divided {
    fn new(specs: &Weights<ParamSpec>, share: Share, whole: impl Fn(&ParamSpec) -> bool) -> Divided {
        let shards = Shards::new(specs, 1, share.devices.next_power_of_two() as usize, &whole);
        let owned = (0..shards.ranks()).map(|rank| shards.owned(rank));
        let fullest = owned.max_by_key(|pieces| pieces.iter().map(|piece| piece.len).sum::<usize>());
        let parts = fullest.filter(|_| specs.iter().any(whole)).map(|pieces| {
            let mut parts = vec![0.0; specs.iter().count()];
            for (spec, piece) in
                pieces.iter().filter_map(|piece| Some((specs.iter().nth(piece.tensor)?, piece)))
            {
                parts[piece.tensor] = piece.len as f64 / spec.len as f64;
            }
            parts
        });
        Divided { share, shards, fullest: parts }
    }

    /// Of a shared tensor of this many bytes, kept for a parameter, what a device holds.
    fn held(&self, parameter: usize, bytes: u64) -> u64 {
        match &self.fullest {
            None => self.share.of(bytes),
            Some(parts) => (bytes as f64 * parts[parameter]) as u64,
        }
    }
}

/// A plan being built.
#[derive(Default)]
struct Builder {
    entries: Vec<PlanEntry>,
    /// Every buffer, in the order of allocation.
    sizes: Vec<u64>,
}

impl Builder {
    fn add(&mut self, category: Category, name: &str, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.sizes.push(bytes);
        self.count(category, name, bytes);
    }

    fn all(&mut self, category: Category, name: &str, sizes: impl Iterator<Item = u64>) {
        sizes.for_each(|bytes| self.add(category, name, bytes));
    }

    /// The rows of the training state that are of this category, as one of several devices holds them.
    fn rows(&mut self, category: Category, table: &[Row], division: &Divided) {
        for row in table {
            let of = match row.home {
                Home::Host(_) => continue,
                Home::Weights(_) => Category::Parameters,
                Home::Optimizer { .. } => Category::Optimizer,
            };
            if of == category {
                let whole = (row.len * row.dtype.size()) as u64;
                let bytes = match row.parameter() {
                    Some(at) if row.division == Division::Sharded => division.held(at, whole),
                    _ => whole,
                };
                self.add(category, row.label, bytes);
            }
        }
    }

    /// Adds to the entry of that name.
    fn count(&mut self, category: Category, name: &str, bytes: u64) {
        match self.entries.iter_mut().find(|entry| entry.category == category && entry.name == name) {
            Some(entry) => entry.bytes = entry.bytes.saturating_add(bytes),
            None if bytes > 0 => self.entries.push(PlanEntry { category, name: name.into(), bytes }),
            None => {}
        }
    }

    /// Memory of the host, for one device.
    fn host(&mut self, experiment: &Experiment, storage: &Storage, share: Share) {
        let state = share.of(state_bytes(experiment, storage));
        let mut add = |name: &str, bytes: u64| self.count(Category::Host, name, bytes);
        // The copy lives until the checkpoint is on the disk, while training goes on.
        add("copy of the state, while a checkpoint is written", state);
        let read_back = (2 * GROUP_BYTES as u64).min(state_bytes(experiment, storage));
        let reads_back = experiment.parallel.ranks > 1;
        add("parts of a checkpoint that is read back, on rank 0", if reads_back { read_back } else { 0 });
        // Before the step, after it, and after it again.
        add(
            "copies of the state, for a replayed step",
            if experiment.proof.replay_every > 0 { 3 * state } else { 0 },
        );
        // Before the step and after it, whole on every rank; and what the gradients held before.
        let gradients = 4 * Weights::of(&experiment.model).parameters();
        let audited = 2 * state_bytes(experiment, storage) + gradients;
        add("copies for an audited step", if experiment.proof.audit_every > 0 { audited } else { 0 });
        add("losses of a step", experiment.batch.tokens * 4);
        let batch = 4 * (experiment.batch.micro * experiment.batch.seq_len) as u64;
        add("batches read ahead", batch * (experiment.data.prefetch as u64 + 1));
        add("pinned memory for copies", storage.pinned);
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
