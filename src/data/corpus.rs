//! The text that is built in, so that the quick start needs no file and no network: the King James Bible.
//!
//! `corpus/kjv.txt.gz` holds one verse a line (`Genesis 1:1 In the beginning …`), 4.6 MB of
//! public-domain English in the text of openbible.com. Marks of supplied words (`[was]`) and of speech
//! (`‹…›`) are removed.
//!
//! `kjv_ot` and `kjv_nt` are its first 39 books and its last 27, the Old and the New Testament.
//!
//! A book is a document: its title, then each chapter as a heading and a paragraph. Of a book of n
//! chapters the last ⌊(n + 10)/20⌋, about one in twenty, are held out for validation.

#![forbid(unsafe_code)]

use std::ops::RangeBounds;

use sha2::{Digest, Sha256};

use super::dataset::Dataset;
use super::error::DataError;
use super::tokenizer::{END_OF_TEXT, Tokenizer};

/// Documents to train on and documents held out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// The name in `data.corpus`.
    pub name: &'static str,
    pub train: Vec<String>,
    pub val: Vec<String>,
}

impl Corpus {
    /// The corpus an experiment names.
    ///
    /// # Errors
    ///
    /// An unknown name, or a build without embedded text.
    pub fn load(name: &str) -> Result<Corpus, DataError> {
        match name {
            "kjv" => kjv(),
            "kjv_ot" => testament("kjv_ot", ..OLD_TESTAMENT),
            "kjv_nt" => testament("kjv_nt", OLD_TESTAMENT..),
            _ => Err(DataError::UnknownCorpus { name: name.to_owned() }),
        }
    }

    /// Training and validation tokens as datasets, `<|endoftext|>` before each document.
    pub fn datasets(&self, tokenizer: &Tokenizer) -> Result<(Dataset, Dataset), DataError> {
        let dataset = |part, documents| {
            Dataset::from_tokens(
                &format!("{}/{part}", self.name),
                encode(tokenizer, documents),
                tokenizer.vocab(),
            )
        };
        Ok((dataset("train", &self.train)?, dataset("val", &self.val)?))
    }

    /// SHA-256 of the text: `<|endoftext|>` and each training document, then the same for validation.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for document in self.train.iter().chain(&self.val) {
            hash.update(END_OF_TEXT);
            hash.update(document);
        }
        hash.finalize().into()
    }
}

fn encode(tokenizer: &Tokenizer, documents: &[String]) -> Vec<u16> {
    use rayon::prelude::*;
    let parts: Vec<Vec<u16>> = documents.par_iter().map(|document| tokenizer.encode(document)).collect();
    let mut tokens = Vec::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for part in parts {
        tokens.push(tokenizer.eot());
        tokens.extend(part);
    }
    tokens
}

/// The King James text.
pub fn kjv() -> Result<Corpus, DataError> {
    testament("kjv", ..)
}

/// Books of the Old Testament, which come first.
const OLD_TESTAMENT: usize = 39;

/// Some books of the King James text; this build has none.
#[cfg(not(feature = "corpus"))]
fn testament(name: &'static str, _: impl RangeBounds<usize>) -> Result<Corpus, DataError> {
    Err(DataError::CorpusNotBuilt { name: name.to_owned() })
}

/// Some books of the King James text, by their places.
#[cfg(feature = "corpus")]
fn testament(name: &'static str, places: impl RangeBounds<usize>) -> Result<Corpus, DataError> {
    use std::io::Read;
    const PACKED: &[u8] = include_bytes!("corpus/kjv.txt.gz");
    let mut text = String::new();
    let unpacked = flate2::read::GzDecoder::new(PACKED).read_to_string(&mut text);
    unpacked.map_err(|e| DataError::CorpusDamaged { reason: e.to_string() })?;

    let mut corpus = Corpus { name, train: Vec::new(), val: Vec::new() };
    let chosen = |(at, _): &(usize, Book<'_>)| places.contains(at);
    for (_, book) in books(&text)?.into_iter().enumerate().filter(chosen) {
        let held_out = (book.chapters.len() + 10) / 20;
        let (train, val) = book.chapters.split_at(book.chapters.len() - held_out);
        corpus.train.push(format!("{}\n\n{}", book.title, train.concat()));
        if !val.is_empty() {
            corpus.val.push(format!("{}\n\n{}", book.title, val.concat()));
        }
    }
    Ok(corpus)
}

/// A book with its chapters: heading, blank line, verses as one paragraph, blank line.
#[cfg(feature = "corpus")]
struct Book<'a> {
    title: &'a str,
    chapters: Vec<String>,
}

