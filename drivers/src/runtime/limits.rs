//! Limits of a container in the OCI form, for both cgroup versions, at creation and while it runs.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use containerd_client::services::v1::{UpdateContainerRequest, UpdateTaskRequest};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDeviceBuilder};

use super::containerd::Shared;
use super::node::Node;
use super::record::{self, Journal, RESOURCES_TYPE};
use super::{Error, TaskState, list};
use crate::cgroups::{IoLimit, Limits, Version};
use crate::ids::ContainerId;

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
    let Limits { cpu_millis, cpu_weight, cpuset, memory_max, memory_high, memory_low, swap_max, pids_max, io } = limits;
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
    match (node.cgroup_version, cpu_weight, update) {
        (Version::V1, Some(weight), _) => {
            cpu.set_shares(Some(shares(*weight)));
        }
        (Version::V1, None, true) => {
            cpu.set_shares(Some(1024));
        }
        (Version::V2, Some(weight), _) => {
            unified.insert("cpu.weight".to_owned(), weight.to_string());
        }
        (Version::V2, None, true) => {
            unified.insert("cpu.weight".to_owned(), "100".to_owned());
        }
        (_, None, false) => {}
    }
    cpu.set_cpus(cpuset.clone());

    let mut memory = LinuxMemory::default();
    let unlimited = update.then_some(-1);
    memory.set_limit(memory_max.map(clamp).or(unlimited));
    // The OCI specification counts swap together with memory. Without a memory limit there is no sum.
    if node.swap_limit {
        let sum = memory_max.zip(*swap_max).map(|(memory, swap)| clamp(memory.saturating_add(swap)));
        memory.set_swap(sum.or(unlimited));
    }
    match node.cgroup_version {
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
    if !io.is_empty() {
        resources.set_block_io(Some(block_io(io)?));
    }
    if !unified.is_empty() {
        resources.set_unified(Some(unified));
    }
    Ok(resources)
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Version 1 shares (2 to 262144) of a version 2 weight (1 to 10000), the inverse of runc's and the kubelet's
/// conversion.
fn shares(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9_999
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
    let metadata = std::fs::metadata(device).map_err(|e| invalid(format!("{device}: {e}")))?;
    if !metadata.file_type().is_block_device() {
        return Err(invalid(format!("{device} is not a block device")));
    }
    let number = metadata.rdev();
    Ok((i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number))))
}

/// See [`super::Runtime::update_limits`]. The kernel comes first and the record last, so that what the record says
/// is true: whoever compares it with what is wanted repeats an update that was cut short.
pub(super) async fn update(shared: &Shared, id: &ContainerId, limits: &Limits) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let doing = || format!("changing the limits of container {id}");
    let mut record = record::get(shared, id).await?.ok_or_else(|| record::absent(id))?;
    let mut journal = Journal::of(&record).ok_or_else(|| record::absent(id))?;
    let has_task = list::get(shared, id).await?.is_some_and(|container| {
        matches!(container.state, TaskState::Running { .. } | TaskState::Created { .. } | TaskState::Paused { .. })
    });
    if has_task {
        let resources = resources(limits, &shared.node, Purpose::Update)?;
        let request = containerd.request(UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(record::json_any(RESOURCES_TYPE, &resources)?),
            ..Default::default()
        });
        containerd.tasks().update(request).await.map_err(|status| containerd.error(doing(), status))?;
    }
    journal.spec.limits = limits.clone();
    journal.put(&mut record)?;
    let mask = prost_types::FieldMask { paths: vec!["extensions".to_owned()] };
    let request = containerd.request(UpdateContainerRequest { container: Some(record), update_mask: Some(mask) });
    containerd.containers().update(request).await.map_err(|status| containerd.error(doing(), status))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(version: Version) -> Node {
        let mut node = Node::observe(std::path::Path::new("/nonexistent"));
        node.cgroup_version = version;
        node.swap_limit = true;
        node
    }

    fn json(limits: &Limits, version: Version, purpose: Purpose) -> serde_json::Value {
        serde_json::to_value(resources(limits, &node(version), purpose).unwrap()).unwrap()
    }

    #[test]
    fn weights_become_shares_and_back() {
        assert_eq!((shares(1), shares(100), shares(10_000)), (2, 2597, 262_144));
        // runc's way back.
        assert_eq!(1 + (shares(100) - 2) * 9_999 / 262_142, 99);
    }

    #[test]
    fn limits_of_a_new_container() {
        let limits = Limits {
            cpu_millis: Some(1500),
            cpu_weight: Some(50),
            memory_max: Some(1000),
            swap_max: Some(10),
            memory_high: Some(900),
            pids_max: Some(7),
            ..Limits::default()
        };
        let v1 = json(&limits, Version::V1, Purpose::Create);
        assert_eq!(v1["cpu"], serde_json::json!({"quota": 150_000, "period": 100_000, "shares": 1286}));
        assert_eq!(v1["memory"], serde_json::json!({"limit": 1000, "swap": 1010}));
        assert_eq!(v1["pids"]["limit"], 7);
        let v2 = json(&limits, Version::V2, Purpose::Create);
        assert_eq!(v2["unified"], serde_json::json!({"cpu.weight": "50", "memory.high": "900"}));
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
    fn a_device_must_be_one() {
        let io = vec![IoLimit { device: "/dev/null".to_owned(), ..IoLimit::default() }];
        let error = resources(&Limits { io, ..Limits::default() }, &node(Version::V1), Purpose::Create).unwrap_err();
        assert!(error.to_string().contains("not a block device"));
    }
}
