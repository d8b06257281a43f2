//! From a Workload's spec and what it refers to, to [`Desired`]: checked once, trusted afterwards. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use kube::ResourceExt;
use nodelet_crds::common::{condition_type, find_condition, is_true};
use nodelet_crds::image::PullPolicy;
use nodelet_crds::network::NetworkDriver;
use nodelet_crds::volume::AccessMode;
use nodelet_crds::workload::{
    Container, DependencyCondition, Protocol as ApiProtocol, RestartPolicy, Workload, WorkloadPhase, container,
};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::ids::{CgroupPath, InvalidId, SandboxId};
use nodelet_drivers::images::{Fetch, normalize};
use nodelet_drivers::network::Protocol;
use nodelet_drivers::sandbox::{EtcFiles, NetNamespace, SandboxSpec};

use super::dereference::References;
use super::model::{
    About, AttachWish, Batch, ContainerWish, Desired, ImageWish, Intent, MountWish, PortWish, Probes, PullRule,
    SandboxWish, Template, VolumeWish, Wait,
};
use super::{env, limits, security, update, volumes};
use crate::context::Context;
use crate::invalid::Invalid;
use crate::names;

/// Shared memory of a sandbox, as containers expect it.
const SHM_SIZE: u64 = 64 << 20;
/// A log without a declared size is capped all the same.
const LOG_MAX_SIZE: u64 = 10 << 20;
const LOG_MAX_FILES: u32 = 5;

/// Where the workload lands.
#[derive(Debug, Clone)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// Our cgroup.
    pub cgroups: CgroupPath,
    /// The data directory, for profiles.
    pub data_dir: PathBuf,
    /// Its CPUs and its memory in bytes: what a container without a limit can have.
    pub capacity: (u32, u64),
}

impl Place {
    /// This node.
    pub fn of(ctx: &Context) -> Self {
        Self {
            node: ctx.settings.node_name.clone(),
            cgroups: ctx.drivers.cgroups.parent().clone(),
            data_dir: ctx.settings.data_dir.clone(),
            capacity: ctx.settings.capacity,
        }
    }
}

/// Checks a workload.
pub fn validate(object: &Workload, references: &References, place: &Place) -> Result<Desired, Invalid> {
    let spec = &object.spec;
    Invalid::unsupported(nodelet_crds::unsupported::unsupported(spec))?;
    if let Some(cycle) = &references.cycle {
        return Err(Invalid::field("spec.dependsOn", format!("a cycle: {}", cycle.join(" > "))));
    }
    let mut waits = Vec::new();
    dependencies(object, references, &mut waits);
    let net = network(object, references, &mut waits)?;
    let parent = match &references.limit {
        None => place.cgroups.clone(),
        Some(Ok(path)) => path.clone(),
        Some(Err(invalid)) => {
            waits.push(Wait {
                reason: invalid.reason,
                message: format!("spec.resourceLimit: {}", invalid.message),
                about: About::Configuration,
            });
            place.cgroups.clone()
        }
    };
    let volumes = volumes::volumes(object, references, &place.node, &mut waits)?;
    let etc = etc_files(object, references)?;
    let ports = ports(object, &net)?;
    let update = update::wish(object, references)?;
    // Beside the old there must be another sandbox, for every change that means other containers.
    let hashes = match update.start_first {
        true => {
            let mut maker = Maker { object, references, place, volumes: &volumes, cgroup: &parent, waits: Vec::new() };
            let mut all = maker.containers("spec.initContainers", &spec.init_containers)?;
            all.extend(maker.containers("spec.containers", &spec.containers)?);
            Some(all.into_iter().map(|wish| (wish.name, wish.hash)).collect())
        }
        false => None,
    };
    let sandbox_spec = sandbox_spec(object, &net, hashes)?;
    let cgroup = parent.join(sandbox_spec.id.as_str()).map_err(|error| Invalid::field("metadata.name", error))?;
    let mut maker = Maker { object, references, place, volumes: &volumes, cgroup: &cgroup, waits };
    let init = maker.containers("spec.initContainers", &spec.init_containers)?;
    let containers = maker.containers("spec.containers", &spec.containers)?;
    let waits = maker.waits;
    Ok(Desired {
        batch: batch(object)?,
        update,
        revision: update::revision(&sandbox_spec.id, init.iter().chain(&containers)),
        title: crate::image_users::title(object),
        generation: object.metadata.generation.unwrap_or_default(),
        intent: intent(object),
        sandbox: SandboxWish { spec: sandbox_spec, attachments: net.attachments, ports, etc, volumes: volumes.wishes },
        cgroup,
        init,
        containers,
        restart: spec.restart_policy,
        grace: Duration::from_secs(u64::from(spec.termination_grace_period_seconds)),
        waits,
    })
}

