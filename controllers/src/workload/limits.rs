//! From a container's resources to cgroup limits.

use nodelet_crds::quantity::Quantity;
use nodelet_crds::workload::Container;
use nodelet_drivers::cgroups::Limits;

use crate::invalid::Invalid;

/// The limits of one container. A limit without a request requests as much, as in Kubernetes.
pub fn limits(path: &str, container: &Container) -> Result<Limits, Invalid> {
    let Some(resources) = &container.resources else { return Ok(Limits::default()) };
    let at = |field: &str| format!("{path}.resources.{field}");
    let cpu = |field: &str, quantity: Option<&Quantity>| {
        quantity.map(|q| q.milli_cpu().map_err(|error| Invalid::field(at(field), error))).transpose()
    };
    let limits = resources.limits.as_ref();
    let requests = resources.requests.as_ref();
    let cpu_limit = cpu("limits.cpu", limits.and_then(|l| l.cpu.as_ref()))?;
    let cpu_request = cpu("requests.cpu", requests.and_then(|r| r.cpu.as_ref()))?.or(cpu_limit);
    let memory = limits.and_then(|l| l.memory.as_ref());
    let memory = memory.map(|q| q.bytes().map_err(|error| Invalid::field(at("limits.memory"), error))).transpose()?;
    if let Some(request) = requests.and_then(|r| r.memory.as_ref()) {
        request.bytes().map_err(|error| Invalid::field(at("requests.memory"), error))?;
    }
    Ok(Limits {
        cpu_millis: cpu_limit,
        cpu_weight: cpu_request.map(weight),
        memory_max: memory,
        pids_max: resources.pids.map(u64::from),
        ..Limits::default()
    })
}

/// One CPU requested is the weight 100, which is also what a cgroup has that nobody set.
fn weight(milli: u64) -> u64 {
    (milli / 10).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resources: serde_json::Value) -> Result<Limits, Invalid> {
        let container = serde_json::json!({"name": "c", "image": "i", "resources": resources});
        limits("spec.containers[0]", &serde_json::from_value(container).unwrap())
    }

    #[test]
    fn requests_and_limits() {
        let all = of(serde_json::json!({
            "requests": {"cpu": "100m"}, "limits": {"cpu": "1500m", "memory": "64Mi"}, "pids": 32
        }))
        .unwrap();
        let expected = Limits {
            cpu_millis: Some(1500),
            cpu_weight: Some(10),
            memory_max: Some(64 << 20),
            pids_max: Some(32),
            ..Limits::default()
        };
        assert_eq!(all, expected);
        assert_eq!(of(serde_json::json!({"limits": {"cpu": 2}})).unwrap().cpu_weight, Some(200));
        assert_eq!(of(serde_json::json!({})).unwrap(), Limits::default());
    }

    #[test]
    fn a_wrong_quantity_names_its_field() {
        let error = of(serde_json::json!({"limits": {"memory": "100m"}})).unwrap_err();
        assert!(error.message.starts_with("spec.containers[0].resources.limits.memory: "), "{}", error.message);
    }
}
