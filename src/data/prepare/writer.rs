//! Shards under temporary names until all are whole; then each gets its name, one after the other. What a
//! kill leaves, the next prepare into the folder removes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::super::error::DataError;
use super::super::shard::{HEADER_BYTES, MAGIC, recorded_header};
use super::super::tokenizer::Tokenizer;
use super::{PrepareOptions, ValSplit, WrittenShard};
use crate::store::output;

/// What the temporary names begin and end with.
const TEMPORARY: (&str, &str) = (".prepare-", ".tmp");

/// Splits a stream of tokens into validation and training shards of a fixed size.
pub(super) struct ShardWriter<'a> {
    options: &'a PrepareOptions,
    /// Tokens that still go to validation, when the split counts tokens.
    val_left: u64,
    val: Series,
    train: Series,
    /// Dropped last: the shards under temporary names are gone then.
    _made: MadeFolders,
}

/// Folders that were made, the innermost first. Dropped, those are removed again in which nothing stays.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(folder: &Path) -> std::io::Result<MadeFolders> {
        let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = MadeFolders(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder)?;
        Ok(made)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Refused for a folder that holds something.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The shards of one split: `…_val_000000.bin` or `…_train_000001.bin` and on.
struct Series {
    split: &'static str,
    next_index: u64,
    tokens: u64,
    open: Option<OpenShard>,
    closed: Vec<ClosedShard>,
}

struct OpenShard {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    tokens: u64,
}

/// Complete and on disk, but still under its temporary name.
struct ClosedShard {
    file: NamedTempFile,
    path: PathBuf,
    tokens: u64,
}

impl<'a> ShardWriter<'a> {
    /// Makes the folder; refuses shards of this prefix unless they may be replaced.
    pub fn new(options: &'a PrepareOptions) -> Result<ShardWriter<'a>, DataError> {
        let made = MadeFolders::make(&options.out).map_err(DataError::io("make folder", &options.out))?;
        remove_left(&options.out);
        require_free(options)?;
        let val_left = match options.val {
            ValSplit::Tokens(tokens) => tokens,
            ValSplit::Fraction(_) => 0,
        };
        let (val, train) = (Series::new("val", 0), Series::new("train", 1));
        Ok(ShardWriter { options, val_left, val, train, _made: made })
    }

    /// Appends tokens. `validation` sends them all to validation; else the token count decides.
    pub fn write(&mut self, tokens: &[u16], validation: bool) -> Result<(), DataError> {
        if validation {
            return self.val.write(tokens, self.options);
        }
        let to_val = usize::try_from(self.val_left).unwrap_or(usize::MAX).min(tokens.len());
        self.val_left -= to_val as u64;
        self.val.write(&tokens[..to_val], self.options)?;
        self.train.write(&tokens[to_val..], self.options)
    }

    pub fn train_tokens(&self) -> u64 {
        self.train.tokens
    }

    pub fn val_tokens(&self) -> u64 {
        self.val.tokens
    }

    /// Gives all shards their names, removes replaced ones that have no successor, and flushes the folder.
    pub fn finish(mut self) -> Result<Vec<WrittenShard>, DataError> {
        self.val.close(&self.options.tokenizer)?;
        self.train.close(&self.options.tokenizer)?;
        // Without leave to replace any, another process's that came meanwhile stay.
        let stale = if self.options.overwrite { existing(self.options)? } else { Vec::new() };
        let mut written = Vec::new();
        for shard in self.val.closed.into_iter().chain(self.train.closed) {
            let named = if self.options.overwrite {
                shard.file.persist(&shard.path)
            } else {
                shard.file.persist_noclobber(&shard.path)
            };
            named.map_err(|e| DataError::io("write", &shard.path)(e.error))?;
            written.push(WrittenShard {
                path: shard.path,
                tokens: shard.tokens,
                bytes: HEADER_BYTES + 2 * shard.tokens,
            });
        }
        // A left-over shard of an earlier, longer set would match the same pattern and be trained on.
        let stale = stale.iter().filter(|old| written.iter().all(|new| new.path != **old));
        for path in stale.filter(|path| is_shard(path)) {
            match fs::remove_file(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(DataError::io("remove", path))?,
            }
        }
        let out = &self.options.out;
        File::open(out).and_then(|folder| folder.sync_all()).map_err(DataError::io("flush", out))?;
        Ok(written)
    }
}

impl Series {
    fn new(split: &'static str, next_index: u64) -> Series {
        Series { split, next_index, tokens: 0, open: None, closed: Vec::new() }
    }

