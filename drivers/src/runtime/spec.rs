//! The OCI runtime specification of a container: what it asks for, laid over its image's defaults, in the terms of
//! Docker and Kubernetes. Decides without touching anything; the node's facts come in as values.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::image::Config;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType,
    LinuxResources, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec,
};

use super::accounts::Identity;
use super::node::Node;
use super::{ContainerSpec, Error, Namespace, limits};
use crate::cgroups::Version;

mod capabilities;
mod mounts;
mod seccomp;

/// Containers whose specifications have equal values share one shim.
const SHIM_GROUP: &str = "io.containerd.runc.v2.group";
/// Where programs are looked for when neither image nor container says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Parts of /proc and /sys that tell about the node or reach into it.
const MASKED_PATHS: &[&str] = &[
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
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything a specification is built from.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) spec: &'a ContainerSpec,
    pub(super) image: &'a Config,
    pub(super) identity: &'a Identity,
    /// Host name that the container sees, for `HOSTNAME`.
    pub(super) hostname: &'a str,
    pub(super) node: &'a Node,
    pub(super) foreign_architectures: bool,
    /// Containers of the same name share a shim.
    pub(super) shim: &'a str,
    /// Device nodes of the node, for privileged containers.
    pub(super) devices: &'a [LinuxDevice],
    /// The parsed file of a `Localhost` profile.
    pub(super) profile: Option<oci_spec::runtime::LinuxSeccomp>,
}

pub(super) use seccomp::read_profile;

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
    // The host name belongs to the pinned namespace; set here, the OCI runtime would change it for all.
    oci.set_hostname(None);
    let capabilities = capabilities::set(&spec.security, inputs.node.capabilities)?;
    oci.set_linux(Some(linux(inputs, &capabilities)?));
    oci.set_process(Some(process(inputs, identity, capabilities)?));
    oci.set_annotations(Some(HashMap::from([(SHIM_GROUP.to_owned(), inputs.shim.to_owned())])));
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
    process.set_apparmor_profile(security.apparmor.clone());
    process.set_oom_score_adj(spec.oom_score_adj.filter(|wanted| {
        let possible = *wanted >= node.lowest_oom_score_adj;
        if !possible {
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
    linux.set_namespaces(Some(namespaces(spec, node)));
    linux.set_cgroups_path(Some(PathBuf::from(spec.cgroup.as_str())));
    let mut resources = limits::resources(&spec.limits, node, limits::Purpose::Create)?;
    allow_devices(&mut resources, security.privileged);
    linux.set_resources(Some(resources));
    linux.set_sysctl(Some(spec.sysctls.clone().into_iter().collect()));
    let masked = !security.privileged && !security.unmasked_proc;
    let paths = |paths: &[&str]| masked.then(|| paths.iter().map(|p| (*p).to_owned()).collect());
    linux.set_masked_paths(paths(MASKED_PATHS));
    linux.set_readonly_paths(paths(READONLY_PATHS));
    if security.privileged && !inputs.devices.is_empty() {
        linux.set_devices(Some(inputs.devices.to_vec()));
    }
    linux.set_seccomp(seccomp::profile(inputs, capabilities));
    linux.set_rootfs_propagation(mounts::root_propagation(spec).map(str::to_owned));
    Ok(linux)
}

fn namespaces(spec: &ContainerSpec, node: &Node) -> Vec<LinuxNamespace> {
    let wanted = [
        (LinuxNamespaceType::Mount, &Namespace::Private),
        (LinuxNamespaceType::Pid, &spec.namespaces.pid),
        (LinuxNamespaceType::Network, &spec.namespaces.net),
        (LinuxNamespaceType::Ipc, &spec.namespaces.ipc),
        (LinuxNamespaceType::Uts, &spec.namespaces.uts),
    ];
    let mut all: Vec<LinuxNamespace> = wanted.into_iter().filter_map(|(kind, ns)| namespace(kind, ns)).collect();
    // In version 1 the container sees the node's cgroup paths, as with Docker.
    if node.cgroup_version == Version::V2 && !spec.security.privileged {
        all.extend(namespace(LinuxNamespaceType::Cgroup, &Namespace::Private));
    }
    all
}

fn namespace(kind: LinuxNamespaceType, wanted: &Namespace) -> Option<LinuxNamespace> {
    let path = match wanted {
        Namespace::Host => return None,
        Namespace::Private => None,
        Namespace::Path(path) => Some(path.clone()),
    };
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace.set_path(path);
    Some(namespace)
}

/// Character devices that every container may open: null, zero, full, random, urandom, tty, console, ptmx, pts/*.
const USUAL_DEVICES: &[(i64, Option<i64>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

fn allow_devices(resources: &mut LinuxResources, all: bool) {
    let rule = |allow, typ, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(typ);
        rule.set_major(major);
        rule.set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rule
    };
    if all {
        resources.set_devices(Some(vec![rule(true, None, None, None, "rwm")]));
        return;
    }
    // Making device files is harmless without the right to open them, and installers of packages do it.
    let mut rules = vec![
        rule(false, None, None, None, "rwm"),
        rule(true, Some(LinuxDeviceType::C), None, None, "m"),
        rule(true, Some(LinuxDeviceType::B), None, None, "m"),
    ];
    let usual =
        USUAL_DEVICES.iter().map(|(major, minor)| rule(true, Some(LinuxDeviceType::C), Some(*major), *minor, "rwm"));
    rules.extend(usual);
    resources.set_devices(Some(rules));
}

/// The device files of the node, as privileged containers get them. Blocking.
pub(super) fn node_devices() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    collect_devices(std::path::Path::new("/dev"), &mut found);
    found
}

fn collect_devices(dir: &std::path::Path, found: &mut Vec<LinuxDevice>) {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() {
            // These are file systems of their own in a container.
            if !["pts", "shm", "fd", "mqueue", "hugepages", "console", "ptmx"].iter().any(|skip| name == *skip) {
                collect_devices(&path, found);
            }
            continue;
        }
        if !(kind.is_char_device() || kind.is_block_device()) || name == "console" || name == "ptmx" {
            continue;
        }
        let mut device = LinuxDevice::default();
        device.set_path(path);
        device.set_typ(if kind.is_char_device() { LinuxDeviceType::C } else { LinuxDeviceType::B });
        device.set_major(i64::from(rustix::fs::major(metadata.rdev())));
        device.set_minor(i64::from(rustix::fs::minor(metadata.rdev())));
        device.set_file_mode(Some(metadata.mode() & 0o7777));
        device.set_uid(Some(metadata.uid()));
        device.set_gid(Some(metadata.gid()));
        found.push(device);
    }
}

fn invalid(field: &str, message: String) -> Error {
    Error::Invalid { field: field.to_owned(), message }
}

#[cfg(test)]
mod tests;
