//! `[data]`: what is trained and validated on, and what the sources of a mixture need.

use figment::value::{Dict, Value};

use super::Rules;
use crate::experiment::mix_weights::whole_weights;
use crate::experiment::schema::{self, MIX};
use crate::units::noun;

impl Rules {
    /// Something to train on, and something to validate on where that is asked for.
    pub(super) fn data(&mut self) {
        let faults = self.layers.faults.len();
        let sources = self.mixture();
        if self.layers.faults.len() > faults {
            return;
        }
        let corpus = self.get("data.corpus").or_else(|| self.corpus_of(&sources));
        let no_train = self.list_is_empty("data.train") && sources.is_empty();
        let no_val = self.list_is_empty("data.val");
        let mixture_is_known = !self.layers.misspelt.contains(MIX);
        if corpus.is_none()
            && no_train
            && mixture_is_known
            && self.truly_missing(&["data.corpus", "data.train"])
        {
            let hint = "set `data.train` to a pattern of token shards, or `data.corpus` to \"kjv\", the \
                        embedded text, or name sources under `[data.mix]`";
            let fault = self.clash("the experiment has no data to train on".to_string(), &["data.train"]);
            self.refuse(fault.hint(hint.to_string()));
        }
        for key in ["data.train", "data.val"] {
            if self.get(key).is_none() && self.truly_missing(&[key]) {
                self.derive(key, Vec::<String>::new(), "default");
            }
        }
        let Some(every @ 1..) = self.int("eval.every") else { return };
        if corpus.is_none() && no_val && !no_train && self.truly_missing(&["data.val", "data.corpus"]) {
            let steps = noun(every, "step");
            let message = format!("evaluation every {every} {steps} needs validation data");
            let fault = self.clash(message, &["eval.every", "data.val"]);
            self.refuse(fault.hint("set `data.val`, or `eval.every` to 0 for no evaluation".to_string()));
        }
        if let (Some(tokens), Some(seq_len)) = (self.int("eval.val_tokens"), self.int("batch.seq_len"))
            && tokens < seq_len
        {
            let message =
                format!("`eval.val_tokens` = {tokens} is less than one sequence of {seq_len} tokens");
            let fault = self.clash(message, &["eval.val_tokens", "batch.seq_len"]);
            self.refuse(fault);
        }
    }

    /// The names of the sources that any layer names, in their order.
    pub(super) fn sources(&self) -> Vec<String> {
        let table = self.merged.find_ref(MIX).and_then(Value::as_dict);
        table.map_or_else(Vec::new, |table| table.keys().cloned().collect())
    }

    /// The key of a source, from the table of keys.
    fn source_key(source: &str, leaf: &str) -> &'static str {
        schema::key(&format!("{MIX}.{source}.{leaf}")).expect("the layers hold keys of the table alone").name
    }

    /// The embedded text of any source, whose held-out part is validated on.
    fn corpus_of(&self, sources: &[String]) -> Option<Value> {
        sources.iter().find_map(|source| self.get(Rules::source_key(source, "corpus")))
    }

    /// Each source has text and a weight. Gives the names of the sources.
    fn mixture(&mut self) -> Vec<String> {
        let sources = self.sources();
        if sources.is_empty() {
            self.derive(MIX, Dict::new(), "default");
            return sources;
        }
        for source in &sources {
            let [corpus, train, weight] =
                ["corpus", "train", "weight"].map(|leaf| Rules::source_key(source, leaf));
            let (has_corpus, has_train) = (self.get(corpus).is_some(), !self.list_is_empty(train));
            if has_corpus && has_train {
                let fault =
                    self.clash(format!("`{train}` and `{corpus}` exclude each other"), &[train, corpus]);
                self.refuse(fault.hint(format!("keep one of the two; `--set {corpus}=` clears the other")));
            }
            if !has_corpus && !has_train && self.truly_missing(&[corpus, train]) {
                let fault = self.clash(format!("the source `{source}` has no data"), &[train, weight]);
                let hint = format!("set `{train}` to a pattern of token shards, or `{corpus}` to \"kjv\"");
                self.refuse(fault.hint(hint));
            }
            if self.get(weight).is_none() && self.truly_missing(&[weight]) {
                let fault = self.clash(format!("the source `{source}` has no weight"), &[train, corpus]);
                let hint = format!("set `{weight}`: its share is that divided by the sum of all weights");
                self.refuse(fault.hint(hint));
            }
            if self.get(train).is_none() && self.truly_missing(&[train]) {
                self.derive(train, Vec::<String>::new(), "default");
            }
        }
        self.weights(&sources);
        if self.int("schedule.epochs").is_some() {
            let message = "`schedule.epochs` counts no passes over a mixture: each source has its own";
            let fault = self.clash(message.to_string(), &["schedule.epochs"]);
            self.refuse(fault.hint("set `schedule.steps`, and `max_epochs` of the sources".to_string()));
        }
        sources
    }

    /// The weights are parts of a whole that can be counted.
    fn weights(&mut self, sources: &[String]) {
        let keys: Vec<&str> = sources.iter().map(|source| Rules::source_key(source, "weight")).collect();
        let weights: Option<Vec<f64>> = keys.iter().map(|key| self.get(key)?.to_f64()).collect();
        if weights.is_some_and(|weights| whole_weights(&weights).is_none()) {
            let message =
                "the weights of `data.mix` differ too much: as whole numbers their sum is over 2^63";
            let fault = self.clash(message.to_string(), &keys);
            self.refuse(fault.hint("write them with fewer digits, or leave the smallest out".to_string()));
        }
    }
}
