//! Asking registries what a tag stands for now, off the reconcile's path: a pass asks, and is woken by the answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use nodelet_drivers::images::Fetch;
use tokio::sync::Semaphore;

use super::{Entry, FailureKind, Key, Pulls, kind_of};
use crate::context::chain;

/// Questions that are asked at once.
const AT_ONCE: usize = 4;

/// The registry did not say what a tag stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// The cause chain.
    pub message: String,
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// The registry wants to be left alone for so long.
    pub retry_after: Option<Duration>,
}

/// Questions and answers.
pub(super) struct Resolves {
    entries: Mutex<HashMap<Key, Poll<Result<String, Unresolved>>>>,
    permits: Arc<Semaphore>,
}

impl Default for Resolves {
    fn default() -> Self {
        Self { entries: Mutex::default(), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Pulls {
    /// The digest that the reference stands for in its registry. The first call asks; a later one takes the answer,
    /// of which [`Pulls::changes`] tells. Transfers nothing.
    pub fn resolve(&self, fetch: &Fetch) -> Poll<Result<String, Unresolved>> {
        let key = Key::of(fetch);
        let resolves = &self.shared.resolves;
        let mut entries = resolves.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.get(&key) {
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(_)) => return entries.remove(&key).unwrap_or(Poll::Pending),
            None => {}
        }
        entries.insert(key.clone(), Poll::Pending);
        drop(entries);
        let (pulls, fetch) = (self.clone(), fetch.clone());
        self.shared.tasks.spawn(async move {
            let answer = tokio::select! {
                // Cancel-safe: asking leaves nothing behind.
                answer = pulls.ask(&fetch) => answer,
                () = pulls.shared.stop.cancelled() => return,
            };
            if answer.is_err() {
                pulls.outdate(&key);
            }
            let mut entries = pulls.shared.resolves.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.insert(key.clone(), Poll::Ready(answer));
            drop(entries);
            let _ = pulls.shared.changed.send(key.reference);
        });
        Poll::Pending
    }

    /// What the registry said before it stopped answering is no news any more: who insists on an answer asks anew.
    fn outdate(&self, key: &Key) {
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(entries.get(key), Some(Entry::Done { .. })) {
            entries.remove(key);
        }
    }

    async fn ask(&self, fetch: &Fetch) -> Result<String, Unresolved> {
        // Never closed.
        let _permit = self.shared.resolves.permits.acquire().await;
        self.shared.images.resolve(fetch).await.map_err(|error| {
            let retry_after = error.retry_after();
            let message = chain(&error);
            Unresolved { message, kind: kind_of(&error.into()), retry_after }
        })
    }
}
