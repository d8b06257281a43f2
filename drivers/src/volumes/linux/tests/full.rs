//! File systems without room, on the real kernel: what is told, that nothing of what was there is touched, and that the
//! next try succeeds once there is room.

use rustix::mount::mount_remount;

use super::*;
use crate::volumes::{BlockFs, told};

/// Mounts a filesystem in memory with these limits, or changes them.
fn limit(at: &Path, limits: &str) {
    let options = std::ffi::CString::new(limits).unwrap();
    if is_mount(at) {
        mount_remount(at, MountFlags::empty(), options.as_c_str()).unwrap();
    } else {
        mount("t", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
    }
}

/// Calls `make` with room for one inode more at a time until it succeeds; it must fail first, and each time say so.
async fn with_ever_more_inodes<T>(at: &Path, mut make: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let stat = rustix::fs::statvfs(at).unwrap();
    let used = stat.f_files - stat.f_ffree;
    for more in 0..100 {
        limit(at, &format!("nr_inodes={}", used + more));
        match make().await {
            Ok(made) => {
                assert!(more > 0, "it needs no room");
                return made;
            }
            Err(error) => {
                let told = told(&error);
                let numbers = format!("inodes of {}: No space left", used + more);
                assert!(told.contains(&numbers) && told.contains(&at.display().to_string()), "{told}");
            }
        }
    }
    panic!("never enough");
}

/// Everything that a container sees.
fn seen(dir: &Path) -> Vec<(String, Option<String>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| (name.clone(), std::fs::read_to_string(dir.join(name)).ok()))
        .collect();
    all.sort();
    all
}

#[test]
fn files_that_do_not_fit_leave_the_former_ones() {
    run(async |volumes, _| {
        let disk = volumes.data_dir.join("ephemeral");
        let filled = ephemeral("conf", of_files(&[("a", "1"), ("b", "1")], false));
        limit(&disk, "size=256k");
        let path = volumes.ensure_ephemeral(&filled).await.unwrap();
        let before = seen(&path);
        let large = "x".repeat(200 << 10);
        let large = ephemeral("conf", of_files(&[("a", &large), ("b", &large)], false));
        let error = told(&volumes.ensure_ephemeral(&large).await.unwrap_err());
        assert!(
            error.starts_with("writing 2 files with 400.0 KiB to ") && error.contains("free of 256.0 KiB"),
            "{error}"
        );
        assert_eq!(seen(&path), before);
        limit(&disk, "size=1m");
        volumes.ensure_ephemeral(&large).await.unwrap();
        assert_eq!(std::fs::metadata(path.join("b")).unwrap().len(), 200 << 10);
    });
}

#[test]
fn wherever_an_update_of_files_is_cut_short_containers_see_the_former_ones() {
    run(async |volumes, _| {
        let disk = volumes.data_dir.join("ephemeral");
        limit(&disk, "nr_inodes=20");
        let path =
            volumes.ensure_ephemeral(&ephemeral("conf", of_files(&[("a", "1"), ("gone", "1")], false))).await.unwrap();
        let before = seen(&path);
        let next = ephemeral("conf", of_files(&[("a", "2"), ("new", "2"), ("sub/c", "2")], false));
        with_ever_more_inodes(&disk, async || {
            volumes.ensure_ephemeral(&next).await.inspect_err(|_| assert_eq!(seen(&path), before))
        })
        .await;
        let names: Vec<_> = seen(&path).into_iter().filter(|(name, _)| !name.starts_with("..")).collect();
        let two = Some("2".to_owned());
        assert_eq!(names, [("a".to_owned(), two.clone()), ("new".to_owned(), two), ("sub".to_owned(), None)]);
    });
}

