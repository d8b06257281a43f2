//! What a workload is called in its networks, and which of its sandboxes answers to it.
//!
//! Names lead to a sandbox while all its containers run, are ready and are not about to stop; so they are told before a
//! plan is carried out, which may stop containers, and after it, which may have started some. During an update the old
//! sandbox keeps the names until it is asked to stop: then the new one has them in the same change.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use nodelet_crds::workload::{Protocol as ApiProtocol, Workload};
use nodelet_drivers::ids::{ContainerId, SandboxId};
use nodelet_drivers::network::{Names, Protocol, Service};
use nodelet_drivers::sandbox::NetNamespace;

use super::model::{Desired, Observed, SeenContainer};
use super::plan::{Plan, Step};
use crate::context::{Context, chain};
use crate::names;

/// Lets the networks know. A failure is no reason to stop anything: the next pass tells them again.
pub async fn tell(ctx: &Context, object: &Workload, desired: &Desired, observed: &Observed, plan: &Plan) {
    let changes = answering(object, desired, observed, plan);
    if let Err(error) = ctx.drivers.networks.set_names(&changes).await {
        tracing::warn!(workload = %desired.title, "changing the names: {}", chain(&error));
    }
}

/// The names of each sandbox that the workload has. Pure.
fn answering(
    object: &Workload,
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
) -> Vec<(SandboxId, Option<Names>)> {
    let leaving: BTreeSet<&ContainerId> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Ask { id, .. } | Step::Kill { id } | Step::Remove { id } => Some(id),
            _ => None,
        })
        .collect();
    let torn_down =
        |id: &SandboxId| plan.steps.iter().any(|step| matches!(step, Step::Teardown { id: gone } if gone == id));
    let ours = &desired.sandbox.spec.id;
    let serves = |id: &SandboxId, all: usize| {
        let mut latest: BTreeMap<&str, &SeenContainer> = BTreeMap::new();
        for container in observed.containers.iter().filter(|c| !c.init && c.sandbox == id.as_str()) {
            let known = latest.entry(container.name.as_str()).or_insert(container);
            if known.attempt < container.attempt {
                *known = container;
            }
        }
        let ready = |c: &&SeenContainer| {
            c.is_live() && c.stopping.is_none() && c.health.started && c.health.ready && !leaving.contains(c.id())
        };
        latest.len() >= all && latest.values().all(ready)
    };
    let others: Vec<(&SandboxId, bool)> =
        observed.stale_sandboxes.iter().filter(|id| !torn_down(id)).map(|id| (id, serves(id, 1))).collect();
    let old_serves = others.iter().any(|(_, serves)| *serves);
    let mut changes = Vec::new();
    if observed.sandbox.is_some() && !torn_down(ours) && desired.sandbox.spec.net != NetNamespace::Host {
        let ready = serves(ours, desired.containers.len().max(1));
        changes.push((ours.clone(), (!old_serves).then(|| Names { ready, ..called(object, desired) })));
    }
    changes.extend(others.into_iter().map(|(id, serves)| (id.clone(), serves.then(|| called(object, desired)))));
    changes
}

/// What it is called, as if it were ready.
fn called(object: &Workload, desired: &Desired) -> Names {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let mut everywhere = vec![format!("{name}.{namespace}"), name];
    if !everywhere.contains(&desired.sandbox.spec.hostname) {
        everywhere.push(desired.sandbox.spec.hostname.clone());
    }
    let attachments = object.spec.attachments();
    let aliases = attachments
        .iter()
        .filter(|attachment| !attachment.aliases.is_empty())
        .filter_map(|attachment| {
            let network = names::network_key(&namespace, &attachment.name).ok()?;
            Some((network, attachment.aliases.clone()))
        })
        .collect();
    let ports = object.spec.containers.iter().flat_map(|container| &container.ports);
    let services = ports
        .filter_map(|port| {
            let protocol = match port.protocol {
                ApiProtocol::Tcp => Protocol::Tcp,
                ApiProtocol::Udp => Protocol::Udp,
                ApiProtocol::Sctp => Protocol::Sctp,
            };
            Some(Service { name: port.name.clone()?, protocol, port: port.container_port })
        })
        .collect();
    let at = match &desired.sandbox.spec.net {
        NetNamespace::Of(other) => Some(other.clone()),
        NetNamespace::New | NetNamespace::Host => None,
    };
    Names { at, everywhere, aliases, services, ready: true }
}
