//! Tokens in: from text or shards on disk to the micro-batches of a step.
//!
//! A tour, in the order in which a token travels:
//!
//! * [`tokenizer`]: text to tokens and back.
//! * [`prepare`]: text files to token shards. [`corpus`]: the text that is built in.
//! * [`shard`]: the shard format, checked to the byte. `read_at`: reading at a position, with an error if the
//!   file has changed.
//! * [`sources`]: what an experiment's `data` table names, opened.
//! * [`dataset`]: all shards of a run as one space of sequences.
//! * [`digests`]: the SHA-256 of each shard, remembered between runs. [`remarks`]: warnings about them.
//! * [`order`]: the sequence at each position of the endless stream of samples; [`interleaving`]: of several
//!   sources, which. [`mixture`]: what a run reads of each source.
//! * [`prefetch`]: micro-batches read ahead of the trainer. [`validation`]: the fixed held-out set.
//! * [`fetch`]: data sets from the Hugging Face hub and GitHub.
//!
//! Nothing here has state that a resume must save: what is read next follows from the step number.
//! Nothing here knows of devices or prints, and only [`fetch`] uses a network.

#![forbid(unsafe_code)]

pub mod corpus;
pub mod dataset;
pub mod digests;
mod error;
pub mod fetch;
pub mod interleaving;
pub mod mixture;
pub mod order;
mod passages;
pub mod prefetch;
pub mod prepare;
mod read_at;
pub mod remarks;
pub mod shard;
pub mod sources;
pub mod tokenizer;
pub mod validation;

pub use dataset::{Dataset, ShardDigest, ShardInfo};
pub use digests::DigestCache;
pub use error::DataError;
pub use order::SampleOrder;
pub use prefetch::{Batch, BatchPlan, Prefetcher, RankShare, Waits};
pub use read_at::require_file;
pub use remarks::DataManifest;
pub use sources::Sources;
pub use tokenizer::{StreamDecoder, Tokenizer};
pub use validation::ValidationSet;
