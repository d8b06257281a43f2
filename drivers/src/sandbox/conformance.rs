//! What every implementation of [`Sandboxes`] keeps. Runs on the fake and on the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{EtcFiles, NetNamespace, SandboxSpec, Sandboxes};
use crate::ids::SandboxId;

/// A usual sandbox.
pub(crate) fn spec(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: SandboxId::new(id).unwrap(),
        labels: BTreeMap::from([("owner".to_owned(), "uid-1".to_owned())]),
        hostname: "web".to_owned(),
        net: NetNamespace::New,
        host_ipc: false,
        own_users: false,
        host_uts: false,
        shared: true,
        shm_size: 1 << 20,
        sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())]),
    }
}

/// Exercises the contract; leaves nothing behind.
pub(crate) async fn run(sandboxes: &dyn Sandboxes) {
    let first = spec("first");
    assert!(sandboxes.list().await.unwrap().is_empty());
    assert_eq!(sandboxes.get(&first.id).await.unwrap(), None);
    sandboxes.remove(&first.id).await.unwrap();
    assert!(sandboxes.write_etc(&first.id, &EtcFiles::default()).await.is_err(), "there is nothing to write to");

    let made = sandboxes.ensure(&first).await.unwrap();
    assert!(made.complete);
    assert_eq!(made.spec, first);
    for path in [&made.netns, &made.ipcns, &made.utsns, &made.shm] {
        assert!(path.as_ref().unwrap().starts_with(sandboxes.dir(&first.id)));
    }
    assert_eq!(sandboxes.ensure(&first).await.unwrap(), made, "twice is the same as once");
    assert_eq!(sandboxes.get(&first.id).await.unwrap().as_ref(), Some(&made));
    let other_hostname = SandboxSpec { hostname: "other".to_owned(), ..first.clone() };
    assert!(sandboxes.ensure(&other_hostname).await.is_err(), "it has to be removed first");

    let of = |id: &SandboxId| NetNamespace::Of(id.clone());
    let joined = SandboxSpec { net: of(&first.id), ..spec("joined") };
    assert!(sandboxes.ensure(&joined).await.is_err(), "parameters of a network namespace go with its owner");
    let joined = SandboxSpec { sysctls: BTreeMap::new(), ..joined };
    assert_eq!(sandboxes.ensure(&joined).await.unwrap().netns, made.netns);
    let lost = SandboxSpec { net: of(&SandboxId::new("nobody").unwrap()), sysctls: BTreeMap::new(), ..spec("lost") };
    assert!(sandboxes.ensure(&lost).await.is_err(), "there is nothing to join");
    sandboxes.remove(&lost.id).await.unwrap();

    let host = SandboxSpec { net: NetNamespace::Host, host_ipc: true, host_uts: true, ..spec("host") };
    let host = SandboxSpec { sysctls: BTreeMap::new(), ..host };
    let on_host = sandboxes.ensure(&host).await.unwrap();
    assert_eq!((on_host.netns, on_host.ipcns, on_host.utsns, on_host.shm), (None, None, None, None));

    let alone = SandboxSpec { shared: false, ..spec("alone") };
    let of_one = sandboxes.ensure(&alone).await.unwrap();
    assert!(of_one.complete && of_one.netns.is_some());
    assert_eq!((of_one.ipcns, of_one.utsns, of_one.shm), (None, None, None));
    let sysctls = BTreeMap::from([("kernel.shmmni".to_owned(), "77".to_owned())]);
    let refused = SandboxSpec { sysctls, ..alone.clone() };
    sandboxes.remove(&alone.id).await.unwrap();
    assert!(sandboxes.ensure(&refused).await.is_err(), "the namespace that they belong to is not the sandbox's");
    sandboxes.remove(&alone.id).await.unwrap();

    let through = SandboxSpec { net: of(&host.id), sysctls: BTreeMap::new(), ..spec("through") };
    assert!(sandboxes.ensure(&through).await.is_err(), "the node's network is no sandbox's to share");

    let ids: Vec<String> = sandboxes.list().await.unwrap().iter().map(|s| s.spec.id.to_string()).collect();
    assert_eq!(ids, ["first", "host", "joined"]);

    let address: IpAddr = "10.89.1.5".parse().unwrap();
    let etc = EtcFiles { hosts: vec![(address, vec!["web".to_owned()])], ..EtcFiles::default() };
    let paths = sandboxes.write_etc(&first.id, &etc).await.unwrap();
    assert!(paths.hosts.starts_with(sandboxes.dir(&first.id)));
    assert_eq!(sandboxes.write_etc(&first.id, &EtcFiles::default()).await.unwrap(), paths);

    for spec in [&joined, &host, &first, &first] {
        sandboxes.remove(&spec.id).await.unwrap();
    }
    assert!(sandboxes.list().await.unwrap().is_empty());
}
