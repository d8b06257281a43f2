use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::conformance::{self, spec};
use super::*;
use crate::testing::in_mount_namespace;

/// Runs an async test on an empty run directory in a mount namespace of its own.
fn run<F: Future<Output = ()>>(test: impl FnOnce(LinuxSandboxes) -> F + Send + 'static) {
    in_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sandboxes = LinuxSandboxes::new(dir.path().join("run")).unwrap();
        runtime.block_on(test(sandboxes));
        mounts::unmount_all(dir.path()).unwrap();
    });
}

/// Runs `look` in the pinned namespace.
fn inside<T: Send>(pin: &Path, kind: LinkNameSpaceType, look: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let joined = || {
            move_into_link_name_space(File::open(pin).unwrap().as_fd(), Some(kind)).unwrap();
            look()
        };
        scope.spawn(joined).join().unwrap()
    })
}

#[test]
fn keeps_the_contract() {
    run(async |sandboxes| conformance::run(&sandboxes).await);
}

#[test]
fn what_was_never_recorded_is_gone_after_the_next_start() {
    run(async |sandboxes| {
        let made = sandboxes.ensure(&spec("made")).await.unwrap();
        let (drafted, emptied) =
            (sandboxes.run_dir.join("sandboxes/drafted"), sandboxes.run_dir.join("sandboxes/emptied"));
        std::fs::create_dir(&drafted).unwrap();
        std::fs::write(drafted.join(DRAFT), "{").unwrap();
        std::fs::create_dir(&emptied).unwrap();
        let next = LinuxSandboxes::new(&sandboxes.run_dir).unwrap();
        assert!(!drafted.exists() && !emptied.exists());
        assert_eq!(next.get(&made.spec.id).await.unwrap().unwrap(), made);
    });
}

#[test]
fn namespaces_are_new_and_set_up() {
    run(async |sandboxes| {
        let mut spec = spec("s1");
        spec.sysctls.insert("kernel.shmmni".to_owned(), "77".to_owned());
        let made = sandboxes.ensure(&spec).await.unwrap();
        let netns = made.netns.unwrap();
        assert_ne!(std::fs::metadata(&netns).unwrap().ino(), std::fs::metadata("/proc/self/ns/net").unwrap().ino());
        let (port, devices) = inside(&netns, LinkNameSpaceType::Network, || {
            let port = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
            (port, std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.connect(s.local_addr()?)))
        });
        assert_eq!(port.trim(), "0");
        devices.expect("lo is up");
        let hostname = inside(&made.utsns.unwrap(), LinkNameSpaceType::HostNameAndNISDomainName, || {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        });
        assert_eq!(hostname, "web");
        let shmmni = inside(&made.ipcns.unwrap(), LinkNameSpaceType::InterProcessCommunication, || {
            std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap()
        });
        assert_eq!(shmmni.trim(), "77");
        let shm = made.shm.unwrap();
        let stat = rustix::fs::statvfs(&shm).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 1 << 20);
        assert_eq!(std::fs::metadata(&shm).unwrap().mode() & 0o7777, 0o1777);
    });
}

