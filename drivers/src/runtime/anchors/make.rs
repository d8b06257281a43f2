//! Making an anchor, and removing it.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::Container as Record;
use containerd_client::services::v1::sandbox::{StoreCreateRequest, StoreDeleteRequest};
use containerd_client::types::Sandbox;
use containerd_client::types::sandbox::Runtime;
use serde_json::json;
use tonic::{Code, Status};

use super::super::containerd::Shared;
use super::super::exits::pidfd;
use super::super::own::{self, Own};
use super::super::record::{SPEC_TYPE, json_any};
use super::super::{Error, create, orphans, remove};
use super::{LABEL, watch};
use crate::containerd::{is_already_exists, is_not_found};
use crate::failpoint::passed;
use crate::ids::{CgroupPath, ContainerId};

/// How long the shim may take to end after the anchor's task has been deleted.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Makes the anchor. What is left of an earlier try goes first.
pub(super) async fn make(shared: &Shared, name: &str) -> Result<(), Error> {
    let doing = format!("making anchor {name}");
    let (id, cgroup) = (id(name, &doing)?, cgroup(shared, name, &doing)?);
    remove::remove_task(shared, &id).await?;
    let options = &shared.options;
    let own = Own {
        program: &options.logger,
        cgroup: &cgroup,
        namespaces: ["mount", "pid", "network", "ipc", "uts"].map(|kind| json!({"type": kind})).to_vec(),
        users: None,
        shim: name,
    };
    let record = Record {
        id: name.to_owned(),
        labels: HashMap::from([(LABEL.to_owned(), "shim".to_owned())]),
        runtime: Some(create::handler(options, options.oci_runtime.clone(), &cgroup)),
        spec: Some(json_any(SPEC_TYPE, &own.oci_spec())?),
        ..Default::default()
    };
    own::put_record(shared, record, &doing).await?;
    put_sandbox(shared, name, &doing).await?;
    let pid = own::run(shared, &id, None, &doing).await?;
    let shim = tokio::task::spawn_blocking(move || orphans::parent(pid)).await.ok().flatten();
    match shim {
        Some(shim) if watch(shared, name, shim) => {
            tracing::debug!(anchor = name, shim, "made an anchor");
            Ok(())
        }
        // Nobody would be told of its end.
        _ => Err(Error::Failed { doing, source: "its shim is not to be found, perhaps it has ended".into() }),
    }
}

/// Removes what there is of an anchor without members, and sees to it that its shim ends.
pub(super) async fn close(shared: &Shared, name: &str) -> Result<(), Error> {
    let doing = format!("removing anchor {name}");
    let (id, cgroup) = (id(name, &doing)?, cgroup(shared, name, &doing)?);
    remove::remove_task(shared, &id).await?;
    passed("removing the task of an anchor");
    remove::remove_cgroup(shared, &id, cgroup).await?;
    if let Some(process) = shared.shims.anchor_process(name)
        && !pidfd::ends_within(&process, ENDS_WITHIN).await
    {
        // Somebody had deleted the task before the last member went: nobody has told the shim to end.
        let namespace = shared.containerd.namespace().to_owned();
        let running = tokio::task::spawn_blocking(move || orphans::running(&namespace)).await.unwrap_or_default();
        if let Some(pid) = running.get(name) {
            orphans::end_one(shared, *pid).await;
        }
    }
    remove_sandbox(shared, name, &doing).await?;
    remove::remove_record(shared, &id).await?;
    shared.exits.forget(&id);
    Ok(())
}

fn id(name: &str, doing: &str) -> Result<ContainerId, Error> {
    ContainerId::new(name).map_err(|error| Error::Failed { doing: doing.to_owned(), source: Box::new(error) })
}

fn cgroup(shared: &Shared, name: &str, doing: &str) -> Result<CgroupPath, Error> {
    // A sandbox's name has no dot at such a place.
    let path = shared.options.cgroup_parent.leaf(&format!("nodelet.{name}"));
    path.map_err(|error| Error::Failed { doing: doing.to_owned(), source: Box::new(error) })
}

/// containerd 2 starts a shim for a member whose sandbox is not in its store; and 1.7 and 2 remove a task at their start
/// that has no process, unless its name is there.
async fn put_sandbox(shared: &Shared, name: &str, doing: &str) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let sandbox = Sandbox {
        sandbox_id: name.to_owned(),
        runtime: Some(Runtime { name: shared.options.handler.clone(), options: None }),
        labels: HashMap::from([(LABEL.to_owned(), "shim".to_owned())]),
        ..Default::default()
    };
    let request = containerd.request(StoreCreateRequest { sandbox: Some(sandbox) });
    match containerd.sandboxes().create(request).await {
        Err(status) if !is_already_exists(&status) => Err(containerd.error(doing, status)),
        _ => {
            passed("recording the sandbox of an anchor");
            Ok(())
        }
    }
}

async fn remove_sandbox(shared: &Shared, name: &str, doing: &str) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(StoreDeleteRequest { sandbox_id: name.to_owned() });
    // An older containerd may have come since.
    let is_absent = |status: &Status| is_not_found(status) || status.code() == Code::Unimplemented;
    match containerd.sandboxes().delete(request).await {
        Err(status) if !is_absent(&status) => Err(containerd.error(doing, status)),
        _ => {
            passed("removing the sandbox of an anchor");
            Ok(())
        }
    }
}
