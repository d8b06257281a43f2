//! The values that pass between the steps of a workload's reconcile: what is wanted, what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nodelet_crds::workload::{LifecycleHandler, RestartPolicy};
use nodelet_drivers::cgroups::{Limits, Realtime};
use nodelet_drivers::ids::{CgroupPath, ContainerId, NetworkKey, SandboxId};
use nodelet_drivers::images::Fetch;
use nodelet_drivers::network::{Attachment, LinkWish, Protocol, PublishedPort};
use nodelet_drivers::runtime::{Container, DeviceWish, LogTarget, Security, TaskState};
use nodelet_drivers::sandbox::{EtcFiles, SandboxSpec};
use nodelet_drivers::volumes::{Ephemeral, HostPathType};
use serde::Serialize;

use super::fit::Amounts;
use super::resizes::Unfinished;
use crate::backoff::RestartBackoff;
use crate::eviction::Evicted;

/// One workload as it should be on this node, checked and complete: nothing here needs the API any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// `<namespace>/<name>`, for messages.
    pub title: String,
    /// The generation it was made from.
    pub generation: i64,
    /// Run it, or see that it does not run.
    pub intent: Intent,
    /// Everything around the containers.
    pub sandbox: SandboxWish,
    /// The workload's own cgroup.
    pub cgroup: CgroupPath,
    /// Init containers, in order.
    pub init: Vec<ContainerWish>,
    /// The containers.
    pub containers: Vec<ContainerWish>,
    /// What happens when a container ends by itself.
    pub restart: RestartPolicy,
    /// Time between the request to stop and the kill.
    pub grace: Duration,
    /// When it is given up.
    pub batch: Batch,
    /// How soon containers that ended are started again.
    pub backoff: RestartBackoff,
    /// How another revision replaces this one's predecessor.
    pub update: UpdateWish,
    /// Identifies the revision: changes exactly when a container has to be replaced.
    pub revision: String,
    /// It must not run now, whatever its object says.
    pub evicted: Option<Evicted>,
    /// Why limits of what runs are not changed.
    pub resize: Option<ResizeHold>,
    /// What has to come first; while there is anything, nothing new is started and nothing that runs is touched.
    pub waits: Vec<Wait>,
}

/// When a workload has failed for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batch {
    /// It ran for this long.
    pub deadline: Option<Duration>,
    /// A container failed more often than this.
    pub backoff_limit: Option<u32>,
}

/// A workload has failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GivenUp {
    /// A reason constant.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// How a new revision takes the place of the old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateWish {
    /// Beside the old, which goes once the new is healthy.
    pub start_first: bool,
    /// How long it must be ready without a break to count as good.
    pub healthy: Duration,
    /// When it has failed if it is not good.
    pub deadline: Duration,
    /// Whether the last good revision comes back then.
    pub rollback: bool,
}

impl Desired {
    /// What has to go is stopped, and sooner than by an edit.
    pub fn unless_evicted(self, evicted: Option<Evicted>) -> Self {
        match (evicted, self.intent) {
            (Some(evicted), Intent::Run) => Self {
                intent: Intent::Stop,
                grace: self.grace.min(crate::eviction::LONGEST_GRACE),
                evicted: Some(evicted),
                ..self
            },
            _ => self,
        }
    }

    /// All images that it needs, with the part that needs each, as [`Observed::images`] has them.
    pub fn images(&self) -> impl Iterator<Item = (String, &ImageWish)> {
        let containers = self.init.iter().chain(&self.containers).map(|wish| (wish.name.clone(), &wish.image));
        containers.chain(self.volume_images())
    }

    /// Time of its real-time processes in microseconds of a second: that of all containers and sidecars together, or of
    /// an init container that needs more, beside the sidecars before it.
    pub fn realtime(&self) -> u64 {
        let of = |wish: &ContainerWish| wish.limits.realtime.map_or(0, Realtime::per_second);
        let (mut sidecars, mut largest) = (0, 0);
        for wish in &self.init {
            if wish.sidecar {
                sidecars += of(wish);
            } else {
                largest = largest.max(sidecars + of(wish));
            }
        }
        largest.max(sidecars + self.containers.iter().map(of).sum::<u64>())
    }

    /// Those of its volumes.
    pub fn volume_images(&self) -> impl Iterator<Item = (String, &ImageWish)> {
        self.sandbox.volumes.iter().filter_map(|(name, volume)| match volume {
            VolumeWish::Image(image) => Some((image_of_volume(name), image)),
            _ => None,
        })
    }
}

/// The key of a volume's image in [`Observed::images`]; no container has such a name.
pub fn image_of_volume(name: &str) -> String {
    format!("volume {name}")
}

/// Of a key of [`Observed::images`], for messages.
pub fn image_user(key: &str) -> String {
    if key.starts_with("volume ") { key.to_owned() } else { format!("container {key}") }
}

