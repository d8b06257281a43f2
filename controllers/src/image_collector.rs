//! Removes images that nobody needs, when the disk fills up or somebody asks.
//!
//! What is kept is decided from what is declared: everything that an Image or a Workload of this node names, what a
//! container was made from, and what is being fetched. What others imported into the runtime is not ours to remove.
//! The rest goes in the order in which it fell out of use, one image after the other, until the disk is emptier than
//! `images.gc.lowPercent`. Nothing is removed before the objects and the containers have been read in full.

mod keeps;
mod plan;
mod uses;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::events::EventType;
use nodelet_crds::common::condition_type;
use nodelet_crds::reasons;
use nodelet_drivers::images;
use nodelet_drivers::room::size;
use serde::Serialize;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::context::{Context, chain};
use crate::node_state;
pub use plan::{Candidate, Kept};
use uses::Uses;

/// The disk is looked at this often; pulls that find no room ask in between.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// When images are collected: `images.gc` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Collection starts when the disk is fuller than this, in percent.
    pub high_percent: u64,
    /// It stops when the disk is not fuller than this.
    pub low_percent: u64,
    /// What fell out of use more recently than this is kept, unless somebody asks for its removal.
    pub min_age: Duration,
}

/// What was removed and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// Nothing was removed in truth.
    pub dry_run: bool,
    /// What was removed, or would be.
    pub removed: Vec<Candidate>,
    /// What is needed, and by whom; when nothing is removed in truth, also what is not ours to remove.
    pub kept: Vec<Kept>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
    /// By how much the space left on the disk grew, in bytes. Others write to it, too.
    pub freed_bytes: u64,
}

/// Why there was no collection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Objects or containers have not been read yet.
    #[error("the node has not been read in full yet; try again in a moment")]
    NotRead,
    /// The runtime does not answer.
    #[error("looking at the images of the node")]
    Images(#[source] images::Error),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

enum Request {
    Prune { dry_run: bool, answer: oneshot::Sender<Result<Collection, Error>> },
    Room { bytes: u64, answer: oneshot::Sender<Result<Collection, Error>> },
}

/// The way to the collector. Cheap to clone; all clones reach the same.
#[derive(Debug, Clone)]
pub struct Collector {
    marks: Marks,
    asked: mpsc::Sender<Request>,
    requests: Arc<Mutex<mpsc::Receiver<Request>>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prune { dry_run, .. } => write!(f, "Prune({dry_run})"),
            Self::Room { bytes, .. } => write!(f, "Room({bytes})"),
        }
    }
}

impl Collector {
    /// A collector that works once [`crate::run`] does.
    pub fn new(marks: Marks) -> Self {
        let (asked, requests) = mpsc::channel(16);
        Self { marks, asked, requests: Arc::new(Mutex::new(requests)) }
    }

    /// One that collects nothing and says so.
    #[cfg(test)]
    pub(crate) fn stopped(marks: Marks) -> Self {
        let collector = Self::new(marks);
        if let Ok(mut requests) = collector.requests.try_lock() {
            requests.close();
        }
        collector
    }

    /// Removes every image that nobody needs, however full the disk and however recently used.
    ///
    /// # Errors
    /// [`Error`]; nothing was removed then.
    pub async fn prune(&self, dry_run: bool) -> Result<Collection, Error> {
        self.ask(|answer| Request::Prune { dry_run, answer }).await
    }

    /// Removes as many unneeded images as it takes to have `bytes` available.
    ///
    /// # Errors
    /// [`Error`]; nothing was removed then.
    pub async fn make_room(&self, bytes: u64) -> Result<Collection, Error> {
        self.ask(|answer| Request::Room { bytes, answer }).await
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<Collection, Error>>) -> Request,
    ) -> Result<Collection, Error> {
        let (answer, answered) = oneshot::channel();
        self.asked.send(request(answer)).await.map_err(|_| Error::Stopping)?;
        answered.await.unwrap_or(Err(Error::Stopping))
    }
}

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// All that nobody needs.
    Everything,
    /// Until the disk is not fuller than this, in percent.
    Percent(u64),
    /// Until so many bytes are available.
    Bytes(u64),
}

impl Goal {
    fn reached(self, disk: images::Disk) -> bool {
        match self {
            Self::Everything => false,
            Self::Percent(percent) => disk.used_percent() <= percent,
            Self::Bytes(bytes) => disk.available >= bytes,
        }
    }
}

/// Collects when the disk fills up or somebody asks, until `stop`.
pub(crate) async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let collector = ctx.settings.collector.clone();
    let mut requests = collector.requests.lock().await;
    let read = async { ctx.stores.workloads_read.wait().await && ctx.stores.images_read.wait().await };
    tokio::select! {
        // Cancel-safe: both only wait.
        read = read => if !read { return },
        () = stop.cancelled() => return,
    }
    let mut uses = Uses::load(uses_file(&ctx)).await;
    let mut look = tokio::time::interval(LOOK_EVERY.min(ctx.settings.audit));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let request = tokio::select! {
            // All cancel-safe.
            _ = look.tick() => None,
            Some(request) = requests.recv() => Some(request),
            () = stop.cancelled() => {
                // Who asks from now on, or waits, is told that the agent is stopping.
                requests.close();
                while requests.recv().await.is_some() {}
                return;
            }
        };
        match request {
            None => watch_disk(&ctx, &mut uses, collector.marks).await,
            Some(Request::Prune { dry_run, answer }) => {
                let _ = answer.send(collect(&ctx, &mut uses, Goal::Everything, Duration::ZERO, dry_run).await);
            }
            Some(Request::Room { bytes, answer }) => {
                let result = collect(&ctx, &mut uses, Goal::Bytes(bytes), Duration::ZERO, false).await;
                let _ = answer.send(result);
            }
        }
    }
}

