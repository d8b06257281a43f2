//! What is measured of a tool.

use std::time::Duration;

/// The figures of one tool.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// The tool and how it was asked.
    pub(crate) name: String,
    /// How long until so many containers ran.
    pub(crate) up: Vec<(usize, Duration)>,
    /// Memory (PSS, KiB) of the daemons without containers: of the tool itself and of everything but the containers.
    pub(crate) idle: Memory,
    /// The same with the highest number of containers.
    pub(crate) loaded: Memory,
    /// From the death of a container to the start of its successor.
    pub(crate) successor: Option<Duration>,
}

/// Proportional set sizes in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Of the tool's own long-running process; nothing if it has none.
    pub(crate) own: Option<u64>,
    /// Of everything that runs beside the applications: daemons, shims, loggers.
    pub(crate) beside: u64,
}

/// The middle of some times.
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
