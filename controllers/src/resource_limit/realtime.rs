//! Time of real-time processes that ResourceLimits declare. Pure, but for [`budgets`].

use kube::ResourceExt;
use nodelet_crds::resource_limit::{self, ResourceLimit};
use nodelet_drivers::cgroups::{Budgets, Realtime};
use nodelet_drivers::ids::CgroupPath;

use super::MAX_DEPTH;
use crate::context::Context;

/// What is declared on this node, by the cgroups that it is declared for. Only for passes that began after all
/// ResourceLimits had been read: a cgroup whose declaration is unknown would be taken its time.
pub fn budgets(ctx: &Context) -> Budgets {
    let known = ctx.stores.resource_limits.state();
    let is_here =
        |limit: &ResourceLimit| limit.spec.node_selector.as_ref().is_none_or(|s| s.matches(&ctx.settings.node_labels));
    let all: Vec<&ResourceLimit> = known.iter().map(|limit| &**limit).collect();
    let here = all.iter().filter(|limit| is_here(limit));
    here.filter_map(|limit| Some((path(limit, &all, ctx.drivers.cgroups.parent())?, declared(limit)?))).collect()
}

/// In microseconds of a second.
pub(super) fn declared(limit: &ResourceLimit) -> Option<u64> {
    limit.spec.cpu.as_ref()?.realtime.map(|realtime| of(realtime).per_second())
}

/// As the driver has it.
pub fn of(declared: resource_limit::Realtime) -> Realtime {
    Realtime { runtime: declared.runtime_microseconds.into(), period: declared.period_microseconds.into() }
}

/// `None` where a parent is missing, which keeps all below it from being made.
fn path(limit: &ResourceLimit, all: &[&ResourceLimit], top: &CgroupPath) -> Option<CgroupPath> {
    let namespace = limit.namespace().unwrap_or_default();
    let mut chain = vec![limit];
    while let Some(parent) = chain.last().and_then(|limit| limit.spec.parent.as_deref()) {
        let is_it = |l: &&&ResourceLimit| l.namespace() == limit.namespace() && l.name_any() == parent;
        chain.push(all.iter().find(is_it).filter(|_| chain.len() < MAX_DEPTH)?);
    }
    chain.iter().rev().try_fold(top.clone(), |path, limit| path.limit(&namespace, &limit.name_any()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_time_belongs_to_the_nested_cgroup() {
        let limit = |name: &str, parent: Option<&str>, realtime: serde_json::Value| -> ResourceLimit {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": name, "namespace": "a"},
                "spec": {"parent": parent, "cpu": {"realtime": realtime}},
            }))
            .unwrap()
        };
        let all = [
            limit("top", None, serde_json::json!({"runtimeMicroseconds": 200_000})),
            limit("half", Some("top"), serde_json::json!({"runtimeMicroseconds": 1_000, "periodMicroseconds": 10_000})),
            limit("plain", Some("top"), serde_json::Value::Null),
            limit("loop", Some("loop"), serde_json::json!({"runtimeMicroseconds": 1})),
            limit("lost", Some("nobody"), serde_json::json!({"runtimeMicroseconds": 1})),
        ];
        let all: Vec<&ResourceLimit> = all.iter().collect();
        let path = |index: usize| path(all[index], &all, &CgroupPath::new("/n").unwrap()).map(|path| path.to_string());
        assert_eq!(path(0).as_deref(), Some("/n/limit-a.top"));
        assert_eq!(path(1).as_deref(), Some("/n/limit-a.top/limit-a.half"));
        assert_eq!((path(3), path(4)), (None, None));
        assert_eq!([0, 1, 2].map(|index| declared(all[index])), [Some(200_000), Some(100_000), None]);
    }
}
