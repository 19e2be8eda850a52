//! llm.c's multiple-choice file: tasks as GPT-2 tokens, little-endian.
//!
//! A header of 256 `i32`: magic 20240522, version 1, the number of examples, bytes of the longest. Then
//! each example as `u16`: 65535, its bytes, its index, the label, the number of completions, and the
//! length and tokens of the context and of each completion. Every field is checked against every
//! other, for a wrong length would shift all that follows.

use std::path::Path;

use super::EvalError;
use super::multiple_choice::{COMPLETIONS, Length, Prompt, Task};
use crate::data::Tokenizer;
use crate::units::noun;

pub const MAGIC: i32 = 20_240_522;
const VERSION: i32 = 1;
const HEADER_BYTES: usize = 256 * 4;
const START: u16 = u16::MAX;

/// Whether a file starts as llm.c's does.
pub fn is_eval_bin(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC.to_le_bytes())
}

/// Every example as a task, in order. Lengths are those of the text of the completions' GPT-2 tokens without
/// the space they start with; each run of bytes that are not UTF-8 counts as one character.
///
/// # Errors
///
/// Any departure from the format, with its byte.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Task>, EvalError> {
    let damaged = |byte, expected: &str, got: String| EvalError::Damaged {
        path: path.into(),
        byte,
        expected: expected.into(),
        got,
    };
    if bytes.len() < HEADER_BYTES {
        return Err(damaged(bytes.len(), "a header of 1024 bytes", "the end of the file".into()));
    }
    let header = |i: usize| i32::from_le_bytes([0, 1, 2, 3].map(|b| bytes[4 * i + b]));
    if header(1) != VERSION {
        return Err(damaged(4, "version 1", header(1).to_string()));
    }
    let count =
        usize::try_from(header(2)).map_err(|_| damaged(8, "a number of examples", header(2).to_string()))?;
    let tokenizer = Tokenizer::new(crate::experiment::Tokenizer::Gpt2);
    let mut reader = EvalReader { path, bytes, at: HEADER_BYTES };
    // Not allocated by the count, which may be wrong in a damaged file.
    let mut tasks = Vec::new();
    for index in 0..count {
        tasks.push(reader.example(index, &tokenizer)?);
    }
    match bytes.len() - reader.at {
        0 => Ok(tasks),
        more => {
            let end = format!("the end after {count} {}", noun(count, "example"));
            Err(damaged(reader.at, &end, format!("{more} more {}", noun(more, "byte"))))
        }
    }
}

