//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks every few milliseconds until there is an answer. An error ends the waiting; the deadline is an error that names
/// what was waited for.
pub fn until<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        #[allow(clippy::disallowed_methods)] // the one place of the tests that sleeps, on a thread of its own
        std::thread::sleep(Duration::from_millis(10));
    }
}
