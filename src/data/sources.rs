//! Opens the data of an experiment's `data` table: the embedded text or shards, or a mixture of them, and the
//! tokenizer.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::corpus::Corpus;
use super::dataset::Dataset;
use super::error::DataError;
use super::tokenizer::Tokenizer;
use crate::experiment;

/// Training data, held-out data and the tokenizer that made them.
#[derive(Clone, Debug)]
pub struct Sources {
    pub train: Arc<Dataset>,
    /// `None` when the experiment names no validation shards.
    pub val: Option<Arc<Dataset>>,
    pub tokenizer: Tokenizer,
}

impl Sources {
    /// Opens `data.corpus`, or `data.train` and `data.val`, for a model of `vocab` tokens.
    ///
    /// Relative patterns start at the working directory: the experiment resolves its own before.
    ///
    /// # Errors
    ///
    /// Every error that is found at the start; see [`DataError`].
    pub fn open(data: &experiment::DataKeys, vocab: usize) -> Result<Sources, DataError> {
        let tokenizer = Tokenizer::new(data.tokenizer);
        if let Some(name) = &data.corpus {
            let (train, val) = embedded(name, &tokenizer, vocab)?;
            return Ok(Sources { train: Arc::new(train), val: Some(Arc::new(val)), tokenizer });
        }
        let open = |patterns: &[String]| Dataset::open(patterns, vocab, &tokenizer);
        let (train, held_out) = match data.mix.is_empty() {
            true => (open(&data.train)?, None),
            false => mixture(data, &tokenizer, vocab)?,
        };
        let val = if data.val.is_empty() { held_out } else { Some(open(&data.val)?) };
        Ok(Sources { train: Arc::new(train), val: val.map(Arc::new), tokenizer })
    }
}

/// What the embedded texts that the experiment names hold out, as [`Sources::open`] has it where there are no
/// validation shards; none without such a text. No training data are needed.
///
/// # Errors
///
/// A text that is not in this build; a vocabulary too small for the tokenizer.
pub fn held_out(data: &experiment::DataKeys, vocab: usize) -> Result<Option<Dataset>, DataError> {
    let tokenizer = Tokenizer::new(data.tokenizer);
    let of = |name: &String| embedded(name, &tokenizer, vocab).map(|(_, val)| val);
    if let Some(name) = &data.corpus {
        return of(name).map(Some);
    }
    let texts: BTreeSet<&String> = data.mix.values().filter_map(|source| source.corpus.as_ref()).collect();
    let parts = texts.into_iter().map(|name| Ok((name.clone(), of(name)?)));
    let parts: Vec<(String, Dataset)> = parts.collect::<Result<_, DataError>>()?;
    Ok((!parts.is_empty()).then(|| Dataset::mixed(parts, vocab)))
}

/// What each source of a mixture is measured by, in the order of their names: its `val` shards, or else what
/// its embedded text holds out. Sources without either are left out.
///
/// # Errors
///
/// Those of [`Sources::open`], with the source.
pub fn held_out_of_sources(
    data: &experiment::DataKeys,
    vocab: usize,
) -> Result<Vec<(String, Dataset)>, DataError> {
    let tokenizer = Tokenizer::new(data.tokenizer);
    let mut held_out = Vec::new();
    for (name, source) in &data.mix {
        let opened = match (&source.val, &source.corpus) {
            (Some(val), _) => Dataset::open(val, vocab, &tokenizer),
            (None, Some(corpus)) => embedded(corpus, &tokenizer, vocab).map(|(_, val)| val),
            (None, None) => continue,
        };
        let wrap = |why| DataError::OfSource { source_name: name.clone(), why: Box::new(why) };
        held_out.push((name.clone(), opened.map_err(wrap)?));
    }
    Ok(held_out)
}

/// A warning where two sources of a mixture have text in common: `kjv` is `kjv_ot` and `kjv_nt` together.
pub fn shared_text(data: &experiment::DataKeys) -> Option<String> {
    let of = |wanted: fn(&str) -> bool| {
        let mut sources = data.mix.iter().filter_map(|(name, source)| Some((name, source.corpus.as_ref()?)));
        sources.find(|(_, corpus)| wanted(corpus))
    };
    let (whole, _) = of(|corpus| corpus == "kjv")?;
    let (part, corpus) = of(|corpus| corpus.starts_with("kjv_"))?;
    Some(format!(
        "the sources `{whole}` and `{part}` share text, for `kjv` contains `{corpus}`: it is read in both, \
         and what is held out of it is validated on twice"
    ))
}

/// Training and validation tokens of an embedded text.
fn embedded(name: &str, tokenizer: &Tokenizer, vocab: usize) -> Result<(Dataset, Dataset), DataError> {
    let needed = tokenizer.vocab();
    if vocab < needed {
        return Err(DataError::VocabTooSmall { vocab, needed, tokenizer: tokenizer.name() });
    }
    Corpus::load(name)?.datasets(tokenizer)
}

