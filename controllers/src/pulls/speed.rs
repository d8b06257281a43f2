//! How fast a transfer is, and how long the rest takes. Pure.

use std::time::{Duration, Instant};

use nodelet_drivers::images::{Phase, Progress};

/// Samples are at least this far apart: bytes come in bursts.
const SAMPLE: Duration = Duration::from_millis(500);
/// How much a new sample counts.
const WEIGHT: f64 = 0.4;

/// How a transfer stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Phase and bytes.
    pub progress: Progress,
    /// Bytes in a second, of late; nothing while that means nothing.
    pub bytes_per_second: Option<u64>,
    /// Seconds that the rest takes at that rate.
    pub seconds_left: Option<u64>,
    /// Since when it runs.
    pub running: Duration,
    /// This very request started it.
    pub started: bool,
}

/// The rate of a transfer.
#[derive(Debug, Clone)]
pub(super) struct Speed {
    at: Instant,
    bytes: u64,
    phase: Phase,
    rate: Option<f64>,
}

impl Speed {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: now, bytes: 0, phase: Phase::Resolving, rate: None }
    }

    /// Takes note of new progress.
    pub(super) fn update(&mut self, progress: &Progress, now: Instant) {
        // What was there before the transfer began did not arrive in its first moment.
        if progress.phase != self.phase {
            *self = Self { at: now, bytes: progress.bytes_done, phase: progress.phase, rate: None };
            return;
        }
        let passed = now.saturating_duration_since(self.at);
        if passed < SAMPLE {
            return;
        }
        let sample = progress.bytes_done.saturating_sub(self.bytes) as f64 / passed.as_secs_f64();
        self.rate = Some(self.rate.map_or(sample, |rate| rate + WEIGHT * (sample - rate)));
        (self.at, self.bytes) = (now, progress.bytes_done);
    }

    /// Bytes in a second, and seconds for the rest, where they mean something.
    pub(super) fn estimate(&self, progress: &Progress) -> (Option<u64>, Option<u64>) {
        let Some(rate) = self.rate.filter(|_| progress.phase == Phase::Pulling) else { return (None, None) };
        let left = progress.bytes_total.saturating_sub(progress.bytes_done);
        let seconds = (rate >= 1.0 && progress.bytes_total > 0).then(|| (left as f64 / rate).ceil() as u64);
        (Some(rate as u64), seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulling(bytes_done: u64) -> Progress {
        Progress { phase: Phase::Pulling, bytes_done, bytes_total: 10_000 }
    }

    #[test]
    fn the_rate_is_of_what_arrives() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut speed = Speed::new(start);
        assert_eq!(speed.estimate(&pulling(0)), (None, None));
        // 5000 bytes are left from an earlier attempt.
        speed.update(&pulling(5000), at(100));
        speed.update(&pulling(5100), at(200));
        assert_eq!(speed.estimate(&pulling(5100)), (None, None), "too early to tell");
        speed.update(&pulling(6000), at(1100));
        assert_eq!(speed.estimate(&pulling(6000)), (Some(1000), Some(4)));
        // It stalls: the rate falls, and the rest takes longer.
        speed.update(&pulling(6000), at(2100));
        assert_eq!(speed.estimate(&pulling(6000)), (Some(600), Some(7)));
        let unpacking = Progress { phase: Phase::Unpacking, ..pulling(10_000) };
        speed.update(&unpacking, at(3000));
        assert_eq!(speed.estimate(&unpacking), (None, None));
    }
}