fn uses_file(ctx: &Context) -> PathBuf {
    ctx.settings.data_dir.join("image-uses.json")
}

/// Collects above the high mark, and says if that was not enough.
async fn watch_disk(ctx: &Arc<Context>, uses: &mut Uses, marks: Marks) {
    if let Some(kept) = keeps::keeps(ctx) {
        uses.note(&kept, &[], ctx.now()).await;
    }
    let disk = match ctx.drivers.images.disk().await {
        Ok(disk) if disk.total > 0 => disk,
        Ok(_) => return,
        // The runtime is away, which has a condition of its own.
        Err(error) => return tracing::debug!("looking at the images' disk: {}", chain(&error)),
    };
    ctx.metrics.images_disk_used_ratio.set(disk.used_percent() as f64 / 100.0);
    if disk.used_percent() <= marks.high_percent {
        return report(ctx, marks, disk, "");
    }
    let outcome = collect(ctx, uses, Goal::Percent(marks.low_percent), marks.min_age, false).await;
    let rest = match &outcome {
        Ok(collection) if collection.removed.is_empty() => "no image is left that nobody needs",
        Ok(_) => "some images were removed",
        Err(Error::NotRead) => return,
        Err(error) => {
            tracing::warn!("collecting images: {}", chain(error));
            "images cannot be collected"
        }
    };
    report(ctx, marks, ctx.drivers.images.disk().await.unwrap_or(disk), rest);
}

/// Condition `DiskPressure`.
fn report(ctx: &Context, marks: Marks, disk: images::Disk, rest: &str) {
    if disk.used_percent() <= marks.high_percent {
        ctx.report.set_condition_part(condition_type::DISK_PRESSURE, "images", false, reasons::NO_PRESSURE, "");
        return;
    }
    let message = format!(
        "the images' disk is {} % full ({} of {} left), above images.gc.highPercent {}; {rest}",
        disk.used_percent(),
        size(disk.available),
        size(disk.total),
        marks.high_percent
    );
    ctx.report.set_condition_part(condition_type::DISK_PRESSURE, "images", true, reasons::DISK_PRESSURE, message);
}

async fn collect(
    ctx: &Arc<Context>,
    uses: &mut Uses,
    goal: Goal,
    min_age: Duration,
    dry_run: bool,
) -> Result<Collection, Error> {
    let images = &ctx.drivers.images;
    let held = images.list_fetched().await.map_err(Error::Images)?;
    let kept = keeps::keeps(ctx).ok_or(Error::NotRead)?;
    uses.note(&kept, &held, ctx.now()).await;
    let plan = plan::plan(&held, &kept, uses, ctx.now(), min_age);
    let before = images.disk().await.map_err(Error::Images)?;
    let mut collection = Collection { dry_run, kept: plan.kept, ..Default::default() };
    if dry_run {
        collection.kept.extend(foreign(ctx, &held).await?);
        collection.kept.sort_by(|a, b| a.reference.cmp(&b.reference));
        return Ok(Collection { removed: plan.unneeded, ..collection });
    }
    // What is left of pulls that nobody wants any more serves nobody.
    images.collect(&kept.into_keys().collect()).await.map_err(Error::Images)?;
    let mut disk = images.disk().await.map_err(Error::Images)?;
    for candidate in plan.unneeded {
        if goal.reached(disk) {
            break;
        }
        // Somebody may have asked for it since the plan was made.
        if keeps::keeps(ctx).is_none_or(|kept| kept.contains_key(&candidate.reference)) {
            continue;
        }
        match images.remove(&candidate.reference).await {
            Ok(()) => {
                tracing::info!(reference = candidate.reference, digest = candidate.digest, "removed an unneeded image");
                ctx.pulls.forget(&candidate.reference);
                ctx.metrics.images_collected.inc();
                collection.removed.push(candidate);
            }
            Err(error) => collection.failed.push(format!("{}: {}", candidate.reference, chain(&error))),
        }
        disk = images.disk().await.map_err(Error::Images)?;
    }
    collection.freed_bytes = disk.available.saturating_sub(before.available);
    if !collection.removed.is_empty() {
        tell(ctx, &collection).await;
    }
    Ok(collection)
}

/// What others brought onto the node: never removed, but on its disk.
async fn foreign(ctx: &Context, held: &[images::Fetched]) -> Result<Vec<Kept>, Error> {
    let all = ctx.drivers.images.list().await.map_err(Error::Images)?;
    let foreign = all.into_iter().filter(|image| held.iter().all(|ours| ours.reference != image.reference));
    Ok(foreign
        .map(|image| Kept {
            reference: image.reference,
            digest: image.digest,
            size_bytes: image.size,
            needed_by: "others: nodelet did not fetch it".to_owned(),
        })
        .collect())
}

/// An Event about the node, and the log.
async fn tell(ctx: &Context, collection: &Collection) {
    let names: Vec<&str> = collection.removed.iter().map(|candidate| candidate.reference.as_str()).collect();
    let note = format!("freed {} by removing {}", size(collection.freed_bytes), names.join(", "));
    ctx.metrics.images_collected_bytes.inc_by(collection.freed_bytes);
    tracing::info!("{note}");
    match node_state::load(&ctx.client, &ctx.settings.node_name).await {
        Ok(node) => ctx.event(&node, EventType::Normal, reasons::IMAGES_COLLECTED, note).await,
        Err(error) => tracing::warn!("reading NodeState: {}", chain(&error)),
    }
}
