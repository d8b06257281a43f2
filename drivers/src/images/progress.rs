//! Progress of one fetch, summed up from its blobs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::manifest::Digest;
use super::{Phase, Progress};

/// Collects the progress of one fetch; its latest value can be watched by any number of callers.
#[derive(Debug)]
pub(super) struct Tracker {
    state: Mutex<State>,
    latest: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<Digest, u64>,
    progress: Progress,
}

impl Default for Tracker {
    fn default() -> Self {
        Self { state: Mutex::default(), latest: watch::Sender::new(Progress::default()) }
    }
}

impl Tracker {
    /// The latest value, and notice of newer ones.
    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.latest.subscribe()
    }

    /// The latest value.
    pub(super) fn latest(&self) -> Progress {
        self.latest.borrow().clone()
    }

    /// Enters a phase. Phases only go forward.
    pub(super) fn phase(&self, phase: Phase) {
        self.change(|state| {
            if (phase as u8) >= state.progress.phase as u8 {
                state.progress.phase = phase;
            }
        });
    }

    /// The bytes of all blobs are known.
    pub(super) fn total(&self, bytes: u64) {
        self.change(|state| state.progress.bytes_total = bytes);
    }

    /// So many bytes of the blob are on the node, however they came there.
    pub(super) fn blob(&self, digest: &Digest, bytes: u64) {
        self.change(|state| {
            let known = state.blobs.entry(digest.clone()).or_default();
            let before = std::mem::replace(known, bytes);
            let done = state.progress.bytes_done.saturating_sub(before).saturating_add(bytes);
            state.progress.bytes_done = done;
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        // A panic elsewhere cannot leave the state half changed.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        self.latest.send_replace(state.progress.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_summed_and_may_start_again() {
        let tracker = Tracker::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        tracker.total(100);
        tracker.blob(&a, 40);
        tracker.blob(&b, 10);
        tracker.blob(&a, 0);
        tracker.blob(&a, 60);
        tracker.phase(Phase::Unpacking);
        tracker.phase(Phase::Pulling);
        let now = tracker.watch().borrow().clone();
        assert_eq!(now, Progress { phase: Phase::Unpacking, bytes_done: 70, bytes_total: 100 });
    }
}
