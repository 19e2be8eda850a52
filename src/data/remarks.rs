//! Warnings about the data of a run, printed before the first step.
//!
//! All of it follows from the digests, which cost a pass over every byte once; nothing here reads a file.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::dataset::{Dataset, ShardDigest};
use super::passages::PASSAGE;
use super::tokenizer::Tokenizer;
use crate::units;

/// How many names a remark lists.
const LISTED: usize = 6;

/// Digests of everything that a run reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataManifest {
    pub train: Vec<ShardDigest>,
    /// Empty where nothing is held out.
    pub val: Vec<ShardDigest>,
    /// Name, length in bytes and SHA-256 of the file with HellaSwag's tasks.
    pub hellaswag: Option<(String, u64, [u8; 32])>,
}

impl DataManifest {
    /// The warnings, one line each. `train` and `val` are what the digests are of.
    pub fn remarks(
        &self,
        train: &Dataset,
        val: Option<&Dataset>,
        tokenizer: &Tokenizer,
        seq_len: usize,
    ) -> Vec<String> {
        let of = of_sources(train, self.train.len());
        let mut remarks = overlaps(&self.train, &of, &self.val);
        remarks.extend(shared_passages(&self.train, &of, &self.val));
        let sets = [("training", Some(train), &self.train), ("validation", val, &self.val)];
        for (what, data, digests) in sets.into_iter().filter_map(|(what, data, d)| Some((what, data?, d))) {
            remarks.extend(matched_again(what, data));
            remarks.extend(short(what, data, seq_len));
            remarks.extend(doubtful(what, data, digests, tokenizer));
        }
        remarks
    }
}

/// For each of the training shards ` of the source …`, or nothing without a mixture.
fn of_sources(train: &Dataset, shards: usize) -> Vec<String> {
    let mut of = vec![String::new(); shards];
    for (source, places) in train.sources() {
        of[places].fill(format!(" of the source `{source}`"));
    }
    of
}

/// Shards of one content, by SHA-256: in the training data twice, or in training and validation data. `of`
/// has the source of each training shard.
fn overlaps(train: &[ShardDigest], of: &[String], val: &[ShardDigest]) -> Vec<String> {
    let mut first: BTreeMap<[u8; 32], (&str, &str)> = BTreeMap::new();
    let mut twice = Vec::new();
    for (shard, of) in train.iter().zip(of) {
        match first.get(&shard.sha256) {
            Some((other, of_other)) => twice.push(format!("`{}`{of} is `{other}`{of_other}", shard.name)),
            None => {
                first.insert(shard.sha256, (&shard.name, of));
            }
        }
    }
    let shared: Vec<String> = val
        .iter()
        .filter_map(|shard| {
            let (other, of) = first.get(&shard.sha256)?;
            Some(match *other == shard.name {
                true => format!("`{other}`{of}"),
                false => format!("`{}` is `{other}`{of}", shard.name),
            })
        })
        .collect();
    let say = |what: &str, found: &[String]| (!found.is_empty()).then(|| format!("{what}: {}", list(found)));
    let shared = say(
        "the validation data are trained on, so the validation loss does not measure what is new; same \
         content in both",
        &shared,
    );
    let often = match of.first().is_some_and(|of| !of.is_empty()) {
        true => "training shards are there twice, by content, and are read as often",
        false => "training shards are there twice, by content, and are read twice an epoch",
    };
    let twice = say(often, &twice);
    shared.into_iter().chain(twice).collect()
}

/// Text of validation shards that stands in training shards too, as far as that is more than a few
/// quotations. Shards that are equal as a whole are left to [`overlaps`].
fn shared_passages(train: &[ShardDigest], of: &[String], val: &[ShardDigest]) -> Option<String> {
    const QUOTED: f64 = 0.1;
    const FEW: usize = 3;
    let is_new = |shard: &&ShardDigest| train.iter().all(|other| other.sha256 != shard.sha256);
    let (mut drawn, mut found, mut places) = (0, 0, BTreeSet::new());
    for shard in val.iter().filter(is_new) {
        for hash in shard.passages.drawn(train.iter().map(|shard| &shard.passages)) {
            let holds: Vec<usize> = (0..train.len()).filter(|at| train[*at].passages.has(*hash)).collect();
            drawn += 1;
            found += usize::from(!holds.is_empty());
            places.extend(holds);
        }
    }
    let share = found as f64 / drawn.max(1) as f64;
    (found >= FEW && share >= QUOTED).then(|| {
        let places: Vec<String> =
            places.into_iter().map(|at| format!("`{}`{}", train[at].name, of[at])).collect();
        format!(
            "about {:.0} % of the validation data stand in the training data too, so the validation loss \
             does not measure what is new: of {} passages of {PASSAGE} tokens drawn by lot {} are in {}",
            100.0 * share,
            units::thousands(drawn),
            units::thousands(found as u64),
            list(&places)
        )
    })
}

