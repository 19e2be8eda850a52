//! The training state as named tensors: all that the next step reads, and nothing else.
//!
//! This list is what a checkpoint holds and what the state digest covers. Parameters bear their own
//! names; AdamW's moments are `adam_m/…` and `adam_v/…`, fp32 masters `master/…`, the guards' memory
//! `guard/…`, the counters `train/…`.
//!
//! Names, shapes and bytes are those of whole tensors, however many ranks share them. Of a divided
//! tensor each rank hashes the nodes of the tree that lie in its shard, and only digests move.

use std::collections::BTreeMap;
use std::ops::Range;

use super::TrainError;
use super::trainer::Trainer;
use crate::model::{Gpt2, ParamSpec};
use crate::ops::{Dtype, Ops, Result, Role};
use crate::optim::guards::Window;
use crate::parallel::exchange::all_gather;
use crate::parallel::{Exchange, Piece, Shards};
use crate::proof::digest::LEAF_BYTES;
use crate::proof::tree::{aligned_runs, join};
use crate::proof::{self, Hash};
use crate::store::{Info, Tensor, checkpoint, shared};

type Saved = BTreeMap<String, Tensor>;

/// A range of bytes of a device tensor of the state, and the rank that saves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub dtype: Dtype,
    /// Of the whole tensor.
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    pub rank: usize,
}

impl<O: Ops> Trainer<O> {
    fn split(&mut self) -> (&mut O, &mut dyn Exchange<O>, Held<'_, O>) {
        let Trainer { ops, exchange, model, shards, kept, sharded, adam_m, adam_v, masters, .. } = self;
        let held = Held {
            param: ops.dtype(Role::Param),
            model,
            shards,
            kept,
            sharded: *sharded,
            adam_m,
            adam_v,
            masters,
        };
        (ops, &mut **exchange, held)
    }

    /// The device tensors of the state in the shards of all ranks: every byte once.
    pub fn parts(&mut self) -> Vec<Part> {
        let (_, _, held) = self.split();
        let specs: Vec<&ParamSpec> = held.model.specs.iter().collect();
        let mut parts = Vec::new();
        for group in held.groups() {
            for (rank, piece) in held.shards.all() {
                let spec = specs[piece.tensor];
                let (name, shape) = (format!("{}{}", group.prefix, spec.name), spec.shape.clone());
                parts.push(Part {
                    name,
                    dtype: group.dtype,
                    shape,
                    range: group.bytes(piece, spec),
                    rank: *rank,
                });
            }
        }
        parts
    }

    /// The bytes of this rank's [`Trainer::parts`], in their order.
    pub fn read_parts(&mut self) -> Result<Vec<Vec<u8>>> {
        let (ops, exchange, held) = self.split();
        let owned = held.shards.owned(exchange.link().rank());
        let specs: Vec<&ParamSpec> = held.model.specs.iter().collect();
        let mut parts = Vec::new();
        for group in held.groups() {
            let mut bufs = group.bufs.iter().peekable();
            for piece in &owned {
                while bufs.next_if(|(part, _)| part.tensor < piece.tensor).is_some() {}
                let (part, buf) = bufs.peek().expect("a rank holds its own shard");
                let range = group.bytes(piece, specs[piece.tensor]);
                let mut bytes = vec![0; range.len()];
                // A shard may begin in the padding, behind the last byte of the state.
                if !range.is_empty() {
                    ops.read_at(buf, range.start - part.start * group.dtype.size(), &mut bytes)?;
                }
                parts.push(bytes);
            }
        }
        Ok(parts)
    }

    /// What a file with the whole state says of each tensor.
    pub fn state_infos(&mut self) -> Vec<Info> {
        let mut infos: Vec<Info> = self.host_state().iter().map(Info::of).collect();
        for Part { name, dtype, shape, .. } in self.parts().into_iter().filter(|part| part.range.start == 0) {
            if infos.last().is_some_and(|last| last.name == name) {
                continue;
            }
            let bytes = shape.iter().product::<usize>() * dtype.size();
            infos.push(Info { name, dtype, shape, bytes });
        }
        infos
    }

    /// What this rank saves of a state that all ranks save together; the host's tensors are rank 0's.
    pub fn read_pieces(&mut self) -> Result<Vec<shared::Piece>> {
        let rank = self.exchange.link().rank();
        let bytes = self.read_parts()?;
        let parts = self.parts().into_iter().filter(|part| part.rank == rank);
        let host = if rank == 0 { self.host_state() } else { Vec::new() };
        let host = host.into_iter().map(|t| shared::Piece { tensor: t.name, at: 0, bytes: t.bytes });
        let piece = |(part, bytes): (Part, Vec<u8>)| shared::Piece {
            tensor: part.name,
            at: part.range.start as u64,
            bytes,
        };
        Ok(host.chain(parts.zip(bytes).map(piece)).collect())
    }

