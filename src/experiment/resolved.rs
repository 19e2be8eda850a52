//! An experiment after every layer is merged and every rule is checked: what the rest of the
//! program reads. Each field is a key of the TOML; the doc comment says what it does and its default.

use std::collections::BTreeMap;

use super::declare::{SectionText, Word, choice, section};
use super::model_keys::Model;
use serde::{Deserialize, Serialize};

section! {
    /// A whole experiment.
    pub struct Experiment {
        /// Names the run folder: letters, digits, `-`, `_`, `.` and spaces. Default: the name of the file,
        /// without `.toml`.
        pub name: String,
        /// Seeds initialisation, data order, rounding and sampling. At most 2^63 - 1, as TOML has it.
        /// Default: 1337.
        pub seed: u64,
    }
    sections {
        pub model: Model,
        pub batch: BatchKeys,
        pub schedule: ScheduleKeys,
        pub optimizer: OptimizerKeys,
        pub guards: GuardKeys,
        pub data: DataKeys,
        pub eval: EvalKeys,
        pub sample: SampleKeys,
        pub checkpoint: CheckpointKeys,
        pub memory: MemoryKeys,
        pub precision: PrecisionKeys,
        pub kernels: KernelKeys,
        pub parallel: ParallelKeys,
        pub proof: ProofKeys,
        pub log: LogKeys,
        pub plan: PlanKeys,
        pub device: DeviceKeys,
    }
}

section! {
    /// The batch of an optimizer step.
    pub struct BatchKeys {
        /// B: sequences in one forward and backward pass. Default: 4.
        pub micro: usize,
        /// T: tokens a sequence; at most `model.context`. Default: `model.context`, and 1024 where neither is
        /// given.
        pub seq_len: usize,
        /// Tokens an optimizer step; a multiple of `micro * seq_len * parallel.workers`.
        /// Default: that product, one micro-batch a worker.
        pub tokens: u64,
        /// Tokens of step 0 in a warm-up of the batch, a multiple as `tokens` is and at most that; 0 is none.
        /// Default: 0.
        pub tokens_start: u64,
        /// Steps over which the tokens of a step go in a straight line from `tokens_start` to `tokens`,
        /// rounded down to the multiple; 0 is none. Default: 0.
        pub tokens_warmup_steps: u64,
        /// Tokens of the pieces that sequences are cut into in step 0 of a warm-up of their length, a divisor
        /// of `seq_len`; 0 is none. Default: 0.
        pub seq_len_start: usize,
        /// Steps over which the tokens of a piece go in a straight line from `seq_len_start` to `seq_len`,
        /// rounded down to a divisor of `seq_len`; a step has as many tokens as without; 0 is none. Default:
        /// 0.
        pub seq_len_warmup_steps: u64,
    }
}

choice! {
    ScheduleKind {
        /// Half a cosine from the peak to the last rate.
        Cosine = "cosine",
        /// A straight line from the peak to the last rate.
        Linear = "linear",
        /// The peak to the end.
        Constant = "constant",
        /// Warm-up, stable, decay.
        Wsd = "wsd",
        /// The range test: from `final_fraction` of the peak up to the peak, by the same factor each step.
        /// `runner plot RUN --x learning_rate` draws the loss over the rates; the largest at which it still
        /// falls steeply is a peak to try.
        Range = "range",
    }
}

section! {
    /// How long to train, and the learning rate on the way.
    pub struct ScheduleKeys {
        /// Shape of the learning rate after warm-up. Default: cosine.
        pub kind: ScheduleKind,
        /// Optimizer steps; excludes `epochs`. Default: none, one of the two must be given.
        pub steps: u64,
        /// Peak learning rate. Default: 0.0006.
        pub learning_rate: f64,
        /// Linear warm-up from `1/warmup` of the peak; at most `steps`, and 0 with `range`. Default: 0.
        pub warmup_steps: u64,
        /// The last learning rate as a fraction of the peak, from 0 to 1; with `range` the first, above 0.
        /// Default: 0.1.
        pub final_fraction: f64,
        /// `wsd` only: the share of all steps that the decay takes, from 0 to 1. Default: 0.2.
        pub decay_fraction: f64,
    }
}

