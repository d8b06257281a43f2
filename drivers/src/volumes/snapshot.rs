//! The files of an image, mounted from the directories of a snapshot.
//!
//! # Contract
//! - Always read-only: whoever has a writable way to these directories changes the image for everybody.
//! - Any number of layers: the kernel takes a page of options, so the directories are named relative to the one they
//!   share, by a thread that works there.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::SnapshotMount;

/// The one mount that shows the snapshot, if it is of a kind that can be mounted here.
pub(super) fn can_be_mounted(mounts: &[SnapshotMount]) -> io::Result<&SnapshotMount> {
    let problem = match mounts {
        [snapshot] if ["bind", "overlay"].contains(&snapshot.kind.as_str()) => return Ok(snapshot),
        [other] => format!("they are of type {}", other.kind),
        _ => "they are made of several mounts".to_owned(),
    };
    Err(io::Error::other(format!("this snapshotter's images cannot be mounted: {problem}")))
}

/// Mounts it at `at`, which is a directory.
pub(super) fn mount_read_only(mounts: &[SnapshotMount], at: &Path) -> io::Result<()> {
    let snapshot = can_be_mounted(mounts)?;
    if snapshot.kind == "overlay" {
        return overlay(&snapshot.options, at);
    }
    mount_bind(&snapshot.source, at)?;
    Ok(mount_remount(at, MountFlags::BIND | FLAGS, c"")?)
}

const FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NODEV).union(MountFlags::NOSUID);

fn overlay(options: &[String], at: &Path) -> io::Result<()> {
    let layers = options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<PathBuf> = layers.unwrap_or_default().split(':').map(PathBuf::from).collect();
    let top = shared_parent(&layers).ok_or_else(|| io::Error::other("the snapshot has no layers"))?;
    let relative: Vec<String> =
        layers.iter().map(|layer| layer.strip_prefix(&top).unwrap_or(layer).to_string_lossy().into_owned()).collect();
    let data = CString::new(format!("lowerdir={}", relative.join(":")))?;
    let at = at.to_owned();
    let mounted = std::thread::spawn(move || {
        // SAFETY: only the working directory of this thread, which ends here, becomes its own.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::chdir(&top)?;
        mount("overlay", &at, "overlay", FLAGS, Some(data.as_c_str()))
    });
    Ok(mounted.join().map_err(|_| io::Error::other("the mounting thread ended early"))??)
}

/// The deepest directory that all are below.
fn shared_parent(paths: &[PathBuf]) -> Option<PathBuf> {
    let first = paths.first()?;
    first.ancestors().skip(1).find(|parent| paths.iter().all(|path| path.starts_with(parent))).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn as_many_layers_as_an_image_may_have() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let deep = dir.path().join("a-directory-with-a-long-name/that/is/deep/snapshots");
            let layers: Vec<String> = (0..127).map(|n| format!("{}/{n}/fs", deep.display())).collect();
            for (n, layer) in layers.iter().enumerate() {
                std::fs::create_dir_all(layer).unwrap();
                std::fs::write(format!("{layer}/{n}"), "x").unwrap();
            }
            let options = vec!["index=off".to_owned(), format!("lowerdir={}", layers.join(":"))];
            assert!(options[1].len() > 4096);
            let at = dir.path().join("at");
            std::fs::create_dir(&at).unwrap();
            let snapshot = SnapshotMount { kind: "overlay".to_owned(), source: "overlay".into(), options };
            mount_read_only(&[snapshot], &at).unwrap();
            assert_eq!(std::fs::read_dir(&at).unwrap().count(), 127);
            let error = std::fs::write(at.join("0"), "y").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            crate::mounts::unmount_all(&at).unwrap();
            let bind = SnapshotMount { kind: "bind".to_owned(), source: layers[3].clone().into(), options: Vec::new() };
            mount_read_only(&[bind], &at).unwrap();
            assert!(at.join("3").exists() && std::fs::write(at.join("3"), "y").is_err());
            crate::mounts::unmount_all(&at).unwrap();
        });
    }
}
