//! Room on file systems: what is told when it is lacking.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file system took no more. The cause is the kernel's error.
#[derive(Debug, thiserror::Error)]
struct Lacking {
    /// Where it is mounted.
    mount_point: PathBuf,
    bytes: Part,
    inodes: Part,
    #[source]
    source: io::Error,
}

/// How much of something there is.
#[derive(Debug, Clone, Copy)]
struct Part {
    free: u64,
    total: u64,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mount_point, bytes, inodes, source: _ } = self;
        write!(f, "{} has {} free of {}", mount_point.display(), size(bytes.free), size(bytes.total))?;
        // Some file systems make them as they are needed, and count none.
        match inodes.total {
            0 => Ok(()),
            total => write!(f, ", and {} inodes of {total}", inodes.free),
        }
    }
}

/// `error` of a call on `path`: where room is lacking (`ENOSPC`, `EDQUOT`) with the numbers of the file system, and the
/// kernel's error as its cause; else as it is. The kind stays what it was.
pub(crate) fn with_numbers(path: &Path, error: io::Error) -> io::Error {
    let kind = error.kind();
    if !is_lack(kind) || error.raw_os_error().is_none() {
        return error;
    }
    let Some(at) = path.ancestors().find(|at| at.exists()) else { return error };
    let Ok(stat) = rustix::fs::statvfs(at) else { return error };
    let bytes = Part { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize };
    let inodes = Part { free: stat.f_favail, total: stat.f_files };
    io::Error::new(kind, Lacking { mount_point: mount_point(at), bytes, inodes, source: error })
}

/// Whether somewhere in the chain of `error` a file system took no more: it may by the next try.
pub fn is_lacking(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| is_lack(error.kind())))
}

fn is_lack(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The topmost directory on the way to `path` that is on the same device.
fn mount_point(path: &Path) -> PathBuf {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(path);
    path.ancestors().take_while(|at| device(at) == own).last().unwrap_or(path).to_owned()
}

/// Bytes for people, such as `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, mount};

    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn a_full_file_system_is_named_with_its_numbers() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            mount("t", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k,nr_inodes=9")).unwrap();
            let file = dir.path().join("file");
            let error = std::fs::write(&file, vec![1; 100 << 10]).unwrap_err();
            let told = with_numbers(&file, error);
            let at = dir.path().display();
            assert_eq!(told.to_string(), format!("{at} has 0 B free of 64.0 KiB, and 7 inodes of 9"));
            assert!(is_lacking(&told));
            let error = std::fs::File::open(dir.path().join("none")).unwrap_err();
            assert!(with_numbers(&file, error).raw_os_error().is_some(), "as it is");
            rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::empty()).unwrap();
        });
    }
}