choice! {
    OptimizerKind {
        /// AdamW (Loshchilov and Hutter 2019) for every parameter.
        AdamW = "adamw",
        /// Muon (Jordan 2024) for the matrices of the blocks, query, key and value each by itself: momentum,
        /// made orthogonal by five Newton-Schulz iterations, as large as an update of AdamW; AdamW for
        /// tables, biases and norms.
        Muon = "muon",
    }
}

section! {
    /// The optimizer.
    pub struct OptimizerKeys {
        /// How weights follow from gradients. Default: adamw.
        pub kind: OptimizerKind,
        /// `muon` only: decay of the momentum, from 0 to below 1. Default: 0.95.
        pub momentum: f64,
        /// `muon` only: steps over which the decay of the momentum goes in a straight line from
        /// `momentum_start` to `momentum`, from the run's first step on, as the schedule's warm-up; 0 is
        /// none. Default: 0.
        pub momentum_warmup_steps: u64,
        /// `muon` only: decay of the momentum in the first step of its warm-up, from 0 to below 1.
        /// Default: 0.85.
        pub momentum_start: f64,
        /// Decay of the first moment, from 0 to below 1. Default: 0.9.
        pub beta1: f64,
        /// Decay of the second moment, from 0 to below 1. Default: 0.95.
        pub beta2: f64,
        /// Added to the root of the second moment; above 0. Default: 1e-8.
        pub epsilon: f64,
        /// Decay of the weights, times the learning rate of their group; of 2-D weights only. Default: 0.1.
        pub weight_decay: f64,
        /// Factor on the learning rate of the tables of tokens and positions, and so on their decay. The
        /// token table is the classifier too unless `model.tied_head` is false. 0 leaves these weights as
        /// they are. Default: 1.0.
        pub rate_tables: f64,
        /// Factor on the learning rate of the classifier where it is a matrix of its own, with
        /// `model.tied_head = false`, and so on its decay. Default: 1.0.
        pub rate_head: f64,
        /// Factor on the learning rate of biases and of the weights of norms. Default: 1.0.
        pub rate_vectors: f64,
        /// Factor on the learning rate of the matrices of the blocks, which are those that Muon takes, and so
        /// on their decay. Default: 1.0.
        pub rate_matrices: f64,
        /// Largest global gradient norm; 0 turns clipping off. Default: 1.0.
        pub grad_clip: f64,
        /// z: what is differentiated is the loss and `z_loss` times the square of the logarithm of the sum of
        /// the logits' exponentials (Chowdhery et al. 2022), which keeps logits small. Losses are reported
        /// without it. Default: 0.0.
        pub z_loss: f64,
        /// Decay an update of an average of the weights, which is evaluated beside them and changes no bit of
        /// them: 0.999 is an average over some thousand updates. From 0 to below 1; 0 keeps none. It takes
        /// four bytes a parameter, and evaluations take twice as long. Default: 0.0.
        pub ema_decay: f64,
        /// Go on with the optimizer of the checkpoint that `model.init` names: its moments and masters, its
        /// count of updates, the guards' windows, and the average of the weights where one is kept. Default:
        /// false.
        pub from_init: bool,
    }
}

choice! {
    OnDiverge {
        /// Stop with exit code 4; the last good checkpoint stands.
        Stop = "stop",
        /// Go back to the last checkpoint of `checkpoint.every` and on with the data behind the bad stretch;
        /// not twice to one checkpoint.
        Rewind = "rewind",
    }
}

section! {
    /// Guards against outliers.
    pub struct GuardKeys {
        /// Skip the update when the z-score of the loss against the window before it exceeds this; 0 is off.
        /// Default: 0.0.
        pub loss_z: f64,
        /// Skip the update when the z-score of the gradient norm exceeds this; 0 is off. Default: 0.0.
        pub grad_z: f64,
        /// Steps the z-score looks back on; at least 2. Default: 128.
        pub window: usize,
        /// Skips in a row that count as divergence; at least 1. Default: 16.
        pub patience: u64,
        /// What divergence leads to; `rewind` needs `checkpoint.every`. Default: stop.
        pub on_diverge: OnDiverge,
    }
}

