//! Workload: containers that live together, from their declaration to running processes.
//!
//! One pass reads like this: take up what the workload refers to, check it all once, look at the node, plan, apply,
//! report. Every pass ends with a status, failed ones too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use nodelet_crds::workload::Workload;
use nodelet_crds::workload::volume_source::HostPathType as ApiHostPathType;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::volumes::HostPathType;

use crate::context::{Context, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};
use crate::invalid::Invalid;

pub mod apply;
pub mod containers;
pub mod dereference;
pub mod desired;
pub mod env;
pub mod files;
pub mod limits;
pub mod model;
pub mod observe;
pub mod orphans;
pub mod plan;
pub mod probes;
pub mod refs;
pub mod sandboxes;
pub mod security;
pub mod status;
pub mod stops;
pub mod volumes;

use model::Intent;
use status::Report;

/// The reconciler of Workloads.
pub struct Workloads;

impl Reconciler for Workloads {
    type Kind = Workload;
    type Error = Error;
    const KIND: &'static str = "Workload";

    async fn pass(ctx: &Arc<Context>, object: &Workload) -> Result<Outcome, Error> {
        if object.spec.node_name.as_deref().is_some_and(|node| node != ctx.settings.node_name) {
            return Ok(Outcome::Settled);
        }
        pass(ctx, object).await
    }

    fn reason(error: &Error) -> &'static str {
        match error {
            Error::Api(_) | Error::Logs(_) => reasons::RECONCILE_ERROR,
            Error::Observe(_) => reasons::NODE_UNREADABLE,
            Error::Apply(error) => error.reason(),
        }
    }

    async fn publish_failure(ctx: &Context, object: &Workload, reason: &'static str, message: String) {
        status::publish(ctx, object, Report::Failed { reason, message }).await;
    }
}

/// A pass failed for a reason of the node or the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API did not answer as it should.
    #[error("talking to the API")]
    Api(#[from] kube::Error),
    /// The node cannot be looked at.
    #[error("looking at the node")]
    Observe(#[from] observe::Error),
    /// A step of the plan.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The log files of a deleted Workload cannot be removed.
    #[error("removing the logs")]
    Logs(#[source] std::io::Error),
}

async fn pass(ctx: &Arc<Context>, object: &Workload) -> Result<Outcome, Error> {
    let deleting = object.metadata.deletion_timestamp.is_some();
    if deleting && !object.finalizers().iter().any(|f| f == labels::FINALIZER) {
        return Ok(Outcome::Settled);
    }
    if !deleting {
        set_finalizer(&ctx.client, object, labels::FINALIZER, true).await?;
    }
    let references = dereference::dereference(ctx, object).await?;
    let place = desired::Place::of(ctx);
    let desired = match desired::validate(object, &references, &place) {
        Ok(desired) => desired,
        Err(invalid) if deleting || object.spec.stopped => {
            // What cannot be understood can still be taken down.
            tracing::debug!(workload = %object_key(object), "taken down unchecked: {}", invalid.message);
            desired::for_removal(object, &place).map_err(apply::Error::Name)?
        }
        Err(invalid) => return Ok(refuse(ctx, object, invalid).await),
    };
    let desired = Arc::new(desired);
    let Some(observed) = observe::observe(ctx, object, &desired).await? else {
        // Containers have not been read yet; that they were wakes us.
        return Ok(Outcome::Settled);
    };
    let plan = plan::plan(&desired, &observed, ctx.now());
    if !plan.steps.is_empty() {
        tracing::info!(plan = %serde_json::to_string(&plan).unwrap_or_default(), "workload plan");
    }
    let applied = apply::apply(ctx, object, &desired, &plan).await;
    ctx.metrics.containers_running.set(i64::try_from(ctx.containers.running()).unwrap_or(i64::MAX));
    // Status is made from what is there now, also when a step failed.
    let after = match plan.steps.is_empty() {
        true => Some(observed.clone()),
        false => observe::observe(ctx, object, &desired).await?,
    };
    applied?;
    let Some(after) = after else { return Ok(Outcome::Settled) };
    if desired.intent == Intent::Delete && observe::is_clear(&after) {
        let logs = log_directory(&ctx.settings.data_dir, object);
        crate::blocking(move || nodelet_drivers::logs::remove(&logs)).await.map_err(Error::Logs)?;
        set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
        return Ok(Outcome::Settled);
    }
    status::publish(ctx, object, Report::Seen { desired: &desired, before: &observed, observed: &after, plan: &plan })
        .await;
    probe(ctx, object, &desired, &after);
    // A plan is made for what was there; what its steps changed is looked at again at once.
    Ok(match plan.again_in {
        Some(after) => Outcome::Again(after),
        None if desired.intent != Intent::Run && !observe::is_clear(&after) => {
            Outcome::Again(std::time::Duration::ZERO)
        }
        None => Outcome::Settled,
    })
}

/// Sees that what runs is probed, and what no longer runs is not.
fn probe(ctx: &Arc<Context>, object: &Workload, desired: &model::Desired, observed: &model::Observed) {
    let Some(sandbox) = &observed.sandbox else { return };
    for wish in desired.containers.iter().filter(|wish| !wish.probes.is_empty()) {
        let running = observed.containers.iter().filter(|c| c.is_live() && c.name == wish.name && c.hash == wish.hash);
        for container in running {
            let target = probes::Target {
                container: container.id().clone(),
                netns: sandbox.netns.clone(),
                address: sandbox.attachments.iter().flat_map(|a| &a.addresses).map(ipnet::IpNet::addr).next(),
                ports: wish.ports.clone(),
            };
            let known = status::known_health(object, container.id());
            ctx.probers.ensure(ctx, ObjectRef::from_obj(object), target, &wish.probes, known);
        }
    }
}

/// Only an edit helps: what runs is left alone.
async fn refuse(ctx: &Context, object: &Workload, invalid: Invalid) -> Outcome {
    ctx.event(object, EventType::Warning, invalid.reason, invalid.message.clone()).await;
    status::publish(ctx, object, Report::Failed { reason: invalid.reason, message: invalid.message }).await;
    Outcome::Settled
}

/// `<dataDir>/logs/<namespace>_<workload>_<uid>`: one directory below it for each container.
pub fn log_directory(data_dir: &Path, workload: &Workload) -> PathBuf {
    data_dir.join("logs").join(format!(
        "{}_{}_{}",
        workload.namespace().unwrap_or_default(),
        workload.name_any(),
        workload.metadata.uid.as_deref().unwrap_or_default()
    ))
}

/// The driver's word for a hostPath type.
pub fn host_path_type(kind: ApiHostPathType) -> HostPathType {
    match kind {
        ApiHostPathType::Unchecked => HostPathType::Any,
        ApiHostPathType::DirectoryOrCreate => HostPathType::DirectoryOrCreate,
        ApiHostPathType::Directory => HostPathType::Directory,
        ApiHostPathType::FileOrCreate => HostPathType::FileOrCreate,
        ApiHostPathType::File => HostPathType::File,
        ApiHostPathType::Socket => HostPathType::Socket,
        ApiHostPathType::CharDevice => HostPathType::CharDevice,
        ApiHostPathType::BlockDevice => HostPathType::BlockDevice,
    }
}
