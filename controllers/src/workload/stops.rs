//! Which containers were asked to stop, and when, by the monotonic clock.
//!
//! Lost with the agent: after a restart a container is asked once more and gets its whole grace period again, which
//! is safer than killing it early by a wall clock that may have jumped.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodelet_drivers::ids::ContainerId;

/// The stops under way.
#[derive(Default)]
pub struct Stops {
    begun: Mutex<HashMap<ContainerId, Instant>>,
}

impl Stops {
    /// It is being asked now, unless it was before.
    pub fn begin(&self, id: &ContainerId) {
        self.lock().entry(id.clone()).or_insert_with(Instant::now);
    }

    /// How long ago it was asked.
    pub fn since(&self, id: &ContainerId) -> Option<Duration> {
        self.lock().get(id).map(Instant::elapsed)
    }

    /// It is gone.
    pub fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Instant>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
