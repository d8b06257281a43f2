//! The OCI runtime specification of a container: what it asks for, laid over its image's defaults, in the terms of
//! Docker and Kubernetes. Decides without touching anything; the node's facts come in as values.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::image::Config;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, LinuxPidsBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec,
};

use super::accounts::Identity;
use super::node::Node;
use super::{ContainerSpec, Error, Namespace, limits};
use crate::cgroups::Version;
use crate::sandbox::USERS;

mod capabilities;
mod devices;
mod mounts;
mod seccomp;

/// Containers whose specifications have equal values share one shim.
pub(super) const SHIM_GROUP: &str = "io.containerd.runc.v2.group";
/// Where programs are looked for when neither image nor container says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Parts of /proc and /sys that tell about the node or reach into it.
pub(super) const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Parts of /proc that would change the node.
pub(super) const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything a specification is built from.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) spec: &'a ContainerSpec,
    /// The process namespace that stands for [`Namespace::Sandbox`].
    pub(super) shared_pid: Option<&'a std::path::Path>,
    pub(super) image: &'a Config,
    pub(super) identity: &'a Identity,
    /// Host name that the container sees, for `HOSTNAME`.
    pub(super) hostname: &'a str,
    pub(super) node: &'a Node,
    pub(super) foreign_architectures: bool,
    /// Name of the AppArmor profile, where there is to be one.
    pub(super) apparmor: Option<String>,
    /// Whether a read-only mount can be so with all that is mounted below it.
    pub(super) recursive_read_only: bool,
    /// Containers of the same name share a shim.
    pub(super) shim: &'a str,
    /// Device files of the node that it gets.
    pub(super) devices: &'a [GivenDevice],
    /// The parsed file of a `Localhost` profile.
    pub(super) profile: Option<oci_spec::runtime::LinuxSeccomp>,
}

pub(super) use devices::{GivenDevice, given};
pub(super) use seccomp::read_profile;

/// crun makes a cgroup of its own in a scope, unless told not to. runc does not know this.
const NO_INNER_CGROUP: &str = "run.oci.systemd.subgroup";

/// Builds the specification.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Spec, Error> {
    let Inputs { spec, identity, .. } = inputs;
    let mut root = Root::default();
    // Relative to the bundle: the shim mounts the snapshot there.
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(spec.security.read_only_root));
    let mut oci = Spec::default();
    oci.set_version("1.0.2".to_owned());
    oci.set_root(Some(root));
    oci.set_mounts(Some(mounts::mounts(inputs)));
    // In a namespace that is joined, the OCI runtime would change it for all.
    oci.set_hostname(spec.hostname.clone().filter(|_| spec.namespaces.uts == Namespace::Private));
    let capabilities = capabilities::set(&spec.security, inputs.node.capabilities)?;
    oci.set_linux(Some(linux(inputs, &capabilities)?));
    oci.set_process(Some(process(inputs, identity, capabilities)?));
    let mut annotations = HashMap::from([(SHIM_GROUP.to_owned(), inputs.shim.to_owned())]);
    if spec.cgroup.is_systemd() {
        annotations.insert(NO_INNER_CGROUP.to_owned(), String::new());
    }
    oci.set_annotations(Some(annotations));
    Ok(oci)
}

fn process(inputs: &Inputs<'_>, identity: &Identity, capabilities: capabilities::Set) -> Result<Process, Error> {
    let Inputs { spec, image, node, .. } = inputs;
    let security = &spec.security;
    let mut process = Process::default();
    process.set_terminal(Some(spec.tty));
    process.set_user(identity.to_oci());
    process.set_args(Some(arguments(spec, image)?));
    process.set_env(Some(environment(inputs, identity)));
    let image_dir = image.working_dir().as_deref().filter(|dir| !dir.is_empty());
    let cwd = spec.working_dir.as_deref().or(image_dir).unwrap_or("/");
    if !cwd.starts_with('/') {
        return Err(invalid("workingDir", format!("{cwd:?} is not an absolute path")));
    }
    process.set_cwd(PathBuf::from(cwd));
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()));
    sets.set_effective(Some(capabilities.clone()));
    sets.set_permitted(Some(capabilities));
    // Inheritable ones would reach programs whose files allow it (CVE-2022-24769).
    sets.set_inheritable(None);
    sets.set_ambient(None);
    process.set_capabilities(Some(sets));
    process.set_rlimits(Some(rlimits(spec, node)?));
    process.set_no_new_privileges(Some(!security.privileged && !security.allow_privilege_escalation));
    process.set_apparmor_profile(inputs.apparmor.clone());
    // Of itself it would have containerd's, which its unit keeps from being killed whatever else is.
    process.set_oom_score_adj(Some(spec.oom_score_adj.unwrap_or(0)).filter(|wanted| {
        let possible = *wanted >= node.lowest_oom_score_adj;
        if !possible && spec.oom_score_adj.is_some() {
            tracing::warn!(container = %spec.id, wanted, lowest = node.lowest_oom_score_adj,
                "oom_score_adj cannot be lowered without CAP_SYS_RESOURCE; the inherited value is kept");
        }
        possible
    }));
    Ok(process)
}

