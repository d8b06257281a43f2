//! Changes of limits under running containers that are not in force yet, or cannot be.
//!
//! Lost with the agent, which then tries again at once: what is in force is recorded with the container itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodelet_drivers::cgroups::Limits;
use nodelet_drivers::ids::ContainerId;
use serde::Serialize;

use crate::backoff::Backoff;

/// Nothing tells when a container uses less, so it is looked at again, ever less often.
const RETRY: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };

/// The last try to change the limits of a container did not do all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// What was wanted.
    pub wanted: Limits,
    /// A reason constant.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// The next try is in this time; `None`: only another wish makes sense.
    pub rest: Option<Duration>,
}

struct Try {
    wanted: Limits,
    reason: &'static str,
    message: String,
    count: u32,
    next: Option<Instant>,
}

/// The changes that are not in force.
#[derive(Default)]
pub struct Resizes(Mutex<HashMap<ContainerId, Try>>);

impl Resizes {
    /// The wish is in force, or the container is gone.
    pub fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }

    /// The wish is not in force, and is tried again.
    pub fn retry(&self, id: &ContainerId, wanted: &Limits, reason: &'static str, message: String) {
        let mut all = self.lock();
        let count = all.get(id).filter(|before| before.wanted == *wanted).map_or(0, |before| before.count);
        let count = count.saturating_add(1);
        let next = Some(Instant::now() + RETRY.delay(count));
        all.insert(id.clone(), Try { wanted: wanted.clone(), reason, message, count, next });
    }

    /// The wish cannot be fulfilled.
    pub fn refuse(&self, id: &ContainerId, wanted: &Limits, reason: &'static str, message: String) {
        self.lock().insert(id.clone(), Try { wanted: wanted.clone(), reason, message, count: 0, next: None });
    }

    /// What became of the last try.
    pub fn unfinished(&self, id: &ContainerId) -> Option<Unfinished> {
        self.lock().get(id).map(|last| Unfinished {
            wanted: last.wanted.clone(),
            reason: last.reason,
            message: last.message.clone(),
            rest: last.next.map(|next| next.saturating_duration_since(Instant::now())),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Try>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_rarer_until_another_wish() {
        let (resizes, id) = (Resizes::default(), ContainerId::new("web-1").unwrap());
        let wish = |mib: u64| Limits { memory_max: Some(mib << 20), ..Limits::default() };
        let rest = |wanted: &Limits| {
            resizes.retry(&id, wanted, "AboveLimit", String::new());
            resizes.unfinished(&id).unwrap().rest.unwrap()
        };
        let (first, second, other) = (rest(&wish(1)), rest(&wish(1)), rest(&wish(2)));
        assert!(first <= RETRY.first && second > RETRY.first && other <= RETRY.first);
        resizes.refuse(&id, &wish(3), "Infeasible", "no".to_owned());
        assert_eq!(resizes.unfinished(&id).unwrap().rest, None);
        resizes.forget(&id);
        assert_eq!(resizes.unfinished(&id), None);
    }
}
