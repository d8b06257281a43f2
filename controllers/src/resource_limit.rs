//! ResourceLimit: a cgroup that several Workloads share; limits nest by `parent` and change live.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::events::EventType;
use nodelet_crds::common::{condition_type, find_condition, now, set_condition};
use nodelet_crds::node_state::{NodeResourceLimit, PartPhase};
use nodelet_crds::resource_limit::{ResourceLimit, ResourceUsage};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::cgroups::{self, Budgets, Cgroups, Excess, Limits, Version};
use nodelet_drivers::ids::CgroupPath;

use crate::context::{Context, chain, find, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};
use crate::invalid::Invalid;

pub mod desired;
mod low;
pub mod realtime;

pub use low::keep_parent;

/// The reconciler of ResourceLimits.
pub struct ResourceLimits;

/// A chain of parents longer than this is a mistake.
const MAX_DEPTH: usize = 8;
/// What is counted when a limit of memory is below what is used.
const LOWERING: &str = "ResourceLimit below use";
/// The longest pause before the use is looked at again.
const LONGEST_LOWERING: std::time::Duration = std::time::Duration::from_secs(15);

impl Reconciler for ResourceLimits {
    type Kind = ResourceLimit;
    type Error = Error;
    const KIND: &'static str = "ResourceLimit";

    async fn pass(ctx: &Arc<Context>, object: &ResourceLimit) -> Result<Outcome, Error> {
        pass(ctx, object).await
    }

    fn reason(error: &Error) -> &'static str {
        match error {
            Error::Cgroup(cgroups::Error::Unsupported { .. }) => reasons::CONTROLLER_MISSING,
            Error::Cgroup(cgroups::Error::NoRealtime { .. }) => reasons::INSUFFICIENT_RESOURCES,
            Error::Cgroup(_) => reasons::CGROUP_FAILED,
            Error::Api(_) => reasons::RECONCILE_ERROR,
        }
    }

    async fn publish_failure(ctx: &Context, object: &ResourceLimit, reason: &'static str, message: String) {
        let part = NodeResourceLimit { phase: PartPhase::Failed, message, ..part(object) };
        publish(ctx, object, part, reason).await;
    }
}