/// `command` replaces the image's entry point and, with it, its arguments; `args` replace only the arguments.
fn arguments(spec: &ContainerSpec, image: &Config) -> Result<Vec<String>, Error> {
    let entrypoint = image.entrypoint().clone().unwrap_or_default();
    let cmd = image.cmd().clone().unwrap_or_default();
    let arguments = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => [spec.command.clone(), spec.args.clone()].concat(),
        (true, false) => [entrypoint, spec.args.clone()].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    if arguments.is_empty() {
        return Err(invalid("command", format!("image {} names no program; set command", spec.image)));
    }
    Ok(arguments)
}

fn environment(inputs: &Inputs<'_>, identity: &Identity) -> Vec<String> {
    let Inputs { spec, image, hostname, .. } = inputs;
    let mut env = indexmap::IndexMap::<String, String>::new();
    let mut set = |assignment: &str| {
        if let Some((name, value)) = assignment.split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
    };
    set(DEFAULT_PATH);
    set(&format!("HOSTNAME={hostname}"));
    if spec.tty {
        set("TERM=xterm");
    }
    for assignment in image.env().iter().flatten() {
        set(assignment);
    }
    for (name, value) in &spec.env {
        env.insert(name.clone(), value.clone());
    }
    let home = env.entry("HOME".to_owned()).or_default();
    if home.is_empty() {
        home.clone_from(&identity.home);
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn rlimits(spec: &ContainerSpec, node: &Node) -> Result<Vec<PosixRlimit>, Error> {
    let mut all = Vec::new();
    for (name, soft, hard) in &spec.ulimits {
        let (kind, resource) = rlimit_kind(name).ok_or_else(|| {
            invalid("resources.ulimits", format!("{name:?} is not a limit; known are nofile, nproc, core, memlock, …"))
        })?;
        let mut hard = *hard;
        if node.rlimits_are_capped
            && let Some(own) = rustix::process::getrlimit(resource).maximum
            && hard > own
        {
            tracing::warn!(container = %spec.id, limit = name, wanted = hard, highest = own,
                "a hard limit cannot be raised without CAP_SYS_RESOURCE; the highest possible is given");
            hard = own;
        }
        let rlimit = PosixRlimitBuilder::default().typ(kind).hard(hard).soft((*soft).min(hard)).build();
        all.push(rlimit.expect("every field has a default"));
    }
    Ok(all)
}

fn rlimit_kind(name: &str) -> Option<(PosixRlimitType, rustix::process::Resource)> {
    use rustix::process::Resource;
    let name = name.to_ascii_lowercase();
    Some(match name.strip_prefix("rlimit_").unwrap_or(&name) {
        "as" => (PosixRlimitType::RlimitAs, Resource::As),
        "core" => (PosixRlimitType::RlimitCore, Resource::Core),
        "cpu" => (PosixRlimitType::RlimitCpu, Resource::Cpu),
        "data" => (PosixRlimitType::RlimitData, Resource::Data),
        "fsize" => (PosixRlimitType::RlimitFsize, Resource::Fsize),
        "locks" => (PosixRlimitType::RlimitLocks, Resource::Locks),
        "memlock" => (PosixRlimitType::RlimitMemlock, Resource::Memlock),
        "msgqueue" => (PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
        "nice" => (PosixRlimitType::RlimitNice, Resource::Nice),
        "nofile" => (PosixRlimitType::RlimitNofile, Resource::Nofile),
        "nproc" => (PosixRlimitType::RlimitNproc, Resource::Nproc),
        "rss" => (PosixRlimitType::RlimitRss, Resource::Rss),
        "rtprio" => (PosixRlimitType::RlimitRtprio, Resource::Rtprio),
        "rttime" => (PosixRlimitType::RlimitRttime, Resource::Rttime),
        "sigpending" => (PosixRlimitType::RlimitSigpending, Resource::Sigpending),
        "stack" => (PosixRlimitType::RlimitStack, Resource::Stack),
        _ => return None,
    })
}

fn linux(inputs: &Inputs<'_>, capabilities: &capabilities::Set) -> Result<Linux, Error> {
    let Inputs { spec, node, .. } = inputs;
    let security = &spec.security;
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(inputs)));
    if let Some(users) = &spec.namespaces.user {
        let map = LinuxIdMappingBuilder::default().container_id(0u32).host_id(users.first).size(USERS).build();
        let map = vec![map.expect("every field is given")];
        linux.set_uid_mappings(Some(map.clone()));
        linux.set_gid_mappings(Some(map));
    }
    linux.set_cgroups_path(Some(PathBuf::from(spec.cgroup.oci())));
    let mut resources = limits::resources(&spec.limits, node, limits::Purpose::Create)?;
    if spec.cgroup.is_systemd() && resources.pids().is_none() {
        // What is not limited would get systemd's DefaultTasksMax.
        let unlimited = LinuxPidsBuilder::default().limit(-1).build().expect("every field is given");
        resources.set_pids(Some(unlimited));
    }
    resources.set_devices(Some(devices::rules(inputs.devices, security.privileged)));
    linux.set_resources(Some(resources));
    linux.set_sysctl(Some(spec.sysctls.clone().into_iter().collect()));
    let masked = !security.privileged && !security.unmasked_proc;
    let paths = |paths: &[&str]| masked.then(|| paths.iter().map(|p| (*p).to_owned()).collect());
    linux.set_masked_paths(paths(MASKED_PATHS));
    linux.set_readonly_paths(paths(READONLY_PATHS));
    if !inputs.devices.is_empty() {
        linux.set_devices(Some(inputs.devices.iter().map(|given| given.device.clone()).collect()));
    }
    linux.set_seccomp(seccomp::profile(inputs, capabilities));
    linux.set_rootfs_propagation(mounts::root_propagation(spec).map(str::to_owned));
    Ok(linux)
}

fn namespaces(inputs: &Inputs<'_>) -> Vec<LinuxNamespace> {
    let Inputs { spec, node, shared_pid, .. } = inputs;
    let shared = shared_pid.map(|path| Namespace::Path(path.to_owned()));
    let pid = if spec.namespaces.pid == Namespace::Sandbox { shared.as_ref() } else { None };
    let wanted = [
        (LinuxNamespaceType::Mount, &Namespace::Private),
        (LinuxNamespaceType::Pid, pid.unwrap_or(&spec.namespaces.pid)),
        (LinuxNamespaceType::Network, &spec.namespaces.net),
        (LinuxNamespaceType::Ipc, &spec.namespaces.ipc),
        (LinuxNamespaceType::Uts, &spec.namespaces.uts),
    ];
    let users = spec.namespaces.user.as_ref().map_or(Namespace::Host, |users| Namespace::Path(users.path.clone()));
    let wanted = [(LinuxNamespaceType::User, &users)].into_iter().chain(wanted);
    let mut all: Vec<LinuxNamespace> = wanted.filter_map(|(kind, ns)| namespace(kind, ns)).collect();
    // In version 1 the container sees the node's cgroup paths, as with Docker.
    if node.cgroup_version == Version::V2 && !spec.security.privileged {
        all.extend(namespace(LinuxNamespaceType::Cgroup, &Namespace::Private));
    }
    all
}

fn namespace(kind: LinuxNamespaceType, wanted: &Namespace) -> Option<LinuxNamespace> {
    let path = match wanted {
        Namespace::Host => return None,
        Namespace::Private | Namespace::Sandbox => None,
        Namespace::Path(path) => Some(path.clone()),
    };
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace.set_path(path);
    Some(namespace)
}

fn invalid(field: &str, message: String) -> Error {
    Error::Invalid { field: field.to_owned(), message }
}

#[cfg(test)]
mod tests;
