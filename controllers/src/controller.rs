//! The loop of every reconciler, written once: watch, queue, back-off, metrics. It is `kube_runtime`'s controller; a
//! kind supplies one pass over an object, and what to report when that failed.

use std::convert::Infallible;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::EventType;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use nodelet_drivers::room;

use crate::context::{Context, chain};

mod changes;

pub use changes::{Changes, ReadOnce};

/// Nothing tells when a full file system has room again; a look costs little.
const ROOM_AGAIN: Duration = Duration::from_secs(15);

/// A controller over all objects of a kind, woken by changes of what is wanted: a status that we write ourselves is no
/// reason to look again, and must not outrun a back-off.
///
/// What the watch tells goes to the [`Changes`] as well: everything but the managed fields, which are much of a Workload's
/// memory and concern the API server only. An object from the store is for patches, never for a replacement.
pub fn controller<K>(client: &Client, stop: &CancellationToken) -> (Controller<K>, Changes<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let changes = Changes::new(stop.clone());
    let told = changes.clone();
    let wanted = watcher(Api::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(|object: &mut K| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .inspect_ok(move |event| told.tell(event))
        .applied_objects()
        .predicate_filter(wish::<K>, Default::default());
    (Controller::for_stream(wanted, reader), changes)
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

    /// Why a pass failed: for a reason of the node or the API. What only an edit can mend is no error, but a status.
    type Error: std::error::Error + Send + 'static;

    /// Its name, for logs and metrics.
    const KIND: &'static str;

    /// Brings one object a step nearer to what it should be, writes its status, and says when to look again.
    fn pass(ctx: &Arc<Context>, object: &Self::Kind) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;

    /// The reason constant for `error`, as conditions and Events give it.
    fn reason(error: &Self::Error) -> &'static str;

    /// Writes into the status that a pass failed; `message` says why and when the next try is.
    fn publish_failure(
        ctx: &Context,
        object: &Self::Kind,
        reason: &'static str,
        message: String,
    ) -> impl Future<Output = ()> + Send;
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
    let outcome = reconcile::<R>(&ctx, &object, &name).await;
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

/// A pass whose failure is logged, told in an Event and in the status, and tried again later and later.
async fn reconcile<R: Reconciler>(ctx: &Arc<Context>, object: &R::Kind, key: &str) -> Outcome {
    let error = match R::pass(ctx, object).await {
        Ok(outcome) => {
            ctx.attempts.succeeded(R::KIND, key);
            return outcome;
        }
        Err(error) => error,
    };
    let retry = ctx.attempts.failed(R::KIND, key);
    let retry = if room::is_lacking(&error) { retry.min(ROOM_AGAIN) } else { retry };
    let (reason, cause) = (R::reason(&error), chain(&error));
    let message = format!("{cause}; next try in {} s", retry.as_secs() + 1);
    tracing::warn!(kind = R::KIND, object = key, "reconcile failed: {message}");
    // Without the time, so that the same failure again is the same Event.
    ctx.event(object, EventType::Warning, reason, cause).await;
    R::publish_failure(ctx, object, reason, message).await;
    Outcome::Failed(retry)
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
