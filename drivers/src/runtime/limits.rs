//! Limits of a container in the OCI form, for both cgroup versions, at creation and while it runs.

use std::collections::HashMap;
use std::path::Path;

use containerd_client::services::v1::{UpdateContainerRequest, UpdateTaskRequest};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimitBuilder, LinuxMemory, LinuxPids, LinuxResources,
    LinuxThrottleDeviceBuilder,
};

use super::containerd::Shared;
use super::node::Node;
use super::record::{self, Journal, RESOURCES_TYPE};
use super::{Error, TaskState, list};
use crate::cgroups::linux::LinuxCgroups;
use crate::cgroups::{self, Cgroups as _, CpuShare, Excess, IoLimit, Limits, Version, device};
use crate::ids::{CgroupPath, ContainerId};

/// Length of a CPU period in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;
/// The kernel refuses a smaller quota.
const LEAST_QUOTA: u64 = 1_000;

/// What the limits are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A new cgroup: what is not limited need not be said.
    Create,
    /// One that has limits: what is not limited must be lifted.
    Update,
}

/// The OCI form of `limits`.
pub(super) fn resources(limits: &Limits, node: &Node, purpose: Purpose) -> Result<LinuxResources, Error> {
    let Limits {
        cpu_millis,
        cpu_share,
        realtime,
        cpuset,
        memory_max,
        memory_high,
        memory_low,
        swap_max,
        pids_max,
        hugepages,
        io,
    } = limits;
    let update = purpose == Purpose::Update;
    let mut unified = HashMap::new();

    let mut cpu = LinuxCpu::default();
    if let Some(millis) = cpu_millis {
        let quota = (millis * PERIOD / 1000).max(LEAST_QUOTA);
        cpu.set_period(Some(PERIOD));
        cpu.set_quota(Some(clamp(quota)));
    } else if update {
        cpu.set_period(Some(PERIOD));
        cpu.set_quota(Some(-1));
    }
    match (node.cgroup_version, cpu_share, update) {
        // Shares are left to the runtime to convert for version 2: newer ones do it in another way.
        (Version::V1, Some(share), _) => {
            cpu.set_shares(Some(share.shares()));
        }
        (Version::V2, Some(CpuShare::Shares(shares)), _) => {
            cpu.set_shares(Some(*shares));
        }
        (Version::V2, Some(CpuShare::Weight(weight)), _) => {
            unified.insert("cpu.weight".to_owned(), weight.to_string());
        }
        (Version::V1, None, true) => {
            cpu.set_shares(Some(1024));
        }
        (Version::V2, None, true) => {
            unified.insert("cpu.weight".to_owned(), "100".to_owned());
        }
        (_, None, false) => {}
    }
    cpu.set_cpus(cpuset.clone());
    // Of one that runs the files are written, in the order that the kernel takes.
    if let (Some(realtime), false) = (realtime, update) {
        cpu.set_realtime_runtime(Some(clamp(realtime.runtime)));
        cpu.set_realtime_period(Some(realtime.period));
    }

    let mut memory = LinuxMemory::default();
    let unlimited = update.then_some(-1);
    memory.set_limit(memory_max.map(clamp).or(unlimited));
    // The OCI specification counts swap together with memory. Without a memory limit there is no sum.
    if node.swap_limit {
        let sum = memory_max.zip(*swap_max).map(|(memory, swap)| clamp(memory.saturating_add(swap)));
        memory.set_swap(sum.or(unlimited));
    }
    let lacks = |field: &str, what: &str| Error::Invalid { field: field.to_owned(), message: what.to_owned() };
    if realtime.is_some() && !node.divides_realtime {
        return Err(lacks("resources.realtime", &lacks_realtime(node)));
    }
    if swap_max.is_some() && !node.swap_limit {
        return Err(lacks("resources.swapMax", "needs swap accounting, which this node's kernel does not have on"));
    }
    match node.cgroup_version {
        Version::V1 if memory_high.is_some() => {
            return Err(lacks("resources.memoryHigh", "needs cgroup version 2; this node has version 1"));
        }
        Version::V1 => {
            memory.set_reservation(memory_low.map(clamp).or(unlimited));
        }
        Version::V2 => {
            let mut set = |file: &str, value: Option<u64>, none: &str| {
                if value.is_some() || update {
                    unified.insert(file.to_owned(), value.map_or_else(|| none.to_owned(), |v| v.to_string()));
                }
            };
            set("memory.high", *memory_high, "max");
            set("memory.low", *memory_low, "0");
            if memory_max.is_none() && swap_max.is_some() {
                set("memory.swap.max", *swap_max, "max");
            }
        }
    }

    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu));
    resources.set_memory(Some(memory));
    if pids_max.is_some() || update {
        let mut pids = LinuxPids::default();
        pids.set_limit(pids_max.map_or(-1, clamp));
        resources.set_pids(Some(pids));
    }
    if !hugepages.is_empty() {
        let limit = |(size, bytes): (&String, &u64)| {
            let builder = LinuxHugepageLimitBuilder::default().page_size(size.clone()).limit(clamp(*bytes));
            builder.build().expect("every field is given")
        };
        resources.set_hugepage_limits(Some(hugepages.iter().map(limit).collect()));
    }
    if !io.is_empty() {
        resources.set_block_io(Some(block_io(io)?));
    }
    if !unified.is_empty() {
        resources.set_unified(Some(unified));
    }
    Ok(resources)
}