    fn write(&mut self, mut tokens: &[u16], options: &PrepareOptions) -> Result<(), DataError> {
        while !tokens.is_empty() {
            let shard = match &mut self.open {
                Some(shard) => shard,
                empty => {
                    let name = format!("{}_{}_{:06}.bin", options.prefix, self.split, self.next_index);
                    self.next_index += 1;
                    empty.insert(OpenShard::create(options.out.join(name))?)
                }
            };
            let room = options.shard_tokens - shard.tokens;
            let part = usize::try_from(room).unwrap_or(usize::MAX).min(tokens.len());
            shard.write(&tokens[..part])?;
            self.tokens += part as u64;
            tokens = &tokens[part..];
            if shard.tokens == options.shard_tokens {
                self.close(&options.tokenizer)?;
            }
        }
        Ok(())
    }

    fn close(&mut self, tokenizer: &Tokenizer) -> Result<(), DataError> {
        if let Some(shard) = self.open.take() {
            self.closed.push(shard.close(tokenizer)?);
        }
        Ok(())
    }
}

impl OpenShard {
    /// A temporary file beside `path`, with room for the header.
    fn create(path: PathBuf) -> Result<OpenShard, DataError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
        // With the permissions of any new file, for shards are read by others; `tempfile_in` would put the
        // temporary name into its errors.
        let create = |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let temporary = loop {
            let made = builder.make_in(folder, create).map_err(DataError::io("write into", folder))?;
            // Locked, it is known to be of a process that is there; before, another may have removed it.
            if made.as_file().lock().is_err() || made.path().exists() {
                break made;
            }
        };
        let mut file = BufWriter::with_capacity(1 << 20, temporary);
        file.write_all(&[0; HEADER_BYTES as usize]).map_err(DataError::io("write", &path))?;
        Ok(OpenShard { file, path, tokens: 0 })
    }

    fn write(&mut self, tokens: &[u16]) -> Result<(), DataError> {
        let mut bytes = Vec::with_capacity(2 * tokens.len());
        bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        self.file.write_all(&bytes).map_err(DataError::io("write", &self.path))?;
        self.tokens += tokens.len() as u64;
        Ok(())
    }

    /// Writes the header and waits until the disk has everything.
    fn close(self, tokenizer: &Tokenizer) -> Result<ClosedShard, DataError> {
        let OpenShard { file, path, tokens } = self;
        let finish = |file: BufWriter<NamedTempFile>| -> std::io::Result<NamedTempFile> {
            let mut file = file.into_inner().map_err(|e| e.into_error())?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&recorded_header(tokens, tokenizer))?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        let file = finish(file).map_err(DataError::io("write", &path))?;
        Ok(ClosedShard { file, path, tokens })
    }
}

/// Removes shards under temporary names that processes have left which were killed: nobody has them locked.
/// What cannot be removed stays, and does no harm.
fn remove_left(out: &Path) {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let is_temporary =
        |name: &str| name.strip_prefix(TEMPORARY.0).is_some_and(|rest| rest.ends_with(TEMPORARY.1));
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_temporary)) {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let left = if is_file { File::options().write(true).open(entry.path()).ok() } else { None };
        // Held until the name is gone.
        if let Some(file) = left.filter(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
            drop(file);
        }
    }
}

/// Refuses a destination that cannot be a folder or be written in, and shards of this prefix in it unless they
/// may be replaced. Writes nothing.
pub(super) fn require_free(options: &PrepareOptions) -> Result<(), DataError> {
    let out = &options.out;
    output::require_folder(out)?;
    let earlier = if out.exists() { existing(options)? } else { Vec::new() };
    if let Some(first) = earlier.first()
        && !options.overwrite
    {
        return Err(DataError::ShardsExist {
            path: first.clone(),
            prefix: options.prefix.clone(),
            count: earlier.len(),
        });
    }
    match earlier.into_iter().find(|path| !is_shard(path)) {
        Some(path) => Err(DataError::NotOurs { path }),
        None => Ok(()),
    }
}

/// Shards of this prefix in the folder, sorted.
fn existing(options: &PrepareOptions) -> Result<Vec<PathBuf>, DataError> {
    let out = &options.out;
    let mut found = Vec::new();
    for entry in fs::read_dir(out).map_err(DataError::io("look into", out))? {
        let entry = entry.map_err(DataError::io("look into", out))?;
        if entry.file_name().to_str().is_some_and(|name| is_shard_name(name, &options.prefix)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file begins as a token shard does.
fn is_shard(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == MAGIC.to_le_bytes()
}

/// Whether a name is `<prefix>_train_<digits>.bin` or `<prefix>_val_<digits>.bin`.
pub fn is_shard_name(name: &str, prefix: &str) -> bool {
    let index = |rest: &str| -> Option<bool> {
        let rest = rest.strip_prefix("_train_").or_else(|| rest.strip_prefix("_val_"))?;
        let digits = rest.strip_suffix(".bin")?;
        Some(!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    name.strip_prefix(prefix).and_then(index).unwrap_or(false)
}
