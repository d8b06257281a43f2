//! The first process of a process namespace that the containers of a sandbox share.
//!
//! Such a namespace lives exactly as long as its first process, so that is none of the containers: it is the log
//! writer's program under another name, in a container of its own beside them, with nothing but itself in its file
//! system, no capabilities and nobody's user. It is made with the first container that shares and removed with the last.
//!
//! # Contract
//! - Calls about containers of the same sandbox come one after the other.
//! - Its record bears [`LABEL`] and not the journal of a container, so that it is in no list; those that use it bear
//!   [`USED_BY`], both with the sandbox as value.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use containerd_client::services::v1::Container as Record;
use containerd_client::types::v1::Status as TaskStatus;
use serde_json::{Value, json};

use super::containerd::Shared;
use super::own::{self, Own, recorded_cgroup, records};
use super::record::{SPEC_TYPE, json_any};
use super::{ContainerSpec, Error, Namespace, create, list};
use crate::ids::{ContainerId, SandboxId};

/// Marks the record of a reaper.
const LABEL: &str = "nodelet.dev/reaper-of";
/// Marks the record of a container that lives in a reaper's namespace.
pub(super) const USED_BY: &str = "nodelet.dev/shares-processes-of";
/// Its cgroup below the sandbox's. No container's name has a dot before letters.
const CGROUP: &str = "nodelet.reaper";

fn id(sandbox: &SandboxId) -> Result<ContainerId, Error> {
    let failed =
        |error| Error::Failed { doing: format!("naming the reaper of sandbox {sandbox}"), source: Box::new(error) };
    ContainerId::new(format!("{sandbox}-reaper")).map_err(failed)
}

/// Makes it unless it runs; the path of its process namespace.
pub(super) async fn ensure(shared: &Shared, spec: &ContainerSpec, shim: &str) -> Result<PathBuf, Error> {
    let id = id(&spec.sandbox)?;
    if let Some(task) = list::task(shared, &id).await?
        && task.status() == TaskStatus::Running
    {
        return Ok(namespace_of(task.pid));
    }
    // What is left of one that ended or was half made; all that shared its namespace has ended with it.
    let cgroup = spec.cgroup.beside(CGROUP);
    own::clear(shared, &id, cgroup.clone()).await?;
    let options = &shared.options;
    let own = Own {
        program: &options.logger,
        cgroup: cgroup.as_ref().unwrap_or(&spec.cgroup),
        namespaces: namespaces(spec),
        users: spec.namespaces.user.as_ref(),
        shim,
    };
    let record = Record {
        id: id.to_string(),
        labels: HashMap::from([(LABEL.to_owned(), spec.sandbox.to_string())]),
        runtime: Some(create::handler(options, options.oci_runtime.clone(), own.cgroup)),
        spec: Some(json_any(SPEC_TYPE, &own.oci_spec())?),
        ..Default::default()
    };
    let doing = format!("making the process namespace of sandbox {}", spec.sandbox);
    own::put_record(shared, record, &doing).await?;
    own::run(shared, &id, own.users, &doing).await.map(namespace_of)
}

fn namespace_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/pid"))
}

/// A container is about to be gone: if it is the last of its sandbox that shares, the reaper goes, too.
pub(super) async fn leave(shared: &Shared, leaving: &ContainerId, sandbox: &SandboxId) -> Result<(), Error> {
    let used = records(shared, &format!("labels.\"{USED_BY}\"=={sandbox}")).await?;
    if used.iter().any(|record| record.id != leaving.as_str()) {
        return Ok(());
    }
    let id = id(sandbox)?;
    let Some(record) = records(shared, &format!("id=={id}")).await?.pop() else { return Ok(()) };
    own::clear(shared, &id, recorded_cgroup(&record)).await
}

/// Removes reapers that no container uses any more.
pub(super) async fn sweep(shared: &Shared) -> Result<Vec<String>, Error> {
    let reapers = records(shared, &format!("labels.\"{LABEL}\"")).await?;
    if reapers.is_empty() {
        return Ok(Vec::new());
    }
    let used = records(shared, &format!("labels.\"{USED_BY}\"")).await?;
    let used: BTreeSet<&String> = used.iter().filter_map(|record| record.labels.get(USED_BY)).collect();
    let mut freed = Vec::new();
    for record in &reapers {
        let Some(sandbox) = record.labels.get(LABEL).filter(|sandbox| !used.contains(sandbox)) else { continue };
        let Ok(id) = ContainerId::new(record.id.clone()) else { continue };
        own::clear(shared, &id, recorded_cgroup(record)).await?;
        freed.push(format!("reaper of sandbox {sandbox}, which no container used"));
    }
    Ok(freed)
}

/// Those of the sandbox, so that nothing of the node is reached through it.
fn namespaces(spec: &ContainerSpec) -> Vec<Value> {
    let shared = |kind: &str, namespace: &Namespace| match namespace {
        Namespace::Path(path) => json!({"type": kind, "path": path}),
        _ => json!({"type": kind}),
    };
    vec![
        json!({"type": "mount"}),
        json!({"type": "pid"}),
        shared("network", &spec.namespaces.net),
        shared("ipc", &spec.namespaces.ipc),
        shared("uts", &spec.namespaces.uts),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CgroupPath;

    #[test]
    fn its_cgroup_is_beside_those_of_containers() {
        let of = |path: &str| CgroupPath::new(path).unwrap().beside(CGROUP).map(|path| path.oci());
        assert_eq!(of("/nodelet/web-1/main.3").as_deref(), Some("/nodelet/web-1/nodelet.reaper"));
        let scope = of("/nodelet.slice/nodelet-web_1.slice/nodelet-web-1-main.3.scope");
        assert_eq!(scope.as_deref(), Some("nodelet-web_1.slice:nodelet:web-1-nodelet.reaper"));
        assert_eq!(of("/top"), None);
    }
}
