//! The agent's configuration: one typed document, with environment variables and flags laid over it.
//!
//! Nothing is ignored: an unknown key or a bad value stops the start, with the file, line, column and key, what is
//! expected there and what to do. A key that this release cannot carry out yet is refused in the same way.

mod check;
mod load;
mod overrides;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use load::nearest;
pub use load::{Error, Fault, Faults, load};
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
    /// Cgroup below which every container lives.
    pub cgroup_parent: String,
    /// Seconds between passes that look at everything although no event asked for it.
    pub audit_seconds: u64,
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
            cgroup_parent: "/nodelet".to_owned(),
            audit_seconds: 300,
        }
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
