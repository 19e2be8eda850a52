//! Launches of `digest.cu`: SHA-256 Merkle trees over many tensors at once.

use super::super::args::{Element, In, Out, U8, bindings};
use super::super::modules::{Geometry, Kernels};
use crate::ops::Result;
use crate::proof::hash;

bindings! {
    "digest.cu" {
        /// One row of the table that [`DigestLeavesArgs`] points to.
        struct DigestTensor { data: In<U8>, bytes: u64, first: u64 }
        struct DigestLeavesArgs {
            tensors: In<DigestTensor>, digests: Out<DigestValue>, leaves: u64, count: u32,
            after_tag: [u32; 8], unused: u32,
        }
        /// One row of the table that [`DigestNodesArgs`] points to.
        struct DigestRun { source: u64, count: u64, first: u64 }
        struct DigestNodesArgs {
            runs: In<DigestRun>, source: In<DigestValue>, target: Out<DigestValue>, count: u32,
            after_tag: [u32; 8], bytes_out: u32,
        }
        kernel LEAVES(DigestLeavesArgs) = "digest_leaves";
        kernel NODES(DigestNodesArgs) = "digest_nodes";
    }
}

impl Element for DigestTensor {
    const C_NAME: &'static str = "DigestTensor";
}

/// 32 bytes of SHA-256 on the device.
#[derive(Clone, Copy)]
pub struct DigestValue;

impl Element for DigestValue {
    const C_NAME: &'static str = "DigestValue";
}

impl Element for DigestRun {
    const C_NAME: &'static str = "DigestRun";
}

pub const LEAF_BYTES: u64 = 4096;
/// Neighbours that one block of `digest_nodes` reduces to one.
pub const GROUP: u64 = 512;
/// Launches of `digest_nodes` until one digest is left: enough for a tensor of 2^48 bytes.
pub const MOST_LEVELS: u64 = 4;
const OP: &str = "merkle_roots";

/// # Safety
/// `table` holds `count` rows of live tensors, `leaves` leaves in all; `digests` has room for as many.
pub unsafe fn leaves(k: &Kernels, table: u64, count: u32, digests: u64, leaves: u64) -> Result<()> {
    let args = DigestLeavesArgs {
        tensors: In::at(table),
        digests: Out::at(digests),
        leaves,
        count,
        after_tag: hash::LEAF.state(),
        unused: 0,
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch(OP, &LEAVES, Geometry::new(leaves.div_ceil(128), 128), &args) }
}

/// # Safety
/// `runs` holds `count` rows that lie in `source`; `target` has room for `groups` digests.
pub unsafe fn nodes(
    k: &Kernels,
    runs: u64,
    count: u32,
    source: u64,
    target: u64,
    groups: u64,
    last: bool,
) -> Result<()> {
    let args = DigestNodesArgs {
        runs: In::at(runs),
        source: In::at(source),
        target: Out::at(target),
        count,
        after_tag: hash::NODE.state(),
        bytes_out: u32::from(last),
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch(OP, &NODES, Geometry::new(groups, 256), &args) }
}