/// A pass failed for a reason of the node or the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API did not answer as it should.
    #[error("talking to the API")]
    Api(#[from] kube::Error),
    /// The cgroup driver.
    #[error("setting the limits")]
    Cgroup(#[from] cgroups::Error),
}

async fn pass(ctx: &Arc<Context>, object: &ResourceLimit) -> Result<Outcome, Error> {
    // Before all have been read, nobody knows who uses it and what others declare.
    if !(ctx.stores.resource_limits_read.wait().await && ctx.stores.workloads_read.wait().await) {
        // The agent stops.
        return Ok(Outcome::Settled);
    }
    let selected = object.spec.node_selector.as_ref().is_none_or(|s| s.matches(&ctx.settings.node_labels));
    let namespace = object.namespace().unwrap_or_default();
    let deleting = object.metadata.deletion_timestamp.is_some();
    if !selected {
        ctx.report.forget_resource_limit(&namespace, &object.name_any());
        write(ctx, object, None, reasons::NOT_SELECTED).await;
        return Ok(Outcome::Settled);
    }
    let place = place(ctx, object).await?;
    let checked = place.and_then(|path| {
        Invalid::unsupported(nodelet_crds::unsupported::unsupported(&object.spec))?;
        Ok((path, desired::limits(&object.spec)?))
    });
    let (path, limits) = match checked {
        Ok(checked) => checked,
        Err(_) if deleting => return done(ctx, object).await,
        Err(invalid) => {
            let part = NodeResourceLimit { phase: PartPhase::Failed, message: invalid.message, ..part(object) };
            publish(ctx, object, part, invalid.reason).await;
            // A missing parent may appear; its own event wakes nobody here.
            return Ok(Outcome::Again(std::time::Duration::from_secs(10)));
        }
    };
    let limits = Limits { memory_low: memory_low(ctx, object).or(limits.memory_low), ..limits };
    let members = members(ctx, object);
    if deleting {
        if !members.is_empty() {
            let message = format!("deleted when no longer used by {}", members.join(", "));
            let part = NodeResourceLimit { phase: PartPhase::Ready, message, members, ..part(object) };
            publish(ctx, object, part, reasons::TERMINATING).await;
            return Ok(Outcome::Again(std::time::Duration::from_secs(2)));
        }
        let cgroups = ctx.drivers.cgroups.clone();
        let declared = realtime::budgets(ctx);
        let removed = crate::blocking(move || remove_if_empty(&*cgroups, &path, &declared)).await?;
        if !removed {
            // A workload that was moved elsewhere is still on its way out.
            let message = "deleted when no process is left in it".to_owned();
            let part = NodeResourceLimit { phase: PartPhase::Ready, message, ..part(object) };
            publish(ctx, object, part, reasons::TERMINATING).await;
            return Ok(Outcome::Again(std::time::Duration::from_secs(2)));
        }
        return done(ctx, object).await;
    }
    set_finalizer(&ctx.client, object, labels::FINALIZER, true).await?;
    if ctx.drivers.cgroups.version() == Version::V2 {
        // Before those below it, which have no more than it carries.
        keep_parent(ctx).await?;
    }
    let cgroups = ctx.drivers.cgroups.clone();
    let at = path.clone();
    let mut declared = realtime::budgets(ctx);
    declared.remove(&at);
    declared.extend(realtime::declared(object).map(|budget| (at.clone(), budget)));
    let (excess, stat) = crate::blocking(move || {
        let excess = cgroups.ensure(&at, &limits)?;
        cgroups.divide_realtime(&at, 0, &declared)?;
        cgroups.stat(&at).map(|stat| (excess, stat.unwrap_or_default()))
    })
    .await?;
    let usage = ResourceUsage {
        // Rounded, so that an idle tenant's status does not change with every look.
        cpu_seconds: (stat.cpu_usec as f64 / 1e6).round(),
        memory_bytes: stat.memory_bytes,
        pids: stat.pids,
    };
    let part = NodeResourceLimit {
        phase: PartPhase::Ready,
        cgroup: Some(path.to_string()),
        members,
        usage: Some(usage),
        oom_kills: stat.oom_kills,
        throttled_seconds: (stat.throttled_usec as f64 / 1e6).round(),
        ..part(object)
    };
    if let Some(excess) = excess {
        return Ok(above_limit(ctx, object, part, excess).await);
    }
    ctx.attempts.succeeded(LOWERING, &object_key(object));
    publish(ctx, object, part, reasons::READY).await;
    // The figures in the status are a courtesy; the exact ones are metrics. Flash is spared.
    Ok(Outcome::Again(std::time::Duration::from_secs(60)))
}

/// More memory is used than may be from now on. Nothing tells when that falls, so this looks again, ever less often.
async fn above_limit(ctx: &Context, object: &ResourceLimit, part: NodeResourceLimit, excess: Excess) -> Outcome {
    let retry = ctx.attempts.failed(LOWERING, &object_key(object)).min(LONGEST_LOWERING);
    let message = format!("memory.max is not in force yet: {excess}");
    let known = find_condition(object.status.as_ref().map_or(&[], |s| &s.conditions), condition_type::READY);
    if known.is_none_or(|ready| ready.reason != reasons::ABOVE_LIMIT) {
        ctx.event(object, EventType::Warning, reasons::ABOVE_LIMIT, message.clone()).await;
    }
    let part = NodeResourceLimit { phase: PartPhase::Pending, message, ..part };
    publish(ctx, object, part, reasons::ABOVE_LIMIT).await;
    Outcome::Again(retry)
}

/// What it keeps from reclaim, with what those below it keep, where the kernel wants that.
fn memory_low(ctx: &Context, object: &ResourceLimit) -> Option<u64> {
    let known = ctx.stores.resource_limits.state();
    let is_v2 = ctx.drivers.cgroups.version() == Version::V2;
    is_v2.then(|| low::carried(object, &known.iter().map(|limit| &**limit).collect::<Vec<_>>())).flatten()
}

/// Removing a cgroup kills what is in it; here nothing may be.
fn remove_if_empty(cgroups: &dyn Cgroups, path: &CgroupPath, declared: &Budgets) -> Result<bool, cgroups::Error> {
    if !cgroups.pids(path)?.is_empty() {
        return Ok(false);
    }
    remove(cgroups, path, declared).map(|()| true)
}

/// Removes a cgroup of a ResourceLimit or of a Workload; what it had of its own is free again above.
pub fn remove(cgroups: &dyn Cgroups, path: &CgroupPath, declared: &Budgets) -> Result<(), cgroups::Error> {
    cgroups.remove(path)?;
    path.above().map_or(Ok(()), |above| cgroups.divide_realtime(&above, 0, declared))
}

/// Where the cgroup of a ResourceLimit is, following its parents.
pub async fn cgroup_of(ctx: &Context, namespace: &str, name: &str) -> Result<Result<CgroupPath, Invalid>, kube::Error> {
    match find::<ResourceLimit>(&ctx.client, namespace, name).await? {
        Some(object) => place(ctx, &object).await,
        None => Ok(Err(Invalid {
            reason: reasons::NOT_FOUND,
            message: format!("ResourceLimit {name:?} does not exist in namespace {namespace}"),
        })),
    }
}

async fn place(ctx: &Context, object: &ResourceLimit) -> Result<Result<CgroupPath, Invalid>, kube::Error> {
    let namespace = object.namespace().unwrap_or_default();
    let mut chain = vec![object.name_any()];
    let mut parent = object.spec.parent.clone();
    while let Some(name) = parent {
        let broken =
            |why: String| Invalid { reason: reasons::PARENT_UNAVAILABLE, message: format!("spec.parent: {why}") };
        if chain.contains(&name) {
            chain.reverse();
            return Ok(Err(broken(format!("{name} is its own ancestor: {} > {name}", chain.join(" > ")))));
        }
        if chain.len() >= MAX_DEPTH {
            return Ok(Err(broken(format!("more than {MAX_DEPTH} ResourceLimits nested"))));
        }
        let Some(object) = find::<ResourceLimit>(&ctx.client, &namespace, &name).await? else {
            return Ok(Err(broken(format!("ResourceLimit {name:?} does not exist in namespace {namespace}"))));
        };
        chain.push(name);
        parent = object.spec.parent.clone();
    }
    let mut path = ctx.drivers.cgroups.parent().clone();
    for name in chain.iter().rev() {
        match path.limit(&namespace, name) {
            Ok(deeper) => path = deeper,
            Err(error) => return Ok(Err(Invalid::field("metadata.name", error))),
        }
    }
    Ok(Ok(path))
}

/// Names of the Workloads and ResourceLimits below it.
fn members(ctx: &Context, object: &ResourceLimit) -> Vec<String> {
    let (namespace, name) = (object.namespace(), object.name_any());
    let mut members: Vec<String> = ctx
        .stores
        .workloads
        .state()
        .iter()
        .filter(|w| w.namespace() == namespace && w.spec.resource_limit.as_deref() == Some(name.as_str()))
        .map(|w| w.name_any())
        .collect();
    let below = ctx.stores.resource_limits.state();
    let below = below.iter().filter(|l| l.namespace() == namespace && l.spec.parent.as_deref() == Some(name.as_str()));
    members.extend(below.map(|l| format!("ResourceLimit {}", l.name_any())));
    members.sort();
    members
}

async fn done(ctx: &Arc<Context>, object: &ResourceLimit) -> Result<Outcome, Error> {
    ctx.report.forget_resource_limit(&object.namespace().unwrap_or_default(), &object.name_any());
    set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
    Ok(Outcome::Settled)
}

fn part(object: &ResourceLimit) -> NodeResourceLimit {
    NodeResourceLimit {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        observed_generation: object.metadata.generation,
        ..Default::default()
    }
}

async fn publish(ctx: &Context, object: &ResourceLimit, part: NodeResourceLimit, reason: &'static str) {
    write(ctx, object, Some(&part), reason).await;
    ctx.report.set_resource_limit(part);
}

async fn write(ctx: &Context, object: &ResourceLimit, part: Option<&NodeResourceLimit>, reason: &'static str) {
    let generation = object.metadata.generation;
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let (mut ready, mut message) = (true, "no node is selected".to_owned());
    if let Some(part) = part {
        ready = part.phase == PartPhase::Ready;
        message.clone_from(&part.message);
        status.members.clone_from(&part.members);
        status.usage.clone_from(&part.usage);
        status.oom_kills = part.oom_kills;
        status.throttled_seconds = part.throttled_seconds;
    }
    set_condition(&mut status.conditions, condition_type::READY, ready, reason, message, generation, now());
    if let Err(error) = ctx.write_status(object, object.status.as_ref(), &status).await {
        tracing::warn!(resource_limit = %object_key(object), "writing the status: {}", chain(&error));
    }
}