choice! {
    Tokenizer {
        /// GPT-2's byte-pair encoding: 50257 tokens.
        Gpt2 = "gpt2",
        /// One token a byte, and 256 for `<|endoftext|>`: 257 tokens.
        Byte = "byte",
    }
}

impl Tokenizer {
    /// The tokenizer that a vocabulary is of, by its size: GPT-2's may be padded to a multiple of 128.
    pub fn of_vocab(vocab: usize) -> Option<Tokenizer> {
        match vocab {
            50257..=50304 => Some(Tokenizer::Gpt2),
            257 => Some(Tokenizer::Byte),
            _ => None,
        }
    }
}

choice! {
    Order {
        /// A keyed permutation of all sequences an epoch.
        Shuffled = "shuffled",
        /// As they lie in the shards.
        Sequential = "sequential",
    }
}

section! {
    /// What is trained and evaluated on: exactly one of `corpus`, `train` and `[data.mix]`.
    pub struct DataKeys {
        /// Embedded text instead of shards: `kjv`, or one of its testaments. Excludes `train` and `val`.
        /// Default: not set.
        pub corpus: Option<String>,
        /// Token shards to train on: glob patterns, one or a list. Default: none, for an experiment with a
        /// `corpus` or `[data.mix]`.
        pub train: Vec<String>,
        /// Token shards to evaluate on, in the same form. Default: none; then `eval.every` must be 0 unless
        /// there is a `corpus`, in `[data.mix]` perhaps.
        pub val: Vec<String>,
        /// How text becomes tokens, and how many there are. Default: gpt2, and with `model.init` that model's
        /// by its files or the size of its vocabulary; a model of other tokens is refused without this key.
        pub tokenizer: Tokenizer,
        /// Order of the training sequences. Default: shuffled.
        pub order: Order,
        /// Sequences that are passed over before the first step. Default: 0; with `optimizer.from_init` and
        /// the data, seed, order and `batch.seq_len` of the checkpoint's run as many as that had read.
        pub offset: u64,
        /// Train every step on the first batch: a debugging aid. Default: false.
        pub overfit_single_batch: bool,
        /// Micro-batches prepared ahead; at least 1. Changes no bit. Default: 2.
        pub prefetch: usize,
        /// The sources of a mixture by name; none, for an experiment without.
        pub mix: BTreeMap<String, MixSource>,
    }
}

section! {
    /// A source of a mixture; `NAME` is its name, of lower-case letters, digits, `_` and `-`. Sequences come
    /// from the sources in proportion to the weights, at every place of the run. Exactly one of `corpus` and
    /// `train`.
    pub struct MixSource {
        /// Embedded text. Its held-out part is validated on where there is no `data.val`. Default: not set.
        pub corpus: Option<String>,
        /// Token shards: glob patterns, one or a list. Default: none, for a source with a `corpus`.
        pub train: Vec<String>,
        /// The source's share of the training tokens is this divided by the sum of all weights, which may be
        /// any number. The decimals count exactly: 0.7 and 0.3 are 7 and 3. Default: none; it must be given.
        pub weight: f64,
        /// Token shards by which `runner eval --by-source` measures this source alone: glob patterns, one or
        /// a list. Changes no bit. Default: not set; then those of a `corpus` are what it holds out.
        pub val: Option<Vec<String>>,
        /// The most passes over the source that a run may make: a run of more steps is refused before its
        /// first. Changes no bit. Default: not set.
        pub max_epochs: Option<u64>,
    }
}

section! {
    /// Measuring on text that is not trained on. No key here changes a bit of the training state.
    pub struct EvalKeys {
        /// Steps between evaluations, also before the first step and after the last; 0 is never. Default:
        /// 250.
        pub every: u64,
        /// Validation tokens: the first this many, the same for every batch shape; at least one sequence.
        /// Default: 2621440, what llm.c's run reads.
        pub val_tokens: u64,
        /// HellaSwag: a jsonl file or llm.c's `.bin`, scored at every evaluation. Default: not set.
        pub hellaswag: Option<String>,
    }
}

