//! What training takes in memory, known before anything is allocated.
//!
//! There is one plan: the trainer asks for it before it allocates, `runner bench` prints it beside what was
//! taken, and `runner plan` shows it without a device. A test holds it against what [`crate::train::Trainer`]
//! asks of [`crate::ops::dry::Dry`], buffer by buffer.

use serde::Serialize;

use crate::experiment::{Compute, Experiment, PartialSums};
use crate::model::activations::{Activations, BufferSpec};
use crate::model::decode::{self, Room};
use crate::model::gpt2::scratch_shape;
use crate::model::weights::Weights;
use crate::ops::{Dtype, Role, Rows, ScratchShape, cpu, cuda};
use crate::parallel::{Shards, sums, tree};

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

/// What NCCL takes of each GPU, measured with two: docs/log.md, 2026-11-24.
const NCCL_BYTES: u64 = 970 << 20;

/// How a device stores things: what the plan needs to know of it.
#[derive(Clone, Debug)]
pub struct Storage {
    pub param: Dtype,
    pub activation: Dtype,
    /// Whether fp32 masters are kept beside narrower parameters.
    pub masters: bool,
    pub scratch: Scratch,
    /// What the device's allocator takes for buffers of these sizes in this order.
    pub taken: fn(&[u64]) -> u64,
    /// Pinned host memory for copies.
    pub pinned: u64,
    /// Whether the host's memory is another than the device's.
    pub host_apart: bool,
}

/// A device's own scratch, by name, in bytes, and when it is taken.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// When the device is opened.
    pub opened: Vec<(String, u64)>,
    /// With the model's activations.
    pub model: Vec<(String, u64)>,
}

impl Storage {
    /// What a buffer of activations takes.
    fn bytes(&self, spec: &BufferSpec) -> u64 {
        (spec.len * if spec.role == Role::F32 { 4 } else { self.activation.size() }) as u64
    }

    /// How the CPU stores an experiment.
    pub fn cpu(experiment: &Experiment, threads: usize) -> Storage {
        Storage {
            param: Dtype::F32,
            activation: Dtype::F32,
            masters: false,
            scratch: Scratch {
                model: cpu::scratch_bytes(&training_shape(experiment), threads),
                ..Scratch::default()
            },
            taken: |sizes| sizes.iter().sum(),
            pinned: 0,
            host_apart: false,
        }
    }

