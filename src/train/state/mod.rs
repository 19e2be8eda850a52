//! The training state as named tensors: all that the next step reads, and nothing else.
//!
//! [`table`] lists them; checkpoint, digest, restore and the memory plan walk that list. Parameters have
//! their own names, the optimizer's tensors a prefix and a slash before these, the guards' windows `guard/…`,
//! the counters `train/…`.
//!
//! Names, shapes and bytes are those of whole tensors, however many ranks share them. Of a sharded tensor
//! each rank hashes the nodes of the tree that lie in its shard, and only digests move.

mod optimizer;
mod table;

use std::collections::BTreeMap;
use std::ops::Range;

pub(super) use optimizer::OptimizerState;
pub use table::{Division, Home, Row, table};

use super::TrainError;
use super::trainer::Trainer;
use crate::ops::{Ops, Result};
use crate::parallel::exchange::all_gather;
use crate::parallel::{Piece, Shards};
use crate::proof::digest::LEAF_BYTES;
use crate::proof::tree::{aligned_runs, join};
use crate::proof::{self, Hash};
use crate::store::shared::Extent;
use crate::store::{Info, Tensor, checkpoint};

impl<O: Ops> Trainer<O> {
    /// The header entry of each tensor in a file with the whole state.
    pub fn state_infos(&mut self) -> Vec<Info> {
        let mut infos: Vec<Info> = self.progress.tensors().iter().map(Info::of).collect();
        infos.extend(self.table.iter().filter(|row| row.parameter().is_some()).map(|row| Info {
            name: row.name.clone(),
            dtype: row.dtype,
            shape: row.shape.clone(),
            bytes: row.bytes(),
        }));
        infos
    }

    /// This rank's part of a state that all ranks save together: its shard of the device tensors, and on
    /// rank 0 the host's.
    pub fn read_extents(&mut self) -> Result<Vec<Extent>> {
        let host = if self.exchange.link().rank() == 0 { self.progress.tensors() } else { Vec::new() };
        let host = host.into_iter().map(|t| Extent { tensor: t.name, at: 0, bytes: t.bytes });
        Ok(host.chain(self.read_shard()?).collect())
    }

    /// This rank's shard of the device tensors, in the table's order: of every tensor, also of those that
    /// each rank has whole, so that all ranks together read every byte once.
    fn read_shard(&mut self) -> Result<Vec<Extent>> {
        let Trainer { ops, exchange, table, shards, model, optimizer, .. } = self;
        let held = Held { weights: model.params.iter().zip(shards.whole()).collect(), optimizer };
        let mut extents = Vec::new();
        for (row, rank, range) in shares(table, shards) {
            if rank != exchange.link().rank() {
                continue;
            }
            let (piece, buf) = held.of(row).expect("a rank holds its own shard");
            let mut bytes = vec![0; range.len()];
            // A shard may begin in the padding, behind the last byte of the state.
            if !range.is_empty() {
                ops.read_at(buf, range.start - piece.start * row.dtype.size(), &mut bytes)?;
            }
            extents.push(Extent { tensor: row.name.clone(), at: range.start as u64, bytes });
        }
        Ok(extents)
    }

    /// A copy of the whole state, sorted by name. All ranks call it, and every one gets all of it.
    pub fn state(&mut self) -> Result<Vec<Tensor>, TrainError> {
        let mine = self.read_shard()?.into_iter().map(|extent| extent.bytes);
        let pieces: Vec<Vec<u8>> = if self.exchange.link().size() == 1 {
            mine.collect()
        } else {
            let mine = mine.collect::<Vec<_>>().concat();
            let all = all_gather(self.exchange.link(), "the gathering of the state", mine)?;
            let mut rest: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
            // Equal lengths everywhere: the same function divided the tensors on every rank.
            let piece = |(_, rank, range): (&Row, usize, Range<usize>)| {
                let (bytes, behind) = rest[rank].split_at(range.len());
                rest[rank] = behind;
                bytes.to_vec()
            };
            shares(&self.table, &self.shards).map(piece).collect()
        };
        let mut state = self.progress.tensors();
        for ((row, ..), bytes) in shares(&self.table, &self.shards).zip(pieces) {
            match state.last_mut() {
                Some(tensor) if tensor.name == row.name => tensor.bytes.extend_from_slice(&bytes),
                _ => state.push(Tensor {
                    name: row.name.clone(),
                    dtype: row.dtype,
                    shape: row.shape.clone(),
                    bytes,
                }),
            }
        }
        state.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(state)
    }

