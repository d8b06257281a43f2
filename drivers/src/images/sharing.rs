//! One piece of work, many who wait for it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio_util::task::AbortOnDropHandle;

/// Work in progress by key. The work runs in a task of its own and ends when the last who wait for it are gone;
/// `V` travels beside it and says what the work is about, for example where to watch its progress.
#[derive(Debug)]
pub(super) struct Sharing<K, V, T: Clone> {
    running: Mutex<HashMap<K, Running<V, T>>>,
}

type Running<V, T> = (V, WeakShared<BoxFuture<'static, T>>);

/// A place in the queue of those who wait. Awaiting it gives the result.
pub(super) struct Joined<V, T: Clone> {
    /// Whether this call started the work.
    pub(super) started: bool,
    /// What the work is about.
    pub(super) about: V,
    /// The result.
    pub(super) result: Shared<BoxFuture<'static, T>>,
}

impl<K, V, T: Clone> Default for Sharing<K, V, T> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<K: Eq + Hash, V: Clone, T: Clone + Send + Sync + 'static> Sharing<K, V, T> {
    /// Joins the running work of that key or starts it. `lost` is the result should the work panic.
    pub(super) fn join<F>(&self, key: K, lost: fn(String) -> T, start: impl FnOnce() -> (V, F)) -> Joined<V, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Finished work must not be joined: its result may be out of date.
        let mut alive = None;
        running.retain(|other, (about, work)| match work.upgrade() {
            Some(work) if work.peek().is_none() => {
                if *other == key {
                    alive = Some((about.clone(), work));
                }
                true
            }
            _ => false,
        });
        if let Some((about, result)) = alive {
            return Joined { started: false, about, result };
        }
        let (about, work) = start();
        let task = AbortOnDropHandle::new(tokio::spawn(work));
        let result = async move { task.await.unwrap_or_else(|e| lost(e.to_string())) }.boxed().shared();
        if let Some(weak) = result.downgrade() {
            running.insert(key, (about.clone(), weak));
        }
        Joined { started: true, about, result }
    }

    /// Whether any running work satisfies the condition.
    pub(super) fn any(&self, mut condition: impl FnMut(&K) -> bool) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().any(|(key, (_, work))| condition(key) && work.upgrade().is_some_and(|w| w.peek().is_none()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn work_is_shared_while_it_runs_and_done_anew_after() {
        let sharing = Sharing::<&str, (), Result<usize, String>>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let (go, gate) = tokio::sync::watch::channel(false);
        let work = || {
            let (runs, mut gate) = (runs.clone(), gate.clone());
            ((), async move {
                let _ = gate.wait_for(|open| *open).await;
                Ok(runs.fetch_add(1, Ordering::SeqCst))
            })
        };
        let first = sharing.join("a", Err, work);
        let second = sharing.join("a", Err, work);
        assert!(first.started && !second.started);
        go.send_replace(true);
        assert_eq!(first.result.clone().await, Ok(0));
        assert_eq!(second.result.await, Ok(0));
        let third = sharing.join("a", Err, work);
        assert!(third.started, "the finished work of a result that is still held is not joined");
        assert_eq!(third.result.await, Ok(1));
    }

    #[tokio::test]
    async fn work_ends_with_its_last_waiter() {
        let sharing = Sharing::<&str, (), Result<(), String>>::default();
        let (alive, mut ended) = tokio::sync::watch::channel(());
        let first = sharing.join("a", Err, || {
            ((), async move {
                let _alive = alive;
                std::future::pending().await
            })
        });
        let second = sharing.join("a", Err, || ((), async { Ok(()) }));
        drop(first);
        assert!(sharing.any(|key| *key == "a"));
        drop(second);
        assert!(ended.changed().await.is_err(), "the task is gone");
        assert!(!sharing.any(|_| true));
    }

    #[tokio::test]
    async fn a_panic_is_a_result() {
        let sharing = Sharing::<&str, (), Result<(), String>>::default();
        let joined = sharing.join("a", Err, || ((), async { panic!("boom") }));
        assert!(joined.result.await.unwrap_err().contains("panic"));
    }
}
