//! The data of an experiment, opened and checked, and the micro-batches that training reads of them.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::messages::{Report, Work};
use crate::data::{
    Dataset, DigestCache, Plan, Prefetcher, SampleOrder, ShardDigest, Sources, Tokenizer, ValidationSet,
};
use crate::eval::TaskSet;
use crate::experiment::{Experiment, Loaded, Order};
use crate::ops::cuda::compile;

/// Where the digests of shards are remembered.
pub const SHARDS: &str = "shards.json";

/// The digests of files that this user's runs have kept under this name; none where nothing can be kept.
pub fn remembered(name: &str) -> DigestCache {
    compile::cache_folder(name).map_or_else(DigestCache::none, |file| DigestCache::open(&file))
}

/// The tokens of an experiment.
pub struct Data {
    pub train: Arc<Dataset>,
    pub validation: Option<ValidationSet>,
    pub hellaswag: Option<TaskSet>,
    pub tokenizer: Tokenizer,
}

impl Data {
    /// Opens and checks shards, or the embedded corpus, and turns epochs into steps.
    pub fn open(loaded: &mut Loaded) -> anyhow::Result<Data> {
        let experiment = &loaded.experiment;
        let seq_len = experiment.batch.seq_len;
        let Sources { train, val, tokenizer } = Sources::open(&experiment.data, experiment.model.vocab)?;
        let sequences = train.require_sequences(seq_len)?;
        let wanted = val.filter(|_| experiment.eval.every > 0);
        let validation =
            wanted.map(|val| ValidationSet::new(&val, experiment.eval.val_tokens, seq_len)).transpose()?;
        let tasks = experiment.eval.hellaswag.as_ref().filter(|_| experiment.eval.every > 0);
        let hellaswag = tasks
            .map(|path| TaskSet::open(Path::new(path), &tokenizer, experiment.model.vocab, seq_len))
            .transpose()?;
        loaded.resolve_epochs(sequences.get())?;
        Ok(Data { train, validation, hellaswag, tokenizer })
    }

    /// Name, tokens and SHA-256 of each training shard; what `cache` knows is not read again.
    pub fn manifest(&self, mut cache: DigestCache, report: Report) -> Vec<ShardDigest> {
        let hashed = report.progress(Work::Hashing, cache.unknown_bytes(&self.train));
        let manifest = cache.manifest(&self.train, |shard| hashed(shard.bytes));
        cache.save();
        manifest
    }

    /// Micro-batches of whole steps from `step` on, read ahead; `offset` samples further on in the stream.
    pub fn feed(&self, experiment: &Experiment, step: u64, offset: u64) -> anyhow::Result<Prefetcher> {
        self.feed_share(experiment, 0..experiment.sequences_per_step(), step, offset)
    }

    /// The same for one rank's share of each step's sequences.
    pub fn feed_share(
        &self,
        experiment: &Experiment,
        share: Range<u64>,
        step: u64,
        offset: u64,
    ) -> anyhow::Result<Prefetcher> {
        let sequences = self.train.require_sequences(experiment.batch.seq_len)?;
        let shuffled = experiment.data.order == Order::Shuffled;
        let plan = Plan {
            order: SampleOrder::new(experiment.seed, sequences, shuffled),
            seq_len: experiment.batch.seq_len,
            micro_batch: experiment.batch.micro,
            step_sequences: experiment.sequences_per_step(),
            share,
            overfit_single_batch: experiment.data.overfit_single_batch,
            depth: experiment.data.prefetch,
        };
        Ok(Prefetcher::start(self.train.clone(), plan, step, offset)?)
    }
}
