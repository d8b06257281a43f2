//! Kernel parameters below `/proc/sys/net`, which shows those of the calling thread's network namespace.

use std::io;
use std::path::{Path, PathBuf};

/// A parameter that was changed: its name, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedSysctl {
    /// With dots, such as `net.ipv4.ip_forward`.
    pub name: String,
    /// The value before.
    pub before: String,
    /// The value now.
    pub now: String,
}

/// Path of a parameter given with slashes, since link names may hold dots.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

/// The value, without white space around it; `None` if the kernel has no such parameter.
pub(super) fn read(name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path(name)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets it if it differs, and says what it was then. A parameter the kernel does not have is left out.
pub(super) fn ensure(name: &str, value: &str) -> io::Result<Option<ChangedSysctl>> {
    match read(name)? {
        Some(before) if before != value => {
            std::fs::write(path(name), value)?;
            let name = format!("net.{}", name.replace('/', "."));
            Ok(Some(ChangedSysctl { name, before, now: value.to_owned() }))
        }
        _ => Ok(None),
    }
}

/// Turns on IPv6 forwarding without losing the node's own default route: a forwarding link ignores router
/// advertisements unless `accept_ra` is 2.
pub(super) fn ensure_ipv6_forwarding() -> io::Result<Vec<ChangedSysctl>> {
    const FORWARDING: &str = "ipv6/conf/all/forwarding";
    if read(FORWARDING)?.as_deref() != Some("0") {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    for entry in std::fs::read_dir(path("ipv6/conf"))? {
        let link = entry?.file_name();
        let name = format!("ipv6/conf/{}/accept_ra", link.to_string_lossy());
        if read(&name)?.as_deref() == Some("1") {
            changes.extend(ensure(&name, "2")?);
        }
    }
    changes.extend(ensure(FORWARDING, "1")?);
    Ok(changes)
}
