//! Volume: storage of this node that outlives the Workloads that use it.
//!
//! A Volume that is used cannot go: its condition names the users. What happens with the data afterwards is said by
//! `reclaimPolicy`, and a given path is never deleted.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use nodelet_crds::common::{condition_type, now, set_condition};
use nodelet_crds::volume::{ReclaimPolicy, Volume, VolumePhase, VolumeStatus};
use nodelet_crds::workload::Workload;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::volumes::{self, Usage};

use crate::context::{Context, chain, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};
use crate::metrics::ToldOfVolume;

mod desired;

use desired::Desired;

/// When a Volume with a filesystem of its own is measured again, and tried again if it could not grow.
const MEASURE_AGAIN: Duration = Duration::from_secs(300);
/// A change of its use by less than this part of its size is not worth a write of the status.
const WORTH_TELLING: u64 = 50;

/// The reconciler of Volumes.
pub struct Volumes;

impl Reconciler for Volumes {
    type Kind = Volume;
    type Error = Error;
    const KIND: &'static str = "Volume";

    async fn pass(ctx: &Arc<Context>, object: &Volume) -> Result<Outcome, Error> {
        pass(ctx, object).await
    }

    fn reason(error: &Error) -> &'static str {
        match error {
            Error::Api(_) => reasons::RECONCILE_ERROR,
            Error::Volume(_) => reasons::MOUNT_FAILED,
        }
    }

    async fn publish_failure(ctx: &Context, object: &Volume, reason: &'static str, message: String) {
        write(ctx, object, State::failed(reason, message)).await;
    }
}

