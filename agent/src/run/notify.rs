//! Telling systemd how we are, if it started us.

use std::convert::Infallible;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// Everything is started.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Stopping in order.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining; workloads go on")]);
}

/// Shows twice per interval that tasks still get their turn.
pub(super) async fn watchdog(shutdown: CancellationToken) -> Result<(), Infallible> {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        shutdown.cancelled().await;
        return Ok(());
    };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "telling the service manager");
    }
}
