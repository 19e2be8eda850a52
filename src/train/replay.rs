//! A step made twice from one state: the only check that finds arithmetic that is wrong now and then.
//!
//! A processor that miscalculates once an hour leaves no trace in a loss curve. Here the state before the
//! step is copied to the host, the step made, the copy put back and the step made again on the same
//! micro-batches; the two reports and roots must be equal. Training goes on from the second
//! state, which is the first.

use super::trainer::{StepReport, Trainer};
use super::{RunError, TrainError};
use crate::data::Prefetcher;
use crate::ops::Ops;
use crate::parallel::exchange;
use crate::store::{Writer, compare};

/// Makes one `step` twice and compares.
///
/// # Errors
///
/// [`RunError::Unrepeatable`] when bits differ; both states are then in the run's folder as `first` and
/// `second`. And whatever ends a step.
pub(super) fn twice<O: Ops>(
    trainer: &mut Trainer<O>,
    feed: &mut Prefetcher,
    writer: &Writer,
    mut step: impl FnMut(&mut Trainer<O>, &mut Prefetcher) -> Result<StepReport, TrainError>,
) -> Result<StepReport, RunError> {
    let before = trainer.state()?;
    let (number, offset) = (trainer.progress().step, trainer.progress().data_offset);
    let report = step(trainer, feed)?;
    let first = trainer.state()?;
    trainer.restore(before)?;
    feed.seek(number, offset).map_err(TrainError::from)?;
    let again = step(trainer, feed)?;
    let second = trainer.state()?;
    let same_report = report.bits() == again.bits();
    if same_report && first == second {
        return Ok(again);
    }
    let link = trainer.link();
    let folder = match link.rank() {
        0 => writer.keep_unrepeatable(number, &first, &second)?,
        _ => writer.unrepeatable(number),
    };
    // Every rank has the whole state and finds the same. None ends before both are on the disk: the others
    // would be ended with it.
    exchange::all_gather(link, "the end of a step that does not repeat", Vec::new())
        .map_err(TrainError::from)?;
    let mut differences = String::new();
    if !same_report {
        differences.push_str(&format!(
            "\n  loss {} and {}, gradient norm {} and {}",
            report.loss, again.loss, report.grad_norm, again.grad_norm
        ));
    }
    if let Some(state) = compare::states(&first, &second) {
        let (count, of) = (state.tensors.len(), state.of);
        differences.push_str(&format!(
            "\n  {count} of {of} tensors, the first `{}`: {}",
            state.tensors[0], state.first
        ));
    }
    Err(RunError::Unrepeatable { step: number, differences, folder })
}

