//! Choosing algorithms by time, before the first step.
//!
//! The heuristic's first answer is up to 18 % slower than its best one, so all its answers run on
//! random data (zeros run faster than real numbers do), each timed with events on the device. Beside
//! them run our own kernels. What is timed is the whole operation: where cuBLASLt cannot fuse GELU or a
//! bias's gradient, the kernels that follow its product count.

use std::time::{Duration, Instant};

use super::super::driver::GpuEvent;
use super::super::launch::{activate, classifier_hopper, gelu, reduce};
use super::super::memory::{Memory, Staging};
use super::super::product::{self, Epilogue, Product, Types};
use super::*;

/// An unsplit sum of cuBLASLt's wins unless a split one is faster by more than this: it needs no workspace,
/// and its order is the plainest.
const SPLIT_MUST_WIN_BY: f32 = 1.02;
/// Candidates that go into the second, longer round.
const FINALISTS: usize = 4;
/// Times that each of these runs in that round.
const TURNS: usize = 11;
/// How long the first product runs before anything is timed: training runs on a hot chip with a lower clock.
const WARM_UP: Duration = Duration::from_millis(1500);

/// The result of tuning one shape.
#[derive(Clone, Debug)]
pub struct Tuned {
    pub plan: GemmPlan,
    /// Time of the winner.
    pub us: f32,
    /// Time of the heuristic's first answer.
    pub first_us: f32,
    /// How many ran.
    pub candidates: usize,
}

/// Matrices to time candidates on.
#[derive(Clone, Copy)]
struct Bench<'a> {
    kernels: &'a Kernels,
    operands: Operands,
    /// Room for partial column sums.
    sums: u64,
}

/// Bytes of so many results of a product.
fn output_size(elements: u64, types: Types) -> u64 {
    elements * if types == Types::Bf16 { 2 } else { 4 }
}

impl Gemm {
    /// Times the candidates of each key. Takes memory for the largest matrices, and gives it back.
    pub(super) fn tune(&mut self, kernels: &Kernels, keys: &[GemmKey]) -> Result<Vec<Tuned>> {
        let input_size = |elements: u64, types: Types| {
            elements * if matches!(types, Types::F32 | Types::Tf32) { 4 } else { 2 }
        };
        let largest = |f: &dyn Fn(&GemmKey) -> u64| keys.iter().map(f).max().unwrap_or(0);
        let left = largest(&|k| {
            input_size(k.rows * if k.product == Product::Forward { k.c_in } else { k.c_out }, k.types)
        });
        let right = largest(&|k| {
            input_size(k.c_in * if k.product == Product::BackwardWeight { k.rows } else { k.c_out }, k.types)
        });
        let product = |k: &GemmKey| match k.product {
            Product::Forward => k.rows * k.c_out,
            Product::BackwardInput => k.rows * k.c_in,
            Product::BackwardWeight => k.c_in * k.c_out,
        };
        // With room behind it for the product of SwiGLU's gradient, which is wider.
        let out = |k: &GemmKey| match k.epilogue {
            Epilogue::ThenSwigluGradient => 3 * product(k),
            _ => product(k),
        };
        let has_pre = |k: &GemmKey| k.epilogue.fuses_gelu() || k.epilogue.then().is_some();
        let pre = largest(&|k| if has_pre(k) { output_size(out(k), k.types) } else { 0 });
        let bias = largest(&|k| output_size(k.c_out, k.types));
        let sums = largest(&|k| match k.epilogue {
            Epilogue::Softmax => classifier_hopper::stripes_bytes(k.rows, k.c_out),
            _ => reduce::partials_bytes(k.rows, k.c_in.max(k.c_out)),
        });
        let row_terms = largest(&|k| 8 * k.rows);
        let at_targets = largest(&|k| 4 * k.rows);

        let mut memory = Memory::new(Arc::clone(&self.gpu));
        let mut staging = Staging::new(&self.gpu)?;
        let what = "matrices for tuning";
        let left = memory.allocate(what, left)?;
        let right = memory.allocate(what, right)?;
        let out = memory.allocate(what, largest(&|k| output_size(out(k), k.types)))?;
        let pre = memory.allocate(what, pre.max(256))?;
        let bias = memory.allocate(what, bias.max(256))?;
        let sums = memory.allocate(what, sums.max(256))?;
        let row_terms = memory.allocate(what, row_terms.max(256))?;
        let at_targets = memory.allocate(what, at_targets.max(256))?;
        let mut filled = None;
        let mut results = Vec::new();
        for key in keys {
            let floats = matches!(key.types, Types::F32 | Types::Tf32);
            if filled != Some(floats) {
                for (seed, allocation) in [(1, &left), (2, &right), (3, &pre), (4, &bias), (5, &row_terms)] {
                    // SAFETY: the allocations are live, and this function owns them.
                    unsafe {
                        self.fill_random(&mut staging, allocation.address(), allocation.bytes(), floats, seed)
                    }?;
                }
                filled = Some(floats);
            }
            use Epilogue::{BiasGradient, RowFactors, Softmax, ThenGeluGradient};
            let only = |address, wanted| if wanted { address } else { 0 };
            let operands = Operands {
                add: key.product == Product::BackwardWeight,
                bias: bias.address(),
                pre: pre.address(),
                sums: only(sums.address(), matches!(key.epilogue, ThenGeluGradient | BiasGradient | Softmax)),
                row_terms: only(row_terms.address(), matches!(key.epilogue, Softmax | RowFactors)),
                softmax: (key.epilogue == Softmax).then_some(product::SoftmaxOperands {
                    used: key.c_out as usize,
                    cap: None,
                    // Random numbers, of which most are columns.
                    targets: left.address(),
                    at_targets: at_targets.address(),
                    overflow: 0,
                }),
                ..Operands::new(left.address(), right.address(), out.address())
            };
            let bench = Bench { kernels, sums: sums.address(), operands };
            if results.is_empty() {
                self.warm_up(key, &bench)?;
            }
            results.push(self.tune_one(key, &bench)?);
        }
        self.gpu.synchronize("tuning")?;
        Ok(results)
    }

