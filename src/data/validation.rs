//! The held-out set: the first tokens of the validation data, the same for every batch shape.
//!
//! Sequences are taken in file order and fixed once; a micro-batch only groups them, and the last one
//! may be short. So the validation loss is one number of the model and the data, and can be recorded with the
//! set's hash.

#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};

use super::dataset::Dataset;
use super::error::DataError;
use super::tokenizer::Tokenizer;
use crate::units;

/// Fixed sequences to validate on.
#[derive(Debug)]
pub struct ValidationSet {
    inputs: Vec<u16>,
    targets: Vec<u16>,
    seq_len: usize,
    sha256: [u8; 32],
}

/// Some consecutive sequences of a [`ValidationSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidationBatch<'a> {
    /// B·T tokens.
    pub inputs: &'a [u16],
    /// B·T tokens.
    pub targets: &'a [u16],
    /// B: the micro-batch, or less at the end.
    pub sequences: usize,
}

impl ValidationSet {
    /// The first `⌊val_tokens/T⌋` sequences of `data`, or all of them when there are fewer; at least one.
    ///
    /// # Errors
    ///
    /// Fewer than T tokens asked for, data without a sequence, and read errors.
    pub fn new(data: &Dataset, val_tokens: u64, seq_len: usize) -> Result<ValidationSet, DataError> {
        let held = data.require_sequences(seq_len)?.get();
        let count = held.min(val_tokens / seq_len as u64);
        if count == 0 {
            return Err(DataError::Option {
                option: "eval.val_tokens",
                got: val_tokens.to_string(),
                expected: "at least `batch.seq_len`, so that it holds a sequence",
            });
        }
        let len = count as usize * seq_len;
        let (mut inputs, mut targets) = (vec![0; len], vec![0; len]);
        let mut hash = Sha256::new();
        hash.update(b"runner/validation/v1");
        hash.update((seq_len as u64).to_le_bytes());
        hash.update(count.to_le_bytes());
        for (sequence, (input, target)) in
            (0..count).zip(inputs.chunks_exact_mut(seq_len).zip(targets.chunks_exact_mut(seq_len)))
        {
            data.read(sequence, input, target)?;
            let last = target[seq_len - 1];
            let bytes: Vec<u8> = input.iter().chain([&last]).flat_map(|token| token.to_le_bytes()).collect();
            hash.update(bytes);
        }
        Ok(ValidationSet { inputs, targets, seq_len, sha256: hash.finalize().into() })
    }

    /// Sequences in the set.
    pub fn sequences(&self) -> usize {
        self.inputs.len() / self.seq_len
    }

    /// T: tokens a sequence.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokens that are predicted: sequences times T.
    pub fn tokens(&self) -> u64 {
        self.inputs.len() as u64
    }

    /// Bytes of the text that is predicted; none where the tokenizer does not have all of its tokens.
    pub fn text_bytes(&self, tokenizer: &Tokenizer) -> Option<u64> {
        tokenizer.text_bytes(&self.targets)
    }

    /// The warning when the tokens do not look like the tokenizer's. Shards that record it are believed, as
    /// far as it has their tokens.
    pub fn doubtful(&self, data: &Dataset, tokenizer: &Tokenizer) -> Option<String> {
        let largest = *self.targets.iter().max()?;
        let why = tokenizer.doubt(largest)?;
        let uncounted = self.text_bytes(tokenizer).is_none();
        (uncounted || data.shards().any(|shard| !shard.recorded)).then(|| {
            format!(
                "the validation data may be of another tokenizer than `data.tokenizer` = `{}`, which has {} \
                 tokens: their largest token is {largest}, {why}{}",
                tokenizer.name(),
                units::thousands(tokenizer.vocab() as u64),
                if uncounted { "; the bytes of their text are not known, nor the bits for each" } else { "" }
            )
        })
    }

    /// The warning when the data hold fewer tokens than were asked for.
    pub fn shortfall(&self, val_tokens: u64) -> Option<String> {
        let whole = val_tokens / self.seq_len as u64 * self.seq_len as u64;
        (self.tokens() < whole).then(|| {
            format!(
                "`eval.val_tokens` asks for {}, but the validation data hold {} in whole sequences: all of \
                 these are used",
                units::counted(val_tokens, "token"),
                units::thousands(self.tokens())
            )
        })
    }

