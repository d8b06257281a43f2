//! A mount namespace for one test.
#![allow(unsafe_code)]

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` in a thread with a mount namespace of its own, which takes all its mounts along when it ends. Threads
/// started by the test (also those of a runtime made there) share it.
pub fn in_mount_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        // SAFETY: affects this thread and those it starts, all of which belong to the test.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("the test runs as root");
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("/ is a mount");
        test()
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
