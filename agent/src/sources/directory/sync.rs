//! One pass: look, plan, apply, delete, remember.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use futures::future::{BoxFuture, join_all};
use serde_json::{Value, json};

use crate::client::{Apply, Client, Error, Kinds};
use crate::manifest::{self, Fault, Object, ObjectKey, chain, rank};
use crate::sources::inventory::{FIELD_MANAGER, Inventory, InventoryStore};
use crate::sources::metrics::Metrics;
use crate::sources::plan::{Kept, plan_sync};
use crate::sources::pod;
use crate::sources::scan::{FileContent, Scan, scan};

/// Objects of one rank are applied this many at a time.
const PARALLEL: usize = 16;

/// State of a source after a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The directory.
    pub directory: String,
    /// Objects in it.
    pub objects: usize,
    /// Why nothing can be told of the directory.
    pub unusable: Option<String>,
    /// What is wrong in the files: each with file, line, object and field.
    pub faults: Vec<String>,
    /// Objects kept although the directory does not show them.
    pub kept: Vec<String>,
    /// What failed and is tried again.
    pub pending: Vec<String>,
}

impl Report {
    /// Nothing is to be tried again.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Everything in the directory is in the API.
    pub fn is_ready(&self) -> bool {
        self.unusable.is_none() && self.faults.is_empty() && self.pending.is_empty() && self.kept.is_empty()
    }
}

pub(super) struct Syncer {
    directory: PathBuf,
    client: Client,
    metrics: Metrics,
    store: InventoryStore,
    kinds: Option<Kinds>,
    inventory: Option<Inventory>,
    /// What was applied, as a hash of the object.
    applied: HashMap<ObjectKey, u64>,
    /// What the API refused, as a hash of the object, so that it is not sent again before an edit.
    refused: HashMap<ObjectKey, (u64, Vec<Fault>)>,
    /// What was told in the log already.
    told: BTreeSet<String>,
}

