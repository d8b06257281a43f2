//! NodeState: what this node has and is doing, written by one task, at most once a second.
//!
//! Reconcilers put their objects' parts into [`NodeReport`]; the task gathers the node's facts, merges, and writes
//! only what changed. What earlier runs of the agent reported and nobody reports any more is dropped once every
//! kind has been looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::api::PostParams;
use kube::{Api, ResourceExt};
use nodelet_crds::common::{Condition, condition_type, now, set_condition};
use nodelet_crds::image::Image as ImageObject;
use nodelet_crds::node_state::{
    ImagePhase, NodeImage, NodeNetwork, NodeResourceLimit, NodeState, NodeStateSpec, NodeStateStatus, NodeTransfer,
};
use nodelet_crds::reasons;
use nodelet_drivers::images::{Image, Phase};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, chain};

/// Two writes of NodeState are at least this far apart: flash wears out, and nobody reads faster.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

type Key = (String, String);

/// This node's parts of shared resources. Cheap to clone.
#[derive(Clone, Default)]
pub struct NodeReport {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    parts: Mutex<Parts>,
    changed: Notify,
}

#[derive(Clone, Default)]
struct Parts {
    images: BTreeMap<Key, NodeImage>,
    networks: BTreeMap<Key, NodeNetwork>,
    resource_limits: BTreeMap<Key, NodeResourceLimit>,
    /// By type and part.
    conditions: BTreeMap<(&'static str, &'static str), (bool, &'static str, String)>,
    transfers: Vec<NodeTransfer>,
}

impl NodeReport {
    /// Takes over what an earlier run of the agent reported.
    pub fn adopt(&self, status: &NodeStateStatus) {
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let mut parts = self.lock();
        parts.images = status.images.iter().map(|p| (key(&p.namespace, &p.name), p.clone())).collect();
        parts.networks = status.networks.iter().map(|p| (key(&p.namespace, &p.name), p.clone())).collect();
        parts.resource_limits =
            status.resource_limits.iter().map(|p| (key(&p.namespace, &p.name), p.clone())).collect();
    }

    /// Reports an Image's part.
    pub fn set_image(&self, part: NodeImage) {
        self.change(|parts| parts.images.insert((part.namespace.clone(), part.name.clone()), part));
    }

