//! The memory plan beside what a trainer allocates and what was measured.

use super::*;
use crate::experiment::{self, shipped};
use crate::ops::dry::Dry;
use crate::train::Trainer;

#[test]
fn the_memory_plan_is_what_the_trainer_allocates() {
    let text = "[model]\nlayers = 3\nheads = 2\nchannels = 32\n\
        [data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n[batch]\nmicro = 2\n\
        seq_len = 8\ntokens = 128\n[schedule]\nsteps = 1\n[parallel]\nworkers = \
        8\n[precision]\nmaster_weights = MASTERS\n\
        [memory]\nrecompute = LEVEL\npartial_sums = 'PLACE'\n[sample]\nevery = SAMPLES\n";
    for (masters, level, place) in [("true", "0", "device"), ("true", "1", "host"), ("false", "2", "device")]
    {
        let samples = if level == "2" { "5" } else { "0" };
        let text = text
            .replace("MASTERS", masters)
            .replace("LEVEL", level)
            .replace("SAMPLES", samples)
            .replace("PLACE", place);
        let experiment = experiment::load_text("t", &text, &[]).expect("a whole experiment").experiment;
        let storage = Storage { scratch: ScratchBytes::default(), ..Storage::cuda(&experiment) };
        let plan = MemoryPlan::of(&experiment, &Storage { taken: |sizes| sizes.iter().sum(), ..storage });
        let trainer = Trainer::new(Dry::new(Dtype::BF16), &experiment).expect("nothing can fail");
        // The token ids of a decoder are too few to be planned.
        let ids = if level == "2" { 3 * 2 * 32 } else { 0 };
        assert_eq!(
            plan.total() + ids,
            trainer.ops.taken.iter().sum::<u64>(),
            "masters {masters}, recompute {level}"
        );
        let largest = trainer.model.specs.iter().map(|spec| 4 * spec.len as u64).max();
        let staged = largest.filter(|_| place == "host").unwrap_or(0);
        assert_eq!(plan.category(Category::Scratch), staged, "{place}");
        let on_host = plan
            .entries
            .iter()
            .find(|entry| entry.name == "sums of virtual workers" && entry.category == Category::Host);
        assert_eq!(
            on_host.map_or(0, |entry| entry.bytes),
            trainer.ops.taken_of_host.iter().sum::<u64>(),
            "{place}"
        );
    }
}

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
fn several_devices_share_the_optimizers_state_and_need_no_tree() {
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
    let tables = 4 * (specs.wte.len + specs.wpe.as_ref().unwrap().len + 2 * experiment.model.channels) as u64;
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
