//! What every reconciler is given: the API, the drivers, the settings, and the shared helpers around them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::EventType;
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use nodelet_crds::image::Image as ImageObject;
use nodelet_crds::network::Network;
use nodelet_crds::resource_limit::ResourceLimit;
use nodelet_crds::workload::Workload;
use nodelet_drivers::cgroups::Cgroups;
use nodelet_drivers::images::Images;
use nodelet_drivers::network::Networks;
use nodelet_drivers::runtime::{CREATIONS_PER_CPU, Runtime};
use nodelet_drivers::sandbox::Sandboxes;
use nodelet_drivers::volumes::Volumes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::attempts::Attempts;
use crate::backoff::RestartBackoff;
use crate::controller::ReadOnce;
use crate::events::Recorder;
use crate::eviction::{EvictionSettings, Evictions};
use crate::image::archives::Archives;
use crate::image::refresh::Refreshes;
use crate::image_checks::ImageChecks;
use crate::image_collector::Collector;
use crate::metrics::Metrics;
use crate::node_state::NodeReport;
use crate::pulls::Pulls;
use crate::workload::containers::ContainerCache;
use crate::workload::files::Written;
use crate::workload::fit::{Amounts, Places};
use crate::workload::preview::Previews;
use crate::workload::probes::Probers;
use crate::workload::resizes::Resizes;
use crate::workload::revisions::Histories;
use crate::workload::sandboxes::SandboxIndex;
use crate::workload::stops::Stops;

/// The field manager of everything that controllers write.
pub const FIELD_MANAGER: &str = "nodelet";

/// The node, behind its driver traits.
#[derive(Clone)]
pub struct Drivers {
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Images and their transfers.
    pub images: Arc<dyn Images>,
    /// The namespaces that the containers of a Workload share.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Networks, attachments, published ports and names.
    pub networks: Arc<dyn Networks>,
    /// Volumes, and the directories of sandboxes.
    pub volumes: Arc<dyn Volumes>,
    /// The cgroups of ResourceLimits and Workloads.
    pub cgroups: Arc<dyn Cgroups>,
}

/// What the configuration says that concerns reconcilers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of this node.
    pub node_name: String,
    /// Its labels, for node selectors.
    pub node_labels: BTreeMap<String, String>,
    /// Directory of what survives a reboot.
    pub data_dir: PathBuf,
    /// Directory of what does not.
    pub run_dir: PathBuf,
    /// How often everything is looked at although no event asked for it.
    pub audit: Duration,
    /// nodelet's version.
    pub version: String,
    /// Told whether the container runtime answers, for the readiness of the agent.
    pub runtime_ready: watch::Sender<bool>,
    /// CPUs of the node and its memory in bytes.
    pub capacity: (u32, u64),
    /// What of that is not for Workloads.
    pub system_reserved: Amounts,
    /// How soon containers that ended are started again, where their Workload says nothing.
    pub restart_backoff: RestartBackoff,
    /// When Workloads have to go.
    pub eviction: EvictionSettings,
    /// Removes images that nobody needs.
    pub collector: Collector,
    /// Tells what would be done.
    pub previews: Previews,
}

impl Settings {
    /// What Workloads may request together.
    pub fn allocatable(&self) -> Amounts {
        let (cpus, memory_bytes) = self.capacity;
        Amounts { cpu_millis: u64::from(cpus) * 1000, memory_bytes }.without(self.system_reserved)
    }
}

/// The objects of the API, kept current by the watches.
pub struct Stores {
    /// All Workloads.
    pub workloads: Store<Workload>,
    /// All Images.
    pub images: Store<ImageObject>,
    /// All Networks.
    pub networks: Store<Network>,
    /// All ResourceLimits.
    pub resource_limits: Store<ResourceLimit>,
    /// Whether all Workloads have been read.
    pub workloads_read: ReadOnce,
    /// Whether all Images have been read.
    pub images_read: ReadOnce,
    /// Whether all ResourceLimits have been read.
    pub resource_limits_read: ReadOnce,
}

/// Given to every reconcile.
pub struct Context {
    /// The API, embedded or a cluster's.
    pub client: Client,
    /// The node.
    pub drivers: Drivers,
    /// The configuration.
    pub settings: Settings,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Image transfers under way, shared by Images and Workloads.
    pub pulls: Pulls,
    /// When Images are resolved anew.
    pub refreshes: Refreshes,
    /// Images that the drop-in directory holds.
    pub archives: Archives,
    /// The containers of our namespace, kept current by events.
    pub containers: ContainerCache,
    /// This node's part of shared resources, on its way into NodeState.
    pub report: NodeReport,
    /// Objects seen by the watches.
    pub stores: Stores,
    /// Failures in a row.
    pub attempts: Attempts,
    /// Which sandboxes belong to whom.
    pub sandboxes: SandboxIndex,
    /// Which Workloads have their place on the node.
    pub places: Places,
    /// Which Workloads had to go.
    pub evictions: Evictions,
    /// Stops under way.
    pub stops: Stops,
    /// Changes of limits that are not in force.
    pub resizes: Resizes,
    /// Revisions to go back to, and updates under way.
    pub histories: Histories,
    /// Probing tasks.
    pub probers: Probers,
    /// Files that were written.
    pub written: Written,
    /// Images in doubt.
    pub(crate) image_checks: ImageChecks,
    /// Turns at creating and starting a container.
    pub starts: Semaphore,
    /// Hooks under way; finished before the agent ends.
    pub tasks: TaskTracker,
    recorder: Recorder,
}

