//! Files of a run are regular files. A pipe of the same name would be waited for without end, and a file far
//! too long would take all memory: both are errors here.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Hash;

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

#[cfg(test)]
mod tests {
    use super::*;

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
