//! A whole node in memory: the real API server in this process, the real reconcilers, fake drivers. What a user
//! would declare goes in; what they would see comes out.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, ResourceExt};
use nodelet_apiserver::Server;
use nodelet_controllers::eviction::{EvictionSettings, Threshold, Thresholds};
use nodelet_controllers::image_collector::{Collector, Marks};
use nodelet_controllers::{Drivers, Settings};
use nodelet_crds::common::{find_condition, is_true};
use nodelet_crds::image::Image as ImageObject;
use nodelet_crds::network::Network;
use nodelet_crds::node_state::NodeState;
use nodelet_crds::resource_limit::ResourceLimit;
use nodelet_crds::volume::Volume;
use nodelet_crds::workload::{Workload, WorkloadPhase};
use nodelet_drivers::cgroups::fake::FakeCgroups;
use nodelet_drivers::ids::{CgroupPath, ContainerId};
use nodelet_drivers::images::{Fetch, Images, Source};
use nodelet_drivers::network::Networks;
use nodelet_drivers::network::fake::FakeNetworks;
use nodelet_drivers::runtime::Runtime;
use nodelet_drivers::runtime::fake::FakeRuntime;
use nodelet_drivers::sandbox::Sandboxes;
use nodelet_drivers::sandbox::fake::FakeSandboxes;
use nodelet_drivers::volumes::fake::FakeVolumes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use instant_images::InstantImages;

struct TestNode {
    client: Client,
    runtime: Arc<FakeRuntime>,
    images: Arc<InstantImages>,
    networks: Arc<FakeNetworks>,
    sandboxes: Arc<FakeSandboxes>,
    server: Server,
    drivers: Drivers,
    directory: tempfile::TempDir,
    collector: Collector,
    agent: Mutex<Option<(CancellationToken, tokio::task::JoinHandle<()>)>>,
}

impl TestNode {
    async fn start() -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = nodelet_apiserver::Options { store: directory.path().join("store.db"), ..Default::default() };
        let server = Server::open(options, nodelet_crds::crds()).unwrap();
        let runtime = Arc::new(FakeRuntime::new());
        let images = Arc::new(InstantImages {
            runtime: runtime.clone(),
            present: Mutex::default(),
            pushes: Mutex::default(),
            fetches: Mutex::default(),
            resolved: watch::Sender::new(0),
        });
        let networks = Arc::new(FakeNetworks::new());
        let sandboxes = Arc::new(FakeSandboxes::new(directory.path().join("run")));
        let drivers = Drivers {
            runtime: runtime.clone(),
            images: images.clone(),
            sandboxes: sandboxes.clone(),
            networks: networks.clone(),
            volumes: Arc::new(FakeVolumes::new(directory.path().join("data"), directory.path().join("run"))),
            cgroups: Arc::new(FakeCgroups::new(CgroupPath::new("/nodelet").unwrap())),
        };
        let client = server.client("default");
        let node = Arc::new(Self {
            client,
            runtime,
            images,
            networks,
            sandboxes,
            server,
            drivers,
            directory,
            collector: Collector::new(Marks { high_percent: 85, low_percent: 80, min_age: Duration::ZERO }),
            agent: Mutex::default(),
        });
        node.start_agent();
        node
    }

    fn start_agent(&self) {
        let stop = CancellationToken::new();
        let settings = Settings {
            node_name: "edge".to_owned(),
            node_labels: BTreeMap::new(),
            data_dir: self.directory.path().join("data"),
            run_dir: self.directory.path().join("run"),
            audit: Duration::from_secs(3600),
            version: "0".to_owned(),
            runtime_ready: tokio::sync::watch::Sender::new(false),
            collector: self.collector.clone(),
            previews: Default::default(),
            capacity: (2, 1 << 30),
            system_reserved: Default::default(),
            eviction: EvictionSettings {
                thresholds: Thresholds {
                    memory: Threshold::Amount(0),
                    disk: Threshold::Amount(0),
                    inodes: Threshold::Amount(0),
                },
                transition: Duration::ZERO,
            },
            restart_backoff: Default::default(),
        };
        let (client, drivers, token) = (self.server.client("default"), self.drivers.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let registry = prometheus::Registry::new();
            Box::pin(nodelet_controllers::run(client, drivers, settings, &registry, token)).await.unwrap();
        });
        *self.agent.lock().unwrap() = Some((stop, task));
    }

    async fn stop_agent(&self) {
        let (stop, task) = self.agent.lock().unwrap().take().unwrap();
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), task).await.expect("the agent stops").unwrap();
    }

    async fn apply(&self, manifest: serde_json::Value) {
        let (kind, name) = (manifest["kind"].as_str().unwrap(), manifest["metadata"]["name"].as_str().unwrap());
        let params = PatchParams::apply("test").force();
        let patch = Patch::Apply(&manifest);
        match kind {
            "Workload" => drop(self.api::<Workload>().patch(name, &params, &patch).await.unwrap()),
            "Volume" => drop(self.api::<Volume>().patch(name, &params, &patch).await.unwrap()),
            "Image" => drop(self.api::<ImageObject>().patch(name, &params, &patch).await.unwrap()),
            "ResourceLimit" => drop(self.api::<ResourceLimit>().patch(name, &params, &patch).await.unwrap()),
            "ConfigMap" => drop(self.api::<ConfigMap>().patch(name, &params, &patch).await.unwrap()),
            "Secret" => drop(self.api::<Secret>().patch(name, &params, &patch).await.unwrap()),
            other => panic!("{other}"),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn until<K>(&self, name: &str, what: &str, condition: impl Condition<K>) -> Option<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + 'static,
    {
        let wait = await_condition(self.api::<K>(), name, condition);
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(result) => result.unwrap(),
            Err(_) => {
                let now = self.api::<K>().get_opt(name).await.unwrap();
                panic!("{name} never became {what}: {now:#?}\ncalls: {:#?}", self.runtime.calls());
            }
        }
    }

    /// Waits until NodeState is as wanted.
    async fn until_node(&self, wanted: impl Condition<NodeState>) -> NodeState {
        let api: Api<NodeState> = Api::all(self.client.clone());
        let wait = tokio::time::timeout(Duration::from_secs(30), await_condition(api, "edge", wanted));
        wait.await.expect("in time").unwrap().unwrap()
    }

    async fn ready(&self, name: &str) -> Workload {
        self.until(name, "ready", |w: Option<&Workload>| w.is_some_and(is_ready)).await.unwrap()
    }
}

