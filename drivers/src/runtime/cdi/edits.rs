//! What a vendor's file declares for a container, checked and brought into the terms of the OCI runtime.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, LinuxDevice, LinuxDeviceType, Mount};
use serde::Deserialize;

use super::{Edits, HookPoint, rule};

/// `containerEdits`; what it may hold besides is refused by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Declared {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<DeclaredMount>,
    hooks: Vec<DeclaredHook>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceNode {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeclaredMount {
    host_path: String,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeclaredHook {
    hook_name: HookPoint,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

impl Declared {
    /// Adds all of it, or says what of it cannot be.
    pub(super) fn add_to(&self, edits: &mut Edits) -> Result<(), String> {
        let Declared { env, device_nodes, mounts, hooks, additional_gids } = self;
        for assignment in env {
            let (name, value) = assignment.split_once('=').ok_or_else(|| format!("env {assignment:?} has no value"))?;
            edits.env.push((name.to_owned(), value.to_owned()));
        }
        for node in device_nodes {
            let access = node.permissions.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
            if access.chars().any(|letter| !"rwm".contains(letter)) {
                return Err(format!("{}: permissions {access:?} are none of r, w and m", node.path.display()));
            }
            let device = node.to_oci()?;
            edits.rules.extend(rule(&device, access));
            edits.devices.push(device);
        }
        for mount in mounts {
            edits.mounts.push(mount.to_oci()?);
        }
        for hook in hooks {
            edits.hooks.push((hook.hook_name, hook.to_oci()?));
        }
        // Root's group is no help to anybody, and is what a file without a thought has.
        edits.groups.extend(additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }
}

impl DeviceNode {
    fn to_oci(&self) -> Result<LinuxDevice, String> {
        let path = inside(&self.path)?;
        let from = self.host_path.as_deref().unwrap_or(path);
        let mut device = LinuxDevice::default();
        device.set_path(path.to_owned());
        let declared = self.kind.as_deref().map(|kind| match kind {
            "b" => Ok(LinuxDeviceType::B),
            "c" => Ok(LinuxDeviceType::C),
            "u" => Ok(LinuxDeviceType::U),
            "p" => Ok(LinuxDeviceType::P),
            other => Err(format!("{}: type {other:?} is none of b, c, u and p", path.display())),
        });
        let declared = declared.transpose()?;
        match (declared, self.major, self.minor) {
            (Some(LinuxDeviceType::P), ..) => {
                device.set_typ(LinuxDeviceType::P);
            }
            (Some(kind), Some(major), Some(minor)) if major > 0 => {
                device.set_typ(kind);
                device.set_major(major);
                device.set_minor(minor);
            }
            _ => {
                let found = std::fs::metadata(from).map_err(|error| format!("{}: {error}", from.display()))?;
                let kind = match found.file_type() {
                    kind if kind.is_block_device() => LinuxDeviceType::B,
                    kind if kind.is_char_device() => LinuxDeviceType::C,
                    _ => return Err(format!("{} is not a device file", from.display())),
                };
                if declared.is_some_and(|declared| (declared == LinuxDeviceType::B) != (kind == LinuxDeviceType::B)) {
                    return Err(format!("{} is not of the declared type", from.display()));
                }
                device.set_typ(kind);
                device.set_major(i64::from(rustix::fs::major(found.rdev())));
                device.set_minor(i64::from(rustix::fs::minor(found.rdev())));
                device.set_file_mode(Some(found.mode() & 0o7777));
            }
        }
        if let Some(mode) = self.file_mode {
            device.set_file_mode(Some(mode & 0o7777));
        }
        device.set_uid(self.uid);
        device.set_gid(self.gid);
        Ok(device)
    }
}

impl DeclaredMount {
    fn to_oci(&self) -> Result<Mount, String> {
        let kind = self.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind");
        let mut options = self.options.clone();
        if kind == "bind" {
            std::fs::metadata(&self.host_path).map_err(|error| format!("mount of {}: {error}", self.host_path))?;
            if !options.iter().any(|option| option == "bind" || option == "rbind") {
                options.push("rbind".to_owned());
            }
        }
        let mut mount = Mount::default();
        mount.set_destination(inside(&self.container_path)?.to_owned());
        mount.set_source(Some(PathBuf::from(&self.host_path)));
        mount.set_typ(Some(kind.to_owned()));
        mount.set_options(Some(options));
        Ok(mount)
    }
}

impl DeclaredHook {
    fn to_oci(&self) -> Result<Hook, String> {
        let named = || format!("hook {}", self.path.display());
        if !self.path.is_absolute() {
            return Err(format!("{} is not an absolute path", named()));
        }
        std::fs::metadata(&self.path).map_err(|error| format!("{}: {error}", named()))?;
        if self.timeout.is_some_and(|timeout| timeout <= 0) {
            return Err(format!("{} has a timeout that is not above 0", named()));
        }
        let mut hook = Hook::default();
        hook.set_path(self.path.clone());
        hook.set_args(Some(self.args.clone()).filter(|args| !args.is_empty()));
        hook.set_env(Some(self.env.clone()).filter(|env| !env.is_empty()));
        hook.set_timeout(self.timeout);
        Ok(hook)
    }
}

/// A path in the container.
fn inside(path: &Path) -> Result<&Path, String> {
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    if path.is_absolute() && plain {
        return Ok(path);
    }
    Err(format!("{} must be an absolute path without `..`", path.display()))
}