fn lacks_realtime(node: &Node) -> String {
    let found = match node.cgroup_version {
        Version::V1 => "this node's kernel does not divide the time of real-time processes (CONFIG_RT_GROUP_SCHED)",
        Version::V2 => "this node has version 2, which does not divide the time of real-time processes",
    };
    format!("needs cgroup version 1 and a kernel that divides this time; {found}")
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn block_io(io: &[IoLimit]) -> Result<LinuxBlockIo, Error> {
    let [mut read_bps, mut write_bps, mut read_iops, mut write_iops] = [const { Vec::new() }; 4];
    for IoLimit { device, read_bytes_per_second, write_bytes_per_second, read_iops: riops, write_iops: wiops } in io {
        let (major, minor) = numbers(device)?;
        let rules = [
            (&mut read_bps, read_bytes_per_second),
            (&mut write_bps, write_bytes_per_second),
            (&mut read_iops, riops),
            (&mut write_iops, wiops),
        ];
        for (list, rate) in rules {
            if let Some(rate) = rate {
                let rule = LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(*rate).build();
                list.push(rule.expect("every field has a default"));
            }
        }
    }
    let mut block_io = LinuxBlockIo::default();
    block_io.set_throttle_read_bps_device(Some(read_bps));
    block_io.set_throttle_write_bps_device(Some(write_bps));
    block_io.set_throttle_read_iops_device(Some(read_iops));
    block_io.set_throttle_write_iops_device(Some(write_iops));
    Ok(block_io)
}

fn numbers(device: &str) -> Result<(i64, i64), Error> {
    let invalid = |message: String| Error::Invalid { field: "io.device".to_owned(), message };
    let disk = device::disk_number(device, Path::new("/sys")).map_err(|error| invalid(format!("{device}: {error}")))?;
    let number = disk.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    number.ok_or_else(|| invalid(format!("{device} has the number {disk:?}")))
}

/// See [`super::Runtime::update_limits`]. The kernel comes first and the record last, so that what the record says
/// is true: whoever compares it with what is wanted repeats an update that was cut short.
pub(super) async fn update(shared: &Shared, id: &ContainerId, limits: &Limits) -> Result<Option<Excess>, Error> {
    let containerd = &shared.containerd;
    let doing = || format!("changing the limits of container {id}");
    let mut record = record::get(shared, id).await?.ok_or_else(|| record::absent(id))?;
    let mut journal = Journal::of(&record).ok_or_else(|| record::absent(id))?;
    let has_task = list::get(shared, id).await?.is_some_and(|container| {
        matches!(container.state, TaskState::Running { .. } | TaskState::Created { .. } | TaskState::Paused { .. })
    });
    let mut in_force = limits.clone();
    let mut excess = None;
    if has_task {
        // Refused as a whole, before anything is changed.
        resources(limits, &shared.node, Purpose::Update)?;
        excess = lower_memory(&shared.node, &journal.spec.cgroup, limits)
            .await
            .map_err(|source| Error::Failed { doing: doing(), source: Box::new(source) })?;
        if let Some(excess) = excess {
            in_force.memory_max = excess.in_force;
            if shared.node.cgroup_version == Version::V2 {
                in_force.memory_high = Some(limits.memory_high.map_or(excess.wanted, |high| high.min(excess.wanted)));
            }
        }
        let resources = resources(&in_force, &shared.node, Purpose::Update)?;
        let request = containerd.request(UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(record::json_any(RESOURCES_TYPE, &resources)?),
            ..Default::default()
        });
        containerd.tasks().update(request).await.map_err(|status| containerd.error(doing(), status))?;
        let rest = in_force.clone();
        on_files(&shared.node, &journal.spec.cgroup, move |cgroups, path| cgroups.set_rest(path, &rest))
            .await
            .map_err(|source| Error::Failed { doing: doing(), source: Box::new(source) })?;
    }
    journal.spec.limits = in_force;
    journal.put(&mut record)?;
    let mask = prost_types::FieldMask { paths: vec!["extensions".to_owned()] };
    let request = containerd.request(UpdateContainerRequest { container: Some(record), update_mask: Some(mask) });
    containerd.containers().update(request).await.map_err(|status| containerd.error(doing(), status))?;
    Ok(excess)
}

