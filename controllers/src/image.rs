//! Image: have an image on the node, from a registry or an archive, and say how far that is.
//!
//! A pass asks [`crate::pulls::Pulls`] and never waits for a transfer. When the object goes, the image goes too,
//! unless something else on the node still names or uses it.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::events::EventType;
use nodelet_crds::image::Image;
use nodelet_crds::node_state::{ImagePhase, NodeImage};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::images::{self, Fetch, Image as DriverImage};
use rand::Rng as _;

use crate::backoff::Backoff;
use crate::context::{Context, chain, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};
use crate::invalid::Invalid;
use crate::node_state::{image_part, image_ready};
use crate::pulls::{FailureKind, PullState, Unresolved};
use crate::{credentials, image_signers};

pub mod archives;
mod desired;
mod plan;
pub mod progress;
pub mod refresh;
mod status;

use desired::Desired;
use plan::{Observed, Plan, Refresh};
use refresh::Schedule;

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
    let missing = |message| Invalid { reason: reasons::CONFIG_MISSING, message };
    let credentials = credentials::for_image(&ctx.client, object).await?.map_err(missing);
    let declared = image_signers::declared(ctx).await?;
    let signers = image_signers::signers(ctx, &declared, &object.spec.reference).await?.map_err(missing);
    let desired = credentials.and_then(|credentials| {
        let here = &ctx.settings.node_labels;
        signers.and_then(|signers| desired::validate(object, here, credentials, signers))
    });
    let desired = match desired {
        Ok(desired) => desired,
        Err(invalid) => {
            let part = NodeImage { message: invalid.message, phase: ImagePhase::Failed, ..image_part(object) };
            publish(ctx, object, part, invalid.reason).await;
            return Ok(Outcome::Settled);
        }
    };
    let (observed, schedule) = observe(ctx, object, &desired).await?;
    let plan = plan::plan(&desired, &observed);
    tracing::debug!(image = %object_key(object), ?plan, "plan");
    Pass { ctx, object, desired: &desired, observed, schedule }.apply(plan).await
}

async fn observe(ctx: &Context, object: &Image, desired: &Desired) -> Result<(Observed, Option<Schedule>), Error> {
    let seen = object.status.as_ref().and_then(|status| status.observed_generation);
    let edited = seen != object.metadata.generation;
    let Some(fetch) = &desired.fetch else {
        return Ok((Observed { edited, ..Observed::default() }, None));
    };
    let present = ctx.drivers.images.get(&fetch.reference).await.map_err(Error::Images)?;
    let schedule = schedule(ctx, object, fetch);
    let refresh = schedule.as_ref().map_or(Refresh::None, |schedule| {
        let now = Instant::now();
        match (&schedule.digest, schedule.answered, &present) {
            (Some(digest), Some(at), Some(image)) if image.digest != *digest => Refresh::Moved(now - at),
            _ if schedule.due <= now => Refresh::Due,
            _ => Refresh::In(schedule.due - now),
        }
    });
    Ok((Observed { present, edited, refresh }, schedule))
}

/// The schedule of `refreshSeconds`. What anybody's transfer found out counts as an answer.
fn schedule(ctx: &Context, object: &Image, fetch: &Fetch) -> Option<Schedule> {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let random = rand::rng().random_range(0.0..1.0);
    let schedule = ctx.refreshes.of(uid, object.spec.refresh_seconds, |interval| {
        let known = ctx.report.image(&object.namespace().unwrap_or_default(), &object.name_any());
        Schedule::begin(interval, known.and_then(|part| part.resolved_at), ctx.now(), Instant::now(), random)
    })?;
    match ctx.pulls.last(fetch) {
        Some((image, at)) if schedule.answered.is_none_or(|answered| at > answered) => {
            ctx.refreshes.change(uid, |schedule| schedule.answered(image.digest, at, ctx.now(), random))
        }
        _ => Some(schedule),
    }
}

/// What the steps of one pass share.
struct Pass<'a> {
    ctx: &'a Arc<Context>,
    object: &'a Image,
    desired: &'a Desired,
    observed: Observed,
    schedule: Option<Schedule>,
}

