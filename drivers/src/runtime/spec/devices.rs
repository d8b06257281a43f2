//! Device files: which a container has, and which it may open.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{ContainerSpec, Error, invalid};
use crate::runtime::DeviceWish;

/// A device file of the node in a container.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct GivenDevice {
    pub(super) device: LinuxDevice,
    /// `r`, `w` and `m` (make its file).
    access: String,
}

/// Character devices that every container may open: null, zero, full, random, urandom, tty, console, ptmx, pts/*.
const USUAL: &[(i64, Option<i64>)] = &[
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

/// What the cgroup allows.
pub(super) fn rules(given: &[GivenDevice], all: bool) -> Vec<LinuxDeviceCgroup> {
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
        return vec![rule(true, None, None, None, "rwm")];
    }
    // Making device files is harmless without the right to open them, and installers of packages do it.
    let mut rules = vec![
        rule(false, None, None, None, "rwm"),
        rule(true, Some(LinuxDeviceType::C), None, None, "m"),
        rule(true, Some(LinuxDeviceType::B), None, None, "m"),
    ];
    let character = Some(LinuxDeviceType::C);
    rules.extend(USUAL.iter().map(|(major, minor)| rule(true, character, Some(*major), *minor, "rwm")));
    rules.extend(given.iter().map(|GivenDevice { device, access }| {
        rule(true, Some(device.typ()), Some(device.major()), Some(device.minor()), access)
    }));
    rules
}

/// The device files that the container gets: all for a privileged one, and those that it asks for by path. Blocking.
pub(in crate::runtime) fn given(spec: &ContainerSpec) -> Result<Vec<GivenDevice>, Error> {
    let mut found = Vec::new();
    if spec.security.privileged {
        collect(Path::new("/dev"), &mut found);
    }
    for wish in &spec.devices {
        let DeviceWish::File { path, container_path, permissions } = wish else { continue };
        let problem = |what: String| invalid("devices", format!("{path}: {what}"));
        let metadata = std::fs::metadata(path).map_err(|error| problem(error.to_string()))?;
        let device = device(PathBuf::from(container_path), &metadata);
        let device = device.ok_or_else(|| problem("is not a device file".to_owned()))?;
        // The runtime makes each file once.
        found.retain(|other| other.device.path() != device.path());
        found.push(GivenDevice { device, access: permissions.clone() });
    }
    Ok(found)
}

fn collect(dir: &Path, found: &mut Vec<GivenDevice>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            // These are file systems of their own in a container.
            if !["pts", "shm", "fd", "mqueue", "hugepages", "console", "ptmx"].iter().any(|skip| name == *skip) {
                collect(&path, found);
            }
        } else if name != "console" && name != "ptmx" {
            let device = device(path, &metadata);
            found.extend(device.map(|device| GivenDevice { device, access: "rwm".to_owned() }));
        }
    }
}

/// A file like this one, if that is a device.
fn device(path: PathBuf, like: &Metadata) -> Option<LinuxDevice> {
    let kind = like.file_type();
    if !(kind.is_char_device() || kind.is_block_device()) {
        return None;
    }
    let mut device = LinuxDevice::default();
    device.set_path(path);
    device.set_typ(if kind.is_char_device() { LinuxDeviceType::C } else { LinuxDeviceType::B });
    device.set_major(i64::from(rustix::fs::major(like.rdev())));
    device.set_minor(i64::from(rustix::fs::minor(like.rdev())));
    device.set_file_mode(Some(like.mode() & 0o7777));
    device.set_uid(Some(like.uid()));
    device.set_gid(Some(like.gid()));
    Some(device)
}
