//! Starts the reconcilers in the right order and stops them again.
//!
//! First the node is read (containers, sandboxes, what NodeState remembers), then the watches begin; so the first
//! pass over a workload already sees what runs, and adopts it.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use nodelet_crds::common::condition_type;
use nodelet_crds::image::Image;
use nodelet_crds::network::Network;
use nodelet_crds::reasons;
use nodelet_crds::resource_limit::ResourceLimit;
use nodelet_crds::volume::Volume;
use nodelet_crds::workload::Workload;
use nodelet_drivers::images::normalize;
use nodelet_drivers::runtime::{Runtime, RuntimeEvent, TaskState};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::context::{Context, Drivers, Settings, Stores, chain};
use crate::controller;
use crate::metrics::Metrics;
use crate::node_state::{self, NodeReport};
use crate::pulls::Pulls;
use crate::workload::containers::ContainerCache;
use crate::workload::probes::Probers;
use crate::workload::refs;
use crate::{eviction, image, image_collector, network, oom, resource_limit, volume, workload};

/// When to look for shims of a containerd that died, after it is back, each from the one before. The programs that it ran
/// for tasks may outlive it by a while.
const ORPHAN_LOOKS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10), Duration::from_secs(30)];

/// The reconcilers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metric's name is taken.
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
    /// The API refuses what exists from the start.
    #[error("creating the default network")]
    Defaults(#[source] kube::Error),
    /// The API does not answer.
    #[error("reading this node's NodeState")]
    NodeState(#[source] kube::Error),
    /// The sandboxes of the node cannot be read.
    #[error("reading the sandboxes of this node")]
    Sandboxes(#[source] nodelet_drivers::sandbox::Error),
}

/// Runs all reconcilers until `shutdown`, then finishes the passes under way. Workloads go on untouched.
pub async fn run(
    client: Client,
    drivers: Drivers,
    settings: Settings,
    metrics: &prometheus::Registry,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let metrics = Metrics::register(metrics)?;
    crate::defaults::ensure(&client).await.map_err(Error::Defaults)?;
    let report = NodeReport::default();
    let state = node_state::load(&client, &settings.node_name).await.map_err(Error::NodeState)?;
    if let Some(status) = &state.status {
        report.adopt(status);
    }

    let every = watcher::Config::default;
    let (workloads, workload_changes) = controller::controller::<Workload>(&client, &shutdown);
    let (images, image_changes) = controller::controller::<Image>(&client, &shutdown);
    let (networks, network_changes) = controller::controller::<Network>(&client, &shutdown);
    let (volumes, volume_changes) = controller::controller::<Volume>(&client, &shutdown);
    let (limits, limit_changes) = controller::controller::<ResourceLimit>(&client, &shutdown);

    let pulls = Pulls::new(drivers.images.clone(), settings.collector.clone(), shutdown.clone());
    let containers = ContainerCache::new(drivers.runtime.clone());
    let stores = Stores {
        workloads: workloads.store(),
        images: images.store(),
        networks: networks.store(),
        resource_limits: limits.store(),
        workloads_read: workload_changes.read_once(),
        images_read: image_changes.read_once(),
        resource_limits_read: limit_changes.read_once(),
    };
    let (wake_workload, woken_workloads) = mpsc::channel::<ObjectRef<Workload>>(1024);
    let probers = Probers::new(wake_workload.clone());
    let ctx = Context::new(client.clone(), drivers, settings, metrics, pulls, containers, report, stores, probers);
    ctx.sandboxes.load(&*ctx.drivers.sandboxes).await.map_err(Error::Sandboxes)?;
    ctx.settings.previews.answer_with(&ctx);
    reserve(&ctx).await;

    let (wake_network, woken_networks) = mpsc::channel::<ObjectRef<Network>>(64);

    let workloads = {
        let (c1, c2, c3, c4, c5, c6) = (ctx.clone(), ctx.clone(), ctx.clone(), ctx.clone(), ctx.clone(), ctx.clone());
        let c7 = ctx.clone();
        let all = || everything(&ctx.stores.workloads);
        workloads
            .watches(Api::<ConfigMap>::all(client.clone()), every(), move |o| refs::users_of_config_map(&c1, &o))
            .watches(Api::<Secret>::all(client.clone()), every(), move |o| refs::users_of_secret(&c2, &o))
            .reconcile_on(volume_changes.concerned(move |o| refs::users_of_volume(&c3, o), all()))
            .reconcile_on(network_changes.concerned(move |o| refs::users_of_network(&c4, o), all()))
            .reconcile_on(limit_changes.concerned(move |o| refs::users_of_limit(&c5, o), all()))
            .reconcile_on(workload_changes.concerned(move |o| refs::dependents_of(&c6, o), all()))
            .reconcile_on(image_changes.concerned(move |o| refs::held_by_image(&c7, o), all()))
            .reconcile_on(ReceiverStream::new(woken_workloads))
            .reconcile_on(pulled(&ctx, |ctx, reference| {
                let state = ctx.stores.workloads.state();
                state
                    .iter()
                    .filter(|w| reference.is_none_or(|r| crate::image_users::uses(w, r)))
                    .map(|w| ObjectRef::from_obj(&**w))
                    .collect()
            }))
    };
    let images = {
        let (c1, c2) = (ctx.clone(), ctx.clone());
        let leaving =
            workload_changes.concerned(move |o| refs::leaving_images_of(&c2, o), everything(&ctx.stores.images));
        images
            .watches(Api::<Secret>::all(client.clone()), every(), move |o| refs::images_with_secret(&c1, &o))
            .reconcile_on(leaving)
            .reconcile_on(pulled(&ctx, |ctx, reference| {
                let state = ctx.stores.images.state();
                state
                    .iter()
                    .filter(|i| reference.is_none_or(|r| normalize(&i.spec.reference).is_ok_and(|other| other == r)))
                    .map(|i| ObjectRef::from_obj(&**i))
                    .collect()
            }))
    };
    let networks = networks.reconcile_on(ReceiverStream::new(woken_networks));
    let mounted = workload_changes.concerned(refs::volumes_of, everything(&volumes.store()));
    let volumes = volumes.reconcile_on(mounted);
    let limits = {
        let c1 = ctx.clone();
        let all = || everything(&ctx.stores.resource_limits);
        limits
            .reconcile_on(workload_changes.concerned(refs::limit_of, all()))
            .reconcile_on(limit_changes.concerned(move |o| refs::limits_around(&c1, o), all()))
    };

    // From now on the watches alone tell, so that nobody waits for one that has ended.
    drop((workload_changes, image_changes, network_changes, volume_changes, limit_changes));
    ctx.evictions.wake_by(wake_workload.clone());
    let runtime_events = ctx.drivers.runtime.events();
    tokio::join!(
        controller::run::<workload::Workloads>(workloads, ctx.clone(), shutdown.clone()),
        controller::run::<image::Images>(images, ctx.clone(), shutdown.clone()),
        controller::run::<network::Networks>(networks, ctx.clone(), shutdown.clone()),
        controller::run::<volume::Volumes>(volumes, ctx.clone(), shutdown.clone()),
        controller::run::<resource_limit::ResourceLimits>(limits, ctx.clone(), shutdown.clone()),
        node_state::run(ctx.clone(), shutdown.clone()),
        image::progress::run(ctx.clone(), shutdown.clone()),
        image::archives::run(ctx.clone(), shutdown.clone()),
        follow_runtime(ctx.clone(), runtime_events, wake_workload.clone(), shutdown.clone()),
        network::events::run(ctx.clone(), wake_network, wake_workload, shutdown.clone()),
        workload::orphans::run(ctx.clone(), shutdown.clone()),
        image_collector::run(ctx.clone(), shutdown.clone()),
        eviction::run(ctx.clone(), shutdown.clone()),
        eviction::sizes::run(ctx.clone(), shutdown.clone()),
        oom::run(ctx.clone(), shutdown.clone()),
        audit(ctx.clone(), shutdown.clone()),
    );
    ctx.pulls.drain().await;
    ctx.image_checks.orderly_stop();
    ctx.probers.clear();
    ctx.tasks.close();
    ctx.tasks.wait().await;
    Ok(())
}

/// All objects of a store, whatever it has by then.
fn everything<K>(store: &Store<K>) -> impl Fn() -> Vec<ObjectRef<K>> + Send + 'static
where
    K: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let store = store.clone();
    move || store.state().iter().map(|object| ObjectRef::from_obj(&**object)).collect()
}

/// Objects concerned by a changed transfer; `None` stands for "any", after missed changes.
fn pulled<K>(
    ctx: &Arc<Context>,
    concerned: impl Fn(&Context, Option<&str>) -> Vec<ObjectRef<K>> + Send + 'static,
) -> impl futures::Stream<Item = ObjectRef<K>> + Send + 'static
where
    K: kube::Resource<DynamicType = ()> + Send + 'static,
{
    let changes = ctx.pulls.changes();
    let ctx = ctx.clone();
    stream::unfold(changes, |mut changes| async move {
        match changes.recv().await {
            Ok(reference) => Some((Some(reference), changes)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some((None, changes)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    })
    .flat_map(move |reference| stream::iter(concerned(&ctx, reference.as_deref())))
}

/// Keeps memory for the system: all Workloads together get what is left. A kernel that refuses is told of; it keeps no
/// Workload from running.
async fn reserve(ctx: &Context) {
    match resource_limit::keep_parent(ctx).await {
        Ok(None) => {}
        Ok(Some(excess)) => tracing::warn!("systemReserved.memory is not kept: {excess}"),
        Err(error) => tracing::warn!("systemReserved.memory is not kept: {}", chain(&error)),
    }
    // No container is being made yet.
    let cgroups = ctx.drivers.cgroups.clone();
    if let Err(error) = crate::blocking(move || cgroups.return_realtime()).await {
        tracing::warn!("time of real-time processes is not returned: {}", chain(&error));
    }
}

/// Keeps the container cache current and wakes the owners of what changed.
async fn follow_runtime(
    ctx: Arc<Context>,
    mut events: mpsc::Receiver<RuntimeEvent>,
    wake: mpsc::Sender<ObjectRef<Workload>>,
    stop: CancellationToken,
) {
    let mut swept = false;
    let mut _orphans = None;
    loop {
        let event = tokio::select! {
            // Cancel-safe: we are leaving.
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            None => return,
            // Whoever made, moved or removed it.
            Some(RuntimeEvent::Image { name }) => ctx.pulls.tell(&name),
            Some(RuntimeEvent::Lost { reason }) => runtime_answers(&ctx, Err(reason)),
            Some(RuntimeEvent::Container { id, topic }) => match ctx.containers.refresh(&id).await {
                Ok(Some(uid)) => {
                    tracing::debug!(container = %id, topic, "container event");
                    wake_by_uid(&ctx, &uid, &wake).await;
                }
                Ok(None) => {}
                // The runtime is away; its return is a Resync.
                Err(error) => tracing::debug!(container = %id, "reading a container: {}", chain(&error)),
            },
            Some(RuntimeEvent::Resync) => {
                if !resync(&ctx, &stop).await {
                    return;
                }
                if !swept {
                    sweep(&*ctx.drivers.runtime).await;
                    swept = true;
                }
                _orphans = Some(AbortOnDropHandle::new(tokio::spawn(end_orphan_shims(ctx.drivers.runtime.clone()))));
                for workload in ctx.stores.workloads.state() {
                    let _ = wake.send(ObjectRef::from_obj(&*workload)).await;
                }
            }
        }
    }
}

/// Reads everything until it succeeds; `false` when stopped meanwhile.
async fn resync(ctx: &Context, stop: &CancellationToken) -> bool {
    let mut failures = 0;
    loop {
        match ctx.containers.resync().await {
            Ok(()) => {
                runtime_answers(ctx, Ok(()));
                return true;
            }
            Err(error) => {
                failures += 1;
                let message = chain(&error);
                tracing::warn!("reading the containers: {message}");
                runtime_answers(ctx, Err(message));
                let delay = Backoff::RETRY.jittered(failures).min(Duration::from_secs(5));
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = stop.cancelled() => return false,
                }
            }
        }
    }
}

/// Tells the node's condition and the agent's readiness.
fn runtime_answers(ctx: &Context, answer: Result<(), String>) {
    ctx.settings.runtime_ready.send_replace(answer.is_ok());
    let (reason, message) = match &answer {
        Ok(()) => (reasons::CONTAINERD_REACHABLE, String::new()),
        Err(message) => (reasons::CONTAINERD_UNAVAILABLE, message.clone()),
    };
    ctx.report.set_condition(condition_type::CONTAINERD_READY, answer.is_ok(), reason, message);
}

/// Looks for what a containerd that died may have left, until nothing of it can be under way any more.
async fn end_orphan_shims(runtime: Arc<dyn Runtime>) {
    for pause in ORPHAN_LOOKS {
        tokio::time::sleep(pause).await;
        runtime.end_orphan_shims().await.iter().for_each(|line| tracing::info!("freed: {line}"));
    }
}

async fn sweep(runtime: &dyn Runtime) {
    match runtime.sweep().await {
        Ok(freed) => freed.iter().for_each(|line| tracing::info!("freed: {line}")),
        Err(error) => tracing::warn!("freeing what an earlier crash left: {}", chain(&error)),
    }
}

async fn wake_by_uid(ctx: &Context, uid: &str, wake: &mpsc::Sender<ObjectRef<Workload>>) {
    // Probes end with their container, whoever ended it.
    if let Some(all) = ctx.containers.all() {
        let alive = |id: &_| all.iter().any(|c| c.id == *id && matches!(c.state, TaskState::Running { .. }));
        ctx.probers.retain(alive);
    }
    if let Some(workload) = ctx.workload_by_uid(uid) {
        let _ = wake.send(ObjectRef::from_obj(&*workload)).await;
    }
}

/// The slow pass over what no event told: reads all containers again.
async fn audit(ctx: Arc<Context>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(ctx.settings.audit);
    tick.tick().await;
    loop {
        tokio::select! {
            // Cancel-safe: both only wait.
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = ctx.containers.resync().await {
            tracing::warn!("audit: {}", chain(&error));
        }
        count_phases(&ctx);
    }
}

fn count_phases(ctx: &Context) {
    ctx.metrics.workloads.reset();
    for workload in ctx.stores.workloads.state() {
        let phase = workload.status.as_ref().and_then(|s| s.phase).map_or("Pending", |p| p.as_str());
        ctx.metrics.workloads.with_label_values(&[phase]).inc();
        tracing::trace!(workload = %workload.name_any(), phase);
    }
}
