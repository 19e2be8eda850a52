//! The guarantees of training on a GPU, each with a test. Each is ignored by default and fails without a
//! GPU: `cargo test --release --lib cuda -- --include-ignored`.

use std::sync::Arc;
use std::time::Duration;

use super::Trainer;
use crate::data::{BatchPlan, Dataset, Prefetcher, SampleOrder};
use crate::experiment::{self, Experiment};
use crate::ops::cuda::lanes::{Forgotten, LaneTrial};
use crate::ops::cuda::{Cuda, CudaOptions};
use crate::parallel::{Exchange, Hosted, Solo, nccl, threads};
use crate::proof::Hash;

const TEXT: &str = "seed = 1\n[model]\nlayers = 3\nheads = 2\nchannels = 128\n[data]\ncorpus = \
                    'kjv'\ntokenizer = 'byte'\n\
    [batch]\nmicro = 2\nseq_len = 64\ntokens = 2048\n[schedule]\nsteps = 8\n[device]\nkind = 'cuda'";

fn setup(settings: &[&str]) -> (Trainer<Cuda>, Prefetcher) {
    setup_rank(settings, |_| Box::new(Solo))
}

fn setup_rank(
    settings: &[&str],
    exchange: impl FnOnce(&mut Cuda) -> Box<dyn Exchange<Cuda>>,
) -> (Trainer<Cuda>, Prefetcher) {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let experiment: Experiment =
        experiment::load_text("t", TEXT, &settings).expect("a whole experiment").experiment;
    let kernels = &experiment.kernels;
    let options = CudaOptions {
        compute: experiment.precision.compute,
        gelu_fusion: kernels.gelu_fusion,
        cuda_graph: kernels.cuda_graph,
        ..CudaOptions::default()
    };
    let mut cuda = Cuda::open(&options).unwrap_or_else(|why| panic!("this test needs a CUDA GPU: {why}"));
    let exchange = exchange(&mut cuda);
    let mut trainer = Trainer::join(cuda, &experiment, exchange).expect("a trainer");
    let tokens = (0..20_000u32).map(|i| (i * i / 7 % 257) as u16).collect();
    let data = Dataset::from_tokens("t", tokens, 257).expect("tokens");
    let plan = BatchPlan {
        order: SampleOrder::new(1, data.require_sequences(64).expect("some"), true),
        seq_len: 64,
        micro_batch: 2,
        step_sequences: experiment.step_sequences(),
        share: trainer.share(),
        overfit_single_batch: false,
        depth: 2,
    };
    let feed = Prefetcher::start(Arc::new(data), plan, 0, 0).expect("a reader");
    (trainer, feed)
}

/// The root after each of four steps.
fn four_roots(trainer: &mut Trainer<Cuda>, feed: &mut Prefetcher) -> Vec<Hash> {
    let step = |_| {
        trainer.step(feed).expect("a step");
        trainer.state_root().expect("a root")
    };
    (0..4).map(step).collect()
}

/// The roots of the only rank.
fn roots(settings: &[&str]) -> Vec<Hash> {
    let (mut trainer, mut feed) = setup(settings);
    let roots = four_roots(&mut trainer, &mut feed);
    let graphs = trainer.ops.ready_graphs();
    assert_eq!(graphs > 0, !settings.contains(&"kernels.cuda_graph=false"), "{settings:?}: {graphs} graphs");
    roots
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn cuda_graphs_and_recomputation_change_no_bit() {
    let warming = [
        "batch.tokens_start=1024",
        "batch.tokens_warmup_steps=3",
        "batch.seq_len_start=8",
        "batch.seq_len_warmup_steps=3",
    ];
    for base in
        [&["parallel.workers=1"][..], &["parallel.workers=4"], &["precision.master_weights=false"], &warming]
    {
        let expected = roots(base);
        for setting in ["kernels.cuda_graph=false", "memory.recompute=1", "memory.recompute=2"] {
            let settings: Vec<&str> = base.iter().copied().chain([setting]).collect();
            assert_eq!(roots(&settings), expected, "{settings:?}");
        }
    }
}

/// The roots of a rank.
fn roots_of_rank(
    settings: &[&str],
    exchange: impl FnOnce(&mut Cuda) -> Box<dyn Exchange<Cuda>>,
) -> Vec<Hash> {
    let (mut trainer, mut feed) = setup_rank(settings, exchange);
    four_roots(&mut trainer, &mut feed)
}

/// Ranks as threads that share one GPU, bytes through host memory. The first run leaves its GEMM plans to the
/// others in this user's plan file, as rank 0 does by its lock in a real run.
#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn cuda_ranks_that_share_a_gpu_end_in_the_bits_of_one() {
    for precision in ["precision.compute=bf16", "precision.compute=fp32", "precision.master_weights=false"] {
        let base = [precision, "parallel.workers=4"];
        let expected = roots(&base);
        for (ranks, zero) in [(2, "parallel.zero=1"), (4, "parallel.zero=1"), (2, "parallel.zero=0")] {
            let settings = [&base[..], &[zero]].concat();
            let ends = threads::run(ranks, |link| roots_of_rank(&settings, |_| Box::new(Hosted(link))));
            for end in ends {
                assert_eq!(end, expected, "{ranks} ranks, {settings:?}");
            }
        }
    }
}

