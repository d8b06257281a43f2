//! Removing cgroups with everything below them, processes included.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Error;
use super::files::Group;

/// Pauses between attempts double from one millisecond; with this many the last is half a second.
pub(super) const ATTEMPTS: u32 = 10;

/// Kills what `pids` finds and removes `groups` (the same cgroup in several hierarchies) with all below them.
///
/// The kernel gives a cgroup free some milliseconds after its last process has ended, and a process may fork while it
/// is being killed, so this tries again for about a second.
pub(super) fn remove(groups: &[Group], pids: impl Fn() -> Result<Vec<u32>, Error>) -> Result<(), Error> {
    for attempt in 0.. {
        kill_all(&pids)?;
        let removed = groups.iter().map(remove_once).collect::<Vec<_>>();
        match removed.into_iter().find_map(Result::err) {
            None => return Ok(()),
            Some(Error::Io { source, .. }) if attempt < ATTEMPTS && is_busy(&source) => pause(attempt),
            Some(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

#[allow(clippy::disallowed_methods)] // Nothing tells when the kernel has given a cgroup free; the contract is synchronous.
pub(super) fn pause(attempt: u32) {
    std::thread::sleep(Duration::from_millis(1 << attempt));
}

/// The deepest first: only leaves can be removed.
fn remove_once(group: &Group) -> Result<(), Error> {
    let mut all = vec![group.clone()];
    all.extend(group.descendants()?);
    for group in all.iter().rev() {
        match std::fs::remove_dir(&group.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(group.error("removing it".to_owned())(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Signals by descriptor, and only processes that are still there once it is open: a number may have gone to another
/// process in the meantime.
pub(super) fn kill_all(pids: &impl Fn() -> Result<Vec<u32>, Error>) -> Result<(), Error> {
    let open = |pid: u32| Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let own = std::process::id();
    let first: Vec<(u32, OwnedFd)> =
        pids()?.into_iter().filter(|pid| *pid != own).filter_map(|pid| Some((pid, open(pid)?))).collect();
    if first.is_empty() {
        return Ok(());
    }
    let still = pids()?;
    for (_, process) in first.iter().filter(|(pid, _)| still.contains(pid)) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    Ok(())
}