    /// The names of the sources of `data` that the set has sequences of; none where `data` are no mixture.
    pub fn reached<'a>(&self, data: &'a Dataset) -> Vec<&'a str> {
        let mut before = 0;
        let begins = data.sources().map(|(name, places)| {
            let begins = before;
            before += data.sequences_of(places, self.seq_len);
            (name, begins)
        });
        begins.filter(|(_, begins)| *begins < self.sequences() as u64).map(|(name, _)| name).collect()
    }

    /// The warning when the set ends before the last source of `data`, which stand one behind another.
    pub fn unreached(&self, data: &Dataset) -> Option<String> {
        let (all, reached) = (data.sources().count(), self.reached(data));
        (reached.len() < all).then(|| {
            format!(
                "the first {} (`eval.val_tokens`) are of `{}` alone, of {all} texts that \
                 hold out {} together",
                units::counted(self.tokens(), "validation token"),
                reached.join("`, `"),
                units::thousands(data.sequences(self.seq_len) * self.seq_len as u64)
            )
        })
    }

    /// The sequences in order, `micro_batch` at a time; the last group may be short.
    ///
    /// # Panics
    ///
    /// When `micro_batch` is 0.
    pub fn batches(&self, micro_batch: usize) -> impl Iterator<Item = ValidationBatch<'_>> {
        let size = micro_batch * self.seq_len;
        self.inputs.chunks(size).zip(self.targets.chunks(size)).map(|(inputs, targets)| ValidationBatch {
            inputs,
            targets,
            sequences: inputs.len() / self.seq_len,
        })
    }

    /// SHA-256 of `"runner/validation/v1"`, T and the number of sequences as `u64`, then the T+1 tokens
    /// of each sequence as `u16`, all little-endian.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Dataset {
        Dataset::from_tokens("val", (0..100).collect(), 100).unwrap()
    }

    fn joined(set: &ValidationSet, micro_batch: usize) -> (Vec<u16>, Vec<u16>, Vec<usize>) {
        let batches: Vec<_> = set.batches(micro_batch).collect();
        let join = |part: fn(&ValidationBatch<'_>) -> Vec<u16>| batches.iter().flat_map(part).collect();
        (
            join(|b| b.inputs.to_vec()),
            join(|b| b.targets.to_vec()),
            batches.iter().map(|b| b.sequences).collect(),
        )
    }

    #[test]
    fn every_micro_batch_sees_the_same_sequences() {
        let set = ValidationSet::new(&data(), 70, 10).unwrap();
        assert_eq!((set.sequences(), set.tokens()), (7, 70));
        let (inputs, targets, counts) = joined(&set, 1);
        assert_eq!(inputs, (0..70).collect::<Vec<_>>());
        assert_eq!(targets, (1..71).collect::<Vec<_>>());
        assert_eq!(counts, [1; 7]);
        for micro_batch in [2, 3, 7, 20] {
            let other = joined(&set, micro_batch);
            assert_eq!((&other.0, &other.1), (&inputs, &targets));
        }
        assert_eq!(joined(&set, 3).2, [3, 3, 1]);
    }

    #[test]
    fn fewer_tokens_than_asked_for_are_all_used() {
        let set = ValidationSet::new(&data(), 1 << 40, 10).unwrap();
        assert_eq!(set.sequences(), 9, "⌊99/10⌋");
        let said = set.shortfall(100).expect("ten more than there are");
        assert!(said.contains("asks for 100 tokens") && said.contains("hold 90"), "{said}");
        assert_eq!((set.shortfall(99), set.shortfall(90)), (None, None), "99 tokens are nine sequences too");
    }

    #[test]
    fn tokens_that_the_tokenizer_does_not_have_stand_for_no_bytes_and_are_named() {
        let set_of = |tokens: Vec<u16>| {
            let data = Dataset::from_tokens("val", tokens, 384).unwrap();
            let set = ValidationSet::new(&data, 4, 4).unwrap();
            (set.text_bytes(&Tokenizer::Byte), set.doubtful(&data, &Tokenizer::Byte))
        };
        assert_eq!(set_of(vec![65, 66, 256, 67, 68]), (Some(3), None));
        let (bytes, said) = set_of(vec![65, 66, 280, 67, 68]);
        let said = said.expect("a warning");
        assert!(bytes.is_none() && said.contains("may be of another tokenizer"), "{said}");
        assert!(said.contains("largest token is 280, more than it has; the bytes"), "{said}");
    }

    #[test]
    fn too_few_tokens_are_refused() {
        assert!(matches!(ValidationSet::new(&data(), 9, 10), Err(DataError::Option { .. })));
        assert!(matches!(ValidationSet::new(&data(), 1000, 100), Err(DataError::NoSequences { .. })));
    }

    #[test]
    fn the_hash_tells_tokens_length_and_shape_apart_and_is_pinned() {
        let hash =
            |tokens, seq_len| hex::encode(ValidationSet::new(&data(), tokens, seq_len).unwrap().sha256());
        assert_eq!(hash(40, 10), hash(45, 10));
        assert_ne!(hash(40, 10), hash(50, 10));
        assert_ne!(hash(40, 10), hash(40, 20));
        // Python: sha256(b"runner/validation/v1" + pack("<QQ", 10, 2) + b"".join(pack("<11H", *range(s, s +
        // 11)) for s in (0, 10)))
        assert_eq!(hash(20, 10), "59592af14ba1c976dbcdf7cc2aaa721058ffb8c9c6b2d5cfad48dc995294f990");
    }
}
