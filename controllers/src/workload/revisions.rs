//! Revisions of a Workload that were good, kept so that they can be run again: spec, image digests and the content
//! of ConfigMaps and Secrets together.
//!
//! One file for each Workload, `<dataDir>/revisions/<uid>.json`, readable by root only, written whole or not at all.
//! A revision is recorded before the published ports move to it, so that a crash at any point finds either the old
//! revision serving or the new one recorded. Losing a file loses the way back, and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use nodelet_crds::common::Time;
use nodelet_crds::labels;
use nodelet_crds::workload::status::RevisionStatus;
use nodelet_crds::workload::{Workload, WorkloadSpec};
use nodelet_drivers::failpoint::passed;
use nodelet_drivers::ids::SandboxId;
use serde::{Deserialize, Serialize};

use super::dereference::References;
use super::follow::Followed;
use super::model::{Desired, Observed, VolumeWish, image_of_volume};
use super::update::Progress;

/// Revisions kept besides the present one, unless the spec says otherwise.
const HISTORY_LIMIT: u32 = 10;

/// What is known of one Workload's past.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Those that were good, the youngest last.
    pub revisions: Vec<Revision>,
    /// A revision that failed, and is not tried again.
    pub failed: Option<Failed>,
}

/// A revision that was good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Counted from 1.
    pub number: u32,
    /// [`Desired::revision`].
    pub id: String,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// The generation of the object that it was made from.
    pub generation: i64,
    /// What was declared.
    pub spec: WorkloadSpec,
    /// The annotation that asks for a restart; it is part of the identity.
    #[serde(default)]
    pub restarted_at: Option<String>,
    /// The ConfigMaps it named.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// The Secrets it named.
    pub secrets: BTreeMap<String, Option<Secret>>,
    /// What its images were followed to, which is part of the identity.
    #[serde(default)]
    pub followed: Followed,
    /// Digests of the images, by container or [`image_of_volume`].
    pub digests: BTreeMap<String, String>,
    /// When it was found good.
    pub at: Timestamp,
}

/// A revision that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// [`Desired::revision`].
    pub id: String,
    /// The generation of the object that it was made from.
    pub generation: i64,
    /// The revision that runs in its place.
    pub to: u32,
    /// Why it failed.
    pub message: String,
}

/// Another revision than the declared one is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Hold {
    /// The revision that runs.
    pub revision: Revision,
    /// For the condition.
    pub message: String,
}

impl History {
    /// The youngest revision that was good.
    pub fn last(&self) -> Option<&Revision> {
        self.revisions.last()
    }

    /// The revision of this identity.
    pub fn find(&self, id: &str) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.id == id)
    }

    fn number(&self, number: u32) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.number == number)
    }

    /// Whether another revision runs in place of the declared one, whose identity is `declared`: somebody asked for
    /// it, or the declared one failed.
    pub fn hold(&self, object: &Workload, declared: &str) -> Option<Hold> {
        if let Some((number, generation)) = asked(object)
            && Some(generation) == object.metadata.generation
            && let Some(revision) = self.number(number)
        {
            let message = format!("rolled back to revision {number} as asked, until the spec changes");
            return (revision.id != declared).then(|| Hold { revision: revision.clone(), message });
        }
        let failed = self.failed.as_ref().filter(|failed| failed.id == declared)?;
        let revision = self.number(failed.to).filter(|revision| revision.id != declared)?;
        let message =
            format!("generation {} failed, revision {} runs: {}", failed.generation, failed.to, failed.message);
        Some(Hold { revision: revision.clone(), message })
    }

    /// Where a failed revision goes back to.
    pub fn target(&self, failed: &str) -> Option<&Revision> {
        self.revisions.iter().rev().find(|revision| revision.id != failed)
    }

    /// The revision is good: it becomes the youngest. Returns whether it is another one than before.
    pub fn record(&mut self, mut revision: Revision, limit: Option<u32>) -> bool {
        let last = self.last().map(|last| (last.number, last.id == revision.id));
        self.failed = None;
        let is_new = match last {
            Some((number, true)) => {
                revision.number = number;
                self.revisions.pop();
                false
            }
            Some((number, false)) => {
                revision.number = number.saturating_add(1);
                true
            }
            None => {
                revision.number = 1;
                true
            }
        };
        self.revisions.retain(|other| other.id != revision.id);
        self.revisions.push(revision);
        let keep = usize::try_from(limit.unwrap_or(HISTORY_LIMIT)).unwrap_or(usize::MAX).saturating_add(1);
        let surplus = self.revisions.len().saturating_sub(keep);
        self.revisions.drain(..surplus);
        is_new
    }

    /// For the status.
    pub fn summary(&self) -> Vec<RevisionStatus> {
        let one = |revision: &Revision| RevisionStatus {
            number: revision.number,
            generation: revision.generation,
            images: revision.spec.containers.iter().map(|container| container.image.clone()).collect(),
            recorded_at: Some(Time(revision.at)),
        };
        self.revisions.iter().map(one).collect()
    }
}

