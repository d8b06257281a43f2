//! At most so many bytes in a second, over all transfers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by all transfers.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: Option<u64>,
    /// When the next byte is due.
    next: Mutex<Option<Instant>>,
}

impl Throttle {
    /// Bytes in a second; `None` and 0 are no limit.
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), next: Mutex::default() }
    }

    /// Waits until so many bytes more may have come. What is not asked for fills the sockets' buffers, and then the
    /// server waits.
    pub(super) async fn pass(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let cost =
            Duration::from_nanos(u64::try_from(bytes as u128 * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX));
        let due = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let due = next.unwrap_or_else(Instant::now).max(Instant::now()) + cost;
            *next = Some(due);
            due
        };
        tokio::time::sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_share_one_rate() {
        let throttle = Throttle::new(Some(1000));
        let begin = Instant::now();
        tokio::join!(throttle.pass(1000), throttle.pass(500), throttle.pass(500));
        assert_eq!(begin.elapsed().as_millis(), 2000);
        Throttle::new(Some(0)).pass(usize::MAX).await;
        assert_eq!(begin.elapsed().as_millis(), 2000);
    }
}
