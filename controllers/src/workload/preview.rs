//! `nodelet plan`: what would be done for a Workload as it is, or as a file has it, without doing any of it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use nodelet_crds::network::Network;
use nodelet_crds::volume::Volume;
use nodelet_crds::workload::Workload;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dereference::References;
use super::forecast::{Forecast, forecast};
use super::model::{Desired, Intent, Observed, SeenImage, Wait};
use super::{dereference, desired, observe};
use crate::context::{Context, chain};
use crate::image_signers;

/// A registry that does not tell the size of an image within this time keeps no plan waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked: plans for `workloads`, were `others` in the API as well.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Question {
    /// Workloads, complete with their metadata.
    pub workloads: Vec<Workload>,
    /// ConfigMaps, Secrets, Volumes and Networks as they would be.
    pub others: Vec<Value>,
}

/// What would be done for one Workload.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why it would not be carried out: only an edit helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Another revision runs in place of the declared one, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// What it waits for first. The steps come after that.
    pub waits: Vec<Wait>,
    /// Images to be fetched.
    pub pulls: Vec<Pull>,
    /// The steps.
    #[serde(flatten)]
    pub forecast: Option<Forecast>,
}

/// An image to be fetched.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pull {
    /// The reference.
    pub image: String,
    /// Bytes that are not on the node yet; `None` if the registry did not say in time.
    pub bytes: Option<u64>,
}