    /// How the mirror stores an experiment: as a GPU does in bf16, in the host's memory.
    pub fn mirror(experiment: &Experiment) -> Storage {
        Storage {
            param: Dtype::BF16,
            activation: Dtype::BF16,
            masters: experiment.precision.master_weights,
            scratch: Scratch::default(),
            taken: |sizes| sizes.iter().sum(),
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
        let masters = dtype != Dtype::F32 && experiment.precision.master_weights;
        Storage {
            param: dtype,
            activation: dtype,
            masters,
            scratch: Scratch {
                opened: cuda::opened_plan(),
                model: cuda::scratch_plan(&training_shape(experiment), compute),
            },
            taken: cuda::taken_bytes,
            pinned: cuda::PINNED_BYTES,
            host_apart: true,
        }
    }
}

/// Element types of what is saved of each parameter tensor: itself, its moments, its master.
fn state_dtypes(param: Dtype, masters: bool) -> Vec<Dtype> {
    let mut dtypes = vec![param, Dtype::F32, Dtype::F32];
    dtypes.extend(masters.then_some(Dtype::F32));
    dtypes
}

/// Bytes of the training state's tensors: what is hashed, and what a checkpoint holds.
pub fn state_bytes(experiment: &Experiment, storage: &Storage) -> u64 {
    let logical: u64 = Weights::of(&experiment.model).iter().map(|spec| spec.logical_len() as u64).sum();
    let element: usize = state_dtypes(storage.param, storage.masters).into_iter().map(Dtype::size).sum();
    // Counters, and the windows of the guards.
    logical * element as u64 + 4 * 8 + 2 * 8 * experiment.guards.window as u64
}

/// The largest shapes of an experiment's training.
pub fn training_shape(experiment: &Experiment) -> ScratchShape {
    let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    scratch_shape(&experiment.model, rows, true)
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
        let tensors = |size: usize| specs.iter().map(move |spec| (spec.len * size) as u64);
        plan.all(Category::Parameters, "weights", tensors(storage.param.size()));

        let layout = Activations::layout(&experiment.model, rows, experiment.memory.recompute, true);
        for spec in layout.specs() {
            plan.add(Category::Activations, spec.name, storage.bytes(&spec));
        }
        scratch(&mut plan, &storage.scratch.model);
        plan.all(Category::Activations, "token ids", [2 * rows.count() as u64; 2].into_iter());
        plan.add(Category::Activations, "token losses", 4 * rows.count() as u64);

        let sharded = experiment.parallel.zero > 0;
        let shard = move |bytes: u64| if sharded { share.of(bytes) } else { bytes };
        let divided = share.devices > 1 && sums::are_gradients_sharded(experiment, share.devices as usize);
        if divided {
            let written = specs.clone().with_blocks(sums::BLOCKS);
            plan.all(Category::Gradients, "gradients", written.iter().map(|spec| 4 * spec.len as u64));
            plan.all(Category::Gradients, "sums of gradients", tensors(4).map(shard));
        } else {
            plan.all(Category::Gradients, "gradients", tensors(4));
        }
        for _ in 0..2 {
            plan.all(Category::Optimizer, "moments", tensors(4).map(shard));
        }
        if storage.masters {
            plan.all(Category::Optimizer, "master weights", tensors(4).map(shard));
        }
        // One partial sum for each level of the tree over the workers of this device.
        let levels = share.workers(experiment).next_power_of_two().trailing_zeros();
        let elsewhere = experiment.memory.partial_sums == PartialSums::Host;
        if elsewhere && storage.host_apart {
            plan.count(
                Category::Host,
                "sums of virtual workers",
                u64::from(levels) * tensors(4).sum::<u64>(),
            );
        } else {
            (0..levels).for_each(|_| plan.all(Category::Gradients, "sums of virtual workers", tensors(4)));
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
            let half = Shards::new(&specs, 1, share.devices.next_power_of_two() as usize).largest_half();
            plan.add(Category::Scratch, "gradients on their way in", 4 * half as u64);
        }
        if share.devices > 1 && storage.host_apart {
            plan.count(Category::Scratch, "NCCL", NCCL_BYTES);
        }
        let rounding = (storage.taken)(&plan.sizes).saturating_sub(plan.sizes.iter().sum());
        plan.count(Category::Scratch, "rounding by the allocator", rounding);
        plan.host(experiment, storage, share);
        MemoryPlan { entries: plan.entries }
    }

    /// Device bytes in all.
    pub fn total(&self) -> u64 {
        self.entries.iter().filter(|e| e.category != Category::Host).map(|e| e.bytes).sum()
    }

    /// Bytes of one category.
    pub fn category(&self, category: Category) -> u64 {
        self.entries.iter().filter(|e| e.category == category).map(|e| e.bytes).sum()
    }
}