/// What should happen with the workload as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Intent {
    /// It should run.
    Run,
    /// It should be stopped and kept.
    Stop,
    /// It is being deleted.
    Delete,
}

/// Something that the workload waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// A reason constant.
    pub reason: &'static str,
    /// What is missing and, where known, what to do.
    pub message: String,
    /// Which condition shows it.
    pub about: About,
}

/// Why the limits of running containers are not changed as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResizeHold {
    /// A reason constant.
    pub reason: &'static str,
    /// The numbers.
    pub message: String,
}

/// The part of a workload that a wait is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum About {
    /// ConfigMaps and Secrets that are missing.
    Configuration,
    /// Workloads that this one depends on.
    Dependencies,
    /// Networks that are not there or not made yet.
    Networks,
    /// Room on the node, and ResourceLimits.
    Resources,
    /// Volumes that are missing, not ready or in use elsewhere.
    Volumes,
}

/// The sandbox as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxWish {
    /// Namespaces, host name, sysctls, labels.
    pub spec: SandboxSpec,
    /// Networks to be attached to, the first with the default route.
    pub attachments: Vec<AttachWish>,
    /// Ports to be published on the node.
    pub ports: Vec<PortWish>,
    /// Host aliases, resolver settings; addresses are added when they are known.
    pub etc: EtcFiles,
    /// Volumes, by the name that mounts use.
    pub volumes: BTreeMap<String, VolumeWish>,
}

/// One network to be attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachWish {
    /// The network.
    pub network: NetworkKey,
    /// Static addresses.
    pub addresses: Vec<IpAddr>,
    /// What its link should be like.
    pub link: LinkWish,
    /// The node is its gateway, so that ports can be published there.
    pub through_node: bool,
}

/// A port to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortWish {
    /// The node's address; `None` is each.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port in the sandbox.
    pub target_port: u16,
}

/// A volume of the workload.
#[derive(Debug, Clone, PartialEq)]
pub enum VolumeWish {
    /// A path that is there already: a Volume object's.
    Path {
        /// The path.
        path: std::path::PathBuf,
        /// Whether it is filled from the image of the first container that mounts it.
        fill: Fill,
    },
    /// A path of the node, checked when it is used.
    HostPath(std::path::PathBuf, HostPathType),
    /// A directory of the sandbox.
    Ephemeral(Ephemeral),
    /// The files of an image.
    Image(ImageWish),
}

/// What an empty Volume gets of the image of the first container that mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    Nothing,
    /// What the image has at the mount path.
    Content,
    /// The same, and the owner and mode of that directory.
    ContentAndOwner,
}

/// One container as it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerWish {
    /// Its name in the workload.
    pub name: String,
    /// The image it needs, as the pull sees it.
    pub image: ImageWish,
    /// Command to security: everything of the runtime's specification that is known before the start.
    pub template: Template,
    /// Limits; may change while it runs.
    pub limits: Limits,
    /// What the node sets aside for it.
    pub requests: Amounts,
    /// Changes exactly when a running container must be replaced to match.
    pub hash: String,
    /// Probes, if any.
    pub probes: Probes,
    /// Its named ports, for probes.
    pub ports: Vec<(String, u16)>,
    /// An init container that runs for as long as the containers do.
    pub sidecar: bool,
    /// A hash of the content of those of its volumes whose change is told to it by a signal.
    pub signal: Option<String>,
    /// Run before the stop signal.
    pub pre_stop: Option<LifecycleHandler>,
    /// Run after the start.
    pub post_start: Option<LifecycleHandler>,
}

/// The probes of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Probes {
    /// Before its first success the others do not begin.
    pub startup: Option<nodelet_crds::workload::Probe>,
    /// A container that fails it is restarted.
    pub liveness: Option<nodelet_crds::workload::Probe>,
    /// A container that fails it is not ready.
    pub readiness: Option<nodelet_crds::workload::Probe>,
}

impl Probes {
    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.startup.is_none() && self.liveness.is_none() && self.readiness.is_none()
    }
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageWish {
    /// Where it comes from and with which credentials.
    pub fetch: Fetch,
    /// When it is fetched.
    pub policy: PullRule,
    /// The very image, where a recorded revision is run: `sha256:…`. No part of what makes a container another one.
    pub digest: Option<String>,
}

/// When an image is fetched, given whether it is on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum PullRule {
    /// Only if it is absent.
    IfAbsent,
    /// Before every start.
    Always,
    /// Before every start; what is there serves when that fails.
    Newer,
    /// Never.
    Never,
}

