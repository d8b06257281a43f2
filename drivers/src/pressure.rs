//! Stalls of the node for want of memory, told by the kernel's pressure stall information: nothing is polled.
//!
//! Facts: kernel documentation `accounting/psi.rst`. A trigger lives as long as its file is open; at most one word comes
//! for each window.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the kernel tells of the node's memory.
pub const MEMORY: &str = "/proc/pressure/memory";

/// Some task waited for memory for a tenth of the last two seconds. Without privileges windows are multiples of these.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// The word that tasks stall for memory.
#[derive(Debug)]
pub struct MemoryStalls(AsyncFd<File>);

impl MemoryStalls {
    /// Asks the kernel for it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no such file (before 4.20, or off by `psi=0`), or refuses triggers.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        file.write_all(TRIGGER)?;
        // SAFETY: a `File` owns its descriptor and has the same one for as long as it lives.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?;
        Ok(Self(file))
    }

    /// Waits for the next stall. Cancel-safe.
    ///
    /// # Errors
    /// The kernel no longer tells.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.ready(Interest::PRIORITY).await?;
        let is_gone = ready.ready().is_error();
        ready.clear_ready();
        if is_gone { Err(io::Error::from(io::ErrorKind::BrokenPipe)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_the_trigger() {
        match MemoryStalls::open(Path::new(MEMORY)) {
            Ok(stalls) => {
                let next = tokio::time::timeout(std::time::Duration::from_millis(1), stalls.next()).await;
                assert!(next.is_err() || next.is_ok_and(|word| word.is_ok()));
            }
            // Not in this kernel.
            Err(error) => {
                assert!(!Path::new(MEMORY).exists() || error.raw_os_error() == Some(libc::EOPNOTSUPP), "{error}")
            }
        }
        assert!(MemoryStalls::open(Path::new("/nonexistent")).is_err());
    }
}
