//! The file systems of a container beside its root.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::Inputs;
use crate::runtime::{ContainerSpec, Mount as Wanted, MountSource};

/// The usual kernel file systems, each replaced by a wanted mount at the same place, and the wanted ones, parents
/// before children.
pub(super) fn mounts(inputs: &Inputs<'_>) -> Vec<Mount> {
    let wanted = &inputs.spec.mounts;
    let replaced = |mount: &Mount| wanted.iter().any(|w| mount.destination() == Path::new(&w.destination));
    let mut all = usual(inputs.spec.security.privileged);
    all.retain(|mount| !replaced(mount));
    let mut own: Vec<Mount> = wanted.iter().map(|mount| to_oci(mount, inputs.recursive_read_only)).collect();
    // Stable: mounts of equal depth keep their order.
    own.sort_by_key(|mount| mount.destination().components().count());
    all.extend(own);
    all
}

fn usual(privileged: bool) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ]
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from(destination));
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(PathBuf::from(source)));
    mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

fn to_oci(wanted: &Wanted, recursive_read_only: bool) -> Mount {
    let Wanted { destination, source, read_only, propagation } = wanted;
    let access = if *read_only { "ro" } else { "rw" };
    let propagation = if propagation.is_empty() { "rprivate" } else { propagation };
    match source {
        MountSource::Bind(path) => {
            let access = if *read_only && recursive_read_only { "rro" } else { access };
            mount(destination, "bind", &path.to_string_lossy(), &["rbind", propagation, access])
        }
        MountSource::Tmpfs(size) => {
            let size = size.map(|bytes| format!("size={bytes}"));
            let mut options = vec!["nosuid", "nodev", "mode=1777", access];
            options.extend(size.as_deref());
            mount(destination, "tmpfs", "tmpfs", &options)
        }
    }
}

/// A shared mount reaches the node, and a slave one is reached from it, only if the root does not cut it off.
pub(super) fn root_propagation(spec: &ContainerSpec) -> Option<&'static str> {
    let any = |name: &str| spec.mounts.iter().any(|mount| mount.propagation == name);
    if any("rshared") {
        Some("rshared")
    } else if any("rslave") {
        Some("rslave")
    } else {
        None
    }
}