    /// SHA-256 root of the state, as `docs/digest.md` specifies; all ranks call it. Hashed where the tensors
    /// are when the device can; else copied to the host one tensor at a time.
    ///
    /// # Errors
    ///
    /// [`TrainError::RanksDiffer`] when what every rank must hold is not the same on all.
    pub fn state_root(&mut self) -> Result<Hash, TrainError> {
        let mut digests: Vec<(String, Hash)> =
            self.progress.tensors().into_iter().map(|t| (t.name.clone(), checkpoint::digest(&t))).collect();
        let step = self.progress.step;
        let Trainer { ops, exchange, table, shards, model, optimizer, .. } = self;
        let held = Held { weights: model.params.iter().zip(shards.whole()).collect(), optimizer };
        let on_device = table.iter().filter(|row| row.parameter().is_some());
        let (replicated, sharded): (Vec<&Row>, Vec<&Row>) =
            on_device.partition(|row| row.division == Division::Replicated);

        let hashed = replicated.iter().chain(&sharded).flat_map(|row| held.hashed(row));
        let mut mine = roots(ops, &hashed.collect::<Vec<_>>())?.into_iter();

        // What every rank has whole must be the same on all; of the rest each gives the digests of its shard.
        digests.extend(
            replicated.iter().zip(&mut mine).map(|(row, root)| (row.name.clone(), row.digest(&root))),
        );
        let message = [root(&digests)].into_iter().chain(mine).flat_map(|hash| hash.0).collect();
        let all = all_gather(exchange.link(), "the comparison of states", message)?;
        let mut theirs: Vec<_> =
            all.iter().map(|bytes| bytes.as_chunks::<32>().0.iter().map(|hash| Hash(*hash))).collect();
        let replicas: Vec<Option<Hash>> = theirs.iter_mut().map(Iterator::next).collect();
        if let Some(differing) = minority(&replicas, &mut |rank| exchange.link().host(rank)) {
            return Err(TrainError::RanksDiffer { step, differing });
        }
        for row in sharded {
            let mut nodes = Vec::new();
            for (rank, piece) in row.parameter().into_iter().flat_map(|at| shards.of(at)) {
                let runs = runs(row.division, row.bytes_of(piece)).into_iter();
                let leaves = runs.map(|run| run.len().div_ceil(LEAF_BYTES) as u64);
                nodes.extend(leaves.zip(&mut theirs[*rank]));
            }
            digests.push((row.name.clone(), row.digest(&join(nodes))));
        }
        Ok(root(&digests))
    }

    /// Whether this rank holds anything of a state tensor, so that [`Trainer::restore`] needs it.
    pub fn needs(&self, name: &str) -> bool {
        let row = self.table.iter().find(|row| row.name == name);
        row.is_none_or(|row| match row.home {
            Home::Host(_) | Home::Weights(_) => true,
            Home::Optimizer { parameter, .. } => self.optimizer.of(parameter).is_some(),
        })
    }

    /// Puts a saved state in place of the present one; a rank takes what it holds.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, is not of this model, or has another dtype or shape; then the
    /// present state is not to be used any more.
    pub fn restore(&mut self, state: Vec<Tensor>) -> Result<(), TrainError> {
        let mut saved: BTreeMap<String, Tensor> = state.into_iter().map(|t| (t.name.clone(), t)).collect();
        let bad = |tensor: &str, problem: String| TrainError::State { tensor: tensor.into(), problem };
        let Trainer { ops, table, shards, model, optimizer, progress, .. } = self;
        let whole = shards.whole();
        let mut weights: Vec<&mut O::Buf> = model.params.iter_mut().collect();
        for row in table.iter() {
            let tensor = saved.remove(&row.name);
            let (piece, buf) = match row.home {
                Home::Host(at) => {
                    let tensor = tensor.ok_or_else(|| bad(&row.name, "is missing".into()))?;
                    progress.values()[at].1.set(&tensor)?;
                    continue;
                }
                Home::Weights(at) => (&whole[at], &mut *weights[at]),
                Home::Optimizer { parameter, slot } => match optimizer.of_mut(parameter) {
                    Some(part) => (&part.piece, &mut part.bufs[slot]),
                    // Another rank's.
                    None => continue,
                },
            };
            let tensor = tensor.ok_or_else(|| bad(&row.name, "is missing".into()))?;
            if (tensor.dtype, &tensor.shape) != (row.dtype, &row.shape) {
                let (dtype, shape) = (tensor.dtype, tensor.shape);
                let needs = format!("this experiment needs {} {:?}", row.dtype, row.shape);
                return Err(bad(&row.name, format!("is {dtype} {shape:?}, {needs}")));
            }
            ops.write_bytes(buf, &tensor.bytes[row.bytes_of(piece)])?;
        }
        match saved.into_keys().next() {
            Some(name) => Err(bad(&name, "does not belong to this experiment".into())),
            None => Ok(()),
        }
    }
}

