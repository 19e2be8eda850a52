//! A run from its folder to its end. Parses no arguments; its messages go to a [`messages::Reporter`].
//!
//! * [`ranks`] decides the role of this process, and [`parent`] starts others; [`team`] is what ranks agree
//!   on.
//! * [`open`], [`agree`], [`prepare`] and [`train`] are the steps of a run, in this order.
//! * [`device`] and [`data`] are opened, [`initial`] is a model to start from; [`locked`] and [`lock`]
//!   say what the bits depend on, [`expected`] compares a run with a lock, [`resume`] with its own
//!   checkpoint, and [`fit`] a saved state with what goes on with it.
//! * [`recorded`] holds an experiment against a run's lock and checkpoints, [`events`] what its ledger tells.
//! * [`records`], [`destination`] and [`sensors`] are the files of a run, [`copies`] what is elsewhere;
//!   [`stop`], [`ending`] and [`alerts`] its end.
//! * [`find`] finds the run that an argument names, [`branches`] the runs that start from it, and [`model`]
//!   the model; [`evaluate`] measures it, [`sample`] writes text with it, [`export`] writes it for other
//!   programs; [`track`] reads a run for other trackers.
//! * [`sweep`] trains the members of a sweep in processes of their own, and [`member`] is such a process.
//! * [`bench`] times steps, [`machine`] examines what a machine can do.

pub mod agree;
pub mod alerts;
pub mod bench;
pub mod branches;
pub mod copies;
pub mod data;
pub mod destination;
pub mod device;
pub mod ending;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod expected;
pub mod export;
pub mod find;
pub mod fit;
pub mod initial;
pub mod lock;
pub mod locked;
pub mod machine;
pub mod member;
pub mod messages;
pub mod model;
pub mod open;
pub mod outputs;
pub mod parent;
pub mod past_ledger;
pub mod prepare;
pub mod ranks;
pub mod recorded;
pub mod resume;
pub mod sample;
pub mod sensors;
pub mod stop;
pub mod sweep;
pub mod team;
pub mod track;
pub mod train;

pub use error::{ProofRefusal, StoppedOnRequest, UsageError, require_usage};
pub use open::Opened;
