//! Some units of a tensor, with the hashes that lead from theirs to the root of the tensor's tree.

use std::collections::BTreeMap;

use super::digest::merkle_root;
use super::hash::Hash;
use super::tree::node;

/// Units of a tensor by number, and the hashes beside them on their way to the root: level by level from the
/// leaves on, within a level from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    pub units: BTreeMap<usize, Vec<u8>>,
    pub path: Vec<Hash>,
}

impl Opening {
    /// Opens `units` of a tensor whose units have these hashes.
    pub fn of(hashes: &[Hash], units: BTreeMap<usize, Vec<u8>>) -> Opening {
        let mut level = hashes.to_vec();
        let mut known: Vec<usize> = units.keys().copied().collect();
        let mut path = Vec::new();
        while level.len() > 1 {
            let beside = known.iter().map(|at| at ^ 1);
            path.extend(beside.filter(|at| known.binary_search(at).is_err()).filter_map(|at| level.get(at)));
            known = known.iter().map(|at| at / 2).collect();
            known.dedup();
            level = level
                .chunks(2)
                .map(|pair| pair.get(1).map_or(pair[0], |right| node(&pair[0], right)))
                .collect();
        }
        Opening { units, path }
    }

    /// The root that these units lead to, in a tree of `count` units; none where the path has too few or too
    /// many hashes, or a unit has no place in it.
    pub fn root(&self, count: usize) -> Option<Hash> {
        let mut level: BTreeMap<usize, Hash> =
            self.units.iter().map(|(at, bytes)| (*at, merkle_root(bytes))).collect();
        let (mut size, mut path) = (count, self.path.iter());
        if level.keys().next_back().is_none_or(|last| *last >= size) {
            return None;
        }
        while size > 1 {
            let mut above = BTreeMap::new();
            for (at, hash) in &level {
                let beside = at ^ 1;
                if beside < *at && level.contains_key(&beside) {
                    continue;
                }
                let joined = match level.get(&beside) {
                    _ if beside >= size => *hash,
                    Some(right) => node(hash, right),
                    None if beside < *at => node(path.next()?, hash),
                    None => node(hash, path.next()?),
                };
                above.insert(at / 2, joined);
            }
            (level, size) = (above, size.div_ceil(2));
        }
        path.next().is_none().then(|| level.into_values().next()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::tree_root;
    use super::*;

    #[test]
    fn any_units_of_any_tree_lead_to_its_root_and_changed_ones_do_not() {
        for count in [1, 2, 3, 5, 8, 13, 64, 77] {
            let bytes: Vec<Vec<u8>> = (0..count).map(|i| vec![i as u8; 1 + i * 97]).collect();
            let hashes: Vec<Hash> = bytes.iter().map(|unit| merkle_root(unit)).collect();
            let root = tree_root(&hashes);
            for step in [1, 2, 3, 7, count] {
                for first in [0, step - 1, count - 1] {
                    let units: BTreeMap<_, _> =
                        (first..count).step_by(step).map(|at| (at, bytes[at].clone())).collect();
                    if units.is_empty() {
                        continue;
                    }
                    let opening = Opening::of(&hashes, units);
                    assert_eq!(opening.root(count), Some(root), "{first} and every {step}th of {count}");
                    let mut wrong = opening.clone();
                    wrong.units.values_mut().next().expect("a unit")[0] ^= 1;
                    assert_ne!(wrong.root(count), Some(root));
                    for at in 0..opening.path.len() {
                        let mut wrong = opening.clone();
                        wrong.path[at].0[3] ^= 1;
                        assert_ne!(wrong.root(count), Some(root));
                    }
                    let mut longer = opening.clone();
                    longer.path.push(root);
                    assert_eq!(longer.root(count), None, "nothing may be left of the path");
                    let mut outside = opening;
                    outside.units.insert(count, vec![0]);
                    assert_eq!(outside.root(count), None);
                }
            }
        }
    }
}
