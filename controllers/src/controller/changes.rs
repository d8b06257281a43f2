//! Changes of one kind's objects, told to the controllers of others: one watch, and one reading of each object, serves all.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How many changes a controller may be behind before it looks at everything.
const CHANNEL: usize = 256;

/// Every change of an object, as soon as the store has it: additions, deletions, and writes of its status. When all objects
/// have been read, at the start or anew, that is one change of all: what was deleted meanwhile is not told by itself.
pub struct Changes<K> {
    sender: broadcast::Sender<Option<Arc<K>>>,
    read: watch::Sender<bool>,
    stop: CancellationToken,
}

impl<K> Clone for Changes<K> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), read: self.read.clone(), stop: self.stop.clone() }
    }
}

/// Tells when all objects of a kind have been read once. Any number of tasks may wait for it; kube's
/// `Store::wait_until_ready` wakes the last of them only.
#[derive(Clone)]
pub struct ReadOnce {
    read: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl ReadOnce {
    /// Waits for it; `false` when the agent stops before.
    pub async fn wait(&self) -> bool {
        let mut read = self.read.clone();
        tokio::select! {
            // Cancel-safe: both only wait. What has been read stays read while the agent stops.
            biased;
            read = read.wait_for(|read| *read) => read.is_ok(),
            () = self.stop.cancelled() => false,
        }
    }
}

impl<K: Clone + Send + Sync + 'static> Changes<K> {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { sender: broadcast::Sender::new(CHANNEL), read: watch::Sender::new(false), stop }
    }

    /// To wait for the first of them.
    pub fn read_once(&self) -> ReadOnce {
        ReadOnce { read: self.read.subscribe(), stop: self.stop.clone() }
    }

    pub(super) fn tell(&self, event: &Event<K>) {
        if let Event::InitDone = event {
            self.read.send_replace(true);
        }
        if self.sender.receiver_count() == 0 {
            return;
        }
        let change = match event {
            Event::Apply(object) | Event::Delete(object) => Some(Arc::new(object.clone())),
            Event::InitDone => None,
            // The store takes over all of them at once, when they are complete.
            Event::Init | Event::InitApply(_) => return,
        };
        // Nobody listening any more is fine.
        let _ = self.sender.send(change);
    }

    /// Objects that changes from now on concern; all of `everything` when all have changed, or changes were missed.
    pub fn concerned<O, M>(
        &self,
        map: impl Fn(&K) -> M + Send + 'static,
        everything: impl Fn() -> Vec<ObjectRef<O>> + Send + 'static,
    ) -> impl Stream<Item = ObjectRef<O>> + Send + 'static
    where
        O: kube::Resource<DynamicType = ()> + 'static,
        ObjectRef<O>: Send,
        M: IntoIterator<Item = ObjectRef<O>>,
    {
        let changes = self.sender.subscribe();
        let told = stream::unfold(changes, |mut changes| async move {
            match changes.recv().await {
                Ok(change) => Some((change, changes)),
                Err(RecvError::Lagged(_)) => Some((None, changes)),
                Err(RecvError::Closed) => None,
            }
        });
        told.flat_map(move |object| {
            stream::iter(match object {
                Some(object) => map(&object).into_iter().collect(),
                None => everything(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodelet_crds::image::Image;
    use nodelet_crds::workload::Workload;

    #[tokio::test]
    async fn changes_are_told_and_who_cannot_be_told_looks_at_everything() {
        let changes = Changes::<Workload>::new(CancellationToken::new());
        let workload = |name: &str| Workload::new(name, Default::default());
        let image = |name: &str| ObjectRef::<Image>::new(name);
        // Nobody listens yet.
        changes.tell(&Event::Apply(workload("early")));
        let concerned = changes
            .concerned(move |workload| workload.metadata.name.as_deref().map(image), move || vec![image("everything")]);
        let mut concerned = Box::pin(concerned);
        changes.tell(&Event::Init);
        changes.tell(&Event::InitApply(workload("not in the store yet")));
        changes.tell(&Event::InitDone);
        changes.tell(&Event::Apply(workload("changed")));
        changes.tell(&Event::Delete(workload("gone")));
        for name in ["everything", "changed", "gone"] {
            assert_eq!(concerned.next().await, Some(image(name)));
        }
        (0..=CHANNEL).for_each(|_| changes.tell(&Event::Apply(workload("many"))));
        assert_eq!(concerned.next().await, Some(image("everything")));
        assert_eq!(concerned.next().await, Some(image("many")));
        assert!(changes.read_once().wait().await);
        drop(changes);
        assert_eq!(concerned.count().await, CHANNEL - 1, "what is left is told, and then no more");
    }

    #[tokio::test]
    async fn all_who_wait_are_woken() {
        let changes = Changes::<Workload>::new(CancellationToken::new());
        let waiting: Vec<_> =
            (0..3).map(|_| changes.read_once()).map(|read| tokio::spawn(async move { read.wait().await })).collect();
        tokio::task::yield_now().await;
        changes.tell(&Event::InitDone);
        for task in waiting {
            assert!(task.await.unwrap());
        }
        let late = Changes::<Workload>::new(CancellationToken::new()).read_once();
        assert!(!late.wait().await, "who would have told is gone");
        let stop = CancellationToken::new();
        let changes = Changes::<Workload>::new(stop.clone());
        stop.cancel();
        assert!(!changes.read_once().wait().await, "the agent stops");
        changes.tell(&Event::InitDone);
        for _ in 0..100 {
            assert!(changes.read_once().wait().await, "passes under way are finished");
        }
    }
}
