//! Golden roots: a text file in a repository with the bits that an experiment must end in.
//!
//! ```text
//! # Golden roots of `ci`. Made by `runner verify EXPERIMENT --twice --bless FILE`.
//! numerics_id 84054e86…
//! root 1 91e07c9d…
//! tensor 5 adam_m/blocks.0.qkv.weight 1f7a03c2…
//! ```
//!
//! `root N` is the state root after N steps; `tensor N` the digest of one tensor then, so that a
//! mismatch has a name. A file with nothing but a hash has the root after the last step.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::proof::{Entry, Hash};
use crate::store::Manifest;
use crate::units::noun;

/// The content of a file of golden roots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Golden {
    pub numerics_id: Option<Hash>,
    /// By steps done.
    pub roots: BTreeMap<u64, Hash>,
    /// By steps done and name.
    pub tensors: BTreeMap<(u64, String), Hash>,
    /// The root after the last step, in a file with nothing else.
    pub last: Option<Hash>,
}

/// How much of a file of golden roots was compared with a run, and is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    pub roots: usize,
    /// Roots of steps that the run has not hashed.
    pub unhashed: usize,
    pub tensors: usize,
    /// The last of the roots, by steps done.
    pub last: (u64, Hash),
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compared { roots, unhashed, tensors, .. } = self;
        write!(f, "{roots} {}", noun(*roots, "root"))?;
        if *tensors > 0 {
            write!(f, " and {tensors} {}", noun(*tensors, "tensor"))?;
        }
        match unhashed {
            0 => Ok(()),
            _ => write!(f, "; {unhashed} of steps that the run has not hashed were not compared"),
        }
    }
}

impl Golden {
    /// The golden roots of a run: every hashed step, and the tensors of its first and last checkpoint.
    pub fn of(numerics_id: Hash, entries: &[Entry], manifests: &[Manifest]) -> Golden {
        let roots = entries.iter().filter_map(|entry| Some((entry.step + 1, entry.root?))).collect();
        let kept = manifests.first().into_iter().chain(manifests.last());
        let tensors = kept
            .flat_map(|m| m.tensors.iter().map(|(name, digest)| ((m.step, name.clone()), *digest)))
            .collect();
        Golden { numerics_id: Some(numerics_id), roots, tensors, last: None }
    }

    /// The file's text.
    pub fn to_text(&self, name: &str) -> String {
        let mut text =
            format!("# Golden roots of `{name}`. Made by `runner verify EXPERIMENT --twice --bless FILE`.\n");
        text.extend(self.numerics_id.map(|id| format!("numerics_id {id}\n")));
        text.extend(self.roots.iter().map(|(step, root)| format!("root {step} {root}\n")));
        text.extend(
            self.tensors.iter().map(|((step, name), digest)| format!("tensor {step} {name} {digest}\n")),
        );
        text
    }

    /// Reads the text of the file at `path`.
    pub fn parse(path: &Path, text: &str) -> anyhow::Result<Golden> {
        let mut golden = Golden::default();
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        {
            // Hashes may have capitals; names of tensors have none.
            let line = line.to_ascii_lowercase();
            let words: Vec<&str> = line.split_whitespace().collect();
            let read = || -> Option<bool> {
                let is_second = match words[..] {
                    ["numerics_id", id] => golden.numerics_id.replace(id.parse().ok()?).is_some(),
                    ["root", step, root] => {
                        let step = step.parse().ok().filter(|step| *step > 0)?;
                        golden.roots.insert(step, root.parse().ok()?).is_some()
                    }
                    ["tensor", step, name, digest] => {
                        let key = (step.parse().ok()?, name.to_owned());
                        golden.tensors.insert(key, digest.parse().ok()?).is_some()
                    }
                    [root] => golden.last.replace(root.parse().ok()?).is_some(),
                    _ => return None,
                };
                Some(is_second)
            };
            let mut read = read;
            let (file, number) = (path.display(), number + 1);
            match read() {
                Some(false) => {}
                Some(true) => anyhow::bail!("`{file}` line {number} says a second time what must be"),
                None => anyhow::bail!(
                    "`{file}` line {number} is not `root STEP HASH` with a step from 1 on, `tensor STEP NAME \
                     HASH`, `numerics_id HASH` or a lone hash"
                ),
            }
        }
        if golden.roots.is_empty() && golden.last.is_none() {
            anyhow::bail!("`{}` has no root\n  hint: write it with `--bless`", path.display());
        }
        Ok(golden)
    }

