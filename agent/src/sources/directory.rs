//! A directory of manifests, followed by inotify: what is in it is in the API within a moment.
//!
//! One task owns everything here. A pass looks at the whole directory (events only say that it is time to), plans by
//! [`plan_sync`](super::plan::plan_sync), applies, deletes and remembers. What failed for a passing reason is tried
//! again with back-off; what is wrong waits for an edit. Now and then everything is applied again, for changes that
//! somebody made in the API.

mod sync;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch as latest;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use sync::Report;
use sync::Syncer;
use watch::Watch;

use super::metrics::Metrics;
use crate::client::Client;

/// Events are collected for this long before a look: an editor or `cp` makes several.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Shortest and longest time until what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// One directory and what keeps the API like it.
pub struct DirectorySource {
    /// The directory; need not exist.
    pub directory: PathBuf,
    /// The API.
    pub client: Client,
    /// How often everything is applied again.
    pub audit: Duration,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Where the latest state goes; `None` until the first pass is done.
    pub report: latest::Sender<Option<Report>>,
}

/// The source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no inotify instance.
    #[error("watching {directory}; if the limit is reached, raise fs.inotify.max_user_instances")]
    Inotify {
        /// The directory.
        directory: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl DirectorySource {
    /// Follows the directory until `shutdown`; a pass under way is finished.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { directory, client, audit, metrics, report } = self;
        let shown = directory.display().to_string();
        let failed = |source| Error::Inotify { directory: shown.clone(), source };
        let mut watch = Watch::new(&directory).map_err(failed)?;
        let mut syncer = Syncer::new(directory, client, metrics);
        let mut next_audit = Instant::now() + audit;
        let mut retry = RETRY.0;
        loop {
            // Watches first, the look after: what changes in between makes another pass.
            watch.renew();
            let everything = Instant::now() >= next_audit;
            if everything {
                next_audit = Instant::now() + audit;
            }
            let now = syncer.pass(everything).await;
            let is_settled = now.is_settled();
            report.send_replace(Some(now));
            let wake = if is_settled {
                retry = RETRY.0;
                next_audit
            } else {
                let at = Instant::now() + retry;
                retry = (retry * 2).min(RETRY.1);
                at.min(next_audit)
            };
            // All arms are cancel-safe: an event that was not taken is still in the kernel's queue.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                changed = watch.changed() => changed.map_err(failed)?,
                () = tokio::time::sleep_until(wake) => continue,
            }
            // Something changed: whatever waits for a retry gets one soon.
            retry = RETRY.0;
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(DEBOUNCE) => {}
            }
            watch.drain();
        }
    }
}

#[cfg(test)]
mod tests;
