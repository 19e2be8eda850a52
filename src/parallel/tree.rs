//! The balanced tree over virtual workers: `((0+1)+(2+3))+((4+5)+(6+7))`.
//!
//! The workers of a rank run one after the other on its device; what lies above them is [`super::reduce`]'s. As in a binary counter, a finished worker's sum
//! is added to the sum of its left sibling as soon as both exist, so `log2(V)` extra buffers hold
//! the whole tree. The order of the additions depends on V alone.

use crate::model::Weights;
use crate::ops::{Ops, Result, Role};

/// The partial sums that wait for their right sibling, one a level.
pub struct GradientTree<O: Ops> {
    levels: Vec<Weights<O::Buf>>,
    workers: usize,
}

impl<O: Ops> GradientTree<O> {
    /// Room for the `workers` of one rank, a power of two, of gradients shaped as `like`.
    pub fn new(ops: &mut O, workers: usize, like: &Weights<crate::model::ParamSpec>) -> Result<GradientTree<O>> {
        let levels =
            (0..workers.trailing_zeros()).map(|_| like.try_map(|spec| ops.alloc(Role::F32, spec.len))).collect::<Result<_>>()?;
        Ok(GradientTree { levels, workers })
    }

    /// Takes in what this rank's worker number `worker` left in `grads`. After the last worker `grads` is the sum.
    pub fn fold(&mut self, ops: &mut O, worker: usize, grads: &mut Weights<O::Buf>) -> Result<()> {
        let mut level = 0;
        while worker >> level & 1 == 1 {
            let left = &mut self.levels[level];
            for (left, right) in left.iter_mut().zip(grads.iter()) {
                ops.add(left, right)?;
            }
            std::mem::swap(left, grads);
            level += 1;
        }
        if worker + 1 < self.workers {
            std::mem::swap(&mut self.levels[level], grads);
        }
        Ok(())
    }
}
