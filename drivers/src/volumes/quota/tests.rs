//! On filesystems with project quotas, where the kernel has them (as that of `make vm`).

use std::ffi::CString;
use std::fs;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;
use crate::ids::SandboxId;
use crate::mounts;
use crate::testing::in_mount_namespace;
use crate::volumes::block::find_program;
use crate::volumes::conformance::{ephemeral, local};
use crate::volumes::linux::LinuxVolumes;
use crate::volumes::{Ephemeral, VolumeSource, VolumeSpec, Volumes, loop_device};

const MIB: u64 = 1 << 20;

/// Runs the test below a filesystem that limits projects. Where there is none, says so, unless it has to be there.
fn on(
    kind: &str,
    size: u64,
    mkfs: &'static [&'static str],
    test: impl AsyncFnOnce(LinuxVolumes, PathBuf) + Send + 'static,
) {
    let kind = kind.to_owned();
    in_mount_namespace(move || {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("fs"));
        let mounted = || -> Result<(), String> {
            let program = find_program(&format!("mkfs.{kind}")).ok_or("its mkfs is not installed")?;
            File::create(&image).and_then(|file| file.set_len(size)).map_err(|error| error.to_string())?;
            let made = Command::new(program).args(mkfs).arg(&image).output().map_err(|error| error.to_string())?;
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let device = loop_device::attach(&image).map_err(|error| error.to_string())?;
            fs::create_dir(&at).unwrap();
            let kind = CString::new(kind.as_str()).unwrap();
            mount(&device.path, &at, &kind, MountFlags::empty(), Some(c"prjquota"))
                .map_err(|error| error.to_string())?;
            let support = project::support(open_directory(&at).unwrap()).map_err(|error| error.to_string())?;
            if support == Support::Enforced { Ok(()) } else { Err(format!("the kernel says {support:?}")) }
        };
        if let Err(why) = mounted() {
            assert!(std::env::var_os("NODELET_PROJECT_QUOTAS").is_none(), "{kind} without project quotas: {why}");
            #[allow(clippy::print_stderr)] // shown by the test runner
            {
                eprintln!("not tested: {kind} without project quotas: {why}");
            }
        } else {
            // Whoever has it passes the limits of ext4; containers do not have it.
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::SYS_RESOURCE);
            set_capabilities(None, sets).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let volumes = LinuxVolumes::new(at.join("data"), dir.path().join("run")).unwrap();
            let scratch = at.join("scratch");
            fs::create_dir(&scratch).unwrap();
            runtime.block_on(test(volumes, scratch));
        }
        mounts::unmount_all(dir.path()).unwrap();
    });
}

fn on_each(test: impl AsyncFnOnce(LinuxVolumes, PathBuf) + Copy + Send + 'static) {
    on("ext4", 64 * MIB, &["-q", "-F", "-O", "project,quota", "-E", "quotatype=prjquota,nodiscard"], test);
    on("xfs", 300 * MIB, &["-q", "-K"], test);
}

fn limited(key: &str, source: VolumeSource, mib: Option<u64>) -> VolumeSpec {
    VolumeSpec { source, capacity: mib.map(|mib| mib * MIB), ..local(key) }
}

/// Writes so many bytes, all the way to the disk.
fn write(path: &Path, mib: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let written = file.write_all(&vec![1; usize::try_from(mib * MIB).unwrap()]).and_then(|()| file.sync_all());
    if written.is_err() {
        fs::remove_file(path).unwrap();
    }
    written
}

fn projects(volumes: &LinuxVolumes) -> Vec<u32> {
    read(&volumes.data_dir().join("projects")).unwrap().into_keys().collect()
}

#[test]
fn a_directory_holds_no_more_than_its_capacity() {
    on_each(async |volumes, _| {
        let spec = |mib| limited("default/a", VolumeSource::Local, mib);
        let made = volumes.ensure(&spec(Some(4))).await.unwrap();
        assert_eq!(made.capacity_problem, None);
        write(&made.path.join("three"), 3).unwrap();
        let usage = volumes.usage(&spec(Some(4))).await.unwrap();
        assert_eq!(usage.capacity_bytes, 4 * MIB);
        assert!((3 * MIB..=3 * MIB + 65536).contains(&usage.used_bytes.unwrap()), "{usage:?}");
        write(&made.path.join("too-much"), 2).unwrap_err();

        // The other one has a limit of its own.
        let other = limited("default/b", VolumeSource::Local, Some(8));
        let path = volumes.ensure(&other).await.unwrap().path;
        write(&path.join("six"), 6).unwrap();
        assert_eq!(projects(&volumes).len(), 2);

        // In place, up, down below its use, and away.
        volumes.ensure(&spec(Some(8))).await.unwrap();
        write(&made.path.join("two"), 2).unwrap();
        assert_eq!(volumes.ensure(&spec(Some(1))).await.unwrap().capacity_problem, None);
        write(&made.path.join("more"), 1).unwrap_err();
        volumes.ensure(&spec(None)).await.unwrap();
        write(&made.path.join("ten"), 10).unwrap();
        let usage = volumes.usage(&spec(None)).await.unwrap();
        assert!(usage.capacity_bytes > 32 * MIB && usage.used_bytes.unwrap() >= 15 * MIB, "{usage:?}");

        volumes.remove(&other, false).await.unwrap();
        assert_eq!(projects(&volumes).len(), 2, "retained data keeps its limit");
        volumes.remove(&other, true).await.unwrap();
        volumes.remove(&spec(None), true).await.unwrap();
        assert!(!volumes.data_dir().join("projects").exists());
    });
}

