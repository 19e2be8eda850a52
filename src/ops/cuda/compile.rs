//! The kernels' machine code: from the program itself, or compiled by NVRTC for the GPU at hand and kept on
//! disk.
//!
//! NVRTC is asked for a cubin, never for PTX: PTX would be compiled once more by the driver, whose
//! compiler changes with every driver and would decide the bits. The code is a function of the
//! source, the headers, the options, the architecture and NVRTC's version; their hash is the key in
//! the cache. A file of the cache carries the hash of its contents, so that a damaged one is
//! noticed and compiled again.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::embedded::Embedded;
use super::libraries::{self, Library};
use super::sources::{HEADERS, Source};
use crate::ops::{DeviceError, Result};

/// Machine code for one source file.
#[derive(Clone, Debug)]
pub struct Cubin {
    pub file: &'static str,
    pub code: Vec<u8>,
    /// SHA-256 of the source and of all headers.
    pub source_sha256: [u8; 32],
    /// SHA-256 of `code`.
    pub code_sha256: [u8; 32],
    pub options: Vec<String>,
    /// The compiler that made the code.
    pub nvrtc: Nvrtc,
    pub origin: CodeOrigin,
    pub compile_ms: f64,
}

/// Where machine code came from. Changes no bit of the code: its key says all that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeOrigin {
    /// It travels in the program.
    Embedded,
    /// NVRTC made it earlier, on this machine.
    Cache,
    /// NVRTC made it now.
    Compiled,
}

/// A version of NVRTC, as in `13.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nvrtc {
    pub major: i32,
    pub minor: i32,
}