/// Waits for what no watch tells of.
async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_ready(workload: &Workload) -> bool {
    let status = workload.status.clone().unwrap_or_default();
    status.observed_generation == workload.metadata.generation && is_true(&status.conditions, "Ready")
}

fn workload(name: &str, spec: serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name}, "spec": spec
    })
}

fn web(spec: serde_json::Value) -> serde_json::Value {
    let mut whole = serde_json::json!({"containers": [{"name": "main", "image": "web:1"}]});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    workload("web", whole)
}

fn container_id(workload: &Workload) -> ContainerId {
    ContainerId::new(workload.status.as_ref().unwrap().container_statuses[0].container_id.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_lives_crashes_changes_and_goes() {
    let node = TestNode::start().await;
    node.apply(web(serde_json::json!({}))).await;
    let web_1 = node.ready("web").await;
    let status = web_1.status.clone().unwrap();
    assert_eq!(status.phase, Some(WorkloadPhase::Running));
    assert_eq!(status.addresses.len(), 1, "an address on the default network");
    assert_eq!(status.container_statuses[0].image, "web:1");

    // A crash: the successor follows, and the status tells of both.
    node.runtime.crash(&container_id(&web_1), 7);
    let restarted = |w: Option<&Workload>| {
        w.is_some_and(|w| is_ready(w) && w.status.as_ref().unwrap().container_statuses[0].restart_count == 1)
    };
    let web_2 = node.until("web", "restarted", restarted).await.unwrap();
    let last = web_2.status.unwrap().container_statuses[0].last_state.terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.container_id.as_str()), (7, container_id(&web_1).as_str()));

    // A change of the specification makes another container and counts no restart.
    node.apply(web(serde_json::json!({"containers": [{"name": "main", "image": "web:2"}]}))).await;
    let web_3 = node.ready("web").await;
    let status = web_3.status.clone().unwrap();
    assert_eq!((status.container_statuses[0].image.as_str(), status.restarts), ("web:2", 1));

    // A change of limits does not.
    let limited = serde_json::json!({"name": "main", "image": "web:2", "resources": {"limits": {"memory": "64Mi"}}});
    node.apply(web(serde_json::json!({"containers": [limited]}))).await;
    let web_4 = node.ready("web").await;
    assert_eq!(container_id(&web_4), container_id(&web_3));
    let container = node.runtime.get(&container_id(&web_4)).await.unwrap().unwrap();
    assert_eq!(container.limits.memory_max, Some(64 << 20));

    node.api::<Workload>().delete("web", &DeleteParams::default()).await.unwrap();
    node.until("web", "gone", |w: Option<&Workload>| w.is_none()).await;
    assert!(node.runtime.list().await.unwrap().is_empty());
    assert!(node.sandboxes.list().await.unwrap().is_empty());
    assert!(node.networks.list_attachments().await.unwrap().is_empty());
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_killed_is_told_of_and_keeps_nobody_waiting() {
    let node = TestNode::start().await;
    let container = serde_json::json!({"name": "main", "image": "web:1", "command": ["uninterruptible"]});
    let spec = serde_json::json!({"containers": [container], "terminationGracePeriodSeconds": 0});
    node.apply(web(spec)).await;
    let before = node.ready("web").await;
    node.api::<Workload>().delete("web", &DeleteParams::default()).await.unwrap();
    let told = |w: Option<&Workload>| {
        let conditions = w.and_then(|w| w.status.as_ref()).map(|status| status.conditions.as_slice());
        find_condition(conditions.unwrap_or_default(), "Ready").is_some_and(|ready| ready.reason == "KillFailed")
    };
    // Meanwhile others come and go.
    let image = serde_json::json!({"name": "main", "image": "web:1"});
    node.apply(workload("other", serde_json::json!({"containers": [image]}))).await;
    node.ready("other").await;
    node.api::<Workload>().delete("other", &DeleteParams::default()).await.unwrap();
    node.until("other", "gone", |w: Option<&Workload>| w.is_none()).await;
    node.until("web", "told of", told).await;
    // The kernel lets go of it.
    node.runtime.crash(&container_id(&before), 137);
    node.until("web", "gone", |w: Option<&Workload>| w.is_none()).await;
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_agent_touches_nothing() {
    let node = TestNode::start().await;
    node.apply(web(serde_json::json!({}))).await;
    let before = node.ready("web").await;
    let calls = node.runtime.calls().len();
    node.stop_agent().await;
    node.start_agent();
    // A change that needs no new container proves that the new agent has taken over.
    node.apply(web(serde_json::json!({"terminationGracePeriodSeconds": 3}))).await;
    let after = node.ready("web").await;
    assert_eq!(container_id(&after), container_id(&before));
    let new: Vec<String> = node.runtime.calls().split_off(calls);
    let touching: Vec<&String> =
        new.iter().filter(|c| ["create", "start", "kill", "remove"].iter().any(|verb| c.starts_with(verb))).collect();
    assert!(touching.is_empty(), "{touching:?}");
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_in_use_outlives_a_restart_of_the_agent() {
    let node = TestNode::start().await;
    node.apply(serde_json::json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Volume", "metadata": {"name": "data"},
        "spec": {"local": {}, "reclaimPolicy": "Delete"}
    }))
    .await;
    let container = serde_json::json!({
        "name": "main", "image": "web:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let spec = serde_json::json!({
        "containers": [container], "volumes": [{"name": "data", "volume": {"name": "data"}}],
    });
    node.apply(web(spec.clone())).await;
    node.ready("web").await;
    node.api::<Volume>().delete("data", &DeleteParams::default()).await.unwrap();
    node.until("data", "held back", |v: Option<&Volume>| {
        v.and_then(|v| v.status.as_ref()).is_some_and(|s| !s.used_by.is_empty())
    })
    .await;
    node.stop_agent().await;
    // Reading all of these takes longer than reading the one Volume.
    let image = serde_json::json!([{"name": "main", "image": "web:1"}]);
    for number in 0..600 {
        let idle = serde_json::json!({"containers": image, "stopped": true});
        node.apply(workload(&format!("idle{number}"), idle)).await;
    }
    node.start_agent();
    let mut changed = spec;
    changed["terminationGracePeriodSeconds"] = 3.into();
    node.apply(web(changed)).await;
    node.ready("web").await;
    let held = node.api::<Volume>().get("data").await.expect("what is in use stays");
    assert_eq!(held.status.unwrap().used_by, ["web"]);
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_break_is_repaired_by_the_event() {
    let node = TestNode::start().await;
    node.apply(web(serde_json::json!({}))).await;
    let before = node.ready("web").await;
    // Deleted behind our back.
    node.runtime.delete_behind(&container_id(&before));
    let replaced = |w: Option<&Workload>| w.is_some_and(|w| is_ready(w) && container_id(w) != container_id(&before));
    node.until("web", "replaced", replaced).await;
    // The link of the attachment.
    let attachment = node.networks.list_attachments().await.unwrap().remove(0);
    node.networks.break_link(&attachment.host_link);
    eventually("the attachment to be repaired", async || {
        node.networks.list_attachments().await.unwrap().iter().all(|a| a.complete)
    })
    .await;
    // All rules.
    node.networks.break_rules();
    eventually("the rules to be put back", async || node.networks.has_rules()).await;
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_said_and_then_used() {
    let node = TestNode::start().await;
    let container = serde_json::json!({
        "name": "main", "image": "web:1", "envFrom": [{"configMapRef": {"name": "conf"}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    let spec = serde_json::json!({
        "containers": [container], "volumes": [{"name": "data", "volume": {"name": "data"}}],
    });
    node.apply(web(spec)).await;
    let reason = |reason: &'static str| {
        move |w: Option<&Workload>| {
            let conditions = w.and_then(|w| w.status.as_ref()).map(|s| s.conditions.clone()).unwrap_or_default();
            find_condition(&conditions, "Ready").is_some_and(|c| c.reason == reason)
        }
    };
    node.until("web", "waiting for the Volume", reason("NotFound")).await;
    node.apply(serde_json::json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Volume", "metadata": {"name": "data"}, "spec": {"local": {}}
    }))
    .await;
    let waiting = node.until("web", "waiting for the ConfigMap", reason("ConfigMissing")).await.unwrap();
    let message = &find_condition(&waiting.status.unwrap().conditions, "Ready").unwrap().message.clone();
    assert!(message.contains("ConfigMap \"conf\" does not exist"), "{message}");
    node.apply(serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"COLOUR": "blue"}
    }))
    .await;
    let ready = node.ready("web").await;
    let spec = node.runtime.spec(&container_id(&ready)).unwrap();
    assert!(spec.env.contains(&("COLOUR".to_owned(), "blue".to_owned())), "{:?}", spec.env);
    assert!(spec.mounts.iter().any(|m| m.destination == "/data"));

    // The Volume is in use and cannot go before its user.
    node.api::<Volume>().delete("data", &DeleteParams::default()).await.unwrap();
    node.until("data", "held back", |v: Option<&Volume>| {
        v.and_then(|v| v.status.as_ref()).is_some_and(|s| {
            find_condition(&s.conditions, "Ready").is_some_and(|c| c.message.contains("no longer used by web"))
        })
    })
    .await;
    node.api::<Workload>().delete("web", &DeleteParams::default()).await.unwrap();
    node.until("data", "gone", |v: Option<&Volume>| v.is_none()).await;
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_tells_of_itself() {
    let node = TestNode::start().await;
    node.until("default", "ready", |n: Option<&Network>| {
        n.and_then(|n| n.status.as_ref()).is_some_and(|s| is_true(&s.conditions, "Ready"))
    })
    .await;
    let states: Api<NodeState> = Api::all(node.client.clone());
    let wait = await_condition(states, "edge", |n: Option<&NodeState>| {
        n.and_then(|n| n.status.as_ref()).is_some_and(|s| is_true(&s.conditions, "Ready") && s.networks.len() == 1)
    });
    let state = tokio::time::timeout(Duration::from_secs(20), wait).await.expect("NodeState").unwrap().unwrap();
    assert_eq!(state.status.unwrap().networks[0].subnets.len(), 1, "the chosen subnet is recorded");
    let nodes: Api<Node> = Api::all(node.client.clone());
    let seen = await_condition(nodes, "edge", |n: Option<&Node>| n.is_some_and(|n| n.status.is_some()));
    let seen = tokio::time::timeout(Duration::from_secs(20), seen).await.expect("Node").unwrap().unwrap();
    assert_eq!(seen.labels()["kubernetes.io/hostname"], "edge");
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_goes_after_the_limits_and_workloads_below_it() {
    let node = TestNode::start().await;
    let limit = |name: &str, spec: serde_json::Value| {
        serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": name}, "spec": spec
        })
    };
    node.apply(limit("tenants", serde_json::json!({"memory": {"max": "512Mi"}}))).await;
    node.apply(limit("blue", serde_json::json!({"parent": "tenants", "memory": {"max": "64Mi"}}))).await;
    node.apply(web(serde_json::json!({"resourceLimit": "blue"}))).await;
    node.ready("web").await;
    for name in ["tenants", "blue"] {
        node.api::<ResourceLimit>().delete(name, &DeleteParams::default()).await.unwrap();
    }
    for (name, user) in [("tenants", "used by ResourceLimit blue"), ("blue", "used by web")] {
        node.until(name, "held back", move |l: Option<&ResourceLimit>| {
            l.and_then(|l| l.status.as_ref())
                .is_some_and(|s| find_condition(&s.conditions, "Ready").is_some_and(|c| c.message.contains(user)))
        })
        .await;
    }
    let below = CgroupPath::new("/nodelet/limit-default.tenants/limit-default.blue").unwrap();
    assert!(node.drivers.cgroups.stat(&below).unwrap().is_some(), "held back with its cgroup");
    node.api::<Workload>().delete("web", &DeleteParams::default()).await.unwrap();
    for name in ["blue", "tenants"] {
        node.until(name, "gone", |l: Option<&ResourceLimit>| l.is_none()).await;
    }
    assert!(node.drivers.cgroups.stat(&below).unwrap().is_none());
    node.stop_agent().await;
}

#[path = "node/boots.rs"]
mod boots;
#[path = "node/images.rs"]
mod images;
#[path = "node/instant_images.rs"]
mod instant_images;
#[path = "node/probes.rs"]
mod probes;
#[path = "node/refreshes.rs"]
mod refreshes;
