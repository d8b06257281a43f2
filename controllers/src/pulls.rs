//! Image transfers shared by everybody who wants them: one transfer per wish, whoever asks, with back-off.
//!
//! A reconcile never waits for a transfer: it asks for the state, and is woken when that changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodelet_crds::reasons;
use nodelet_drivers::images::{Error, Fetch, Image, Images, OnProgress, Progress, Source, normalize};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::context::chain;
use crate::image_collector::Collector;

mod room;

/// What is known of a wish.
#[derive(Debug, Clone)]
pub enum PullState {
    /// Under way.
    Running(Progress),
    /// Done; the image is on the node.
    Done(Image),
    /// Failed; tried again by itself after `retry_in`.
    Failed {
        /// The cause chain.
        message: String,
        /// The reason constant for conditions.
        kind: FailureKind,
        /// How many times in a row.
        failures: u32,
        /// When it is tried again, from now.
        retry_in: Duration,
    },
}

/// Why a pull failed, coarsely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Trying again cannot help: the reference or the archive is wrong.
    Invalid,
    /// The disk is too full for it, also without the images that nobody needs.
    NoRoom,
    /// Everything else.
    Transfer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: String,
    source: Source,
    platform: Option<String>,
}

enum Entry {
    Running { progress: Progress, latest: Fetch },
    Done { image: Image, at: Instant },
    Failed { message: String, kind: FailureKind, failures: u32, next: Instant },
}

/// The transfers. Cheap to clone.
#[derive(Clone)]
pub struct Pulls {
    shared: Arc<Shared>,
}

struct Shared {
    images: Arc<dyn Images>,
    collector: Collector,
    entries: Mutex<HashMap<Key, Entry>>,
    changed: broadcast::Sender<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pulls {
    /// Transfers through `images`, for which `collector` makes room, until `stop`.
    pub fn new(images: Arc<dyn Images>, collector: Collector, stop: CancellationToken) -> Self {
        let (changed, _) = broadcast::channel(256);
        Self {
            shared: Arc::new(Shared {
                images,
                collector,
                entries: Mutex::default(),
                changed,
                tasks: TaskTracker::new(),
                stop,
            }),
        }
    }

    /// References (as given in the wish) whose state changed. A receiver that lags must look at everything.
    pub fn changes(&self) -> broadcast::Receiver<String> {
        self.shared.changed.subscribe()
    }

    /// Starts the transfer unless it is under way, was done within `fresh`, or waits after a failure; and says how
    /// it stands. Asking again is free.
    pub fn request(&self, fetch: &Fetch, fresh: Duration) -> PullState {
        let key =
            Key { reference: fetch.reference.clone(), source: fetch.source.clone(), platform: fetch.platform.clone() };
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let failures = match entries.get_mut(&key) {
            Some(Entry::Running { progress, latest }) => {
                latest.clone_from(fetch);
                return PullState::Running(progress.clone());
            }
            Some(Entry::Done { image, at }) if now.duration_since(*at) <= fresh => {
                return PullState::Done(image.clone());
            }
            Some(Entry::Failed { message, kind, failures, next }) if *next > now => {
                return PullState::Failed {
                    message: message.clone(),
                    kind: *kind,
                    failures: *failures,
                    retry_in: *next - now,
                };
            }
            Some(Entry::Failed { failures, .. }) => *failures,
            Some(Entry::Done { .. }) | None => 0,
        };
        entries.insert(key.clone(), Entry::Running { progress: Progress::default(), latest: fetch.clone() });
        drop(entries);
        self.shared.tasks.spawn(self.clone().transfer(key, fetch.clone(), failures));
        PullState::Running(Progress::default())
    }

    /// Forgets a failure, so that the next request tries at once: the object was edited.
    pub fn forget_failure(&self, reference: &str) {
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|key, entry| key.reference != reference || !matches!(entry, Entry::Failed { .. }));
    }

