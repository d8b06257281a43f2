//! Sub-paths of volumes. A container may change the volume at any time, so a path in it is resolved by the kernel in
//! one step that cannot leave the volume, and what was found is mounted by its descriptor: renaming or replacing it
//! afterwards changes nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use super::paths::{invalid, relative_parts};
use super::{Error, failed};
use crate::mounts;

const FIELD: &str = "volumeMounts.subPath";

/// Binds `sub_path` below `root` to `mount_point`, making directories that are missing.
pub(super) fn bind(root: &Path, sub_path: &str, mount_point: &Path) -> Result<(), Error> {
    let found = resolve(root, sub_path)?;
    let doing = |source| failed(mount_point, format!("mounting {sub_path:?} of {}", root.display()))(source);
    let stat = rustix::fs::fstat(&found).map_err(|error| doing(error.into()))?;
    if rustix::fs::stat(mount_point).is_ok_and(|mounted| same_file(&mounted, &stat)) {
        return Ok(());
    }
    let mount = || -> std::io::Result<()> {
        // An earlier mount of something that is gone since; containers that have it keep it.
        mounts::remove_tree(mount_point)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            std::fs::create_dir_all(mount_point)?;
        } else {
            std::fs::create_dir_all(mount_point.parent().unwrap_or(mount_point))?;
            std::fs::File::create(mount_point)?;
        }
        Ok(mount_bind(format!("/proc/thread-self/fd/{}", found.as_raw_fd()), mount_point)?)
    };
    mount().map_err(doing)
}

fn same_file(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// Opens `sub_path` below `root` as a mere handle. New directories get owner and mode of the volume's top.
fn resolve(root: &Path, sub_path: &str) -> Result<OwnedFd, Error> {
    let doing = |error: Errno| failed(root, format!("resolving {sub_path:?} in {}", root.display()))(error.into());
    let parts = relative_parts(FIELD, sub_path)?;
    let handle = OFlags::PATH | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, root, handle | OFlags::DIRECTORY, Mode::empty()).map_err(doing)?;
    let top_stat = rustix::fs::fstat(&top).map_err(doing)?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &str| {
        // EAGAIN: something was renamed meanwhile, and the kernel could not tell whether the path stayed inside.
        let mut attempts = 0;
        loop {
            match rustix::fs::openat2(&top, path, handle, Mode::empty(), beneath) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < 100 => attempts += 1,
                other => return other,
            }
        }
    };
    let refuse = |error: Errno| match error {
        Errno::XDEV => invalid(FIELD, format!("{sub_path:?} leads out of the volume")),
        Errno::LOOP | Errno::NOTDIR => invalid(FIELD, format!("{sub_path:?} cannot be resolved: {error}")),
        other => doing(other),
    };
    // Always from the top, so that links may lead anywhere within the volume.
    let mut found = open(".").map_err(doing)?;
    let mut prefix = String::new();
    for part in parts {
        prefix.push_str(part);
        found = match open(&prefix) {
            Err(Errno::NOENT) => {
                make(&found, part, &top_stat).map_err(doing)?;
                open(&prefix).map_err(|error| match error {
                    Errno::NOENT => invalid(FIELD, format!("{prefix:?} is a link that leads to nothing")),
                    other => refuse(other),
                })?
            }
            other => other.map_err(refuse)?,
        };
        prefix.push('/');
    }
    Ok(found)
}

