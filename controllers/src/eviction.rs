//! What happens when the node runs short of memory or of disk: conditions of the node, reclaim, and then evictions, one
//! after the other, in the kubelet's order.
//!
//! Memory is looked at when the kernel tells that tasks stall for it, and both in any case every ten seconds. For the disk
//! images that nobody needs go first. Who is evicted stops, with the numbers in its condition, and comes back when there
//! has been no pressure for a while; the next one goes only once it is gone. What was declared stays as it is.

mod evicted;
mod plan;
pub(crate) mod sizes;
mod uses;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use nodelet_crds::common::condition_type;
use nodelet_crds::reasons;
use nodelet_drivers::host;
use nodelet_drivers::pressure::{self, MemoryStalls};
use tokio_util::sync::CancellationToken;

use crate::context::{Context, chain};
pub use evicted::{Evicted, Evictions};
use nodelet_drivers::room::size;
use plan::{Candidate, Level, Levels, Short, Signal};
pub use plan::{NoThreshold, Threshold, Thresholds};

/// Everything is looked at this often, as the kubelet does.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// And this often while the node is short, or has evicted somebody.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Who is evicted has no longer than this to end by itself.
pub const LONGEST_GRACE: Duration = Duration::from_secs(10);
/// Who has less on the disk than this would free nothing.
const LEAST_DISK: u64 = 1 << 20;
/// Who has this priority is never evicted, as with the kubelet's critical pods.
pub const CRITICAL: i32 = 2_000_000_000;

/// `eviction` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionSettings {
    /// When there is pressure.
    pub thresholds: Thresholds,
    /// There is pressure for so long after it was last seen.
    pub transition: Duration,
}

/// Watches over the node until `stop`.
pub(crate) async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    tokio::select! {
        // Cancel-safe: both only wait.
        read = ctx.stores.workloads_read.wait() => if !read { return },
        () = stop.cancelled() => return,
    }
    let mut stalls = MemoryStalls::open(Path::new(pressure::MEMORY))
        .inspect_err(|error| tracing::info!("the kernel does not tell of memory pressure: {error}; it is looked at"))
        .ok();
    let mut watch = Watch { ctx, seen: HashMap::new() };
    loop {
        let pause = watch.look().await;
        tokio::select! {
            // All cancel-safe: a word that is lost is made up for by the next look.
            () = tokio::time::sleep(pause) => {}
            told = next(stalls.as_ref()) => if let Err(error) = told {
                tracing::warn!("the kernel no longer tells of memory pressure: {error}");
                stalls = None;
            },
            () = stop.cancelled() => return,
        }
    }
}

async fn next(stalls: Option<&MemoryStalls>) -> std::io::Result<()> {
    match stalls {
        Some(stalls) => stalls.next().await,
        None => std::future::pending().await,
    }
}

struct Watch {
    ctx: Arc<Context>,
    /// Pressure that was seen: since when it has not been, if it is over, and in which words.
    seen: HashMap<Signal, (Instant, String)>,
}

impl Watch {
    /// One look, and what follows from it. Returns when the next one is due.
    async fn look(&mut self) -> Duration {
        let thresholds = self.ctx.settings.eviction.thresholds;
        let mut short = plan::shortages(&self.levels().await, &thresholds);
        if short.iter().any(|short| short.signal.is_of_disk()) && self.reclaim().await {
            short = plan::shortages(&self.levels().await, &thresholds);
        }
        self.report(&short);
        let leaving = self.leaving();
        match short.first() {
            Some(worst) if leaving.is_none() => self.evict(*worst).await,
            Some(_) => {}
            None => self.bring_back(),
        }
        let is_quiet = self.seen.is_empty() && self.ctx.evictions.all().is_empty();
        if is_quiet { LOOK_EVERY } else { LOOK_AGAIN }
    }

    async fn levels(&self) -> Levels {
        let data_dir = self.ctx.settings.data_dir.clone();
        let (_, memory_bytes) = self.ctx.settings.capacity;
        crate::blocking(move || {
            let memory = Level { all: memory_bytes, left: host::available_memory() };
            let Ok(disk) = host::disk(&data_dir) else { return Levels { memory, ..Levels::default() } };
            Levels {
                memory,
                disk: Level { all: disk.capacity_bytes, left: disk.available_bytes },
                inodes: Level { all: disk.inodes, left: disk.inodes_free },
            }
        })
        .await
    }

