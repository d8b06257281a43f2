use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::mount::{MountFlags, mount};

use super::super::conformance::{self, ephemeral, files as of_files, local};
use super::*;
use crate::sandbox::sandbox_dir;
use crate::testing::in_mount_namespace;
use crate::volumes::{Ephemeral, Owner};

mod full;
mod mounted;

/// Runs an async test on empty directories in a mount namespace of its own.
fn run<F: Future<Output = ()>>(test: impl FnOnce(LinuxVolumes, PathBuf) -> F + Send + 'static) {
    in_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let volumes = LinuxVolumes::new(dir.path().join("data"), dir.path().join("run")).unwrap();
        let scratch = dir.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        runtime.block_on(test(volumes, scratch));
        mounts::unmount_all(dir.path()).unwrap();
    });
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn keeps_the_contract() {
    run(async |volumes, scratch| conformance::run(&volumes, &scratch).await);
}

#[test]
fn owner_and_mode_are_set_when_it_is_made_and_kept_afterwards() {
    run(async |volumes, scratch| {
        let owner = Owner { uid: 999, gid: 998, mode: 0o2750 };
        let given = VolumeSource::LocalPath(scratch.join("given"));
        for source in [VolumeSource::Local, given] {
            let spec = VolumeSpec { owner, source, ..local("default/db") };
            let made = volumes.ensure(&spec).await.unwrap();
            let metadata = std::fs::metadata(&made.path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid(), mode(&made.path)), (999, 998, 0o2750));
            std::fs::set_permissions(&made.path, Permissions::from_mode(0o700)).unwrap();
            volumes.ensure(&spec).await.unwrap();
            assert_eq!(mode(&made.path), 0o700, "the workload's own change stays");
        }
    });
}

#[test]
fn data_survives_its_object_and_a_lost_description() {
    run(async |volumes, _| {
        let spec = local("default/db");
        let made = volumes.ensure(&spec).await.unwrap();
        std::fs::write(made.path.join("row"), "1").unwrap();
        volumes.remove(&spec, false).await.unwrap();
        std::fs::write(made.path.with_file_name("meta.json"), "{").unwrap();
        assert!(!volumes.list().await.unwrap()[0].complete);
        volumes.ensure(&VolumeSpec { uid: "uid-2".to_owned(), ..spec.clone() }).await.unwrap();
        assert_eq!(std::fs::read_to_string(made.path.join("row")).unwrap(), "1");
        let meta = std::fs::read_to_string(made.path.with_file_name("meta.json")).unwrap();
        assert!(meta.contains("uid-2"), "{meta}");
    });
}

#[test]
fn an_interrupted_removal_is_finished_at_the_next_start() {
    run(async |volumes, _| {
        let half = volumes.removed_dir().join("x/data");
        std::fs::create_dir_all(&half).unwrap();
        assert!(volumes.list().await.unwrap().is_empty());
        LinuxVolumes::new(&volumes.data_dir, &volumes.run_dir).unwrap();
        assert!(!half.exists());
    });
}

#[test]
fn ephemeral_directories_have_the_modes_and_sizes_of_kubernetes() {
    run(async |volumes, _| {
        let disk = volumes.ensure_ephemeral(&ephemeral("disk", Ephemeral::Disk { size_limit: None })).await.unwrap();
        assert_eq!((mode(&disk), disk.starts_with(&volumes.data_dir)), (0o777, true));
        for size in [1_u64 << 20, 2 << 20, 5000] {
            let memory = ephemeral("memory", Ephemeral::Memory { size_limit: Some(size) });
            let path = volumes.ensure_ephemeral(&memory).await.unwrap();
            let stat = rustix::fs::statvfs(&path).unwrap();
            assert_eq!((stat.f_blocks * stat.f_frsize, mode(&path)), (size.div_ceil(4096) * 4096, 0o777));
            assert!(is_mount(&path) && path.starts_with(&volumes.run_dir));
        }
        let secret = volumes.ensure_ephemeral(&ephemeral("cert", of_files(&[("key", "s")], true))).await.unwrap();
        assert!(is_mount(&secret), "secrets are never on disk");
        assert_eq!(std::fs::read_to_string(secret.join("key")).unwrap(), "s");
        volumes.remove_ephemeral(&SandboxId::new("s1").unwrap()).await.unwrap();
        assert!(!disk.exists() && !secret.exists());
    });
}

#[test]
fn sub_paths_go_before_what_they_show() {
    run(async |volumes, scratch| {
        let id = SandboxId::new("s1").unwrap();
        let memory = ephemeral("memory", Ephemeral::Memory { size_limit: None });
        let memory = volumes.ensure_ephemeral(&memory).await.unwrap();
        std::fs::write(scratch.join("precious"), "x").unwrap();
        for (root, sub) in [(&memory, "a"), (&scratch, "")] {
            let mounted = volumes.ensure_sub_path(&id, root, sub).await.unwrap();
            std::fs::write(mounted.join("written"), "x").unwrap();
            assert!(root.join(sub).join("written").exists());
        }
        volumes.remove_ephemeral(&id).await.unwrap();
        assert!(scratch.join("precious").exists() && scratch.join("written").exists());
        assert!(!sandbox_dir(&volumes.run_dir, &id).exists());
    });
}

#[test]
fn usage_is_told_where_it_is_known() {
    run(async |volumes, scratch| {
        mount("t", &scratch, "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
        std::fs::write(scratch.join("file"), vec![0; 8192]).unwrap();
        let given = VolumeSpec { source: VolumeSource::HostPath(scratch, HostPathType::Directory), ..local("a/b") };
        volumes.ensure(&given).await.unwrap();
        assert_eq!(volumes.usage(&given).await.unwrap(), Usage { capacity_bytes: 1 << 20, used_bytes: Some(8192) });
        let own = local("default/db");
        volumes.ensure(&own).await.unwrap();
        assert_eq!(volumes.usage(&own).await.unwrap().used_bytes, None);
    });
}
