//! `manifest.json`: what a checkpoint is and what its files must hash to.
//!
//! The text is a function of the manifest: no clock, no machine. Its last line is a seal over all
//! text before it, so that an edit by hand is noticed. The seal does not prove an origin: anyone who edits
//! the file can compute it again. What ties a checkpoint to its run is the ledger head within.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::parts::PART_BYTES;
use super::{Result, StoreError};
use crate::ops::Dtype;
use crate::proof::ledger::Log;
use crate::proof::{Entry, Hash, Head, hash::manifest_seal, json, tensor_digest};

/// The format that this version writes.
pub const FORMAT: &str = "runner/checkpoint/v2";
/// The one before, which has one SHA-256 of the whole file.
const FORMAT_1: &str = "runner/checkpoint/v1";

/// The tensor of the state that counts its steps: a u64.
pub const STEP: &str = "train/step";

/// Facts about a checkpoint that the trainer supplies beside the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub experiment: String,
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Updates made: the steps that the guards did not skip.
    pub updates: u64,
    /// Head of the ledger after the entry of `step`.
    pub ledger: Head,
    /// What the bits depend on, by dotted key: a resume under other values is drift.
    pub numerics: BTreeMap<String, String>,
    /// Program and version: `runner 0.1.0`.
    pub created_by: String,
    /// The root that the trainer computed; saving a state with another root fails.
    pub state_root: Option<Hash>,
}

/// The content of `manifest.json`, but for the seal. The file has the fields in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub experiment: String,
    pub step: u64,
    pub tokens: u64,
    pub updates: u64,
    pub state_root: Hash,
    pub ledger: Head,
    pub numerics: BTreeMap<String, String>,
    pub created_by: String,
    pub file: FileRecord,
    /// Digest of each tensor, so that damage has a name.
    pub tensors: BTreeMap<String, Hash>,
}

/// How a checkpoint stands in the ledger of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its head and its root are those of its step.
    Bound,
    /// Its head is, and the step was not hashed.
    Unbound,
    /// It is of step 0: no step made it, and a run saves none before its first.
    Unmade,
    /// The ledger has no such head, or has it after another step.
    OtherHead,
    /// The ledger has this root of its step.
    OtherRoot(Hash),
}

impl Manifest {
    /// Holds the checkpoint to a ledger and its entries.
    pub fn standing(&self, log: &Log, entries: &[Entry]) -> Standing {
        let Some(last) = self.step.checked_sub(1) else { return Standing::Unmade };
        if !log.is_prefix(&self.ledger) || self.ledger.size != self.step {
            return Standing::OtherHead;
        }
        match usize::try_from(last).ok().and_then(|last| entries.get(last)) {
            None => Standing::OtherHead,
            Some(Entry { root: None, .. }) => Standing::Unbound,
            Some(Entry { root: Some(root), .. }) if *root == self.state_root => Standing::Bound,
            Some(Entry { root: Some(root), .. }) => Standing::OtherRoot(*root),
        }
    }
}

/// A file that belongs to the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    pub name: String,
    pub bytes: u64,
    pub sha256: FileSums,
}

/// The plain SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FileSums {
    /// Of each of its parts of [`PART_BYTES`], as `split -b 256M --filter=sha256sum` prints them.
    Parts(Vec<Hash>),
    /// Of all of it, as `sha256sum` prints it: in `runner/checkpoint/v1`.
    Whole(Hash),
}

impl FileSums {
    /// The bytes of a part, and the parts.
    pub fn parts(&self) -> (u64, &[Hash]) {
        match self {
            FileSums::Parts(parts) => (PART_BYTES, parts),
            FileSums::Whole(hash) => (u64::MAX, std::slice::from_ref(hash)),
        }
    }
}

const SEAL: &str = "  \"seal\": ";

impl Manifest {
    /// The text of `manifest.json`.
    pub fn to_text(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("strings, numbers and hashes become JSON");
        let body = format!("{},\n", json.strip_suffix("\n}").expect("a struct with fields ends so"));
        format!("{body}{SEAL}\"{}\"\n}}\n", manifest_seal(body.as_bytes()))
    }

    /// Reads the text of the manifest at `path`; checks format and seal.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Manifest> {
        let bad = |why: String| StoreError::BadManifest { path: path.into(), why };
        let text =
            std::str::from_utf8(text).map_err(|e| bad(format!("not UTF-8 from byte {}", e.valid_up_to())))?;
        let (body, end) = text
            .rsplit_once(SEAL)
            .ok_or_else(|| bad("it has no seal; the file was cut short or is another one".into()))?;
        let found: Hash = end
            .strip_prefix('"')
            .and_then(|end| end.strip_suffix("\"\n}\n"))
            .ok_or_else(|| bad("it does not end with its seal".into()))?
            .parse()
            .map_err(|e| bad(format!("its seal: {e}")))?;

