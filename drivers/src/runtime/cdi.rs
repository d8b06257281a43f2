//! Devices by name: what their vendors' files say that a container needs to use them.
//!
//! # Contract
//! - A name is `vendor/class=device`. The files are read when a container is made, so that what a vendor's tool writes
//!   anew holds for the next one.
//! - Of two files with the same device the one in the later directory holds; within a directory they contradict each
//!   other, and asking for the device is an error.
//! - Nothing that a file asks for is left out silently: what cannot be carried out is refused, with file and device. Files
//!   of other kinds, broken ones too, keep nobody from theirs.
//!
//! Facts: the Container Device Interface specification of the CNCF, versions 0.3 to 1.1.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Process, Spec};
use serde::Deserialize;

use super::Error;

mod edits;

/// Where the files are; a later directory wins.
pub(super) const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What a container gets with its devices.
#[derive(Debug, Default)]
pub(super) struct Edits {
    devices: Vec<LinuxDevice>,
    rules: Vec<LinuxDeviceCgroup>,
    mounts: Vec<Mount>,
    env: Vec<(String, String)>,
    hooks: Vec<(HookPoint, Hook)>,
    groups: Vec<u32>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum HookPoint {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

/// A vendor's file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Vendor {
    cdi_version: String,
    #[allow(dead_code)] // it is known by the time this is read
    kind: String,
    #[allow(dead_code)] // for people
    #[serde(default)]
    annotations: serde_json::Value,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: edits::Declared,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[allow(dead_code)] // for people
    #[serde(default)]
    annotations: serde_json::Value,
    #[serde(default)]
    container_edits: edits::Declared,
}

/// Collects what the devices of these names ask for. Blocking.
pub(super) fn resolve(directories: &[&Path], names: &[&str]) -> Result<Edits, Error> {
    let mut edits = Edits::default();
    let mut applied: Vec<PathBuf> = Vec::new();
    for name in names {
        let problem = |what: String| Error::Invalid { field: "devices".to_owned(), message: format!("{name}: {what}") };
        let (kind, device) = name.split_once('=').ok_or_else(|| problem("is not vendor/class=device".to_owned()))?;
        let (file, vendor, at) = find(directories, kind, device).map_err(problem)?;
        let failed = |what| problem(format!("{}: {what}", file.display()));
        vendor.devices[at].container_edits.add_to(&mut edits).map_err(failed)?;
        // What all devices of a file need comes once.
        if !applied.contains(&file) {
            vendor.container_edits.add_to(&mut edits).map_err(failed)?;
            applied.push(file);
        }
    }
    Ok(edits)
}

/// The file that holds for the device, and the device's place in it.
fn find(directories: &[&Path], kind: &str, device: &str) -> Result<(PathBuf, Vendor, usize), String> {
    let mut unreadable = Vec::new();
    for directory in directories.iter().rev() {
        let mut found: Option<(PathBuf, Vendor, usize)> = None;
        for file in files(directory)? {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) => {
                    unreadable.push(format!("{}: {error}", file.display()));
                    continue;
                }
            };
            let value: serde_json::Value = match parse(&file, &text) {
                Ok(value) => value,
                Err(error) => {
                    unreadable.push(format!("{}: {error}", file.display()));
                    continue;
                }
            };
            if value.get("kind").and_then(|found| found.as_str()) != Some(kind) {
                continue;
            }
            let vendor: Vendor =
                serde_json::from_value(value).map_err(|error| format!("{}: {error}", file.display()))?;
            vendor.check_version().map_err(|error| format!("{}: {error}", file.display()))?;
            let Some(at) = vendor.devices.iter().position(|found| found.name == device) else { continue };
            if let Some((other, ..)) = found {
                return Err(format!("is in {} and in {}", other.display(), file.display()));
            }
            found = Some((file, vendor, at));
        }
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let places: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
    let mut message = format!("no file in {} has it", places.join(" or "));
    if !unreadable.is_empty() {
        message += &format!("; cannot be read: {}", unreadable.join(", "));
    }
    Err(message)
}

