//! What every implementation of [`Cgroups`] keeps. Runs on the fake and on the kernel.

use super::{Cgroups, CpuShare, Limits};
use crate::ids::{CgroupPath, SandboxId};

/// Exercises the contract below the parent of `cgroups`, which it leaves without children.
pub(crate) fn run(cgroups: &dyn Cgroups) {
    let parent = cgroups.parent().clone();
    let group = parent.below("group").unwrap();
    let inner = group.below("inner").unwrap();
    let leaf = inner.below("leaf").unwrap();

    assert_eq!(cgroups.stat(&leaf).unwrap(), None, "an absent cgroup has no use");
    assert_eq!(cgroups.pids(&leaf).unwrap(), [] as [u32; 0], "an absent cgroup has no processes");
    cgroups.remove(&leaf).unwrap();

    // Parents are made, twice is the same as once.
    cgroups.ensure(&leaf, &Limits::default()).unwrap();
    cgroups.ensure(&leaf, &Limits::default()).unwrap();
    assert_eq!(cgroups.list().unwrap(), [group.clone(), inner.clone(), leaf.clone()], "deepest last");
    let stat = cgroups.stat(&group).unwrap().expect("it exists");
    assert_eq!((stat.pids, stat.oom_kills), (0, 0));

    // Limits are set, changed and lifted.
    let limits = Limits {
        cpu_millis: Some(1500),
        cpu_share: Some(CpuShare::Weight(50)),
        memory_max: Some(64 << 20),
        pids_max: Some(50),
        ..Limits::default()
    };
    cgroups.ensure(&group, &limits).unwrap();
    cgroups.ensure(&group, &Limits { memory_max: Some(128 << 20), ..limits.clone() }).unwrap();
    cgroups.ensure(&group, &Limits { memory_max: Some(32 << 20), ..limits }).unwrap();
    cgroups.ensure(&group, &Limits::default()).unwrap();

    // Paths that are not ours are refused.
    let foreign = CgroupPath::new("/somebody-elses").unwrap();
    assert!(cgroups.ensure(&foreign, &Limits::default()).is_err());
    assert!(cgroups.remove(&foreign).is_err());
    let neighbour = CgroupPath::new(format!("{parent}x")).unwrap();
    assert!(cgroups.ensure(&neighbour, &Limits::default()).is_err(), "a common prefix is not a parent");

    cgroups.remove(&inner).unwrap();
    assert_eq!(cgroups.list().unwrap(), std::slice::from_ref(&group));
    cgroups.remove(&group).unwrap();
    cgroups.remove(&group).unwrap();
    assert_eq!(cgroups.list().unwrap(), [] as [CgroupPath; 0]);

    // A sandbox's are found below whichever ResourceLimits, and no other's.
    let limit = parent.limit("default", "tenants").unwrap();
    let id = SandboxId::new("web.example-1a2b").unwrap();
    let places = [&parent, &limit, &limit.limit("default", "inner").unwrap()].map(|at| at.sandbox(&id).unwrap());
    for place in &places {
        cgroups.ensure(place, &Limits::default()).unwrap();
    }
    cgroups.ensure(&limit.sandbox(&SandboxId::new("other").unwrap()).unwrap(), &Limits::default()).unwrap();
    let mut found = cgroups.of_sandbox(&id).unwrap();
    found.sort_by_key(|path| path.as_str().len());
    assert_eq!(found, places);
    cgroups.remove(&limit).unwrap();
    assert_eq!(cgroups.of_sandbox(&id).unwrap(), places[..1]);
    cgroups.remove(&places[0]).unwrap();
    assert_eq!(cgroups.list().unwrap(), [] as [CgroupPath; 0]);
}