fn make(parent: &OwnedFd, name: &str, like: &Stat) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchown(&made, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(like.st_mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn links_stay_inside_or_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../real", root.join("real/up")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("/etc", root.join("absolute")).unwrap();
        symlink("nothing", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for good in ["real", "real/up/deep", "", "./real//deep/", "new/dirs/here"] {
            resolve(&root, good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for bad in ["out", "absolute", "absolute/passwd", "dangling", "loop", "real/../..", "/etc"] {
            assert!(matches!(resolve(&root, bad), Err(Error::Invalid { .. })), "{bad}");
        }
        assert!(root.join("new/dirs/here").is_dir());
    }

    #[test]
    fn new_directories_are_like_the_top() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2775)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(1000), Some(2000)).unwrap();
        resolve(dir.path(), "a/b").unwrap();
        let made = std::fs::metadata(dir.path().join("a/b")).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 2000, 0o2775));
    }

    #[test]
    fn a_mount_stays_with_what_was_resolved() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (root, mount_point) = (dir.path().join("volume"), dir.path().join("mount"));
            std::fs::create_dir_all(root.join("sub")).unwrap();
            std::fs::write(root.join("sub/file"), "inside").unwrap();
            bind(&root, "sub", &mount_point).unwrap();
            bind(&root, "sub", &mount_point).unwrap();
            let count = || mounts::table().unwrap().iter().filter(|mount| mount.path == mount_point).count();
            assert_eq!(count(), 1, "twice is the same as once");
            std::fs::rename(root.join("sub"), root.join("moved")).unwrap();
            symlink("/etc", root.join("sub")).unwrap();
            assert_eq!(std::fs::read_to_string(mount_point.join("file")).unwrap(), "inside");
            assert!(bind(&root, "sub", &mount_point).is_err());
            // A file, and another one in its place: the mount follows when asked again.
            for text in ["one", "two"] {
                std::fs::write(root.join("next"), text).unwrap();
                std::fs::rename(root.join("next"), root.join("file")).unwrap();
                bind(&root, "file", &mount_point).unwrap();
                assert_eq!(std::fs::read_to_string(&mount_point).unwrap(), text);
            }
            mounts::remove_tree(&mount_point).unwrap();
            assert_eq!(std::fs::read_to_string(root.join("file")).unwrap(), "two");
        });
    }

    /// An attacker who owns the volume swaps directories, links and names in it all the time.
    #[test]
    fn ten_thousand_tries_under_attack_never_lead_outside() {
        const TRIES: u32 = 10_000;
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (root, outside) = (dir.path().join("volume"), dir.path().join("outside"));
            for (top, mark) in [(root.join("a"), "inside"), (outside.clone(), "outside")] {
                std::fs::create_dir_all(top.join("b/c")).unwrap();
                std::fs::write(top.join("b/c/mark"), mark).unwrap();
            }
            symlink("../outside", root.join("relative")).unwrap();
            symlink(&outside, root.join("absolute")).unwrap();
            std::fs::create_dir(root.join("elsewhere")).unwrap();
            let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let (stop, volume) = (over.clone(), root.clone());
            let attacker = std::thread::spawn(move || {
                use rustix::fs::{RenameFlags, renameat_with};
                let swap = |one: &str, other: &str| {
                    let _ = renameat_with(CWD, volume.join(one), CWD, volume.join(other), RenameFlags::EXCHANGE);
                };
                let mut swaps = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for link in ["relative", "absolute"] {
                        swap("a", link);
                        swap("a", link);
                    }
                    let _ = std::fs::rename(volume.join("a/b"), volume.join("elsewhere/b"));
                    let _ = std::fs::rename(volume.join("elsewhere/b"), volume.join("a/b"));
                    swaps += 6;
                }
                swaps
            });
            let forbidden: Vec<(u64, u64)> = ["", "b", "b/c", "b/c/mark"]
                .map(|path| std::fs::metadata(outside.join(path)).unwrap())
                .map(|found| (found.dev(), found.ino()))
                .to_vec();
            let (mut found, mut refused) = (0, 0);
            for number in 0..TRIES {
                let path = ["a/b/c", "relative/b/c/mark", "absolute/b", "a/b/c/mark"][number as usize % 4];
                // Some go all the way to the mount, which costs more.
                let seen = if number % 20 == 0 {
                    let mount_point = dir.path().join("mount");
                    bind(&root, path, &mount_point).map(|()| {
                        let seen = rustix::fs::stat(&mount_point).unwrap();
                        mounts::remove_tree(&mount_point).unwrap();
                        seen
                    })
                } else {
                    resolve(&root, path).map(|fd| rustix::fs::fstat(fd).unwrap())
                };
                match seen {
                    Ok(seen) => {
                        assert!(!forbidden.contains(&(seen.st_dev, seen.st_ino)), "{path} led outside");
                        found += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            let swaps = attacker.join().unwrap();
            assert!(found > 0 && refused > 0 && swaps > u64::from(TRIES) / 10, "{found} {refused} {swaps}");
            let mut all: Vec<_> = std::fs::read_dir(&outside).unwrap().flatten().map(|e| e.file_name()).collect();
            all.sort();
            assert_eq!(all, ["b"], "nothing was made outside");
            assert_eq!(std::fs::read_to_string(outside.join("b/c/mark")).unwrap(), "outside");
        });
    }
}