struct EvalReader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl EvalReader<'_> {
    fn damaged(&self, byte: usize, expected: String, got: impl ToString) -> EvalError {
        EvalError::Damaged { path: self.path.into(), byte, expected, got: got.to_string() }
    }

    fn next(&mut self, what: &str) -> Result<u16, EvalError> {
        let Some(pair) = self.bytes.get(self.at..self.at + 2) else {
            return Err(self.damaged(self.at, what.to_owned(), "the end of the file"));
        };
        self.at += 2;
        Ok(u16::from_le_bytes([pair[0], pair[1]]))
    }

    fn expect(&mut self, what: &str, expected: usize) -> Result<(), EvalError> {
        let at = self.at;
        match usize::from(self.next(what)?) {
            got if got == expected => Ok(()),
            got => Err(self.damaged(at, format!("{what} {expected}"), got)),
        }
    }

    /// A length, at least 1, and so many tokens.
    fn tokens(&mut self, what: &str) -> Result<Vec<u16>, EvalError> {
        let at = self.at;
        let len = self.next(&format!("the length of {what}"))?;
        if len == 0 {
            return Err(self.damaged(at, format!("{what} of at least one token"), 0));
        }
        (0..len).map(|_| self.next(&format!("a token of {what}"))).collect()
    }

    fn example(&mut self, index: usize, tokenizer: &Tokenizer) -> Result<Task, EvalError> {
        let start = self.at;
        self.expect("the start of an example:", START.into())?;
        let size = usize::from(self.next("an example's bytes")?);
        self.expect("the index", index)?;
        let label_at = self.at;
        let label = usize::from(self.next("a label")?);
        if label >= COMPLETIONS {
            return Err(self.damaged(label_at, format!("a label from 0 to {}", COMPLETIONS - 1), label));
        }
        self.expect("the number of completions", COMPLETIONS)?;
        let context = self.tokens("the context")?;
        let mut completions: [Vec<u16>; COMPLETIONS] = Default::default();
        for completion in &mut completions {
            *completion = self.tokens("a completion")?;
        }
        if self.at - start != size {
            return Err(self.damaged(start + 2, format!("{} bytes of this example", self.at - start), size));
        }
        let lengths = completions.each_ref().map(|completion| {
            let bytes = tokenizer.decode_bytes(completion);
            let bytes = bytes.strip_prefix(b" ").unwrap_or(&bytes);
            Length { chars: String::from_utf8_lossy(bytes).chars().count(), bytes: bytes.len() }
        });
        if let Some(i) = lengths.iter().position(|length| length.bytes == 0) {
            return Err(self.damaged(start, format!("text in completion {i}"), "a space alone"));
        }
        Ok(Task { plain: Prompt { context, completions }, harness: None, label, lengths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two examples as llm.c's script lays them out.
    fn file() -> Vec<u8> {
        let mut bytes = vec![0u8; HEADER_BYTES];
        for (i, value) in [MAGIC, VERSION, 2, 36].into_iter().enumerate() {
            bytes[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes());
        }
        // " a" is 257, " man" 582, " the" 262.
        let first: [u16; 18] = [START, 36, 0, 3, 4, 2, 32, 582, 1, 257, 2, 257, 582, 1, 582, 2, 262, 257];
        let second: [u16; 15] = [START, 30, 1, 0, 4, 1, 32, 1, 257, 1, 582, 1, 262, 1, 257];
        let mut stream = first.to_vec();
        stream.extend(second);
        bytes.extend(stream.into_iter().flat_map(u16::to_le_bytes));
        bytes
    }

    #[test]
    fn examples_come_out_as_the_script_put_them_in() {
        let tasks = parse(Path::new("h.bin"), &file()).unwrap();
        assert_eq!(tasks.len(), 2);
        assert_eq!((tasks[0].label, &tasks[0].plain.context[..]), (3, &[32, 582][..]));
        assert_eq!(tasks[0].plain.completions, [vec![257], vec![257, 582], vec![582], vec![262, 257]]);
        assert_eq!(tasks[0].lengths.map(|length| length.chars), [1, 5, 3, 5], "`a`, `a man`, `man`, `the a`");
        assert!(tasks[1].harness.is_none());
    }

    #[test]
    fn each_fault_names_its_byte() {
        type Damage = fn(&mut Vec<u8>);
        let faults: [(Damage, &str); 13] = [
            (|f| f.truncate(100), "byte 100: expected a header"),
            (|f| f[4] = 2, "byte 4: expected version 1, got 2"),
            (|f| f[8] = 3, "byte 1090: expected the start of an example:, got the end of the file"),
            (|f| f[11] = 0x7f, "byte 1090: expected the start of an example:, got the end of the file"),
            (|f| f[11] = 0x80, "byte 8: expected a number of examples, got -2147483646"),
            (|f| f[1034] = 0, "byte 1034: expected the context of at least one token, got 0"),
            (|f| f[8] = 1, "byte 1060: expected the end after 1 example, got 30 more bytes"),
            (|f| f[1024] = 0, "byte 1024: expected the start of an example: 65535, got 65280"),
            (|f| f[1026] = 40, "byte 1026: expected 36 bytes of this example, got 40"),
            (|f| f[1028] = 7, "byte 1028: expected the index 0, got 7"),
            (|f| f[1030] = 4, "byte 1030: expected a label from 0 to 3, got 4"),
            (|f| f[1032] = 5, "byte 1032: expected the number of completions 4, got 5"),
            (
                |f| f.truncate(f.len() - 1),
                "byte 1088: expected a token of a completion, got the end of the file",
            ),
        ];
        for (damage, says) in faults {
            let mut bytes = file();
            damage(&mut bytes);
            let error = parse(Path::new("h.bin"), &bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}\nlacks: {says}");
        }
    }
}