/// The files of a directory that may be vendors', in order.
fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let told = |error: std::io::Error| format!("{}: {error}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(told)?,
    };
    let mut all = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(told)?;
    all.retain(|path| path.extension().is_some_and(|end| end == "json" || end == "yaml"));
    all.sort();
    Ok(all)
}

fn parse(file: &Path, text: &str) -> Result<serde_json::Value, String> {
    if file.extension().is_some_and(|end| end == "yaml") {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    } else {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

impl Vendor {
    /// Later versions may mean other things by the same words.
    fn check_version(&self) -> Result<(), String> {
        let mut parts = self.cdi_version.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(0)), Some(Ok(3..))) | (Some(Ok(1)), Some(Ok(0..=1))) => Ok(()),
            _ => Err(format!("cdiVersion {} is none of 0.3 to 1.1", self.cdi_version)),
        }
    }
}

impl Edits {
    /// Lays them over a container's specification.
    pub(super) fn apply(self, spec: &mut Spec) {
        let Edits { devices, rules, mounts, env, hooks, groups } = self;
        let mut linux: Linux = spec.linux().clone().unwrap_or_default();
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut all_rules = resources.devices().clone().unwrap_or_default();
        all_rules.extend(rules);
        resources.set_devices(Some(all_rules));
        linux.set_resources(Some(resources));
        let mut all_devices = linux.devices().clone().unwrap_or_default();
        for device in devices {
            all_devices.retain(|other| other.path() != device.path());
            all_devices.push(device);
        }
        linux.set_devices(Some(all_devices).filter(|all| !all.is_empty()));
        spec.set_linux(Some(linux));

        let mut process: Process = spec.process().clone().unwrap_or_default();
        let mut all_env = process.env().clone().unwrap_or_default();
        for (name, value) in env {
            all_env.retain(|other| other.split_once('=').is_none_or(|(other, _)| other != name));
            all_env.push(format!("{name}={value}"));
        }
        process.set_env(Some(all_env));
        let mut user = process.user().clone();
        let mut all_groups = user.additional_gids().clone().unwrap_or_default();
        all_groups.extend(groups);
        all_groups.sort_unstable();
        all_groups.dedup();
        user.set_additional_gids(Some(all_groups));
        process.set_user(user);
        spec.set_process(Some(process));

        let mut all_mounts = spec.mounts().clone().unwrap_or_default();
        all_mounts.extend(mounts);
        spec.set_mounts(Some(all_mounts));
        if !hooks.is_empty() {
            spec.set_hooks(Some(sorted(hooks)));
        }
    }
}

/// In the order of the files, by when they run.
fn sorted(hooks: Vec<(HookPoint, Hook)>) -> Hooks {
    let of = |point| -> Option<Vec<Hook>> {
        let all: Vec<Hook> = hooks.iter().filter(|(at, _)| *at == point).map(|(_, hook)| hook.clone()).collect();
        (!all.is_empty()).then_some(all)
    };
    let mut sorted = Hooks::default();
    #[allow(deprecated)] // vendors' files still use it
    sorted.set_prestart(of(HookPoint::Prestart));
    sorted.set_create_runtime(of(HookPoint::CreateRuntime));
    sorted.set_create_container(of(HookPoint::CreateContainer));
    sorted.set_start_container(of(HookPoint::StartContainer));
    sorted.set_poststart(of(HookPoint::Poststart));
    sorted.set_poststop(of(HookPoint::Poststop));
    sorted
}

fn rule(device: &LinuxDevice, access: &str) -> Option<LinuxDeviceCgroup> {
    if !matches!(device.typ(), LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U) {
        return None;
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    // The device controller has one word for both kinds of character devices.
    let kind = if device.typ() == LinuxDeviceType::B { LinuxDeviceType::B } else { LinuxDeviceType::C };
    rule.set_typ(Some(kind));
    rule.set_major(Some(device.major()));
    rule.set_minor(Some(device.minor()));
    rule.set_access(Some(access.to_owned()));
    Some(rule)
}

#[cfg(test)]
mod tests;
