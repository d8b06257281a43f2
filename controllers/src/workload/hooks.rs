//! postStart and preStop: a command in the container, a GET request to it, or a pause.

use std::time::Duration;

use nodelet_crds::labels;
use nodelet_crds::workload::{LifecycleHandler, Workload};
use nodelet_drivers::ids::{ContainerId, SandboxId};
use nodelet_drivers::runtime::ExecSpec;

use super::model::{ContainerWish, Desired};
use super::probes::{Target, http_get};
use crate::context::{Context, Drivers, chain};

/// containerd keeps labels of 4096 bytes together with their name; what is longer is not noted.
pub const LABEL_MAX: usize = 3800;

/// Runs one hook within `limit`, or says why it failed.
pub async fn run(drivers: &Drivers, target: &Target, hook: &LifecycleHandler, limit: Duration) -> Result<(), String> {
    let late = || format!("did not end within {} s", limit.as_secs());
    if let Some(action) = &hook.exec {
        let spec = ExecSpec { command: action.command.clone(), timeout: Some(limit) };
        return match drivers.runtime.exec(&target.container, &spec).await {
            Ok(result) if result.code == 0 => Ok(()),
            Ok(result) => {
                let output: String = String::from_utf8_lossy(&result.output).trim().chars().take(200).collect();
                Err(format!("ended with code {}: {output}", result.code))
            }
            Err(error) => Err(chain(&error)),
        };
    }
    if let Some(action) = &hook.http_get {
        return tokio::time::timeout(limit, http_get(target, action)).await.unwrap_or_else(|_| Err(late()));
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::from(action.seconds)).min(limit)).await;
    }
    Ok(())
}

/// Where the requests of a container's hooks go.
pub async fn target(drivers: &Drivers, id: &ContainerId, sandbox: &SandboxId, ports: &[(String, u16)]) -> Target {
    let netns = drivers.sandboxes.get(sandbox).await.ok().flatten().and_then(|sandbox| sandbox.netns);
    let attachments = drivers.networks.recorded_of(sandbox).await.unwrap_or_default();
    let address = attachments.iter().flat_map(|a| &a.addresses).map(ipnet::IpNet::addr).next();
    Target { container: id.clone(), netns, address, ports: ports.to_vec() }
}

/// What a container remembers of its own preStop hook, so that it is still asked in its own way when the
/// specification has another by then.
pub fn label(wish: &ContainerWish) -> Option<(String, String)> {
    let text = serde_json::to_string(wish.pre_stop.as_ref()?).ok()?;
    (text.len() <= LABEL_MAX).then(|| (labels::PRE_STOP.to_owned(), text))
}

/// The hook to be run before a container is asked to stop, and its named ports. A container as it is wanted now has
/// that of the specification, which may be younger than the container; any other has its own.
pub fn pre_stop(ctx: &Context, object: &Workload, desired: &Desired, id: &ContainerId) -> PreStop {
    let all = ctx.containers.of_workload(object.metadata.uid.as_deref().unwrap_or_default()).unwrap_or_default();
    let Some(container) = all.into_iter().find(|c| c.id == *id) else { return PreStop::default() };
    let label = |key: &str| container.labels.get(key).cloned();
    let sandbox = label(labels::SANDBOX).and_then(|id| SandboxId::new(id).ok());
    let name = label(labels::CONTAINER).unwrap_or_default();
    let wish = desired.containers.iter().chain(&desired.init).find(|wish| wish.name == name);
    let same = wish.filter(|wish| {
        sandbox.as_ref() == Some(&desired.sandbox.spec.id) && label(labels::SPEC_HASH).as_ref() == Some(&wish.hash)
    });
    let hook = match same {
        Some(wish) => wish.pre_stop.clone(),
        None => label(labels::PRE_STOP).and_then(|text| serde_json::from_str(&text).ok()),
    };
    PreStop { hook, sandbox, ports: wish.map(|wish| wish.ports.clone()).unwrap_or_default() }
}

/// See [`pre_stop`].
#[derive(Debug, Default)]
pub struct PreStop {
    /// What is done.
    pub hook: Option<LifecycleHandler>,
    /// Where the container is.
    pub sandbox: Option<SandboxId>,
    /// Its named ports.
    pub ports: Vec<(String, u16)>,
}