    /// Heats the chip with the heuristic's first answer, if that runs.
    fn warm_up(&self, key: &GemmKey, bench: &Bench<'_>) -> Result<()> {
        let plan = self.candidate(self.first_candidate(*key)?)?;
        let started = Instant::now();
        // SAFETY: `tune` sized the matrices for the largest of its keys.
        while started.elapsed() < WARM_UP && unsafe { self.time(&plan, bench, 20) }?.is_some() {}
        Ok(())
    }

    fn candidate(&self, record: GemmPlan) -> Result<PinnedPlan> {
        Ok(PinnedPlan { ready: self.ready(&record)?, record, announced: true })
    }

    fn tune_one(&self, key: &GemmKey, bench: &Bench<'_>) -> Result<Tuned> {
        let records = self.candidates(key)?;
        let mut timed = Vec::new();
        for record in records {
            let plan = self.candidate(record)?;
            // SAFETY: `tune` sized the matrices for the largest of its keys.
            if let Some(us) = unsafe { self.time(&plan, bench, 3) }? {
                timed.push((us, plan));
            }
        }
        let Some(first_us) = timed.first().map(|(us, _)| *us) else {
            return Err(self.gpu.refuse("tuning", format!("no algorithm runs for {key}")));
        };
        let candidates = timed.len();
        // The sort is stable: among equals the heuristic's order decides.
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        timed.truncate(FINALISTS);
        // In turns, since the clock falls while the chip heats up.
        let mut turns = vec![Vec::with_capacity(TURNS); timed.len()];
        for _ in 0..TURNS {
            for ((_, plan), times) in timed.iter().zip(&mut turns) {
                // SAFETY: as above.
                times.extend(unsafe { self.time(plan, bench, 1) }?);
            }
        }
        for ((us, _), times) in timed.iter_mut().zip(&mut turns) {
            times.sort_by(f32::total_cmp);
            *us = times.get(times.len() / 2).copied().unwrap_or(f32::INFINITY);
        }
        let is_split = |plan: &PinnedPlan| match &plan.record.algorithm {
            Algorithm::CublasLt(lt) => lt.attributes.split_k > 1,
            Algorithm::Hopper { .. } => false,
        };
        let cost = |(us, plan): &(f32, PinnedPlan)| if is_split(plan) { us * SPLIT_MUST_WIN_BY } else { *us };
        let (us, plan) =
            timed.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("at least one ran");
        Ok(Tuned { plan: plan.record, us, first_us, candidates })
    }

