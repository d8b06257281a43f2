//! The agent's configuration: one typed document, with environment variables and flags laid over it.
//!
//! Nothing is ignored: an unknown key or a bad value stops the start, with the file, line, column and key, what is
//! expected there and what to do. A key that this release cannot carry out yet is refused in the same way.

mod check;
mod load;
mod overrides;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use nodelet_controllers::backoff::{Backoff, RestartBackoff};
use nodelet_controllers::eviction::{EvictionSettings, Threshold, Thresholds};
use nodelet_controllers::workload::fit::Amounts;
use nodelet_crds::quantity::Quantity;
use nodelet_drivers::cgroups::Driver;
use serde::{Deserialize, Serialize};

pub use load::{Error, Fault, Faults, load};
pub(crate) use load::{kind_of, nearest};
pub use overrides::{Origin, Override, from_environment, from_flag};

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/nodelet/config.yaml";

/// The configuration file, `kind: NodeletConfiguration`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeletConfiguration {
    /// `nodelet.dev/v1alpha1`.
    pub api_version: String,
    /// `NodeletConfiguration`.
    pub kind: String,
    /// Name of this node; empty takes the host name.
    pub node_name: String,
    /// Labels of this node, matched by node selectors.
    pub node_labels: BTreeMap<String, String>,
    /// Directory of what survives a reboot.
    pub data_dir: PathBuf,
    /// Directory of what does not.
    pub run_dir: PathBuf,
    /// The API that holds the desired state.
    pub api: ApiConfiguration,
    /// containerd.
    pub runtime: RuntimeConfiguration,
    /// Where manifests come from.
    pub sources: Vec<SourceConfiguration>,
    /// Image transfers and collection.
    pub images: ImagesConfiguration,
    /// What of the node is not for Workloads.
    pub system_reserved: SystemReservedConfiguration,
    /// When Workloads have to go because the node is short of something.
    pub eviction: EvictionConfiguration,
    /// Logs, metrics, health.
    pub observability: ObservabilityConfiguration,
}

impl Default for NodeletConfiguration {
    fn default() -> Self {
        Self {
            api_version: nodelet_api_version(),
            kind: "NodeletConfiguration".to_owned(),
            node_name: String::new(),
            node_labels: BTreeMap::new(),
            data_dir: "/var/lib/nodelet".into(),
            run_dir: "/run/nodelet".into(),
            api: ApiConfiguration::default(),
            runtime: RuntimeConfiguration::default(),
            sources: vec![SourceConfiguration { directory: "/etc/nodelet/manifests".into() }],
            images: ImagesConfiguration::default(),
            system_reserved: SystemReservedConfiguration::default(),
            eviction: EvictionConfiguration::default(),
            observability: ObservabilityConfiguration::default(),
        }
    }
}

fn nodelet_api_version() -> String {
    "nodelet.dev/v1alpha1".to_owned()
}

/// `api`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ApiConfiguration {
    /// Where the desired state lives.
    pub mode: ApiMode,
    /// Address of the embedded API for other programs; empty serves the unix socket only.
    pub listen: String,
    /// Credentials for the cluster, with `mode: cluster`.
    pub kubeconfig: String,
}

impl Default for ApiConfiguration {
    fn default() -> Self {
        Self { mode: ApiMode::Embedded, listen: "127.0.0.1:6440".to_owned(), kubeconfig: String::new() }
    }
}

/// `api.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ApiMode {
    /// nodelet serves the API itself.
    Embedded,
    /// A cluster's kube-apiserver is mirrored.
    Cluster,
}

/// `runtime`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RuntimeConfiguration {
    /// containerd's socket.
    pub address: PathBuf,
    /// Start an own containerd under `dataDir` when none answers at `address`; it outlives the agent.
    pub managed: bool,
    /// containerd namespace of everything of ours.
    pub namespace: String,
    /// containerd snapshotter.
    pub snapshotter: String,
    /// containerd runtime.
    pub handler: String,
    /// Path of runc or crun; empty leaves it to containerd.
    pub oci_runtime: String,
    /// Workloads per shared shim, at most 100; 0 is one shim each.
    pub shim_pool: u32,
    /// Who makes cgroups.
    pub cgroup_driver: Driver,
    /// Cgroup below which every container lives; with systemd, the name of a slice.
    pub cgroup_parent: String,
    /// Seconds between passes that look at everything although no event asked for it.
    pub audit_seconds: u64,
    /// How soon containers that ended are started again, where their Workload says nothing.
    pub crash_loop_back_off: BackOffConfiguration,
}

impl Default for RuntimeConfiguration {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            managed: false,
            namespace: "nodelet".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            handler: "io.containerd.runc.v2".to_owned(),
            oci_runtime: String::new(),
            shim_pool: 0,
            cgroup_driver: Driver::Cgroupfs,
            cgroup_parent: "/nodelet".to_owned(),
            audit_seconds: 300,
            crash_loop_back_off: BackOffConfiguration::default(),
        }
    }
}

/// `runtime.crashLoopBackOff`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackOffConfiguration {
    /// The delay after the second failure in a row; it doubles with each further one.
    pub initial_seconds: u32,
    /// No delay is longer.
    pub max_seconds: u32,
    /// A container that ran this long starts counting anew.
    pub reset_seconds: u32,
}

