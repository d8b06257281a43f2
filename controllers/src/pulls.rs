//! Image transfers shared by everybody who wants them: one transfer per wish, whoever asks, with back-off.
//!
//! A reconcile never waits for a transfer: it asks for the state, and is woken when that changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nodelet_crds::reasons;
use nodelet_drivers::images::{Error, Fetch, Image, Images, OnProgress, Phase, Progress, Signer, Source, normalize};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::context::chain;
use crate::image_collector::Collector;

mod resolve;
mod room;
mod speed;

use resolve::Resolves;
pub use resolve::Unresolved;
use speed::Speed;
pub use speed::Transfer;

/// Somebody who can do with what is there waits so long for a registry to say what a tag stands for.
pub const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a wish.
#[derive(Debug, Clone)]
pub enum PullState {
    /// Under way.
    Running(Transfer),
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
    /// The archive is missing or is none.
    Archive,
    /// There is no variant for the platform.
    Platform,
    /// A required signature is missing or wrong.
    Unsigned,
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
    /// A transfer that did not ask for signatures says nothing to somebody who does.
    signers: Vec<Signer>,
}

impl Key {
    fn of(fetch: &Fetch) -> Self {
        Self {
            reference: normalize(&fetch.reference).unwrap_or_else(|_| fetch.reference.clone()),
            source: fetch.source.clone(),
            platform: fetch.platform.clone(),
            signers: fetch.signers.clone(),
        }
    }
}

