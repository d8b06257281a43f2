//! How often in a row an object's reconcile failed, and so how long to wait before the next.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::backoff::Backoff;

/// Failures in a row, by kind and object. Lost with the agent, which then tries at once.
#[derive(Default)]
pub struct Attempts {
    failures: Mutex<HashMap<(&'static str, String), u32>>,
}

impl Attempts {
    /// It failed once more: the delay before the next try.
    pub fn failed(&self, kind: &'static str, object: &str) -> Duration {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry((kind, object.to_owned())).or_insert(0);
        *count = count.saturating_add(1);
        Backoff::RETRY.jittered(*count)
    }

    /// It succeeded, was edited, or is gone.
    pub fn succeeded(&self, kind: &'static str, object: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&(kind, object.to_owned()));
    }
}