/// The OCI runtime writes a memory limit whatever is used, which kills or fails: it is brought down first.
async fn lower_memory(node: &Node, cgroup: &CgroupPath, limits: &Limits) -> Result<Option<Excess>, cgroups::Error> {
    let Some(max) = limits.memory_max else { return Ok(None) };
    let high = limits.memory_high;
    on_files(node, cgroup, move |cgroups, path| cgroups.lower_memory(path, max, high)).await
}

/// Reads and writes the files of a cgroup beside the OCI runtime.
async fn on_files<T: Send + 'static>(
    node: &Node,
    cgroup: &CgroupPath,
    deed: impl FnOnce(&LinuxCgroups, &CgroupPath) -> Result<T, cgroups::Error> + Send + 'static,
) -> Result<T, cgroups::Error> {
    let (cgroups, path) = (node.cgroups(cgroup.clone()), cgroup.clone());
    match tokio::task::spawn_blocking(move || deed(&cgroups, &path)).await {
        Ok(result) => result,
        // A bug, which continues here as it would without the thread.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::Realtime;

    fn node(version: Version) -> Node {
        let mut node = Node::observe(std::path::Path::new("/nonexistent"));
        node.cgroup_version = version;
        node.swap_limit = true;
        node.divides_realtime = version == Version::V1;
        node
    }

    fn json(limits: &Limits, version: Version, purpose: Purpose) -> serde_json::Value {
        serde_json::to_value(resources(limits, &node(version), purpose).unwrap()).unwrap()
    }

    #[test]
    fn weights_become_shares_and_back() {
        let shares = [1, 100, 10_000].map(|weight| CpuShare::Weight(weight).shares());
        assert_eq!(shares, [2, 2597, 262_144]);
        assert_eq!(shares.map(|shares| CpuShare::Shares(shares).weight()), [1, 99, 10_000]);
        // What the kubelet gives for a tenth of a CPU and for one.
        assert_eq!([102, 1024].map(|shares| CpuShare::Shares(shares).weight()), [4, 39]);
    }

    #[test]
    fn limits_of_a_new_container() {
        let limits = Limits {
            cpu_millis: Some(1500),
            cpu_share: Some(CpuShare::Weight(50)),
            hugepages: [("2MB".to_owned(), 4 << 20)].into(),
            memory_max: Some(1000),
            swap_max: Some(10),
            memory_high: Some(900),
            pids_max: Some(7),
            ..Limits::default()
        };
        let v1 = json(&Limits { memory_high: None, ..limits.clone() }, Version::V1, Purpose::Create);
        assert_eq!(v1["cpu"], serde_json::json!({"quota": 150_000, "period": 100_000, "shares": 1286}));
        assert_eq!(v1["memory"], serde_json::json!({"limit": 1000, "swap": 1010}));
        assert_eq!(v1["pids"]["limit"], 7);
        assert_eq!(v1["hugepageLimits"], serde_json::json!([{"pageSize": "2MB", "limit": 4 << 20}]));
        let v2 = json(&limits, Version::V2, Purpose::Create);
        assert_eq!(v2["unified"], serde_json::json!({"cpu.weight": "50", "memory.high": "900"}));
        let requested = Limits { cpu_share: Some(CpuShare::Shares(102)), ..Limits::default() };
        for version in [Version::V1, Version::V2] {
            let json = json(&requested, version, Purpose::Create);
            assert_eq!(json["cpu"]["shares"], 102, "{version:?}");
            assert_eq!(json.get("unified"), None, "{version:?}");
        }
    }

    #[test]
    fn an_update_lifts_what_is_no_longer_limited() {
        let v1 = json(&Limits::default(), Version::V1, Purpose::Update);
        assert_eq!(v1["cpu"]["quota"], -1);
        assert_eq!(v1["memory"], serde_json::json!({"limit": -1, "swap": -1, "reservation": -1}));
        assert_eq!(v1["pids"]["limit"], -1);
        let v2 = json(&Limits::default(), Version::V2, Purpose::Update);
        assert_eq!(v2["unified"]["memory.high"], "max");
        assert_eq!(
            json(&Limits::default(), Version::V1, Purpose::Create),
            serde_json::json!({"cpu": {}, "memory": {}})
        );
    }

    #[test]
    fn time_of_real_time_processes_is_the_runtimes_at_first() {
        let limits = Limits { realtime: Some(Realtime { runtime: 5_000, period: 100_000 }), ..Limits::default() };
        let created = json(&limits, Version::V1, Purpose::Create);
        assert_eq!(created["cpu"], serde_json::json!({"realtimeRuntime": 5_000, "realtimePeriod": 100_000}));
        let updated = json(&limits, Version::V1, Purpose::Update);
        assert_eq!((updated["cpu"].get("realtimeRuntime"), updated["cpu"].get("realtimePeriod")), (None, None));
        let mut other_kernel = node(Version::V1);
        other_kernel.divides_realtime = false;
        for (node, lacks) in [(node(Version::V2), "this node has version 2"), (other_kernel, "CONFIG_RT_GROUP_SCHED")] {
            for purpose in [Purpose::Create, Purpose::Update] {
                let error = resources(&limits, &node, purpose).unwrap_err().to_string();
                assert!(
                    error.contains("resources.realtime: needs cgroup version 1") && error.contains(lacks),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn what_the_node_lacks_is_named() {
        let refused = |limits: &Limits, node: &Node| resources(limits, node, Purpose::Create).unwrap_err().to_string();
        let high = Limits { memory_high: Some(1), ..Limits::default() };
        assert!(refused(&high, &node(Version::V1)).contains("resources.memoryHigh"));
        let mut without_swap = node(Version::V2);
        without_swap.swap_limit = false;
        let swap = Limits { memory_max: Some(1), swap_max: Some(0), ..Limits::default() };
        assert!(refused(&swap, &without_swap).contains("resources.swapMax"));
    }

    #[test]
    fn a_device_must_be_one() {
        let io = vec![IoLimit { device: "/dev/null".to_owned(), ..IoLimit::default() }];
        let error = resources(&Limits { io, ..Limits::default() }, &node(Version::V1), Purpose::Create).unwrap_err();
        assert!(error.to_string().contains("not a block device"));
    }
}
