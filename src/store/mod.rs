//! Files of a run folder.

mod append;
pub mod main_log;
pub mod metrics;
mod metrics_parquet;
pub(crate) mod temporary;
