//! The two calls on a process's handle that need care: waiting for it without blocking, and the exit status of a
//! process that somebody else reaped (ioctl PIDFD_GET_INFO, since Linux 6.15; facts: the kernel's
//! `uapi/linux/pidfd.h`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A handle that is readable once the process has ended.
pub(in crate::runtime) fn watch(process: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor belongs to the `OwnedFd`, which nobody can close or replace while the `Arc` in the
    // returned value lives; `as_raw_fd` gives the same number each time.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.map_err(Into::into)
}

/// Waits for the end of a process that others may wait for, too; false if it does not come by then.
pub(in crate::runtime) async fn ends_within(process: &OwnedFd, time: Duration) -> bool {
    // A descriptor can be waited for once, so this takes one of its own.
    let Ok(process) = process.try_clone().and_then(|process| watch(Arc::new(process))) else { return false };
    tokio::time::timeout(time, process.readable()).await.is_ok()
}

/// `struct pidfd_info` in its first form; the kernel fills as much as the size in the request says.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

/// PIDFD_INFO_EXIT: ask for, and on return have, the exit status.
const EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u64 = (3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xFF << 8) | 11;

static UNSUPPORTED: AtomicBool = AtomicBool::new(false);

/// The kernel has not said that it cannot.
pub(in crate::runtime) fn is_supported() -> bool {
    !UNSUPPORTED.load(Ordering::Relaxed)
}

/// Exit status of the process behind a pidfd, 128 + signal for a signal; `None` until it is reaped.
pub(super) fn exit_code(pidfd: &impl AsFd) -> Option<u32> {
    if !is_supported() {
        return None;
    }
    let mut info = PidfdInfo { mask: EXIT, ..PidfdInfo::default() };
    // SAFETY: the descriptor is open for the duration of the call, and the kernel writes at most the size that is
    // part of the request number, which is the size of `info`.
    let result = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result < 0 {
        let error = std::io::Error::last_os_error().raw_os_error();
        // ESRCH: not reaped, or reaped by a kernel that does not keep the status.
        if matches!(error, Some(libc::ENOTTY | libc::EINVAL | libc::ENOSYS)) {
            UNSUPPORTED.store(true, Ordering::Relaxed);
        }
        return None;
    }
    if info.mask & EXIT == 0 {
        return None;
    }
    let status = info.exit_code;
    Some(if libc::WIFSIGNALED(status) {
        128 + u32::try_from(libc::WTERMSIG(status)).unwrap_or(0)
    } else {
        u32::try_from(libc::WEXITSTATUS(status)).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn a_reaped_child_still_tells() {
        for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)] {
            let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            child.wait().unwrap();
            let seen = exit_code(&pidfd);
            assert!(seen == Some(code) || (seen.is_none() && !is_supported()), "{script}: {seen:?}");
        }
    }
}
