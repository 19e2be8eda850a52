//! The data of an experiment, opened and checked, and the micro-batches that training reads of them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use super::messages::{LongWork, Report};
use crate::data::mixture::PassedOver;
use crate::data::{
    self, BatchPlan, DataError, DataManifest, Dataset, DigestCache, Prefetcher, RankShare, SampleOrder,
    ShardDigest, Sources, Tokenizer, ValidationSet, mixture,
};
use crate::eval::TaskSet;
use crate::experiment::{Experiment, Loaded};
use crate::ops::cuda::compile;

/// The cache of the digests of shards.
pub const SHARDS: &str = "shards.json";

/// This user's cache of that name with digests of files; none where no cache folder exists.
pub fn remembered(name: &str) -> DigestCache {
    compile::cache_folder(name).map_or_else(DigestCache::none, |file| DigestCache::open(&file))
}

/// The tokens of an experiment.
pub struct Data {
    pub train: Arc<Dataset>,
    /// The order in which training reads them.
    pub order: SampleOrder,
    /// The shards of which `validation` is the start; none where nothing is validated.
    pub val: Option<Arc<Dataset>>,
    pub validation: Option<ValidationSet>,
    pub hellaswag: Option<TaskSet>,
    /// The file of `hellaswag`.
    pub hellaswag_file: Option<PathBuf>,
    pub tokenizer: Tokenizer,
}

impl Data {
    /// Opens and checks shards, or the embedded corpus, and turns epochs into steps.
    pub fn open(loaded: &mut Loaded) -> anyhow::Result<Data> {
        let experiment = &loaded.experiment;
        let seq_len = experiment.batch.seq_len;
        let Sources { train, val, tokenizer } = Sources::open(&experiment.data, experiment.model.vocab)?;
        let order = mixture::order(experiment, &train)?;
        let val = val.filter(|_| experiment.eval.every > 0);
        let validation = val
            .as_ref()
            .map(|val| ValidationSet::new(val, experiment.eval.val_tokens, seq_len))
            .transpose()?;
        let tasks = experiment.eval.hellaswag.as_ref().filter(|_| experiment.eval.every > 0);
        let hellaswag_file = tasks.map(PathBuf::from);
        hellaswag_file.as_deref().map(data::require_file).transpose()?;
        let hellaswag = hellaswag_file
            .as_ref()
            .map(|path| TaskSet::open(path, &tokenizer, experiment.model.vocab, seq_len))
            .transpose()?;
        loaded.resolve_epochs(order.sequences().sum())?;
        mixture::require_epochs(&loaded.experiment, &order, loaded.experiment.data.offset)?;
        Ok(Data { train, order, val, validation, hellaswag, hellaswag_file, tokenizer })
    }

    /// Digests of all files that a run reads. `cache` holds those of earlier runs; without one every byte is
    /// read.
    ///
    /// # Errors
    /// A file that cannot be read, or a token outside the vocabulary.
    pub fn manifest(&self, mut cache: DigestCache, report: Report) -> anyhow::Result<DataManifest> {
        let manifest = self.digests(&mut cache, report);
        // Also after an error: what was hashed before it need not be hashed again.
        cache.save();
        manifest
    }

    fn digests(&self, cache: &mut DigestCache, report: Report) -> anyhow::Result<DataManifest> {
        let train = hash(&self.train, cache, report)?;
        let val = self.val.as_ref().map(|val| hash(val, cache, report)).transpose()?.unwrap_or_default();
        let hellaswag = self.hellaswag_file.as_ref().map(|path| {
            let sha256 = cache.file(path);
            let found = sha256.and_then(|sha256| Ok((path.metadata()?.len(), sha256)));
            let (bytes, sha256) = found.with_context(|| format!("cannot read `{}`", path.display()))?;
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            anyhow::Ok((name, bytes, sha256))
        });
        Ok(DataManifest { train, val, hellaswag: hellaswag.transpose()? })
    }

    /// Warnings about the data of `experiment`, one line each.
    pub fn remarks(&self, manifest: &DataManifest, experiment: &Experiment) -> Vec<String> {
        let (seq_len, wanted) = (experiment.batch.seq_len, experiment.eval.val_tokens);
        let mut remarks = manifest.remarks(&self.train, self.val.as_deref(), &self.tokenizer, seq_len);
        remarks.extend(experiment.unfinished_warmups());
        remarks.extend(data::sources::shared_text(&experiment.data));
        remarks.extend(self.validation.as_ref().and_then(|set| set.shortfall(wanted)));
        let held_out = self.validation.as_ref().zip(self.val.as_ref());
        remarks.extend(held_out.and_then(|(set, data)| set.unreached(data)));
        let passed = mixture::passed_over(experiment, &self.order);
        remarks.extend(passed.filter(PassedOver::is_whole).map(|passed| passed.to_string()));
        remarks.extend(self.hellaswag.as_ref().and_then(TaskSet::equal_completions));
        remarks
    }

    /// Micro-batches of whole steps from `step` on, read ahead; shifted by `offset` samples in the stream.
    pub fn feed(&self, experiment: &Experiment, step: u64, offset: u64) -> anyhow::Result<Prefetcher> {
        self.feed_share(experiment, RankShare::WHOLE, step, offset)
    }

    /// The same for one rank's share of each step's sequences.
    ///
    /// # Errors
    /// A source of a mixture is read more often than it may be, because of what rewinds passed over.
    pub fn feed_share(
        &self,
        experiment: &Experiment,
        share: RankShare,
        step: u64,
        offset: u64,
    ) -> anyhow::Result<Prefetcher> {
        mixture::require_epochs(experiment, &self.order, offset)?;
        let plan = BatchPlan {
            order: self.order.clone(),
            seq_len: experiment.batch.seq_len,
            micro_batch: experiment.batch.micro,
            step_sequences: experiment.step_sequences(),
            share,
            overfit_single_batch: experiment.data.overfit_single_batch,
            depth: experiment.data.prefetch,
        };
        Ok(Prefetcher::start(self.train.clone(), plan, step, offset)?)
    }
}

fn hash(data: &Dataset, cache: &mut DigestCache, report: Report) -> Result<Vec<ShardDigest>, DataError> {
    let hashed = report.progress(LongWork::Hashing, cache.unknown_bytes(data));
    cache.manifest(data, |shard| hashed(shard.bytes))
}
