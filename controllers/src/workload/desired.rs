//! From a Workload's spec and what it refers to, to [`Desired`]: checked once, trusted afterwards. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kube::ResourceExt;
use nodelet_crds::common::{condition_type, find_condition, is_true};
use nodelet_crds::volume::AccessMode;
use nodelet_crds::workload::{DependencyCondition, RestartPolicy, Workload, WorkloadPhase};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::ids::{CgroupPath, InvalidId, SandboxId};
use nodelet_drivers::sandbox::{EtcFiles, NetNamespace, SandboxSpec};

use super::dereference::References;
use super::fit::Shortage;
use super::follow::{self, Followed};
use super::model::{About, Batch, Desired, Intent, ResizeHold, SandboxWish, Wait};
use super::{update, volumes};
use crate::backoff::{Backoff, RestartBackoff};
use crate::context::Context;
use crate::invalid::Invalid;
use crate::names;

mod containers;
mod network;

use containers::Maker;
pub use containers::{image_wish, named_ports};
use network::{Net, network, parse_ip, ports};

/// Shared memory of a sandbox, as containers expect it.
const SHM_SIZE: u64 = 64 << 20;

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
    /// How soon containers that ended are started again, where the workload says nothing.
    pub backoff: RestartBackoff,
}

impl Place {
    /// This node.
    pub fn of(ctx: &Context) -> Self {
        Self {
            node: ctx.settings.node_name.clone(),
            cgroups: ctx.drivers.cgroups.parent().clone(),
            data_dir: ctx.settings.data_dir.clone(),
            capacity: ctx.settings.capacity,
            backoff: ctx.settings.restart_backoff,
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
    if let Some(shortage) = &references.fit.shortage {
        let message = shortage.to_string();
        waits.push(Wait { reason: reasons::INSUFFICIENT_RESOURCES, message, about: About::Resources });
    }
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
    let volumes = volumes::volumes(object, references, place, &mut waits)?;
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
    let sandbox_spec = sandbox_spec(object, &net, hashes, &references.followed)?;
    let cgroup = parent.sandbox(&sandbox_spec.id).map_err(|error| Invalid::field("metadata.name", error))?;
    let mut maker = Maker { object, references, place, volumes: &volumes, cgroup: &cgroup, waits };
    let init = maker.containers("spec.initContainers", &spec.init_containers)?;
    let containers = maker.containers("spec.containers", &spec.containers)?;
    let waits = maker.waits;
    Ok(Desired {
        batch: batch(object)?,
        backoff: backoff(object, place.backoff)?,
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
        evicted: None,
        resize: references.fit.resize.as_ref().map(resize_hold),
        waits,
    })
}

/// Just enough to take a workload down that can no longer be understood.
pub fn for_removal(object: &Workload, place: &Place) -> Result<Desired, InvalidId> {
    let id = names::sandbox_id(&object.name_any(), object.metadata.uid.as_deref().unwrap_or_default(), "removal")?;
    let cgroup = place.cgroups.sandbox(&id)?;
    let spec = SandboxSpec {
        id,
        labels: owner_labels(object),
        hostname: object.name_any(),
        net: NetNamespace::New,
        host_ipc: false,
        own_users: false,
        host_uts: false,
        shared: false,
        shm_size: SHM_SIZE,
        sysctls: BTreeMap::new(),
    };
    Ok(Desired {
        batch: Batch::default(),
        backoff: place.backoff,
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
        evicted: None,
        resize: None,
        waits: Vec::new(),
    })
}

fn resize_hold(shortage: &Shortage) -> ResizeHold {
    let reason = if shortage.is_for_ever() { reasons::INFEASIBLE } else { reasons::DEFERRED };
    ResizeHold { reason, message: shortage.to_string() }
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

/// The workload's own times, and the node's for those that it does not give.
fn backoff(object: &Workload, node: RestartBackoff) -> Result<RestartBackoff, Invalid> {
    let Some(own) = &object.spec.crash_loop_back_off else { return Ok(node) };
    let or = |seconds: Option<u32>, node| seconds.map_or(node, |seconds| Duration::from_secs(u64::from(seconds)));
    let max = or(own.max_seconds, node.delays.max);
    let first = or(own.initial_seconds, node.delays.first.min(max));
    if first > max {
        let message = format!("is longer than maxSeconds ({} s)", max.as_secs());
        return Err(Invalid::field("spec.crashLoopBackOff.initialSeconds", message));
    }
    Ok(RestartBackoff { delays: Backoff { first, max }, reset: or(own.reset_seconds, node.reset) })
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

fn sandbox_spec(
    object: &Workload,
    net: &Net,
    hashes: Option<BTreeMap<String, String>>,
    followed: &Followed,
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
    let macs: Vec<_> = net.attachments.iter().map(|a| a.link.mac).collect();
    if macs.iter().any(Option::is_some) {
        revision["macs"] = serde_json::json!(macs);
    }
    let own_users = own_users(spec, &net.namespace)?;
    if own_users {
        revision["users"] = serde_json::json!(own_users);
    }
    // Who alone shares with nobody. The parameters are set in namespaces of the sandbox, and so is who owns them.
    let containers = spec.containers.len() + spec.init_containers.len();
    let shared = containers > 1
        || own_users
        || spec.share_process_namespace == Some(true)
        || sysctls.keys().any(|name| !name.starts_with("net."));
    if shared {
        revision["shared"] = serde_json::json!(shared);
    }
    if let Some(hashes) = hashes {
        revision["containers"] = serde_json::json!(hashes);
    }
    if !followed.is_empty() {
        revision["followed"] = serde_json::json!(followed);
    }
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let id: SandboxId = names::sandbox_id(&object.name_any(), uid, &revision.to_string())
        .map_err(|error| Invalid::field("metadata.name", error))?;
    let mut labels = owner_labels(object);
    labels.extend(follow::label(followed));
    Ok(SandboxSpec {
        id,
        labels,
        hostname,
        net: net.namespace.clone(),
        host_ipc,
        own_users,
        host_uts: on_host,
        shared,
        shm_size: SHM_SIZE,
        sysctls,
    })
}

/// Whether the sandbox has users of its own; they own its namespaces, so that none can be anybody else's.
fn own_users(spec: &nodelet_crds::WorkloadSpec, net: &NetNamespace) -> Result<bool, Invalid> {
    if spec.host_users != Some(false) {
        return Ok(false);
    }
    let other = match net {
        NetNamespace::Host => Some("the network host"),
        NetNamespace::Of(_) => Some("the network of another Workload"),
        NetNamespace::New if spec.host_pid == Some(true) => Some("hostPID"),
        NetNamespace::New if spec.host_ipc == Some(true) => Some("hostIPC"),
        NetNamespace::New => None,
    };
    match other {
        None => Ok(true),
        Some(other) => Err(Invalid::field("spec.hostUsers", format!("false cannot go with {other}: leave out one"))),
    }
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

/// Whether the volume's access mode makes every mount of it read-only.
pub fn is_read_only(mode: AccessMode) -> bool {
    mode == AccessMode::ReadOnlyMany
}
