//! The loop of every reconciler, written once: watch, queue, back-off, metrics. It is `kube_runtime`'s controller; a
//! kind supplies one function that cannot fail, since its outcome also describes failure.

use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// A controller over all objects of a kind, woken by changes of what is wanted: a status that we write ourselves is no
/// reason to look again, and must not outrun a back-off.
pub fn controller<K>(client: &Client) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let wanted = watcher(Api::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(wish::<K>, Default::default());
    Controller::for_stream(wanted, reader)
}

/// A fingerprint of everything that people and finalizers say about an object, its status left out.
fn wish<K: Resource>(object: &K) -> Option<u64> {
    let meta = object.meta();
    let mut hasher = DefaultHasher::new();
    meta.generation.hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    meta.labels.hash(&mut hasher);
    meta.finalizers.hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    Some(hasher.finish())
}

/// What a pass over one object came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted; an event will tell when that changes.
    Settled,
    /// Under way or waiting: look again at the latest after this long.
    Again(Duration),
    /// Failed; tried again after this long.
    Failed(Duration),
}

/// One kind's reconcile.
pub trait Reconciler: Send + Sync + 'static {
    /// The kind.
    type Kind: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static;

    /// Its name, for logs and metrics.
    const KIND: &'static str;

    /// Brings one object a step nearer to what it should be, writes its status, and says when to look again.
    fn reconcile(ctx: Arc<Context>, object: Arc<Self::Kind>) -> impl Future<Output = Outcome> + Send;
}

/// Runs `R` over every object that `controller` names, until `stop`; passes under way are finished.
pub async fn run<R: Reconciler>(controller: Controller<R::Kind>, ctx: Arc<Context>, stop: CancellationToken)
where
    <R::Kind as Resource>::DynamicType: Debug + Eq + Hash + Clone + Unpin,
{
    // Objects settle on their own; this many at once keeps one that waits for the kernel from holding up the rest.
    let config = Config::default().concurrency(16);
    controller
        .with_config(config)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile_one::<R>, |_, never: &Infallible, _| match *never {}, ctx)
        .for_each(|result| async move {
            match result {
                Ok(_) => {}
                // Deleted between event and pass: nothing to do.
                Err(kube::runtime::controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(kind = R::KIND, error = %crate::context::chain(&error), "watching"),
            }
        })
        .await;
}

async fn reconcile_one<R: Reconciler>(object: Arc<R::Kind>, ctx: Arc<Context>) -> Result<Action, Infallible> {
    let started = Instant::now();
    let name = object_key(&*object);
    let outcome = R::reconcile(ctx.clone(), object).await;
    ctx.metrics.reconcile_seconds.with_label_values(&[R::KIND]).observe(started.elapsed().as_secs_f64());
    let (result, action) = match outcome {
        Outcome::Settled => ("settled", Action::requeue(ctx.settings.audit)),
        Outcome::Again(after) => ("waiting", Action::requeue(after.min(ctx.settings.audit))),
        Outcome::Failed(after) => ("failed", Action::requeue(after)),
    };
    ctx.metrics.reconciles.with_label_values(&[R::KIND, result]).inc();
    tracing::debug!(kind = R::KIND, object = %name, result, took = ?started.elapsed(), "reconciled");
    Ok(action)
}

/// `<namespace>/<name>`, or the name alone for cluster-scoped objects.
pub fn object_key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// A reference to an object by namespace and name.
pub fn object_ref<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectRef<K> {
    ObjectRef::new(name).within(namespace)
}
