//! What a run leaves on disk: its folder, files that are whole or absent, checkpoints that can be verified.
//!
//! Nothing here trains or decides when to save; it writes what it is given, and reading refuses anything
//! else. A kill or a full disk at any moment leaves the previous checkpoint untouched.
//!
//! * [`atomic`]: files and folders that appear whole, by rename, and go whole; `mounts`: what keeps them.
//! * [`safetensors`]: a byte-stable writer and a strict reader.
//! * [`checkpoint`]: a state and its manifest; [`parts`]: the sums of its file;
//!   [`shared`]: one written by several ranks; [`retention`]: which ones are kept; [`writer`]: saving in the
//!   background.
//! * [`compare`]: how two checkpoints differ.
//! * [`columns`]: the numbers of a step, in one table; [`metrics`]: one row a step; [`main_log`]: the same in
//!   llm.c's line format; [`tensorboard`]: the same as event files; [`records`]: these and the ledger,
//!   together; [`append`]: files that only grow; [`gpu_log`]: the readings of the GPU's sensors.
//! * [`copies`]: checkpoints elsewhere, with what a resume from there needs; [`objects`]: a folder or a
//!   bucket.
//! * [`audit`]: what is kept of an audited step.
//! * [`notes`]: what a person says of a run.
//! * [`derived`]: whether metrics and main.log agree with the ledger; [`rebuild`]: the same files written
//!   again.
//! * [`run_folder`]: where everything is, and the lock that keeps a second process out; [`contents`]: which
//!   files are this program's; [`space`]: whether there is room for them; [`sweep_folder`]: the folder of a
//!   sweep and its members.

pub mod append;
pub mod atomic;
pub mod audit;
pub mod checkpoint;
pub mod columns;
pub mod compare;
pub mod contents;
pub mod copies;
pub mod derived;
pub mod error;
pub mod gpu_log;
mod hparams;
pub mod main_log;
pub mod manifest;
pub mod metrics;
mod metrics_parquet;
mod mounts;
pub mod notes;
pub mod objects;
pub mod output;
pub mod parts;
pub mod polars_panics;
pub mod protobuf;
pub mod rebuild;
pub mod records;
pub mod retention;
pub mod run_folder;
pub mod safetensors;
pub mod shared;
pub mod space;
pub mod sweep_folder;
pub mod tensorboard;
pub mod writer;

pub use checkpoint::{Broken, LoadedCheckpoint, list, load, load_some, newest_whole, save};
pub use columns::Timing;
pub use error::StoreError;
pub use hparams::SessionStatus;
pub use manifest::{Facts, Manifest};
pub use records::{Records, RecordsError};
pub use retention::Retention;
pub use run_folder::{RunFolder, RunPaths, newest_run, run_names};
pub use safetensors::{Info, Tensor};
pub use shared::Site;
pub use sweep_folder::{MemberFolder, SweepFolder, SweepPaths};
pub use writer::{SaveJob, Writer};

/// The result of everything in the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

#[cfg(test)]
mod kill_tests;
