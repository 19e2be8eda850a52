//! What a run can prove: the digest of a training state, the ledger of its steps, the lock of its numerics.
//!
//! This module deals with bytes, names and hashes only. It knows nothing of GPT-2 or CUDA, so that a run can
//! be checked from `docs/digest.md` without this program.
//!
//! * [`hash`]: SHA-256 values, and hashing under a tag.
//! * [`tree`]: the Merkle tree of RFC 9162, whole and growing.
//! * [`digest`]: leaf, tensor and state digests over those.
//! * [`ledger`]: one [`entry`] a step, an append-only log whose head every checkpoint carries;
//!   [`evaluation`]: what was measured before a step.
//! * [`opening`]: some units of a tensor, shown to be its own; [`compare`]: where two tensors differ.
//! * [`lock`]: what the bits depend on, and where they were made; [`sweep`]: many runs under one hash.
//! * [`regular`]: reading files that must be files; [`json`]: JSON without a key that stands twice.

pub mod compare;
pub mod digest;
pub mod entry;
pub mod evaluation;
pub mod hash;
pub mod json;
pub mod ledger;
pub mod lock;
pub mod opening;
pub mod regular;
pub mod sweep;
pub mod tree;

pub use digest::{merkle_root, state_root, tensor_digest, tensor_digest_from_root};
pub use entry::{Action, Entry, FieldDifference};
pub use evaluation::{Evaluation, HellaSwag, Validation};
pub use hash::Hash;
pub use ledger::{Head, Ledger, LedgerError};
pub use lock::{Lock, LockError};
pub use opening::Opening;
pub use sweep::{SweepLock, SweepLockError};