    /// A copy of the whole state, sorted by name. All ranks call it, and every one gets all of it.
    pub fn state(&mut self) -> Result<Vec<Tensor>, TrainError> {
        let mine = self.read_parts()?.concat();
        let all = all_gather(self.exchange.link(), "the gathering of the state", mine)?;
        let mut rest: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let mut state = self.host_state();
        for Part { name, dtype, shape, range, rank } in self.parts() {
            // Equal lengths everywhere: the same function divided the tensors on every rank.
            let (bytes, behind) = rest[rank].split_at(range.len());
            rest[rank] = behind;
            match state.last_mut() {
                Some(tensor) if tensor.name == name => tensor.bytes.extend_from_slice(bytes),
                _ => state.push(Tensor { name, dtype, shape, bytes: bytes.to_vec() }),
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
        let host = self.host_state();
        let step = self.progress.step;
        let (ops, exchange, held) = self.split();
        let groups = held.groups();
        let specs: Vec<&ParamSpec> = held.model.specs.iter().collect();
        let mut asked: Vec<(&O::Buf, Range<usize>)> = Vec::new();
        for group in &groups {
            for (part, buf) in &group.bufs {
                let bytes = group.bytes(part, specs[part.tensor]);
                asked.extend(
                    runs(group.everywhere, &bytes)
                        .map(|run| (*buf, run.start - bytes.start..run.end - bytes.start)),
                );
            }
        }
        let mut mine = hash(ops, &asked)?.into_iter();

        // What every rank has whole, and the digests of what is divided.
        let mut digests: Vec<(String, Hash)> =
            host.iter().map(|t| (t.name.clone(), checkpoint::digest(t))).collect();
        for group in groups.iter().filter(|group| group.everywhere) {
            digests.extend(specs.iter().zip(&mut mine).map(|(spec, root)| group.digest(spec, &root)));
        }
        let common = root(&digests);
        let message = [common].into_iter().chain(mine).flat_map(|hash| hash.0).collect();
        let all = all_gather(exchange.link(), "the comparison of states", message)?;
        let mut theirs: Vec<_> =
            all.iter().map(|bytes| bytes.as_chunks::<32>().0.iter().map(|hash| Hash(*hash))).collect();
        let commons: Vec<Option<Hash>> = theirs.iter_mut().map(Iterator::next).collect();
        if let Some(differing) = odd_ones(&commons, |rank| exchange.link().host(rank)) {
            return Err(TrainError::RanksDiffer { step, differing });
        }
        for group in groups.iter().filter(|group| !group.everywhere) {
            let mut nodes = vec![Vec::new(); specs.len()];
            for (rank, piece) in held.shards.all() {
                let bytes = group.bytes(piece, specs[piece.tensor]);
                let leaves = runs(false, &bytes).map(|run| run.len().div_ceil(LEAF_BYTES) as u64);
                nodes[piece.tensor].extend(leaves.zip(&mut theirs[*rank]));
            }
            digests.extend(specs.iter().zip(nodes).map(|(spec, nodes)| group.digest(spec, &join(nodes))));
        }
        Ok(root(&digests))
    }

    /// Whether this rank holds anything of a state tensor, so that [`Trainer::restore`] needs it.
    pub fn needs(&self, name: &str) -> bool {
        let divided = ["adam_m/", "adam_v/", "master/"].iter().find_map(|prefix| name.strip_prefix(prefix));
        let Some(parameter) = divided.filter(|_| self.sharded) else { return true };
        let at = self.model.specs.iter().position(|spec| spec.name == parameter);
        at.is_none_or(|at| self.kept.iter().any(|piece| piece.tensor == at))
    }

    /// Puts a saved state in place of the present one; a rank takes what it holds.
    ///
    /// # Errors
    ///
    /// A tensor that is missing, is not of this model, or has another dtype or shape; then the
    /// present state is not to be used any more.
    pub fn restore(&mut self, state: Vec<Tensor>) -> Result<(), TrainError> {
        let mut saved: Saved = state.into_iter().map(|t| (t.name.clone(), t)).collect();
        self.restore_host_state(&mut saved)?;
        let param = self.ops.dtype(Role::Param);
        let whole = self.shards.whole();
        let groups = [
            ("", param, &whole, Some(self.model.params.iter_mut().collect::<Vec<_>>())),
            ("adam_m/", Dtype::F32, &self.kept, Some(self.adam_m.iter_mut().collect())),
            ("adam_v/", Dtype::F32, &self.kept, Some(self.adam_v.iter_mut().collect())),
            (
                "master/",
                Dtype::F32,
                &self.kept,
                self.masters.as_mut().map(|masters| masters.iter_mut().collect()),
            ),
        ];
        for (prefix, dtype, parts, bufs) in groups {
            let Some(bufs) = bufs else { continue };
            let mut parts = parts.iter().zip(bufs).peekable();
            for (at, spec) in self.model.specs.iter().enumerate() {
                let name = format!("{prefix}{}", spec.name);
                let Some((part, buf)) = parts.next_if(|(part, _)| part.tensor == at) else {
                    // Another rank's.
                    saved.remove(&name);
                    continue;
                };
                let tensor = take(&mut saved, &name, dtype, &spec.shape)?;
                let range = logical(part, spec);
                self.ops
                    .write_bytes(buf, &tensor.bytes[range.start * dtype.size()..range.end * dtype.size()])?;
            }
        }
        match saved.into_keys().next() {
            Some(name) => {
                Err(TrainError::State { tensor: name, problem: "does not belong to this experiment".into() })
            }
            None => Ok(()),
        }
    }

    fn host_state(&self) -> Vec<Tensor> {
        let p = &self.progress;
        vec![
            counter("train/step", p.step),
            counter("train/updates", p.updates),
            counter("train/data_offset", p.data_offset),
            counter("guard/skips_in_a_row", p.guards.skips_in_a_row),
            window("guard/loss_window", &p.guards.loss),
            window("guard/grad_window", &p.guards.grad),
        ]
    }

    fn restore_host_state(&mut self, saved: &mut Saved) -> Result<(), TrainError> {
        let size = self.progress.guards.window_size();
        let p = &mut self.progress;
        p.step = take_counter(saved, "train/step")?;
        p.updates = take_counter(saved, "train/updates")?;
        p.data_offset = take_counter(saved, "train/data_offset")?;
        p.guards.skips_in_a_row = take_counter(saved, "guard/skips_in_a_row")?;
        p.guards.loss = take_window(saved, "guard/loss_window", size)?;
        p.guards.grad = take_window(saved, "guard/grad_window", size)?;
        Ok(())
    }
}

/// The device tensors of the state as this rank holds them.
struct Held<'a, O: Ops> {
    /// Type of the parameters.
    param: Dtype,
    model: &'a Gpt2<O>,
    shards: &'a Shards,
    kept: &'a [Piece],
    sharded: bool,
    adam_m: &'a [O::Buf],
    adam_v: &'a [O::Buf],
    masters: &'a Option<Vec<O::Buf>>,
}

/// The parameters, or what is kept for each of them under one prefix.
struct Group<'a, B> {
    prefix: &'static str,
    dtype: Dtype,
    /// Whether every rank has all of it.
    everywhere: bool,
    /// What is here, in the model's order.
    bufs: Vec<(Piece, &'a B)>,
}

impl<'a, O: Ops> Held<'a, O> {
    fn groups(&self) -> Vec<Group<'a, O::Buf>> {
        let params = self.shards.whole().into_iter().zip(self.model.params.iter()).collect();
        let mut groups = vec![Group { prefix: "", dtype: self.param, everywhere: true, bufs: params }];
        for (prefix, bufs) in [
            ("adam_m/", Some(self.adam_m)),
            ("adam_v/", Some(self.adam_v)),
            ("master/", self.masters.as_deref()),
        ] {
            let Some(bufs) = bufs else { continue };
            let bufs = self.kept.iter().cloned().zip(bufs).collect();
            groups.push(Group { prefix, dtype: Dtype::F32, everywhere: !self.sharded, bufs });
        }
        groups
    }
}

