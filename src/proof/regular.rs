//! Files of a run are regular files. A pipe of the same name would be waited for without end, and a file far
//! too long would take all memory: both are errors here.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Hash;

/// Bytes that no line of a run's records reaches: an entry has some hundred, and a note is a sentence or a
/// key's values.
pub const LONGEST_LINE: u64 = 16 << 20;

/// Opens a regular file to read it.
///
/// # Errors
/// Those of the system; it is a folder, a pipe or a device.
pub fn open(path: &Path) -> io::Result<File> {
    let found = path.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe or a device, and no file"));
    }
    File::open(path)
}

/// The content of a regular file.
///
/// # Errors
/// Those of [`open`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Memory for so many bytes of a file, all zero. A file may claim more than there is, and a process that asks
/// for that without looking ends.
///
/// # Errors
/// What to say of the file or its part: there is not so much memory.
pub fn memory(bytes: usize) -> Result<Vec<u8>, String> {
    require_memory(bytes)?;
    // Zeros of the system, which are not written.
    Ok(vec![0; bytes])
}

/// Refuses so many bytes, where [`memory`] would.
pub fn require_memory(bytes: usize) -> Result<(), String> {
    let mut memory = Vec::<u8>::new();
    let reserved = memory.try_reserve_exact(bytes);
    // Memory that nobody looks at is optimised away, and then there is enough of it.
    std::hint::black_box(&memory);
    reserved.map_err(|_| no_memory(bytes))
}

fn no_memory(bytes: usize) -> String {
    format!("has {bytes} bytes, and there is not so much memory")
}

/// Plain SHA-256 of a regular file, as `sha256sum` prints it, a megabyte in memory at a time.
///
/// # Errors
/// Those of [`open`].
pub fn sha256(path: &Path) -> io::Result<Hash> {
    let (mut file, mut hasher, mut buffer) = (open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Hash(hasher.finalize().into())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// The content of a regular file that has at most `most` bytes.
///
/// # Errors
/// Those of [`open`]; it is longer.
pub fn read_within(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if open(path)?.take(most + 1).read_to_end(&mut bytes)? as u64 > most {
        let why = format!("it has more than {most} bytes, and is something else");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// The whole lines in the last `most` bytes of a regular file, and whether these are all of its lines. A last
/// line without its newline is left out.
///
/// # Errors
/// Those of [`open`].
pub fn read_last_lines(path: &Path, most: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = open(path)?;
    let start = file.metadata()?.len().saturating_sub(most);
    // The byte before tells whether a line begins at `start`.
    file.seek(SeekFrom::Start(start.saturating_sub(1)))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    let newline = |byte: &u8| *byte == b'\n';
    bytes.truncate(bytes.iter().rposition(newline).map_or(0, |at| at + 1));
    if start > 0 {
        bytes.drain(..bytes.iter().position(newline).map_or(bytes.len(), |at| at + 1));
    }
    Ok((bytes, start == 0))
}

/// The lines of a file, one in memory at a time.
#[derive(Debug)]
pub struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    number: u64,
    torn: bool,
}

impl Lines {
    /// Those of a regular file.
    ///
    /// # Errors
    /// Those of [`open`].
    pub fn open(path: &Path) -> io::Result<Lines> {
        open(path).map(Lines::of)
    }

    /// Those of an open file, from its position on.
    pub fn of(file: File) -> Lines {
        let file = BufReader::with_capacity(1 << 18, file);
        Lines { file, line: Vec::new(), number: 0, torn: false }
    }

    /// The next line, without its newline; none at the end. A last line without its newline is left out.
    ///
    /// # Errors
    /// Those of the system; a line of [`LONGEST_LINE`] or more.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        self.number += 1;
        let read = self.file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.line)?;
        if read as u64 == LONGEST_LINE {
            let why = format!("line {} has more than {LONGEST_LINE} bytes, and is no record", self.number);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let line = self.line.strip_suffix(b"\n");
        self.torn |= line.is_none() && read > 0;
        Ok(line)
    }

    /// Whether the end was reached, and a last line has no newline.
    pub fn is_torn(&self) -> bool {
        self.torn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_there_is_is_refused_by_its_size() {
        assert_eq!(memory(3).unwrap(), [0; 3]);
        // More than a process can address.
        let refused = memory(1 << 50).unwrap_err();
        assert_eq!(refused, "has 1125899906842624 bytes, and there is not so much memory");
        assert_eq!(require_memory(1 << 50).unwrap_err(), refused);
        assert!(require_memory(1 << 20).is_ok());
    }

    #[test]
    fn lines_come_one_by_one_and_one_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (text, expected, torn) in
            [("", &[][..], false), ("a\n\nbc\n", &["a", "", "bc"][..], false), ("a\nbc", &["a"][..], true)]
        {
            std::fs::write(&path, text).unwrap();
            let (mut lines, mut found) = (Lines::open(&path).unwrap(), Vec::new());
            while let Some(line) = lines.next_line().unwrap() {
                found.push(String::from_utf8(line.to_vec()).unwrap());
            }
            assert!(found == expected && lines.is_torn() == torn, "{text:?}: {found:?}");
        }
        // A hole without a newline, larger than memory.
        std::fs::write(&path, "a\n").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 36).unwrap();
        let mut lines = Lines::open(&path).unwrap();
        assert_eq!(lines.next_line().unwrap(), Some(&b"a"[..]));
        let refused = lines.next_line().unwrap_err().to_string();
        assert_eq!(refused, "line 2 has more than 16777216 bytes, and is no record");
    }

    #[test]
    fn what_is_no_file_or_far_too_long_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_within(&path, 5).unwrap(), b"12345");
        assert_eq!(read_within(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(open(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(read(&pipe).unwrap_err().to_string().contains("a pipe"));
    }

    #[test]
    fn the_end_of_a_file_is_its_last_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "one\ntwo\nthree\nto").unwrap();
        for (most, lines, all) in [
            (0, "", false),
            (7, "", false),
            (8, "three\n", false),
            (11, "three\n", false),
            (12, "two\nthree\n", false),
            (15, "two\nthree\n", false),
            (16, "one\ntwo\nthree\n", true),
            (99, "one\ntwo\nthree\n", true),
        ] {
            let (bytes, whole) = read_last_lines(&path, most).unwrap();
            assert_eq!((String::from_utf8(bytes).unwrap().as_str(), whole), (lines, all), "{most}");
        }
    }
}
