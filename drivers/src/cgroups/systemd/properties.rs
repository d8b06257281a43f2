//! Limits as properties of a unit. Pure.

use std::collections::HashMap;

use zbus::zvariant::{OwnedValue, Value};

use super::super::v1::cpu_list;
use super::super::v2::quota;
use super::super::{CpuShare, IoLimit, Limits, Version};

/// systemd's "infinity", and "not set" of weights.
const NONE: u64 = u64::MAX;

/// Properties of a unit, in the order in which they are set.
#[derive(Debug, Default, PartialEq)]
pub(in super::super) struct Properties(Vec<(&'static str, Value<'static>)>);

impl Properties {
    /// As they are sent.
    pub(super) fn values(&self) -> Vec<(&'static str, Value<'static>)> {
        self.0.iter().map(|(name, value)| (*name, copy(value))).collect()
    }

    /// Those that differ from what a unit has.
    pub(super) fn unlike(&self, found: &HashMap<String, OwnedValue>) -> Vec<(&'static str, Value<'static>)> {
        let mut changes = Vec::new();
        for (name, value) in self.values() {
            if found.get(name).is_some_and(|found| **found == value) {
                continue;
            }
            if let Value::Array(rates) = &value
                && name.starts_with("IO")
                && !rates.is_empty()
            {
                // What is sent is added to what is there: first that goes.
                changes.push((name, rates_of(&[], |_| None)));
            }
            changes.push((name, value));
        }
        changes
    }
}

fn copy(value: &Value<'static>) -> Value<'static> {
    value.try_clone().expect("no file descriptor is among the values, and only those can fail to be copied")
}

/// Of every slice of ours: controllers are on in all of them, so that use is counted and limits can be set.
pub(super) fn of_new() -> Vec<(&'static str, Value<'static>)> {
    let mut properties = vec![("Description", Value::from("Workloads of nodelet"))];
    let accounting = ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"];
    properties.extend(accounting.map(|name| (name, Value::from(true))));
    properties
}

/// What can be set at once, whatever is used.
pub(in super::super) fn lasting(limits: &Limits, version: Version) -> Properties {
    let Limits {
        cpu_millis,
        cpu_share,
        // There is no property for it, and systemd leaves the files alone.
        realtime: _,
        cpuset,
        memory_max: _,
        memory_high: _,
        memory_low,
        swap_max,
        pids_max,
        hugepages: _,
        io,
    } = limits;
    // Of a period of a tenth of a second; systemd counts per second.
    let mut all = vec![
        ("CPUQuotaPerSecUSec", Value::from(cpu_millis.map_or(NONE, |millis| quota(millis).saturating_mul(10)))),
        ("TasksMax", Value::from(pids_max.unwrap_or(NONE))),
    ];
    match version {
        Version::V1 => all.push(("CPUShares", Value::from(cpu_share.map_or(NONE, CpuShare::shares)))),
        Version::V2 => {
            all.extend([
                ("CPUWeight", Value::from(cpu_share.map_or(NONE, CpuShare::weight))),
                ("MemoryLow", Value::from(memory_low.unwrap_or(0))),
                ("MemorySwapMax", Value::from(swap_max.unwrap_or(NONE))),
                ("AllowedCPUs", Value::from(cpuset.as_deref().map(mask).unwrap_or_default())),
                ("IOReadBandwidthMax", rates_of(io, |limit| limit.read_bytes_per_second)),
                ("IOWriteBandwidthMax", rates_of(io, |limit| limit.write_bytes_per_second)),
                ("IOReadIOPSMax", rates_of(io, |limit| limit.read_iops)),
                ("IOWriteIOPSMax", rates_of(io, |limit| limit.write_iops)),
            ]);
        }
    }
    Properties(all)
}

/// What must not be set below what is used: the limits that are in force.
pub(in super::super) fn memory(max: Option<u64>, high: Option<u64>, version: Version) -> Properties {
    let (max, high) = (Value::from(max.unwrap_or(NONE)), Value::from(high.unwrap_or(NONE)));
    Properties(match version {
        Version::V1 => vec![("MemoryLimit", max)],
        Version::V2 => vec![("MemoryMax", max), ("MemoryHigh", high)],
    })
}

/// `0-2,8` as bytes, the lowest first.
fn mask(list: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cpu in cpu_list(list) {
        let at = usize::try_from(cpu / 8).unwrap_or(0);
        if bytes.len() <= at {
            bytes.resize(at + 1, 0);
        }
        bytes[at] |= 1 << (cpu % 8);
    }
    bytes
}

fn rates_of(io: &[IoLimit], of: impl Fn(&IoLimit) -> Option<u64>) -> Value<'static> {
    let rates: Vec<(String, u64)> =
        io.iter().filter_map(|limit| of(limit).map(|rate| (limit.device.clone(), rate))).collect();
    Value::from(rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(properties: &Properties) -> HashMap<String, OwnedValue> {
        let own = |value: Value<'static>| OwnedValue::try_from(value).unwrap();
        properties.values().into_iter().map(|(name, value)| (name.to_owned(), own(value))).collect()
    }

    fn number(properties: &Properties, name: &str) -> u64 {
        let (_, value) = properties.0.iter().find(|(found, _)| *found == name).unwrap();
        value.try_into().unwrap()
    }

    #[test]
    fn limits_have_their_properties() {
        let limits = Limits {
            cpu_millis: Some(1500),
            cpu_share: Some(CpuShare::Weight(50)),
            cpuset: Some("0-1,9".to_owned()),
            memory_low: Some(5),
            pids_max: Some(7),
            ..Limits::default()
        };
        let v2 = lasting(&limits, Version::V2);
        let names = ["CPUQuotaPerSecUSec", "CPUWeight", "MemoryLow", "MemorySwapMax", "TasksMax"];
        assert_eq!(names.map(|name| number(&v2, name)), [1_500_000, 50, 5, NONE, 7]);
        assert!(v2.0.contains(&("AllowedCPUs", Value::from(vec![3_u8, 2]))));
        let v1 = lasting(&limits, Version::V1);
        assert_eq!(["CPUQuotaPerSecUSec", "CPUShares"].map(|name| number(&v1, name)), [1_500_000, 1286]);
        assert_eq!(memory(Some(1), None, Version::V1), Properties(vec![("MemoryLimit", Value::from(1_u64))]));
        let lifted = memory(None, None, Version::V2);
        assert_eq!(["MemoryMax", "MemoryHigh"].map(|name| number(&lifted, name)), [NONE, NONE]);
        // The kernel takes no less than a millisecond of a period.
        assert_eq!(number(&lasting(&Limits { cpu_millis: Some(1), ..limits }, Version::V2), names[0]), 10_000);
    }

    #[test]
    fn only_what_differs_is_sent() {
        let io = |rate| IoLimit { device: "/dev/vda".to_owned(), read_iops: Some(rate), ..IoLimit::default() };
        let limits = |rate, pids| Limits { io: vec![io(rate)], pids_max: pids, ..Limits::default() };
        let now = found(&lasting(&limits(5, None), Version::V2));
        assert_eq!(lasting(&limits(5, None), Version::V2).unlike(&now), []);
        let changes = lasting(&limits(6, Some(3)), Version::V2).unlike(&now);
        let names: Vec<_> = changes.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["TasksMax", "IOReadIOPSMax", "IOReadIOPSMax"], "rates are emptied first");
    }
}