/// The device tensors of the state as this rank holds them.
struct Held<'a, B> {
    /// Every parameter, whole.
    weights: Vec<(&'a B, Piece)>,
    optimizer: &'a OptimizerState<B>,
}

impl<'a, B> Held<'a, B> {
    /// The buffer of a row, and the piece of the tensor in it; none of the host's, and of what other ranks
    /// hold.
    fn of(&self, row: &Row) -> Option<(&Piece, &'a B)> {
        match row.home {
            Home::Host(_) => None,
            Home::Weights(at) => Some((&self.weights[at].1, self.weights[at].0)),
            Home::Optimizer { parameter, slot } => {
                let part = self.optimizer.of(parameter)?;
                Some((&part.piece, &part.bufs[slot]))
            }
        }
    }

    /// The ranges of bytes of a row's buffer that this rank hashes.
    fn hashed(&self, row: &Row) -> Vec<(&'a B, Range<usize>)> {
        let Some((piece, buf)) = self.of(row) else { return Vec::new() };
        let bytes = row.bytes_of(piece);
        let in_buf = |run: Range<usize>| run.start - bytes.start..run.end - bytes.start;
        runs(row.division, bytes.clone()).into_iter().map(|run| (buf, in_buf(run))).collect()
    }
}

/// The device tensors of the state in the shards of all ranks, every byte once: row, rank and bytes.
fn shares<'a>(table: &'a [Row], shards: &'a Shards) -> impl Iterator<Item = (&'a Row, usize, Range<usize>)> {
    table.iter().flat_map(|row| {
        let shards = row.parameter().into_iter().flat_map(|parameter| shards.of(parameter));
        shards.map(move |(rank, piece)| (row, *rank, row.bytes_of(piece)))
    })
}

/// What is hashed of a range of a tensor's bytes: all of it as a tree of its own, or the nodes of the
/// tensor's tree that it consists of.
fn runs(division: Division, bytes: Range<usize>) -> Vec<Range<usize>> {
    // A part that is all padding has no leaf, though it may lie within one.
    let last = if bytes.is_empty() { bytes.start / LEAF_BYTES } else { bytes.end.div_ceil(LEAF_BYTES) };
    let leaves = (bytes.start / LEAF_BYTES) as u64..last as u64;
    let runs = match division {
        Division::Replicated => vec![leaves],
        Division::Sharded => aligned_runs(leaves),
    };
    let in_bytes =
        |run: Range<u64>| run.start as usize * LEAF_BYTES..(run.end as usize * LEAF_BYTES).min(bytes.end);
    runs.into_iter().map(in_bytes).collect()
}

/// Merkle roots of ranges of buffers.
fn roots<O: Ops>(ops: &mut O, ranges: &[(&O::Buf, Range<usize>)]) -> Result<Vec<Hash>> {
    if let Some(roots) = ops.merkle_roots(ranges)? {
        return Ok(roots.into_iter().map(Hash).collect());
    }
    let mut bytes = Vec::new();
    let mut hash = |(buf, range): &(&O::Buf, Range<usize>)| {
        bytes.resize(range.len(), 0);
        ops.read_at(buf, range.start, &mut bytes)?;
        Ok(proof::merkle_root(&bytes))
    };
    ranges.iter().map(&mut hash).collect()
}

fn root(digests: &[(String, Hash)]) -> Hash {
    proof::state_root(digests.iter().map(|(name, digest)| (name.as_str(), *digest)))
        .expect("the state's names are unique")
}

/// The ranks that differ from most, and what they have; none if all agree.
fn minority(hashes: &[Option<Hash>], host: &mut dyn FnMut(usize) -> String) -> Option<String> {
    let votes = |hash: &Option<Hash>| hashes.iter().filter(|other| *other == hash).count();
    let text = |hash: &Option<Hash>| hash.map_or("nothing".into(), |hash| hash.to_string());
    // Of equally many the one of the lowest rank, so that all ranks name the same.
    let best = hashes.iter().map(votes).max()?;
    let usual = hashes.iter().find(|hash| votes(hash) == best)?;
    let differing: Vec<String> = hashes
        .iter()
        .enumerate()
        .filter(|(_, hash)| *hash != usual)
        .map(|(rank, hash)| format!("rank {rank} on `{}` has {}", host(rank), text(hash)))
        .collect();
    let of = hashes.len();
    (!differing.is_empty()).then(|| format!("{}, {best} of {of} have {}", differing.join(", "), text(usual)))
}