/// `<revision>/<generation>` of the annotation.
fn asked(object: &Workload) -> Option<(u32, i64)> {
    let (number, generation) = object.annotations().get(labels::ROLLBACK_TO)?.split_once('/')?;
    Some((number.parse().ok()?, generation.parse().ok()?))
}

impl Revision {
    /// The revision that runs now, as it would be recorded.
    pub fn of(
        object: &Workload,
        references: &References,
        desired: &Desired,
        observed: &Observed,
        now: Timestamp,
    ) -> Self {
        let ours = desired.sandbox.spec.id.as_str();
        let containers = observed.containers.iter().filter(|c| c.sandbox == ours);
        let digests = containers.flat_map(|container| {
            let all = &container.container.labels;
            let own = all.get(labels::IMAGE_DIGEST).map(|digest| (container.name.clone(), digest.clone()));
            let of_volume = |(label, digest): (&String, &String)| {
                Some((image_of_volume(labels::volume_of_image(label)?), digest.clone()))
            };
            own.into_iter().chain(all.iter().filter_map(of_volume))
        });
        Self {
            number: 0,
            id: desired.revision.clone(),
            sandbox: desired.sandbox.spec.id.clone(),
            generation: desired.generation,
            spec: WorkloadSpec { stopped: false, ..object.spec.clone() },
            restarted_at: object.annotations().get(labels::RESTARTED_AT).cloned(),
            config_maps: content(&references.config_maps),
            secrets: content(&references.secrets),
            followed: references.followed.clone(),
            digests: digests.collect(),
            at: Timestamp::from_second(now.as_second()).unwrap_or(now),
        }
    }

    /// Whether `other` says the same about this identity, time and number aside.
    pub fn is_same(&self, other: &Revision) -> bool {
        let mut other = other.clone();
        (other.number, other.at, other.generation) = (self.number, self.at, self.generation);
        *self == other
    }

    /// The object as this revision declared it. Whether it is stopped or deleted is for the object itself to say.
    pub fn object(&self, object: &Workload) -> Workload {
        let mut effective = object.clone();
        effective.spec = WorkloadSpec { stopped: object.spec.stopped, ..self.spec.clone() };
        let annotations = effective.annotations_mut();
        match &self.restarted_at {
            Some(at) => annotations.insert(labels::RESTARTED_AT.to_owned(), at.clone()),
            None => annotations.remove(labels::RESTARTED_AT),
        };
        effective
    }

    /// The configuration as it was.
    pub fn restore(&self, references: &mut References) {
        references.config_maps.clone_from(&self.config_maps);
        references.secrets.clone_from(&self.secrets);
        references.followed.clone_from(&self.followed);
    }

    /// The images as they were.
    pub fn pin(&self, desired: &mut Desired) {
        for wish in desired.init.iter_mut().chain(&mut desired.containers) {
            wish.image.digest = self.digests.get(&wish.name).cloned();
        }
        for (name, volume) in &mut desired.sandbox.volumes {
            if let VolumeWish::Image(image) = volume {
                image.digest = self.digests.get(&image_of_volume(name)).cloned();
            }
        }
    }
}