/// The books in the order of the text, from lines of `Title Chapter:Verse Words`.
#[cfg(feature = "corpus")]
fn books(text: &str) -> Result<Vec<Book<'_>>, DataError> {
    let mut books: Vec<Book<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let damaged =
            || DataError::CorpusDamaged { reason: format!("line {} is no verse: `{line}`", number + 1) };
        let (reference, words) = line.split_once(':').ok_or_else(damaged)?;
        let (title, chapter) = reference.rsplit_once(' ').ok_or_else(damaged)?;
        let (verse, words) = words.split_once(' ').ok_or_else(damaged)?;
        if books.last().is_none_or(|book| book.title != title) {
            books.push(Book { title, chapters: Vec::new() });
        }
        let chapters = &mut books.last_mut().ok_or_else(damaged)?.chapters;
        if verse == "1" {
            if let Some(before) = chapters.last_mut() {
                before.push_str("\n\n");
            }
            chapters.push(format!("Chapter {chapter}\n\n"));
        } else {
            chapters.last_mut().ok_or_else(damaged)?.push(' ');
        }
        let words = words.trim_end().chars().filter(|c| !matches!(c, '[' | ']' | '‹' | '›'));
        chapters.last_mut().ok_or_else(damaged)?.extend(words);
    }
    for book in &mut books {
        if let Some(last) = book.chapters.last_mut() {
            last.push_str("\n\n");
        }
    }
    Ok(books)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_corpus_is_refused() {
        assert!(matches!(Corpus::load("bible"), Err(DataError::UnknownCorpus { name }) if name == "bible"));
    }

    #[test]
    #[cfg(not(feature = "corpus"))]
    fn a_build_without_the_text_says_so() {
        assert!(Corpus::load("kjv").unwrap_err().to_string().contains("--features corpus"));
    }

    #[cfg(feature = "corpus")]
    mod kjv {
        use super::*;

        #[test]
        fn the_text_is_pinned() {
            let corpus = kjv().unwrap();
            assert_eq!((corpus.train.len(), corpus.val.len()), (66, 36));
            assert_eq!(
                hex::encode(corpus.sha256()),
                "53dd6043a608260b4d2664dd7a008940aad193fa4d2146a0bce0b0d2d737c8c8"
            );
        }

        #[test]
        fn the_testaments_are_the_whole_in_two_parts() {
            let [old, new, whole] = ["kjv_ot", "kjv_nt", "kjv"].map(|name| Corpus::load(name).unwrap());
            assert_eq!((old.train.len(), new.train.len()), (39, 27));
            assert!(old.train[38].starts_with("Malachi") && new.train[0].starts_with("Matthew"));
            assert_eq!([old.train, new.train].concat(), whole.train);
            assert_eq!([old.val, new.val].concat(), whole.val);
        }

        #[test]
        fn it_reads_as_text() {
            let corpus = kjv().unwrap();
            assert!(corpus.train[0].starts_with(
                "Genesis\n\nChapter 1\n\nIn the beginning God created the \
                 heaven and the earth. And the earth was without form, and \
                 void; and darkness was upon"
            ));
            assert!(corpus.train[0].contains(
                "And God said, Let there be light: and there was light. And God saw the \
                 light, that it was good:"
            ));
            assert!(corpus.val[0].starts_with("Genesis\n\nChapter 48\n\n"));
            assert!(
                corpus
                    .train
                    .iter()
                    .chain(&corpus.val)
                    .all(|d| d.ends_with("\n\n") && !d.contains(['[', '‹', ']', '›']))
            );
        }

        #[test]
        fn tokens_are_pinned_and_start_each_book() {
            let corpus = kjv().unwrap();
            let byte = corpus.datasets(&Tokenizer::Byte).unwrap();
            let gpt2 = corpus.datasets(&Tokenizer::new(crate::experiment::Tokenizer::Gpt2)).unwrap();
            assert_eq!(
                [&byte.0, &byte.1, &gpt2.0, &gpt2.1].map(Dataset::tokens),
                [3_958_207, 201_327, 953_157, 48_207]
            );
            let (mut inputs, mut targets) = ([0; 3], [0; 3]);
            byte.0.read(0, &mut inputs, &mut targets).unwrap();
            assert_eq!((inputs, targets), ([256, 71, 101], [71, 101, 110]));
        }
    }
}
