//! Time as a process lives it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A clock that stands still while this process does: stopped from a terminal and continued, or on a machine
/// that was paused. What the others did in that time is not known, so none of it counts as their silence.
pub(super) struct Clock {
    /// When it was last read, and what it said then.
    last: Mutex<(Instant, Duration)>,
    /// The longest time that passes between two readings of a process that runs.
    longest: Duration,
}

impl Clock {
    /// A clock that a thread reads at least once in `longest`.
    pub(super) fn new(longest: Duration) -> Clock {
        Clock { last: Mutex::new((Instant::now(), Duration::ZERO)), longest }
    }

    /// The time since the start that this process has lived through.
    pub(super) fn now(&self) -> Duration {
        self.read(Instant::now())
    }

    /// The time that has passed since `then`.
    pub(super) fn since(&self, then: Duration) -> Duration {
        self.now().saturating_sub(then)
    }

    fn read(&self, instant: Instant) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two threads the later one may come first.
        let passed = instant.saturating_duration_since(last.0);
        *last = (last.0 + passed, last.1 + passed.min(self.longest));
        last.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_as_the_longest_time_between_two_readings() {
        let second = Duration::from_secs(1);
        let clock = Clock::new(2 * second);
        let began = clock.last.lock().expect("no panic").0;
        assert_eq!(clock.read(began + second), second);
        assert_eq!(clock.read(began + 3 * second), 3 * second);
        // An hour of standing still.
        assert_eq!(clock.read(began + 3603 * second), 5 * second);
        // Read by another thread just before, and handed in after.
        assert_eq!(clock.read(began + 3600 * second), 5 * second);
        assert_eq!(clock.read(began + 3604 * second), 6 * second);
    }
}