#[test]
fn a_secret_in_full_memory_stays_what_it_was() {
    run(async |volumes, _| {
        let secret = |content: &str| ephemeral("cert", of_files(&[("key", content)], true));
        limit(&volumes.run_dir, "nr_inodes=1000");
        let path = with_ever_more_inodes(&volumes.run_dir, async || {
            volumes.ensure_ephemeral(&secret("s")).await.inspect_err(|_| {
                assert!(
                    mounts::table().unwrap().iter().all(|mount| !mount.path.ends_with("cert")),
                    "nothing is mounted"
                );
            })
        })
        .await;
        limit(&path, "size=8k");
        let before = seen(&path);
        let large = "x".repeat(20 << 10);
        let error = told(&volumes.ensure_ephemeral(&secret(&large)).await.unwrap_err());
        let expected = format!("{} has 4.0 KiB free of 8.0 KiB", path.display());
        assert!(error.starts_with("writing 1 files with 20.0 KiB") && error.contains(&expected), "{error}");
        assert_eq!(seen(&path), before);
        limit(&path, "size=64k");
        volumes.ensure_ephemeral(&secret(&large)).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("key")).unwrap(), large);
    });
}

#[test]
fn directories_are_made_once_there_is_room() {
    run(async |volumes, scratch| {
        let data = volumes.data_dir.clone();
        limit(&data, "nr_inodes=1000");
        for kept in ["volumes", "ephemeral"] {
            std::fs::create_dir(data.join(kept)).unwrap();
        }
        let disk = ephemeral("disk", Ephemeral::Disk { size_limit: None });
        let disk = with_ever_more_inodes(&data, async || volumes.ensure_ephemeral(&disk).await).await;
        assert_eq!(mode(&disk), 0o777);
        let owner = Owner { uid: 999, gid: 998, mode: 0o2750 };
        let spec = VolumeSpec { owner, ..local("default/db") };
        let made = with_ever_more_inodes(&data, async || volumes.ensure(&spec).await).await;
        let metadata = std::fs::metadata(&made.path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), mode(&made.path)), (999, 998, 0o2750));

        limit(&scratch, "nr_inodes=1000");
        let id = SandboxId::new("s1").unwrap();
        let sub = with_ever_more_inodes(&scratch, async || volumes.ensure_sub_path(&id, &scratch, "a/b").await).await;
        assert!(sub.is_dir());
        let path = scratch.join("given/path");
        let given = VolumeSpec { source: VolumeSource::LocalPath(path), ..local("default/given") };
        limit(&data, "nr_inodes=1000");
        let given = with_ever_more_inodes(&scratch, async || volumes.ensure(&given).await).await;
        assert!(given.path.is_dir());
        volumes.remove_ephemeral(&id).await.unwrap();
        mounts::unmount_all(&data).unwrap();
    });
}

#[test]
fn a_full_disk_with_ext4_keeps_files_and_recovers() {
    run(async |volumes, _| {
        let spec = VolumeSpec {
            source: VolumeSource::Block(BlockFs::Ext4),
            capacity: Some(BlockFs::Ext4.smallest()),
            ..local("default/disk")
        };
        let disk = volumes.ensure(&spec).await.unwrap().path;
        let on_it = LinuxVolumes::new(disk.join("data"), volumes.run_dir.join("other")).unwrap();
        let path = on_it.ensure_ephemeral(&ephemeral("conf", of_files(&[("a", "1")], false))).await.unwrap();
        let before = seen(&path);
        let mut filler = std::fs::File::create(disk.join("filler")).unwrap();
        for size in [64 << 10, 1] {
            while std::io::Write::write(&mut filler, &vec![0; size]).is_ok() {}
        }
        let large = "x".repeat(100 << 10);
        let large = ephemeral("conf", of_files(&[("a", &large)], false));
        let error = told(&on_it.ensure_ephemeral(&large).await.unwrap_err());
        assert!(error.contains(&format!("{} has 0 B free of 1", disk.parent().unwrap().display())), "{error}");
        assert_eq!(seen(&path), before);
        drop(filler);
        std::fs::remove_file(disk.join("filler")).unwrap();
        on_it.ensure_ephemeral(&large).await.unwrap();
        assert_eq!(std::fs::metadata(path.join("a")).unwrap().len(), 100 << 10);
        volumes.remove(&spec, true).await.unwrap();
    });
}
