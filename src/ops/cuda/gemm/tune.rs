//! Choosing algorithms by time, before the first step.
//!
//! The heuristic's first answer is up to 18 % slower than its best one, so all its answers run on
//! random data (zeros run faster than real numbers do), each timed with events on the device.

use std::time::{Duration, Instant};

use super::super::driver::Event;
use super::super::memory::{Memory, Staging};
use super::*;

/// An unsplit sum wins unless a split one is faster by more than this: it needs no workspace, and its
/// order is the plainest.
const SPLIT_MUST_WIN_BY: f32 = 1.02;
/// Candidates that go into the second, longer round.
const FINALISTS: usize = 4;
/// Times that each of these runs in that round.
const TURNS: usize = 11;
/// How long the first product runs before anything is timed: training runs on a hot chip with a lower clock.
const WARM_UP: Duration = Duration::from_millis(1500);

/// What tuning found for one shape.
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

impl Gemm {
    /// Times the candidates of each key. Takes memory for the largest matrices, and gives it back.
    pub(super) fn tune(&mut self, keys: &[GemmKey]) -> Result<Vec<Tuned>> {
        let size = |elements: u64, types: Types| elements * if matches!(types, Types::Bf16) { 2 } else { 4 };
        let input_size = |elements: u64, types: Types| elements * if matches!(types, Types::F32 | Types::Tf32) { 4 } else { 2 };
        let largest = |f: &dyn Fn(&GemmKey) -> u64| keys.iter().map(f).max().unwrap_or(0);
        let left = largest(&|k| input_size(k.rows * if k.product == Product::Forward { k.c_in } else { k.c_out }, k.types));
        let right =
            largest(&|k| input_size(k.c_in * if k.product == Product::BackwardWeight { k.rows } else { k.c_out }, k.types));
        let out = |k: &GemmKey| match k.product {
            Product::Forward => k.rows * k.c_out,
            Product::BackwardInput => k.rows * k.c_in,
            Product::BackwardWeight => k.c_in * k.c_out,
        };
        let has_pre = |k: &GemmKey| matches!(k.epilogue, Epilogue::BiasGelu | Epilogue::GeluGradient);
        let pre = largest(&|k| if has_pre(k) { size(out(k), k.types) } else { 0 });
        let bias = largest(&|k| size(k.c_out, k.types));

        let mut memory = Memory::new(Arc::clone(&self.gpu));
        let mut staging = Staging::new(&self.gpu)?;
        let what = "matrices for tuning";
        let left = memory.region(what, left)?;
        let right = memory.region(what, right)?;
        let out = memory.region(what, largest(&|k| size(out(k), k.types)))?;
        let pre = memory.region(what, pre.max(256))?;
        let bias = memory.region(what, bias.max(256))?;
        let mut filled = None;
        let mut results = Vec::new();
        for key in keys {
            let floats = matches!(key.types, Types::F32 | Types::Tf32);
            if filled != Some(floats) {
                for (seed, region) in [(1, &left), (2, &right), (3, &pre), (4, &bias)] {
                    // SAFETY: the regions are live, and this function owns them.
                    unsafe { self.fill_random(&mut staging, region.address(), region.bytes(), floats, seed) }?;
                }
                filled = Some(floats);
            }
            let operands = Operands {
                left: left.address(),
                right: right.address(),
                out: out.address(),
                add: key.product == Product::BackwardWeight,
                bias: bias.address(),
                pre: pre.address(),
            }
            .only(key.epilogue);
            if results.is_empty() {
                self.warm_up(key, &operands)?;
            }
            results.push(self.tune_one(key, &operands)?);
        }
        self.gpu.synchronize("tuning")?;
        Ok(results)
    }

    /// Heats the chip with the heuristic's first answer, if that runs.
    fn warm_up(&self, key: &GemmKey, operands: &Operands) -> Result<()> {
        let record = self.heuristic_first(*key)?;
        let algo = sys::cublasLtMatmulAlgo_t { data: record.algo_words().expect("made from 64 bytes") };
        let descriptors = Descriptors::new(key).map_err(|e| fail(&self.gpu, "cublasLtMatmulDescCreate", e))?;
        let plan = Plan { descriptors, algo, record, announced: false };
        plan.descriptors.set_pointers(operands).map_err(|e| fail(&self.gpu, "tuning", e))?;
        let started = Instant::now();
        // SAFETY: `tune` sized the matrices for the largest of its keys.
        while started.elapsed() < WARM_UP && unsafe { self.time(&plan, operands, 20) }?.is_some() {}
        Ok(())
    }

    fn tune_one(&self, key: &GemmKey, operands: &Operands) -> Result<Tuned> {
        let descriptors = || Descriptors::new(key).map_err(|e| fail(&self.gpu, "cublasLtMatmulDescCreate", e));
        let mut timed = Vec::new();
        for record in self.candidates(key, &descriptors()?)? {
            let algo = sys::cublasLtMatmulAlgo_t { data: record.algo_words().expect("made from 64 bytes") };
            let plan = Plan { descriptors: descriptors()?, algo, record, announced: true };
            plan.descriptors.set_pointers(operands).map_err(|e| fail(&self.gpu, "tuning", e))?;
            // SAFETY: `tune` sized the matrices for the largest of its keys.
            if let Some(us) = unsafe { self.time(&plan, operands, 3) }? {
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
                times.extend(unsafe { self.time(plan, operands, 1) }?);
            }
        }
        for ((us, _), times) in timed.iter_mut().zip(&mut turns) {
            times.sort_by(f32::total_cmp);
            *us = times.get(times.len() / 2).copied().unwrap_or(f32::INFINITY);
        }
        let cost = |(us, plan): &(f32, Plan)| if plan.record.attributes.split_k > 1 { us * SPLIT_MUST_WIN_BY } else { *us };
        let (us, plan) = timed.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("at least one ran");
        Ok(Tuned { plan: plan.record, us, first_us, candidates })
    }

    /// Median time in microseconds of `repeats` runs after one; `None` when the algorithm fails to start.
    ///
    /// # Safety
    /// As for `launch`.
    unsafe fn time(&self, plan: &Plan, operands: &Operands, repeats: usize) -> Result<Option<f32>> {
        // SAFETY: the caller's promise.
        let run = || unsafe { launch(self.handle, plan, operands, &self.workspace, &self.gpu) };
        if run().is_err() {
            return Ok(None);
        }
        let marks = (0..=repeats).map(|_| Event::new(&self.gpu)).collect::<Result<Vec<_>>>()?;
        marks[0].record()?;
        for mark in &marks[1..] {
            if run().is_err() {
                return Ok(None);
            }
            mark.record()?;
        }
        self.gpu.synchronize("tuning")?;
        let mut times = marks.windows(2).map(|pair| pair[1].ms_since(&pair[0]).map(|ms| ms * 1e3)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f32::total_cmp);
        Ok(Some(times[times.len() / 2]))
    }

    /// Fills a region with uniform numbers in [-1, 1), repeating a few MiB of them.
    ///
    /// # Safety
    /// The region is live and in use by nobody else.
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
                            [word << 16, word & 0xffff_0000].map(|half| half::bf16::from_f32(number(half)).to_bits())
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
