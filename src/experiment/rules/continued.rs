//! `optimizer.from_init`: an experiment that goes on with the optimizer of a checkpoint, and where in the
//! data it goes on.

use std::path::Path;

use super::{Resolved, Rules};
use crate::experiment::diagnostics::Fault;
use crate::experiment::init_models::{InitError, InitModels, InitProgress};
use crate::experiment::origin::Origin;
use crate::experiment::resolved::Experiment;

impl Rules {
    /// There is a checkpoint to go on from.
    pub(super) fn continued(&mut self) {
        if self.boolean("optimizer.from_init") == Some(true)
            && self.text("model.init").is_none()
            && self.truly_missing(&["model.init"])
        {
            let message = "`optimizer.from_init` goes on from the checkpoint that `model.init` names, and \
                           that names none";
            let fault = self.clash(message.to_string(), &["optimizer.from_init"]);
            self.refuse(fault.hint("set `model.init`, such as \"run:NAME@STEP\"".to_string()));
        }
    }
}

impl Resolved {
    /// Derives `data.offset`, where no layer gives it, of an experiment that goes on with an optimizer: where
    /// the checkpoint's run had come to, if the data are the same; else the start.
    pub(super) fn placed_in_data(mut self, models: &dyn InitModels) -> Result<Resolved, Vec<Fault>> {
        const KEY: &str = "data.offset";
        let Resolved { experiment, origins, .. } = &mut self;
        let given = origins.get(KEY).is_some_and(|origin| *origin != Origin::Default);
        let init = experiment.model.init.as_ref().filter(|_| experiment.optimizer.from_init && !given);
        let Some(init) = init else { return Ok(self) };
        let refused = |error: InitError| vec![Fault::new(error.message).hint(error.hint)];
        let InitProgress { run, experiment: before, sequences } =
            models.progress(Path::new(init)).map_err(refused)?;
        let origin = if same_stream(experiment, &before) {
            experiment.data.offset = sequences;
            format!("where `{run}` had come to in the same data")
        } else {
            format!("the data are other than those of `{run}`")
        };
        origins.insert(KEY.to_string(), Origin::Derived(origin));
        Ok(self)
    }
}

/// Whether two experiments read the same sequences in the same order.
fn same_stream(a: &Experiment, b: &Experiment) -> bool {
    let sources = |of: &Experiment| -> Vec<_> {
        let sources = of.data.mix.iter();
        sources
            .map(|(name, source)| {
                (name.clone(), source.corpus.clone(), source.train.clone(), source.weight.to_bits())
            })
            .collect()
    };
    let (of_a, of_b) = (&a.data, &b.data);
    (a.seed, a.batch.seq_len, &of_a.corpus, &of_a.train, of_a.tokenizer, of_a.order)
        == (b.seed, b.batch.seq_len, &of_b.corpus, &of_b.train, of_b.tokenizer, of_b.order)
        && of_a.overfit_single_batch == of_b.overfit_single_batch
        && sources(a) == sources(b)
}
