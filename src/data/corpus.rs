//! The text that is built in, so that the quick start needs no file and no network: the King James Bible.
//!
//! The text comes from `bible-lib`, whose parser keeps a verse only up to its first colon ("And God
//! said, Let there be light"); a verse that is left without a closing mark gets a full stop. So this is
//! an abridged King James Version of 3.4 MB, 831,176 GPT-2 tokens: English to learn from, not an edition to quote.
//! Marks of supplied words (`[was]`) and of speech (`‹…›`) are removed.
//!
//! A book is a document: its title, then each chapter as a heading and a paragraph. Of a book of n
//! chapters the last ⌊(n + 10)/20⌋, about one in twenty, are held out for validation. Books and verses
//! are asked for by name and number, so the order of the maps in `bible-lib` never shows.

#![forbid(unsafe_code)]

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
            _ => Err(DataError::UnknownCorpus { name: name.to_owned() }),
        }
    }

    /// Training and validation tokens as datasets, `<|endoftext|>` before each document.
    pub fn datasets(&self, tokenizer: &Tokenizer) -> Result<(Dataset, Dataset), DataError> {
        let dataset = |part, documents| {
            Dataset::from_tokens(&format!("{}/{part}", self.name), encode(tokenizer, documents), tokenizer.vocab())
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

/// The King James text; this build has none.
#[cfg(not(feature = "corpus"))]
pub fn kjv() -> Result<Corpus, DataError> {
    Err(DataError::CorpusNotBuilt { name: "kjv".to_owned() })
}

/// The King James text.
#[cfg(feature = "corpus")]
pub fn kjv() -> Result<Corpus, DataError> {
    use bible_lib::{Bible, Translation};
    let bible = Bible::new(Translation::KingJames).map_err(|e| damaged(e.to_string()))?;
    let mut corpus = Corpus { name: "kjv", train: Vec::new(), val: Vec::new() };
    for title in BOOKS {
        let chapters = chapters(&bible, title)?;
        let held_out = (chapters.len() + 10) / 20;
        let (train, val) = chapters.split_at(chapters.len() - held_out);
        corpus.train.push(format!("{title}\n\n{}", train.concat()));
        if !val.is_empty() {
            corpus.val.push(format!("{title}\n\n{}", val.concat()));
        }
    }
    Ok(corpus)
}

#[cfg(feature = "corpus")]
fn damaged(reason: String) -> DataError {
    DataError::CorpusDamaged { reason }
}

/// The chapters of a book: heading, blank line, verses as one paragraph, blank line.
#[cfg(feature = "corpus")]
fn chapters(bible: &bible_lib::Bible, title: &str) -> Result<Vec<String>, DataError> {
    use bible_lib::BibleLookup;
    let book = title.to_lowercase();
    let missing = |what: String| damaged(format!("{what} of {title} is missing"));
    let last = bible.get_max_chapter(&book).map_err(|_| missing("every chapter".to_owned()))?;
    (1..=last)
        .map(|chapter| {
            let last_verse = bible.get_max_verse(&book, chapter).map_err(|_| missing(format!("chapter {chapter}")))?;
            let mut text = format!("Chapter {chapter}\n\n");
            for verse in 1..=last_verse {
                let found = bible.get_verse(BibleLookup::new(book.as_str(), chapter, verse), false);
                let raw = found.map_err(|_| missing(format!("verse {chapter}:{verse}")))?;
                if verse > 1 {
                    text.push(' ');
                }
                text.push_str(&clean(&raw));
            }
            text.push_str("\n\n");
            Ok(text)
        })
        .collect()
}

/// A verse without editorial marks, closed where the parser cut it.
#[cfg(feature = "corpus")]
fn clean(verse: &str) -> String {
    let mut text: String = verse.chars().filter(|c| !matches!(c, '[' | ']' | '‹' | '›')).collect();
    text.truncate(text.trim_end().len());
    if text.ends_with(char::is_alphanumeric) {
        text.push('.');
    }
    text
}

/// The 66 books in their order, as titled; lower-cased they are `bible-lib`'s keys.
#[cfg(feature = "corpus")]
const BOOKS: [&str; 66] = [
    "Genesis",
    "Exodus",
    "Leviticus",
    "Numbers",
    "Deuteronomy",
    "Joshua",
    "Judges",
    "Ruth",
    "1 Samuel",
    "2 Samuel",
    "1 Kings",
    "2 Kings",
    "1 Chronicles",
    "2 Chronicles",
    "Ezra",
    "Nehemiah",
    "Esther",
    "Job",
    "Psalms",
    "Proverbs",
    "Ecclesiastes",
    "Song of Solomon",
    "Isaiah",
    "Jeremiah",
    "Lamentations",
    "Ezekiel",
    "Daniel",
    "Hosea",
    "Joel",
    "Amos",
    "Obadiah",
    "Jonah",
    "Micah",
    "Nahum",
    "Habakkuk",
    "Zephaniah",
    "Haggai",
    "Zechariah",
    "Malachi",
    "Matthew",
    "Mark",
    "Luke",
    "John",
    "Acts",
    "Romans",
    "1 Corinthians",
    "2 Corinthians",
    "Galatians",
    "Ephesians",
    "Philippians",
    "Colossians",
    "1 Thessalonians",
    "2 Thessalonians",
    "1 Timothy",
    "2 Timothy",
    "Titus",
    "Philemon",
    "Hebrews",
    "James",
    "1 Peter",
    "2 Peter",
    "1 John",
    "2 John",
    "3 John",
    "Jude",
    "Revelation",
];

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
            assert_eq!(hex::encode(corpus.sha256()), "d989016759c6aadaf9aa16ac7f252f2d6bb19ffe269e4b8c69acf89bc46ae7c0");
        }

        #[test]
        fn it_reads_as_text() {
            let corpus = kjv().unwrap();
            assert!(
                corpus.train[0].starts_with("Genesis\n\nChapter 1\n\nIn the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon")
            );
            assert!(corpus.train[0].contains("And God said, Let there be light. And God saw the light, that it was good."));
            assert!(corpus.val[0].starts_with("Genesis\n\nChapter 48\n\n"));
            assert!(corpus.train.iter().chain(&corpus.val).all(|d| d.ends_with("\n\n") && !d.contains(['[', '‹', ':'])));
        }

        #[test]
        fn tokens_are_pinned_and_start_each_book() {
            let corpus = kjv().unwrap();
            let byte = corpus.datasets(&Tokenizer::Byte).unwrap();
            let gpt2 = corpus.datasets(&Tokenizer::new(crate::experiment::Tokenizer::Gpt2)).unwrap();
            assert_eq!([&byte.0, &byte.1, &gpt2.0, &gpt2.1].map(Dataset::tokens), [3_281_440, 164_368, 791_718, 39_458]);
            let (mut inputs, mut targets) = ([0; 3], [0; 3]);
            byte.0.read(0, &mut inputs, &mut targets).unwrap();
            assert_eq!((inputs, targets), ([256, 71, 101], [71, 101, 110]));
        }
    }
}
