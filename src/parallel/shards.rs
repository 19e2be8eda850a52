//! Which part of which tensor belongs to which rank.
//!
//! Tensors are cut at fixed units (the chunks of the gradient norm, which are whole leaves of the state
//! digest), so that neither the norm nor the digest of a divided tensor needs its neighbours. The units of a
//! group of tensors, a transformer block or what lies around the blocks, form one line. Round k of the
//! exchange halves the line that a rank still holds; the bit k of its number says which half it keeps. So a
//! rank's shard of a group is one run of neighbouring units, sums are scattered in the tree's order, and
//! every group is spread over all ranks, ready to be exchanged as soon as its gradients are. A tensor that
//! can only be updated as a whole is not cut: a line is halved as near to its middle as that lets.

use std::ops::Range;

use crate::model::{Group, ParamSpec, Weights};

/// A range of elements of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its place in the model's order.
    pub tensor: usize,
    pub start: usize,
    pub len: usize,
}

impl Piece {
    /// One past its last element.
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    pub fn range(&self) -> Range<usize> {
        self.start..self.end()
    }
}

/// A tensor as far as its division goes.
#[derive(Clone, Copy, Debug)]
struct LineTensor {
    /// Elements in memory.
    len: usize,
    /// Whether it stays in one piece.
    whole: bool,
}

/// The division of a model's tensors among ranks.
#[derive(Clone, Debug)]
pub struct Shards {
    /// Elements of a unit.
    unit: usize,
    ranks: usize,
    /// First tensor of each group, and its tensors.
    groups: Vec<(Group, usize, Vec<LineTensor>)>,
    /// All shards with their ranks, in the model's order.
    all: Vec<(usize, Piece)>,
}

