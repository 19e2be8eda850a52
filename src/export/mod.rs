//! What a run becomes outside of this program.
//!
//! * [`slsa`]: a statement of what was made, of what and how, for supply-chain tools.

pub mod slsa;