impl Context {
    #[allow(clippy::too_many_arguments, reason = "called once, by the wiring")]
    pub(crate) fn new(
        client: Client,
        drivers: Drivers,
        settings: Settings,
        metrics: Metrics,
        pulls: Pulls,
        containers: ContainerCache,
        report: NodeReport,
        stores: Stores,
        probers: Probers,
    ) -> Arc<Self> {
        let boot_file = settings.data_dir.join("boot.json");
        let image_checks = ImageChecks::load(boot_file, &nodelet_drivers::host::facts().boot_id);
        let recorder = Recorder::new(client.clone(), settings.node_name.clone());
        let parallel = std::thread::available_parallelism().map_or(2, usize::from);
        let histories = Histories::new(&settings.data_dir);
        Arc::new(Self {
            client,
            histories,
            drivers,
            settings,
            metrics,
            pulls,
            refreshes: Refreshes::default(),
            archives: Archives::default(),
            containers,
            report,
            stores,
            attempts: Attempts::default(),
            sandboxes: SandboxIndex::default(),
            places: Places::default(),
            evictions: Evictions::default(),
            stops: Stops::default(),
            resizes: Resizes::default(),
            probers,
            written: Written::default(),
            image_checks,
            starts: Semaphore::new(CREATIONS_PER_CPU * parallel),
            tasks: TaskTracker::new(),
            recorder,
        })
    }

    /// The workload with this uid, if the API has it.
    pub fn workload_by_uid(&self, uid: &str) -> Option<Arc<Workload>> {
        self.stores.workloads.find(|w| w.metadata.uid.as_deref() == Some(uid))
    }

    /// The wall clock. Only for times that people read and for comparing with such times; durations that matter
    /// are clamped where they are computed, since the clock may be wrong by decades.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Publishes an Event about `object`; repetitions are counted, not repeated. Failing to publish is logged only.
    pub async fn event<K>(&self, object: &K, type_: EventType, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        if let Err(error) = self.recorder.publish(object.object_ref(&()), type_, reason, &note).await {
            tracing::warn!(error = %chain(&error), reason, "publishing an event");
        }
    }

    /// Writes `status` of `object` unless it is what the object has already: unchanged status wears no flash.
    ///
    /// Returns whether it was written. An object that is gone by now is a success.
    pub async fn write_status<K, S>(&self, object: &K, current: Option<&S>, status: &S) -> Result<bool, kube::Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + NamespacedOrNot,
        S: Serialize + PartialEq,
    {
        if current == Some(status) {
            return Ok(false);
        }
        self.patch_status(K::api(&self.client, object.namespace().as_deref()), object, status, false).await
    }

    /// [`Context::write_status`] for a cluster-scoped object; fails if somebody else changed it since it was read.
    pub async fn write_cluster_status<K, S>(
        &self,
        object: &K,
        current: Option<&S>,
        status: &S,
    ) -> Result<bool, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope> + Clone + DeserializeOwned + Debug,
        S: Serialize + PartialEq,
    {
        if current == Some(status) {
            return Ok(false);
        }
        self.patch_status(Api::all(self.client.clone()), object, status, true).await
    }

    async fn patch_status<K, S>(&self, api: Api<K>, object: &K, status: &S, guarded: bool) -> Result<bool, kube::Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
        S: Serialize,
    {
        // Replaced whole: a field that the new status no longer has must not stay behind.
        let mut patch = vec![serde_json::json!({
            "op": "add", "path": "/status", "value": serde_json::to_value(status).map_err(kube::Error::SerdeError)?,
        })];
        if guarded {
            let version = object.resource_version();
            patch.insert(0, serde_json::json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
        }
        let patch = serde_json::from_value(patch.into()).map_err(kube::Error::SerdeError)?;
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        match api.patch_status(&object.name_any(), &params, &Patch::<()>::Json(patch)).await {
            Ok(_) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Where objects of a kind are found: in a namespace, or in the cluster.
pub trait NamespacedOrNot: Resource<DynamicType = ()> + Sized {
    /// The API for objects of this kind in `namespace` (ignored for cluster-scoped kinds).
    fn api(client: &Client, namespace: Option<&str>) -> Api<Self>;
}

impl<K> NamespacedOrNot for K
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    fn api(client: &Client, namespace: Option<&str>) -> Api<Self> {
        Api::namespaced(client.clone(), namespace.unwrap_or("default"))
    }
}

/// The API answered that the object does not exist (any more).
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// The object, or `None` when the API says that it does not exist.
pub async fn find<K>(client: &Client, namespace: &str, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + NamespacedOrNot,
{
    K::api(client, Some(namespace)).get_opt(name).await
}

/// Adds or takes away a finalizer of ours by a JSON patch that fails if somebody else changed the list meanwhile.
pub async fn set_finalizer<K>(client: &Client, object: &K, finalizer: &str, present: bool) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + NamespacedOrNot,
{
    let before = object.finalizers().to_vec();
    let mut after = before.clone();
    after.retain(|f| f != finalizer);
    if present {
        after.push(finalizer.to_owned());
    }
    if after == before {
        return Ok(());
    }
    let api: Api<K> = K::api(client, object.namespace().as_deref());
    let patch = serde_json::json!({
        "metadata": { "finalizers": after, "resourceVersion": object.resource_version() }
    });
    let result = api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    nodelet_drivers::failpoint::passed("changing the finalizers of an object");
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// An error with all its causes as one line, for where it leaves the process: log lines, conditions, events.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let own = match error.downcast_ref() {
            // By itself it would add all that the server sent, as Rust prints it.
            Some(kube::Error::Api(status)) => {
                next = None;
                status.message.clone()
            }
            _ => {
                next = error.source();
                error.to_string()
            }
        };
        // Some libraries print their cause and expose it too; saying it once is enough.
        if text.is_empty() {
            text = own;
        } else if !text.ends_with(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
    }
    text
}
