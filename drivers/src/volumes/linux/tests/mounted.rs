//! Volumes that have to be mounted, on the real kernel.

use super::*;
use crate::testing::leave_out;
use crate::volumes::block::find_program;
use crate::volumes::paths::mount_point;
use crate::volumes::{BlockFs, NfsExport, archive, loop_device};

const MIB: u64 = 1 << 20;

fn of(source: VolumeSource, capacity: u64) -> VolumeSpec {
    VolumeSpec { source, capacity: Some(capacity), ..local("default/db") }
}

fn block(fs: BlockFs, capacity: u64) -> VolumeSpec {
    of(VolumeSource::Block(fs), capacity)
}

fn image(volumes: &LinuxVolumes) -> PathBuf {
    volumes.data_dir.join("volumes/default/db/image")
}

/// The kernel frees a device behind its last user.
fn until_no_loop(file: &Path) {
    for _ in 0..100_000 {
        if loop_device::find(file).unwrap().is_none() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("{} still has a loop device", file.display());
}

/// What a reboot leaves of the run directory.
fn reboot(volumes: &LinuxVolumes) -> LinuxVolumes {
    mounts::remove_tree(&volumes.run_dir).unwrap();
    LinuxVolumes::new(&volumes.data_dir, &volumes.run_dir).unwrap()
}

#[test]
fn memory_is_limited_and_the_limit_changes_in_place() {
    run(async |volumes, _| {
        let owner = Owner { uid: 70, gid: 71, mode: 0o700 };
        let spec = VolumeSpec { owner, ..of(VolumeSource::Tmpfs, 4 * MIB) };
        let made = volumes.ensure(&spec).await.unwrap();
        let metadata = std::fs::metadata(&made.path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), mode(&made.path)), (70, 71, 0o700));
        std::fs::write(made.path.join("row"), vec![1; 8192]).unwrap();
        assert_eq!(volumes.usage(&spec).await.unwrap().capacity_bytes, 4 * MIB);
        assert!(std::fs::write(made.path.join("big"), vec![1; 5 << 20]).is_err(), "more than it may hold");
        std::fs::remove_file(made.path.join("big")).unwrap();

        let larger = of(VolumeSource::Tmpfs, 8 * MIB);
        assert_eq!(volumes.ensure(&larger).await.unwrap(), made);
        let usage = volumes.usage(&larger).await.unwrap();
        assert_eq!((usage.capacity_bytes, usage.used_bytes), (8 * MIB, Some(8192)));
        volumes.remove(&larger, false).await.unwrap();
        assert!(made.path.join("row").exists(), "retained until the reboot");
        volumes.ensure(&larger).await.unwrap();
        volumes.remove(&larger, true).await.unwrap();
        assert!(!made.path.exists() && !volumes.is_mounted(&larger.key).unwrap());
        assert!(volumes.list().await.unwrap().is_empty());
    });
}

async fn keeps_a_filesystem(volumes: LinuxVolumes, fs: BlockFs, size: u64) {
    let made = volumes.ensure(&block(fs, size)).await.unwrap();
    assert_eq!(std::fs::read_dir(&made.path).unwrap().count(), 0, "nothing of the filesystem's own is shown");
    std::fs::write(made.path.join("row"), "1").unwrap();
    let before = volumes.usage(&block(fs, size)).await.unwrap();
    assert!(before.capacity_bytes <= size && before.capacity_bytes > size / 2, "{before:?}");

    // Another device would be another view of the same blocks.
    let device = loop_device::find(&image(&volumes)).unwrap().unwrap().path;
    volumes.ensure(&block(fs, size)).await.unwrap();
    assert_eq!(loop_device::find(&image(&volumes)).unwrap().unwrap().path, device);

    volumes.ensure(&block(fs, size * 2)).await.unwrap();
    let after = volumes.usage(&block(fs, size * 2)).await.unwrap();
    assert!(after.capacity_bytes > size, "it grew: {after:?}");
    assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1");
    volumes.ensure(&block(fs, size)).await.unwrap();
    assert_eq!(volumes.usage(&block(fs, size)).await.unwrap().capacity_bytes, after.capacity_bytes, "never shrinks");

    let volumes = reboot(&volumes);
    until_no_loop(&image(&volumes));
    assert!(!volumes.list().await.unwrap()[0].complete);
    assert!(volumes.check_mounted(&made.path).await.is_err(), "nobody writes into the empty mount point");
    assert_eq!(volumes.ensure(&block(fs, size)).await.unwrap(), made);
    volumes.check_mounted(&made.path).await.unwrap();
    assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1");

    volumes.remove(&block(fs, size), false).await.unwrap();
    until_no_loop(&image(&volumes));
    assert!(image(&volumes).exists(), "retained");
    volumes.ensure(&block(fs, size)).await.unwrap();
    assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1", "adopted by name");
    volumes.remove(&block(fs, size), true).await.unwrap();

    assert!(volumes.list().await.unwrap().is_empty() && !image(&volumes).exists());
}