    /// An Image's part as last reported, by this run or an earlier one.
    pub fn image(&self, namespace: &str, name: &str) -> Option<NodeImage> {
        self.lock().images.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Replaces the parts that `update` answers for.
    pub fn update_images(&self, update: impl Fn(&NodeImage) -> Option<NodeImage>) {
        self.change(|parts| {
            for part in parts.images.values_mut() {
                if let Some(new) = update(part) {
                    *part = new;
                }
            }
        });
    }

    /// Reports what is on its way to the node.
    pub fn set_transfers(&self, transfers: Vec<NodeTransfer>) {
        self.change(|parts| parts.transfers = transfers);
    }

    /// An Image is gone, or not for this node.
    pub fn forget_image(&self, namespace: &str, name: &str) {
        self.change(|parts| parts.images.remove(&(namespace.to_owned(), name.to_owned())));
    }

    /// Reports a Network's part.
    pub fn set_network(&self, part: NodeNetwork) {
        self.change(|parts| parts.networks.insert((part.namespace.clone(), part.name.clone()), part));
    }

    /// A Network is gone, or not for this node.
    pub fn forget_network(&self, namespace: &str, name: &str) {
        self.change(|parts| parts.networks.remove(&(namespace.to_owned(), name.to_owned())));
    }

    /// A Network's part as last reported.
    pub fn network(&self, namespace: &str, name: &str) -> Option<NodeNetwork> {
        self.lock().networks.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Reports a ResourceLimit's part.
    pub fn set_resource_limit(&self, part: NodeResourceLimit) {
        self.change(|parts| parts.resource_limits.insert((part.namespace.clone(), part.name.clone()), part));
    }

    /// A ResourceLimit is gone, or not for this node.
    pub fn forget_resource_limit(&self, namespace: &str, name: &str) {
        self.change(|parts| parts.resource_limits.remove(&(namespace.to_owned(), name.to_owned())));
    }

    /// Reports a condition of the node itself, such as `ContainerdReady` or `SourcesReady`.
    pub fn set_condition(&self, type_: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) {
        self.set_condition_part(type_, "", holds, reason, message);
    }

    /// The same of one of several who look after it: it holds while it holds for any of them.
    pub fn set_condition_part(
        &self,
        type_: &'static str,
        part: &'static str,
        holds: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let message = message.into();
        self.change(|parts| parts.conditions.insert((type_, part), (holds, reason, message)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Parts) -> T) {
        change(&mut self.lock());
        self.shared.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An Image's part before anything is known.
pub fn image_part(object: &ImageObject) -> NodeImage {
    NodeImage {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        observed_generation: object.metadata.generation,
        reference: object.spec.reference.clone(),
        ..Default::default()
    }
}

/// The part of an Image that is on the node.
pub fn image_ready(part: NodeImage, image: &Image) -> NodeImage {
    NodeImage {
        digest: Some(image.digest.clone()),
        size: Some(image.size),
        phase: ImagePhase::Ready,
        bytes_done: None,
        bytes_total: None,
        bytes_per_second: None,
        seconds_left: None,
        ..part
    }
}

/// The phase as the API names it.
pub fn image_phase(phase: Phase) -> ImagePhase {
    match phase {
        Phase::Resolving => ImagePhase::Resolving,
        Phase::Pulling => ImagePhase::Pulling,
        Phase::Unpacking => ImagePhase::Unpacking,
        Phase::Ready => ImagePhase::Ready,
        Phase::Failed => ImagePhase::Failed,
    }
}

/// Reads what an earlier run left in NodeState, making the object if there is none.
pub async fn load(client: &kube::Client, node: &str) -> Result<NodeState, kube::Error> {
    let api: Api<NodeState> = Api::all(client.clone());
    if let Some(state) = api.get_opt(node).await? {
        return Ok(state);
    }
    match api.create(&PostParams::default(), &NodeState::new(node, NodeStateSpec::default())).await {
        Err(kube::Error::Api(status)) if status.code == 409 => api.get(node).await,
        other => other,
    }
}

/// Writes NodeState whenever a part changed, until `stop`.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut facts = tokio::time::interval(ctx.settings.audit.max(WRITE_INTERVAL));
    loop {
        tokio::select! {
            // All cancel-safe: a lost wake-up is made up for by the next fact pass.
            () = ctx.report.shared.changed.notified() => {}
            _ = facts.tick() => {}
            () = stop.cancelled() => return,
        }
        let wait = match write(&ctx).await {
            Ok(()) => {
                ctx.attempts.succeeded("NodeState", &ctx.settings.node_name);
                WRITE_INTERVAL
            }
            Err(error) => {
                // Also when somebody else's condition was written meanwhile.
                let retry = ctx.attempts.failed("NodeState", &ctx.settings.node_name).max(WRITE_INTERVAL);
                tracing::warn!(retry_in = ?retry, "writing NodeState: {}", chain(&error));
                ctx.report.shared.changed.notify_one();
                retry
            }
        };
        tokio::select! {
            // Cancel-safe: both only wait.
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn write(ctx: &Context) -> Result<(), kube::Error> {
    let object = load(&ctx.client, &ctx.settings.node_name).await?;
    let parts = ctx.report.lock().clone();
    let mut status = object.status.clone().unwrap_or_default();
    crate::node_facts::fill(ctx, &mut status).await;
    status.images = parts.images.into_values().collect();
    status.transfers = parts.transfers;
    status.networks = parts.networks.into_values().collect();
    status.resource_limits = parts.resource_limits.into_values().collect();
    for (type_, (holds, reason, message)) in together(parts.conditions) {
        set_condition(&mut status.conditions, type_, holds, reason, message, object.metadata.generation, now());
    }
    let unready = first_problem(&status.conditions);
    let (ready, reason, message) = match unready {
        None => (true, reasons::READY, String::new()),
        Some(problem) => (false, reasons::NODE_NOT_READY, format!("{}: {}", problem.type_, problem.message)),
    };
    set_condition(
        &mut status.conditions,
        condition_type::READY,
        ready,
        reason,
        message,
        object.metadata.generation,
        now(),
    );
    ctx.write_cluster_status(&object, object.status.as_ref(), &status).await?;
    crate::node_object::publish(ctx, &status).await
}

type Conditions<K> = BTreeMap<K, (bool, &'static str, String)>;

/// The parts of each condition as one.
fn together(parts: Conditions<(&'static str, &'static str)>) -> Conditions<&'static str> {
    let mut whole: Conditions<&'static str> = BTreeMap::new();
    for ((type_, _), (holds, reason, message)) in parts {
        match whole.get_mut(type_) {
            Some((true, _, said)) if holds => *said = format!("{said}; {message}"),
            Some((true, ..)) => {}
            _ => {
                whole.insert(type_, (holds, reason, message));
            }
        }
    }
    whole
}

/// The first condition that keeps the node from being ready.
fn first_problem(conditions: &[Condition]) -> Option<Condition> {
    conditions.iter().find(|c| c.type_ == condition_type::CONTAINERD_READY && c.status != "True").cloned()
}
