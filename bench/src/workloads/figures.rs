//! What is measured of a tool.

use std::collections::BTreeMap;
use std::time::Duration;

use super::usage::{Memory, Steady};

/// The figures of one tool.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// The tool and how it was asked.
    pub(crate) name: String,
    /// From the command to the first instruction of one container.
    pub(crate) single: Vec<Duration>,
    /// From the command to the first instruction of the last of so many, each time.
    pub(crate) up: BTreeMap<usize, Vec<Duration>>,
    /// Without containers.
    pub(crate) idle: Memory,
    /// With the highest number of containers.
    pub(crate) loaded: Memory,
    /// With that number and nothing to do.
    pub(crate) steady: Option<Steady>,
    /// With that number and an exec probe each, every second.
    pub(crate) exec_probes: Option<Steady>,
    /// With that number and an HTTP probe each, every second.
    pub(crate) http_probes: Option<Steady>,
    /// From the death of a container to the first instruction of its successor.
    pub(crate) successor: Vec<Duration>,
}

/// A percentile: the smallest that so many percent do not exceed. Zero of nothing.
pub(crate) fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_times_themselves() {
        let times: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&times, 50), Duration::from_millis(50));
        assert_eq!(quantile(&times, 99), Duration::from_millis(99));
        assert_eq!(quantile(&times[..1], 99), Duration::from_millis(100));
        assert_eq!(quantile(&[], 50), Duration::ZERO);
    }
}