impl Default for BackOffConfiguration {
    fn default() -> Self {
        Self { initial_seconds: 1, max_seconds: 300, reset_seconds: 60 }
    }
}

impl BackOffConfiguration {
    /// As the controllers take it.
    pub fn to_backoff(self) -> RestartBackoff {
        let [first, max, reset] =
            [self.initial_seconds, self.max_seconds, self.reset_seconds].map(|s| Duration::from_secs(u64::from(s)));
        RestartBackoff { delays: Backoff { first, max }, reset }
    }
}

/// One entry of `sources`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceConfiguration {
    /// A directory of manifests, followed by inotify.
    pub directory: PathBuf,
}

/// `images`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImagesConfiguration {
    /// Pulls at the same time.
    pub parallel_pulls: u32,
    /// Layers at the same time, over all pulls.
    pub parallel_layers: u32,
    /// When unused images are removed.
    pub gc: GcConfiguration,
    /// Registry hosts and mirrors, in containerd's `certs.d` layout.
    pub registries_dir: PathBuf,
    /// Credentials for registries when a pull brings none: a file like Docker's `config.json`; empty for none.
    pub credentials_file: PathBuf,
    /// Bytes in a second from registries, over all pulls; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// Seconds for which a connection to a registry may be silent before it is given up and made anew.
    pub stall_seconds: u32,
}

impl Default for ImagesConfiguration {
    fn default() -> Self {
        Self {
            parallel_pulls: 3,
            parallel_layers: 4,
            gc: GcConfiguration::default(),
            registries_dir: "/etc/containerd/certs.d".into(),
            credentials_file: PathBuf::new(),
            max_bytes_per_second: 0,
            stall_seconds: 30,
        }
    }
}

/// `images.gc`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GcConfiguration {
    /// Collection starts when the disk is fuller than this.
    pub high_percent: u8,
    /// It stops when the disk is emptier than this.
    pub low_percent: u8,
    /// Images unused for less long are kept.
    pub min_age_seconds: u64,
}

impl Default for GcConfiguration {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age_seconds: 120 }
    }
}

/// `systemReserved`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SystemReservedConfiguration {
    /// CPU time: `500m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory: `512Mi`. The cgroup of all Workloads gets the rest as its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}

impl SystemReservedConfiguration {
    /// As numbers; what cannot be read was refused by the check.
    pub fn amounts(&self) -> Amounts {
        Amounts {
            cpu_millis: self.cpu.as_ref().and_then(|cpu| cpu.milli_cpu().ok()).unwrap_or(0),
            memory_bytes: self.memory.as_ref().and_then(|memory| memory.bytes().ok()).unwrap_or(0),
        }
    }
}

/// `eviction`, in the kubelet's words
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EvictionConfiguration {
    /// `memory.available`
    pub memory: MemoryEvictionConfiguration,
    /// `nodefs.available` and `nodefs.inodesFree`
    pub nodefs: NodefsEvictionConfiguration,
    /// Seconds for which there is pressure after it was last seen.
    pub pressure_transition_seconds: u32,
}

impl Default for EvictionConfiguration {
    fn default() -> Self {
        Self {
            memory: MemoryEvictionConfiguration::default(),
            nodefs: NodefsEvictionConfiguration::default(),
            pressure_transition_seconds: 60,
        }
    }
}

/// `eviction.memory`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MemoryEvictionConfiguration {
    /// Less available memory is pressure: `100Mi` or `5%`. Default: the lesser of the two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<Threshold>,
}

/// `eviction.nodefs`: the filesystem of `dataDir`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodefsEvictionConfiguration {
    /// Less available space is pressure.
    pub available: Threshold,
    /// Fewer free inodes are pressure.
    pub inodes_free: Threshold,
}

impl Default for NodefsEvictionConfiguration {
    fn default() -> Self {
        Self { available: Threshold::Percent(10), inodes_free: Threshold::Percent(5) }
    }
}

impl EvictionConfiguration {
    /// As the controllers take it, on a node with so much memory.
    pub fn settings(&self, memory_bytes: u64) -> EvictionSettings {
        let usual = Threshold::Amount((100 << 20).min(memory_bytes / 20));
        EvictionSettings {
            thresholds: Thresholds {
                memory: self.memory.available.unwrap_or(usual),
                disk: self.nodefs.available,
                inodes: self.nodefs.inodes_free,
            },
            transition: Duration::from_secs(u64::from(self.pressure_transition_seconds)),
        }
    }
}

/// `observability`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ObservabilityConfiguration {
    /// Address of `/metrics`, `/healthz` and `/readyz`; empty serves them on no address.
    pub listen: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,nodelet_controllers=debug`.
    pub log_level: String,
    /// Where traces go, by OTLP.
    pub otlp_endpoint: String,
}

impl Default for ObservabilityConfiguration {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9440".to_owned(),
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            otlp_endpoint: String::new(),
        }
    }
}

/// `observability.logFormat`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl NodeletConfiguration {
    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    /// `nodeName`, or the host name in the form of an object's name.
    pub fn effective_node_name(&self) -> String {
        if !self.node_name.is_empty() {
            return self.node_name.clone();
        }
        let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let name: String =
            host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).take(63).collect();
        let name = name.trim_matches(['-', '.']);
        if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
    }
}

#[cfg(test)]
mod tests;