/// Just enough to take a workload down that can no longer be understood.
pub fn for_removal(object: &Workload, place: &Place) -> Result<Desired, InvalidId> {
    let id = names::sandbox_id(&object.name_any(), object.metadata.uid.as_deref().unwrap_or_default(), "removal")?;
    let cgroup = place.cgroups.join(id.as_str())?;
    let spec = SandboxSpec {
        id,
        labels: owner_labels(object),
        hostname: object.name_any(),
        net: NetNamespace::New,
        host_ipc: false,
        host_uts: false,
        shm_size: SHM_SIZE,
        sysctls: BTreeMap::new(),
    };
    Ok(Desired {
        batch: Batch::default(),
        update: update::DEFAULT,
        revision: String::new(),
        title: crate::image_users::title(object),
        generation: object.metadata.generation.unwrap_or_default(),
        intent: intent(object),
        sandbox: SandboxWish {
            spec,
            attachments: Vec::new(),
            ports: Vec::new(),
            etc: EtcFiles::default(),
            volumes: BTreeMap::new(),
        },
        cgroup,
        init: Vec::new(),
        containers: Vec::new(),
        restart: object.spec.restart_policy,
        grace: Duration::from_secs(u64::from(object.spec.termination_grace_period_seconds)),
        waits: Vec::new(),
    })
}

fn batch(object: &Workload) -> Result<Batch, Invalid> {
    let spec = &object.spec;
    let ends = matches!(spec.restart_policy, RestartPolicy::OnFailure | RestartPolicy::Never);
    if spec.backoff_limit.is_some() && spec.restart_policy != RestartPolicy::OnFailure {
        return Err(Invalid::field("spec.backoffLimit", "needs restartPolicy OnFailure"));
    }
    if spec.ttl_seconds_after_finished.is_some() && !ends && spec.active_deadline_seconds.is_none() {
        let message = "needs a Workload that ends: restartPolicy OnFailure or Never, or activeDeadlineSeconds";
        return Err(Invalid::field("spec.ttlSecondsAfterFinished", message));
    }
    Ok(Batch {
        deadline: spec.active_deadline_seconds.map(|seconds| Duration::from_secs(u64::from(seconds))),
        backoff_limit: spec.backoff_limit,
    })
}

fn intent(object: &Workload) -> Intent {
    if object.metadata.deletion_timestamp.is_some() {
        Intent::Delete
    } else if object.spec.stopped {
        Intent::Stop
    } else {
        Intent::Run
    }
}

fn owner_labels(object: &Workload) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::WORKLOAD_UID.to_owned(), object.metadata.uid.clone().unwrap_or_default()),
        (labels::NAMESPACE.to_owned(), object.namespace().unwrap_or_default()),
        (labels::WORKLOAD.to_owned(), object.name_any()),
    ])
}

