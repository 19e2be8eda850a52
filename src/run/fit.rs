//! Whether training can go on with a saved state: its tensors are told from the header, before anything is
//! written.

use std::path::Path;

use super::error::UsageError;
use crate::experiment::Experiment;
use crate::ops::Ops;
use crate::optim::AVERAGE;
use crate::proof::lock::Table;
use crate::store::Info;
use crate::train::{Progress, Trainer};

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
    /// Refuses a state that is not one of the trainer's: other tensors, types or shapes, other heads, or more
    /// in the guards' windows than `guards.window`.
    ///
    /// # Errors
    ///
    /// The first tensor that differs.
    pub fn require_fit<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        experiment: &Experiment,
        successor: Successor,
    ) -> Result<(), UsageError> {
        self.problem(trainer, experiment, successor).map_or(Ok(()), |problem| {
            let (who, hint) = match successor {
                Successor::Resumed => (
                    "a resume",
                    "leave model, `precision`, `guards.window` and `optimizer.ema_decay` as they were, or \
                     start another run from the weights alone, by `model.init = \"run:NAME@STEP\"`",
                ),
                Successor::Other => (
                    "`optimizer.from_init`",
                    "give model, `precision`, `guards.window` and `optimizer.ema_decay` as the checkpoint's \
                     run has them, or leave `optimizer.from_init` out to start from the weights alone",
                ),
            };
            let file = self.file.display();
            Err(UsageError(format!("{who} cannot go on with `{file}`: {problem}\n  hint: {hint}")))
        })
    }

    fn problem<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        experiment: &Experiment,
        successor: Successor,
    ) -> Option<String> {
        // The tensors of other heads have the same shapes, and mean something else.
        let heads = self.numerics.get("model.heads").and_then(|heads| heads.parse::<usize>().ok());
        if let Some(theirs) = heads.filter(|theirs| *theirs != experiment.model.heads) {
            let ours = experiment.model.heads;
            return Some(format!("it has {theirs} heads, the experiment {ours} (`model.heads`)"));
        }
        let window = experiment.guards.window;
        let is_wider =
            |info: &&Info| info.name.ends_with("_window") && info.shape.iter().any(|values| *values > window);
        if let Some(Info { name, shape, .. }) = self.infos.iter().find(is_wider) {
            return Some(format!("`{name}` has {shape:?} values, `guards.window` is {window}"));
        }
        let infos = trainer.state_infos();
        // The counters and windows have their own types, and windows any length.
        for info in infos.iter().filter(|info| !Progress::is_host_value(&info.name)) {
            let name = &info.name;
            let Some(saved) = self.infos.iter().find(|saved| saved.name == *name) else {
                return Some(format!("`{name}` is missing"));
            };
            if (saved.dtype, &saved.shape) != (info.dtype, &info.shape) {
                let needs = format!("this experiment needs {} {:?}", info.dtype, info.shape);
                return Some(format!("`{name}` is {} {:?}, {needs}", saved.dtype, saved.shape));
            }
        }
        let left_behind = |name: &str| successor == Successor::Other && name.starts_with(AVERAGE.prefix);
        let is_more =
            |saved: &&Info| !infos.iter().any(|info| info.name == saved.name) && !left_behind(&saved.name);
        let more = self.infos.iter().find(is_more);
        more.map(|more| format!("`{}` does not belong to this experiment", more.name))
    }
}
