//! `[data.mix]`: what a source needs, and which weights go together.

use figment::value::{Dict, Value};

use super::Rules;
use crate::experiment::mix_weights::{MOST_PARTS, whole_weights};
use crate::experiment::schema::{self, MIX};

impl Rules {
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
    pub(super) fn corpus_of(&self, sources: &[String]) -> Option<Value> {
        sources.iter().find_map(|source| self.get(Rules::source_key(source, "corpus")))
    }

    /// Each source has text and a weight. Gives the names of the sources.
    pub(super) fn mixture(&mut self) -> Vec<String> {
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
            let message = format!(
                "the weights of `data.mix` differ too much: as whole numbers their sum is over {MOST_PARTS:e}"
            );
            let fault = self.clash(message, &keys);
            self.refuse(fault.hint("write them with fewer digits, or leave the smallest out".to_string()));
        }
    }
}
