//! Memory that is kept from reclaim: in cgroup version 2 a cgroup gives to those below it no more than it has itself, so
//! each ResourceLimit and our own parent carry at least the sum of those below. Pure, but for [`keep_parent`].

use kube::ResourceExt;
use nodelet_crds::resource_limit::ResourceLimit;
use nodelet_drivers::cgroups::{Error, Excess, Limits, Version};

use crate::context::Context;

/// What the cgroup of `limit` has to carry, in bytes; `None` for nothing.
pub(super) fn carried<'a>(limit: &ResourceLimit, all: &'a [&'a ResourceLimit]) -> Option<u64> {
    Some(weigh(limit, all, super::MAX_DEPTH)).filter(|bytes| *bytes > 0)
}

fn weigh(limit: &ResourceLimit, all: &[&ResourceLimit], depth: usize) -> u64 {
    let own = limit.spec.memory.as_ref().and_then(|memory| memory.low.as_ref()?.bytes().ok()).unwrap_or(0);
    // What is deeper is refused elsewhere.
    let Some(depth) = depth.checked_sub(1) else { return own };
    let (namespace, name) = (limit.namespace(), limit.name_any());
    let below = all.iter().filter(|l| l.namespace() == namespace && l.spec.parent.as_deref() == Some(name.as_str()));
    below.fold(0_u64, |sum, l| sum.saturating_add(weigh(l, all, depth))).max(own)
}

fn top(all: &[&ResourceLimit]) -> Option<u64> {
    let tops = all.iter().filter(|limit| limit.spec.parent.is_none());
    let sum = tops.fold(0_u64, |sum, limit| sum.saturating_add(carried(limit, all).unwrap_or(0)));
    Some(sum).filter(|bytes| *bytes > 0)
}

/// Limits the cgroup of all Workloads: memory is kept for the system, and what is below keeps what it is promised.
pub async fn keep_parent(ctx: &Context) -> Result<Option<Excess>, Error> {
    let is_reserved = ctx.settings.system_reserved.memory_bytes > 0;
    let memory_max = is_reserved.then(|| ctx.settings.allocatable().memory_bytes);
    let memory_low = match ctx.drivers.cgroups.version() {
        Version::V1 => None,
        Version::V2 => {
            let known = ctx.stores.resource_limits.state();
            top(&known.iter().map(|limit| &**limit).collect::<Vec<_>>())
        }
    };
    let cgroups = ctx.drivers.cgroups.clone();
    let limits = Limits { memory_max, memory_low, ..Limits::default() };
    crate::blocking(move || cgroups.ensure(&cgroups.parent().clone(), &limits)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_above_carry_the_sum_of_those_below() {
        let limit = |name: &str, parent: Option<&str>, low: Option<&str>| -> ResourceLimit {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": name, "namespace": "a"},
                "spec": {"parent": parent, "memory": {"low": low}},
            }))
            .unwrap()
        };
        let all = [
            limit("top", None, None),
            limit("half", Some("top"), Some("64Mi")),
            limit("other", Some("top"), Some("16Mi")),
            limit("leaf", Some("half"), Some("8Mi")),
            limit("alone", None, Some("1Mi")),
            limit("loop", Some("loop"), Some("5Mi")),
        ];
        let all: Vec<&ResourceLimit> = all.iter().collect();
        let mib = |index: usize| carried(all[index], &all).map(|bytes| bytes >> 20);
        assert_eq!([0, 1, 2, 3, 4].map(mib), [Some(80), Some(64), Some(16), Some(8), Some(1)]);
        assert_eq!(top(&all).map(|bytes| bytes >> 20), Some(81));
        assert!(mib(5).is_some(), "a loop ends");
        assert_eq!(carried(&limit("none", None, None), &[]), None);
    }
}