impl Pass<'_> {
    async fn apply(self, plan: Plan) -> Result<Outcome, Error> {
        let Self { ctx, object, .. } = self;
        let fetch = self.desired.fetch.as_ref();
        match plan {
            Plan::NotHere => {
                ctx.report.forget_image(&object.namespace().unwrap_or_default(), &object.name_any());
                status::write(ctx, object, None, reasons::NOT_SELECTED).await?;
                Ok(Outcome::Settled)
            }
            Plan::Keep(image, again) => {
                self.arrived(&image).await;
                self.keep(&image).await;
                Ok(again.map_or(Outcome::Settled, Outcome::Again))
            }
            Plan::Missing(message) => {
                self.fail(reasons::IMAGE_NEVER_PULL, message).await;
                Ok(Outcome::Settled)
            }
            Plan::Unsigned(message) => {
                self.fail(reasons::VERIFICATION_FAILED, message).await;
                Ok(Outcome::Settled)
            }
            Plan::Resolve(image) => match fetch.map(|fetch| (fetch, ctx.pulls.resolve(fetch))) {
                None | Some((_, Poll::Pending)) => Ok(Outcome::Settled),
                Some((fetch, Poll::Ready(answer))) => Ok(self.resolved(&image, fetch, answer).await),
            },
            Plan::Fetch { fresh } => {
                let Some(fetch) = fetch else { return Ok(Outcome::Settled) };
                if self.observed.edited {
                    ctx.pulls.forget_failure(&fetch.reference);
                }
                Ok(self.follow(ctx.pulls.request(fetch, fresh)).await)
            }
        }
    }

    /// The registry said, or failed to say, what the reference stands for now.
    async fn resolved(mut self, present: &DriverImage, fetch: &Fetch, answer: Result<String, Unresolved>) -> Outcome {
        let Self { ctx, object, .. } = self;
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        match answer {
            Ok(digest) => {
                let random = rand::rng().random_range(0.0..1.0);
                let moved = digest != present.digest;
                tracing::debug!(reference = %fetch.reference, %digest, moved, "resolved anew");
                self.schedule = ctx.refreshes.change(uid, |schedule| {
                    schedule.answered(digest, Instant::now(), ctx.now(), random);
                });
                if moved {
                    return self.follow(ctx.pulls.request(fetch, Duration::ZERO)).await;
                }
                self.keep(present).await;
                let due = self.schedule.as_ref().map(|schedule| schedule.due);
                Outcome::Again(due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now())))
            }
            Err(Unresolved { message, kind, retry_after }) => {
                let failures = self.schedule.as_ref().map_or(0, |schedule| schedule.failures) + 1;
                let retry_in = Backoff::RETRY.jittered(failures).max(retry_after.unwrap_or_default());
                let message = format!("resolving {} anew: {message}", fetch.reference);
                ctx.event(object, EventType::Warning, kind.reason(), message.clone()).await;
                let reason = kind.reason();
                self.schedule = ctx.refreshes.change(uid, |schedule| {
                    schedule.failed(reason, message, retry_in, Instant::now());
                });
                self.keep(present).await;
                Outcome::Again(retry_in)
            }
        }
    }

    /// Reports where the transfer stands and says when to look again.
    async fn follow(self, state: PullState) -> Outcome {
        let Self { ctx, object, .. } = self;
        // What is there and still wanted goes on to serve.
        let wanted =
            |image: &&DriverImage| self.desired.fetch.as_ref().is_some_and(|fetch| image.is_signed_by(&fetch.signers));
        let old = self.observed.present.as_ref().filter(wanted);
        let edited = self.observed.edited;
        match state {
            PullState::Running(transfer) => {
                if transfer.started {
                    let note = format!("Pulling {}", object.spec.reference);
                    ctx.event(object, EventType::Normal, reasons::PULLING, note).await;
                }
                match old.filter(|_| !edited) {
                    Some(image) => self.keep(image).await,
                    None => {
                        let part = progress::moving(self.part(), &transfer);
                        let reason = status::reason_of(part.phase);
                        publish(ctx, object, part, reason).await;
                    }
                }
                // Its phases and its end wake us; the bytes in between are told by `progress`.
                Outcome::Settled
            }
            PullState::Done(image) => {
                self.arrived(&image).await;
                publish(ctx, object, image_ready(self.part(), &image), reasons::PULLED).await;
                let due = self.schedule.as_ref().map(|schedule| schedule.due);
                due.map_or(Outcome::Settled, |due| Outcome::Again(due.saturating_duration_since(Instant::now())))
            }
            PullState::Failed { message, failures, retry_in, kind } => {
                let next = format!("{message}; try {}", failures + 1);
                ctx.event(object, EventType::Warning, kind.reason(), next.clone()).await;
                let message = format!("{next} in {} s", retry_in.as_secs() + 1);
                // Nobody may overlook that somebody pushed what nobody signed.
                let serves = plan::keeps_old(self.desired.policy, edited) && kind != FailureKind::Unsigned;
                match old.filter(|_| serves) {
                    Some(image) => {
                        let part = NodeImage { message, ..image_ready(self.part(), image) };
                        publish(ctx, object, part, reasons::PULLED).await;
                    }
                    None => self.fail(kind.reason(), message).await,
                }
                Outcome::Again(retry_in)
            }
        }
    }

    /// Tells of an image that was not there when the status was last written.
    async fn arrived(&self, image: &DriverImage) {
        let Self { ctx, object, .. } = self;
        if object.status.as_ref().and_then(|status| status.digest.as_deref()) == Some(&image.digest) {
            return;
        }
        let last = self.desired.fetch.as_ref().and_then(|fetch| ctx.pulls.took(fetch));
        let took = last.map_or_else(String::new, |took| format!(" after {:.1} s", took.as_secs_f64()));
        let size = nodelet_drivers::room::size(image.size);
        let note = format!("Image {} is on the node{took}: {}, {size}", image.reference, image.digest);
        ctx.event(self.object, EventType::Normal, reasons::PULLED, note).await;
    }

    /// Reports an image that is there, with what is wrong about its refreshing.
    async fn keep(&self, image: &DriverImage) {
        let part = image_ready(self.part(), image);
        let problem = self.schedule.as_ref().and_then(|schedule| schedule.problem.clone());
        let (part, reason) = match problem {
            None => (part, reasons::PULLED),
            Some((_, message)) if plan::keeps_old(self.desired.policy, false) => {
                (NodeImage { message, ..part }, reasons::PULLED)
            }
            Some((reason, message)) => (NodeImage { message, phase: ImagePhase::Failed, ..part }, reason),
        };
        publish(self.ctx, self.object, part, reason).await;
    }

    /// Reports a failure, beside what is there nevertheless.
    async fn fail(&self, reason: &'static str, message: String) {
        let part = match &self.observed.present {
            Some(image) => image_ready(self.part(), image),
            None => self.part(),
        };
        publish(self.ctx, self.object, NodeImage { phase: ImagePhase::Failed, message, ..part }, reason).await;
    }

    fn part(&self) -> NodeImage {
        let resolved_at = self.schedule.as_ref().and_then(|schedule| schedule.resolved_at.clone());
        NodeImage { resolved_at, ..image_part(self.object) }
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
    ctx.refreshes.forget(object.metadata.uid.as_deref().unwrap_or_default());
    set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
    Ok(Outcome::Settled)
}
