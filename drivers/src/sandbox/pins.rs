//! Namespaces that live without a process, held by a bind mount of their file.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::FsWord;
use rustix::mount::mount_bind;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::users::{Block, Holder};

/// `NSFS_MAGIC`.
const NSFS: FsWord = 0x6e73_6673;

/// Kinds of namespaces a sandbox may own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    User,
    Net,
    Ipc,
    Uts,
}

impl Kind {
    /// Its file in `/proc/<pid>/ns`, and ours in the sandbox's `ns/`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
        }
    }

    fn flags(self) -> (UnshareFlags, LinkNameSpaceType) {
        match self {
            Self::User => (UnshareFlags::NEWUSER, LinkNameSpaceType::User),
            Self::Net => (UnshareFlags::NEWNET, LinkNameSpaceType::Network),
            Self::Ipc => (UnshareFlags::NEWIPC, LinkNameSpaceType::InterProcessCommunication),
            Self::Uts => (UnshareFlags::NEWUTS, LinkNameSpaceType::HostNameAndNISDomainName),
        }
    }
}

/// The namespaces of one sandbox.
pub(super) struct Pins {
    /// Directory of the pins; exists.
    pub(super) dir: PathBuf,
    /// The namespaces it owns, [`Kind::User`] first if there is one.
    pub(super) kinds: Vec<Kind>,
    /// The users of its user namespace.
    pub(super) users: Block,
    /// Name to set in its UTS namespace.
    pub(super) hostname: String,
    /// Kernel parameters, in the dotted form.
    pub(super) sysctls: BTreeMap<String, String>,
}

/// What failed: what we were doing, and the error.
pub(super) type Failure = (String, io::Error);

/// Whether a namespace is pinned at `path`.
pub(super) fn is_pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS)
}

impl Pins {
    /// Makes the namespaces that are missing and joins those that are there; sets all of them up; pins the new ones.
    /// A pin therefore means that its namespace is ready. Runs in a thread of its own, which ends in them.
    pub(super) fn ensure(self) -> Result<(), Failure> {
        if self.kinds.iter().all(|kind| is_pinned(&self.path(*kind))) {
            return Ok(());
        }
        let thread = std::thread::Builder::new().name("sandbox".to_owned()).spawn(move || self.ensure_here());
        let thread = thread.map_err(|error| ("starting a thread".to_owned(), error))?;
        thread.join().unwrap_or_else(|_| Err(("making namespaces".to_owned(), io::Error::other("the thread panicked"))))
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.name())
    }

    fn ensure_here(self) -> Result<(), Failure> {
        let missing: Vec<Kind> = self.kinds.iter().copied().filter(|kind| !is_pinned(&self.path(*kind))).collect();
        let holder = self.hold(&missing)?;
        let source = |kind: Kind| match &holder {
            Some(holder) => PathBuf::from(holder.path(&format!("ns/{}", kind.name()))),
            None => PathBuf::from(format!("/proc/thread-self/ns/{}", kind.name())),
        };
        // A thread cannot enter a user namespace, and need not.
        for kind in self.kinds.iter().copied().filter(|kind| *kind != Kind::User) {
            let is_missing = missing.contains(&kind);
            let path = if is_missing { source(kind) } else { self.path(kind) };
            let (unshare, join) = kind.flags();
            if !is_missing || holder.is_some() {
                let file = File::open(&path).map_err(doing(&path, "opening"))?;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(join)).map_err(doing(&path, "joining"))?;
            } else {
                // SAFETY: affects this thread only, which runs nothing but this function and then ends.
                unsafe { rustix::thread::unshare_unsafe(unshare) }.map_err(doing(&path, "making the namespace for"))?;
            }
        }
        if self.kinds.contains(&Kind::Uts) {
            rustix::system::sethostname(self.hostname.as_bytes())
                .map_err(|error| (format!("setting the host name {:?}", self.hostname), error.into()))?;
        }
        if missing.contains(&Kind::Net) {
            loopback_up().map_err(|error| ("setting lo up".to_owned(), error))?;
        }
        for (name, value) in &self.sysctls {
            let path = sysctl_path(name).map_err(|error| (format!("setting {name}"), error))?;
            std::fs::write(&path, value).map_err(|error| (format!("setting {name} to {value:?}"), error))?;
        }
        for kind in missing {
            let path = self.path(kind);
            File::options().create(true).append(true).open(&path).map_err(doing(&path, "making"))?;
            crate::failpoint::passed("the file of a namespace");
            mount_bind(source(kind), &path).map_err(doing(&path, "pinning"))?;
            crate::failpoint::passed("pinning a namespace");
        }
        Ok(())
    }

    /// A process in the namespaces that are missing, if they belong to a user namespace.
    fn hold(&self, missing: &[Kind]) -> Result<Option<Holder>, Failure> {
        if !self.kinds.contains(&Kind::User) || missing.is_empty() {
            return Ok(None);
        }
        let path = self.path(Kind::User);
        let joined = match missing.contains(&Kind::User) {
            true => None,
            false => Some(File::open(&path).map_err(doing(&path, "opening"))?),
        };
        let others = missing.iter().filter(|kind| **kind != Kind::User);
        let kinds = others.fold(UnshareFlags::empty(), |flags, kind| flags | kind.flags().0);
        let holder = Holder::start(joined.as_ref(), kinds, self.users);
        holder.map(Some).map_err(|error| ("making a user namespace".to_owned(), error))
    }
}

fn doing<E: Into<io::Error>>(path: &Path, verb: &'static str) -> impl Fn(E) -> Failure {
    let path = path.display().to_string();
    move |error| (format!("{verb} {path}"), error.into())
}

/// The namespace that a parameter belongs to; `None`: it belongs to the whole node and is refused.
pub(super) fn sysctl_kind(name: &str) -> Option<Kind> {
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    match name {
        _ if name.starts_with("net.") => Some(Kind::Net),
        _ if ipc.iter().any(|prefix| name.starts_with(prefix)) => Some(Kind::Ipc),
        "kernel.domainname" | "kernel.hostname" => Some(Kind::Uts),
        _ => None,
    }
}

/// `net.ipv4.conf.eth0/100.forwarding` is `/proc/sys/net/ipv4/conf/eth0.100/forwarding`, as in `sysctl(8)`.
fn sysctl_path(name: &str) -> io::Result<PathBuf> {
    let swapped: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    if swapped.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not the name of a kernel parameter"));
    }
    Ok(Path::new("/proc/sys").join(swapped))
}

/// Sets `lo` up in this thread's network namespace.
fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an `ifreq` is plain data, for which zeroes are valid; it outlives both calls, which read its name and
    // read or write its flags.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parameters_become_paths_below_proc_sys() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/100.forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding"),
        ] {
            assert_eq!(sysctl_path(name).unwrap(), Path::new(path));
        }
        for bad in ["net.//.x", "net..x", "", ".net", "net.//.//.kernel"] {
            assert!(sysctl_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_of_the_whole_node_belong_to_no_sandbox() {
        assert_eq!(sysctl_kind("net.core.somaxconn"), Some(Kind::Net));
        assert_eq!(sysctl_kind("kernel.shmmax"), Some(Kind::Ipc));
        for node in ["kernel.panic", "vm.swappiness", "fs.file-max", "netx"] {
            assert_eq!(sysctl_kind(node), None, "{node}");
        }
    }
}