#[test]
fn ext4_in_a_file() {
    run(async |volumes, _| keeps_a_filesystem(volumes, BlockFs::Ext4, 32 * MIB).await);
}

#[test]
fn xfs_in_a_file() {
    if find_program("mkfs.xfs").is_some() {
        run(async |volumes, _| keeps_a_filesystem(volumes, BlockFs::Xfs, 300 * MIB).await);
    } else {
        run(async |volumes, _| {
            let error = volumes.ensure(&block(BlockFs::Xfs, 300 * MIB)).await.unwrap_err().to_string();
            assert!(error.contains("install the package xfsprogs"), "{error}");
            assert!(!image(&volumes).exists());
        });
    }
}

#[test]
fn a_filesystem_that_was_cut_off_is_made_whole() {
    run(async |volumes, scratch| {
        let spec = block(BlockFs::Ext4, 32 * MIB);
        let made = volumes.ensure(&spec).await.unwrap();
        for n in 0..50 {
            std::fs::write(made.path.join(format!("file{n}")), "x").unwrap();
        }
        std::fs::write(made.path.join("row"), "acknowledged").unwrap();
        std::fs::File::open(made.path.join("row")).unwrap().sync_all().unwrap();
        std::fs::write(made.path.join("late"), "perhaps").unwrap();
        // As the power failure leaves it: mounted, with a journal that has not been replayed.
        std::fs::copy(image(&volumes), scratch.join("cut")).unwrap();
        volumes.remove(&spec, false).await.unwrap();
        until_no_loop(&image(&volumes));
        std::fs::rename(scratch.join("cut"), image(&volumes)).unwrap();
        volumes.ensure(&spec).await.unwrap();
        assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "acknowledged");
    });
}

#[test]
fn a_full_disk_is_told_and_harms_nothing() {
    run(async |volumes, _| {
        let size = |size: &str| {
            let options = std::ffi::CString::new(format!("size={size}")).unwrap();
            let at = volumes.data_dir.join("volumes");
            if is_mount(&at) {
                rustix::mount::mount_remount(&at, MountFlags::empty(), options.as_c_str()).unwrap();
            } else {
                mount("t", &at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
            }
        };
        size("24m");
        let error = volumes.ensure(&block(BlockFs::Ext4, 32 * MIB)).await.unwrap_err();
        let cause = told(&error);
        assert!(cause.starts_with("reserving the space of") && cause.contains("No space left"), "{cause}");
        assert!(cause.contains("24.0 MiB free of 24.0 MiB"), "{cause}");
        let left: Vec<_> = std::fs::read_dir(volumes.data_dir.join("volumes/default/db")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing but its description: {left:?}");

        size("48m");
        let made = volumes.ensure(&block(BlockFs::Ext4, 32 * MIB)).await.unwrap();
        std::fs::write(made.path.join("row"), "1").unwrap();
        let problem = volumes.ensure(&block(BlockFs::Ext4, 64 * MIB)).await.unwrap().capacity_problem.unwrap();
        assert!(problem.starts_with("growing") && problem.contains("No space left"), "{problem}");
        assert_eq!(std::fs::metadata(image(&volumes)).unwrap().len(), 32 * MIB);
        assert!(volumes.usage(&block(BlockFs::Ext4, 64 * MIB)).await.unwrap().capacity_bytes < 32 * MIB);
        assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1");

        size("96m");
        assert_eq!(volumes.ensure(&block(BlockFs::Ext4, 64 * MIB)).await.unwrap().capacity_problem, None);
        assert!(volumes.usage(&block(BlockFs::Ext4, 64 * MIB)).await.unwrap().capacity_bytes > 32 * MIB);
        assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1");
        volumes.remove(&block(BlockFs::Ext4, 64 * MIB), true).await.unwrap();
    });
}

#[test]
fn who_writes_to_a_frozen_filesystem_waits_for_the_copy() {
    run(async |volumes, scratch| {
        let spec = block(BlockFs::Ext4, 32 * MIB);
        let made = volumes.ensure(&spec).await.unwrap();
        let row = made.path.join("row");
        std::fs::write(&row, "before").unwrap();
        let frozen = archive::freeze(&made.path).unwrap();
        let late = row.clone();
        let writer = std::thread::spawn(move || std::fs::write(late, "after"));
        let mut file = Vec::new();
        archive::write(&made.path, &mut file).unwrap();
        assert!(archive::freeze(&made.path).is_err(), "one at a time");
        assert!(!writer.is_finished());
        drop(frozen);
        writer.join().unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&row).unwrap(), "after");
        archive::read(&scratch, &file[..]).unwrap();
        assert_eq!(std::fs::read_to_string(scratch.join("row")).unwrap(), "before");
        volumes.remove(&spec, true).await.unwrap();
    });
}