impl<B> Group<'_, B> {
    /// The bytes of a piece that belong to the state.
    fn bytes(&self, piece: &Piece, spec: &ParamSpec) -> Range<usize> {
        let elements = logical(piece, spec);
        elements.start * self.dtype.size()..elements.end * self.dtype.size()
    }

    /// Name and digest of a tensor with this Merkle root.
    fn digest(&self, spec: &ParamSpec, root: &Hash) -> (String, Hash) {
        let name = format!("{}{}", self.prefix, spec.name);
        let shape: Vec<u64> = spec.shape.iter().map(|&d| d as u64).collect();
        let bytes = (spec.logical_len() * self.dtype.size()) as u64;
        let digest = proof::tensor_digest_from_root(&name, self.dtype.name(), &shape, bytes, root);
        (name, digest)
    }
}

/// The elements of a piece that are no padding: padding rows are not part of the state.
fn logical(piece: &Piece, spec: &ParamSpec) -> Range<usize> {
    let end = spec.logical_len();
    piece.start.min(end)..piece.end().min(end)
}

/// What is hashed of a range of a tensor's bytes: all of it as a tree of its own, or the nodes of the
/// tensor's tree that it consists of.
fn runs(whole: bool, bytes: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let bytes = bytes.clone();
    // A part that is all padding has no leaf, though it may lie within one.
    let last = if bytes.is_empty() { bytes.start / LEAF_BYTES } else { bytes.end.div_ceil(LEAF_BYTES) };
    let leaves = (bytes.start / LEAF_BYTES) as u64..last as u64;
    let runs = if whole { vec![leaves] } else { aligned_runs(leaves) };
    let end = bytes.end;
    runs.into_iter().map(move |run| run.start as usize * LEAF_BYTES..(run.end as usize * LEAF_BYTES).min(end))
}