enum Entry {
    Running { progress: Progress, latest: Fetch, since: Instant, speed: Speed },
    Done { image: Image, at: Instant, took: Duration },
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
    resolves: Resolves,
    progressed: Notify,
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
                resolves: Resolves::default(),
                progressed: Notify::new(),
                changed,
                tasks: TaskTracker::new(),
                stop,
            }),
        }
    }

    /// Normalised references whose state changed. A receiver that lags must look at everything.
    pub fn changes(&self) -> broadcast::Receiver<String> {
        self.shared.changed.subscribe()
    }

    /// Starts the transfer unless it is under way, was done within `fresh`, or waits after a failure; and says how
    /// it stands. Asking again is free.
    pub fn request(&self, fetch: &Fetch, fresh: Duration) -> PullState {
        let key = Key::of(fetch);
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let failures = match entries.get_mut(&key) {
            Some(Entry::Running { progress, latest, since, speed }) => {
                latest.clone_from(fetch);
                return PullState::Running(transfer_of(progress, *since, speed));
            }
            Some(Entry::Done { image, at, .. }) if now.duration_since(*at) <= fresh => {
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
        let (progress, latest) = (Progress::default(), fetch.clone());
        entries.insert(key.clone(), Entry::Running { progress, latest, since: now, speed: Speed::new(now) });
        drop(entries);
        self.shared.tasks.spawn(self.clone().transfer(key, fetch.clone(), failures));
        PullState::Running(Transfer { started: true, ..Transfer::default() })
    }

    /// Forgets a failure, so that the next request tries at once: the object was edited.
    pub fn forget_failure(&self, reference: &str) {
        let Ok(edited) = normalize(reference) else { return };
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|key, entry| key.reference != edited || !matches!(entry, Entry::Failed { .. }));
    }

    /// Normalised references that are being transferred.
    pub fn running(&self) -> Vec<String> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let running = entries.iter().filter(|(_, entry)| matches!(entry, Entry::Running { .. }));
        running.map(|(key, _)| key.reference.clone()).collect()
    }

    /// Waits for the transfer to end, whoever started it; a failure is not waited out.
    pub async fn complete(&self, fetch: &Fetch) -> Result<Image, (String, FailureKind)> {
        let mut changes = self.changes();
        let begun = Instant::now();
        self.forget_failure(&fetch.reference);
        loop {
            match self.request(fetch, begun.elapsed()) {
                PullState::Done(image) => return Ok(image),
                PullState::Failed { message, kind, .. } => return Err((message, kind)),
                // Missed changes are made up for by asking.
                PullState::Running(_) => drop(changes.recv().await),
            }
        }
    }

    /// What the last transfer brought, and when it ended; none while another is under way or failed since.
    pub fn last(&self, fetch: &Fetch) -> Option<(Image, Instant)> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.get(&Key::of(fetch))? {
            Entry::Done { image, at, .. } => Some((image.clone(), *at)),
            Entry::Running { .. } | Entry::Failed { .. } => None,
        }
    }

    /// How long the last transfer took.
    pub fn took(&self, fetch: &Fetch) -> Option<Duration> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.get(&Key::of(fetch))? {
            Entry::Done { took, .. } => Some(*took),
            Entry::Running { .. } | Entry::Failed { .. } => None,
        }
    }

    /// Everything under way, by reference.
    pub fn transfers(&self) -> BTreeMap<String, Transfer> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let running = entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Running { progress, since, speed, .. } => {
                Some((key.reference.clone(), transfer_of(progress, *since, speed)))
            }
            Entry::Done { .. } | Entry::Failed { .. } => None,
        });
        running.collect()
    }

    /// Returns when a transfer has begun, moved on or ended since the last call.
    pub async fn progressed(&self) {
        self.shared.progressed.notified().await;
    }

    /// Forgets everything about a reference, however written: its image was removed.
    pub fn forget(&self, reference: &str) {
        let Ok(gone) = normalize(reference) else { return };
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|key, entry| matches!(entry, Entry::Running { .. }) || key.reference != gone);
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
        let _ = self.shared.changed.send(normalize(reference).unwrap_or_else(|_| reference.to_owned()));
    }

    /// Waits until every transfer has ended or been cut by the stop token.
    pub async fn drain(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Wakes those who would rather go on with what is there than wait for a registry that does not answer; never ends.
    async fn lose_patience(&self, key: &Key) {
        tokio::time::sleep(RESOLVE_PATIENCE).await;
        let still = {
            let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
            matches!(entries.get(key), Some(Entry::Running { progress, .. }) if progress.phase == Phase::Resolving)
        };
        if still {
            let _ = self.shared.changed.send(key.reference.clone());
        }
        std::future::pending::<()>().await;
    }

    async fn fetch(&self, fetch: &Fetch, on_progress: OnProgress) -> Result<Image, Failure> {
        room::ensure(&*self.shared.images, &self.shared.collector, fetch).await?;
        Ok(self.shared.images.fetch(fetch, on_progress).await?)
    }

    /// Takes in how far a transfer is. How it ended comes with its result: until then nobody could say why.
    fn on_progress(&self, key: Key) -> OnProgress {
        let shared = self.shared.clone();
        Arc::new(move |new: Progress| {
            if matches!(new.phase, Phase::Ready | Phase::Failed) {
                return;
            }
            let mut entries = shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(Entry::Running { progress, speed, .. }) = entries.get_mut(&key) else { return };
            let phase_changed = progress.phase != new.phase;
            speed.update(&new, Instant::now());
            *progress = new;
            drop(entries);
            shared.progressed.notify_one();
            if phase_changed {
                // Nobody listening is fine.
                let _ = shared.changed.send(key.reference.clone());
            }
        })
    }

    async fn transfer(self, key: Key, fetch: Fetch, failures: u32) {
        tracing::info!(reference = %fetch.reference, source = ?fetch.source, "pulling image");
        let started = Instant::now();
        let on_progress = self.on_progress(key.clone());
        let result = tokio::select! {
            // Cancel-safe: the driver keeps what was transferred and continues there next time.
            result = self.fetch(&fetch, on_progress) => result,
            () = self.lose_patience(&key) => return,
            () = self.shared.stop.cancelled() => return,
        };
        let entry = match result {
            Ok(image) => {
                tracing::info!(reference = %fetch.reference, digest = %image.digest, took = ?started.elapsed(), "image ready");
                Entry::Done { image, at: Instant::now(), took: started.elapsed() }
            }
            Err(error) => {
                let failures = failures.saturating_add(1);
                let delay = Backoff::RETRY.jittered(failures).max(error.retry_after().unwrap_or_default());
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
        self.shared.progressed.notify_one();
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

fn transfer_of(progress: &Progress, since: Instant, speed: &Speed) -> Transfer {
    let (bytes_per_second, seconds_left) = speed.estimate(progress);
    let progress = progress.clone();
    Transfer { progress, bytes_per_second, seconds_left, running: since.elapsed(), started: false }
}

impl FailureKind {
    /// The reason constant for conditions and Events.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Archive => reasons::ARCHIVE_FAILED,
            Self::Platform => reasons::PLATFORM_MISMATCH,
            Self::Unsigned => reasons::VERIFICATION_FAILED,
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

impl Failure {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoRoom(_) => None,
            Self::Images(error) => error.retry_after(),
        }
    }
}

fn kind_of(failure: &Failure) -> FailureKind {
    let error = match failure {
        Failure::NoRoom(_) => return FailureKind::NoRoom,
        Failure::Images(error) => error,
    };
    match error {
        Error::Platform { .. } => FailureKind::Platform,
        Error::Unsigned { .. } => FailureKind::Unsigned,
        Error::Archive { .. } => FailureKind::Archive,
        Error::InvalidReference { .. }
        | Error::Unusable { .. }
        | Error::Refused { .. }
        | Error::NotFound { .. }
        | Error::Unauthorized { .. }
        | Error::Busy { .. }
        | Error::Unreachable { .. }
        | Error::Corrupt { .. }
        | Error::Failed { .. } => FailureKind::Transfer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_collector::Marks;
    use nodelet_drivers::images::FakeImages;

    #[tokio::test]
    async fn a_transfer_has_not_ended_before_it_can_be_said_how() {
        let marks = Marks { high_percent: 85, low_percent: 80, min_age: Duration::ZERO };
        let stop = CancellationToken::new();
        let pulls = Pulls::new(Arc::new(FakeImages::new()), Collector::stopped(marks), stop.clone());
        // What it begins does not run before this test waits.
        let wish = Fetch::new("web:1");
        assert!(matches!(pulls.request(&wish, Duration::ZERO), PullState::Running(_)));
        let (mut changes, on_progress) = (pulls.changes(), pulls.on_progress(Key::of(&wish)));
        for (phase, woken) in [(Phase::Unpacking, true), (Phase::Failed, false), (Phase::Ready, false)] {
            on_progress(Progress { phase, ..Progress::default() });
            assert_eq!(changes.try_recv().is_ok(), woken, "{phase:?}");
            let PullState::Running(transfer) = pulls.request(&wish, Duration::ZERO) else { panic!("{phase:?}") };
            assert_eq!(transfer.progress.phase, Phase::Unpacking);
        }
        stop.cancel();
        pulls.drain().await;
    }
}
