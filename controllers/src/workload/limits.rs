//! From a container's resources to cgroup limits.

use std::collections::BTreeMap;

use nodelet_crds::quantity::Quantity;
use nodelet_crds::workload::{Container, ResourceAmounts, Resources};
use nodelet_drivers::cgroups::{CpuShare, Limits};

use crate::invalid::Invalid;
use crate::resource_limit::{self, desired::io_limits};

/// The limits of one container. A limit without a request requests as much, as in Kubernetes.
pub fn limits(path: &str, container: &Container) -> Result<Limits, Invalid> {
    let Some(resources) = &container.resources else { return Ok(Limits::default()) };
    let path = format!("{path}.resources");
    let bytes = |field: &str, quantity: Option<&Quantity>| {
        quantity.map(|q| q.bytes().map_err(|error| Invalid::field(format!("{path}.{field}"), error))).transpose()
    };
    let limits = resources.limits.as_ref();
    let cpu_limit = milli_cpu(&path, "limits", limits)?;
    let cpu_request = milli_cpu(&path, "requests", resources.requests.as_ref())?.or(cpu_limit);
    let memory_max = bytes("limits.memory", limits.and_then(|l| l.memory.as_ref()))?;
    let memory_high = bytes("memoryHigh", resources.memory_high.as_ref())?;
    if memory_high.zip(memory_max).is_some_and(|(high, max)| high > max) {
        return Err(Invalid::field(format!("{path}.memoryHigh"), "must not be above limits.memory"));
    }
    let swap_max = bytes("swapMax", resources.swap_max.as_ref())?;
    if swap_max.is_some() && memory_max.is_none() {
        return Err(Invalid::field(format!("{path}.swapMax"), "counts beside limits.memory; declare that too"));
    }
    let requested = bytes("requests.memory", resources.requests.as_ref().and_then(|r| r.memory.as_ref()))?;
    if requested.zip(memory_max).is_some_and(|(requested, max)| requested > max) {
        return Err(Invalid::field(format!("{path}.requests.memory"), "must not be above limits.memory"));
    }
    if cpu_request.zip(cpu_limit).is_some_and(|(requested, max)| requested > max) {
        return Err(Invalid::field(format!("{path}.requests.cpu"), "must not be above limits.cpu"));
    }
    Ok(Limits {
        cpu_millis: cpu_limit,
        cpu_share: cpu_request.map(|milli| CpuShare::Shares(shares(milli))),
        realtime: resources.realtime.map(resource_limit::realtime::of),
        cpuset: resources.cpus.clone(),
        memory_max,
        memory_high,
        swap_max,
        pids_max: resources.pids.map(u64::from),
        hugepages: hugepages(&path, resources)?,
        io: io_limits(&format!("{path}.io"), &resources.io)?,
        ..Limits::default()
    })
}

fn milli_cpu(path: &str, of: &str, amounts: Option<&ResourceAmounts>) -> Result<Option<u64>, Invalid> {
    let cpu = amounts.and_then(|amounts| amounts.cpu.as_ref());
    cpu.map(|q| q.milli_cpu().map_err(|error| Invalid::field(format!("{path}.{of}.cpu"), error))).transpose()
}

/// As the kubelet gives them: 1024 for a CPU, and at least 2.
fn shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// By the kernel's names of their sizes. They cannot be taken back from who has them, so a request is a limit.
fn hugepages(path: &str, resources: &Resources) -> Result<BTreeMap<String, u64>, Invalid> {
    type Field = fn(&ResourceAmounts) -> Option<&Quantity>;
    let sizes: [(&str, &str, Field); 2] = [
        ("hugepages-2Mi", "2MB", |amounts| amounts.hugepages_2mi.as_ref()),
        ("hugepages-1Gi", "1GB", |amounts| amounts.hugepages_1gi.as_ref()),
    ];
    let mut found = BTreeMap::new();
    for (field, size, of) in sizes {
        let read = |part: &str, amounts: Option<&ResourceAmounts>| {
            let quantity = amounts.and_then(of);
            quantity
                .map(|q| q.bytes().map_err(|error| Invalid::field(format!("{path}.{part}.{field}"), error)))
                .transpose()
        };
        let limit = read("limits", resources.limits.as_ref())?;
        let request = read("requests", resources.requests.as_ref())?;
        if request.is_some() && request != limit {
            return Err(Invalid::field(
                format!("{path}.requests.{field}"),
                format!("must be the same as limits.{field}"),
            ));
        }
        found.extend(limit.map(|bytes| (size.to_owned(), bytes)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use nodelet_drivers::cgroups::{IoLimit, Realtime};

    use super::*;

    fn of(resources: serde_json::Value) -> Result<Limits, Invalid> {
        let container = serde_json::json!({"name": "c", "image": "i", "resources": resources});
        limits("spec.containers[0]", &serde_json::from_value(container).unwrap())
    }

    #[test]
    fn requests_and_limits() {
        let all = of(serde_json::json!({
            "requests": {"cpu": "100m"}, "limits": {"cpu": "1500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}, "pids": 32,
            "cpus": "0-1", "memoryHigh": "48Mi", "swapMax": 0, "io": [{"device": "/dev/vda", "readIOPS": 5}],
            "realtime": {"runtimeMicroseconds": 5000}
        }))
        .unwrap();
        let expected = Limits {
            cpu_millis: Some(1500),
            cpu_share: Some(CpuShare::Shares(102)),
            realtime: Some(Realtime { runtime: 5_000, period: 1_000_000 }),
            cpuset: Some("0-1".to_owned()),
            memory_max: Some(64 << 20),
            memory_high: Some(48 << 20),
            swap_max: Some(0),
            pids_max: Some(32),
            hugepages: [("2MB".to_owned(), 4 << 20)].into(),
            io: vec![IoLimit { device: "/dev/vda".to_owned(), read_iops: Some(5), ..IoLimit::default() }],
            ..Limits::default()
        };
        assert_eq!(all, expected);
        assert_eq!(of(serde_json::json!({"limits": {"cpu": 2}})).unwrap().cpu_share, Some(CpuShare::Shares(2048)));
        assert_eq!(of(serde_json::json!({})).unwrap(), Limits::default());
    }

    #[test]
    fn what_cannot_be_names_its_field() {
        for (resources, field) in [
            (serde_json::json!({"limits": {"memory": "100m"}}), "limits.memory"),
            (serde_json::json!({"limits": {"memory": "1Mi"}, "requests": {"memory": "2Mi"}}), "requests.memory"),
            (serde_json::json!({"limits": {"cpu": 1}, "requests": {"cpu": "1001m"}}), "requests.cpu"),
            (serde_json::json!({"limits": {"memory": "1Mi"}, "memoryHigh": "2Mi"}), "memoryHigh"),
            (serde_json::json!({"swapMax": "1m"}), "swapMax"),
            (serde_json::json!({"swapMax": 0}), "swapMax"),
            (serde_json::json!({"requests": {"hugepages-1Gi": "1Gi"}}), "requests.hugepages-1Gi"),
            (
                serde_json::json!({"io": [{"device": "/dev/vda", "writeBytesPerSecond": "1m"}]}),
                "io[0].writeBytesPerSecond",
            ),
        ] {
            let error = of(resources).unwrap_err();
            assert!(error.message.starts_with(&format!("spec.containers[0].resources.{field}: ")), "{}", error.message);
        }
    }
}