/// Shards that are named more than once.
fn matched_again(what: &str, data: &Dataset) -> Option<String> {
    let again = data.matched_again();
    (!again.is_empty()).then(|| {
        format!(
            "{what} shards are named twice, by equal or overlapping patterns, and read once: {}",
            list(again)
        )
    })
}

/// Shards too short for a sequence.
fn short(what: &str, data: &Dataset, seq_len: usize) -> Option<String> {
    let short: Vec<String> = data
        .shards()
        .filter(|shard| shard.tokens <= seq_len as u64)
        .map(|shard| format!("`{}` ({} tokens)", shard.name, units::thousands(shard.tokens)))
        .collect();
    (!short.is_empty()).then(|| {
        format!(
            "{what} shards with fewer than {} tokens (`batch.seq_len` + 1) give no sequence and are not \
             read: {}",
            seq_len + 1,
            list(&short)
        )
    })
}

/// Shards whose tokens do not look like the tokenizer's. A shard that records its tokenizer was compared when
/// it was opened.
fn doubtful(what: &str, data: &Dataset, digests: &[ShardDigest], tokenizer: &Tokenizer) -> Option<String> {
    let found: Vec<String> = data
        .shards()
        .zip(digests)
        .filter(|(shard, _)| !shard.recorded)
        .filter_map(|(shard, digest)| {
            let why = tokenizer.doubt(digest.largest_token)?;
            Some(format!("`{}` (largest token {}, {why})", shard.name, digest.largest_token))
        })
        .collect();
    (!found.is_empty()).then(|| {
        format!(
            "{what} shards may be of another tokenizer than `data.tokenizer` = `{}`, which has {} tokens; \
             they record none: {}",
            tokenizer.name(),
            units::thousands(tokenizer.vocab() as u64),
            list(&found)
        )
    })
}