#[test]
fn only_our_mounts_without_a_volume_go() {
    run(async |volumes, scratch| {
        let (kept, lost) = (of(VolumeSource::Tmpfs, MIB), VolumeKey::new("default/lost").unwrap());
        volumes.ensure(&kept).await.unwrap();
        let stranger = mount_point(&volumes.run_dir, &lost);
        for at in [&stranger, &scratch] {
            std::fs::create_dir_all(at).unwrap();
            mount("t", at, "tmpfs", MountFlags::empty(), None).unwrap();
        }
        let volumes = LinuxVolumes::new(&volumes.data_dir, &volumes.run_dir).unwrap();
        assert!(!stranger.exists() && is_mount(&scratch));
        assert!(volumes.is_mounted(&kept.key).unwrap());
        volumes.remove(&kept, true).await.unwrap();
    });
}

#[test]
fn what_cannot_be_is_named() {
    run(async |volumes, _| {
        let message = async |spec: &VolumeSpec| volumes.ensure(spec).await.unwrap_err().to_string();
        let small = message(&block(BlockFs::Xfs, MIB)).await;
        assert!(small.starts_with("capacity: 1048576 bytes are too few for xfs"), "{small}");
        let export = NfsExport { server: "no such name".to_owned(), path: "/x".to_owned(), read_only: false };
        let nowhere = of(VolumeSource::Nfs(export), MIB);
        assert!(message(&nowhere).await.starts_with("mounting no such name:/x"));
        volumes.remove(&nowhere, true).await.unwrap();
        assert!(volumes.list().await.is_ok_and(|all| all.iter().all(|volume| volume.key != nowhere.key)));
    });
}

/// The export that `NODELET_NFS_EXPORT` names, as `server:path`: that of `make vm` is of its own kernel.
fn an_export(read_only: bool) -> Option<VolumeSpec> {
    let Ok(named) = std::env::var("NODELET_NFS_EXPORT") else {
        leave_out("an export, by NODELET_NFS_EXPORT");
        return None;
    };
    let (server, path) = named.split_once(':').expect("NODELET_NFS_EXPORT is server:path");
    let export = NfsExport { server: server.to_owned(), path: path.to_owned(), read_only };
    Some(VolumeSpec { source: VolumeSource::Nfs(export), ..local("default/share") })
}

#[test]
fn an_export_is_written_and_left_behind() {
    let (Some(spec), Some(reader)) = (an_export(false), an_export(true)) else { return };
    run(async move |volumes, _| {
        let made = volumes.ensure(&spec).await.unwrap();
        assert_eq!(made.path, mount_point(&volumes.run_dir, &spec.key));
        std::fs::write(made.path.join("row"), "1").unwrap();
        assert!(volumes.usage(&spec).await.unwrap().used_bytes.is_some());
        volumes.check_mounted(&made.path).await.unwrap();
        let part = volumes.ensure_sub_path(&SandboxId::new("s1").unwrap(), &made.path, "a/b").await.unwrap();
        std::fs::write(part.join("deep"), "2").unwrap();
        volumes.remove_ephemeral(&SandboxId::new("s1").unwrap()).await.unwrap();

        let volumes = reboot(&volumes);
        assert!(volumes.check_mounted(&made.path).await.is_err(), "not mounted yet");
        assert_eq!(volumes.ensure(&spec).await.unwrap(), made);
        assert_eq!(std::fs::read_to_string(made.path.join("a/b/deep")).unwrap(), "2");
        volumes.remove(&spec, true).await.unwrap();
        assert!(!volumes.is_mounted(&spec.key).unwrap() && !made.path.exists());

        volumes.ensure(&reader).await.unwrap();
        assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1", "what is exported is never deleted");
        let error = std::fs::write(made.path.join("row"), "2").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        volumes.remove(&reader, true).await.unwrap();
    });
}

#[test]
fn an_export_whose_server_hangs_keeps_nobody_else() {
    let threads = Path::new("/proc/fs/nfsd/threads");
    let Some(spec) = an_export(false) else { return };
    if !threads.exists() {
        return leave_out("a file server of this kernel");
    }
    run(async move |volumes, _| {
        let made = volumes.ensure(&spec).await.unwrap();
        std::fs::write(made.path.join("row"), "1").unwrap();
        std::fs::write(threads, "0").unwrap();
        // What is asked for is not in the kernel's cache.
        let error = volumes.usage(&spec).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("timed out"), "{error}: {cause}");
        let other = of(VolumeSource::Tmpfs, MIB);
        volumes.ensure(&other).await.unwrap();
        volumes.remove(&other, true).await.unwrap();
        // Lazily, as nobody answers.
        volumes.remove(&spec, true).await.unwrap();
        assert!(!volumes.is_mounted(&spec.key).unwrap());
        std::fs::write("/proc/fs/nfsd/portlist", "tcp 2049").unwrap();
        std::fs::write(threads, "2").unwrap();
        std::fs::write("/proc/fs/nfsd/v4_end_grace", "Y").unwrap();
        let again = volumes.ensure(&spec).await.unwrap();
        assert_eq!(std::fs::read_to_string(again.path.join("row")).unwrap(), "1");
        volumes.remove(&spec, true).await.unwrap();
    });
}