/// Merkle roots of ranges of buffers.
fn hash<O: Ops>(ops: &mut O, asked: &[(&O::Buf, Range<usize>)]) -> Result<Vec<Hash>> {
    if let Some(roots) = ops.merkle_roots(asked)? {
        return Ok(roots.into_iter().map(Hash).collect());
    }
    let mut bytes = Vec::new();
    let mut hash = |(buf, range): &(&O::Buf, Range<usize>)| {
        bytes.resize(range.len(), 0);
        ops.read_at(buf, range.start, &mut bytes)?;
        Ok(proof::merkle_root(&bytes))
    };
    asked.iter().map(&mut hash).collect()
}

fn root(digests: &[(String, Hash)]) -> Hash {
    proof::state_root(digests.iter().map(|(name, digest)| (name.as_str(), *digest)))
        .expect("the state's names are unique")
}

/// The ranks that disagree with most, and what they have; none if all agree.
fn odd_ones(hashes: &[Option<Hash>], mut host: impl FnMut(usize) -> String) -> Option<String> {
    let votes = |hash: &Option<Hash>| hashes.iter().filter(|other| *other == hash).count();
    // Of equally many the one of the lowest rank, so that all ranks name the same.
    let best = hashes.iter().map(votes).max()?;
    let usual = hashes.iter().find(|hash| votes(hash) == best)?;
    let odd: Vec<String> = hashes
        .iter()
        .enumerate()
        .filter(|(_, hash)| *hash != usual)
        .map(|(rank, hash)| {
            format!(
                "rank {rank} on `{}` has {}",
                host(rank),
                hash.map_or("nothing".into(), |h| h.to_string())
            )
        })
        .collect();
    let usual = usual.map_or("nothing".into(), |hash| hash.to_string());
    (!odd.is_empty()).then(|| format!("{}, {best} of {} have {usual}", odd.join(", "), hashes.len()))
}

fn counter(name: &str, value: u64) -> Tensor {
    Tensor { name: name.into(), dtype: Dtype::U64, shape: vec![], bytes: value.to_le_bytes().to_vec() }
}

/// A window of the guards: its accepted values, oldest first, as long as it is filled.
fn window(name: &str, window: &Window) -> Tensor {
    let bytes: Vec<u8> = window.values().flat_map(f64::to_le_bytes).collect();
    Tensor { name: name.into(), dtype: Dtype::F64, shape: vec![bytes.len() / 8], bytes }
}

fn take(saved: &mut Saved, name: &str, dtype: Dtype, shape: &[usize]) -> Result<Tensor, TrainError> {
    let tensor = take_any(saved, name)?;
    if tensor.dtype != dtype || tensor.shape != shape {
        let problem =
            format!("is {} {:?}, this experiment needs {dtype} {shape:?}", tensor.dtype, tensor.shape);
        return Err(TrainError::State { tensor: name.into(), problem });
    }
    Ok(tensor)
}

fn take_any(saved: &mut Saved, name: &str) -> Result<Tensor, TrainError> {
    saved.remove(name).ok_or_else(|| TrainError::State { tensor: name.into(), problem: "is missing".into() })
}

fn take_counter(saved: &mut Saved, name: &str) -> Result<u64, TrainError> {
    let tensor = take(saved, name, Dtype::U64, &[])?;
    let bytes: [u8; 8] = tensor.bytes.as_slice().try_into().expect("the shape says eight bytes");
    Ok(u64::from_le_bytes(bytes))
}

fn take_window(saved: &mut Saved, name: &str, size: usize) -> Result<Window, TrainError> {
    let tensor = take_any(saved, name)?;
    if tensor.dtype != Dtype::F64 || tensor.shape.len() != 1 || tensor.shape[0] > size {
        let problem =
            format!("is {} {:?}, expected F64 with at most {size} values", tensor.dtype, tensor.shape);
        return Err(TrainError::State { tensor: name.into(), problem });
    }
    let values: Vec<f64> = tensor
        .bytes
        .chunks_exact(8)
        .map(|b| f64::from_le_bytes(b.try_into().expect("chunks of eight")))
        .collect();
    Ok(Window::from_values(size, &values))
}