impl StepReport {
    /// The numbers of a report as bits, for which a NaN is equal to itself.
    fn bits(&self) -> [u64; 3] {
        [self.loss, self.grad_norm, self.learning_rate].map(f64::to_bits)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data::{BatchPlan, Dataset, SampleOrder};
    use crate::experiment::{self, Experiment};
    use crate::ops::cpu::Cpu;
    use crate::parallel::{Exchange, Hosted, Solo, threads};
    use crate::store::{Retention, RunPaths, safetensors};

    const TEXT: &str = "seed = 1\n[model]\nlayers = 1\nheads = 1\nchannels = 32\n\
        [data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n\
        [batch]\nmicro = 1\nseq_len = 8\n[schedule]\nsteps = 4\n[device]\nkind = 'cpu'\nthreads = 1";

    fn setup() -> (Experiment, Trainer<Cpu>, Prefetcher) {
        setup_rank(&[], Box::new(Solo))
    }

    fn setup_rank(
        sets: &[String],
        exchange: Box<dyn Exchange<Cpu>>,
    ) -> (Experiment, Trainer<Cpu>, Prefetcher) {
        let experiment = experiment::load_text("t", TEXT, sets).expect("a whole experiment").experiment;
        let cpu = Cpu::new(&experiment.device).expect("a CPU");
        let mut trainer = Trainer::join(cpu, &experiment, exchange).expect("a trainer");
        let data = Dataset::from_tokens("t", (0..200).collect(), 257).expect("tokens");
        let plan = BatchPlan {
            order: SampleOrder::new(1, data.require_sequences(8).expect("some"), true),
            seq_len: 8,
            micro_batch: 1,
            step_sequences: experiment.step_sequences(),
            share: trainer.share(),
            overfit_single_batch: false,
            depth: 1,
        };
        let feed = Prefetcher::start(Arc::new(data), plan, 0, 0).expect("a reader");
        (experiment, trainer, feed)
    }

    fn writer(run: &std::path::Path) -> Writer {
        Writer::new(
            &RunPaths::new(run).checkpoints(),
            Retention { keep_last: 0, keep_every: 0, rewind_every: 0 },
        )
    }

    #[test]
    fn a_step_made_twice_leaves_the_state_and_the_data_of_one_made_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let writer = writer(folder.path());
        let (_, mut once, mut feed_once) = setup();
        let (_, mut doubled, mut feed_doubled) = setup();
        for _ in 0..3 {
            let report = once.step(&mut feed_once).expect("a step");
            let again = twice(&mut doubled, &mut feed_doubled, &writer, |t, f| t.step(f)).expect("a step");
            assert_eq!(report, again);
            assert_eq!(once.state_root().expect("a root"), doubled.state_root().expect("a root"));
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing is kept");
    }

    /// A step, of which the second leaves one bit of the state wrong.
    fn flipping_once() -> impl FnMut(&mut Trainer<Cpu>, &mut Prefetcher) -> Result<StepReport, TrainError> {
        let mut call = 0;
        move |trainer, feed| {
            let report = trainer.step(feed)?;
            call += 1;
            if call == 2 {
                let mut state = trainer.state()?;
                let tensor = state.iter_mut().find(|t| t.name == "wpe.weight").expect("a tensor");
                tensor.bytes[4] ^= 1;
                trainer.restore(state)?;
            }
            Ok(report)
        }
    }

    #[test]
    fn one_bit_that_flips_in_one_of_two_steps_is_located_and_both_states_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = RunPaths::new(folder.path());
        let (_, mut trainer, mut feed) = setup();
        let error =
            twice(&mut trainer, &mut feed, &writer(folder.path()), flipping_once()).expect_err("a mismatch");
        let text = error.to_string();
        assert!(
            text.contains("1 of ") && text.contains("`wpe.weight`: F32 [8, 32], leaf 0, element 1 [0, 1]"),
            "{text}"
        );
        let read = |name: &str| safetensors::read(&paths.unrepeatable(0).join(name)).expect("kept");
        let found =
            compare::states(&read("first.safetensors"), &read("second.safetensors")).expect("they differ");
        assert_eq!(found.tensors, ["wpe.weight"]);
    }

    #[test]
    fn of_several_ranks_each_names_the_step_and_one_keeps_both_states() {
        let folder = tempfile::tempdir().expect("a folder");
        let sets = ["parallel.workers=4", "batch.tokens=32"].map(str::to_owned);
        let errors = threads::run(4, |link| {
            let (_, mut trainer, mut feed) = setup_rank(&sets, Box::new(Hosted(link)));
            let error = twice(&mut trainer, &mut feed, &writer(folder.path()), flipping_once());
            // What ends first must find both states.
            let kept = RunPaths::new(folder.path()).unrepeatable(0);
            let names = ["first", "second"].map(|name| kept.join(format!("{name}.safetensors")));
            (error.expect_err("a mismatch"), names.map(|path| safetensors::read(&path).expect("kept").len()))
        });
        for (error, [first, second]) in errors {
            assert!(matches!(error, RunError::Unrepeatable { step: 0, .. }), "{error}");
            assert!(first > 0 && first == second);
        }
    }
}
