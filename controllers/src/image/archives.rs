//! The drop-in directory, `<dataDir>/images/`: image archives that are imported when they appear or change, for sites
//! without a registry.
//!
//! # Promises
//! - Images are known by the names in their archive, and kept for as long as the file is there, whether used or not.
//! - A file that is still being written is left alone; it counts when its writer closes it or renames it into place.
//! - An unreadable file changes nothing on the node, is named in an Event and in the node's condition, and is tried
//!   again when it changes.
//! - Removing a file removes no image; from then on the collector decides.
//!
//! What was imported is remembered, so that a restart does not read every archive again.

mod memory;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::events::EventType;
use nodelet_crds::common::condition_type;
use nodelet_crds::reasons;
use nodelet_drivers::images::{Error, Fetch, Source};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::context::{Context, chain};
use crate::image_signers;
use crate::node_state;
use memory::{Entry, Identity, Memory};
use watch::{Changes, Watch};

/// What the drop-in directory holds. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Archives {
    /// Nothing until the directory has been read once.
    images: Arc<Mutex<Option<BTreeMap<String, String>>>>,
}

impl Archives {
    /// Normalised references with the file that each comes from; `None` while the directory has not been read.
    pub fn images(&self) -> Option<BTreeMap<String, String>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an archive holds the image. While that is not known, it may.
    pub fn holds(&self, reference: &str) -> bool {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.as_ref().is_none_or(|images| images.contains_key(reference))
    }

    fn set(&self, memory: &Memory) {
        let images = memory
            .files
            .iter()
            .flat_map(|(file, entry)| entry.images.iter().map(move |reference| (reference.clone(), file.clone())));
        *self.images.lock().unwrap_or_else(PoisonError::into_inner) = Some(images.collect());
    }
}