/// The fixed part of a container's specification.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Template {
    /// In place of the image's ENTRYPOINT; empty keeps it.
    pub command: Vec<String>,
    /// In place of the image's CMD.
    pub args: Vec<String>,
    /// In place of the image's.
    pub working_dir: Option<String>,
    /// In order, laid over the image's.
    pub env: Vec<(String, String)>,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep its input open.
    // Part of the hash only where it is used: a container of an agent that did not know it stays as it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Whoever attaches first ends the input by leaving.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin_once: bool,
    /// What is mounted, in order.
    pub mounts: Vec<MountWish>,
    /// Name, soft and hard limit.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Devices of the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceWish>,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Let it see the node's processes.
    pub host_pid: bool,
    /// Let the containers see each other's processes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub share_pid: bool,
    /// How soon it is killed for memory.
    pub oom_score_adj: Option<i32>,
    /// In place of the image's.
    pub stop_signal: Option<String>,
    /// Bytes of a file of its log.
    pub log_max_size: u64,
    /// Files of its log that are kept.
    pub log_max_files: u32,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountWish {
    /// The name of a volume of the Workload.
    pub volume: String,
    /// Absolute path in the container.
    pub path: String,
    /// A part of the volume.
    pub sub_path: Option<String>,
    /// Nothing can be written.
    pub read_only: bool,
    /// As in the OCI specification; empty is `rprivate`.
    pub propagation: String,
}

/// What is on the node of one workload.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The sandbox of the wanted revision.
    pub sandbox: Option<SeenSandbox>,
    /// Other sandboxes of this workload.
    pub stale_sandboxes: BTreeSet<SandboxId>,
    /// All its containers, in whichever sandbox.
    pub containers: Vec<SeenContainer>,
    /// Images that a start may need, by container name or [`image_of_volume`].
    pub images: BTreeMap<String, SeenImage>,
    /// Containers that the API remembers from before, by name: the runtime's own records may be gone.
    pub remembered: BTreeMap<String, Remembered>,
    /// When it was first started.
    pub started_at: Option<Timestamp>,
    /// The status tells already that it has failed for good.
    pub given_up: Option<GivenUp>,
    /// How long the wanted revision has been healthy without a break.
    pub healthy_for: Option<Duration>,
    /// A sandbox of another revision that published ports lead to.
    pub serving: Option<SandboxId>,
    /// The sandbox of the last revision that was good.
    pub last_good: Option<SandboxId>,
    /// Ephemeral volumes whose files are not what they should be.
    pub outdated_files: BTreeSet<String>,
}

/// The sandbox of the wanted revision.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenSandbox {
    /// Namespaces and files are in place.
    pub complete: bool,
    /// Its network namespace; `None` is the node's.
    pub netns: Option<std::path::PathBuf>,
    /// Its attachments.
    pub attachments: Vec<Attachment>,
    /// Its published ports and whether the kernel has them.
    pub ports: Vec<(PublishedPort, bool)>,
}

/// One container of the workload.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenContainer {
    /// The runtime's view.
    pub container: Container,
    /// Its name in the workload.
    pub name: String,
    /// It is an init container.
    pub init: bool,
    /// It is a sidecar, and which of the init containers.
    pub sidecar: Option<u32>,
    /// The sandbox it lives in.
    pub sandbox: String,
    /// Its number, unique among the containers of this name.
    pub attempt: u32,
    /// How often this container was restarted before it.
    pub restarts: u32,
    /// How often in a row its predecessors failed.
    pub failures: u32,
    /// [`ContainerWish::hash`] it was made from.
    pub hash: String,
    /// [`ContainerWish::signal`] that it was started with or told of since.
    pub heard: Option<String>,
    /// How long ago it was asked to stop, by the monotonic clock.
    pub stopping: Option<Duration>,
    /// What the probes say.
    pub health: Health,
    /// A change of its limits that is not in force.
    pub resize: Option<Unfinished>,
}

impl SeenContainer {
    /// It has processes.
    pub fn is_live(&self) -> bool {
        matches!(self.container.state, TaskState::Running { .. } | TaskState::Paused { .. })
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.container.id
    }
}

/// What the probes of a running container say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The startup probe succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// A liveness or startup probe failed for good: it must be restarted.
    pub failed: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self { started: true, ready: true, failed: false }
    }
}

/// How an image that a start needs stands.
#[derive(Debug, Clone, PartialEq)]
pub enum SeenImage {
    /// On the node; `name` is the image record, `digest` what it points at.
    Present {
        /// The image record.
        name: String,
        /// `sha256:…`.
        digest: String,
    },
    /// Being fetched.
    Pulling {
        /// For the condition: bytes and phase.
        message: String,
    },
    /// Cannot be had, for now or for good.
    Failed {
        /// A reason constant.
        reason: &'static str,
        /// The cause chain.
        message: String,
    },
}

/// What the status of the workload remembers of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Restarts so far.
    pub restarts: u32,
    /// It had ended with this code, under the present specification.
    pub exit_code: Option<i32>,
    /// The number of its next attempt.
    pub next_attempt: u32,
}

/// The log of a container attempt.
pub fn log_target(directory: &std::path::Path, container: &str, attempt: u32, template: &Template) -> LogTarget {
    LogTarget::File {
        path: directory.join(container).join(format!("{attempt}.log")),
        max_size: template.log_max_size,
        max_files: template.log_max_files,
    }
}