impl Shards {
    /// Divides tensors shaped as `specs` at multiples of `unit` elements among `ranks`, a power of two; those
    /// that are `whole` in no part.
    pub fn new(
        specs: &Weights<ParamSpec>,
        unit: usize,
        ranks: usize,
        whole: impl Fn(&ParamSpec) -> bool,
    ) -> Shards {
        let mut first = 0;
        let extent = |spec: &ParamSpec| LineTensor { len: spec.len, whole: whole(spec) };
        let groups = Group::all(specs.layers.len()).map(|group| {
            let tensors: Vec<LineTensor> = specs.group(group).into_iter().map(extent).collect();
            first += tensors.len();
            (group, first - tensors.len(), tensors)
        });
        let mut shards = Shards { unit, ranks, groups: groups.collect(), all: Vec::new() };
        let owned = |rank| shards.owned(rank).into_iter().map(move |piece| (rank, piece));
        let mut all: Vec<(usize, Piece)> = (0..ranks).flat_map(owned).collect();
        all.sort_by_key(|(_, piece)| (piece.tensor, piece.start));
        shards.all = all;
        shards
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Rounds of the exchange: log2 of the number of ranks.
    pub fn rounds(&self) -> u32 {
        self.ranks.trailing_zeros()
    }

    /// Groups of tensors, in the model's order.
    pub fn groups(&self) -> impl DoubleEndedIterator<Item = Group> {
        self.groups.iter().map(|(group, ..)| *group)
    }

    /// A group's first tensor, and its tensors.
    fn group(&self, group: Group) -> (usize, &[LineTensor]) {
        let at = match group {
            Group::Tables => 0,
            Group::Block(l) => 1 + l,
            Group::Head => self.groups.len() - 1,
        };
        (self.groups[at].1, &self.groups[at].2)
    }

    /// The pieces of a group that `rank` holds after `rounds` rounds, in the model's order; `tensor` counts
    /// from the group's first.
    pub fn held(&self, group: Group, rank: usize, rounds: u32) -> Vec<Piece> {
        let tensors = self.group(group).1;
        let mut line = 0..tensors.iter().map(|tensor| tensor.len.div_ceil(self.unit)).sum::<usize>();
        for round in 0..rounds {
            let middle = self.cut(tensors, line.start + (line.end - line.start).div_ceil(2));
            line = if rank >> round & 1 == 0 { line.start..middle } else { middle..line.end };
        }
        let mut pieces = Vec::new();
        let mut before = 0;
        for (at, LineTensor { len, .. }) in tensors.iter().enumerate() {
            let units = len.div_ceil(self.unit);
            let (from, to) = (line.start.max(before), line.end.min(before + units));
            if from < to {
                let (start, end) = ((from - before) * self.unit, ((to - before) * self.unit).min(*len));
                pieces.push(Piece { tensor: at, start, len: end - start });
            }
            before += units;
        }
        pieces
    }

    /// The place nearest to a unit of a line of tensors at which it may be cut.
    fn cut(&self, tensors: &[LineTensor], unit: usize) -> usize {
        let mut before = 0;
        for tensor in tensors {
            let after = before + tensor.len.div_ceil(self.unit);
            if tensor.whole && before < unit && unit < after {
                return if unit - before < after - unit { before } else { after };
            }
            before = after;
        }
        unit
    }

    /// The shard of `rank`: at most one piece of each tensor, in the model's order.
    pub fn owned(&self, rank: usize) -> Vec<Piece> {
        self.groups().flat_map(|group| self.owned_of(group, rank)).collect()
    }

    /// The part of it that lies in one group.
    pub fn owned_of(&self, group: Group, rank: usize) -> Vec<Piece> {
        let first = self.group(group).0;
        let placed = |piece: Piece| Piece { tensor: first + piece.tensor, ..piece };
        self.held(group, rank, self.rounds()).into_iter().map(placed).collect()
    }

    /// All shards with their ranks, in the model's order: together they are every tensor.
    pub fn all(&self) -> &[(usize, Piece)] {
        &self.all
    }

    /// The shards of one tensor with their ranks, from its first element to its last.
    pub fn of(&self, tensor: usize) -> &[(usize, Piece)] {
        let from = self.all.partition_point(|(_, piece)| piece.tensor < tensor);
        let to = self.all.partition_point(|(_, piece)| piece.tensor <= tensor);
        &self.all[from..to]
    }

    /// Every tensor whole: the division among one.
    pub fn whole(&self) -> Vec<Piece> {
        let tensors = self
            .groups
            .iter()
            .flat_map(|(_, first, all)| all.iter().enumerate().map(move |(at, of)| (first + at, of.len)));
        tensors.map(|(tensor, len)| Piece { tensor, start: 0, len }).collect()
    }

    /// Elements that one swap brings at most: half of the largest group.
    pub fn largest_half(&self) -> usize {
        let half = |group| {
            let sizes =
                [0, 1].map(|rank| self.held(group, rank, 1).iter().map(|piece| piece.len).sum::<usize>());
            sizes[0].max(sizes[1])
        };
        if self.ranks == 1 { 0 } else { self.groups().map(half).max().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::Model;

    fn specs() -> Weights<ParamSpec> {
        let (layers, heads, channels) = (3, 2, 48);
        Weights::of(&Model::gpt2(layers, heads, channels, 40, 200))
    }

    #[test]
    fn shards_cover_every_tensor_once_at_unit_boundaries() {
        let specs = specs();
        for (ranks, whole) in [1, 2, 4, 8, 64].into_iter().flat_map(|ranks| [(ranks, false), (ranks, true)]) {
            let shards = Shards::new(&specs, 256, ranks, |spec| whole && spec.shape.len() == 2);
            let mut next = specs.iter().map(|_| 0).collect::<Vec<usize>>();
            for (_, piece) in shards.all() {
                assert_eq!(piece.start, next[piece.tensor], "{ranks} ranks, tensor {}", piece.tensor);
                assert_eq!(piece.start % 256, 0);
                let spec = specs.iter().nth(piece.tensor).expect("a tensor");
                assert!(
                    !(whole && spec.shape.len() == 2) || piece.len == spec.len,
                    "{ranks} ranks: {piece:?}"
                );
                next[piece.tensor] = piece.end();
            }
            assert_eq!(next, specs.iter().map(|spec| spec.len).collect::<Vec<_>>(), "{ranks} ranks");
            for rank in 0..ranks {
                let tensors: Vec<usize> = shards.owned(rank).iter().map(|piece| piece.tensor).collect();
                assert!(tensors.is_sorted_by(|a, b| a < b), "one piece a tensor, in order: {tensors:?}");
            }
        }
        let divided = |ranks| Shards::new(&specs, 256, ranks, |_| false);
        assert_eq!(divided(1).owned(0), divided(4).whole());
    }

    #[test]
    fn each_round_splits_what_is_held_between_the_two_that_meet() {
        let divided = |whole| Shards::new(&specs(), 256, 8, move |spec| whole && spec.shape.len() == 2);
        let sizes = |pieces: &[Piece]| pieces.iter().map(|piece| piece.len).sum::<usize>();
        let divisions = [divided(false), divided(true)];
        for (shards, group) in divisions.iter().flat_map(|shards| shards.groups().map(move |g| (shards, g))) {
            for rank in 0..8 {
                for round in 0..3 {
                    let peer = rank ^ 1 << round;
                    let before = shards.held(group, rank, round);
                    assert_eq!(before, shards.held(group, peer, round), "those that meet hold the same part");
                    let (mine, theirs) =
                        (shards.held(group, rank, round + 1), shards.held(group, peer, round + 1));
                    assert_eq!(sizes(&before), sizes(&mine) + sizes(&theirs));
                    assert!(sizes(&mine) <= shards.largest_half());
                }
            }
        }
    }

    #[test]
    fn groups_are_the_blocks_and_what_lies_around_them() {
        let shards = Shards::new(&specs(), 256, 2, |_| false);
        let first: Vec<(usize, usize)> =
            shards.groups.iter().map(|(_, first, lens)| (*first, lens.len())).collect();
        assert_eq!(first, [(0, 2), (2, 12), (14, 12), (26, 12), (38, 2)]);
    }
}
