//! What is measured of an API server.

use std::fmt;
use std::iter::Sum;
use std::time::Duration;

/// The figures of one server.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) name: String,
    /// By transport and number of clients.
    pub(super) creates: Vec<(&'static str, usize, Creates)>,
    pub(super) list_json: Vec<List>,
    pub(super) list_table: Vec<List>,
    pub(super) fan_out: FanOut,
    pub(super) idle: Memory,
    /// With all objects, right after they were made.
    pub(super) loaded: Memory,
    /// The same after lists of everything.
    pub(super) listed: Memory,
    /// With all objects, after a start.
    pub(super) restarted: Memory,
    /// From the start of the process, with no directory yet, to being ready.
    pub(super) first_start: Vec<Duration>,
    /// The same with an empty store.
    pub(super) empty_start: Vec<Duration>,
    /// The same with all objects in the store.
    pub(super) full_start: Vec<Duration>,
}

/// Creates that were acknowledged.
#[derive(Debug, Default)]
pub(super) struct Creates {
    pub(super) per_second: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// Cores that the server and the load generator were busy with.
    pub(super) server_cores: f64,
    pub(super) load_cores: f64,
}

/// One list of all objects.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct List {
    pub(super) first: Duration,
    pub(super) last: Duration,
    pub(super) bytes: usize,
}

/// How long after a write the last of the watchers has heard of it, for every write, sorted.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    /// From sending the write: with the sync of the disk.
    pub(super) sent: Vec<Duration>,
    /// From its acknowledgement.
    pub(super) acknowledged: Vec<Duration>,
}

/// Memory in KiB.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Memory {
    pub(super) rss: u64,
    pub(super) pss: u64,
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |all, part| Self { rss: all.rss + part.rss, pss: all.pss + part.pss })
    }
}

impl fmt::Display for Memory {
    #[allow(clippy::cast_precision_loss)] // memory sizes are far below 2^52
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} / {:.1} MiB", self.rss as f64 / 1024.0, self.pss as f64 / 1024.0)
    }
}

/// Sorts times and returns the middle one.
pub(super) fn sorted(times: &mut [Duration]) -> Duration {
    times.sort();
    percentile(times, 50)
}

/// One of some sorted times.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let mut times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(sorted(&mut times), Duration::from_millis(101));
        assert_eq!(percentile(&times, 99), Duration::from_millis(199));
        assert_eq!(percentile(&times, 100), Duration::from_millis(200));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
