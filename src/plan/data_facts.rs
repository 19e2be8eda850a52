//! What is known of an experiment's data before a run; they need not exist yet.

use std::path::Path;

use serde::Serialize;

use super::PlanError;
use crate::data::mixture::{self, SourceUse};
use crate::data::{Sources, Tokenizer};
use crate::eval::TaskSet;
use crate::experiment::Loaded;

/// Tokens of the data, where they are known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DataFacts {
    pub train_tokens: Option<u64>,
    pub val_tokens: Option<u64>,
    pub hellaswag_tokens: Option<u64>,
    /// What the run reads of each source of a mixture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceUse>,
    /// What `data.offset` passes over, in epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<String>,
    /// Why the data could not be read.
    pub problem: Option<String>,
    /// Why HellaSwag's file could not be read, where the run reads it.
    pub hellaswag_problem: Option<String>,
}

/// Tokens that scoring all of HellaSwag reads, 10,042 tasks in both wordings, while the file is not there.
pub const HELLASWAG_TOKENS: u64 = 6_094_168;

impl DataFacts {
    /// Looks at headers and lengths, and turns epochs into steps.
    ///
    /// # Errors
    /// The experiment counts in epochs and its data are missing, or shorter than one sequence; a source is
    /// read more often than it may be.
    pub fn look(loaded: &mut Loaded) -> Result<DataFacts, PlanError> {
        let mut facts = DataFacts::default();
        let experiment = &loaded.experiment;
        match Sources::open(&experiment.data, experiment.model.vocab) {
            Ok(Sources { train, val, .. }) => {
                facts.train_tokens = Some(train.usable_tokens(experiment.batch.seq_len));
                facts.val_tokens = val.map(|val| val.tokens());
                let order = mixture::order(experiment, &train)?;
                loaded.resolve_epochs(order.sequences().sum())?;
                mixture::require_epochs(&loaded.experiment, &order, loaded.experiment.data.offset)?;
                facts.sources = mixture::uses(&loaded.experiment, &order);
                facts.passed_over =
                    mixture::passed_over(&loaded.experiment, &order).map(|passed| passed.to_string());
            }
            Err(problem) if loaded.epochs.is_some() => return Err(PlanError::EpochsWithoutData(problem)),
            Err(problem) => facts.problem = first_line(&problem),
        }
        let experiment = &loaded.experiment;
        if let Some(path) = &experiment.eval.hellaswag {
            let tokenizer = Tokenizer::new(experiment.data.tokenizer);
            let (vocab, seq_len) = (experiment.model.vocab, experiment.batch.seq_len);
            let set = TaskSet::open(Path::new(path), &tokenizer, vocab, seq_len);
            facts.hellaswag_problem =
                set.as_ref().err().filter(|_| experiment.eval.every > 0).and_then(first_line);
            facts.hellaswag_tokens = Some(set.map_or(HELLASWAG_TOKENS, |set| set.tokens()));
        }
        Ok(facts)
    }
}

fn first_line(problem: &impl ToString) -> Option<String> {
    problem.to_string().lines().next().map(str::to_owned)
}