fn dependencies(object: &Workload, references: &References, waits: &mut Vec<Wait>) {
    for dependency in &object.spec.depends_on {
        let name = &dependency.name;
        let Some(other) = references.dependencies.get(name).and_then(Option::as_ref) else {
            waits.push(wait_for(format!("Workload {name:?} does not exist")));
            continue;
        };
        let status = other.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let current = status.observed_generation == other.metadata.generation;
        let holds = match dependency.condition {
            DependencyCondition::Started => matches!(phase, WorkloadPhase::Running | WorkloadPhase::Succeeded),
            DependencyCondition::Ready => current && is_true(&status.conditions, condition_type::READY),
            DependencyCondition::Completed => phase == WorkloadPhase::Succeeded,
        };
        if !holds {
            let why = find_condition(&status.conditions, condition_type::READY)
                .filter(|c| c.status != "True")
                .map_or_else(String::new, |c| format!(": {} {}", c.reason, c.message));
            let condition = format!("{:?}", dependency.condition).to_lowercase();
            waits.push(wait_for(format!("Workload {name:?} is not {condition}{}", why.trim_end())));
        }
    }
}

fn wait_for(message: String) -> Wait {
    Wait { reason: reasons::WAITING_FOR_DEPENDENCY, message, about: About::Dependencies }
}

/// The network side of the sandbox.
struct Net {
    namespace: NetNamespace,
    attachments: Vec<AttachWish>,
}

fn network(object: &Workload, references: &References, waits: &mut Vec<Wait>) -> Result<Net, Invalid> {
    let none = |namespace| Net { namespace, attachments: Vec::new() };
    if let Some(other) = &object.spec.network_of {
        return Ok(match &references.network_of {
            Some(id) => none(NetNamespace::Of(id.clone())),
            None => {
                waits.push(wait_for(format!("networkOf: Workload {other:?} has no network yet")));
                none(NetNamespace::New)
            }
        });
    }
    let mut net = none(NetNamespace::New);
    for (index, attachment) in object.spec.attachments().iter().enumerate() {
        let path = format!("spec.networks[{index}]");
        let found = references.networks.get(&attachment.name).and_then(Option::as_ref);
        let driver = match (found, attachment.name.as_str()) {
            (Some(network), _) => network.spec.driver,
            (None, "host") => NetworkDriver::Host,
            (None, "none") => NetworkDriver::None,
            (None, name) => {
                waits.push(Wait {
                    reason: reasons::NOT_FOUND,
                    message: format!("{path}: Network {name:?} does not exist in this namespace"),
                    about: About::Networks,
                });
                continue;
            }
        };
        match driver {
            NetworkDriver::Host => return Ok(none(NetNamespace::Host)),
            NetworkDriver::None => return Ok(none(NetNamespace::New)),
            _ => {}
        }
        if let Some(network) = found {
            let conditions = network.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
            if !is_true(conditions, condition_type::READY) {
                let why = find_condition(conditions, condition_type::READY).map_or("", |c| c.message.as_str());
                waits.push(Wait {
                    reason: reasons::NETWORKS_PENDING,
                    message: format!("Network {:?} is not ready: {why}", attachment.name)
                        .trim_end_matches(": ")
                        .to_owned(),
                    about: About::Networks,
                });
            }
        }
        let addresses = match &attachment.ip {
            None => Vec::new(),
            Some(ip) => vec![parse_ip(&format!("{path}.ip"), ip)?],
        };
        let network = names::network_key(&object.namespace().unwrap_or_default(), &attachment.name)
            .map_err(|error| Invalid::field(format!("{path}.name"), error))?;
        let through_node = !matches!(driver, NetworkDriver::Macvlan | NetworkDriver::Ipvlan);
        net.attachments.push(AttachWish { network, addresses, through_node });
    }
    Ok(net)
}

fn parse_ip(path: &str, text: &str) -> Result<IpAddr, Invalid> {
    text.parse().map_err(|_| Invalid::field(path, format!("{text:?} is not an IP address")))
}

