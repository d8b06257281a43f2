use serde_json::json;

use super::*;
use crate::workload::*;

/// A healthy baseline with everything that this version carries out and that could be mistaken for what it does not.
fn workload(change: Value) -> WorkloadSpec {
    let mut spec = json!({
        "networks": [{"name": "front", "ip": "10.89.1.5"}],
        "update": {"strategy": "Recreate"},
        "shareProcessNamespace": true,
        "initContainers": [{"name": "prepare", "image": "a"}],
        "containers": [{
            "name": "web", "image": "b", "stdin": true,
            "env": [
                {"name": "A", "value": "a"},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['a']"}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
            "readinessProbe": {"httpGet": {"port": 80, "scheme": "HTTP"}},
            "lifecycle": {"preStop": {"exec": {"command": ["a"]}}, "stopSignal": "SIGQUIT"},
        }],
        "volumes": [{"name": "conf", "configMap": {"name": "web", "onChange": "Restart"}}],
    });
    json_patch::merge(&mut spec, &change);
    serde_json::from_value(spec).unwrap()
}

fn messages<S: Declared>(spec: &S) -> Vec<String> {
    unsupported(spec).iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_carried_out_is_not_reported() {
    assert_eq!(messages(&workload(json!({}))), [""; 0]);
    let image = json!({"reference": "a", "archive": {"path": "/a"}, "pin": true, "platform": "linux/arm64"});
    assert_eq!(messages(&serde_json::from_value::<ImageSpec>(image).unwrap()), [""; 0]);
    let network = json!({"dns": {"enabled": true, "upstreams": ["9.9.9.9"]}, "subnets": [{"cidr": "10.0.0.0/24"}]});
    assert_eq!(messages(&serde_json::from_value::<NetworkSpec>(network).unwrap()), [""; 0]);
    for driver in ["bridge", "host", "none"] {
        let network = serde_json::from_value::<NetworkSpec>(json!({ "driver": driver })).unwrap();
        assert_eq!(messages(&network), [""; 0]);
    }
    for volume in [json!({"local": {}}), json!({"hostPath": {"path": "/a"}, "accessMode": "ReadWriteOnce"})] {
        assert_eq!(messages(&serde_json::from_value::<VolumeSpec>(volume).unwrap()), [""; 0]);
    }
    let limit = json!({"cpu": {"max": 1}, "io": [{"device": "/dev/vda", "readIOPS": 5}]});
    assert_eq!(messages(&serde_json::from_value::<ResourceLimitSpec>(limit).unwrap()), [""; 0]);
}

#[test]
fn each_error_names_the_field_and_the_value() {
    let cases = [(
        json!({"containers": [{"name": "a", "image": "b",
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}}]}]}),
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: \"spec.serviceAccountName\" is not",
    )];
    for (change, start) in cases {
        let messages = messages(&workload(change));
        assert!(messages.len() == 1 && messages[0].starts_with(start), "{start}: {messages:?}");
        assert!(messages[0].ends_with("supported by this version of nodelet"));
    }
}

/// A table's line that no field matches would never refuse anything.
#[test]
fn every_line_is_of_a_declared_field() {
    fn check<S: Declared>(kind: &str) {
        let crd = crate::crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
        let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        for (base, limitations) in S::LIMITATIONS {
            for limitation in *limitations {
                let mut at = &schema["properties"]["spec"];
                for step in [*base, limitation.path].iter().flat_map(|part| part.split('.')).filter(|s| !s.is_empty()) {
                    at = &at["properties"][step.trim_end_matches("[]")];
                    if step.ends_with("[]") {
                        at = &at["items"];
                    }
                }
                assert_ne!(*at, Value::Null, "{kind} has no field {base} {}", limitation.path);
            }
        }
    }
    check::<ImageSpec>("Image");
    check::<VolumeSpec>("Volume");
    check::<NetworkSpec>("Network");
    check::<ResourceLimitSpec>("ResourceLimit");
    check::<WorkloadSpec>("Workload");
}

#[test]
fn a_container_of_either_list_is_judged_alike() {
    let refused = json!({"name": "a", "image": "b",
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}}]});
    let container: Container = serde_json::from_value(refused).unwrap();
    let spec =
        WorkloadSpec { containers: vec![container.clone()], init_containers: vec![container], ..Default::default() };
    let paths: Vec<_> = unsupported(&spec).into_iter().map(|error| error.path).collect();
    let field = "env[0].valueFrom.fieldRef.fieldPath";
    assert_eq!(paths, [format!("spec.initContainers[0].{field}"), format!("spec.containers[0].{field}")]);
}