/// Imports what is in the directory until `stop`.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let directory = ctx.settings.data_dir.join("images");
    let mut failures = 0;
    loop {
        let error = match Importer::open(&ctx, &directory).await {
            Ok(mut importer) => match importer.run(&stop).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        failures += 1;
        let message = format!("watching {}: {error}", directory.display());
        tracing::warn!("{message}");
        ctx.report.set_condition(condition_type::ARCHIVES_IMPORTED, false, reasons::ARCHIVE_FAILED, message);
        tokio::select! {
            // Cancel-safe: both only wait.
            () = tokio::time::sleep(Backoff::RETRY.jittered(failures)) => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Importer<'a> {
    ctx: &'a Arc<Context>,
    directory: PathBuf,
    watch: Watch,
    memory: Memory,
    /// Files whose import failed for a reason that may pass: how often, and when to try again.
    retries: BTreeMap<String, (u32, Instant)>,
    /// The node's condition speaks of archives once there was one.
    told: bool,
}

impl<'a> Importer<'a> {
    async fn open(ctx: &'a Arc<Context>, directory: &Path) -> std::io::Result<Self> {
        tokio::fs::create_dir_all(directory).await?;
        // Watched first, read then: what comes in between is seen twice rather than never.
        let watch = Watch::new(directory)?;
        let memory = Memory::load(&ctx.settings.data_dir).await;
        let directory = directory.to_owned();
        Ok(Self { ctx, directory, watch, memory, retries: BTreeMap::new(), told: false })
    }

    async fn run(&mut self, stop: &CancellationToken) -> std::io::Result<()> {
        let mut arrivals = self.ctx.pulls.changes();
        self.look(None, stop).await?;
        loop {
            let retry = self.retries.values().map(|(_, at)| *at).min();
            let wait = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let files = tokio::select! {
                // All cancel-safe: what is not taken now stays in its queue, or is still due.
                changes = self.watch.next() => match changes? {
                    Changes::Files(files) => Some(files),
                    Changes::Unknown => None,
                },
                changed = arrivals.recv() => match changed {
                    Ok(reference) => self.lost(&reference).await,
                    Err(RecvError::Lagged(_)) => None,
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = wait => {
                    let now = Instant::now();
                    Some(self.retries.iter().filter(|(_, (_, at))| *at <= now).map(|(file, _)| file.clone()).collect())
                }
                () = stop.cancelled() => return Ok(()),
            };
            if files.as_ref().is_some_and(BTreeSet::is_empty) {
                continue;
            }
            self.look(files, stop).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// The files of an image that somebody removed from the node.
    async fn lost(&mut self, reference: &str) -> Option<BTreeSet<String>> {
        let holds = |entry: &Entry| entry.images.iter().any(|image| image == reference);
        let files: BTreeSet<String> =
            self.memory.files.iter().filter(|(_, entry)| holds(entry)).map(|(file, _)| file.clone()).collect();
        if files.is_empty() || !matches!(self.ctx.drivers.images.get(reference).await, Ok(None)) {
            return Some(BTreeSet::new());
        }
        for file in &files {
            self.memory.files.remove(file);
        }
        Some(files)
    }

    /// Looks at these files, or at all, and imports what is new.
    async fn look(&mut self, files: Option<BTreeSet<String>>, stop: &CancellationToken) -> std::io::Result<()> {
        let there = watch::list(&self.directory).await?;
        self.memory.files.retain(|file, _| there.contains_key(file));
        self.retries.retain(|file, _| there.contains_key(file));
        // What is known is kept from the first moment; what is new is, once it is imported.
        self.ctx.archives.set(&self.memory);
        for (file, identity) in &there {
            let named = files.as_ref().is_none_or(|files| files.contains(file));
            let due = self.retries.contains_key(file);
            let known = self.memory.files.get(file).filter(|entry| entry.identity == *identity);
            if !named || (known.is_some() && !due && self.all_there(known).await) || stop.is_cancelled() {
                continue;
            }
            self.import(file, identity.clone()).await;
            self.publish();
            self.memory.save(&self.ctx.settings.data_dir).await?;
        }
        self.publish();
        self.memory.save(&self.ctx.settings.data_dir).await
    }

    async fn all_there(&self, entry: Option<&Entry>) -> bool {
        for reference in entry.into_iter().flat_map(|entry| &entry.images) {
            if matches!(self.ctx.drivers.images.get(reference).await, Ok(None)) {
                return false;
            }
        }
        true
    }

    async fn import(&mut self, file: &str, identity: Identity) {
        tracing::info!(file, "importing an image archive");
        let (images, failure) = match self.import_images(&self.directory.join(file)).await {
            Ok(images) => (images, None),
            Err(failure) => (BTreeSet::new(), Some(failure)),
        };
        self.retries.entry(file.to_owned()).or_insert((0, Instant::now())).0 += 1;
        let Some((message, passing)) = failure else {
            let note = format!("Imported {file}: {}", images.iter().cloned().collect::<Vec<_>>().join(", "));
            tracing::info!("{note}");
            self.event(EventType::Normal, reasons::PULLED, note).await;
            self.retries.remove(file);
            self.memory.files.insert(file.to_owned(), Entry { identity, images, problem: None });
            return;
        };
        let message = format!("{file}: {message}");
        tracing::warn!("importing an image archive: {message}");
        self.event(EventType::Warning, reasons::ARCHIVE_FAILED, message.clone()).await;
        match self.retries.get_mut(file) {
            Some((failures, at)) if passing => *at = Instant::now() + Backoff::RETRY.jittered(*failures),
            _ => {
                self.retries.remove(file);
            }
        }
        // An older form of the file may have brought images that are still wanted.
        let images = self.memory.files.remove(file).map(|entry| entry.images).unwrap_or_default();
        self.memory.files.insert(file.to_owned(), Entry { identity, images, problem: Some(message) });
    }

    /// Imports every image of the archive; or says why not, and whether that may pass.
    async fn import_images(&self, path: &Path) -> Result<BTreeSet<String>, (String, bool)> {
        let ctx = self.ctx;
        let names = ctx.drivers.images.names(path).await.map_err(|error| {
            let final_ = matches!(error, Error::Archive { .. });
            // The chain begins with the path, which the file's name says already.
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), chain);
            (cause, !final_)
        })?;
        let declared = image_signers::declared(ctx).await.map_err(|error| (chain(&error), true))?;
        for name in &names {
            let signers = image_signers::signers(ctx, &declared, name).await.map_err(|error| (chain(&error), true))?;
            let signers = signers.map_err(|message| (message, true))?;
            let fetch = Fetch { source: Source::Archive(path.to_owned()), signers, ..Fetch::new(name) };
            let done = ctx.pulls.complete(&fetch).await;
            done.map_err(|(message, kind)| (message, kind != crate::pulls::FailureKind::Archive))?;
        }
        Ok(names.into_iter().collect())
    }

    fn publish(&mut self) {
        let ctx = self.ctx;
        ctx.archives.set(&self.memory);
        let problems: Vec<&str> = self.memory.files.values().filter_map(|entry| entry.problem.as_deref()).collect();
        let (failed, all) = (problems.len(), self.memory.files.len());
        ctx.metrics.archives.with_label_values(&["failed"]).set(failed as f64);
        ctx.metrics.archives.with_label_values(&["imported"]).set((all - failed) as f64);
        self.told |= all > 0;
        if self.told {
            let (reason, message) = match problems.is_empty() {
                true => (reasons::READY, String::new()),
                false => (reasons::ARCHIVE_FAILED, problems.join("; ")),
            };
            ctx.report.set_condition(condition_type::ARCHIVES_IMPORTED, problems.is_empty(), reason, message);
        }
    }

    async fn event(&self, type_: EventType, reason: &'static str, note: String) {
        match node_state::load(&self.ctx.client, &self.ctx.settings.node_name).await {
            Ok(node) => self.ctx.event(&node, type_, reason, note).await,
            Err(error) => tracing::warn!("reading NodeState: {}", chain(&error)),
        }
    }
}

/// Longest wait for the rest of a burst of changes.
const SETTLE: Duration = Duration::from_millis(50);