fn sandbox_spec(
    object: &Workload,
    net: &Net,
    hashes: Option<BTreeMap<String, String>>,
) -> Result<SandboxSpec, Invalid> {
    let spec = &object.spec;
    let on_host = net.namespace == NetNamespace::Host;
    let sysctls: BTreeMap<String, String> = spec
        .security_context
        .iter()
        .flat_map(|context| &context.sysctls)
        .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
        .collect();
    if on_host && !sysctls.is_empty() {
        return Err(Invalid::field(
            "spec.securityContext.sysctls",
            "with the network host they would change the node: set them there, or choose another network",
        ));
    }
    let hostname = spec.hostname.clone().unwrap_or_else(|| object.name_any());
    let host_ipc = spec.host_ipc == Some(true);
    // Whatever is in here, changed, makes a new sandbox; what is not can change under running containers.
    let mut revision = serde_json::json!({
        "net": net.namespace,
        "attachments": net.attachments.iter().map(|a| (a.network.as_str(), &a.addresses)).collect::<Vec<_>>(),
        "hostname": hostname,
        "ipc": host_ipc,
        "sysctls": sysctls,
        "init": spec.init_containers,
        "restarted": object.annotations().get(labels::RESTARTED_AT),
    });
    if let Some(hashes) = hashes {
        revision["containers"] = serde_json::json!(hashes);
    }
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let id: SandboxId = names::sandbox_id(&object.name_any(), uid, &revision.to_string())
        .map_err(|error| Invalid::field("metadata.name", error))?;
    Ok(SandboxSpec {
        id,
        labels: owner_labels(object),
        hostname,
        net: net.namespace.clone(),
        host_ipc,
        host_uts: on_host,
        shm_size: SHM_SIZE,
        sysctls,
    })
}

fn etc_files(object: &Workload, references: &References) -> Result<EtcFiles, Invalid> {
    let spec = &object.spec;
    let mut files = EtcFiles::default();
    for (index, alias) in spec.host_aliases.iter().enumerate() {
        let ip = parse_ip(&format!("spec.hostAliases[{index}].ip"), &alias.ip)?;
        files.hosts.push((ip, alias.hostnames.clone()));
    }
    if let Some(config) = &spec.dns_config {
        for (index, server) in config.nameservers.iter().enumerate() {
            files.nameservers.push(parse_ip(&format!("spec.dnsConfig.nameservers[{index}]"), server)?);
        }
        files.searches.extend(config.searches.iter().cloned());
        files.options = config
            .options
            .iter()
            .map(|option| match &option.value {
                Some(value) => format!("{}:{value}", option.name),
                None => option.name.clone(),
            })
            .collect();
    }
    // In the order of the attachments, the first one's before the others'.
    let attachments = spec.attachments();
    let networks = attachments.iter().filter_map(|a| references.networks.get(&a.name).and_then(Option::as_ref));
    for network in networks {
        let Some(dns) = network.spec.dns.as_ref() else { continue };
        // With a name server of ours it is the one that asks them.
        if !crate::network::answers_names(&network.spec) {
            for (index, upstream) in dns.upstreams.iter().enumerate() {
                files.nameservers.push(parse_ip(&format!("dns.upstreams[{index}]"), upstream)?);
            }
        }
        files.searches.extend(dns.searches.iter().cloned());
    }
    Ok(files)
}

fn ports(object: &Workload, net: &Net) -> Result<Vec<PortWish>, Invalid> {
    let mut ports: Vec<PortWish> = Vec::new();
    for (c, container) in object.spec.containers.iter().enumerate() {
        for (p, port) in container.ports.iter().enumerate() {
            let path = format!("spec.containers[{c}].ports[{p}]");
            let Some(host_port) = port.host_port else { continue };
            if net.namespace == NetNamespace::Host {
                // The container listens on the node itself.
                if host_port != port.container_port {
                    let message = "with the network host it must equal containerPort, or be left out";
                    return Err(Invalid::field(format!("{path}.hostPort"), message));
                }
                continue;
            }
            if net.attachments.is_empty()
                && net.namespace == NetNamespace::New
                && !object.spec.networks.is_empty()
                && object.spec.networks.iter().any(|n| n.name == "none")
            {
                let message = "a workload on the network none has no address to publish";
                return Err(Invalid::field(format!("{path}.hostPort"), message));
            }
            if !net.attachments.is_empty() && !net.attachments.iter().any(|attachment| attachment.through_node) {
                let message =
                    "cannot be published: on a macvlan or ipvlan network it is reached at the Workload's own address";
                return Err(Invalid::field(format!("{path}.hostPort"), message));
            }
            let host_ip = match port.host_ip.as_deref() {
                None | Some("" | "0.0.0.0" | "::") => None,
                Some(text) => Some(parse_ip(&format!("{path}.hostIP"), text)?),
            };
            let wish = PortWish {
                host_ip,
                host_port,
                protocol: match port.protocol {
                    ApiProtocol::Tcp => Protocol::Tcp,
                    ApiProtocol::Udp => Protocol::Udp,
                    ApiProtocol::Sctp => Protocol::Sctp,
                },
                target_port: port.container_port,
            };
            let clash = |other: &&PortWish| {
                other.host_port == wish.host_port
                    && other.protocol == wish.protocol
                    && (other.host_ip.is_none() || wish.host_ip.is_none() || other.host_ip == wish.host_ip)
            };
            if ports.iter().any(|other| clash(&other)) {
                let message = format!("{host_port} is published twice by this workload");
                return Err(Invalid::field(format!("{path}.hostPort"), message));
            }
            ports.push(wish);
        }
    }
    Ok(ports)
}