/// A plan in the making.
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

    /// Adds to the entry of that name.
    fn count(&mut self, category: Category, name: &str, bytes: u64) {
        match self.entries.iter_mut().find(|entry| entry.category == category && entry.name == name) {
            Some(entry) => entry.bytes += bytes,
            None if bytes > 0 => self.entries.push(PlanEntry { category, name: name.into(), bytes }),
            None => {}
        }
    }

    /// Memory of the host, for one device.
    fn host(&mut self, experiment: &Experiment, storage: &Storage, share: Share) {
        let state = share.of(state_bytes(experiment, storage));
        let mut add = |name: &str, bytes: u64| self.count(Category::Host, name, bytes);
        // The copy lives until the checkpoint is on the disk, behind the trainer's back.
        add("copy of the state, while a checkpoint is written", state);
        // Before the step, after it, and after it again.
        add(
            "copies of the state, for a replayed step",
            if experiment.proof.replay_every > 0 { 3 * state } else { 0 },
        );
        add("losses of a step", experiment.batch.tokens * 4);
        let batch = 4 * (experiment.batch.micro * experiment.batch.seq_len) as u64;
        add("batches read ahead", batch * (experiment.data.prefetch as u64 + 1));
        add("pinned memory for copies", storage.pinned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::shipped;

    /// Peaks that `runner bench` measured on an H100, without room for samples: docs/log.md, 2026-11-24.
    #[test]
    fn the_plan_is_what_was_measured_on_an_h100() {
        let (one, d48, alone) = ("parallel.workers=1", "batch.tokens=131072", "sample.every=0");
        for (name, sets, mib) in [
            ("gpt2_124m.toml", &[one][..], 22_430),
            ("gpt2_124m.toml", &[], 23_960),
            ("gpt2_33b.toml", &[one, d48, alone, "memory.recompute=1"], 57_960),
            ("gpt2_33b.toml", &[one, d48, alone], 67_400),
            ("gpt3_125m.toml", &[one], 22_530),
        ] {
            let experiment = shipped(name, sets);
            let planned = MemoryPlan::of(&experiment, &Storage::cuda(&experiment)).total() >> 20;
            let off = planned as f64 / f64::from(mib) - 1.0;
            assert!(off.abs() < 0.005, "{name} {sets:?}: {planned} MiB planned, {mib} measured, {off:+.4}");
        }
    }

    #[test]
    fn samples_have_their_place_in_the_plan_before_the_first_step() {
        let plan = |sets: &[&str]| {
            let experiment = shipped("gpt2_124m.toml", sets);
            MemoryPlan::of(
                &experiment,
                &Storage { taken: |sizes| sizes.iter().sum(), ..Storage::cuda(&experiment) },
            )
        };
        assert_eq!(plan(&[]).category(Category::Samples), 0);
        let with = plan(&["sample.every=10"]);
        let keys_and_values =
            with.entries.iter().find(|entry| entry.name == "keys and values of samples").expect("planned");
        assert_eq!(keys_and_values.bytes, 2 * 12 * 1024 * 768 * 2);
        assert_eq!(with.total() - plan(&[]).total(), with.category(Category::Samples));
    }

    #[test]
    fn several_devices_share_moments_and_masters_and_need_no_tree() {
        let experiment = shipped("gpt2_33b.toml", &["memory.partial_sums=device"]);
        let storage = Storage::cuda(&experiment);
        let (alone, eighth) = (
            MemoryPlan::of(&experiment, &storage),
            MemoryPlan::shared(&experiment, &storage, Share { devices: 8 }),
        );
        assert_eq!(
            alone.category(Category::Gradients),
            4 * eighth.category(Category::Gradients),
            "three levels of a tree"
        );
        assert_eq!(alone.category(Category::Optimizer) / 8, eighth.category(Category::Optimizer));
        assert_eq!(alone.category(Category::Activations), eighth.category(Category::Activations));
    }

    #[test]
    fn with_zero_2_a_device_holds_two_blocks_of_gradients_and_its_shard_of_the_sums() {
        let sets = ["parallel.zero=2", "batch.tokens=131072", "memory.partial_sums=device"];
        let experiment = shipped("gpt2_33b.toml", &sets);
        let storage = Storage::cuda(&experiment);
        let of = |devices| MemoryPlan::shared(&experiment, &storage, Share { devices });
        let (eighth, quarter) = (of(8), of(4));
        let specs = Weights::of(&experiment.model);
        let all = 4 * specs.parameters();
        assert_eq!(
            quarter.category(Category::Gradients),
            2 * all,
            "two workers a device: whole, and one partial sum"
        );
        let blocks: u64 = specs.layers.len() as u64;
        let tables = 4 * (specs.wte.len + specs.wpe.len + 2 * experiment.model.channels) as u64;
        let written = tables + (all - tables) / blocks * 2;
        assert!(eighth.category(Category::Gradients).abs_diff(written + all / 8) < 1 << 20);
    }

    #[test]
    fn partial_sums_in_the_hosts_memory_leave_a_small_buffer_on_the_device() {
        let plan = |place: &str| {
            let experiment = shipped("gpt2_33b.toml", &[place]);
            MemoryPlan::of(
                &experiment,
                &Storage { taken: |sizes| sizes.iter().sum(), ..Storage::cuda(&experiment) },
            )
        };
        let (device, host) = (plan("memory.partial_sums=device"), plan("memory.partial_sums=host"));
        let sums = 3 * 4 * 1_557_686_400;
        assert_eq!(device.category(Category::Gradients) - host.category(Category::Gradients), sums);
        assert_eq!(host.category(Category::Host) - device.category(Category::Host), sums);
        assert_eq!(device.total() - host.total(), sums - (64 << 20));
    }

    #[test]
    fn the_host_holds_a_copy_of_what_a_checkpoint_holds() {
        let experiment = shipped("gpt2_124m.toml", &[]);
        let storage = Storage::cuda(&experiment);
        let plan = MemoryPlan::of(&experiment, &storage);
        let copy =
            plan.entries.iter().find(|entry| entry.name.starts_with("copy of the state")).expect("an entry");
        // 124,439,808 parameters without padding, 14 bytes each.
        assert_eq!(copy.bytes, 124_439_808 * 14 + 32 + 2 * 8 * 128);
        assert!(plan.total() + copy.bytes > plan.total(), "the host's memory is no part of the device's");
    }
}
