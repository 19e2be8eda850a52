//! The balanced tree over virtual workers: `((0+1)+(2+3))+((4+5)+(6+7))`.
//!
//! The workers of a rank run one after the other on its device; [`super::reduce`] adds the levels above them.
//! As in a binary counter, a finished worker's sum is added to the sum of its left sibling as soon as both
//! exist, so `log2(V)` partial sums hold the whole tree. The order of the additions depends on V alone.
//!
//! A partial sum is kept for long and read once. It may do so in the host's memory, from where it
//! comes back through a small buffer: the same sums, a little traffic, and no room on the device.

use crate::experiment::PartialSums;
use crate::model::{Group, ParamSpec, Weights};
use crate::ops::{Add, AddPart, CopyPart, Ops, Result, Role};

/// Elements of the buffer through which partial sums come back from the host.
pub const STAGED: usize = 16 << 20;

/// The partial sums that wait for their right sibling, one a level.
pub struct GradientTree<O: Ops> {
    levels: Vec<Weights<O::Buf>>,
    /// Elements of each tensor.
    lens: Weights<usize>,
    workers: usize,
    /// Where partial sums come back from the host, if that is where they wait.
    staging: Option<O::Buf>,
}

impl<O: Ops> GradientTree<O> {
    /// Room for the `workers` of one rank, a power of two, of gradients shaped as `like`.
    pub fn new(
        ops: &mut O,
        workers: usize,
        like: &Weights<ParamSpec>,
        place: PartialSums,
    ) -> Result<GradientTree<O>> {
        let levels = workers.trailing_zeros();
        let on_host = place == PartialSums::Host && levels > 0;
        let mut room = |len| if on_host { ops.alloc_host(len) } else { ops.alloc(Role::F32, len) };
        let levels = (0..levels).map(|_| like.try_map(|spec| room(spec.len))).collect::<Result<_>>()?;
        let staging = on_host.then(|| ops.alloc(Role::F32, staged(like))).transpose()?;
        let Ok(lens) = like.try_map(|spec| Ok::<_, std::convert::Infallible>(spec.len));
        Ok(GradientTree { levels, lens, workers, staging })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Whether partial sums wait in the host's memory.
    pub fn is_on_host(&self) -> bool {
        self.staging.is_some()
    }

    /// Adds a group of the gradients that this rank's worker number `worker` left in `grads`. After the last
    /// worker `grads` holds the sum. The buffers in `grads` may be others then: those of a partial sum.
    pub fn fold(
        &mut self,
        ops: &mut O,
        worker: usize,
        group: Group,
        grads: &mut Weights<O::Buf>,
    ) -> Result<()> {
        let lens = self.lens.group(group);
        let mut grads = grads.group_mut(group);
        let mut level = 0;
        while worker >> level & 1 == 1 {
            for ((left, right), len) in
                self.levels[level].group_mut(group).into_iter().zip(&mut grads).zip(&lens)
            {
                match &mut self.staging {
                    Some(staging) => add_staged(ops, right, left, **len, staging, STAGED)?,
                    None => {
                        ops.add(Add { dst: left, src: right })?;
                        std::mem::swap(left, right);
                    }
                }
            }
            level += 1;
        }
        if worker + 1 < self.workers {
            for ((waiting, sum), len) in self.levels[level].group_mut(group).into_iter().zip(grads).zip(&lens)
            {
                match self.staging {
                    Some(_) => ops.copy(CopyPart { dst: waiting, at: 0, src: sum, from: 0, len: **len })?,
                    None => std::mem::swap(waiting, sum),
                }
            }
        }
        Ok(())
    }
}

/// Elements of the buffer that brings partial sums back: no more than the largest tensor.
pub fn staged(like: &Weights<ParamSpec>) -> usize {
    like.iter().map(|spec| spec.len).max().unwrap_or(0).min(STAGED)
}

/// `dst += src` of `len` elements, `src` brought over in pieces of at most `most` elements.
fn add_staged<O: Ops>(
    ops: &mut O,
    dst: &mut O::Buf,
    src: &O::Buf,
    len: usize,
    staging: &mut O::Buf,
    most: usize,
) -> Result<()> {
    for at in (0..len).step_by(most) {
        let piece = most.min(len - at);
        ops.copy(CopyPart { dst: staging, at: 0, src, from: at, len: piece })?;
        ops.add_part(AddPart { dst, at, src: staging, from: 0, len: piece })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;
    use crate::ops::cpu::Cpu;

    #[test]
    fn a_sum_that_comes_back_in_pieces_is_the_whole_sum() {
        let text = "[model]\nlayers = 1\nheads = 1\nchannels = 32\n[data]\ncorpus = 'kjv'\ntokenizer = \
                    'byte'\n[batch]\nmicro = 1\n\
            seq_len = 8\n[schedule]\nsteps = 1";
        let experiment = experiment::load_text("t", text, &[]).expect("a whole experiment").experiment;
        let mut cpu = Cpu::new(&experiment.device).expect("a CPU");
        let len = 103;
        let values = |scale: f32| (0..len).map(|i| scale * i as f32).collect::<Vec<f32>>();
        for most in [4, 8, 64, 103, 200] {
            let mut room = |len| cpu.alloc(Role::F32, len).expect("room");
            let (mut dst, mut src, mut staging) = (room(len), room(len), room(most.min(len)));
            cpu.upload(&mut dst, &values(1.0)).expect("an upload");
            cpu.upload(&mut src, &values(0.5)).expect("an upload");
            add_staged(&mut cpu, &mut dst, &src, len, &mut staging, most).expect("a sum");
            let mut sum = vec![0.0; len];
            cpu.download(&dst, &mut sum).expect("a download");
            assert_eq!(sum, values(1.5), "pieces of {most}");
        }
    }
}