/// Makes the containers' wishes.
struct Maker<'a> {
    object: &'a Workload,
    references: &'a References,
    place: &'a Place,
    volumes: &'a volumes::Volumes,
    cgroup: &'a CgroupPath,
    waits: Vec<Wait>,
}

impl Maker<'_> {
    fn containers(&mut self, path: &str, all: &[Container]) -> Result<Vec<ContainerWish>, Invalid> {
        all.iter().enumerate().map(|(index, c)| self.container(&format!("{path}[{index}]"), c)).collect()
    }

    fn container(&mut self, path: &str, container: &Container) -> Result<ContainerWish, Invalid> {
        let variables = env::variables(self.object, container, path, self.place, self.references, &mut self.waits)?;
        let map: BTreeMap<String, String> = variables.iter().cloned().collect();
        let expand = |words: &[String]| words.iter().map(|word| env::expand(word, &map)).collect();
        let (log_max_size, log_max_files) = logging(path, container)?;
        let lifecycle = container.lifecycle.as_ref();
        let template = Template {
            command: expand(&container.command),
            args: expand(&container.args),
            working_dir: container.working_dir.clone(),
            env: variables,
            tty: container.tty,
            stdin: container.stdin,
            mounts: self.mounts(path, container)?,
            ulimits: ulimits(container),
            security: security::security(self.object, container, path, &self.place.data_dir)?,
            host_pid: self.object.spec.host_pid == Some(true),
            oom_score_adj: None,
            stop_signal: lifecycle.and_then(|l| l.stop_signal.clone()),
            log_max_size,
            log_max_files,
        };
        let image = image(path, container)?;
        let hash = self.hash(&template, &image, container);
        Ok(ContainerWish {
            name: container.name.clone(),
            image,
            limits: limits::limits(path, container)?,
            hash,
            probes: Probes {
                startup: container.startup_probe.clone(),
                liveness: container.liveness_probe.clone(),
                readiness: container.readiness_probe.clone(),
            },
            ports: container.ports.iter().filter_map(|p| Some((p.name.clone()?, p.container_port))).collect(),
            signal: self.signal(container),
            sidecar: container.restart_policy == Some(container::ContainerRestartPolicy::Always),
            pre_stop: lifecycle.and_then(|l| l.pre_stop.clone()),
            post_start: lifecycle.and_then(|l| l.post_start.clone()),
            template,
        })
    }

    fn signal(&self, container: &Container) -> Option<String> {
        let mounts = container.volume_mounts.iter();
        let content: BTreeMap<&str, &String> =
            mounts.filter_map(|m| Some((m.name.as_str(), self.volumes.signal_on.get(&m.name)?))).collect();
        (!content.is_empty()).then(|| names::short_hash(&format!("{content:?}"), 16))
    }

    fn mounts(&self, path: &str, container: &Container) -> Result<Vec<MountWish>, Invalid> {
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().enumerate() {
            let path = format!("{path}.volumeMounts[{index}]");
            if !self.volumes.wishes.contains_key(&mount.name) && !self.volumes.waiting.contains(&mount.name) {
                return Err(Invalid::field(
                    format!("{path}.name"),
                    format!("there is no volume {:?} in spec.volumes", mount.name),
                ));
            }
            mounts.push(MountWish {
                volume: mount.name.clone(),
                path: mount.mount_path.clone(),
                sub_path: (!mount.sub_path.is_empty()).then(|| mount.sub_path.clone()),
                read_only: mount.read_only || self.volumes.read_only.contains(&mount.name),
                propagation: match mount.mount_propagation {
                    None | Some(container::MountPropagation::None) => String::new(),
                    Some(container::MountPropagation::HostToContainer) => "rslave".to_owned(),
                    Some(container::MountPropagation::Bidirectional) => "rshared".to_owned(),
                },
            });
        }
        // A mount below another must come after it.
        mounts.sort_by_key(|mount| mount.path.matches('/').count());
        Ok(mounts)
    }

    /// Everything whose change means another container. Secrets go in as part of a one-way hash only.
    fn hash(&self, template: &Template, image: &ImageWish, container: &Container) -> String {
        let used = container.volume_mounts.iter().map(|m| m.name.as_str());
        let files: BTreeMap<&str, &String> =
            used.filter_map(|name| Some((name, self.volumes.restart_on.get(name)?))).collect();
        let sources: BTreeMap<&str, String> = container
            .volume_mounts
            .iter()
            .filter_map(|m| Some((m.name.as_str(), source_key(self.volumes.wishes.get(&m.name)?))))
            .collect();
        let whole = serde_json::json!({
            "template": template,
            "image": image.fetch.reference,
            "files": files,
            "sources": sources,
            "cgroup": self.cgroup.as_str(),
        });
        names::short_hash(&whole.to_string(), 16)
    }
}

