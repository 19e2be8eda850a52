//! Kernels that were compiled before the program was, and travel in it: a GPU then needs its driver alone.
//!
//! `release/kernels.py` compiles every variant of every file of `kernels/` for the architectures that are
//! released, and `build.rs` puts its file, compressed, into the program if `KERNEL_PACK` names it. Code is
//! found by the key that the cache on disk has too: sources, options and compiler. So code of edited kernels
//! is not found, and NVRTC makes it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::ops::Range;
use std::sync::OnceLock;

use super::compile::Nvrtc;
use crate::ops::{DeviceError, Result};

/// The file as `build.rs` leaves it: empty, or compressed with zlib.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.pack"));

const MAGIC: &str = "runner/cubins/v1";

/// Machine code by its key.
#[derive(Debug)]
pub struct Embedded {
    /// The compiler that made it.
    pub nvrtc: Nvrtc,
    /// The architectures that it was made for.
    pub architectures: Vec<String>,
    places: BTreeMap<[u8; 32], Range<usize>>,
    bytes: Vec<u8>,
}

impl Embedded {
    /// What this program carries; `None` if it was built without kernels.
    ///
    /// # Errors
    ///
    /// The program's file is damaged, or was built with a file that is none of `release/kernels.py`.
    pub fn of_program() -> Result<Option<&'static Embedded>> {
        static FOUND: OnceLock<Option<Embedded>> = OnceLock::new();
        if PACKED.is_empty() {
            return Ok(None);
        }
        let found = FOUND.get_or_init(|| {
            let mut bytes = Vec::new();
            flate2::read::ZlibDecoder::new(PACKED).read_to_end(&mut bytes).ok()?;
            Embedded::read(bytes)
        });
        found.as_ref().map(Some).ok_or_else(|| {
            DeviceError::Unavailable(
                "the kernels in this program are damaged\n  hint: install the program again, or build it \
                 with the file that `release/kernels.py` writes"
                    .into(),
            )
        })
    }

    /// The code of `key`, if it is here.
    pub fn code(&self, key: &[u8; 32]) -> Option<&[u8]> {
        self.places.get(key).map(|place| &self.bytes[place.clone()])
    }

    /// How many pieces of code there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Reads the layout that `release/kernels.py` describes; `None` unless all of it is right.
    fn read(bytes: Vec<u8>) -> Option<Embedded> {
        let mut rest = bytes.as_slice();
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let text = std::str::from_utf8(&rest[..end]).ok()?;
            rest = &rest[end + 1..];
            Some(text)
        };
        if line()? != MAGIC {
            return None;
        }
        let mut words = line()?.split(' ');
        let nvrtc = Nvrtc::parse(words.next()?)?;
        let architectures = words.map(str::to_owned).collect();
        let (count, mut table) = rest.split_first_chunk()?;
        let count = u32::from_le_bytes(*count) as usize;
        let mut at = bytes.len() - table.len() + count.checked_mul(40)?;
        let mut places = BTreeMap::new();
        for _ in 0..count {
            let (key, after) = table.split_first_chunk::<32>()?;
            let (length, after) = after.split_first_chunk()?;
            table = after;
            let end = at.checked_add(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            places.insert(*key, at..end);
            at = end;
        }
        let whole = places.len() == count && at == bytes.len();
        whole.then_some(Embedded { nvrtc, architectures, places, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile::{self, CodeOrigin, Stores};
    use super::super::launch::sources;
    use super::*;

    fn pack() -> Vec<u8> {
        let mut bytes = format!("{MAGIC}\n13.0 sm_80 sm_90a\n").into_bytes();
        bytes.extend_from_slice(&2u32.to_le_bytes());
        for (key, length) in [(7, 3u64), (9, 2)] {
            bytes.extend_from_slice(&[key; 32]);
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes.extend_from_slice(b"abcde");
        bytes
    }

    #[test]
    fn code_is_found_by_its_key_and_a_damaged_layout_is_none() {
        let embedded = Embedded::read(pack()).expect("a pack");
        assert_eq!((embedded.nvrtc.to_string().as_str(), embedded.count()), ("13.0", 2));
        assert_eq!(embedded.architectures, ["sm_80", "sm_90a"]);
        assert_eq!(embedded.code(&[7; 32]), Some(&b"abc"[..]));
        assert_eq!(embedded.code(&[9; 32]), Some(&b"de"[..]));
        assert_eq!(embedded.code(&[8; 32]), None);
        for end in 0..pack().len() {
            assert!(Embedded::read(pack()[..end].to_vec()).is_none(), "cut to {end} bytes");
        }
        let mut longer = pack();
        longer.push(0);
        assert!(Embedded::read(longer).is_none());
        let endless = pack().into_iter().enumerate();
        // The length of the first piece of code stands behind 35 bytes of text, a count and a key.
        let endless = endless.map(|(at, byte)| if (71..79).contains(&at) { 0xff } else { byte }).collect();
        assert!(Embedded::read(endless).is_none(), "lengths past any memory");
    }

    #[test]
    #[ignore = "skipped: needs kernels in the program (KERNEL_PACK); run with --include-ignored"]
    fn every_variant_of_every_kernel_is_in_the_program_for_every_released_architecture() {
        let embedded = Embedded::of_program().expect("whole").expect("built with KERNEL_PACK");
        assert_eq!(embedded.architectures, ["sm_80", "sm_89", "sm_90a", "sm_100a"]);
        let stores = Stores { cache: None, embedded: Some(embedded), without: None };
        let mut found = 0;
        for architecture in &embedded.architectures {
            for source in sources().filter(|source| source.only.is_none_or(|only| only == architecture)) {
                for defines in source.variants() {
                    let cubin =
                        compile::compile(source, architecture, &defines, &stores).unwrap_or_else(|why| {
                            panic!("{} {defines:?} for {architecture}: {why}", source.file)
                        });
                    assert_eq!(cubin.origin, CodeOrigin::Embedded);
                    assert_eq!(&cubin.code[1..4], b"ELF", "{} is machine code", source.file);
                    found += 1;
                }
            }
        }
        assert_eq!(found, embedded.count(), "and nothing else is");
    }

    #[test]
    #[ignore = "skipped: needs kernels in the program (KERNEL_PACK), and the NVRTC that made them; run with \
                --include-ignored"]
    fn the_compiler_at_hand_makes_the_bytes_that_are_in_the_program() {
        let embedded = Embedded::of_program().expect("whole").expect("built with KERNEL_PACK");
        assert_eq!(compile::nvrtc_version().expect("NVRTC"), embedded.nvrtc, "the pinned compiler");
        for file in ["gelu.cu", "digest.cu", "attention_forward.cu"] {
            let source = sources().find(|source| source.file == file).expect("a source");
            for architecture in &embedded.architectures {
                let made = |embedded| {
                    let stores = Stores { cache: None, embedded, without: None };
                    compile::compile(source, architecture, &source.variants()[0], &stores).expect("code")
                };
                let (ours, fresh) = (made(Some(embedded)), made(None));
                assert_eq!((ours.origin, fresh.origin), (CodeOrigin::Embedded, CodeOrigin::Compiled));
                assert_eq!(ours.code, fresh.code, "{file} for {architecture}");
            }
        }
    }
}