/// A pass failed for a reason of the node or the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API did not answer as it should.
    #[error("talking to the API")]
    Api(#[from] kube::Error),
    /// The volume driver.
    #[error("providing the volume")]
    Volume(#[from] volumes::Error),
}

/// What the status is made from.
struct State {
    phase: VolumePhase,
    reason: &'static str,
    message: String,
    path: Option<String>,
    usage: Option<Usage>,
    users: Vec<String>,
    /// Why it does not have the wanted capacity.
    capacity_problem: Option<String>,
}

impl State {
    fn failed(reason: &'static str, message: String) -> Self {
        Self {
            phase: VolumePhase::Failed,
            reason,
            message,
            path: None,
            usage: None,
            users: Vec::new(),
            capacity_problem: None,
        }
    }
}

async fn pass(ctx: &Arc<Context>, object: &Volume) -> Result<Outcome, Error> {
    let desired = match desired::validate(object, &ctx.settings.node_name) {
        Ok(Some(desired)) => desired,
        // Another node's.
        Ok(None) => return Ok(Outcome::Settled),
        Err(invalid) => {
            if object.metadata.deletion_timestamp.is_some() {
                // It was never made.
                set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
                return Ok(Outcome::Settled);
            }
            write(ctx, object, State::failed(invalid.reason, invalid.message)).await;
            return Ok(Outcome::Settled);
        }
    };
    // Before all Workloads have been read, nobody knows who uses it.
    if !ctx.stores.workloads_read.wait().await {
        // The agent stops.
        return Ok(Outcome::Settled);
    }
    let users = users(ctx, object);
    if object.metadata.deletion_timestamp.is_some() {
        return let_go(ctx, object, &desired, users).await;
    }
    set_finalizer(&ctx.client, object, labels::FINALIZER, true).await?;
    let volume = ctx.drivers.volumes.ensure(&desired.spec).await?;
    let usage = ctx.drivers.volumes.usage(&desired.spec).await?;
    let state = State {
        phase: if users.is_empty() { VolumePhase::Ready } else { VolumePhase::InUse },
        reason: reasons::READY,
        message: String::new(),
        path: Some(volume.path.to_string_lossy().into_owned()),
        usage: Some(usage),
        users,
        capacity_problem: volume.capacity_problem,
    };
    // Of what has a filesystem of its own the use is known, and changes without an event.
    let measured = usage.used_bytes.is_some();
    write(ctx, object, state).await;
    Ok(if measured { Outcome::Again(MEASURE_AGAIN) } else { Outcome::Settled })
}

async fn let_go(ctx: &Arc<Context>, object: &Volume, desired: &Desired, users: Vec<String>) -> Result<Outcome, Error> {
    if !object.finalizers().iter().any(|f| f == labels::FINALIZER) {
        return Ok(Outcome::Settled);
    }
    if !users.is_empty() {
        let message = format!("deleted when no longer used by {}", users.join(", "));
        let path = object.status.as_ref().and_then(|s| s.path.clone());
        let phase = VolumePhase::InUse;
        let state =
            State { phase, reason: reasons::TERMINATING, message, path, usage: None, users, capacity_problem: None };
        write(ctx, object, state).await;
        return Ok(Outcome::Settled);
    }
    let delete = object.spec.reclaim_policy == ReclaimPolicy::Delete;
    ctx.drivers.volumes.remove(&desired.spec, delete).await?;
    tracing::info!(volume = %object_key(object), data_deleted = delete, "volume removed");
    ctx.metrics.tell_of_volume(&object.namespace().unwrap_or_default(), &object.name_any(), None);
    set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
    Ok(Outcome::Settled)
}

/// Names of the Workloads that mount it and have, or may soon have, containers.
fn users(ctx: &Context, object: &Volume) -> Vec<String> {
    let (namespace, name) = (object.namespace(), object.name_any());
    let mounts = |w: &Workload| w.spec.volumes.iter().any(|v| v.volume.as_ref().is_some_and(|v| v.name == name));
    let mut users: Vec<String> = ctx
        .stores
        .workloads
        .state()
        .iter()
        .filter(|w| w.namespace() == namespace && mounts(w))
        .filter(|w| {
            let uid = w.metadata.uid.as_deref().unwrap_or_default();
            let wanted = !w.spec.stopped && w.metadata.deletion_timestamp.is_none();
            wanted || !ctx.sandboxes.of_workload(uid).is_empty()
        })
        .map(|w| w.name_any())
        .collect();
    users.sort();
    users
}

async fn write(ctx: &Context, object: &Volume, state: State) {
    let generation = object.metadata.generation;
    let mut status: VolumeStatus = object.status.clone().unwrap_or_default();
    let ready = matches!(state.phase, VolumePhase::Ready | VolumePhase::InUse);
    status.observed_generation = generation;
    status.node_name = Some(ctx.settings.node_name.clone());
    status.phase = Some(state.phase);
    status.path = state.path;
    let told = ToldOfVolume {
        capacity: state.usage.map(|usage| usage.capacity_bytes).or(status.capacity_bytes),
        used: state.usage.map_or(status.used_bytes, |usage| usage.used_bytes),
        ready,
    };
    ctx.metrics.tell_of_volume(&object.namespace().unwrap_or_default(), &object.name_any(), Some(told));
    if let Some(usage) = state.usage {
        status.capacity_bytes = Some(usage.capacity_bytes);
        let worth = usage.capacity_bytes / WORTH_TELLING;
        let close = |before: u64, now: u64| before.abs_diff(now) < worth && before != 0;
        match (status.used_bytes, usage.used_bytes) {
            (Some(before), Some(now)) if close(before, now) => {}
            (_, now) => status.used_bytes = now,
        }
    }
    status.used_by = state.users;
    let mut set = |type_, holds, reason, message| {
        set_condition(&mut status.conditions, type_, holds, reason, message, generation, now());
    };
    set(condition_type::READY, ready, state.reason, state.message);
    if ready && object.spec.capacity.is_some() {
        let lacking = if object.spec.local.is_some() { reasons::NO_QUOTA } else { reasons::INSUFFICIENT_STORAGE };
        match state.capacity_problem {
            None => set(condition_type::CAPACITY_ENFORCED, true, reasons::ENFORCED, String::new()),
            Some(why) => set(condition_type::CAPACITY_ENFORCED, false, lacking, why),
        }
    }
    if let Err(error) = ctx.write_status(object, object.status.as_ref(), &status).await {
        tracing::warn!(volume = %object_key(object), "writing the status: {}", chain(&error));
    }
}