/// What of a volume's source means another mount.
fn source_key(volume: &VolumeWish) -> String {
    match volume {
        VolumeWish::Path(path) | VolumeWish::HostPath(path, _) => path.display().to_string(),
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Disk) => "disk".to_owned(),
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Memory { size_limit }) => {
            format!("memory {size_limit:?}")
        }
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Files { in_memory, .. }) => {
            format!("files {in_memory}")
        }
    }
}

fn image(path: &str, container: &Container) -> Result<ImageWish, Invalid> {
    normalize(&container.image).map_err(|error| Invalid::field(format!("{path}.image"), error))?;
    let fetch = Fetch::new(&container.image);
    let policy = match container.image_pull_policy {
        PullPolicy::Always => PullRule::Always,
        PullPolicy::IfNotPresent => PullRule::IfAbsent,
        PullPolicy::Never => PullRule::Never,
        PullPolicy::Newer => PullRule::Newer,
    };
    Ok(ImageWish { fetch, policy, digest: None })
}

fn logging(path: &str, container: &Container) -> Result<(u64, u32), Invalid> {
    let Some(logging) = &container.logging else { return Ok((LOG_MAX_SIZE, LOG_MAX_FILES)) };
    let size = match &logging.max_size {
        None => LOG_MAX_SIZE,
        Some(size) => size.bytes().map_err(|error| Invalid::field(format!("{path}.logging.maxSize"), error))?,
    };
    Ok((size, logging.max_files.unwrap_or(LOG_MAX_FILES)))
}

fn ulimits(container: &Container) -> Vec<(String, u64, u64)> {
    // -1 is "unlimited".
    let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let all = container.resources.iter().flat_map(|r| &r.ulimits);
    all.map(|u| {
        let name = u.name.oci_name().trim_start_matches("RLIMIT_").to_lowercase();
        (name, value(u.soft), value(u.hard))
    })
    .collect()
}

/// Whether the volume's access mode makes every mount of it read-only.
pub fn is_read_only(mode: AccessMode) -> bool {
    mode == AccessMode::ReadOnlyMany
}
