//! Workload: containers that live together, from their declaration to running processes.
//!
//! One pass reads like this: take up what the workload refers to, check it all once, look at the node, plan, apply,
//! report. Every pass ends with a status, failed ones too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use nodelet_crds::workload::volume_source::HostPathType as ApiHostPathType;
use nodelet_crds::workload::{RestartPolicy, Workload};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::volumes::HostPathType;

use crate::context::{Context, chain, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};
use crate::invalid::Invalid;

pub mod apply;
mod called;
pub mod containers;
pub mod dereference;
pub mod desired;
pub mod devices;
pub mod env;
pub mod files;
pub mod fit;
pub mod follow;
pub mod forecast;
pub mod hooks;
pub mod limits;
pub mod link_wish;
pub mod model;
mod observe;
pub mod orphans;
pub mod plan;
pub mod preview;
pub mod probes;
pub mod refs;
pub mod resizes;
pub mod revisions;
pub mod sandboxes;
pub mod security;
pub mod status;
pub mod stops;
pub mod update;
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
        // Before all ResourceLimits have been read, nobody knows what they declare for its cgroup.
        if !ctx.stores.resource_limits_read.wait().await {
            // The agent stops.
            return Ok(Outcome::Settled);
        }
        pass(ctx, object).await
    }

    fn reason(error: &Error) -> &'static str {
        match error {
            Error::Api(_) | Error::Logs(_) | Error::Revisions(_) => reasons::RECONCILE_ERROR,
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
    /// The record of revisions cannot be written or removed.
    #[error("keeping the revisions")]
    Revisions(#[source] std::io::Error),
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
    let mut references = dereference::dereference(ctx, object).await?;
    let evicted = ctx.evictions.of(object);
    if evicted.is_some() {
        // Others may have its room from now on.
        ctx.places.leave(object);
    } else {
        references.fit = ctx.places.take(ctx, object);
    }
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
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let history = ctx.histories.get(uid).await;
    let hold = if desired.intent == Intent::Run { history.hold(object, &desired.revision) } else { None };
    let desired = match &hold {
        None => desired,
        Some(hold) => match held(ctx, object, &hold.revision, &place).await? {
            Ok(desired) => desired,
            Err(invalid) => return Ok(refuse(ctx, object, invalid).await),
        },
    };
    let desired = Arc::new(desired.unless_evicted(evicted));
    let Some(mut observed) = observe::observe(ctx, object, &desired).await? else {
        // Containers have not been read yet; that they were wakes us.
        return Ok(Outcome::Settled);
    };
    observed.last_good = history.last().map(|revision| revision.sandbox.clone());
    let mut update = Update { held: hold.map(|hold| hold.message), failed: None, again_in: None, history };
    if desired.intent == Intent::Run {
        let (progress, healthy_for) =
            ctx.histories.observe(uid, &desired.revision, update::is_healthy(&desired, &observed));
        observed.healthy_for = healthy_for;
        if advance(ctx, object, &references, &desired, &observed, &progress, &mut update).await? {
            // What runs next is another revision: begin anew.
            return Ok(Outcome::Again(std::time::Duration::ZERO));
        }
    }
    let plan = plan::plan(&desired, &observed, ctx.now());
    if !plan.steps.is_empty() {
        tracing::info!(plan = %serde_json::to_string(&plan).unwrap_or_default(), "workload plan");
    }
    called::tell(ctx, object, &desired, &observed, &plan).await;
    let applied = apply::apply(ctx, object, &desired, &plan).await;
    if !plan.steps.is_empty() {
        let error = applied.as_ref().err();
        if error.is_none_or(apply::Error::is_of_the_revision) {
            ctx.histories.outcome(uid, &desired.revision, error.map(|error| chain(error)));
        }
    }
    ctx.metrics.containers_running.set(i64::try_from(ctx.containers.running()).unwrap_or(i64::MAX));
    // Status is made from what is there now, also when a step failed.
    let after = match plan.steps.is_empty() {
        true => Some(observed.clone()),
        false => observe::observe(ctx, object, &desired).await?.map(|mut after| {
            after.last_good.clone_from(&observed.last_good);
            after
        }),
    };
    if let (Some(after), false) = (&after, plan.steps.is_empty()) {
        called::tell(ctx, object, &desired, after, &plan).await;
    }
    applied?;
    let Some(mut after) = after else { return Ok(Outcome::Settled) };
    if desired.intent == Intent::Delete && observe::is_clear(&after) {
        let logs = log_directory(&ctx.settings.data_dir, object);
        crate::blocking(move || nodelet_drivers::logs::remove(&logs)).await.map_err(Error::Logs)?;
        nodelet_drivers::failpoint::passed("removing the logs of a workload");
        ctx.histories.remove(uid).await.map_err(Error::Revisions)?;
        set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
        return Ok(Outcome::Settled);
    }
    let mut again_in = plan.again_in;
    // No event tells of a start of our own: what became healthy by it is judged at once, as the next pass would.
    let became_healthy = desired.intent == Intent::Run
        && observed.healthy_for.is_none()
        && !is_batch(&desired)
        && update::is_healthy(&desired, &after);
    if became_healthy {
        let (progress, healthy_for) = ctx.histories.observe(uid, &desired.revision, true);
        after.healthy_for = healthy_for;
        update.again_in = None;
        let replaced = advance(ctx, object, &references, &desired, &after, &progress, &mut update).await?;
        let next = plan::plan(&desired, &after, ctx.now());
        let goes_on = replaced || !next.steps.is_empty();
        again_in = if goes_on { Some(std::time::Duration::ZERO) } else { next.again_in };
    }
    let report = Report::Seen { desired: &desired, before: &observed, observed: &after, plan: &plan, update: &update };
    status::publish(ctx, object, report).await;
    probe(ctx, object, &desired, &after);
    if desired.evicted.as_ref().is_some_and(|why| why.reason == reasons::PREEMPTED) && observe::is_clear(&after) {
        // It waits for room from now on.
        ctx.evictions.release(|other, _| other == uid);
        return Ok(Outcome::Again(std::time::Duration::ZERO));
    }
    // A plan is made for what was there; what its steps changed is looked at again at once.
    let life = if deleting { None } else { status::time_to_live(object, ctx.now()) };
    if life.is_some_and(|life| life.is_zero()) {
        return expire(ctx, object).await;
    }
    let life = life.map(|life| life + std::time::Duration::from_millis(5));
    // No event tells of memory that is given back.
    let resized = plan.steps.iter().filter_map(|step| match step {
        plan::Step::UpdateLimits { id, .. } => ctx.resizes.unfinished(id)?.rest,
        _ => None,
    });
    let resizes = resized.min();
    let again_in = again_in.into_iter().chain(update.again_in).chain(life).chain(resizes).min();
    Ok(match again_in {
        Some(after) => Outcome::Again(after),
        None if desired.intent != Intent::Run && !observe::is_clear(&after) => {
            Outcome::Again(std::time::Duration::ZERO)
        }
        None => Outcome::Settled,
    })
}

/// How the update of a workload stands.
#[derive(Debug, Default)]
pub struct Update {
    /// Another revision runs in place of the declared one, and why.
    pub held: Option<String>,
    /// The declared revision failed, and why; it is not replaced by another.
    pub failed: Option<String>,
    /// When it is to be judged again.
    again_in: Option<std::time::Duration>,
    /// The revisions that were good.
    pub history: Arc<revisions::History>,
}

/// Deletes an object that has ended and was kept for long enough, unless it is another one by now.
async fn expire(ctx: &Context, object: &Workload) -> Result<Outcome, Error> {
    let preconditions = kube::api::Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
    let params = kube::api::DeleteParams { preconditions: Some(preconditions), ..Default::default() };
    tracing::info!(workload = %object_key(object), "deleted: ttlSecondsAfterFinished is over");
    let api: kube::Api<Workload> = crate::context::NamespacedOrNot::api(&ctx.client, object.namespace().as_deref());
    match api.delete(&object.name_any(), &params).await {
        Ok(_) => Ok(Outcome::Settled),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(Outcome::Settled),
        Err(error) => Err(error.into()),
    }
}

/// A recorded revision in place of the declared one.
async fn held(
    ctx: &Arc<Context>,
    object: &Workload,
    revision: &revisions::Revision,
    place: &desired::Place,
) -> Result<Result<model::Desired, Invalid>, kube::Error> {
    let effective = revision.object(object);
    let mut references = dereference::dereference(ctx, &effective).await?;
    references.fit = ctx.places.take(ctx, object);
    revision.restore(&mut references);
    Ok(desired::validate(&effective, &references, place).map(|mut desired| {
        revision.pin(&mut desired);
        desired
    }))
}

/// Judges an update: records what is good, and gives up what failed. Returns whether another revision is to run now.
async fn advance(
    ctx: &Arc<Context>,
    object: &Workload,
    references: &dereference::References,
    desired: &model::Desired,
    observed: &model::Observed,
    progress: &update::Progress,
    update: &mut Update,
) -> Result<bool, Error> {
    // What is rolled back to is known already; what waits has not begun.
    if update.held.is_some() || !desired.waits.is_empty() || is_batch(desired) {
        return Ok(false);
    }
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let present = || revisions::Revision::of(object, references, desired, observed, ctx.now());
    let last = update.history.last();
    let settled = last.is_some_and(|last| last.id == desired.revision);
    let healthy = observed.healthy_for.is_some();
    // A good revision stays good; what changed in place is noted.
    if settled && (!healthy || last.is_some_and(|last| last.is_same(&present()))) {
        return Ok(false);
    }
    let mut history = revisions::History::clone(&update.history);
    match update::judge(desired, observed, progress) {
        update::Verdict::Good => {
            update.failed = None;
            let before = update.history.last().map(|last| last.number);
            let is_new = history.record(present(), object.spec.revision_history_limit);
            update.history = ctx.histories.put(uid, history).await.map_err(Error::Revisions)?;
            if let (true, Some(before), Some(now)) = (is_new, before, update.history.last()) {
                let note = format!("Revision {} is healthy and replaces revision {before}", now.number);
                ctx.event(object, EventType::Normal, reasons::UPDATED, note).await;
            }
            Ok(false)
        }
        update::Verdict::UnderWay(rest) => {
            if update.history.target(&desired.revision).is_some() || observed.healthy_for.is_some() {
                update.again_in = Some(rest + std::time::Duration::from_millis(5));
            }
            Ok(false)
        }
        update::Verdict::Failed(_) if settled => Ok(false),
        update::Verdict::Failed(message) => {
            let Some(target) = update.history.target(&desired.revision) else { return Ok(false) };
            let what = format!("Generation {} failed: {message}", desired.generation);
            if !desired.update.rollback {
                if !status::is_known_to_have_failed(object) {
                    ctx.event(object, EventType::Warning, reasons::UPDATE_FAILED, what).await;
                }
                update.failed = Some(message);
                return Ok(false);
            }
            let to = target.number;
            let id = desired.revision.clone();
            history.failed = Some(revisions::Failed { id, generation: desired.generation, to, message });
            ctx.histories.put(uid, history).await.map_err(Error::Revisions)?;
            let note = format!("{what}. Back to revision {to}");
            ctx.event(object, EventType::Warning, reasons::ROLLED_BACK, note).await;
            Ok(true)
        }
    }
}

/// What runs to an end has no state in which it is healthy.
fn is_batch(desired: &model::Desired) -> bool {
    matches!(desired.restart, RestartPolicy::OnFailure | RestartPolicy::Never)
}

/// Sees that what runs is probed, and what no longer runs is not.
fn probe(ctx: &Arc<Context>, object: &Workload, desired: &model::Desired, observed: &model::Observed) {
    let Some(sandbox) = &observed.sandbox else { return };
    let sidecars = desired.init.iter().filter(|wish| wish.sidecar);
    for wish in desired.containers.iter().chain(sidecars) {
        let running = observed.containers.iter().filter(|c| c.is_live() && c.name == wish.name && c.hash == wish.hash);
        for container in running {
            let probes = probes::of(Some(&wish.probes), &container.container.labels);
            if probes.is_empty() {
                continue;
            }
            let target = probes::Target {
                container: container.id().clone(),
                netns: sandbox.netns.clone(),
                address: sandbox.attachments.iter().flat_map(|a| &a.addresses).map(ipnet::IpNet::addr).next(),
                ports: wish.ports.clone(),
            };
            let known = status::known_health(object, container.id());
            ctx.probers.ensure(ctx, ObjectRef::from_obj(object), target, &probes, known);
        }
    }
}

/// Only an edit helps: what runs is left alone.
async fn refuse(ctx: &Context, object: &Workload, invalid: Invalid) -> Outcome {
    ctx.places.leave(object);
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