    /// References (as given in the wish) that are being transferred.
    pub fn running(&self) -> Vec<String> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let running = entries.iter().filter(|(_, entry)| matches!(entry, Entry::Running { .. }));
        running.map(|(key, _)| key.reference.clone()).collect()
    }

    /// Forgets everything about a reference, however written: its image was removed.
    pub fn forget(&self, reference: &str) {
        let Ok(gone) = normalize(reference) else { return };
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|key, entry| {
            matches!(entry, Entry::Running { .. }) || normalize(&key.reference).is_ok_and(|other| other != gone)
        });
    }

    /// Runs `work`, which may take as long as a transfer, until it ends or the agent stops.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                // Cut like a transfer: what is half done is done again.
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Wakes whoever waits for the image of `reference`.
    pub(crate) fn tell(&self, reference: &str) {
        let _ = self.shared.changed.send(reference.to_owned());
    }

    /// Waits until every transfer has ended or been cut by the stop token.
    pub async fn drain(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    async fn fetch(&self, fetch: &Fetch, on_progress: OnProgress) -> Result<Image, Failure> {
        room::ensure(&*self.shared.images, &self.shared.collector, fetch).await?;
        Ok(self.shared.images.fetch(fetch, on_progress).await?)
    }

    async fn transfer(self, key: Key, fetch: Fetch, failures: u32) {
        tracing::info!(reference = %fetch.reference, source = ?fetch.source, "pulling image");
        let started = Instant::now();
        let on_progress = {
            let (shared, key) = (self.shared.clone(), key.clone());
            Arc::new(move |new: Progress| {
                let mut entries = shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(Entry::Running { progress, .. }) = entries.get_mut(&key) else { return };
                let phase_changed = progress.phase != new.phase;
                *progress = new;
                drop(entries);
                if phase_changed {
                    // Nobody listening is fine.
                    let _ = shared.changed.send(key.reference.clone());
                }
            })
        };
        let result = tokio::select! {
            // Cancel-safe: the driver keeps what was transferred and continues there next time.
            result = self.fetch(&fetch, on_progress) => result,
            () = self.shared.stop.cancelled() => return,
        };
        let entry = match result {
            Ok(image) => {
                tracing::info!(reference = %fetch.reference, digest = %image.digest, took = ?started.elapsed(), "image ready");
                Entry::Done { image, at: Instant::now() }
            }
            Err(error) => {
                let failures = failures.saturating_add(1);
                let delay = Backoff::RETRY.jittered(failures);
                let message = chain(&error);
                tracing::warn!(reference = %fetch.reference, failures, retry_in = ?delay, "pulling image failed: {message}");
                Entry::Failed { message, kind: kind_of(&error), failures, next: Instant::now() + delay }
            }
        };
        let retry = match &entry {
            Entry::Failed { next, .. } => Some(*next),
            _ => None,
        };
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), entry);
        let _ = self.shared.changed.send(key.reference.clone());
        if let Some(next) = retry {
            // Wakes those who still want it when it may be tried again.
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {
                    let _ = self.shared.changed.send(key.reference);
                }
                () = self.shared.stop.cancelled() => {}
            }
        }
    }
}

impl FailureKind {
    /// The reason constant for conditions and Events.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Invalid => reasons::ARCHIVE_FAILED,
            Self::NoRoom => reasons::INSUFFICIENT_STORAGE,
            Self::Transfer => reasons::PULL_FAILED,
        }
    }
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    NoRoom(#[from] room::NoRoom),
    #[error(transparent)]
    Images(#[from] Error),
}

fn kind_of(failure: &Failure) -> FailureKind {
    let error = match failure {
        Failure::NoRoom(_) => return FailureKind::NoRoom,
        Failure::Images(error) => error,
    };
    match error {
        Error::InvalidReference { .. }
        | Error::Archive { .. }
        | Error::Platform { .. }
        | Error::Unusable { .. }
        | Error::Refused { .. }
        | Error::Unsigned { .. } => FailureKind::Invalid,
        Error::NotFound { .. }
        | Error::Unauthorized { .. }
        | Error::Busy { .. }
        | Error::Unreachable { .. }
        | Error::Corrupt { .. }
        | Error::Failed { .. } => FailureKind::Transfer,
    }
}