    /// Median time in microseconds of `repeats` runs after one; `None` when the algorithm fails to start.
    ///
    /// # Safety
    /// The matrices of `bench` are large enough for the plan.
    unsafe fn time(&self, plan: &PinnedPlan, bench: &Bench<'_>, repeats: usize) -> Result<Option<f32>> {
        // SAFETY: the caller's promise.
        let run = || unsafe { self.operation(plan, bench) };
        if run().is_err() {
            return Ok(None);
        }
        let marks = (0..=repeats).map(|_| GpuEvent::new(&self.gpu)).collect::<Result<Vec<_>>>()?;
        marks[0].record()?;
        for mark in &marks[1..] {
            if run().is_err() {
                return Ok(None);
            }
            mark.record()?;
        }
        self.gpu.synchronize("tuning")?;
        let mut times = marks
            .windows(2)
            .map(|pair| pair[1].ms_since(&pair[0]).map(|ms| ms * 1e3))
            .collect::<Result<Vec<_>>>()?;
        times.sort_by(f32::total_cmp);
        Ok(Some(times[times.len() / 2]))
    }

    /// The product, and behind cuBLASLt's the passes that our own does not need.
    ///
    /// # Safety
    /// As for [`Gemm::time`].
    unsafe fn operation(&self, plan: &PinnedPlan, bench: &Bench<'_>) -> Result<()> {
        const OP: &str = "tuning";
        let Bench { kernels: k, sums, operands } = *bench;
        let key = plan.record.key;
        let own = matches!(plan.ready, Ready::Hopper(_));
        let before = match key.epilogue {
            Epilogue::ThenSwigluGradient if !own => {
                Operands { out: operands.out + output_size(2 * key.rows * key.c_in, key.types), ..operands }
            }
            _ => operands,
        };
        // SAFETY: the caller's promise, for all of these.
        unsafe {
            self.start(k, OP, plan, &before)?;
            match (key.epilogue, key.epilogue.then()) {
                (Epilogue::ThenGeluGradient, _) if !own => {
                    gelu::backward_at(k, OP, sums, [operands.out; 2], operands.pre, key.rows, key.c_in)
                }
                (Epilogue::BiasGradient, _) if !own || gemm_hopper::order(&key).bias_chains.is_none() => {
                    reduce::column_sum_at(k, OP, sums, operands.left, key.rows, key.c_out)
                }
                (_, Some(function)) if !own && key.product == Product::Forward => {
                    let length = key.rows * key.c_out / function.inputs() as u64;
                    activate::forward_at(k, OP, function, operands.out, operands.pre, length)
                }
                (_, Some(function)) if !own => {
                    let gradients = [operands.out, before.out];
                    activate::backward_at(k, OP, function, gradients, operands.pre, [key.rows, key.c_in])
                }
                _ => Ok(()),
            }
        }
    }

    /// Fills an allocation with uniform numbers in [-1, 1), repeating a few MiB of them.
    ///
    /// # Safety
    /// The allocation is live and not in use.
    pub(in super::super) unsafe fn fill_random(
        &self,
        staging: &mut Staging,
        address: u64,
        bytes: u64,
        floats: bool,
        seed: u64,
    ) -> Result<()> {
        const PATTERN: u64 = 4 << 20;
        let key = crate::rng::Key::new(seed, "gemm tuning");
        let number = |word: u32| word as i32 as f32 / 2f32.powi(31);
        let first = bytes.min(PATTERN);
        // SAFETY: the caller's promise; pieces start at multiples of 16 bytes.
        unsafe {
            staging.upload(address, first, "tuning", |at, piece| {
                for (i, chunk) in piece.chunks_mut(16).enumerate() {
                    let block = key.block_at(0, (at / 16 + i) as u64);
                    let values: [u8; 16] = if floats {
                        bytemuck::cast(block.map(|word| number(word).to_bits()))
                    } else {
                        let halves = block.map(|word| {
                            [word << 16, word & 0xffff_0000]
                                .map(|half| half::bf16::from_f32(number(half)).to_bits())
                        });
                        bytemuck::cast(halves)
                    };
                    chunk.copy_from_slice(&values[..chunk.len()]);
                }
            })?;
            let mut done = first;
            while done < bytes {
                let piece = done.min(bytes - done);
                self.gpu.copy(address + done, address, piece, "tuning")?;
                done += piece;
            }
        }
        Ok(())
    }
}