impl Nvrtc {
    /// Reads `13.0`.
    pub fn parse(text: &str) -> Option<Nvrtc> {
        let (major, minor) = text.split_once('.')?;
        Some(Nvrtc { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Where code may be found before NVRTC is asked.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    /// A folder that is read and filled; one that cannot be written costs time, not more.
    pub cache: Option<PathBuf>,
    /// What the program carries, if this GPU's driver can load it.
    pub embedded: Option<&'static Embedded>,
    /// Why there is nothing embedded that can be used, for the message when NVRTC is missing too.
    pub without: Option<String>,
}

/// Why a kernel file has no code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("`{file}` does not compile for {architecture} (NVRTC {nvrtc}, options {options})\n{log}")]
    Rejected { file: &'static str, architecture: String, nvrtc: String, options: String, log: String },
    #[error("NVRTC failed on `{file}`: {message}")]
    Failed { file: &'static str, message: String },
    #[error("`{file}` must be compiled for {architecture}, for {why}; and {missing}")]
    NoCompiler { file: &'static str, architecture: String, why: String, missing: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl CompileError {
    pub fn into_device_error(self) -> DeviceError {
        match self {
            CompileError::Device(inner) => inner,
            other => DeviceError::Unavailable(format!("the CUDA kernels cannot be built: {other}")),
        }
    }
}

/// NVRTC's version. Loads the library.
pub fn nvrtc_version() -> Result<Nvrtc> {
    libraries::require(Library::Nvrtc)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to live integers, and the library is loaded.
    let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    status.result().map_err(|e| DeviceError::Unavailable(format!("NVRTC does not answer: {e}")))?;
    Ok(Nvrtc { major, minor })
}

/// Where code is kept between runs: `$XDG_CACHE_HOME/runner/<name>`, or under `~/.cache`.
pub fn cache_folder(name: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(root.join("runner").join(name))
}

/// Code for `source` on `architecture` (`sm_90a`), with `defines` such as `ACT_BF16=1`: from the program,
/// from the cache, or from NVRTC, which is loaded only when the program has none.
pub fn compile(
    source: &Source,
    architecture: &str,
    defines: &[String],
    stores: &Stores,
) -> Result<Cubin, CompileError> {
    let mut options =
        vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "--fmad=false".into()];
    options.extend(defines.iter().map(|define| format!("-D{define}")));
    let source_sha256 = source_hash(source);
    let key = |nvrtc| key(&source_sha256, &options, nvrtc);
    let started = Instant::now();
    let embedded = stores.embedded.and_then(|pack| Some((pack.code(&key(pack.nvrtc))?, pack.nvrtc)));
    let (code, nvrtc, origin) = match embedded {
        Some((code, nvrtc)) => (code.to_vec(), nvrtc, CodeOrigin::Embedded),
        None => {
            let nvrtc = nvrtc_version().map_err(|missing| CompileError::NoCompiler {
                file: source.file,
                architecture: architecture.to_owned(),
                why: stores.why_not(architecture),
                missing: missing.to_string(),
            })?;
            let entry =
                stores.cache.as_ref().map(|folder| folder.join(format!("{}.cubin", hex::encode(key(nvrtc)))));
            match entry.as_deref().and_then(read_entry) {
                Some(code) => (code, nvrtc, CodeOrigin::Cache),
                None => {
                    let code = run_nvrtc(source, architecture, &options, &nvrtc.to_string())?;
                    if let Some(entry) = &entry {
                        // A full disk or a read-only home must not stop a training run.
                        let _ = write_entry(entry, &code);
                    }
                    (code, nvrtc, CodeOrigin::Compiled)
                }
            }
        }
    };
    let code_sha256 = Sha256::digest(&code).into();
    let compile_ms = started.elapsed().as_secs_f64() * 1e3;
    Ok(Cubin { file: source.file, code, source_sha256, code_sha256, options, nvrtc, origin, compile_ms })
}

impl Stores {
    /// Why the program has no code for `architecture`.
    fn why_not(&self, architecture: &str) -> String {
        match (&self.without, self.embedded) {
            (Some(why), _) => why.clone(),
            (None, None) => "this program was built without compiled kernels".into(),
            (None, Some(pack)) if pack.architectures.iter().all(|known| known != architecture) => {
                format!("this program has compiled kernels for {} only", pack.architectures.join(", "))
            }
            (None, Some(_)) => "its text is not the one that was compiled into this program".into(),
        }
    }
}

/// What names a cubin: all that its bytes depend on.
fn key(source_sha256: &[u8; 32], options: &[String], nvrtc: Nvrtc) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"runner/cubin/v1")
        .chain_update(source_sha256)
        .chain_update(options.join("\n"))
        .chain_update(format!("\nnvrtc {nvrtc}"))
        .finalize()
        .into()
}

/// SHA-256 over the source and all headers, each with its name and length.
pub fn source_hash(source: &Source) -> [u8; 32] {
    let mut hash = Sha256::new().chain_update(b"runner/kernel-source/v1");
    for part in std::iter::once(source).chain(HEADERS) {
        hash.update((part.file.len() as u64).to_le_bytes());
        hash.update(part.file);
        hash.update((part.text.len() as u64).to_le_bytes());
        hash.update(part.text);
    }
    hash.finalize().into()
}

// ---- the cache ---------------------------------------------------------------------------------

const MAGIC: &[u8; 8] = b"cubin/1\n";

/// The code in a cache file: magic, SHA-256 of the rest, the rest. `None` unless all of it is right.
fn read_entry(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
    let (hash, code) = rest.split_at_checked(32)?;
    (magic == MAGIC && hash == &Sha256::digest(code)[..]).then(|| code.to_vec())
}

/// Writes under a temporary name first, so that two processes cannot mix their bytes.
fn write_entry(file: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(MAGIC)?;
    temporary.write_all(&Sha256::digest(code))?;
    temporary.write_all(code)?;
    temporary.persist(file)?;
    Ok(())
}

// ---- NVRTC -------------------------------------------------------------------------------------

/// A program that is destroyed when it goes out of scope.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `run_nvrtc` and destroyed here alone.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn run_nvrtc(
    source: &Source,
    architecture: &str,
    options: &[String],
    nvrtc: &str,
) -> Result<Vec<u8>, CompileError> {
    let failed = |message: String| CompileError::Failed { file: source.file, message };
    let c_string = |text: &str| CString::new(text).map_err(|e| failed(e.to_string()));
    let text = c_string(source.text)?;
    let name = c_string(source.file)?;
    let header_texts = HEADERS.iter().map(|h| c_string(h.text)).collect::<Result<Vec<_>, _>>()?;
    let header_names = HEADERS.iter().map(|h| c_string(h.file)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<*const c_char>>();

    let mut program = std::ptr::null_mut();
    // SAFETY: all strings end in NUL and outlive the program; the counts are those of the arrays.
    let status = unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program,
            text.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as i32,
            pointers(&header_texts).as_ptr(),
            pointers(&header_names).as_ptr(),
        )
    };
    status.result().map_err(|e| failed(e.to_string()))?;
    let program = Program(program);