fn list(found: &[String]) -> String {
    let shown = found.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    match found.len().checked_sub(LISTED).filter(|more| *more > 0) {
        Some(more) => format!("{shown} and {more} more"),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::digests::DigestCache;
    use super::super::shard::{header, recorded_header};
    use super::*;

    fn write(dir: &Path, name: &str, tokens: &[u16], tokenizer: Option<&Tokenizer>) {
        let count = tokens.len() as u64;
        let mut bytes =
            tokenizer.map_or_else(|| header(count), |tokenizer| recorded_header(count, tokenizer)).to_vec();
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    fn remarks(dir: &Path, tokenizer: &Tokenizer) -> Vec<String> {
        let open = |pattern: &str| {
            Dataset::open(&[dir.join(pattern).display().to_string()], 50_304, tokenizer).unwrap()
        };
        let (train, val) = (open("*.bin"), open("v*.bin"));
        let digests = |data| DigestCache::none().manifest(data, |_| ()).unwrap();
        let manifest = DataManifest { train: digests(&train), val: digests(&val), hellaswag: None };
        manifest.remarks(&train, Some(&val), tokenizer, 4)
    }

    #[test]
    fn what_is_odd_is_said_by_name_and_once() {
        let gpt2 = Tokenizer::new(crate::experiment::Tokenizer::Gpt2);
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.bin", &[1, 2, 3, 4, 5000], None);
        write(dir.path(), "b.bin", &[1, 2, 3, 4, 5000], None);
        write(dir.path(), "c.bin", &[1, 2, 3, 4, 256], None);
        write(dir.path(), "d.bin", &[1, 2, 3, 50_300], None);
        write(dir.path(), "e.bin", &[1, 2, 3, 4, 5], Some(&gpt2));
        write(dir.path(), "v.bin", &[1, 2, 3, 4, 6000], None);
        let found = remarks(dir.path(), &gpt2);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].ends_with("same content in both: `v.bin`"), "{}", found[0]);
        assert!(found[1].ends_with("read twice an epoch: `b.bin` is `a.bin`"), "{}", found[1]);
        assert!(
            found[2].contains("fewer than 5 tokens") && found[2].ends_with(": `d.bin` (4 tokens)"),
            "{}",
            found[2]
        );
        assert!(
            found[3].ends_with(
                "`c.bin` (largest token 256, as with `byte`), `d.bin` (largest token 50300, more than it has)"
            ),
            "{}",
            found[3]
        );
    }

    #[test]
    fn shards_that_are_named_twice_are_read_once_and_said() {
        let (dir, byte) = (tempfile::tempdir().unwrap(), Tokenizer::Byte);
        write(dir.path(), "a.bin", &[1, 2, 3, 4, 5], Some(&byte));
        write(dir.path(), "b.bin", &[1, 2, 3, 4, 6], Some(&byte));
        let said = |names: &[&str]| {
            let names: Vec<String> =
                names.iter().map(|name| dir.path().join(name).display().to_string()).collect();
            let train = Dataset::open(&names, 257, &byte).unwrap();
            let digests = DigestCache::none().manifest(&train, |_| ()).unwrap();
            let manifest = DataManifest { train: digests, val: vec![], hellaswag: None };
            manifest.remarks(&train, None, &byte, 4)
        };
        let twice = "training shards are named twice, by equal or overlapping patterns, and read once: a.bin";
        for names in [["a.bin", "a.bin"], ["*.bin", "a.bin"]] {
            assert_eq!(said(&names), [twice]);
        }
        assert_eq!(said(&["a.bin", "b.bin"]), [""; 0]);
    }

    /// As when somebody cuts validation data off a shard and leaves them in it.
    #[test]
    fn validation_data_that_are_a_part_of_a_training_shard_are_found() {
        let key = crate::rng::Key::new(5, "text");
        let text: Vec<u16> = (0..6_000).map(|at| key.block_at(0, at)[0] as u16 % 250).collect();
        let (dir, byte) = (tempfile::tempdir().unwrap(), Tokenizer::Byte);
        write(dir.path(), "a.bin", &text[..3_000], Some(&byte));
        write(dir.path(), "b.bin", &text[3_000..5_000], Some(&byte));
        let open =
            |name: &str| Dataset::open(&[dir.path().join(name).display().to_string()], 257, &byte).unwrap();
        let said = |val: &[u16]| {
            write(dir.path(), "val.bin", val, Some(&byte));
            let (train, val) = (open("?.bin"), open("val.bin"));
            let digests = |data| DigestCache::none().manifest(data, |_| ()).unwrap();
            let manifest = DataManifest { train: digests(&train), val: digests(&val), hellaswag: None };
            manifest.remarks(&train, Some(&val), &byte, 4).join("; ")
        };
        let found = said(&text[4_000..5_000]);
        let says = "about 100 % of the validation data stand in the training data too";
        assert!(found.starts_with(says) && found.ends_with("873 are in `b.bin`"), "{found}");
        let half = said(&[&text[2_000..2_500], &text[5_000..5_500]].concat());
        assert!(half.contains("about 43 % of") && half.ends_with("in `a.bin`"), "{half}");
        assert_eq!(said(&text[5_000..]), "");
    }

    #[test]
    fn the_sources_of_shards_of_one_content_are_named() {
        let text = |name: &str| Dataset::from_tokens(name, vec![1, 2, 3, 4, 5], 257).unwrap();
        let of = |name: &str| (name.to_owned(), text("t"));
        let (train, val) = (Dataset::mixed(vec![of("books"), of("web")], 257), text("t"));
        let digests = |data| DigestCache::none().manifest(data, |_| ()).unwrap();
        let manifest = DataManifest { train: digests(&train), val: digests(&val), hellaswag: None };
        let found = manifest.remarks(&train, Some(&val), &Tokenizer::Byte, 4);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].ends_with("in both: `t` of the source `books`"), "{}", found[0]);
        let twice = "and are read as often: `t` of the source `web` is `t` of the source `books`";
        assert!(found[1].ends_with(twice), "{}", found[1]);
    }

    #[test]
    fn nothing_is_said_of_good_shards_and_long_lists_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "v.bin", &[1, 2, 3, 4, 6], Some(&Tokenizer::Byte));
        let train = Dataset::from_tokens("t", vec![1, 2, 3, 4, 5], 257).unwrap();
        let digests = |data| DigestCache::none().manifest(data, |_| ()).unwrap();
        let manifest = DataManifest { train: digests(&train), val: vec![], hellaswag: None };
        assert_eq!(manifest.remarks(&train, None, &Tokenizer::Byte, 4), [""; 0]);
        let many: Vec<String> = (0..9).map(|i| i.to_string()).collect();
        assert_eq!(list(&many), "0, 1, 2, 3, 4, 5 and 3 more");
    }
}
