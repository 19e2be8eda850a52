//! A device that computes one operation wrong, in both passes alike, leaves a file that agrees with its
//! ledger; computing again tells.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::data::{BatchPlan, Dataset, Prefetcher, RankShare, SampleOrder};
use crate::experiment::{self, StepSequences};
use crate::ops::Ops;
use crate::ops::cuda::{Cuda, CudaOptions};
use crate::ops::testing::faulty::Faulty;
use crate::proof::{Entry, Hash};
use crate::train::Trainer;
use crate::train::record::ledger_entry;

const TEXT: &str = "seed = 1\n[model]\nlayers = 1\nheads = 1\nchannels = 64\n[data]\ncorpus = 'kjv'\n\
    tokenizer = 'byte'\n[batch]\nmicro = 2\nseq_len = 32\n[schedule]\nsteps = 4\n[proof]\n\
    audit_every = 1\n[device]\nkind = 'mirror'\nthreads = 1";

/// Audits one step on a device and computes `parts` of what was kept again.
fn audited<O: Ops>(
    ops: O,
    pieces: usize,
    parts: impl Fn(&TracedPass, BTreeSet<Drawn>) -> Vec<Drawn>,
) -> Result<Tally, AuditFault> {
    let set = [format!("proof.audit_pieces={pieces}")];
    let experiment = experiment::load_text("t", TEXT, &set).expect("a whole experiment").experiment;
    let data =
        Dataset::from_tokens("t", (0..2000).map(|i| (i * i % 251) as u16).collect(), 257).expect("tokens");
    let plan = BatchPlan {
        order: SampleOrder::new(1, data.require_sequences(32).expect("some"), true),
        seq_len: 32,
        micro_batch: 2,
        step_sequences: StepSequences::constant(2),
        share: RankShare::WHOLE,
        overfit_single_batch: false,
        depth: 1,
    };
    let mut feed = Prefetcher::start(Arc::new(data), plan, 0, 0).expect("a reader");
    let mut trainer = Trainer::new(ops, &experiment).expect("a trainer");
    trainer.step(&mut feed).expect("a step");
    let head = Head { size: 1, root: Hash::of(b"the entry of the first step") };
    trainer.begin_audit(Some(head)).expect("a state");
    let report = trainer.step(&mut feed).expect("a step");
    let root = trainer.audit_root().expect("an audited step");
    let after = Head { size: 2, root: Hash::of(b"the entry of the second") };
    let file = trainer.end_audit(&report, Some(after)).expect("a state").expect("what was kept");
    let pass = TracedPass::of(&experiment, file.step, file.recompute).expect("a pass");
    assert_eq!(tree_root(&file.trace), root);
    let specs = Weights::of(&experiment.model);
    let table = state::table(&experiment, &specs, draw::dtype(Role::Param), false);
    let mut names: Vec<String> = table.into_iter().map(|row| row.name).collect();
    names.sort();
    let entry: Entry = ledger_entry(&report, 128);
    let specs: Vec<&ParamSpec> = specs.iter().collect();
    let blocks = draw::blocks(&experiment, &specs, &after);
    let step =
        Step { entry: &entry, experiment: &experiment, names: &names, specs, file: &file, pass: &pass };
    let (mut mirror, mut tally) = (Mirror::new(&experiment.device).expect("a CPU"), Tally::default());
    for drawn in parts(&pass, draw::excerpts(&pass.trace, &head, &root, pieces)) {
        step.excerpt(&mut mirror, drawn, &mut tally)?;
    }
    for block in &blocks {
        step.update(&mut mirror, block, &blocks, &mut tally)?;
    }
    Ok(tally)
}

fn mirror() -> Mirror {
    let experiment = experiment::load_text("t", TEXT, &[]).expect("a whole experiment").experiment;
    Mirror::new(&experiment.device).expect("a CPU")
}

/// Drawn so often that every excerpt comes.
const ENOUGH: usize = 20_000;

#[test]
fn one_wrong_bit_of_one_operation_is_found_and_named_and_is_all_that_is_wrong() {
    let all = |_: &TracedPass, drawn: BTreeSet<Drawn>| drawn.into_iter().collect();
    let honest = audited(mirror(), ENOUGH, all).expect("the bits of the mirror");
    assert_eq!(honest.excerpts.len(), 13, "{:?}", honest.excerpts);
    let every: usize = honest.excerpts.values().sum();
    let fault = audited(Faulty(mirror()), ENOUGH, all).err().expect("a fault");
    assert!(fault.contains("linear: `00"), "{fault}");
    assert!(
        fault.contains("linear.out` [0, 0] is 0x") && fault.contains("computed again it is 0x"),
        "{fault}"
    );
    // What the wrong bit went into is computed right from there on.
    let others = |pass: &TracedPass, drawn: BTreeSet<Drawn>| {
        let first = |drawn: &Drawn| {
            pass.trace.operations[drawn.operation].outline.name() == "linear" && drawn.excerpt == 0
        };
        drawn.into_iter().filter(|drawn| !first(drawn)).collect()
    };
    let right = audited(Faulty(mirror()), ENOUGH, others).expect("the bits of the mirror");
    assert_eq!(right.excerpts.values().sum::<usize>(), every - 3, "three linear layers of a block");
    assert!(right.updates > 0);
}

#[test]
#[ignore = "skipped: needs a Hopper GPU; run with --include-ignored"]
fn what_a_gpu_leaves_of_a_step_the_mirror_computes_again_to_the_bit() {
    let options = CudaOptions { user_plans: false, ..CudaOptions::default() };
    let cuda = Cuda::open(&options).unwrap_or_else(|why| panic!("this test needs a Hopper GPU: {why}"));
    let all = |_: &TracedPass, drawn: BTreeSet<Drawn>| drawn.into_iter().collect();
    let tally = audited(cuda, ENOUGH, all).expect("the bits of the mirror");
    assert_eq!(tally.excerpts.len(), 13, "{:?}", tally.excerpts);
}
