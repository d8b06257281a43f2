//! Reads what the node has of one workload. Changes nothing, except that it lets missing images be fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use nodelet_crds::image::Image as ImageObject;
use nodelet_crds::workload::Workload;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::images::{self, Fetch, Source, normalize};
use nodelet_drivers::runtime::{Container, TaskState};
use nodelet_drivers::{network, sandbox};

use super::files;
use super::model::{
    ContainerWish, Desired, Health, Intent, Observed, PullRule, SeenContainer, SeenImage, SeenSandbox, VolumeWish,
};
use crate::context::{Context, find};
use crate::credentials;
use crate::image_checks::Check;
use crate::pulls::PullState;

/// Something could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("reading the sandbox")]
    Sandbox(#[from] sandbox::Error),
    #[error("reading the network")]
    Network(#[from] network::Error),
    #[error("reading the images")]
    Images(#[from] images::Error),
    #[error("reading from the API")]
    Api(#[from] kube::Error),
}

/// A transfer that ended this recently was for this start.
const FRESH: Duration = Duration::from_secs(20);

/// What is there; `None` until the containers of the node have been read once.
pub async fn observe(ctx: &Arc<Context>, object: &Workload, desired: &Desired) -> Result<Option<Observed>, Error> {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let Some(containers) = ctx.containers.of_workload(uid) else { return Ok(None) };
    let containers: Vec<SeenContainer> = containers.into_iter().map(|c| seen(ctx, object, desired, c)).collect();
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
    let sandbox = match ctx.drivers.sandboxes.get(id).await? {
        None => None,
        Some(sandbox) => Some(SeenSandbox {
            complete: sandbox.complete,
            netns: sandbox.netns,
            attachments: ctx.drivers.networks.attachments_of(id).await?,
            ports: ctx.drivers.networks.ports_of(id).await?,
        }),
    };
    let images = match desired.intent {
        Intent::Run => images(ctx, object, desired, &containers).await?,
        Intent::Stop | Intent::Delete => BTreeMap::new(),
    };
    Ok(Some(Observed {
        outdated_files: if sandbox.is_some() { outdated_files(ctx, desired) } else { BTreeSet::new() },
        sandbox,
        stale_sandboxes,
        containers,
        images,
        remembered: super::status::remembered(object),
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
    let wish = desired.containers.iter().find(|wish| wish.name == name);
    let health = ctx
        .probers
        .health(&container.id)
        .or_else(|| super::status::known_health(object, &container.id))
        .unwrap_or_else(|| wish.map_or_else(Health::default, |wish| super::probes::initial(&wish.probes)));
    SeenContainer {
        name,
        init: label(labels::TYPE) == labels::TYPE_INIT,
        sandbox: label(labels::SANDBOX),
        attempt: number(labels::ATTEMPT),
        restarts: number(labels::RESTARTS),
        failures: number(labels::FAILURES),
        hash: label(labels::SPEC_HASH),
        stopping: ctx.stops.since(&container.id),
        health,
        container,
    }
}

fn outdated_files(ctx: &Context, desired: &Desired) -> BTreeSet<String> {
    let id = &desired.sandbox.spec.id;
    let stale = |name: &str, volume: &VolumeWish| match volume {
        VolumeWish::Ephemeral(kind) => !ctx.written.is_current(id, name, &files::fingerprint(kind)),
        VolumeWish::Path(_) | VolumeWish::HostPath(..) => false,
    };
    desired.sandbox.volumes.iter().filter(|(name, v)| stale(name, v)).map(|(name, _)| name.clone()).collect()
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
    for wish in desired.init.iter().chain(&desired.containers) {
        let settled = containers.iter().any(|c| {
            c.name == wish.name && c.sandbox == id && c.hash == wish.hash && c.is_live()
                || (c.name == wish.name
                    && c.sandbox == id
                    && c.init
                    && matches!(c.container.state, TaskState::Exited(_)))
        });
        if !settled {
            images.insert(wish.name.clone(), image(ctx, object, wish).await?);
        }
    }
    Ok(images)
}

async fn image(ctx: &Arc<Context>, object: &Workload, wish: &ContainerWish) -> Result<SeenImage, Error> {
    let reference = &wish.image.fetch.reference;
    let present = ctx.drivers.images.get(reference).await?;
    let present_now =
        |image: &images::Image| SeenImage::Present { name: image.reference.clone(), digest: image.digest.clone() };
    if present.is_some()
        && let Some(doubt) = doubt(ctx, object, &wish.image.fetch).await?
    {
        return Ok(doubt);
    }
    match (wish.image.policy, &present) {
        (PullRule::IfAbsent | PullRule::Never, Some(image)) => return Ok(present_now(image)),
        (PullRule::Never, None) => {
            return Ok(SeenImage::Failed {
                reason: reasons::IMAGE_NEVER_PULL,
                message: format!("{reference} is not on the node and imagePullPolicy is Never"),
            });
        }
        (PullRule::IfAbsent | PullRule::Always | PullRule::Newer, _) => {}
    }
    let fetch = match declared(ctx, object, &wish.image.fetch).await? {
        Ok(fetch) => fetch,
        Err(message) => return Ok(SeenImage::Failed { reason: reasons::CONFIG_MISSING, message }),
    };
    let fresh = if wish.image.policy == PullRule::IfAbsent { Duration::ZERO } else { FRESH };
    Ok(match ctx.pulls.request(&fetch, fresh) {
        PullState::Done(image) => present_now(&image),
        PullState::Running(progress) => {
            SeenImage::Pulling { message: format!("{reference}: {:?}", progress.phase).to_lowercase() }
        }
        PullState::Failed { .. } if wish.image.policy == PullRule::Newer && present.is_some() => {
            // Just checked.
            present.as_ref().map_or_else(|| SeenImage::Pulling { message: String::new() }, present_now)
        }
        PullState::Failed { message, kind, failures, retry_in } => SeenImage::Failed {
            reason: kind.reason(),
            message: format!("{message}; try {} in {} s", failures + 1, retry_in.as_secs() + 1),
        },
    })
}

/// Why the image that is there cannot be used yet: it may be damaged.
async fn doubt(ctx: &Arc<Context>, object: &Workload, fetch: &Fetch) -> Result<Option<SeenImage>, Error> {
    if ctx.image_checks.trusts(&fetch.reference) {
        return Ok(None);
    }
    // A repair may have to fetch parts of it again. Without credentials it does with what is on the node.
    let fetch = declared(ctx, object, fetch).await?.unwrap_or_else(|_| fetch.clone());
    Ok(match ctx.image_checks.look(ctx, object, &fetch) {
        Check::Trusted => None,
        Check::UnderWay => Some(SeenImage::Pulling {
            message: format!("{}: reading the image in full, since it may be damaged", fetch.reference),
        }),
        Check::Failed { message, failures, retry_in } => Some(SeenImage::Failed {
            reason: reasons::IMAGE_DAMAGED,
            message: format!("{message}; try {} in {} s", failures + 1, retry_in.as_secs() + 1),
        }),
    })
}

/// An Image object of the same reference says where it comes from and with which credentials; so both share one
/// transfer. One of the workload's own namespace goes first.
async fn declared(ctx: &Context, object: &Workload, fetch: &Fetch) -> Result<Result<Fetch, String>, kube::Error> {
    let Ok(wanted) = normalize(&fetch.reference) else { return Ok(Ok(fetch.clone())) };
    let same = |image: &ImageObject| normalize(&image.spec.reference).is_ok_and(|other| other == wanted);
    let mut matching: Vec<_> = ctx.stores.images.state().into_iter().filter(|image| same(image)).collect();
    matching.sort_by_key(|image| (image.namespace() != object.namespace(), image.namespace(), image.name_any()));
    // Credentials are not lent across namespaces.
    let Some(image) = matching
        .into_iter()
        .find(|image| image.namespace() == object.namespace() || image.spec.pull_secrets.is_empty())
    else {
        return Ok(Ok(fetch.clone()));
    };
    // The object may have been edited since the watch told of it.
    let image =
        match find::<ImageObject>(&ctx.client, &image.namespace().unwrap_or_default(), &image.name_any()).await? {
            Some(image) => image,
            None => return Ok(Ok(fetch.clone())),
        };
    let credentials = match credentials::for_image(&ctx.client, &image).await? {
        Ok(credentials) => credentials,
        Err(message) => return Ok(Err(message)),
    };
    let source = match &image.spec.archive {
        Some(archive) => Source::Archive(archive.path.clone().into()),
        None => Source::Registry,
    };
    Ok(Ok(Fetch { source, platform: image.spec.platform.clone(), credentials, ..Fetch::new(&image.spec.reference) }))
}
