//! Who else sees the mounts below the run directory.
//!
//! Pinned namespaces and shared memory are mounts. The container runtime has to see them; every other mount namespace
//! that sees them holds on to them for longer than it should. So:
//!
//! - On the node itself (systemd makes every mount shared) the run directory becomes a private mount on itself:
//!   containerd lives in the same mount namespace and sees everything, services with namespaces of their own get no
//!   copies.
//! - In a container, containerd lives in another mount namespace and sees only what propagates. The mount that the
//!   run directory came with (`mountPropagation: Bidirectional`) is left as it is, and so is any that is there already.

use std::io;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::mounts::{self, MountPoint};

/// Inode of the first PID namespace (`PROC_PID_INIT_INO` in the kernel): outside of any container.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What to do with the run directory.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Mounts there go where they should.
    Leave,
    /// Make it a private mount on itself.
    MakePrivate,
}

/// Makes mounts below `run_dir`, which exists, visible to those who should see them. Changes nothing when called again.
pub(super) fn prepare(run_dir: &Path) -> io::Result<()> {
    prepare_as(run_dir, on_the_node_itself())
}

fn prepare_as(run_dir: &Path, on_node: bool) -> io::Result<()> {
    match decide(&mounts::table()?, run_dir, on_node) {
        Action::Leave => Ok(()),
        Action::MakePrivate => {
            mount_bind(run_dir, run_dir)?;
            Ok(mount_change(run_dir, MountPropagationFlags::PRIVATE)?)
        }
    }
}

fn decide(table: &[MountPoint], run_dir: &Path, on_node: bool) -> Action {
    // Of several mounts at one place the last covers the others, and the last is what max_by_key returns.
    let holding = table.iter().filter(|mount| run_dir.starts_with(&mount.path));
    match holding.max_by_key(|mount| mount.path.components().count()) {
        Some(mount) if on_node && mount.shared && mount.path != run_dir => Action::MakePrivate,
        _ => Action::Leave,
    }
}

/// Whether this process is in no container and in the mount namespace of the node's first process.
fn on_the_node_itself() -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &str| std::fs::metadata(path).map(|metadata| metadata.ino()).ok();
    let own = inode("/proc/thread-self/ns/mnt");
    inode("/proc/self/ns/pid") == Some(FIRST_PID_NAMESPACE) && own.is_some() && own == inode("/proc/1/ns/mnt")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn only_a_shared_directory_on_the_node_is_made_private() {
        let mount = |path: &str, shared| MountPoint { path: path.into(), shared };
        let host = [mount("/", true), mount("/run", true)];
        let run_dir = Path::new("/run/nodelet");
        assert_eq!(decide(&host, run_dir, true), Action::MakePrivate);
        assert_eq!(decide(&host, run_dir, false), Action::Leave, "in a container the host must see our mounts");
        assert_eq!(decide(&[mount("/", true), mount("/run", false)], run_dir, true), Action::Leave);
        for shared in [true, false] {
            let done = [mount("/", true), mount("/run", true), mount("/run/nodelet", shared)];
            assert_eq!(decide(&done, run_dir, true), Action::Leave, "it was decided before");
        }
        let covered = [mount("/run", true), mount("/run", false)];
        assert_eq!(decide(&covered, run_dir, true), Action::Leave, "the upper of two mounts counts");
    }

    /// A node whose `/run` is shared with a second mount namespace; `inside` runs in the second.
    fn two_namespaces(inside: impl FnOnce(&Path) + Send + 'static) -> bool {
        in_mount_namespace(move || {
            let dir = tempfile::tempdir().unwrap();
            rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            mount_change(dir.path(), MountPropagationFlags::SHARED).unwrap();
            let run_dir = dir.path().join("nodelet");
            std::fs::create_dir(&run_dir).unwrap();
            let path = run_dir.clone();
            std::thread::spawn(move || {
                #[allow(unsafe_code)]
                // SAFETY: only this thread's view of mounts changes.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
                inside(&path);
            })
            .join()
            .unwrap();
            let seen = mounts::table().unwrap().iter().any(|mount| mount.path.ends_with("pin"));
            mounts::unmount_all(dir.path()).unwrap();
            seen
        })
    }

    fn pin(run_dir: &Path) {
        let pin = run_dir.join("pin");
        std::fs::write(&pin, "").unwrap();
        mount_bind("/proc/thread-self/ns/net", &pin).unwrap();
    }

    #[test]
    fn the_host_sees_what_is_pinned_in_a_container() {
        assert!(two_namespaces(|run_dir| {
            prepare_as(run_dir, false).unwrap();
            pin(run_dir);
        }));
    }

    #[test]
    fn nobody_sees_what_is_pinned_on_the_node() {
        assert!(!two_namespaces(|run_dir| {
            for _ in 0..2 {
                prepare_as(run_dir, true).unwrap();
            }
            assert_eq!(mounts::table().unwrap().iter().filter(|mount| mount.path == run_dir).count(), 1);
            pin(run_dir);
        }));
    }

    #[test]
    fn this_test_runs_in_a_namespace_of_its_own() {
        in_mount_namespace(|| assert!(!on_the_node_itself()));
    }
}
