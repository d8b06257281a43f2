//! A v1 Pod of a source, as the Workload that runs it.
//!
//! The vocabulary of a Workload is a Pod's, so most fields are taken as they are: those that the Workload's schema
//! has. Every other field is an error that names it, except those that ask for what happens anyway.

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::CustomResourceExt;
use nodelet_crds::Workload;
use serde_json::{Map, Value, json};

use crate::manifest::{Fault, Object};

/// Whether the object is a Pod.
pub fn is_pod(object: &Object) -> bool {
    object.key.api_version == "v1" && object.key.kind == "Pod"
}

/// The Workload that runs `pod`; the positions stay those of the Pod's fields.
///
/// # Errors
/// Every field that a Workload cannot honour.
pub fn workload(pod: &Object) -> Result<Object, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, message: &str| faults.push(pod.fault(field, message));
    let mut spec = pod.value["spec"].as_object().cloned().unwrap_or_default();

    for (field, harmless) in WITHOUT_EFFECT {
        if let Some(value) = spec.remove(*field)
            && !harmless.contains(&value)
        {
            fault(&format!("spec.{field}"), &format!("{value} cannot be honoured by a Workload"));
        }
    }
    if spec.remove("hostNetwork") == Some(json!(true)) {
        spec.insert("networks".to_owned(), json!([{"name": "host"}]));
    }
    for (i, volume) in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        claim(volume, i, &mut fault);
    }
    if let Some(schema) = SCHEMA.as_ref() {
        prune("spec", &mut spec, schema, &mut fault);
    }
    for field in pod.value.as_object().into_iter().flatten().map(|(field, _)| field) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&field.as_str()) {
            fault(field, "is no field of a Pod");
        }
    }
    let mut metadata = Map::new();
    for (field, value) in pod.value["metadata"].as_object().into_iter().flatten() {
        match field.as_str() {
            "name" | "namespace" | "labels" | "annotations" => {
                metadata.insert(field.clone(), value.clone());
            }
            // What an API server adds, in a Pod that was taken from a cluster.
            "creationTimestamp" | "uid" | "resourceVersion" | "generation" | "selfLink" | "managedFields" => {}
            other => fault(&format!("metadata.{other}"), "cannot be honoured by a Workload"),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut converted = pod.clone();
    converted.key.api_version = nodelet_crds::API_VERSION.to_owned();
    converted.key.kind = "Workload".to_owned();
    converted.value =
        json!({"apiVersion": nodelet_crds::API_VERSION, "kind": "Workload", "metadata": metadata, "spec": spec});
    Ok(converted)
}

/// Fields of a Pod that a Workload lacks, with the values that ask for what happens anyway.
const WITHOUT_EFFECT: &[(&str, &[Value])] = &[
    ("dnsPolicy", &[]),
    ("automountServiceAccountToken", &[Value::Bool(false)]),
    ("enableServiceLinks", &[Value::Bool(false)]),
    ("setHostnameAsFQDN", &[Value::Bool(false)]),
    ("hostUsers", &[Value::Bool(true)]),
    ("tolerations", &[]),
    ("schedulerName", &[]),
    ("priority", &[]),
    ("preemptionPolicy", &[]),
];

/// A claim is a Volume of the same name.
fn claim(volume: &mut Value, index: usize, fault: &mut impl FnMut(&str, &str)) {
    let Some(volume) = volume.as_object_mut() else { return };
    let Some(claim) = volume.remove("persistentVolumeClaim") else { return };
    match claim["claimName"].as_str() {
        Some(name) => {
            volume.insert("volume".to_owned(), json!({"name": name}));
        }
        None => fault(&format!("spec.volumes[{index}].persistentVolumeClaim.claimName"), "is missing"),
    }
}

/// The schema of a Workload's spec.
static SCHEMA: LazyLock<Option<JSONSchemaProps>> = LazyLock::new(|| {
    let crd = Workload::crd();
    let schema = crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?;
    schema.properties?.remove("spec")
});

/// Names every field that the schema does not have.
fn prune(path: &str, object: &mut Map<String, Value>, schema: &JSONSchemaProps, fault: &mut impl FnMut(&str, &str)) {
    let Some(properties) = &schema.properties else { return };
    for (field, value) in object {
        let path = format!("{path}.{field}");
        let Some(known) = properties.get(field) else {
            fault(&path, "cannot be honoured by a Workload");
            continue;
        };
        match value {
            Value::Object(below) => prune(&path, below, known, fault),
            Value::Array(items) => {
                let Some(items_schema) = item_schema(known) else { continue };
                for (i, item) in items.iter_mut().enumerate() {
                    if let Value::Object(below) = item {
                        prune(&format!("{path}[{i}]"), below, items_schema, fault);
                    }
                }
            }
            _ => {}
        }
    }
}

fn item_schema(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray;
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(schema) => Some(schema),
        JSONSchemaPropsOrArray::Schemas(schemas) => schemas.first(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn pod(text: &str) -> Object {
        manifest::parse("pod.yaml", text).objects.remove(0)
    }

    #[test]
    fn a_pod_becomes_a_workload() {
        let pod = pod("\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  creationTimestamp: null
spec:
  hostNetwork: true
  automountServiceAccountToken: false
  restartPolicy: OnFailure
  containers:
  - name: web
    image: nginx
    ports: [{containerPort: 80, hostPort: 8080}]
    volumeMounts: [{name: data, mountPath: /data}]
    livenessProbe: {httpGet: {path: /, port: 80}}
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: pgdata}
  - name: tmp
    emptyDir: {}
");
        assert!(is_pod(&pod));
        let workload = workload(&pod).expect("all fields are known");
        assert_eq!(workload.key.to_string(), "Workload shop/web");
        assert_eq!(workload.value["metadata"], json!({"name": "web", "namespace": "shop", "labels": {"app": "web"}}));
        let spec = &workload.value["spec"];
        assert_eq!(spec["networks"], json!([{"name": "host"}]));
        assert_eq!(
            spec["volumes"],
            json!([{"name": "data", "volume": {"name": "pgdata"}}, {"name": "tmp", "emptyDir": {}}])
        );
        assert_eq!(spec["containers"][0]["livenessProbe"], json!({"httpGet": {"path": "/", "port": 80}}));
        assert!(spec.get("hostNetwork").is_none() && spec.get("automountServiceAccountToken").is_none());
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let pod = pod("\
apiVersion: v1
kind: Pod
metadata: {name: web, ownerReferences: []}
spec:
  serviceAccountName: robot
  affinity: {}
  automountServiceAccountToken: true
  containers:
  - name: web
    image: nginx
    terminationMessagePath: /dev/x
  volumes:
  - name: cloud
    awsElasticBlockStore: {volumeID: v}
");
        let mut told: Vec<String> = workload(&pod).expect_err("refused").iter().map(ToString::to_string).collect();
        told.sort();
        insta::assert_snapshot!(told.join("\n"));
    }
}