    /// Removes the images that nobody needs; whether there were any.
    async fn reclaim(&self) -> bool {
        match self.ctx.settings.collector.prune(false).await {
            Ok(collection) => !collection.removed.is_empty(),
            Err(error) => {
                tracing::debug!("collecting images under pressure: {}", chain(&error));
                false
            }
        }
    }

    /// The conditions of the node, which hold for a while longer than the pressure.
    fn report(&mut self, short: &[Short]) {
        for short in short {
            self.seen.insert(short.signal, (Instant::now(), short.to_string()));
        }
        let transition = self.ctx.settings.eviction.transition;
        self.seen.retain(|_, (last, _)| last.elapsed() < transition);
        for (type_, reason, of_disk) in [
            (condition_type::MEMORY_PRESSURE, reasons::MEMORY_PRESSURE, false),
            (condition_type::DISK_PRESSURE, reasons::DISK_PRESSURE, true),
        ] {
            let found =
                self.seen.iter().filter(|(signal, _)| signal.is_of_disk() == of_disk).map(|(_, (_, text))| text);
            let mut found: Vec<&str> = found.map(String::as_str).collect();
            found.sort_unstable();
            let reason = if found.is_empty() { reasons::NO_PRESSURE } else { reason };
            self.ctx.report.set_condition_part(type_, "eviction", !found.is_empty(), reason, found.join("; "));
        }
    }

    /// Somebody who was evicted and is not gone yet.
    fn leaving(&self) -> Option<String> {
        self.ctx.evictions.all().into_iter().find(|uid| !self.ctx.sandboxes.of_workload(uid).is_empty())
    }

    async fn evict(&self, short: Short) {
        let candidates = self.candidates(short.signal).await;
        let Some(Candidate { uid, used, requested, .. }) = plan::first(candidates) else { return };
        let Some(object) = self.ctx.workload_by_uid(&uid) else { return };
        let asked = match short.signal {
            Signal::MemoryAvailable => format!("{} of memory, requested {}", size(used), size(requested)),
            Signal::NodefsAvailable | Signal::NodefsInodesFree => format!("{} of disk", size(used)),
        };
        let message = format!("{short}; it used {asked}; it comes back once there is enough again");
        // Its next status has the Event.
        let why = Evicted { reason: reasons::EVICTED, message: message.clone() };
        let earliest = self.ctx.evictions.evict(&object, why);
        tracing::warn!(workload = %crate::controller::object_key(&*object), ?earliest, "evicted: {message}");
        self.ctx.metrics.evictions.inc();
    }

    /// Those that run, with what they use of what is short.
    async fn candidates(&self, signal: Signal) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for object in self.ctx.stores.workloads.state() {
            let uid = object.uid().unwrap_or_default();
            let priority = object.spec.priority.unwrap_or_default();
            let sandboxes = self.ctx.sandboxes.of_workload(&uid);
            let goes_anyway = object.spec.stopped || object.metadata.deletion_timestamp.is_some();
            if sandboxes.is_empty() || priority >= CRITICAL || goes_anyway {
                continue;
            }
            let (used, requested) = match signal {
                Signal::MemoryAvailable => {
                    let requested = crate::workload::fit::requests(&object).memory_bytes;
                    (uses::memory(&self.ctx, sandboxes).await, requested)
                }
                Signal::NodefsAvailable | Signal::NodefsInodesFree => {
                    (uses::disk(&self.ctx, &object, sandboxes).await, 0)
                }
            };
            if signal.is_of_disk() && used < LEAST_DISK {
                continue;
            }
            candidates.push(Candidate { uid, title: crate::image_users::title(&object), priority, used, requested });
        }
        candidates
    }

    /// There is enough: who was evicted may come back, unless that was only just so, or it was too often.
    fn bring_back(&self) {
        if !self.seen.is_empty() {
            return;
        }
        for uid in self.ctx.evictions.release(|_, why| why.reason == reasons::EVICTED) {
            if let Some(object) = self.ctx.workload_by_uid(&uid) {
                self.ctx.evictions.wake(&object);
            }
        }
    }
}
