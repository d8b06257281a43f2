//! Decides whether the node is short of something, and who has to go first. Pure.

use std::cmp::Reverse;
use std::fmt;

use nodelet_crds::quantity::Quantity;
use serde::{Deserialize, Serialize};

use nodelet_drivers::room::size;

/// Below this there is pressure: an amount, or a part of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Threshold {
    /// Bytes, or a number of files.
    Amount(u64),
    /// Percent of the whole.
    Percent(u8),
}

/// It is neither an amount nor a percentage.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no amount: expected a quantity such as 100Mi, or a percentage such as 10%")]
pub struct NoThreshold(String);

impl TryFrom<String> for Threshold {
    type Error = NoThreshold;

    fn try_from(text: String) -> Result<Self, NoThreshold> {
        let percent = |number: &str| number.parse().ok().filter(|percent| *percent <= 100).map(Self::Percent);
        let amount = |text: &str| text.parse::<Quantity>().ok()?.bytes().ok().map(Self::Amount);
        let found = text.strip_suffix('%').map_or_else(|| amount(&text), percent);
        found.ok_or(NoThreshold(text))
    }
}

impl From<Threshold> for String {
    fn from(threshold: Threshold) -> String {
        match threshold {
            Threshold::Amount(bytes) => Quantity::from_bytes(bytes).as_str().to_owned(),
            Threshold::Percent(percent) => format!("{percent}%"),
        }
    }
}

impl Threshold {
    fn of(self, all: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(percent) => all / 100 * u64::from(percent),
        }
    }
}

/// When there is pressure: `eviction` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// `memory.available`
    pub memory: Threshold,
    /// `nodefs.available`
    pub disk: Threshold,
    /// `nodefs.inodesFree`
    pub inodes: Threshold,
}

/// What is left of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// Of this much,
    pub all: u64,
    /// so much.
    pub left: u64,
}

/// What is left of everything that is watched. What could not be read is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Levels {
    /// Memory in bytes.
    pub memory: Level,
    /// Bytes of the data directory's filesystem.
    pub disk: Level,
    /// Files it can hold.
    pub inodes: Level,
}

/// Which resource, in the kubelet's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Memory that can be had without swapping.
    MemoryAvailable,
    /// Bytes of the data directory's filesystem.
    NodefsAvailable,
    /// Files that it can hold.
    NodefsInodesFree,
}

impl Signal {
    /// It is one of the disk.
    pub fn is_of_disk(self) -> bool {
        self != Self::MemoryAvailable
    }

    fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
        }
    }
}

/// The node is short of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// Of what.
    pub signal: Signal,
    left: u64,
    threshold: u64,
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |amount: u64| match self.signal {
            Signal::NodefsInodesFree => amount.to_string(),
            Signal::MemoryAvailable | Signal::NodefsAvailable => size(amount),
        };
        write!(f, "{} is {}, below {}", self.signal.name(), text(self.left), text(self.threshold))
    }
}

/// What the node is short of, memory first.
pub fn shortages(levels: &Levels, thresholds: &Thresholds) -> Vec<Short> {
    let all = [
        (Signal::MemoryAvailable, levels.memory, thresholds.memory),
        (Signal::NodefsAvailable, levels.disk, thresholds.disk),
        (Signal::NodefsInodesFree, levels.inodes, thresholds.inodes),
    ];
    let short = all.into_iter().map(|(signal, level, threshold)| {
        // A filesystem without a number of files has no limit of them.
        let threshold = threshold.of(level.all);
        (level.all > 0 && level.left < threshold).then_some(Short { signal, left: level.left, threshold })
    });
    short.flatten().collect()
}

/// A Workload that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its uid.
    pub uid: String,
    /// `<namespace>/<name>`
    pub title: String,
    /// Higher ones go later.
    pub priority: i32,
    /// What it uses, in bytes.
    pub used: u64,
    /// What it requests, in bytes.
    pub requested: u64,
}

/// Who has to go, as the kubelet has it: first who uses more than requested; of those the lowest priority; of those
/// who uses the most above what is requested.
pub fn first(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|candidate| {
        let above = i128::from(candidate.used) - i128::from(candidate.requested);
        (above <= 0, candidate.priority, Reverse(above), candidate.title.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_parts() {
        let read = |text: &str| Threshold::try_from(text.to_owned());
        for (text, expected) in [
            ("100Mi", Some(Threshold::Amount(100 << 20))),
            ("0", Some(Threshold::Amount(0))),
            ("10%", Some(Threshold::Percent(10))),
            ("101%", None),
            ("%", None),
            ("much", None),
        ] {
            assert_eq!(read(text).ok(), expected, "{text}");
        }
        assert_eq!(String::from(Threshold::Amount(100 << 20)), "100Mi");
        assert_eq!((Threshold::Percent(5).of(200), Threshold::Amount(7).of(200)), (10, 7));
    }

    #[test]
    fn shortages_have_their_numbers() {
        let percent = Threshold::Percent(10);
        let thresholds = Thresholds { memory: Threshold::Amount(100 << 20), disk: percent, inodes: percent };
        let level = |all: u64, left: u64| Level { all, left };
        let fine = Levels { memory: level(1 << 30, 100 << 20), disk: level(1000, 100), inodes: level(0, 0) };
        assert_eq!(shortages(&fine, &thresholds), []);
        let short = Levels { memory: level(1 << 30, 80 << 20), inodes: level(1000, 99), ..fine };
        let told: Vec<String> = shortages(&short, &thresholds).iter().map(Short::to_string).collect();
        assert_eq!(told, ["memory.available is 80.0 MiB, below 100.0 MiB", "nodefs.inodesFree is 99, below 100"]);
    }

    #[test]
    fn the_order_is_the_kubelets() {
        let candidate = |title: &str, priority, used, requested| Candidate {
            uid: title.to_owned(),
            title: title.to_owned(),
            priority,
            used,
            requested,
        };
        let mut all = vec![
            candidate("modest-low", -5, 10, 20),
            candidate("greedy-high", 9, 900, 1),
            candidate("greedy", 0, 50, 20),
            candidate("greedier", 0, 60, 20),
            candidate("modest", 0, 19, 20),
        ];
        let mut order = Vec::new();
        while let Some(next) = first(all.clone()) {
            all.retain(|other| *other != next);
            order.push(next.title);
        }
        assert_eq!(order, ["greedier", "greedy", "greedy-high", "modest-low", "modest"]);
    }
}