        #[derive(Deserialize)]
        struct Format {
            format: String,
        }
        // Checked before the seal, so that another version is reported as such.
        let object = format!("{}\n}}", body.strip_suffix(",\n").unwrap_or(body));
        let format: Format = serde_json::from_str(&object).map_err(|e| bad(e.to_string()))?;
        let expected = manifest_seal(body.as_bytes());
        if ![FORMAT, FORMAT_1].contains(&format.format.as_str()) {
            return Err(StoreError::WrongFormat {
                path: path.into(),
                expected: FORMAT,
                found: format.format,
            });
        }
        if found != expected {
            return Err(StoreError::SealBroken { path: path.into(), expected, found });
        }
        let manifest: Manifest = json::parse(object.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let expected = match manifest.file.sha256 {
            FileSums::Whole(_) => manifest.format == FORMAT_1,
            FileSums::Parts(_) if manifest.format == FORMAT_1 => false,
            FileSums::Parts(ref parts) => parts.len() as u64 == manifest.file.bytes.div_ceil(PART_BYTES),
        };
        if !expected {
            return Err(bad("`file` has other sums than one for each 256 MiB, of v1 one in all".into()));
        }
        let counter = tensor_digest(STEP, Dtype::U64.name(), &[], &manifest.step.to_le_bytes());
        if manifest.tensors.get(STEP).is_some_and(|found| *found != counter) {
            let step = manifest.step;
            return Err(bad(format!("it is of step {step}, and `{STEP}` of its state is of another")));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let hash = Hash::of(b"x");
        Manifest {
            format: FORMAT.into(),
            experiment: "quick\"start".into(),
            step: 2000,
            tokens: 1 << 40,
            updates: 1999,
            state_root: hash,
            ledger: Head { size: 2000, root: hash },
            numerics: BTreeMap::from([("seed".into(), "1337".into())]),
            created_by: "runner 0.1.0".into(),
            file: FileRecord {
                name: "state.safetensors".into(),
                bytes: 12,
                sha256: FileSums::Parts(vec![hash]),
            },
            tensors: [("b".to_owned(), hash), ("a".to_owned(), hash)].into(),
        }
    }

    #[test]
    fn a_manifest_reads_back_and_its_text_is_stable() {
        let text = manifest().to_text();
        assert_eq!(Manifest::parse(Path::new("m"), text.as_bytes()).unwrap(), manifest());
        assert!(text.starts_with("{\n  \"format\": \"runner/checkpoint/v2\",\n  \"experiment\""));
        assert!(text.find("\"a\"") < text.find("\"b\""));
        serde_json::from_str::<serde_json::Value>(&text).expect("plain JSON for everyone else");
    }

    #[test]
    fn every_byte_of_a_manifest_is_guarded() {
        let good = manifest().to_text().into_bytes();
        for byte in 0..good.len() {
            for bit in [0, 4] {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                assert!(Manifest::parse(Path::new("m"), &bad).is_err(), "byte {byte}");
            }
            assert!(Manifest::parse(Path::new("m"), &good[..byte]).is_err(), "cut at {byte}");
        }
    }

    /// A run without a checkpoint starts at step 0 from the weights that its seed gives, and from no others.
    #[test]
    fn a_checkpoint_of_step_0_is_of_no_run() {
        let log = Log::default();
        let planted = Manifest { step: 0, ledger: log.head(), ..manifest() };
        assert!(log.is_prefix(&planted.ledger));
        assert_eq!(planted.standing(&log, &[]), Standing::Unmade);
        assert_eq!(manifest().standing(&log, &[]), Standing::OtherHead);
    }

    /// A state renamed to another step would be trained on with that step's data and learning rate.
    #[test]
    fn a_step_that_is_not_the_states_is_refused() {
        let step = |step: u64| tensor_digest(STEP, "U64", &[], &step.to_le_bytes());
        let of = |counted| Manifest { tensors: [(STEP.to_owned(), step(counted))].into(), ..manifest() };
        let parsed = |manifest: Manifest| Manifest::parse(Path::new("m"), manifest.to_text().as_bytes());
        assert_eq!(parsed(of(2000)).unwrap(), of(2000));
        assert!(matches!(parsed(of(1999)), Err(StoreError::BadManifest { .. })));
    }

    /// Of which version and length, and with which sums, a manifest is one.
    #[test]
    fn sums_are_those_of_the_format_and_the_length() {
        let parsed = |format: &str, bytes, sha256| {
            let file = FileRecord { bytes, sha256, ..manifest().file };
            let text = Manifest { format: format.into(), file, ..manifest() }.to_text();
            Manifest::parse(Path::new("m"), text.as_bytes()).map(|manifest| manifest.to_text() == text)
        };
        let parts = |count| FileSums::Parts(vec![Hash::of(b"x"); count]);
        let whole = FileSums::Whole(Hash::of(b"x"));
        for (format, bytes, sha256, good) in [
            (FORMAT, PART_BYTES, parts(1), true),
            (FORMAT, PART_BYTES + 1, parts(2), true),
            (FORMAT, PART_BYTES + 1, parts(1), false),
            (FORMAT, PART_BYTES, parts(2), false),
            (FORMAT, PART_BYTES, parts(0), false),
            (FORMAT, 12, whole.clone(), false),
            (FORMAT_1, 12, parts(1), false),
            (FORMAT_1, PART_BYTES * 3, whole, true),
        ] {
            match parsed(format, bytes, sha256) {
                Ok(same) => assert!(same && good, "{format}, {bytes} bytes"),
                Err(error) => assert!(!good && error.to_string().contains("256 MiB"), "{error}"),
            }
        }
    }

    #[test]
    fn an_edit_and_another_version_are_told_apart() {
        let text = manifest().to_text();
        let edited = text.replace("\"updates\": 1999", "\"updates\": 2000");
        assert!(matches!(
            Manifest::parse(Path::new("m"), edited.as_bytes()),
            Err(StoreError::SealBroken { .. })
        ));
        let newer = text.replace("checkpoint/v2", "checkpoint/v3");
        assert!(matches!(
            Manifest::parse(Path::new("m"), newer.as_bytes()),
            Err(StoreError::WrongFormat { .. })
        ));
    }
}
