//! On the node's own hierarchy, below a parent of the test's own.

use super::super::linux::LinuxCgroups;
use super::super::{Cgroups as _, Limits};
use super::*;
use crate::testing::leave_out;

const ROOT: &str = "/sys/fs/cgroup";

/// A parent that nobody else uses, removed in the end.
struct Own(LinuxCgroups);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.remove(self.0.parent());
    }
}

impl Own {
    /// `None` on a machine that does not divide this time.
    fn new() -> Option<Self> {
        if !std::path::Path::new(ROOT).join("cpu").join(RUNTIME).exists() {
            leave_out("time of real-time processes in cgroups (version 1, CONFIG_RT_GROUP_SCHED)");
            return None;
        }
        let parent = CgroupPath::new(format!("/nodelet-test-{}", uuid::Uuid::new_v4().simple())).unwrap();
        Some(Self(LinuxCgroups::new(ROOT, parent)))
    }

    /// Made, as what is above it.
    fn path(&self, name: &str) -> CgroupPath {
        let path = match name {
            "" => self.0.parent().clone(),
            name => self.0.parent().join(name).unwrap(),
        };
        self.0.ensure(&path, &Limits::default()).unwrap();
        path
    }

    fn group(&self, name: &str) -> Group {
        Group::new(&std::path::Path::new(ROOT).join("cpu"), &self.path(name))
    }

    fn file(&self, name: &str, file: &str) -> String {
        self.group(name).read(file).unwrap().unwrap().trim().to_owned()
    }

    /// What each has, in microseconds of a second.
    fn has<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        names.map(|name| self.file(name, RUNTIME).parse().unwrap())
    }

    fn divide(&self, name: &str, least: u64, declared: &[(&str, u64)]) -> Result<(), Error> {
        let declared = declared.iter().map(|(name, budget)| (self.path(name), *budget)).collect();
        self.0.divide_realtime(&self.path(name), least, &declared)
    }

    /// As the OCI runtime does, and a change while the container runs.
    fn container(&self, name: &str, wanted: Option<(u64, u64)>) -> Result<(), Error> {
        let realtime = wanted.map(|(runtime, period)| Realtime { runtime, period });
        self.0.set_rest(&self.path(name), &Limits { realtime, ..Limits::default() })
    }
}

#[test]
fn those_above_have_what_those_below_need() {
    let Some(own) = Own::new() else { return };
    let all = ["", "limit-a", "limit-a/limit-b", "limit-a/limit-b/web", "limit-a/other"];
    own.path("limit-a/limit-b/web/main");
    own.path("limit-a/other");
    // Without it above, a container cannot have any.
    assert!(own.container("limit-a/limit-b/web/main", Some((5_000, 50_000))).is_err());
    for _ in 0..2 {
        own.divide("limit-a/limit-b/web", 100_000, &[]).unwrap();
        assert_eq!(own.has(all), [100_000, 100_000, 100_000, 100_000, 0]);
    }
    own.container("limit-a/limit-b/web/main", Some((5_000, 50_000))).unwrap();
    own.divide("limit-a/other", 30_000, &[]).unwrap();
    assert_eq!(own.has(all), [130_000, 130_000, 100_000, 100_000, 30_000]);

    // Less is wanted, but the container still has it; then it has less, in a period of another length.
    own.divide("limit-a/limit-b/web", 20_000, &[]).unwrap();
    assert_eq!(own.has(all), [130_000, 130_000, 100_000, 100_000, 30_000]);
    for (runtime, period) in [(20_000, 1_000_000), (2_000, 100_000), (1_000, 100_000), (20_000, 1_000_000)] {
        own.container("limit-a/limit-b/web/main", Some((runtime, period))).unwrap();
        let files = [RUNTIME, PERIOD].map(|file| own.file("limit-a/limit-b/web/main", file));
        assert_eq!(files, [runtime.to_string(), period.to_string()]);
    }
    own.divide("limit-a/limit-b/web", 20_000, &[]).unwrap();
    assert_eq!(own.has(all), [50_000, 50_000, 20_000, 20_000, 30_000]);

    // What is gone leaves its time to those above.
    own.0.remove(&own.path("limit-a/other")).unwrap();
    own.divide("limit-a", 0, &[]).unwrap();
    assert_eq!(own.has(["", "limit-a"]), [20_000, 20_000]);
    own.container("limit-a/limit-b/web/main", None).unwrap();
    own.divide("limit-a/limit-b/web", 0, &[]).unwrap();
    assert_eq!(own.has(all), [0; 5]);
}

