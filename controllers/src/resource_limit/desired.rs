//! From a ResourceLimit's spec to cgroup limits.

use nodelet_crds::quantity::Quantity;
use nodelet_crds::resource_limit::ResourceLimitSpec;
use nodelet_drivers::cgroups::{CpuShare, IoLimit, Limits};

use crate::invalid::Invalid;

/// The limits that the spec declares.
pub fn limits(spec: &ResourceLimitSpec) -> Result<Limits, Invalid> {
    let bytes = |path: &str, quantity: &Option<Quantity>| match quantity {
        None => Ok(None),
        Some(quantity) => quantity.bytes().map(Some).map_err(|error| Invalid::field(path, error)),
    };
    let mut limits = Limits::default();
    if let Some(cpu) = &spec.cpu {
        if let Some(max) = &cpu.max {
            limits.cpu_millis = Some(max.milli_cpu().map_err(|error| Invalid::field("spec.cpu.max", error))?);
        }
        limits.cpu_share = cpu.weight.map(|weight| CpuShare::Weight(weight.into()));
        limits.cpuset.clone_from(&cpu.cpus);
        limits.realtime = cpu.realtime.map(super::realtime::of);
    }
    if let Some(memory) = &spec.memory {
        limits.memory_max = bytes("spec.memory.max", &memory.max)?;
        limits.memory_high = bytes("spec.memory.high", &memory.high)?;
        limits.memory_low = bytes("spec.memory.low", &memory.low)?;
        limits.swap_max = bytes("spec.memory.swapMax", &memory.swap_max)?;
    }
    limits.pids_max = spec.pids.as_ref().map(|pids| u64::from(pids.max));
    limits.io = io_limits("spec.io", &spec.io)?;
    Ok(limits)
}

/// Limits of block devices.
pub(crate) fn io_limits(
    path: &str,
    declared: &[nodelet_crds::resource_limit::IoLimit],
) -> Result<Vec<IoLimit>, Invalid> {
    let bytes = |index: usize, field: &str, quantity: &Option<Quantity>| match quantity {
        None => Ok(None),
        Some(quantity) => {
            quantity.bytes().map(Some).map_err(|error| Invalid::field(format!("{path}[{index}].{field}"), error))
        }
    };
    let limit = |(index, io): (usize, &nodelet_crds::resource_limit::IoLimit)| {
        Ok(IoLimit {
            device: io.device.clone(),
            read_bytes_per_second: bytes(index, "readBytesPerSecond", &io.read_bytes_per_second)?,
            write_bytes_per_second: bytes(index, "writeBytesPerSecond", &io.write_bytes_per_second)?,
            read_iops: io.read_iops.map(u64::from),
            write_iops: io.write_iops.map(u64::from),
        })
    };
    declared.iter().enumerate().map(limit).collect()
}