#[test]
fn what_is_missing_is_made_again_and_the_rest_is_kept() {
    run(async |sandboxes| {
        let spec = spec("s1");
        let made = sandboxes.ensure(&spec).await.unwrap();
        let inode = |path: &Option<PathBuf>| std::fs::metadata(path.as_ref().unwrap()).unwrap().ino();
        let before = (inode(&made.netns), inode(&made.ipcns));
        for lost in [made.utsns.as_ref().unwrap(), made.shm.as_ref().unwrap()] {
            rustix::mount::unmount(lost, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(!sandboxes.get(&spec.id).await.unwrap().unwrap().complete);
            assert!(!sandboxes.list().await.unwrap()[0].complete, "half-made ones are listed");
            assert!(sandboxes.ensure(&spec).await.unwrap().complete);
        }
        assert_eq!((inode(&made.netns), inode(&made.ipcns)), before);
        sandboxes.remove(&spec.id).await.unwrap();
    });
}

#[test]
fn any_partial_state_is_found_and_removed() {
    run(async |sandboxes| {
        let spec = spec("s1");
        // Only the state file: a crash right after the first step.
        sandboxes.write_spec(&spec).unwrap();
        assert!(!sandboxes.list().await.unwrap()[0].complete);
        assert!(sandboxes.ensure(&spec).await.unwrap().complete);
        // A damaged or lost state file hides nothing.
        let state_file = sandboxes.dir(&spec.id).join("sandbox.json");
        for damage in [|path: &Path| std::fs::write(path, "{"), |path: &Path| std::fs::remove_file(path)] {
            damage(&state_file).unwrap();
            let found = sandboxes.list().await.unwrap();
            assert_eq!((found.len(), found[0].complete, found[0].spec.labels.len()), (1, false, 0));
        }
        // Something mounted by somebody else below it goes too.
        let extra = sandboxes.dir(&spec.id).join("volumes/conf");
        std::fs::create_dir_all(&extra).unwrap();
        mount("extra", &extra, "tmpfs", MountFlags::empty(), None).unwrap();
        sandboxes.remove(&spec.id).await.unwrap();
        assert!(!sandboxes.dir(&spec.id).exists());
        let left = mounts::table().unwrap();
        assert!(left.iter().all(|mount| !mount.path.starts_with(sandboxes.dir(&spec.id))));
    });
}

#[test]
fn files_are_written_in_place() {
    run(async |sandboxes| {
        let spec = spec("s1");
        sandboxes.ensure(&spec).await.unwrap();
        let long = EtcFiles { searches: vec!["a.example".to_owned(); 5], ..EtcFiles::default() };
        let paths = sandboxes.write_etc(&spec.id, &long).await.unwrap();
        let before = std::fs::metadata(&paths.resolv_conf).unwrap().ino();
        assert_eq!(std::fs::read_to_string(&paths.hostname).unwrap(), "web\n");
        let short = EtcFiles { nameservers: vec!["10.0.0.1".parse().unwrap()], ..EtcFiles::default() };
        sandboxes.write_etc(&spec.id, &short).await.unwrap();
        let metadata = std::fs::metadata(&paths.resolv_conf).unwrap();
        assert_eq!((metadata.ino(), metadata.mode() & 0o777), (before, 0o644));
        assert!(std::fs::read_to_string(&paths.resolv_conf).unwrap().ends_with("\nnameserver 10.0.0.1\n"));
    });
}

#[test]
fn the_nodes_own_parameters_are_refused() {
    run(async |sandboxes| {
        for (name, net) in [("vm.swappiness", NetNamespace::New), ("net.ipv4.ip_forward", NetNamespace::Host)] {
            let mut spec = SandboxSpec { net, ..spec("s1") };
            spec.sysctls = [(name.to_owned(), "1".to_owned())].into();
            assert!(sandboxes.ensure(&spec).await.is_err(), "{name}");
            assert_eq!(sandboxes.get(&spec.id).await.unwrap(), None, "nothing was acquired");
        }
    });
}

#[test]
fn a_sandbox_on_the_node_needs_no_host_name() {
    run(async |sandboxes| {
        let spec = SandboxSpec { net: NetNamespace::Host, host_uts: true, hostname: String::new(), ..spec("s1") };
        let spec = SandboxSpec { sysctls: Default::default(), ..spec };
        assert!(sandboxes.ensure(&spec).await.unwrap().complete);
        let paths = sandboxes.write_etc(&spec.id, &EtcFiles::default()).await.unwrap();
        assert_ne!(std::fs::read_to_string(&paths.hostname).unwrap().trim(), "");
        sandboxes.remove(&spec.id).await.unwrap();
    });
}

#[test]
fn starting_again_changes_nothing() {
    run(async |sandboxes| {
        sandboxes.ensure(&spec("s1")).await.unwrap();
        let again = LinuxSandboxes::new(&sandboxes.run_dir).unwrap();
        assert_eq!(again.list().await.unwrap(), sandboxes.list().await.unwrap());
        assert!(again.list().await.unwrap()[0].complete);
        again.remove(&SandboxId::new("s1").unwrap()).await.unwrap();
    });
}

#[test]
fn without_room_nothing_is_left_and_what_containers_have_stays() {
    run(async |sandboxes| {
        let limit = |limits: String| {
            let options = std::ffi::CString::new(limits).unwrap();
            if is_tmpfs(&sandboxes.run_dir) {
                rustix::mount::mount_remount(&sandboxes.run_dir, MountFlags::empty(), options.as_c_str()).unwrap();
            } else {
                mount("t", &sandboxes.run_dir, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
            }
        };
        let told = |error: &Error| {
            let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
            chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        };
        limit("nr_inodes=1000".to_owned());
        std::fs::create_dir(sandboxes.run_dir.join("sandboxes")).unwrap();
        // The first inode is the root's.
        let mut room = 2;
        let made = loop {
            limit(format!("nr_inodes={room}"));
            match sandboxes.ensure(&spec("s1")).await {
                Ok(made) => break made,
                Err(error) => {
                    let told = told(&error);
                    assert!(told.contains(&format!("inodes of {room}: No space left")), "{told}");
                    // Made anew each time, so that it is cut short at another point.
                    sandboxes.remove(&spec("s1").id).await.unwrap();
                    assert_eq!(std::fs::read_dir(sandboxes.run_dir.join("sandboxes")).unwrap().count(), 0, "{told}");
                }
            }
            room += 1;
        };
        assert!(made.complete && room > 5, "{room}");

        limit("nr_inodes=1000,size=64k".to_owned());
        let hosts = |count: u8| EtcFiles {
            hosts: (0..count).map(|n| ([10, 0, 0, n].into(), vec!["a-name-that-is-long".repeat(10)])).collect(),
            ..EtcFiles::default()
        };
        let path = sandboxes.write_etc(&made.spec.id, &hosts(1)).await.unwrap().hosts;
        let before = std::fs::read_to_string(&path).unwrap();
        let filler = sandboxes.run_dir.join("filler");
        let _ = std::fs::write(&filler, vec![0; 64 << 10]);
        let error = told(&sandboxes.write_etc(&made.spec.id, &hosts(100)).await.unwrap_err());
        assert!(error.contains("etc/hosts") && error.contains("has 0 B free of 64.0 KiB"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        std::fs::remove_file(&filler).unwrap();
        sandboxes.write_etc(&made.spec.id, &hosts(100)).await.unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("10.0.0.99"));
    });
}