impl Syncer {
    pub(super) fn new(directory: PathBuf, client: Client, metrics: Metrics) -> Self {
        let store = InventoryStore::of(&directory);
        Self {
            directory,
            client,
            metrics,
            store,
            kinds: None,
            inventory: None,
            applied: HashMap::new(),
            refused: HashMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// Brings the API to what the directory shows. With `everything`, also what did not change since last time.
    pub(super) async fn pass(&mut self, everything: bool) -> Report {
        if everything {
            self.applied.clear();
            self.refused.clear();
            self.kinds = None;
        }
        let directory = self.directory.display().to_string();
        let mut report = match self.try_pass().await {
            Ok(report) => report,
            Err(error) => Report { pending: vec![chain(&error)], ..Report::default() },
        };
        report.directory = directory;
        self.tell(&report);
        self.metrics.observe(&report);
        report
    }

    async fn try_pass(&mut self) -> Result<Report, Error> {
        let kinds = match self.kinds.take() {
            Some(kinds) => kinds,
            None => Kinds::load(&self.client).await?,
        };
        let inventory = match self.inventory.take() {
            Some(inventory) => inventory,
            None => self.store.load(&self.client, &kinds).await?,
        };
        let directory = self.directory.clone();
        let looked = tokio::task::spawn_blocking(move || scan(&directory)).await;
        let looked = looked.unwrap_or_else(|error| Scan::Unusable { reason: format!("looking failed: {error}") });
        let mut report = Report::default();
        if let Scan::Unusable { reason } = &looked {
            report.unusable = Some(reason.clone());
        }
        let (looked, conversion_faults) = settle(looked, &kinds);
        let plan = plan_sync(&inventory, &looked);
        tracing::debug!(
            directory = %self.directory.display(), apply = plan.apply.len(), delete = plan.delete.len(),
            keep = plan.keep.len(), faults = plan.faults.len(), "plan of a source"
        );
        report.objects = plan.apply.len();
        report.faults.extend(plan.faults.iter().chain(&conversion_faults).map(ToString::to_string));
        report.kept.extend(plan.keep.iter().map(|Kept { key, reason }| format!("{key} is kept: {reason}")));

        // Known as ours before it is there: a crash in between leaves nothing that is not known.
        let both = inventory.union(&plan.inventory);
        if both != inventory {
            self.store.save(&self.client, &kinds, &both).await?;
        }
        self.inventory = Some(both.clone());
        self.apply(&kinds, &plan.apply, &mut report).await;

        let mut deleted_all = true;
        for key in &plan.delete {
            if let Err(error) = self.delete(&kinds, key).await {
                report.pending.push(format!("deleting {key}: {}", chain(&error)));
                deleted_all = false;
            }
        }
        if deleted_all && plan.inventory != both {
            self.store.save(&self.client, &kinds, &plan.inventory).await?;
            self.inventory = Some(plan.inventory);
        }
        self.kinds = Some(kinds);
        Ok(report)
    }

    /// Applies what changed, rank by rank.
    async fn apply(&mut self, kinds: &Kinds, objects: &[Object], report: &mut Report) {
        let mut ranks: BTreeMap<u8, Vec<(&Object, u64)>> = BTreeMap::new();
        for object in objects {
            let hash = hash(&object.value);
            if self.applied.get(&object.key) == Some(&hash) {
                continue;
            }
            if let Some((refused, faults)) = self.refused.get(&object.key)
                && *refused == hash
            {
                report.faults.extend(faults.iter().map(|fault| self.placed(object, fault).to_string()));
                continue;
            }
            ranks.entry(rank(&object.key.kind)).or_default().push((object, hash));
        }
        for objects in ranks.into_values() {
            let mut answers = Vec::with_capacity(objects.len());
            for some in objects.chunks(PARALLEL) {
                let mut requests: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::with_capacity(some.len());
                for (object, _) in some {
                    requests.push(Box::pin(apply_one(&self.client, kinds, object)));
                }
                answers.extend(join_all(requests).await);
            }
            for ((object, hash), answer) in objects.into_iter().zip(answers) {
                self.applied.remove(&object.key);
                self.refused.remove(&object.key);
                match answer {
                    Ok(()) => {
                        tracing::info!(object = %object.key, file = object.file, "applied");
                        self.applied.insert(object.key.clone(), hash);
                    }
                    Err(error) if error.is_permanent() => {
                        let faults = object.refusal(&error);
                        report.faults.extend(faults.iter().map(ToString::to_string));
                        self.refused.insert(object.key.clone(), (hash, faults));
                    }
                    Err(error) => {
                        report.pending.extend(object.refusal(&error).iter().map(ToString::to_string));
                    }
                }
            }
        }
    }

    /// The fault of an unchanged object in a file where lines may have moved.
    fn placed(&self, object: &Object, fault: &Fault) -> Fault {
        object.fault(fault.field.clone(), fault.message.clone())
    }

    async fn delete(&mut self, kinds: &Kinds, key: &ObjectKey) -> Result<(), Error> {
        let Ok(kind) = kinds.of(&key.api_version, &key.kind) else {
            tracing::warn!(object = %key, "its kind is gone, so is it");
            return Ok(());
        };
        let was_there = self.client.delete(kind, namespace(kind, key), &key.name).await?;
        if was_there {
            tracing::info!(object = %key, directory = %self.directory.display(), "deleted: it left the directory");
        }
        self.applied.remove(key);
        self.refused.remove(key);
        Ok(())
    }

    /// Logs what is new in the report, and what is over.
    fn tell(&mut self, report: &Report) {
        let directory = self.directory.display().to_string();
        let mut now = BTreeSet::new();
        if let Some(reason) = &report.unusable {
            now.insert(format!("the directory is unusable, nothing is deleted: {reason}"));
        }
        now.extend(report.faults.iter().chain(&report.kept).chain(&report.pending).cloned());
        for line in now.difference(&self.told) {
            tracing::warn!(directory, "{line}");
        }
        if now.is_empty() && !self.told.is_empty() {
            tracing::info!(directory, "everything in the directory is in the API");
        }
        self.told = now;
    }
}

/// What needs the server's kinds: Pods become Workloads where the server has no Pods, objects get their namespaces.
fn settle(scan: Scan, kinds: &Kinds) -> (Scan, Vec<Fault>) {
    let mut faults = Vec::new();
    let Scan::Files(mut files) = scan else { return (scan, faults) };
    for content in files.values_mut() {
        let FileContent::Manifest(manifest) = content else { continue };
        let has_pods = kinds.of("v1", "Pod").is_ok();
        for mut object in std::mem::take(&mut manifest.objects) {
            if pod::is_pod(&object) && !has_pods {
                match pod::workload(&object) {
                    Ok(workload) => object = workload,
                    Err(found) => {
                        faults.extend(found);
                        // What the Pod was before its edit stays: its new form is unknown, its absence was not seen.
                        manifest.incomplete = true;
                        continue;
                    }
                }
            }
            if let Ok(kind) = kinds.of(&object.key.api_version, &object.key.kind) {
                let namespace = namespace(kind, &object.key).map(str::to_owned);
                object.value = manifest::with_namespace(object.value, namespace.as_deref());
                object.key.namespace = namespace;
            }
            manifest.objects.push(object);
        }
    }
    (Scan::Files(files), faults)
}

fn namespace<'a>(kind: &crate::client::Kind, key: &'a ObjectKey) -> Option<&'a str> {
    kind.namespaced.then(|| key.namespace.as_deref().unwrap_or("default"))
}

async fn apply_one(client: &Client, kinds: &Kinds, object: &Object) -> Result<(), Error> {
    let kind = kinds.of(&object.key.api_version, &object.key.kind)?;
    let how = Apply { manager: FIELD_MANAGER, force: true, dry_run: false };
    let mut value = object.value.clone();
    annotate(&mut value, &object.file);
    client.apply(kind, namespace(kind, &object.key), &object.key.name, &value, how).await?;
    Ok(())
}

/// Says in the object where it came from.
fn annotate(value: &mut Value, file: &str) {
    let annotations = &mut value["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(nodelet_crds::labels::SOURCE_FILE.to_owned(), json!(file));
    }
}

fn hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}