    /// Compares with what a run left.
    ///
    /// # Errors
    /// What differs first; that no root could be compared, because the run has hashed none of those steps.
    pub fn compare(&self, entries: &[Entry], manifests: &[Manifest]) -> Result<Compared, String> {
        let steps = crate::proof::entry::steps(entries).len() as u64;
        let found = |step: u64| entries.get(usize::try_from(step.checked_sub(1)?).ok()?)?.root;
        let last = self.last.map(|root| (steps, root));
        let roots = self.roots.iter().map(|(step, root)| (*step, *root)).chain(last);
        let (hashed, unhashed): (Vec<_>, Vec<_>) =
            roots.partition(|(step, _)| found(*step).is_some() || *step > steps);
        if let Some((step, expected)) = hashed.iter().find(|(step, root)| found(*step) != Some(*root)) {
            let here = found(*step).map_or("the run ended before".to_owned(), |root| root.to_string());
            return Err(format!(
                "the root at step {step} is the first that differs: expected {expected}, found {here}{}",
                self.first_tensors(*step, manifests).unwrap_or_default()
            ));
        }
        let Some(last) = hashed.last().copied() else {
            return Err(format!(
                "nothing was compared: the run has hashed none of the {} steps (`proof.digest_every`)",
                unhashed.len()
            ));
        };
        let at = |step: u64| manifests.iter().find(|manifest| manifest.step == step);
        let tensors =
            || self.tensors.iter().filter_map(|((step, name), digest)| Some((at(*step)?, name, digest)));
        if let Some((manifest, name, _)) = tensors().find(|it| it.0.tensors.get(it.1) != Some(it.2)) {
            return Err(format!(
                "the roots agree, and the digest of `{name}` at step {} differs: the file contradicts itself",
                manifest.step
            ));
        }
        Ok(Compared { roots: hashed.len(), unhashed: unhashed.len(), tensors: tensors().count(), last })
    }

    /// The tensors that differ at the first checkpoint from `step` on that has golden digests.
    fn first_tensors(&self, step: u64, manifests: &[Manifest]) -> Option<String> {
        let has_golden =
            |at: u64| self.tensors.range((at, String::new())..(at + 1, String::new())).next().is_some();
        let manifest = manifests.iter().find(|m| m.step >= step && has_golden(m.step))?;
        let at = manifest.step;
        let golden = || self.tensors.iter().filter(|((step, _), _)| *step == at);
        let differing: Vec<&String> = golden()
            .filter(|((_, name), digest)| manifest.tensors.get(name) != Some(*digest))
            .map(|((_, name), _)| name)
            .collect();
        let new =
            manifest.tensors.keys().filter(|name| !self.tensors.contains_key(&(at, (*name).clone()))).count();
        let first = differing.first()?;
        let mut text = format!(
            "\n  first differing tensor at step {at}: `{first}`, of {} that differ among {}",
            differing.len(),
            golden().count()
        );
        if new > 0 {
            text.push_str(&format!("; new: {new} {}", noun(new, "tensor")));
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_roots_read_back_and_a_lone_root_is_the_last() {
        let golden = Golden {
            numerics_id: Some(Hash::of(b"id")),
            roots: [(1, Hash::of(b"1")), (20, Hash::of(b"20"))].into(),
            tensors: [((5, "wte".to_owned()), Hash::of(b"w"))].into(),
            last: None,
        };
        assert_eq!(Golden::parse(Path::new("g"), &golden.to_text("ci")).unwrap(), golden);
        let lone = Golden::parse(Path::new("g"), &format!("{}\n", Hash::of(b"x"))).unwrap();
        assert_eq!(lone.last, Some(Hash::of(b"x")));
    }

    #[test]
    fn a_file_that_promises_nothing_or_says_it_twice_is_refused() {
        let (one, other) = (Hash::of(b"1"), Hash::of(b"2"));
        for text in ["", "# only a comment\n", "root 1\n", "root x y\n", "tensor 1 wte\n"] {
            assert!(Golden::parse(Path::new("g"), text).is_err(), "{text}");
        }
        for text in [
            format!("root 0 {one}\n"),
            format!("root 1 {one}\nroot 1 {other}\n"),
            format!("{one}\n{other}\n"),
            format!("root 1 {one}\ntensor 1 wte {one}\ntensor 1 wte {other}\n"),
        ] {
            assert!(Golden::parse(Path::new("g"), &text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_not_compared_is_counted_and_nothing_compared_is_no_agreement() {
        let (one, other) = (Hash::of(b"1"), Hash::of(b"2"));
        let entry = |step, root| Entry {
            step,
            tokens: (step + 1) * 64,
            root,
            loss: Some(1.0),
            grad_norm: Some(1.0),
            learning_rate: Some(1e-3),
            loss_z: None,
            grad_z: None,
            action: crate::proof::Action::Update,
            events: Vec::new(),
            evaluation: None,
            audit: None,
            sources: BTreeMap::new(),
        };
        let entries = [entry(0, Some(one)), entry(1, None), entry(2, Some(one))];
        let golden = |text: String| Golden::parse(Path::new("g"), &text).unwrap();
        let compare = |text: String| golden(text).compare(&entries, &[]);
        let whole = format!("root 1 {one}\nroot 2 {other}\nroot 3 {one}\n");
        assert_eq!(compare(whole), Ok(Compared { roots: 2, unhashed: 1, tensors: 0, last: (3, one) }));
        assert!(compare(format!("root 2 {other}\n")).unwrap_err().contains("nothing was compared"));
        assert!(compare(format!("root 3 {other}\n")).unwrap_err().contains("step 3 is the first"));
    }
}