section! {
    /// Text written by the model as it learns. No key here changes a bit of the training state.
    pub struct SampleKeys {
        /// Steps between samples, also after the last step; 0 is never. Default: 0.
        pub every: u64,
        /// Tokens a sample. Default: 64.
        pub tokens: usize,
        /// Text to go on from; empty starts at `<|endoftext|>`. Default: empty.
        pub prompt: String,
        /// Above 1 is bolder, below 1 safer; 0 takes the likeliest token. Default: 1.0.
        pub temperature: f64,
        /// Only the k likeliest tokens; 0 is all. Default: 0.
        pub top_k: usize,
    }
}

section! {
    /// When the state is saved, and which saves stay. Changes no bit.
    pub struct CheckpointKeys {
        /// Steps between checkpoints, also after the last step; 0 is only the last. Default: 2000.
        pub every: u64,
        /// Checkpoints kept; 0 keeps all. The one that `guards.on_diverge = "rewind"` needs is kept as well.
        /// Default: 0.
        pub keep_last: usize,
        /// Never delete a checkpoint whose step is a multiple of this; 0 is none. Default: 0.
        pub keep_every: u64,
        /// Where each checkpoint is copied once it is whole, below the run's name, while training goes on
        /// (`docs/copies.md`). Buckets need a program that is built with the feature `object-storage`, as
        /// releases are; their keys come from the environment. Default: not set.
        pub copy_to: Option<String>,
    }
}

section! {
    /// Time for space.
    pub struct MemoryKeys {
        /// What the backward pass computes again instead of keeping: 0 nothing, 1 the MLP's activation, 2
        /// that and the norms, those of queries and keys too. Changes no bit, and is refused where it would:
        /// above 0 with `kernels.gelu_fusion` in bf16. Of 1558M on an H200, 1 saves 9 GiB for 0.6 % of the
        /// time, 2 saves 14 GiB for 0.8 %. Default: 0.
        pub recompute: u8,
        /// Where the partial sums of a GPU's virtual workers wait, log2(V/N) of them, each as large as the
        /// fp32 gradients: `device`, or `host` for pinned memory of the machine, from and to which they move
        /// while the backward pass goes on. Changes no bit. Default: device.
        pub partial_sums: PartialSums,
    }
}

choice! {
    /// A place for partial sums.
    PartialSums {
        /// The GPU's own memory.
        Device = "device",
        /// Pinned memory of the machine.
        Host = "host",
    }
}

choice! {
    Compute {
        /// `bf16` on CUDA and in its mirror, `fp32` on the CPU.
        Auto = "auto",
        /// fp32 throughout. CPU and CUDA.
        Fp32 = "fp32",
        /// fp32 tensors, TF32 in the matrix multiplications. CUDA only.
        Tf32 = "tf32",
        /// bf16 weights and activations. CUDA and its mirror.
        Bf16 = "bf16",
    }
}

section! {
    /// Number formats.
    pub struct PrecisionKeys {
        /// Format of weights, activations and matrix multiplications. Default: auto.
        pub compute: Compute,
        /// Keep fp32 masters of bf16 weights; without, updates are rounded stochastically. Default: true.
        pub master_weights: bool,
    }
}

section! {
    /// Choices between ways to run the kernels.
    pub struct KernelKeys {
        /// GELU inside cuBLASLt's matrix multiplication on CUDA: 0 no, 1 forward, 2 forward and backward.
        /// Changes bits: there GELU reads the fp32 sum, alone the sum as stored. Our own products on Hopper
        /// fuse it with the bits of 0, and faster. Default: 0.
        pub gelu_fusion: u8,
        /// Capture a micro-step as a CUDA graph and replay it: one launch in place of hundreds. Changes no
        /// bit. Default: true.
        pub cuda_graph: bool,
    }
}

section! {
    /// How a step is split.
    pub struct ParallelKeys {
        /// V, virtual workers: a power of two. Part of the numerics: any number of devices that divides it
        /// gives the same bits. Default: 1.
        pub workers: usize,
        /// N, ranks that share the work, one device each: a power of two that divides `workers`. 0 takes as
        /// many of this machine's GPUs as divide `workers`, and one CPU; under a launcher (mpirun, srun,
        /// torchrun) its number counts. Changes no bit. Default: 0.
        pub ranks: usize,
        /// What a rank keeps its own shard of alone: 0 nothing, 1 moments and master weights, 2 gradients as
        /// well, which takes one micro-step a worker, and one worker a rank (with fewer ranks than workers
        /// gradients stay whole). Changes no bit. Default: 1.
        pub zero: u8,
        /// Seconds without a sign of life from a rank after which all ranks stop; longer than the longest
        /// step or evaluation. Default: 600.
        pub timeout_s: u64,
    }
}