#[test]
fn what_is_declared_is_not_passed() {
    let Some(own) = Own::new() else { return };
    let (declared, all) = ([("limit-a", 50_000)], ["", "limit-a", "limit-a/one", "limit-a/two"]);
    own.path("limit-a/one/main");
    own.path("limit-a/two");
    // Also if a member comes before the ResourceLimit itself.
    own.divide("limit-a/one", 30_000, &declared).unwrap();
    assert_eq!(own.has(all), [50_000, 50_000, 30_000, 0]);
    own.container("limit-a/one/main", Some((30_000, 1_000_000))).unwrap();
    let refused = own.divide("limit-a/two", 20_001, &declared).unwrap_err();
    assert!(
        matches!(refused, Error::NoRealtime { ref path, has: 50_000, taken: 30_000, wanted: 20_001 } if path.ends_with("limit-a")),
        "{refused}"
    );
    assert_eq!(own.has(all), [50_000, 50_000, 30_000, 0], "nothing was changed");
    own.divide("limit-a/two", 20_000, &declared).unwrap();
    assert_eq!(own.has(all), [50_000, 50_000, 30_000, 20_000]);

    // It is raised, and not lowered below what its members have, until they have less.
    own.divide("limit-a", 0, &[("limit-a", 60_000)]).unwrap();
    assert_eq!(own.has(all), [60_000, 60_000, 30_000, 20_000]);
    let refused = own.divide("limit-a", 0, &[("limit-a", 40_000)]).unwrap_err();
    assert!(matches!(refused, Error::NoRealtime { has: 40_000, wanted: 50_000, .. }), "{refused}");
    own.divide("limit-a/two", 0, &[("limit-a", 40_000)]).unwrap();
    own.divide("limit-a", 0, &[("limit-a", 40_000)]).unwrap();
    assert_eq!(own.has(all), [40_000, 40_000, 30_000, 0]);
    // One that is declared no more has what its members need.
    own.divide("limit-a", 0, &[]).unwrap();
    assert_eq!(own.has(all), [30_000, 30_000, 30_000, 0]);
    own.0.remove(&own.path("limit-a")).unwrap();
    own.divide("", 0, &[]).unwrap();
    assert_eq!(own.has([""]), [0]);
}

#[test]
fn the_node_has_only_so_much() {
    let Some(own) = Own::new() else { return };
    let refused = own.divide("web", 1_000_001, &[]).unwrap_err();
    assert!(matches!(refused, Error::NoRealtime { ref path, wanted: 1_000_001, .. } if path == "/"), "{refused}");
    assert!(refused.to_string().contains("raise the node's kernel.sched_rt_runtime_us"), "{refused}");
    assert_eq!(own.has(["", "web"]), [0, 0]);
}

#[test]
fn what_a_killed_agent_left_is_taken_back_or_completed() {
    let Some(own) = Own::new() else { return };
    let all = ["", "limit-a", "limit-a/web", "lost"];
    own.path("limit-a/web/main");
    own.divide("limit-a/web", 30_000, &[]).unwrap();
    own.path("lost/main");
    own.divide("lost", 10_000, &[]).unwrap();
    own.container("limit-a/web/main", Some((20_000, 1_000_000))).unwrap();
    own.0.return_realtime().unwrap();
    assert_eq!(own.has(all), [30_000, 30_000, 20_000, 0], "of a ResourceLimit its own pass takes it");
    own.divide("limit-a", 0, &[]).unwrap();
    assert_eq!(own.has(all), [20_000, 20_000, 20_000, 0]);
    // Killed on the way down from the top.
    give(&own.group(""), 70_000).unwrap();
    own.divide("limit-a/web", 60_000, &[]).unwrap();
    assert_eq!(own.has(all), [60_000, 60_000, 60_000, 0]);
}

#[test]
fn siblings_at_once_lose_nothing() {
    let Some(own) = Own::new() else { return };
    let names = ["a", "b", "c", "d"];
    for name in names {
        own.path(name);
    }
    std::thread::scope(|scope| {
        for name in names {
            let own = &own;
            scope.spawn(move || {
                for round in 1..=20 {
                    own.divide(name, round * 100, &[]).unwrap();
                }
            });
        }
    });
    assert_eq!(own.has(["", "a", "b", "c", "d"]), [8_000, 2_000, 2_000, 2_000, 2_000]);
}

#[test]
fn periods_are_counted_as_parts_of_a_second() {
    for (runtime, period, expected) in
        [(5_000, 100_000, 50_000), (1, 1_000_000, 1), (100, 100, 1_000_000), (1, 3, 333_334)]
    {
        assert_eq!(Realtime { runtime, period }.per_second(), expected);
    }
}

#[test]
fn without_the_file_nothing_is_divided_and_a_container_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for dir in ["cpu/n/a", "cpu"] {
        std::fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    let hierarchies = v1::Hierarchies { root: root.path().to_owned(), sysfs: "/nonexistent".into() };
    let (parent, path) = (CgroupPath::new("/n").unwrap(), CgroupPath::new("/n/a").unwrap());
    hierarchies.divide_realtime(&parent, &path, 5, &Budgets::new()).unwrap();
    hierarchies.return_realtime(&parent).unwrap();
    hierarchies.set_realtime(&path, None).unwrap();
    let error = hierarchies.set_realtime(&path, Some(Realtime { runtime: 5, period: 10 })).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cgroup /n/a: cpu.realtime needs cgroup version 1 and a kernel with CONFIG_RT_GROUP_SCHED"
    );
}
