//! How long to wait before trying again: exponential, capped, with jitter where many could fall into step.

use std::time::Duration;

use rand::Rng;

/// An exponential back-off: `first`, then doubling up to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// No delay is longer.
    pub max: Duration,
}

impl Backoff {
    /// For anything that failed at a daemon, the kernel or a registry.
    pub const RETRY: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(300) };

    /// The delay after `failures` failures in a row (0 and 1 give `first`).
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }

    /// [`Backoff::delay`] lengthened by up to a fifth, so that things that failed together do not return together.
    pub fn jittered(&self, failures: u32) -> Duration {
        self.delay(failures).mul_f64(rand::rng().random_range(1.0..1.2))
    }
}

/// How soon containers that ended by themselves are started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartBackoff {
    /// The delays from the second failure in a row on; the first restart is at once.
    pub delays: Backoff,
    /// A container that ran this long is healthy: its failures are forgotten.
    pub reset: Duration,
}

impl Default for RestartBackoff {
    fn default() -> Self {
        let delays = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(300) };
        Self { delays, reset: Duration::from_secs(60) }
    }
}

impl RestartBackoff {
    /// The delay before restart number `failures` in a row (counted from 1).
    pub fn delay(&self, failures: u32) -> Duration {
        if failures <= 1 { Duration::ZERO } else { self.delays.delay(failures - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_begin_at_once_and_end_at_five_minutes() {
        let secs: Vec<u64> = (1..=12).map(|n| RestartBackoff::default().delay(n).as_secs()).collect();
        assert_eq!(secs, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn no_count_overflows() {
        assert_eq!(Backoff::RETRY.delay(u32::MAX), Backoff::RETRY.max);
        assert!(Backoff::RETRY.jittered(u32::MAX) <= Backoff::RETRY.max.mul_f64(1.2));
    }
}