#[test]
fn what_a_given_path_holds_is_counted_and_left_behind_without_a_limit() {
    on_each(async |volumes, scratch| {
        let given = scratch.join("given");
        fs::create_dir_all(given.join("deep/er")).unwrap();
        write(&given.join("deep/er/file"), 3).unwrap();
        fs::create_dir(given.join("theirs")).unwrap();
        project::put(File::open(given.join("theirs")).unwrap(), 7, true).unwrap();
        let source = VolumeSource::LocalPath(given.clone());
        let spec = limited("default/given", source.clone(), Some(4));
        assert_eq!(volumes.ensure(&limited("default/given", source, None)).await.unwrap().capacity_problem, None);
        assert!(projects(&volumes).is_empty(), "nobody asked for it");
        assert_eq!(volumes.ensure(&spec).await.unwrap().capacity_problem, None);
        assert!(volumes.usage(&spec).await.unwrap().used_bytes.unwrap() >= 3 * MIB);
        write(&given.join("deep/more"), 2).unwrap_err();
        write(&given.join("theirs/more"), 2).unwrap();
        volumes.remove(&spec, true).await.unwrap();
        let number = |path: &str| project::of(File::open(given.join(path)).unwrap()).unwrap();
        for path in ["", "deep", "deep/er/file"] {
            assert_eq!(number(path), (0, false), "{path}");
        }
        assert_eq!(number("theirs"), (7, true));
        write(&given.join("deep/more"), 2).unwrap();

        project::put(File::open(&given).unwrap(), 7, true).unwrap();
        let problem = volumes.ensure(&spec).await.unwrap().capacity_problem.unwrap();
        assert!(problem.contains("it is in project 7, which is not nodelet's"), "{problem}");
        assert!(projects(&volumes).is_empty());
    });
}

#[test]
fn directories_of_sandboxes_are_limited_until_they_go() {
    on_each(async |volumes, _| {
        let cache = |mib: u64| ephemeral("cache", Ephemeral::Disk { size_limit: Some(mib * MIB) });
        let path = volumes.ensure_ephemeral(&cache(2)).await.unwrap();
        write(&path.join("one"), 1).unwrap();
        write(&path.join("two"), 2).unwrap_err();
        volumes.ensure_ephemeral(&cache(4)).await.unwrap();
        write(&path.join("two"), 2).unwrap();
        volumes.remove_ephemeral(&SandboxId::new("s1").unwrap()).await.unwrap();
        assert!(projects(&volumes).is_empty());
    });
}

#[test]
fn a_crash_between_any_two_steps_is_made_good() {
    on_each(async |volumes, scratch| {
        let spec = limited("default/a", VolumeSource::Local, Some(4));
        let path = volumes.ensure(&spec).await.unwrap().path;
        fs::create_dir(path.join("sub")).unwrap();
        write(&path.join("sub/file"), 2).unwrap();
        let again = || LinuxVolumes::new(volumes.data_dir(), scratch.join("run")).unwrap();
        let number = projects(&volumes)[0];
        // Between the record and the last file: the top has its project, what is below has none.
        let file = volumes.data_dir().join("projects").join(number.to_string());
        fs::write(&file, serde_json::to_vec(&Record { path: path.clone(), whole: false }).unwrap()).unwrap();
        for inner in ["sub", "sub/file"] {
            project::put(File::open(path.join(inner)).unwrap(), 0, false).unwrap();
        }
        let volumes = again();
        assert!(volumes.usage(&spec).await.unwrap().used_bytes.unwrap() < MIB);
        volumes.ensure(&spec).await.unwrap();
        assert!(volumes.usage(&spec).await.unwrap().used_bytes.unwrap() >= 2 * MIB);

        // The records are lost, or damaged: the directory knows.
        fs::write(&file, "{").unwrap();
        let volumes = again();
        volumes.ensure(&spec).await.unwrap();
        assert_eq!(projects(&volumes), [number]);
        assert!(volumes.usage(&spec).await.unwrap().used_bytes.unwrap() >= 2 * MIB);

        // Its directory is gone, its record is not.
        fs::remove_dir_all(&path).unwrap();
        assert!(projects(&again()).is_empty());
    });
}

#[test]
fn without_project_quotas_it_is_said_and_nothing_is_recorded() {
    in_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        mount("t", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        let projects = Projects::open(dir.path()).unwrap();
        let path = dir.path().join("volume");
        fs::create_dir(&path).unwrap();
        let why = projects.ensure(&path, Some(MIB), true).unwrap().unwrap();
        assert!(why.ends_with("is not limited: its filesystem has no project quotas that nodelet can use"), "{why}");
        assert_eq!(projects.ensure(&path, None, true).unwrap(), None);
        assert_eq!(projects.quota(&path).unwrap(), None);
        assert!(!dir.path().join("projects").exists());
        mounts::unmount_all(dir.path()).unwrap();
    });
}
