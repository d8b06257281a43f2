//! Changes of one kind's objects, told to the controllers of others: one watch, and one reading of each object, serves all.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use tokio::sync::broadcast::{self, error::RecvError};

/// How many changes a controller may be behind before it looks at everything.
const CHANNEL: usize = 256;

/// Every change of an object, as soon as the store has it: additions, deletions, and writes of its status.
pub struct Changes<K> {
    sender: broadcast::Sender<Arc<K>>,
}

impl<K> Clone for Changes<K> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

impl<K: Clone + Send + Sync + 'static> Changes<K> {
    pub(super) fn new() -> Self {
        Self { sender: broadcast::Sender::new(CHANNEL) }
    }

    pub(super) fn tell(&self, event: &Event<K>) {
        if let Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) = event
            && self.sender.receiver_count() > 0
        {
            // Nobody listening any more is fine.
            let _ = self.sender.send(Arc::new(object.clone()));
        }
    }

    /// Objects that changes from now on concern; after missed changes all of `everything`.
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
                Ok(object) => Some((Some(object), changes)),
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
    async fn who_lags_behind_looks_at_everything() {
        let changes = Changes::<Workload>::new();
        let workload = |name: &str| Workload::new(name, Default::default());
        let image = |name: &str| ObjectRef::<Image>::new(name);
        // Nobody listens yet.
        changes.tell(&Event::Apply(workload("early")));
        let concerned = changes
            .concerned(move |workload| workload.metadata.name.as_deref().map(image), move || vec![image("everything")]);
        let mut concerned = Box::pin(concerned);
        changes.tell(&Event::InitApply(workload("first")));
        changes.tell(&Event::InitDone);
        changes.tell(&Event::Apply(workload("changed")));
        changes.tell(&Event::Delete(workload("gone")));
        for name in ["first", "changed", "gone"] {
            assert_eq!(concerned.next().await, Some(image(name)));
        }
        (0..=CHANNEL).for_each(|_| changes.tell(&Event::Apply(workload("many"))));
        assert_eq!(concerned.next().await, Some(image("everything")));
        assert_eq!(concerned.next().await, Some(image("many")));
        drop(changes);
        assert_eq!(concerned.count().await, CHANNEL - 1, "what is left is told, and then no more");
    }
}
