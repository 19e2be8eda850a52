//! Two lanes of work on one GPU: the main stream, and a second one for work whose result is needed later.
//!
//! Gradients leave for other GPUs or for the host's memory while those of earlier layers are still being
//! computed. Two events order the lanes: the side lane starts after all work issued before
//! ([`Lanes::turn_aside`]), and the main lane waits for it where it says so ([`Lanes::join`]), nowhere else.
//!
//! A missing event shows only when the lanes happen to run at certain speeds. So tests provoke it
//! (`LaneTrial`): they slow down the lane that must be waited for, and they leave an event out, to show that
//! this would be noticed.

use std::sync::Arc;

use super::driver::{Gpu, GpuEvent};
use crate::ops::Result;

/// The order between the two streams of a GPU.
pub struct Lanes {
    gpu: Arc<Gpu>,
    /// The event that the side lane waits for.
    forked: GpuEvent,
    /// The end of the side lane's work so far.
    done: GpuEvent,
    /// Whether the main lane has not waited for `done` yet.
    ahead: bool,
    #[cfg(test)]
    pub trial: LaneTrial,
}

impl Lanes {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Lanes> {
        Ok(Lanes {
            gpu: Arc::clone(gpu),
            forked: GpuEvent::new(gpu)?,
            done: GpuEvent::new(gpu)?,
            ahead: false,
            #[cfg(test)]
            trial: LaneTrial::default(),
        })
    }

    /// Sends the work that follows to the side lane, after everything issued so far.
    pub fn turn_aside(&mut self) -> Result<()> {
        self.forked.record()?;
        self.gpu.set_aside(true);
        #[cfg(test)]
        self.trial.slow_down(self.trial.side, &self.gpu)?;
        #[cfg(test)]
        if self.trial.forget == Some(Forgotten::Fork) {
            return Ok(());
        }
        let held = self.forked.hold();
        if held.is_err() {
            // The caller does not return to the main lane after an error.
            self.gpu.set_aside(false);
        }
        held
    }

    /// Sends the work that follows to the main lane again.
    pub fn turn_back(&mut self) -> Result<()> {
        let marked = self.done.record();
        self.gpu.set_aside(false);
        self.ahead = true;
        #[cfg(test)]
        self.trial.slow_down(self.trial.main, &self.gpu)?;
        marked
    }

    /// Makes the main lane wait for everything issued to the side lane.
    pub fn join(&mut self) -> Result<()> {
        #[cfg(test)]
        if self.trial.forget == Some(Forgotten::Join) {
            return Ok(());
        }
        if std::mem::take(&mut self.ahead) { self.done.hold() } else { Ok(()) }
    }
}

#[cfg(test)]
impl super::Cuda {
    /// Slows the lanes down from here on.
    pub fn set_trial(&mut self, trial: LaneTrial) {
        self.lanes.trial = trial;
    }
}

/// The changes that a test makes to the lanes.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneTrial {
    /// The main lane pauses for up to this long before it goes on beside the side lane.
    pub main: std::time::Duration,
    /// The side lane pauses for up to this long before each piece of its work.
    pub side: std::time::Duration,
    pub forget: Option<Forgotten>,
    pub turns: u32,
}

/// The event that a test leaves out.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    Fork,
    Join,
}

#[cfg(test)]
impl LaneTrial {
    /// Makes the lane in use sleep.
    fn slow_down(&mut self, most: std::time::Duration, gpu: &Arc<Gpu>) -> Result<()> {
        use cudarc::driver::sys;

        unsafe extern "C" fn sleep(micros: *mut std::ffi::c_void) {
            std::thread::sleep(std::time::Duration::from_micros(micros as u64));
        }
        // Varying lengths: the numbers of Knuth's multiplicative hash.
        self.turns = self.turns.wrapping_add(1);
        let share = u128::from(self.turns.wrapping_mul(2_654_435_769) >> 24);
        let micros = most.as_micros() * share / 255;
        if micros == 0 {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: the function touches nothing of CUDA's, and its argument is a number, not a pointer.
        unsafe { sys::cuLaunchHostFunc(gpu.stream(), Some(sleep), micros as usize as *mut std::ffi::c_void) }
            .result()
            .map_err(|e| gpu.fail("cuLaunchHostFunc", e))
    }
}
