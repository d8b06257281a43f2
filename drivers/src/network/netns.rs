//! Work inside another network namespace, done by a thread that lives for it alone.
//!
//! A thread that has changed its namespace must not serve anything else if changing back fails, so it never changes
//! back: it ends. Starting one costs some 30 µs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A pinned network namespace.
#[derive(Debug)]
pub(super) struct Netns(File);

impl Netns {
    /// Opens the pinned namespace at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// The namespace, to name it to the kernel.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` on a new thread inside the namespace.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                // Only this thread moves; `Network` also refuses a file that is no network namespace.
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
        })
    }
}