    // SAFETY: the program was created above and lives until the end of this function.
    if let Err(error) = unsafe { result::compile_program(program.0, options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.map(|log| from_c(&log)).unwrap_or_default();
        if error.0 != sys::nvrtcResult::NVRTC_ERROR_COMPILATION {
            return Err(failed(format!("{error}\n{log}")));
        }
        return Err(CompileError::Rejected {
            file: source.file,
            architecture: architecture.to_owned(),
            nvrtc: nvrtc.to_owned(),
            options: options.join(" "),
            log: with_source_lines(&log, source),
        });
    }
    let mut size = 0;
    // SAFETY: the program compiled; `size` is a live integer.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }
        .result()
        .map_err(|e| failed(e.to_string()))?;
    let mut code = vec![0u8; size];
    // SAFETY: `code` has the length that NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }
        .result()
        .map_err(|e| failed(e.to_string()))?;
    if code.is_empty() {
        return Err(failed(format!("no machine code for {architecture}")));
    }
    Ok(code)
}

fn from_c(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map(|c| c.to_string_lossy().trim_end().to_owned()).unwrap_or_default()
}

/// NVRTC names places as `file(line): error`; puts the first such line of source below the log.
fn with_source_lines(log: &str, source: &Source) -> String {
    let place = log.lines().filter(|line| line.contains("error")).find_map(|line| {
        std::iter::once(source).chain(HEADERS).find_map(|part| {
            let rest = &line[line.find(part.file)? + part.file.len()..];
            let number: usize = rest.strip_prefix('(')?.split(')').next()?.parse().ok()?;
            let text = part.text.lines().nth(number.checked_sub(1)?)?;
            Some(format!("{}:{number}: {}", part.file, text.trim_end()))
        })
    });
    match place {
        Some(place) => format!("{log}\n  {place}"),
        None => log.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cuda::launch::sources;

    #[test]
    #[ignore = "skipped: needs NVRTC; run with --include-ignored"]
    fn every_kernel_file_compiles_for_every_generation() {
        for source in sources() {
            // All variants for one generation, the first for the others: a compilation takes a third of a
            // second.
            for (architecture, variants) in [("sm_80", 1), ("sm_90a", usize::MAX), ("sm_100a", 1)] {
                let variants = if source.only.is_none_or(|only| only == architecture) { variants } else { 0 };
                for defines in source.variants().iter().take(variants) {
                    let cubin = compile(source, architecture, defines, &Stores::default())
                        .unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!(&cubin.code[1..4], b"ELF", "{} is machine code", source.file);
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_the_cache_is_found_and_repaired() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("entry.cubin");
        write_entry(&file, b"machine code").expect("the entry is written");
        assert_eq!(read_entry(&file).as_deref(), Some(&b"machine code"[..]));
        let mut bytes = std::fs::read(&file).expect("the entry");
        for at in 0..bytes.len() {
            bytes[at] ^= 4;
            std::fs::write(&file, &bytes).expect("the damaged entry");
            assert_eq!(read_entry(&file), None, "byte {at}");
            bytes[at] ^= 4;
        }
        std::fs::write(&file, &bytes[..20]).expect("the short entry");
        assert_eq!(read_entry(&file), None, "a short file");
    }

    #[test]
    #[ignore = "skipped: needs NVRTC; run with --include-ignored"]
    fn code_comes_from_the_cache_the_second_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = Source {
            file: "probe.cu",
            text: "extern \"C\" __global__ void probe(float* x) { *x = VALUE; }",
            variants: &[],
            only: None,
        };
        let get = |value: u32| {
            let stores = Stores { cache: Some(folder.path().to_owned()), ..Stores::default() };
            compile(&source, "sm_90a", &[format!("VALUE={value}")], &stores).expect("code")
        };
        let first = get(1);
        let second = get(1);
        assert_eq!((first.origin, second.origin), (CodeOrigin::Compiled, CodeOrigin::Cache));
        assert_eq!(first.code, second.code);
        assert_eq!(get(2).origin, CodeOrigin::Compiled, "other options are other code");
    }

    #[test]
    #[ignore = "skipped: needs NVRTC; run with --include-ignored"]
    fn a_compile_error_shows_the_log_and_the_line() {
        let source = Source {
            file: "broken.cu",
            text: "// a comment\nextern \"C\" __global__ void k() { nonsense; }",
            variants: &[],
            only: None,
        };
        let error =
            compile(&source, "sm_90a", &[], &Stores::default()).expect_err("it cannot compile").to_string();
        assert!(error.contains("nonsense") && error.contains("broken.cu:2: extern"), "{error}");
    }

    /// Another arithmetic makes the lock and its golden roots void: make both anew on a Hopper GPU, by
    /// `runner verify experiments/ci_cuda.toml --twice --bless …` and `runner lock`.
    #[test]
    fn the_shipped_lock_and_golden_roots_name_the_arithmetic_of_this_tree() {
        let text = include_str!("../../../experiments/locks/ci_cuda_hopper.lock.toml");
        let lock: toml::Table = toml::from_str(text).expect("a lock is TOML");
        let arithmetic = lock["numerics"].get("cuda.arithmetic").and_then(toml::Value::as_str);
        assert_eq!(arithmetic, Some(crate::ops::mirror::ARITHMETIC));
        let golden = include_str!("../../../tests/golden/ci_cuda_hopper.root");
        let id = lock["numerics_id"].as_str().expect("an id");
        assert!(golden.contains(id), "the golden roots are those of another lock");
    }
}