/// The objects without their metadata.
fn content<K: kube::Resource + Clone>(objects: &BTreeMap<String, Option<K>>) -> BTreeMap<String, Option<K>> {
    let bare = |object: &K| {
        let mut object = object.clone();
        let name = object.meta_mut().name.take();
        *object.meta_mut() = Default::default();
        object.meta_mut().name = name;
        object
    };
    objects.iter().map(|(name, object)| (name.clone(), object.as_ref().map(bare))).collect()
}

/// The histories of all Workloads of the node, and how far their updates are.
pub struct Histories {
    directory: PathBuf,
    known: Mutex<HashMap<String, Arc<History>>>,
    /// Lost with the agent: an update then has its whole time again.
    under_way: Mutex<HashMap<String, UnderWay>>,
}

struct UnderWay {
    revision: String,
    since: Instant,
    healthy_since: Option<Instant>,
    errors: u32,
    error: String,
}

impl Histories {
    /// Below `data_dir`. Nothing is read yet.
    pub fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("revisions"), known: Mutex::default(), under_way: Mutex::default() }
    }

    /// The history of the Workload with this uid. What cannot be read is as if it were not there, and is said.
    pub async fn get(&self, uid: &str) -> Arc<History> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned();
        if let Some(known) = known {
            return known;
        }
        let file = self.file(uid);
        let read = crate::blocking(move || {
            let bytes = match std::fs::read(&file) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return History::default(),
                Err(error) => {
                    tracing::warn!("reading {}: {error}", file.display());
                    return History::default();
                }
            };
            serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{} is damaged, so there is nothing to roll back to: {error}", file.display());
                History::default()
            })
        });
        let history = Arc::new(read.await);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), history.clone());
        history
    }

    /// Keeps `history` from now on.
    pub async fn put(&self, uid: &str, history: History) -> std::io::Result<Arc<History>> {
        let history = Arc::new(history);
        let (file, bytes) = (self.file(uid), serde_json::to_vec(&*history)?);
        crate::blocking(move || replace(&file, &bytes)).await?;
        passed("recording revisions");
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), history.clone());
        Ok(history)
    }

    /// The Workload is gone.
    pub async fn remove(&self, uid: &str) -> std::io::Result<()> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.under_way().remove(uid);
        let file = self.file(uid);
        let removed = crate::blocking(move || std::fs::remove_file(file)).await;
        passed("removing the record of revisions");
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The uids that there are records of.
    pub async fn recorded(&self) -> Vec<String> {
        let directory = self.directory.clone();
        crate::blocking(move || {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
            files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
        })
        .await
    }

    /// Notes that the revision is wanted, and whether it is healthy now. Returns how far it is and how long it has
    /// been healthy.
    pub fn observe(&self, uid: &str, revision: &str, healthy: bool) -> (Progress, Option<Duration>) {
        let now = Instant::now();
        let mut all = self.under_way();
        let fresh = || UnderWay {
            revision: revision.to_owned(),
            since: now,
            healthy_since: None,
            errors: 0,
            error: String::new(),
        };
        let update = all.entry(uid.to_owned()).or_insert_with(fresh);
        if update.revision != revision {
            *update = fresh();
        }
        update.healthy_since = healthy.then(|| update.healthy_since.unwrap_or(now));
        let progress = Progress {
            running: now.saturating_duration_since(update.since),
            errors: update.errors,
            error: update.error.clone(),
        };
        (progress, update.healthy_since.map(|since| now.saturating_duration_since(since)))
    }

    /// A step of the revision's plan failed, or (with `None`) none did.
    pub fn outcome(&self, uid: &str, revision: &str, error: Option<String>) {
        let mut all = self.under_way();
        let Some(update) = all.get_mut(uid).filter(|update| update.revision == revision) else { return };
        match error {
            Some(error) => {
                update.errors = update.errors.saturating_add(1);
                update.error = error;
            }
            None => update.errors = 0,
        }
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<String, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, uid: &str) -> PathBuf {
        // A uid is the API's own and has no separator; one that had would not leave the directory.
        self.directory.join(uid.replace(['/', '.'], "_")).with_extension("json")
    }
}

/// Whole and on disk, or not at all; for root only.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let new = file.with_extension("new");
    let mut handle = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    handle.write_all(bytes)?;
    handle.sync_all()?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests;