/// The sources of a mixture in the order of their names, and what their embedded texts hold out, each text
/// once.
fn mixture(
    data: &experiment::DataKeys,
    tokenizer: &Tokenizer,
    vocab: usize,
) -> Result<(Dataset, Option<Dataset>), DataError> {
    let (mut train, mut held_out) = (Vec::new(), BTreeMap::new());
    for (name, source) in &data.mix {
        let opened = match &source.corpus {
            None => Dataset::open(&source.train, vocab, tokenizer),
            Some(corpus) => embedded(corpus, tokenizer, vocab).map(|(train, val)| {
                held_out.insert(corpus.clone(), val);
                train
            }),
        };
        let wrap = |why| DataError::OfSource { source_name: name.clone(), why: Box::new(why) };
        train.push((name.clone(), opened.map_err(wrap)?));
    }
    let held_out = (!held_out.is_empty()).then(|| Dataset::mixed(held_out.into_iter().collect(), vocab));
    Ok((Dataset::mixed(train, vocab), held_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(corpus: Option<&str>, train: &[String], val: &[String]) -> experiment::DataKeys {
        experiment::DataKeys {
            corpus: corpus.map(str::to_owned),
            train: train.to_vec(),
            val: val.to_vec(),
            tokenizer: experiment::Tokenizer::Byte,
            order: experiment::Order::Shuffled,
            offset: 0,
            overfit_single_batch: false,
            prefetch: 2,
            mix: BTreeMap::new(),
        }
    }

    #[test]
    fn shards_open_with_and_without_validation() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = super::super::shard::header(2).to_vec();
        bytes.extend([1, 0, 2, 0]);
        std::fs::write(dir.path().join("t.bin"), bytes).unwrap();
        let pattern = [dir.path().join("t*.bin").display().to_string()];
        assert!(Sources::open(&table(None, &pattern, &[]), 257).unwrap().val.is_none());
        assert_eq!(Sources::open(&table(None, &pattern, &pattern), 257).unwrap().val.unwrap().tokens(), 2);
        assert!(matches!(Sources::open(&table(None, &[], &[]), 257), Err(DataError::NoPatterns)));
    }

    #[test]
    #[cfg(feature = "corpus")]
    fn what_a_mixture_of_embedded_texts_holds_out_is_found_without_its_training_data() {
        let mut data = table(None, &[], &[]);
        let source = |corpus: Option<&str>| experiment::MixSource {
            corpus: corpus.map(str::to_owned),
            train: vec!["nowhere.bin".to_owned(); usize::from(corpus.is_none())],
            weight: 1.0,
            val: None,
            max_epochs: None,
        };
        for (name, corpus) in [("a", "kjv_nt"), ("b", "kjv_ot"), ("c", "kjv_nt")] {
            data.mix.insert(name.into(), source(Some(corpus)));
        }
        let trained = Sources::open(&data, 257).unwrap().val.unwrap();
        assert_eq!(shared_text(&data), None);
        data.mix.insert("files".into(), source(None));
        let digests = |data: &Dataset| super::super::DigestCache::none().manifest(data, |_| ()).unwrap();
        assert_eq!(digests(&held_out(&data, 257).unwrap().unwrap()), digests(&trained));
        let names = |data: &experiment::DataKeys| -> Vec<String> {
            held_out_of_sources(data, 257).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&data), ["a", "b", "c"], "`files` has nothing to be measured by");
        data.mix.get_mut("files").unwrap().val = Some(vec!["nowhere.bin".to_owned()]);
        let refused = held_out_of_sources(&data, 257).unwrap_err().to_string();
        assert!(refused.contains("files") && refused.contains("nowhere.bin"), "{refused}");
        data.mix.insert("whole".into(), source(Some("kjv")));
        assert!(shared_text(&data).unwrap().starts_with("the sources `whole` and `a` share text"));
        assert!(shared_text(&data).unwrap().ends_with("what is held out of it is validated on twice"));
        assert!(held_out(&table(None, &[], &[]), 257).unwrap().is_none());
    }

    #[test]
    #[cfg(feature = "corpus")]
    fn the_embedded_text_opens_and_wants_a_row_for_each_token() {
        let sources = Sources::open(&table(Some("kjv"), &[], &[]), 257).unwrap();
        assert!(sources.train.tokens() > sources.val.unwrap().tokens());
        let error = Sources::open(&table(Some("kjv"), &[], &[]), 256).unwrap_err().to_string();
        assert!(error.contains("`model.vocab` is 256: expected at least 257"), "{error}");
    }
}
