//! Workloads as `v1` Pods, read-only: what `kubectl get pods`, `kubectl logs` and dashboards look for.
//!
//! A Workload uses the vocabulary of a Pod, so most fields are the same; what a Pod has no word for is left out.

use serde_json::{Map, Value, json};

use crate::core_kinds::columns;
use crate::registry::{Class, Column, Resource, View, Writers};

/// The resource, over the table of Workloads.
pub(crate) fn resource(workloads: &Resource) -> Resource {
    let free = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let json = json!({
        "description": "A Workload as a Pod, read-only: change the Workload of the same name.",
        "type": "object",
        "properties": {"spec": free, "status": free},
    });
    let (schema, document) = crate::core_kinds::compile(json).unwrap_or_default();
    Resource {
        id: 0,
        table: workloads.table,
        view: View::Pods,
        group: String::new(),
        version: "v1".into(),
        plural: "pods".into(),
        singular: "pod".into(),
        kind: "Pod".into(),
        short_names: vec!["po".into()],
        categories: vec!["all".into()],
        namespaced: true,
        has_status: false,
        has_generation: true,
        writers: Writers::Nobody,
        class: Class::Plain,
        schema,
        document,
        rules: None,
        // Paths are those of the Workload.
        columns: [
            columns(&[("Ready", "string", ".status.readyContainers", 0)]),
            vec![
                Column::new("Status", "string", "phase:.status.phase", 0),
                Column::new("Restarts", "string", ".status.restarts", 0),
                Column::new("Age", "string", "age:.metadata.creationTimestamp", 0),
                Column::new("IP", "string", ".status.addresses[0].ip", 1),
                Column::new("Node", "string", ".status.nodeName|.spec.nodeName", 1),
            ],
        ]
        .concat(),
        selectable: vec![".spec.nodeName".into(), ".status.phase".into(), ".spec.restartPolicy".into()],
    }
}

/// Turns a Workload into a Pod.
pub(crate) fn of_workload(object: &mut Value) {
    let (spec, status) = (object["spec"].take(), object["status"].take());
    let Some(pod) = object.as_object_mut() else { return };
    pod.insert("apiVersion".into(), json!("v1"));
    pod.insert("kind".into(), json!("Pod"));
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        // Ownership of a Workload's fields says nothing about a Pod's.
        metadata.remove("managedFields");
    }
    pod.insert("spec".into(), Value::Object(pod_spec(&spec, &status)));
    pod.insert("status".into(), Value::Object(pod_status(&spec, &status)));
}

/// The fields of `from` that have one of these names.
fn only(from: &Value, names: &[&str]) -> Map<String, Value> {
    let given = names.iter().filter_map(|name| Some(((*name).to_owned(), from.get(*name)?.clone())));
    given.filter(|(_, value)| !value.is_null()).collect()
}

fn pod_spec(spec: &Value, status: &Value) -> Map<String, Value> {
    let mut pod = only(
        spec,
        &[
            "nodeName",
            "hostname",
            "terminationGracePeriodSeconds",
            "securityContext",
            "shareProcessNamespace",
            "hostPID",
            "hostIPC",
            "hostUsers",
            "dnsConfig",
            "hostAliases",
        ],
    );
    if let Some(node) = status["nodeName"].as_str() {
        pod.insert("nodeName".into(), json!(node));
    }
    let policy =
        spec["restartPolicy"].as_str().filter(|known| matches!(*known, "OnFailure" | "Never")).unwrap_or("Always");
    pod.insert("restartPolicy".into(), json!(policy));
    if spec["networks"][0]["name"] == "host" {
        pod.insert("hostNetwork".into(), json!(true));
    }
    for field in ["initContainers", "containers"] {
        let containers: Vec<Value> = spec[field].as_array().into_iter().flatten().map(container).collect();
        if field == "containers" || !containers.is_empty() {
            pod.insert(field.into(), Value::Array(containers));
        }
    }
    let volumes: Vec<Value> = spec["volumes"].as_array().into_iter().flatten().map(volume).collect();
    if !volumes.is_empty() {
        pod.insert("volumes".into(), Value::Array(volumes));
    }
    pod
}

fn container(from: &Value) -> Value {
    let mut container = only(
        from,
        &[
            "name",
            "image",
            "imagePullPolicy",
            "command",
            "args",
            "workingDir",
            "env",
            "envFrom",
            "tty",
            "stdin",
            "ports",
            "volumeMounts",
            "startupProbe",
            "livenessProbe",
            "readinessProbe",
            "lifecycle",
            "securityContext",
            "restartPolicy",
        ],
    );
    container.insert("resources".into(), Value::Object(only(&from["resources"], &["requests", "limits"])));
    Value::Object(container)
}

fn volume(from: &Value) -> Value {
    let mut volume =
        only(from, &["name", "emptyDir", "configMap", "secret", "hostPath", "image", "downwardAPI", "projected"]);
    if let Some(name) = from["volume"]["name"].as_str() {
        volume.insert("persistentVolumeClaim".into(), json!({"claimName": name}));
    }
    if let Some(source) = volume.get_mut("configMap").and_then(Value::as_object_mut) {
        source.remove("onChange");
    }
    if let Some(source) = volume.get_mut("secret").and_then(Value::as_object_mut) {
        source.remove("onChange");
    }
    Value::Object(volume)
}

fn pod_status(spec: &Value, status: &Value) -> Map<String, Value> {
    let mut pod = only(status, &["startTime", "conditions", "containerStatuses", "initContainerStatuses"]);
    let phase = match status["phase"].as_str() {
        Some("Stopped") => "Succeeded",
        Some(known) => known,
        None => "Pending",
    };
    pod.insert("phase".into(), json!(phase));
    let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready").cloned();
    if let (Some(mut ready), Some(Value::Array(conditions))) = (ready, pod.get_mut("conditions")) {
        ready["type"] = json!("ContainersReady");
        conditions.push(ready);
    }
    let ips: Vec<Value> =
        status["addresses"].as_array().into_iter().flatten().map(|address| json!({"ip": address["ip"]})).collect();
    if let Some(first) = ips.first() {
        pod.insert("podIP".into(), first["ip"].clone());
        pod.insert("podIPs".into(), Value::Array(ips));
    }
    for field in ["containerStatuses", "initContainerStatuses"] {
        for container in pod.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            // Required in a Pod, left out of a Workload while unknown.
            for text in ["image", "imageID"] {
                container.entry(text).or_insert_with(|| json!(""));
            }
        }
    }
    pod.insert("qosClass".into(), json!(quality(spec)));
    pod
}

/// The quality of service that Kubernetes derives from requests and limits.
fn quality(spec: &Value) -> &'static str {
    let containers: Vec<&Value> = spec["containers"].as_array().into_iter().flatten().collect();
    let of = |container: &Value, kind: &str, what: &str| container["resources"][kind][what].clone();
    let both = ["cpu", "memory"];
    let none = |c: &&Value| both.iter().all(|r| of(c, "limits", r).is_null() && of(c, "requests", r).is_null());
    let full = |c: &&Value| {
        both.iter().all(|r| {
            let (limit, request) = (of(c, "limits", r), of(c, "requests", r));
            !limit.is_null() && (request.is_null() || request == limit)
        })
    };
    if containers.iter().all(none) {
        "BestEffort"
    } else if containers.iter().all(full) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}
