//! NFS exports, mounted by the kernel.
//!
//! # Contract
//! - A server that does not answer keeps waiting those who use its exports and nobody else: whatever may wait for it runs
//!   on a thread of its own, at most one for each mount, and is given up for the moment after [`PATIENCE`].
//! - Unmounting is tried in earnest first, so that what was written arrives, and is lazy after that time.
//!
//! Facts: `nfs(5)`; the options that `mount.nfs` hands to the kernel.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::paths::invalid;
use super::{Error, NfsExport};

/// How long somebody waits for a server.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Calls that wait for servers, by the mount point they are about.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    calls: Arc<Mutex<HashMap<PathBuf, Arc<Call>>>>,
}

#[derive(Debug, Default)]
struct Call {
    ended: Mutex<bool>,
    change: Condvar,
}

impl Call {
    /// Whether it has ended by then.
    fn ends_until(&self, deadline: Instant) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = deadline.saturating_duration_since(Instant::now());
        let waited = self.change.wait_timeout_while(ended, rest, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.change.notify_all();
    }
}

impl Waiting {
    /// Runs `call` on a thread of its own and waits for no longer than `patience`, for earlier calls about the same
    /// mount as well; `None`: it still waits, or an earlier one does.
    pub(super) fn run<T: Send + 'static>(
        &self,
        about: &Path,
        patience: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        let own = Arc::new(Call::default());
        while let Some(earlier) = self.enter(about, &own) {
            if !earlier.ends_until(deadline) {
                return None;
            }
        }
        let (answer, answered) = sync_channel(1);
        std::thread::spawn(move || {
            // Nobody may be listening any more.
            let _ = answer.send(call());
            own.end();
        });
        answered.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Puts the call in the place of one that has ended; otherwise answers that one.
    fn enter(&self, about: &Path, call: &Arc<Call>) -> Option<Arc<Call>> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.retain(|_, call| !call.ends_until(Instant::now()));
        if let Some(earlier) = calls.get(about) {
            return Some(earlier.clone());
        }
        calls.insert(about.to_owned(), call.clone());
        None
    }
}

/// Mounts the export at `mount_point`, which is a directory.
pub(super) fn mount_export(waiting: &Waiting, export: &NfsExport, mount_point: &Path) -> Result<(), Error> {
    let (wanted, at) = (export.clone(), mount_point.to_owned());
    let result = waiting.run(mount_point, PATIENCE, move || mount_now(&wanted, &at));
    result.unwrap_or_else(|| Err(silent(export, "mounting")))
}

fn silent(export: &NfsExport, doing: &str) -> Error {
    Error::Io { doing: format!("{doing} {}:{}", export.server, export.path), source: no_answer() }
}

/// What is said of a server that does not answer.
pub(super) fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))
}

fn mount_now(export: &NfsExport, mount_point: &Path) -> Result<(), Error> {
    let doing = format!("mounting {}:{}", export.server, export.path);
    let failed = |source: io::Error| Error::Io { doing: doing.clone(), source };
    let address = address(&export.server).map_err(failed)?;
    let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    let flags = if export.read_only { MountFlags::RDONLY } else { MountFlags::empty() } | MountFlags::NODEV;
    let mut last = Errno::NODEV;
    for (kind, options) in attempts(address) {
        let data = CString::new(options).map_err(|error| failed(error.into()))?;
        match mount(format!("{host}:{}", export.path), mount_point, kind, flags, Some(data.as_c_str())) {
            Ok(()) => return Ok(()),
            // Another version may be spoken.
            Err(error @ (Errno::PROTONOSUPPORT | Errno::INVAL | Errno::NODEV | Errno::OPNOTSUPP)) => last = error,
            Err(error) => return Err(failed(error.into())),
        }
    }
    if last == Errno::NODEV {
        return Err(invalid("nfs", "the kernel of this node cannot mount NFS: it needs the module nfs".to_owned()));
    }
    Err(failed(last.into()))
}

/// Type and options, the newest version first.
fn attempts(address: IpAddr) -> [(&'static str, String); 3] {
    // Hard: an error in the middle of a write would be lost data. Programs can still be killed.
    let common = format!("hard,timeo=600,retrans=2,addr={address}");
    [
        ("nfs4", format!("vers=4.2,{common}")),
        ("nfs4", format!("vers=4.1,{common}")),
        // Locks of version 3 need a daemon of their own.
        ("nfs", format!("vers=3,nolock,mountaddr={address},{common}")),
    ]
}

fn address(server: &str) -> io::Result<IpAddr> {
    let found = (server.trim_start_matches('[').trim_end_matches(']'), 0).to_socket_addrs()?.next();
    found.map(|address| address.ip()).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

/// Takes the mount away; those who still use it keep it if it had to be done lazily.
pub(super) fn unmount_export(waiting: &Waiting, mount_point: &Path) -> io::Result<()> {
    let at = mount_point.to_owned();
    match waiting.run(mount_point, PATIENCE, move || unmount(&at, UnmountFlags::NOFOLLOW)) {
        Some(Ok(()) | Err(Errno::INVAL | Errno::NOENT)) => return Ok(()),
        Some(Err(Errno::BUSY)) => {}
        Some(Err(error)) => return Err(error.into()),
        None => tracing::warn!(path = %mount_point.display(), "the server does not answer: unmounted lazily"),
    }
    match unmount(mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn who_waits_keeps_one_thread_and_nobody_else() {
        let waiting = Waiting::default();
        let (go, gate) = sync_channel::<()>(0);
        let (hung, fine) = (Path::new("/hung"), Path::new("/fine"));
        let soon = Duration::from_millis(20);
        assert_eq!(waiting.run(hung, soon, move || gate.recv().is_ok()), None);
        assert_eq!(waiting.run(hung, soon, || panic!("not while another waits")), None::<()>);
        assert_eq!(waiting.run(fine, PATIENCE, || 1), Some(1));
        go.send(()).unwrap();
        assert_eq!(waiting.run(hung, PATIENCE, || 2), Some(2), "one that ends is waited for");
    }

    #[test]
    fn a_kernel_without_nfs_is_named() {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        if known.split_whitespace().any(|name| name.starts_with("nfs")) {
            return;
        }
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let export = NfsExport { server: "127.0.0.1".to_owned(), path: "/export".to_owned(), read_only: false };
            let error = mount_export(&Waiting::default(), &export, dir.path()).unwrap_err();
            assert_eq!(error.to_string(), "nfs: the kernel of this node cannot mount NFS: it needs the module nfs");
        });
    }
}
