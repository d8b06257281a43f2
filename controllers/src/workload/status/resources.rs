//! What a container may use, in its status: what is in force, what the node sets aside, and what waits.

use nodelet_crds::common::{Condition, Time, condition_type, find_condition, set_condition};
use nodelet_crds::quantity::Quantity;
use nodelet_crds::reasons;
use nodelet_crds::workload::ResourceAmounts;
use nodelet_crds::workload::status::{RealtimeInForce, ResourcesInForce};
use nodelet_drivers::cgroups::{CpuShare, Limits};

use crate::workload::fit::Amounts;
use crate::workload::model::{Desired, Observed};

/// What is in force, in the words of the specification; `None` if nothing is limited.
pub fn in_force(limits: &Limits) -> Option<ResourcesInForce> {
    let hugepages = |size: &str| limits.hugepages.get(size).copied().map(Quantity::from_bytes);
    let most = ResourceAmounts {
        cpu: limits.cpu_millis.map(Quantity::from_milli_cpu),
        memory: limits.memory_max.map(Quantity::from_bytes),
        hugepages_2mi: hugepages("2MB"),
        hugepages_1gi: hugepages("1GB"),
    };
    // A share tells the request that it was made from, a thousandth of a CPU more or less.
    let requested = |share: CpuShare| match share {
        CpuShare::Shares(shares) => Some(Quantity::from_milli_cpu((shares * 1000).div_ceil(1024))),
        CpuShare::Weight(_) => None,
    };
    let least = ResourceAmounts { cpu: limits.cpu_share.and_then(requested), ..Default::default() };
    let found = ResourcesInForce {
        requests: Some(least).filter(|amounts| *amounts != ResourceAmounts::default()),
        limits: Some(most).filter(|amounts| *amounts != ResourceAmounts::default()),
        pids: limits.pids_max,
        cpus: limits.cpuset.clone(),
        realtime: limits
            .realtime
            .map(|given| RealtimeInForce { runtime_microseconds: given.runtime, period_microseconds: given.period }),
        memory_high: limits.memory_high.map(Quantity::from_bytes),
        swap_max: limits.swap_max.map(Quantity::from_bytes),
    };
    Some(found).filter(|found| *found != ResourcesInForce::default())
}

/// What the node sets aside for a container; `None` for nothing.
pub fn allocated(requests: Amounts) -> Option<ResourceAmounts> {
    let some = |amount: u64| Some(amount).filter(|amount| *amount > 0);
    let amounts = ResourceAmounts {
        cpu: some(requests.cpu_millis).map(Quantity::from_milli_cpu),
        memory: some(requests.memory_bytes).map(Quantity::from_bytes),
        ..Default::default()
    };
    Some(amounts).filter(|amounts| *amounts != ResourceAmounts::default())
}

/// Conditions `ResizePending` and `ResizeInProgress`, which are there only while they hold, as in Kubernetes.
pub fn set_conditions(
    conditions: &mut Vec<Condition>,
    desired: &Desired,
    observed: &Observed,
    generation: Option<i64>,
    now: &Time,
) {
    let unfinished: Vec<_> = desired
        .init
        .iter()
        .chain(&desired.containers)
        .filter_map(|wish| {
            let current =
                observed.containers.iter().filter(|c| c.is_live() && c.name == wish.name && c.hash == wish.hash);
            let mut unlike = current.filter(|c| c.container.limits != wish.limits);
            unlike.find_map(|c| c.resize.as_ref().filter(|last| last.wanted == wish.limits))
        })
        .collect();
    let held = desired.resize.as_ref().map(|held| (held.reason, held.message.clone()));
    let of = |is_pending: bool| {
        let mut all = unfinished
            .iter()
            .filter(|last| [reasons::INFEASIBLE, reasons::DEFERRED].contains(&last.reason) == is_pending);
        all.next().map(|last| (last.reason, last.message.clone()))
    };
    for (type_, found) in
        [(condition_type::RESIZE_PENDING, held.or_else(|| of(true))), (condition_type::RESIZE_IN_PROGRESS, of(false))]
    {
        match found {
            Some((reason, message)) => {
                set_condition(conditions, type_, true, reason, message, generation, now.clone());
            }
            None => conditions.retain(|condition| condition.type_ != type_),
        }
    }
}

/// What is new about resizes since `before`: reasons and messages for Events.
pub fn news<'a>(before: &[Condition], after: &'a [Condition]) -> impl Iterator<Item = (&'a str, &'a str)> {
    let before: Vec<(String, String)> = before.iter().map(|c| (c.type_.clone(), c.reason.clone())).collect();
    let types = [condition_type::RESIZE_PENDING, condition_type::RESIZE_IN_PROGRESS];
    let found = types.into_iter().filter_map(|type_| find_condition(after, type_));
    found
        .filter(move |c| !before.contains(&(c.type_.clone(), c.reason.clone())))
        .map(|c| (c.reason.as_str(), c.message.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_reads_as_it_was_declared() {
        assert_eq!(in_force(&Limits::default()), None);
        let declared = serde_json::json!({
            "requests": {"cpu": "100m"}, "limits": {"cpu": "1500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"}, "pids": 32,
            "cpus": "0-1", "memoryHigh": "48Mi", "swapMax": "0",
            "realtime": {"runtimeMicroseconds": 5000, "periodMicroseconds": 50000},
        });
        let container = serde_json::json!({"name": "c", "image": "i", "resources": declared});
        let container = serde_json::from_value(container).unwrap();
        let limits = crate::workload::limits::limits("spec.containers[0]", &container).unwrap();
        assert_eq!(serde_json::to_value(in_force(&limits)).unwrap(), declared);
        assert_eq!(allocated(Amounts::default()), None);
        let some = allocated(Amounts { cpu_millis: 100, memory_bytes: 32 << 20 });
        assert_eq!(serde_json::to_value(some).unwrap(), serde_json::json!({"cpu": "100m", "memory": "32Mi"}));
    }
}