/// ZeRO-2, and partial sums in the host's memory, give the same bits.
#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn cuda_gradients_that_are_divided_or_wait_on_the_host_change_no_bit() {
    for tokens in ["batch.tokens=512", "batch.tokens=2048"] {
        let base = ["parallel.workers=4", tokens];
        let expected = roots(&base);
        let host = [&base[..], &["memory.partial_sums=host"]].concat();
        assert_eq!(roots_of_rank(&host, |_| Box::new(Solo)), expected, "{host:?}");
        for end in threads::run(2, |link| roots_of_rank(&host, |_| Box::new(Hosted(link)))) {
            assert_eq!(end, expected, "2 ranks, {host:?}");
        }
        if tokens == "batch.tokens=512" {
            let zero_2 = [&base[..], &["parallel.zero=2"]].concat();
            for end in threads::run(4, |link| roots_of_rank(&zero_2, |_| Box::new(Hosted(link)))) {
                assert_eq!(end, expected, "4 ranks, {zero_2:?}");
            }
        }
    }
}

/// The roots of a rank whose lanes are slowed down and, if the trial says so, do not wait for each other.
fn roots_of_trial(settings: &[&str], trial: LaneTrial, exchange: Box<dyn Exchange<Cuda>>) -> Vec<Hash> {
    let (mut trainer, mut feed) = setup_rank(settings, |_| exchange);
    trainer.ops.set_trial(trial);
    four_roots(&mut trainer, &mut feed)
}

/// Gradients are sent while others are computed. Slowing either lane changes no bit. Leaving an event out
/// shows that this test would notice a missing one.
#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn cuda_lanes_that_are_late_change_no_bit_and_a_forgotten_event_does() {
    let delay = Duration::from_millis(4);
    let main = LaneTrial { main: delay, ..LaneTrial::default() };
    let side = LaneTrial { side: delay, ..LaneTrial::default() };
    let trials = [main, side, LaneTrial { main: delay, ..side }];

    let base = ["parallel.workers=4", "batch.tokens=512"];
    let expected = roots(&base);
    let host = [&base[..], &["memory.partial_sums=host"]].concat();
    let alone = |trial| roots_of_trial(&host, trial, Box::new(Solo));
    for trial in trials {
        assert_eq!(alone(trial), expected, "partial sums on the host, {trial:?}");
    }
    let forgetful = |forget, trial| LaneTrial { forget: Some(forget), ..trial };
    assert_ne!(alone(forgetful(Forgotten::Fork, main)), expected, "partial sums leave before they are there");
    assert_ne!(
        alone(forgetful(Forgotten::Join, side)),
        expected,
        "gradients are overwritten before they have left"
    );

    for zero in ["parallel.zero=0", "parallel.zero=1", "parallel.zero=2"] {
        let settings = [&base[..], &[zero]].concat();
        let trial = |trial| {
            let rank = |link| roots_of_trial(&settings, trial, Box::new(Hosted(link)));
            threads::run(4, rank)
        };
        for late in trials {
            assert!(trial(late).iter().all(|end| *end == expected), "4 ranks, {zero}, {late:?}");
        }
    }
}

/// One rank does everything that many do: the group, its first exchange, shards, chunks of the norm.
#[test]
#[ignore = "skipped: needs a CUDA GPU and NCCL; run with --include-ignored"]
fn cuda_nccl_with_one_rank_ends_in_the_bits_of_none() {
    let base = ["parallel.workers=4"];
    let expected = roots(&base);
    let link = threads::links(1, Duration::from_secs(60)).pop().expect("one");
    let joined = |cuda: &mut Cuda| {
        let (exchange, how) = nccl::join(cuda, link).expect("a group of one");
        assert_eq!(how, "by NCCL");
        exchange
    };
    assert_eq!(roots_of_rank(&base, joined), expected);
}

/// The same with ZeRO-2, which takes one worker a rank: a worker's gradients in two blocks' buffers, and
/// copied from there.
#[test]
#[ignore = "skipped: needs a CUDA GPU and NCCL; run with --include-ignored"]
fn cuda_nccl_with_one_rank_and_zero_2_ends_in_the_bits_of_none() {
    let base = ["parallel.workers=1", "batch.tokens=128", "parallel.zero=2"];
    let expected = roots(&base);
    let link = threads::links(1, Duration::from_secs(60)).pop().expect("one");
    let ends = roots_of_rank(&base, |cuda| nccl::join(cuda, link).expect("a group of one").0);
    assert_eq!(ends, expected);
}

#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn cuda_takes_all_its_memory_before_the_first_step() {
    let (mut trainer, mut feed) = setup(&["parallel.workers=4"]);
    let before = trainer.ops.taken_bytes();
    for _ in 0..3 {
        trainer.step(&mut feed).expect("a step");
        trainer.state_root().expect("a root");
    }
    assert_eq!(trainer.ops.taken_bytes(), before);
}

/// Set in the process that causes a fault on the device.
const FAULT: &str = "TEST_DEVICE_FAULT";

/// A fault on the device ends the context for the whole process, so it happens in one of its own: this test
/// again, which then finds the variable.
#[test]
#[ignore = "skipped: needs a CUDA GPU; run with --include-ignored"]
fn cuda_faults_in_the_middle_of_a_step_name_the_operation() {
    if std::env::var_os(FAULT).is_some() {
        let (mut trainer, mut feed) = setup(&[]);
        trainer.step(&mut feed).expect("a step");
        trainer.ops.fault();
        let error = trainer.step(&mut feed).expect_err("the context is lost");
        println!("fault: {error}");
        return;
    }
    let this = std::env::current_exe().expect("this program");
    let name = "train::cuda_tests::cuda_faults_in_the_middle_of_a_step_name_the_operation";
    let out = std::process::Command::new(this)
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(FAULT, "1")
        .output()
        .expect("this program runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    println!("{text}");
    assert!(text.contains("fault: ") && text.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{text}");
    assert!(text.contains("an earlier operation may be the cause"), "{text}");
}
