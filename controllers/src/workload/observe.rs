//! Reads what the node has of one workload. Changes nothing, except that it lets missing images be fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::events::EventType;
use nodelet_crds::common::{condition_type, find_condition};
use nodelet_crds::image::Image as ImageObject;
use nodelet_crds::workload::Workload;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::images::{self, Fetch, Source, normalize};
use nodelet_drivers::runtime::{Container, TaskState};
use nodelet_drivers::{network, sandbox};

use super::model::{
    ContainerWish, Desired, Health, ImageWish, Intent, Observed, PullRule, SeenContainer, SeenImage, SeenSandbox,
    VolumeWish,
};
use super::{files, follow};
use crate::context::Context;
use crate::image_checks::Check;
use crate::pulls::{FailureKind, PullState, RESOLVE_PATIENCE};
use crate::{credentials, image_signers};

/// Something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox driver.
    #[error("reading the sandbox")]
    Sandbox(#[from] sandbox::Error),
    /// The network driver.
    #[error("reading the network")]
    Network(#[from] network::Error),
    /// The image driver.
    #[error("reading the images")]
    Images(#[from] images::Error),
    /// The API did not answer as it should.
    #[error("reading from the API")]
    Api(#[from] kube::Error),
}

/// A transfer that ended this recently was for this start.
const FRESH: Duration = Duration::from_secs(20);

/// What is there; `None` until the containers of the node have been read once.
pub async fn observe(ctx: &Arc<Context>, object: &Workload, desired: &Desired) -> Result<Option<Observed>, Error> {
    let Some(mut observed) = look(ctx, object, desired).await? else { return Ok(None) };
    if desired.intent == Intent::Run {
        observed.images = images(ctx, object, desired, &observed.containers).await?;
    }
    Ok(Some(observed))
}

/// [`observe`] without images, and without any effect.
pub async fn look(ctx: &Arc<Context>, object: &Workload, desired: &Desired) -> Result<Option<Observed>, Error> {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let Some(containers) = ctx.containers.of_workload(uid) else { return Ok(None) };
    let mut containers: Vec<SeenContainer> = containers.into_iter().map(|c| seen(ctx, object, desired, c)).collect();
    if desired.intent == Intent::Run {
        outdated_images(ctx, desired, &mut containers).await?;
    }
    let id = &desired.sandbox.spec.id;
    let mut stale_sandboxes = ctx.sandboxes.of_workload(uid);
    stale_sandboxes.remove(id);
    // A container of a sandbox that is in no index: its record was lost, its remains may not be.
    for container in &containers {
        if container.sandbox != id.as_str()
            && let Ok(other) = nodelet_drivers::ids::SandboxId::new(container.sandbox.clone())
        {
            stale_sandboxes.insert(other);
        }
    }
    let mut serving = None;
    for other in &stale_sandboxes {
        if !ctx.drivers.networks.ports_of(other).await?.is_empty() {
            serving = Some(other.clone());
        }
    }
    let sandbox = match ctx.drivers.sandboxes.get(id).await? {
        None => None,
        Some(sandbox) => Some(SeenSandbox {
            complete: sandbox.complete,
            netns: sandbox.netns,
            attachments: ctx.drivers.networks.attachments_of(id).await?,
            ports: ctx.drivers.networks.ports_of(id).await?,
        }),
    };
    Ok(Some(Observed {
        outdated_files: if sandbox.is_some() { outdated_files(ctx, desired) } else { BTreeSet::new() },
        sandbox,
        stale_sandboxes,
        containers,
        images: BTreeMap::new(),
        remembered: super::status::remembered(object),
        started_at: super::status::started_at(object),
        given_up: super::status::given_up(object),
        healthy_for: None,
        last_good: None,
        serving,
    }))
}

/// Nothing of the workload is left on the node.
pub fn is_clear(observed: &Observed) -> bool {
    observed.containers.is_empty() && observed.sandbox.is_none() && observed.stale_sandboxes.is_empty()
}

fn seen(ctx: &Context, object: &Workload, desired: &Desired, container: Container) -> SeenContainer {
    let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
    let number = |key: &str| label(key).parse().unwrap_or(0);
    let name = label(labels::CONTAINER);
    // Until its prober runs, a container is as its status knew it, or as one that was just started.
    // What another revision runs has proved itself, or its prober says otherwise.
    let mine = label(labels::SANDBOX) == desired.sandbox.spec.id.as_str();
    let wish = desired.init.iter().chain(&desired.containers).find(|wish| mine && wish.name == name);
    let health = ctx
        .probers
        .health(&container.id)
        .or_else(|| super::status::known_health(object, &container.id))
        .unwrap_or_else(|| match wish {
            Some(wish) => super::probes::initial(&super::probes::of(Some(&wish.probes), &container.labels)),
            None => Health::default(),
        });
    SeenContainer {
        name,
        init: label(labels::TYPE) == labels::TYPE_INIT,
        sidecar: label(labels::SIDECAR).parse().ok(),
        sandbox: label(labels::SANDBOX),
        attempt: number(labels::ATTEMPT),
        restarts: number(labels::RESTARTS),
        failures: number(labels::FAILURES),
        hash: label(labels::SPEC_HASH),
        heard: ctx.written.heard(&container.id).or_else(|| container.labels.get(labels::HEARD).cloned()),
        stopping: ctx.stops.since(&container.id),
        resize: ctx.resizes.unfinished(&container.id),
        health,
        container,
    }
}

fn outdated_files(ctx: &Context, desired: &Desired) -> BTreeSet<String> {
    let id = &desired.sandbox.spec.id;
    let stale = |name: &str, volume: &VolumeWish| match volume {
        VolumeWish::Ephemeral(kind) => !ctx.written.is_current(id, name, &files::fingerprint(kind)),
        VolumeWish::Path { .. } | VolumeWish::HostPath(..) | VolumeWish::Image(_) => false,
    };
    desired.sandbox.volumes.iter().filter(|(name, v)| stale(name, v)).map(|(name, _)| name.clone()).collect()
}

/// Marks the containers that run another image than their reference stands for by now, where that is asked for: the
/// container's policy is `Always` or `Newer`, and an Image refreshes the reference. They are then replaced as after
/// an edit; one that was asked to stop for that is still so when it has ended. With StartFirst it is another revision
/// that runs the other image, see [`follow`].
async fn outdated_images(
    ctx: &Context,
    desired: &Desired,
    containers: &mut [SeenContainer],
) -> Result<(), images::Error> {
    if desired.update.start_first {
        return Ok(());
    }
    for wish in desired.init.iter().chain(&desired.containers) {
        let reference = &wish.image.fetch.reference;
        let follows = matches!(wish.image.policy, PullRule::Always | PullRule::Newer) && wish.image.digest.is_none();
        let mine: Vec<&mut SeenContainer> = containers
            .iter_mut()
            .filter(|c| c.name == wish.name && c.hash == wish.hash && (c.is_live() || c.stopping.is_some()))
            .collect();
        if !follows || mine.is_empty() || !follow::is_refreshed(ctx, reference) {
            continue;
        }
        let Some(present) = ctx.drivers.images.get(reference).await? else { continue };
        for container in mine {
            let runs = container.container.labels.get(labels::IMAGE_DIGEST);
            if runs.is_some_and(|digest| *digest != present.digest) {
                container.hash = format!("{} of {}", container.hash, present.digest);
            }
        }
    }
    Ok(())
}

/// The images of the containers that are not running as they should.
async fn images(
    ctx: &Arc<Context>,
    object: &Workload,
    desired: &Desired,
    containers: &[SeenContainer],
) -> Result<BTreeMap<String, SeenImage>, Error> {
    let id = desired.sandbox.spec.id.as_str();
    let mut images = BTreeMap::new();
    let mut declared = None;
    for wish in desired.init.iter().chain(&desired.containers) {
        let settled = containers.iter().any(|c| {
            c.name == wish.name && c.sandbox == id && c.hash == wish.hash && c.is_live()
                || (c.name == wish.name
                    && c.sandbox == id
                    && c.init
                    && !wish.sidecar
                    && matches!(c.container.state, TaskState::Exited(_)))
        });
        if !settled {
            // Read once for all containers, and only when one has to start.
            let declared = match &declared {
                Some(declared) => declared,
                None => declared.insert(image_signers::declared(ctx).await?),
            };
            tell_of_ends(ctx, wish, containers);
            images.insert(wish.name.clone(), image(ctx, object, &wish.image, declared).await?);
        }
    }
    if let Some(declared) = &declared {
        for (key, wish) in desired.volume_images() {
            images.insert(key, image(ctx, object, wish, declared).await?);
        }
    }
    Ok(images)
}

/// How the containers of the wish ended, for whoever judges whether their image is damaged.
fn tell_of_ends(ctx: &Context, wish: &ContainerWish, containers: &[SeenContainer]) {
    let unasked = |c: &&SeenContainer| c.name == wish.name && c.hash == wish.hash && c.stopping.is_none();
    for seen in containers.iter().filter(unasked) {
        if let TaskState::Exited(exit) = &seen.container.state {
            let ran = exit.at.duration_since(seen.container.created_at).unwrap_or_default();
            ctx.image_checks.ended(&wish.image.fetch.reference, exit.code, ran, seen.failures);
        }
    }
}

async fn image(
    ctx: &Arc<Context>,
    object: &Workload,
    wish: &ImageWish,
    declared: &[ImageObject],
) -> Result<SeenImage, Error> {
    let reference = &wish.fetch.reference;
    let mut fetch = match fetch(ctx, object, &wish.fetch, declared).await? {
        Ok(fetch) => fetch,
        Err(message) => return Ok(SeenImage::Failed { reason: reasons::CONFIG_MISSING, message }),
    };
    let mut found = ctx.drivers.images.get(reference).await?;
    let mut policy = wish.policy;
    if let Some(digest) = &wish.digest {
        policy = PullRule::IfAbsent;
        if found.as_ref().is_none_or(|image| image.digest != *digest) {
            // The reference stands for another image by now: the recorded one is named by its digest.
            fetch.reference = by_digest(reference, digest);
            found = ctx.drivers.images.get(&fetch.reference).await?;
        }
    }
    // Without a signature that is asked for, it is as if it were not there.
    let present = found.as_ref().filter(|image| image.is_signed_by(&fetch.signers));
    let present_now =
        |image: &images::Image| SeenImage::Present { name: image.reference.clone(), digest: image.digest.clone() };
    if present.is_some()
        && let Some(doubt) = doubt(ctx, object, &fetch)
    {
        return Ok(doubt);
    }
    match (policy, present) {
        (PullRule::IfAbsent | PullRule::Never, Some(image)) => return Ok(present_now(image)),
        (PullRule::Never, None) => {
            let (reason, what) = match found {
                None => (reasons::IMAGE_NEVER_PULL, "is not on the node"),
                Some(_) => (reasons::VERIFICATION_FAILED, "is on the node, but its signature was not checked,"),
            };
            return Ok(SeenImage::Failed {
                reason,
                message: format!("{reference} {what} and imagePullPolicy is Never"),
            });
        }
        (PullRule::IfAbsent | PullRule::Always | PullRule::Newer, _) => {}
    }
    let fresh = if policy == PullRule::IfAbsent { Duration::ZERO } else { FRESH };
    let old = present.filter(|_| policy == PullRule::Newer);
    let state = ctx.pulls.request(&fetch, fresh);
    tell_of_pull(ctx, object, &fetch, &state).await;
    Ok(match (state, old) {
        (PullState::Done(image), _) => present_now(&image),
        // A registry that does not answer keeps nobody waiting who can do without its answer.
        (PullState::Running(transfer), Some(old))
            if transfer.progress.phase == images::Phase::Resolving && transfer.running >= RESOLVE_PATIENCE =>
        {
            present_now(old)
        }
        (PullState::Running(transfer), _) => {
            SeenImage::Pulling { message: format!("{reference}: {:?}", transfer.progress.phase).to_lowercase() }
        }
        (PullState::Failed { kind, .. }, Some(old)) if kind != FailureKind::Unsigned => present_now(old),
        (PullState::Failed { message, kind, failures, retry_in }, _) => SeenImage::Failed {
            reason: kind.reason(),
            message: format!("{message}; try {} in {} s", failures + 1, retry_in.as_secs() + 1),
        },
    })
}

/// Events for a transfer's start, end and failures, each once: what the status said last tells what is news.
async fn tell_of_pull(ctx: &Context, object: &Workload, fetch: &Fetch, state: &PullState) {
    let conditions = object.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let before = find_condition(conditions, condition_type::IMAGES_READY);
    let reference = &fetch.reference;
    match state {
        PullState::Running(transfer) if transfer.started => {
            ctx.event(object, EventType::Normal, reasons::PULLING, format!("Pulling {reference}")).await;
        }
        PullState::Done(image) if before.is_some_and(|before| before.reason == reasons::IMAGES_PENDING) => {
            let took =
                ctx.pulls.took(fetch).map_or_else(String::new, |took| format!(" after {:.1} s", took.as_secs_f64()));
            let size = nodelet_drivers::room::size(image.size);
            let note = format!("Image {} is on the node{took}: {}, {size}", image.reference, image.digest);
            ctx.event(object, EventType::Normal, reasons::PULLED, note).await;
        }
        PullState::Failed { message, kind, failures, .. } => {
            let next = format!("{message}; try {}", failures + 1);
            if before.is_none_or(|before| !before.message.contains(&next)) {
                ctx.event(object, EventType::Warning, kind.reason(), next).await;
            }
        }
        PullState::Running(_) | PullState::Done(_) => {}
    }
}

/// `name:tag` or `name@digest` with this digest.
pub(super) fn by_digest(reference: &str, digest: &str) -> String {
    let name = normalize(reference).unwrap_or_else(|_| reference.to_owned());
    let name = name.split('@').next().unwrap_or_default();
    // A colon before the last slash is a port.
    let tag = name.rfind(':').filter(|colon| name.rfind('/').is_none_or(|slash| slash < *colon));
    format!("{}@{digest}", tag.map_or(name, |colon| &name[..colon]))
}

/// Why the image that is there cannot be used yet: it may be damaged.
fn doubt(ctx: &Arc<Context>, object: &Workload, fetch: &Fetch) -> Option<SeenImage> {
    if ctx.image_checks.trusts(&fetch.reference) {
        return None;
    }
    match ctx.image_checks.look(ctx, object, fetch) {
        Check::Trusted => None,
        Check::UnderWay => Some(SeenImage::Pulling {
            message: format!("{}: reading the image in full, since it may be damaged", fetch.reference),
        }),
        Check::Failed { message, failures, retry_in } => Some(SeenImage::Failed {
            reason: reasons::IMAGE_DAMAGED,
            message: format!("{message}; try {} in {} s", failures + 1, retry_in.as_secs() + 1),
        }),
    }
}

/// An Image object of the same reference says where it comes from and with which credentials; so both share one
/// transfer. One of the workload's own namespace goes first.
pub(super) async fn fetch(
    ctx: &Context,
    object: &Workload,
    fetch: &Fetch,
    declared: &[ImageObject],
) -> Result<Result<Fetch, String>, kube::Error> {
    let signers = match image_signers::signers(ctx, declared, &fetch.reference).await? {
        Ok(signers) => signers,
        Err(message) => return Ok(Err(message)),
    };
    let Ok(wanted) = normalize(&fetch.reference) else { return Ok(Ok(fetch.clone())) };
    let same = |image: &&ImageObject| normalize(&image.spec.reference).is_ok_and(|other| other == wanted);
    let mut matching: Vec<_> = declared.iter().filter(same).collect();
    matching.sort_by_key(|image| (image.namespace() != object.namespace(), image.namespace(), image.name_any()));
    // Credentials are not lent across namespaces.
    let lent = |image: &&ImageObject| image.namespace() == object.namespace() || image.spec.pull_secrets.is_empty();
    let Some(image) = matching.into_iter().find(lent) else {
        return Ok(Ok(Fetch { signers, ..fetch.clone() }));
    };
    let credentials = match credentials::for_image(&ctx.client, image).await? {
        Ok(credentials) => credentials,
        Err(message) => return Ok(Err(message)),
    };
    let source = match &image.spec.archive {
        Some(archive) => Source::Archive(archive.path.clone().into()),
        None => Source::Registry,
    };
    Ok(Ok(Fetch {
        reference: image.spec.reference.clone(),
        source,
        platform: image.spec.platform.clone(),
        credentials,
        priority: image.spec.priority,
        max_bytes_per_second: image.spec.max_bytes_per_second,
        signers,
    }))
}
