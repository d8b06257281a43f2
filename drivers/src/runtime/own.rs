//! Containers with nothing in them but our own program: the reapers of sandboxes and the anchors of shims.
//!
//! The program is the log writer's under another name: it sleeps, takes the exits of orphans and never ends by itself.
//! Such a container has nothing else in its file system, no capabilities and nobody's user, and needs no image.

use std::io::Read as _;
use std::path::Path;

use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, ListContainersRequest, StartRequest,
};
use containerd_client::types::Mount;
use serde_json::{Value, json};

use super::containerd::Shared;
use super::spec::{MASKED_PATHS, READONLY_PATHS, SHIM_GROUP};
use super::{Error, remove};
use crate::containerd::is_already_exists;
use crate::failpoint::passed;
use crate::ids::{CgroupPath, ContainerId};
use crate::sandbox::{USERS, UserNamespace};

/// The program in its own file system; by this name it knows what to do.
const PROGRAM: &str = "/nodelet-reaper";
/// Nobody's, as the pause process of other runtimes has it.
const USER: u32 = 65535;

/// What such containers differ in.
pub(super) struct Own<'a> {
    /// The program on the node.
    pub(super) program: &'a Path,
    /// Its cgroup.
    pub(super) cgroup: &'a CgroupPath,
    /// In the terms of the OCI specification.
    pub(super) namespaces: Vec<Value>,
    /// Whose users it has, where they are not the node's.
    pub(super) users: Option<&'a UserNamespace>,
    /// Containers of the same name share a shim.
    pub(super) shim: &'a str,
}

impl Own<'_> {
    pub(super) fn oci_spec(&self) -> Value {
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
            // runc makes the directory itself; crun wants to find one.
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]}),
            bind(&self.program.display().to_string(), PROGRAM),
        ];
        mounts.extend(libraries(self.program).iter().map(|path| bind(path, path)));
        let mut namespaces = self.namespaces.clone();
        let mut mappings = Vec::new();
        if let Some(users) = self.users {
            namespaces.push(json!({"type": "user", "path": users.path}));
            mappings.push(json!({"containerID": 0, "hostID": users.first, "size": USERS}));
        }
        json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "process": {
                "user": {"uid": USER, "gid": USER},
                "args": [PROGRAM],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "mounts": mounts,
            "linux": {
                "cgroupsPath": self.cgroup.oci(),
                "namespaces": namespaces,
                "uidMappings": mappings,
                "gidMappings": mappings,
                "maskedPaths": MASKED_PATHS,
                "readonlyPaths": READONLY_PATHS,
            },
            "annotations": {SHIM_GROUP: self.shim},
        })
    }
}

/// Records it unless it is recorded. `doing` is for errors.
pub(super) async fn put_record(shared: &Shared, record: Record, doing: &str) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(CreateContainerRequest { container: Some(record) });
    match containerd.containers().create(request).await {
        Err(status) if !is_already_exists(&status) => Err(containerd.error(doing, status)),
        _ => {
            passed("recording a container of our own");
            Ok(())
        }
    }
}

/// Creates and starts the task of one that is recorded; its pid.
pub(super) async fn run(
    shared: &Shared,
    id: &ContainerId,
    users: Option<&UserNamespace>,
    doing: &str,
) -> Result<u32, Error> {
    let containerd = &shared.containerd;
    // Its file system is in memory and goes with its task. The OCI runtime wants to open devices in it.
    let mut options = ["nosuid", "mode=755", "size=64k"].map(str::to_owned).to_vec();
    if let Some(users) = users {
        options.extend([format!("uid={}", users.first), format!("gid={}", users.first)]);
    }
    let root = Mount { r#type: "tmpfs".to_owned(), source: "tmpfs".to_owned(), options, ..Default::default() };
    let message = CreateTaskRequest { container_id: id.to_string(), rootfs: vec![root], ..Default::default() };
    let made = containerd.tasks().create(containerd.request(message)).await;
    let pid = made.map_err(|status| containerd.error(doing, status))?.into_inner().pid;
    passed("creating a task of our own");
    let message = StartRequest { container_id: id.to_string(), ..Default::default() };
    let started = containerd.tasks().start(containerd.request(message)).await;
    started.map_err(|status| containerd.error(doing, status))?;
    passed("starting a task of our own");
    Ok(pid)
}

/// Removes task and cgroup, and the record last; absence is success.
pub(super) async fn clear(shared: &Shared, id: &ContainerId, cgroup: Option<CgroupPath>) -> Result<(), Error> {
    remove::remove_task(shared, id).await?;
    if let Some(cgroup) = cgroup {
        remove::remove_cgroup(shared, id, cgroup).await?;
    }
    remove::remove_record(shared, id).await?;
    // It is in no list, so nobody else would forget it.
    shared.exits.forget(id);
    Ok(())
}

/// The container records that one of containerd's filters lets through.
pub(super) async fn records(shared: &Shared, filter: &str) -> Result<Vec<Record>, Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(ListContainersRequest { filters: vec![filter.to_owned()] });
    let answer = containerd.containers().list(request).await;
    Ok(answer.map_err(|status| containerd.error("listing containers", status))?.into_inner().containers)
}

/// The cgroup that a record's specification names.
pub(super) fn recorded_cgroup(record: &Record) -> Option<CgroupPath> {
    let spec: Value = serde_json::from_slice(&record.spec.as_ref()?.value).ok()?;
    CgroupPath::from_oci(spec["linux"]["cgroupsPath"].as_str()?)
}

fn bind(source: &str, destination: &str) -> Value {
    let options = ["rbind", "ro", "nosuid", "nodev"];
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// Directories that a program needs which is not linked statically, as one built for development is not.
fn libraries(program: &Path) -> Vec<&'static str> {
    let mut start = Vec::new();
    let read = std::fs::File::open(program).and_then(|file| file.take(4096).read_to_end(&mut start));
    let is_dynamic = read.is_ok() && start.windows(4).any(|part| part == b"/ld-");
    if !is_dynamic {
        return Vec::new();
    }
    ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|path| Path::new(path).is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dynamic_program_needs_libraries() {
        assert!(libraries(Path::new("/bin/sh")).contains(&"/lib"));
        assert_eq!(libraries(Path::new("/bin/busybox")), [""; 0]);
    }
}
