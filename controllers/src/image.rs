//! Image: have an image on the node, from a registry or an archive, and say how far that is.
//!
//! A pass asks [`crate::pulls::Pulls`] and never waits for a transfer. When the object goes, the image goes too,
//! unless something else on the node still names or uses it.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::events::EventType;
use nodelet_crds::image::Image;
use nodelet_crds::node_state::{ImagePhase, NodeImage};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::images::{self, Progress};

use crate::context::{Context, chain, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};
use crate::credentials;
use crate::node_state::{image_part, image_phase, image_ready};
use crate::pulls::PullState;

mod desired;
mod plan;
mod status;

use desired::Desired;
use plan::{Observed, Plan};

/// The reconciler of Images.
pub struct Images;

impl Reconciler for Images {
    type Kind = Image;
    type Error = Error;
    const KIND: &'static str = "Image";

    async fn pass(ctx: &Arc<Context>, object: &Image) -> Result<Outcome, Error> {
        pass(ctx, object).await
    }

    fn reason(error: &Error) -> &'static str {
        match error {
            Error::Api(_) | Error::Images(_) => reasons::RECONCILE_ERROR,
        }
    }

    async fn publish_failure(ctx: &Context, object: &Image, reason: &'static str, message: String) {
        let part = NodeImage { message, phase: ImagePhase::Failed, ..image_part(object) };
        publish(ctx, object, part, reason).await;
    }
}

/// A pass failed for a reason of the node or the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API did not answer as it should.
    #[error("talking to the API")]
    Api(#[from] kube::Error),
    /// The image driver.
    #[error("looking at the images of the node")]
    Images(#[source] images::Error),
}

async fn pass(ctx: &Arc<Context>, object: &Image) -> Result<Outcome, Error> {
    if object.metadata.deletion_timestamp.is_some() {
        return let_go(ctx, object).await;
    }
    set_finalizer(&ctx.client, object, labels::FINALIZER, true).await?;
    let credentials = match credentials::for_image(&ctx.client, object).await? {
        Ok(credentials) => credentials,
        Err(missing) => {
            let part = NodeImage { message: missing, phase: ImagePhase::Failed, ..image_part(object) };
            publish(ctx, object, part, reasons::CONFIG_MISSING).await;
            return Ok(Outcome::Settled);
        }
    };
    let desired = match desired::validate(object, &ctx.settings.node_labels, credentials) {
        Ok(desired) => desired,
        Err(invalid) => {
            let part = NodeImage { message: invalid.message, phase: ImagePhase::Failed, ..image_part(object) };
            publish(ctx, object, part, invalid.reason).await;
            return Ok(Outcome::Settled);
        }
    };
    let observed = observe(ctx, object, &desired).await?;
    let plan = plan::plan(&desired, &observed);
    tracing::debug!(image = %object_key(object), ?plan, "plan");
    apply(ctx, object, &desired, observed, plan).await
}

async fn observe(ctx: &Context, object: &Image, desired: &Desired) -> Result<Observed, Error> {
    let present = match &desired.fetch {
        Some(fetch) => ctx.drivers.images.get(&fetch.reference).await.map_err(Error::Images)?,
        None => None,
    };
    let seen = object.status.as_ref().and_then(|status| status.observed_generation);
    Ok(Observed { present, edited: seen != object.metadata.generation })
}

async fn apply(
    ctx: &Arc<Context>,
    object: &Image,
    desired: &Desired,
    observed: Observed,
    plan: Plan,
) -> Result<Outcome, Error> {
    let part = image_part(object);
    match plan {
        Plan::NotHere => {
            ctx.report.forget_image(&object.namespace().unwrap_or_default(), &object.name_any());
            status::write(ctx, object, None, reasons::NOT_SELECTED).await?;
            Ok(Outcome::Settled)
        }
        Plan::Keep(image) => {
            publish(ctx, object, image_ready(part, &image), reasons::PULLED).await;
            Ok(Outcome::Settled)
        }
        Plan::Missing(message) => {
            let part = NodeImage { phase: ImagePhase::Failed, message, ..part };
            publish(ctx, object, part, reasons::IMAGE_NEVER_PULL).await;
            Ok(Outcome::Settled)
        }
        Plan::Fetch { fresh } => {
            let Some(fetch) = &desired.fetch else { return Ok(Outcome::Settled) };
            if observed.edited {
                ctx.pulls.forget_failure(&fetch.reference);
            }
            Ok(follow(ctx, object, observed, ctx.pulls.request(fetch, fresh)).await)
        }
    }
}

/// Reports where the transfer stands and says when to look again.
async fn follow(ctx: &Context, object: &Image, observed: Observed, state: PullState) -> Outcome {
    let part = image_part(object);
    match state {
        PullState::Running(Progress { phase, bytes_done, bytes_total }) => {
            let (done, total) = (Some(bytes_done), (bytes_total > 0).then_some(bytes_total));
            let phase = image_phase(phase);
            let part = NodeImage { phase, bytes_done: done, bytes_total: total, ..part };
            publish(ctx, object, part, status::reason_of(phase)).await;
            // Progress is worth a write a second; the end wakes us at once.
            Outcome::Again(Duration::from_secs(1))
        }
        PullState::Done(image) => {
            let note = format!("Image {} is on the node: {}", image.reference, image.digest);
            if object.status.as_ref().and_then(|s| s.digest.as_deref()) != Some(&image.digest) {
                ctx.event(object, EventType::Normal, reasons::PULLED, note).await;
            }
            publish(ctx, object, image_ready(part, &image), reasons::PULLED).await;
            Outcome::Settled
        }
        PullState::Failed { message, failures, retry_in, kind } => {
            let message = format!("{message}; try {} in {} s", failures + 1, retry_in.as_secs() + 1);
            ctx.event(object, EventType::Warning, kind.reason(), message.clone()).await;
            match observed.present.filter(|_| plan::keeps_old(object)) {
                Some(image) => {
                    let part = NodeImage { message, ..image_ready(part, &image) };
                    publish(ctx, object, part, reasons::PULLED).await;
                }
                None => {
                    let part = NodeImage { phase: ImagePhase::Failed, message, ..part };
                    publish(ctx, object, part, kind.reason()).await;
                }
            }
            Outcome::Again(retry_in)
        }
    }
}

/// Puts this node's part into NodeState and the sum into the object's status.
async fn publish(ctx: &Context, object: &Image, part: NodeImage, reason: &'static str) {
    ctx.report.set_image(part.clone());
    if let Err(error) = status::write(ctx, object, Some(&part), reason).await {
        tracing::warn!(image = %object_key(object), "writing the status: {}", chain(&error));
    }
}

/// The object is being deleted: the image goes when nothing else wants it.
async fn let_go(ctx: &Arc<Context>, object: &Image) -> Result<Outcome, Error> {
    if !object.finalizers().iter().any(|f| f == labels::FINALIZER) {
        return Ok(Outcome::Settled);
    }
    let reference = object.spec.reference.as_str();
    match crate::image_users::users(ctx, object) {
        crate::image_users::Users::Leaving => {
            // Its last users are on their way out and wake us.
            return Ok(Outcome::Again(Duration::from_secs(5)));
        }
        crate::image_users::Users::Staying => {}
        crate::image_users::Users::None => {
            ctx.drivers.images.remove(reference).await.map_err(Error::Images)?;
            ctx.pulls.forget(reference);
            tracing::info!(reference, "image removed from the node");
        }
    }
    ctx.report.forget_image(&object.namespace().unwrap_or_default(), &object.name_any());
    set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
    Ok(Outcome::Settled)
}
