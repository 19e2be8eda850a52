//! Whether training can go on with a saved state: its tensors are told from the header, before anything is
//! written.

use std::path::Path;

use super::error::UsageError;
use crate::experiment::Experiment;
use crate::model::Weights;
use crate::ops::Dtype;
use crate::optim::AVERAGE;
use crate::proof::lock::Table;
use crate::store::Info;
use crate::train::state::{Row, table};

/// Who goes on with a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// Its own run.
    Resumed,
    /// Another run, by `optimizer.from_init`. It may leave the average of the weights behind.
    Other,
}

/// A saved state, as far as it is told from headers.
pub struct SavedState<'a> {
    pub file: &'a Path,
    pub infos: &'a [Info],
    /// What the bits depended on when it was saved.
    pub numerics: &'a Table,
}

impl SavedState<'_> {
    /// Refuses a state that is not one of an experiment whose parameters are stored as `param`: other
    /// tensors, types or shapes, other heads, another decay of the average, or more in the guards' windows
    /// than `guards.window`.
    ///
    /// # Errors
    ///
    /// The first tensor that differs.
    pub fn require_fit(
        &self,
        experiment: &Experiment,
        param: Dtype,
        successor: Successor,
    ) -> Result<(), UsageError> {
        self.problem(experiment, param, successor).map_or(Ok(()), |problem| {
            let (who, hint) = match successor {
                Successor::Resumed => (
                    "a resume",
                    "leave model, `precision`, `guards.window`, `optimizer.kind` and `optimizer.ema_decay` \
                     as they were, or start another run from the weights alone, by `model.init = \
                     \"run:NAME@STEP\"`",
                ),
                Successor::Other => (
                    "`optimizer.from_init`",
                    "give model, `precision`, `guards.window`, `optimizer.kind` and `optimizer.ema_decay` \
                     as the checkpoint's run has them, or leave `optimizer.from_init` out to start from the \
                     weights alone",
                ),
            };
            let file = self.file.display();
            Err(UsageError(format!("{who} cannot go on with `{file}`: {problem}\n  hint: {hint}")))
        })
    }

    fn problem(&self, experiment: &Experiment, param: Dtype, successor: Successor) -> Option<String> {
        // The tensors of other heads have the same shapes, and mean something else.
        let heads = self.numerics.get("model.heads").and_then(|heads| heads.parse::<usize>().ok());
        if let Some(theirs) = heads.filter(|theirs| *theirs != experiment.model.heads) {
            let ours = experiment.model.heads;
            return Some(format!("it has {theirs} heads, the experiment {ours} (`model.heads`)"));
        }
        // So do those of another average; a run may change its own.
        const DECAY: &str = "optimizer.ema_decay";
        let ours = experiment.optimizer.ema_decay;
        let decay = self.numerics.get(DECAY).filter(|_| successor == Successor::Other && ours > 0.0);
        if let Some(theirs) = decay.filter(|theirs| theirs.parse() != Ok(ours)) {
            return Some(format!("its average has the decay {theirs}, the experiment {ours} (`{DECAY}`)"));
        }
        let window = experiment.guards.window;
        let is_wider =
            |info: &&Info| info.name.ends_with("_window") && info.shape.iter().any(|values| *values > window);
        if let Some(Info { name, shape, .. }) = self.infos.iter().find(is_wider) {
            return Some(format!("`{name}` has {shape:?} values, `guards.window` is {window}"));
        }
        let rows = table(experiment, &Weights::of(&experiment.model), param, false);
        // The counters and windows have their own types, and windows any length.
        for Row { name, dtype, shape, .. } in rows.iter().filter(|row| row.parameter().is_some()) {
            let Some(saved) = self.infos.iter().find(|saved| saved.name == *name) else {
                return Some(format!("`{name}` is missing"));
            };
            if (saved.dtype, &saved.shape) != (*dtype, shape) {
                let needs = format!("this experiment needs {dtype} {shape:?}");
                return Some(format!("`{name}` is {} {:?}, {needs}", saved.dtype, saved.shape));
            }
        }
        let left_behind = |name: &str| successor == Successor::Other && name.starts_with(AVERAGE.prefix);
        let is_more =
            |saved: &&Info| !rows.iter().any(|row| row.name == saved.name) && !left_behind(&saved.name);
        let more = self.infos.iter().find(is_more);
        more.map(|more| format!("`{}` does not belong to this experiment", more.name))
    }
}