/// It cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reconcilers do not run, or have not read the node yet.
    #[error("the agent has not read the node yet; is containerd running?")]
    NotRead,
    /// The API.
    #[error("talking to the API")]
    Api(#[from] kube::Error),
    /// The node.
    #[error("looking at the node")]
    Observe(#[from] observe::Error),
    /// A name derived from the workload is not usable.
    #[error("deriving a name")]
    Name(#[from] nodelet_drivers::ids::InvalidId),
    /// One of the other objects is none.
    #[error("{kind} {name:?}")]
    Object {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Answers questions once the reconcilers run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Previews {
    context: Arc<OnceLock<Weak<Context>>>,
}

impl Previews {
    /// From now on questions are answered.
    pub(crate) fn answer_with(&self, ctx: &Arc<Context>) {
        let _ = self.context.set(Arc::downgrade(ctx));
    }

    /// What would be done, in the order asked.
    ///
    /// # Errors
    /// The node or the API cannot be read; a Workload that is wrong in itself is told in its preview.
    pub async fn plan(&self, question: Question) -> Result<Vec<Preview>, Error> {
        let ctx = self.context.get().and_then(Weak::upgrade).ok_or(Error::NotRead)?;
        let mut previews = Vec::new();
        for workload in &question.workloads {
            previews.push(preview(&ctx, workload, &question.others).await?);
        }
        Ok(previews)
    }
}

async fn preview(ctx: &Arc<Context>, object: &Workload, others: &[Value]) -> Result<Preview, Error> {
    let mut preview =
        Preview { namespace: object.namespace().unwrap_or_default(), name: object.name_any(), ..Preview::default() };
    if object.spec.node_name.as_deref().is_some_and(|node| node != ctx.settings.node_name) {
        preview.refused = Some(format!("runs on node {}", object.spec.node_name.as_deref().unwrap_or_default()));
        return Ok(preview);
    }
    let mut references = dereference::dereference(ctx, object).await?;
    references.fit = ctx.places.look(ctx, object);
    lay_over(&mut references, others, &preview.namespace)?;
    let place = desired::Place::of(ctx);
    let is_going = object.metadata.deletion_timestamp.is_some() || object.spec.stopped;
    let desired = match desired::validate(object, &references, &place) {
        Ok(desired) => desired,
        Err(_) if is_going => desired::for_removal(object, &place)?,
        Err(invalid) => {
            preview.refused = Some(invalid.message);
            return Ok(preview);
        }
    };
    let history = ctx.histories.get(object.metadata.uid.as_deref().unwrap_or_default()).await;
    let hold = if desired.intent == Intent::Run { history.hold(object, &desired.revision) } else { None };
    let mut desired = match &hold {
        None => desired,
        Some(hold) => match super::held(ctx, object, &hold.revision, &place).await? {
            Ok(desired) => desired,
            Err(invalid) => {
                preview.refused = Some(invalid.message);
                return Ok(preview);
            }
        },
    };
    preview.held = hold.map(|hold| hold.message);
    let mut observed = observe::look(ctx, object, &desired).await?.ok_or(Error::NotRead)?;
    observed.last_good = history.last().map(|revision| revision.sandbox.clone());
    if desired.intent == Intent::Run {
        preview.pulls = images(ctx, object, &desired, &mut observed).await?;
    }
    preview.waits = std::mem::take(&mut desired.waits);
    preview.forecast = Some(forecast(&desired, &observed, ctx.now()));
    Ok(preview)
}

/// Fills in the images as if those that are missing had been fetched, and says which these are.
async fn images(
    ctx: &Arc<Context>,
    object: &Workload,
    desired: &Desired,
    observed: &mut Observed,
) -> Result<Vec<Pull>, Error> {
    let declared = image_signers::declared(ctx).await?;
    let mut pulls: BTreeMap<String, Pull> = BTreeMap::new();
    for (key, wish) in desired.images() {
        let mut reference = wish.fetch.reference.clone();
        let mut found = ctx.drivers.images.get(&reference).await.map_err(observe::Error::from)?;
        if let Some(digest) = &wish.digest
            && found.as_ref().is_none_or(|image| image.digest != *digest)
        {
            reference = observe::by_digest(&reference, digest);
            found = ctx.drivers.images.get(&reference).await.map_err(observe::Error::from)?;
        }
        let seen = match found {
            Some(image) => SeenImage::Present { name: image.reference, digest: image.digest },
            None => {
                let mut fetch = wish.fetch.clone();
                if let Ok(found) = observe::fetch(ctx, object, &fetch, &declared).await? {
                    fetch = found;
                }
                fetch.reference.clone_from(&reference);
                let estimate = tokio::time::timeout(PATIENCE, ctx.drivers.images.estimate(&fetch)).await;
                let bytes = match estimate {
                    Ok(Ok(estimate)) => Some(estimate.bytes_missing),
                    Ok(Err(error)) => {
                        tracing::debug!(%reference, "estimating for a plan: {}", chain(&error));
                        None
                    }
                    Err(_) => None,
                };
                pulls.entry(reference.clone()).or_insert_with(|| Pull { image: reference.clone(), bytes });
                SeenImage::Present { name: reference, digest: String::new() }
            }
        };
        observed.images.insert(key, seen);
    }
    Ok(pulls.into_values().collect())
}

/// Puts objects in the place of those that the API has.
fn lay_over(references: &mut References, others: &[Value], namespace: &str) -> Result<(), Error> {
    for other in others.iter().filter(|other| other["metadata"]["namespace"] == namespace) {
        let kind = other["kind"].as_str().unwrap_or_default();
        let name = other["metadata"]["name"].as_str().unwrap_or_default();
        let failed = |source| Error::Object { kind: kind.to_owned(), name: name.to_owned(), source };
        match kind {
            "ConfigMap" => {
                if let Some(place) = references.config_maps.get_mut(name) {
                    *place = Some(serde_json::from_value::<ConfigMap>(other.clone()).map_err(failed)?);
                }
            }
            "Secret" => {
                if let Some(place) = references.secrets.get_mut(name) {
                    *place = Some(serde_json::from_value::<Secret>(other.clone()).map_err(failed)?);
                }
            }
            "Volume" => {
                if let Some(place) = references.volumes.get_mut(name) {
                    *place = Some(serde_json::from_value::<Volume>(other.clone()).map_err(failed)?);
                }
            }
            "Network" => {
                if let Some(place) = references.networks.get_mut(name) {
                    *place = Some(serde_json::from_value::<Network>(other.clone()).map_err(failed)?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}