section! {
    /// What is recorded to prove the bits.
    pub struct ProofKeys {
        /// Steps between state digests; 0 hashes at checkpoints alone. Changes no bit. Default: 1.
        pub digest_every: u64,
        /// Steps between replays: one step in this many is made twice from one saved state; if the bits
        /// differ, the run stops with exit code 5 and keeps both states; 0 is never. Finds silent corruption
        /// at the cost of a step and three copies of the state. Changes no bit. Default: 0.
        pub replay_every: u64,
        /// Steps between audits: of one step in this many the ledger gets a digest of all that one
        /// micro-batch computed, and parts of it are kept, which `runner verify --audit` computes again on a
        /// CPU; 0 is never. Needs bf16 on a Hopper GPU or in its mirror. Changes no bit of the state.
        /// Default: 0.
        pub audit_every: u64,
        /// How many parts of its operations an audit draws and keeps. Default: 32.
        pub audit_pieces: usize,
    }
}

section! {
    /// Console, sensors and TensorBoard.
    pub struct LogKeys {
        /// Steps between console lines; at least 1. Metrics have every step. Default: 1.
        pub every: u64,
        /// Seconds between samples of the GPU's clocks, power, temperature and throttling, kept in
        /// `gpu.jsonl`; 0 is never. Default: 10.
        pub gpu_every: u64,
        /// Keep an event file for TensorBoard. Default: true.
        pub tensorboard: bool,
    }
}

section! {
    /// What only `runner plan` reads.
    pub struct PlanKeys {
        /// Price of a GPU for an hour. Default: 3.5, an eighth of what a node of 8 H100s costs.
        pub dollars_per_gpu_hour: f64,
    }
}

choice! {
    DeviceKind {
        /// CUDA where there is a usable GPU, else the CPU.
        Auto = "auto",
        /// The CPU, in fp32.
        Cpu = "cpu",
        /// NVIDIA GPUs.
        Cuda = "cuda",
        /// The bits of a Hopper GPU in bf16, computed on the CPU.
        Mirror = "mirror",
    }
}

choice! {
    Simd {
        /// The widest the CPU has.
        Auto = "auto",
        /// AVX-512.
        Avx512 = "avx512",
        /// AVX2 with fused multiply-add.
        Avx2 = "avx2",
        /// What every CPU of the architecture has. Slow where fused multiply-add is missing.
        Baseline = "baseline",
    }
}

section! {
    /// Where the work is done. No key here changes a bit, except the choice between CPU and CUDA or its
    /// mirror.
    pub struct DeviceKeys {
        /// What computes. A Hopper GPU in bf16 and its mirror have the same bits, and a run may go on from
        /// one to the other. Default: auto.
        pub kind: DeviceKind,
        /// CPU threads; 0 is all. More than 64 are started only up to four for each CPU. Default: 0.
        pub threads: usize,
        /// Widest vector instructions the CPU may use. Default: auto.
        pub simd: Simd,
    }
}

impl Experiment {
    /// How many positions of a text the model has learned to use: those it trains on, or all when it started
    /// from a model that knew them all. Samples never go past them.
    pub fn trained_positions(&self) -> usize {
        self.trained_positions_after(u64::MAX)
    }

    /// The same after `steps` steps, of which those of a warm-up train on shorter pieces.
    pub fn trained_positions_after(&self, steps: u64) -> usize {
        if self.model.init.is_some() {
            self.model.context
        } else {
            self.batch.seq_len_of(steps.saturating_sub(1)).min(self.model.context)
        }
    }

    /// Room for the texts that are written in training; none are with `sample.every = 0`.
    pub fn sample_positions(&self) -> Option<usize> {
        (self.sample.every > 0).then(|| self.trained_positions())
    }
}
