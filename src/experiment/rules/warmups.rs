//! What the warm-ups of `[batch]` need.

use super::Rules;

const TOKENS: &str = "batch.tokens";
const SEQ_LEN: &str = "batch.seq_len";
/// Sequences times heads of the longest grid of attention on CUDA.
const CUDA_GRID: u64 = 65_535;

/// A value that warms up: its key, its start and the steps on the way.
struct WarmUp {
    target: &'static str,
    start: &'static str,
    steps: &'static str,
    /// What has no warm-up where there is none.
    of: &'static str,
}

const OF_TOKENS: WarmUp = WarmUp {
    target: TOKENS,
    start: "batch.tokens_start",
    steps: "batch.tokens_warmup_steps",
    of: "the number of tokens a step",
};
const OF_SEQ_LEN: WarmUp = WarmUp {
    target: SEQ_LEN,
    start: "batch.seq_len_start",
    steps: "batch.seq_len_warmup_steps",
    of: "the length of sequences",
};

impl Rules {
    /// Both warm-ups, of a batch whose steps are multiples of `unit` tokens.
    pub(super) fn warmups(&mut self, unit: u64) {
        if let Some((start, target)) = self.warmup(&OF_TOKENS) {
            self.tokens_start(start, target, unit);
        }
        if let Some((start, target)) = self.warmup(&OF_SEQ_LEN) {
            self.seq_len_start(start, target);
        }
    }

    /// Start and target of a warm-up that has both, and steps, and goes up.
    fn warmup(&mut self, of: &WarmUp) -> Option<(u64, u64)> {
        let (start, steps, target) = (self.int(of.start)?, self.int(of.steps)?, self.int(of.target)?);
        match (start, steps) {
            (0, 0) => None,
            (0, _) => {
                let message = format!("`{}` = {steps} is of a warm-up without a start", of.steps);
                let fault = self.clash(message, &[of.steps, of.start]);
                let hint = format!("set `{}` to its value at step 0, or `{}` to 0", of.start, of.steps);
                self.refuse(fault.hint(hint));
                None
            }
            (_, 0) => {
                let message = format!("`{}` does nothing: {} has no warm-up", of.start, of.of);
                let fault = self.clash(message, &[of.start, of.steps]);
                self.refuse(fault.hint(format!("set `{}` to the steps of a warm-up", of.steps)));
                None
            }
            // None, which has one spelling.
            _ if start == target => {
                let why = format!("starts at `{}`", of.target);
                self.derive(of.start, 0u64, &*why);
                self.derive(of.steps, 0u64, &*why);
                None
            }
            _ if start > target => {
                let message = format!(
                    "`{}` = {start} is above `{}` = {target}: a warm-up goes up",
                    of.start, of.target
                );
                let fault = self.clash(message, &[of.start, of.target]);
                self.refuse(fault.hint(format!("lower `{}`", of.start)));
                None
            }
            _ => Some((start, target)),
        }
    }

    /// Step 0 is whole micro-batches for every worker too, and there is more than one batch.
    fn tokens_start(&mut self, start: u64, target: u64, unit: u64) {
        if !start.is_multiple_of(unit) {
            let keys = ["batch.tokens_start", "batch.micro", SEQ_LEN, "parallel.workers"];
            let message = format!(
                "`batch.tokens_start` = {start} is not a multiple of micro × seq_len × workers = {unit}"
            );
            let mut fault = self.clash(message, &keys);
            if target == unit {
                fault = fault.note(format!(
                    "a step of `batch.tokens` = {target} is one micro-batch a worker, and none has less"
                ));
            }
            if self.int("parallel.zero") == Some(2) {
                fault =
                    fault.note("`parallel.zero` = 2 takes one micro-step a worker: no batch warms up there");
            }
            let below = start / unit * unit;
            let hint = match below {
                0 => format!("the smallest valid `batch.tokens_start` is {unit}"),
                _ if below + unit > target => format!("the nearest valid `batch.tokens_start` is {below}"),
                _ => format!("the nearest valid `batch.tokens_start` are {below} and {}", below + unit),
            };
            self.refuse(fault.hint(hint));
        }
        if self.boolean("data.overfit_single_batch") == Some(true) {
            let message = "`data.overfit_single_batch` trains every step on one batch, which has one size";
            let fault = self.clash(message.to_string(), &["batch.tokens_start", "data.overfit_single_batch"]);
            self.refuse(
                fault.hint("set `batch.tokens_start` and `batch.tokens_warmup_steps` to 0".to_string()),
            );
        }
    }

    /// Sequences are cut into equal pieces, which no grid of a GPU is too small for.
    fn seq_len_start(&mut self, start: u64, target: u64) {
        let divides = |t: &u64| target.is_multiple_of(*t);
        if !divides(&start) {
            let message =
                format!("`batch.seq_len_start` = {start} is not a divisor of `{SEQ_LEN}` = {target}");
            let fault = self.clash(message, &["batch.seq_len_start", SEQ_LEN]);
            let (below, above) = ((1..start).rev().find(divides), (start..=target).find(divides));
            let hint = match (below, above) {
                (Some(below), Some(above)) => format!("the nearest divisors are {below} and {above}"),
                _ => "1 divides every length".to_string(),
            };
            self.refuse(fault.hint(hint));
            return;
        }
        let (Some(micro), Some(heads)) = (self.int("batch.micro"), self.int("model.heads")) else { return };
        let pieces = micro * (target / start);
        if self.text("device.kind").as_deref() == Some("cuda") && pieces * heads > CUDA_GRID {
            let message = format!(
                "{pieces} pieces of `batch.seq_len_start` = {start} tokens cannot run on CUDA: with {heads} \
                 heads it takes at most {}",
                CUDA_GRID / heads
            );
            let fault = self.clash(
                message,
                &["batch.seq_len_start", SEQ_LEN, "batch.micro", "model.heads", "device.kind"],
            );
            self.refuse(fault.hint("raise `batch.seq_len_start`, or lower `batch.micro`".to_string()));
        }
    }
}
