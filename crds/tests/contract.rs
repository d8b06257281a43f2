//! The contract as users write it: one YAML file per kind with every field, against types, schemas and rules.

// Test code throughout, also in the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use kube::core::cel::Validator;
use nodelet_crds::{Image, Network, NodeState, ResourceLimit, Volume, Workload};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// The documents of the file of a kind.
fn documents(kind: &str) -> Vec<Value> {
    let text = match kind {
        "Image" => include_str!("contract/image.yaml"),
        "Volume" => include_str!("contract/volume.yaml"),
        "Network" => include_str!("contract/network.yaml"),
        "ResourceLimit" => include_str!("contract/resource_limit.yaml"),
        "Workload" => include_str!("contract/workload.yaml"),
        "NodeState" => include_str!("contract/node_state.yaml"),
        _ => panic!("{kind}"),
    };
    serde_saphyr::from_multiple(text).unwrap()
}

/// The schema of a kind.
fn schema(kind: &str) -> Value {
    let crd = nodelet_crds::crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
    serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap()).unwrap()
}

/// Reads every document as the type and gets out again what went in, but for defaults and empty values.
fn is_kept<K: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(kind: &str) {
    for document in documents(kind) {
        let object: K = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"));
        let again = serde_json::to_value(&object).unwrap();
        assert_within(&document, &again, kind);
        assert_eq!(serde_json::from_value::<K>(again).unwrap(), object);
    }
}

/// Everything of `part` that is not empty is in `whole` with the same value.
fn assert_within(part: &Value, whole: &Value, path: &str) {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            for (field, value) in part {
                let path = format!("{path}.{field}");
                match whole.get(field) {
                    Some(there) => assert_within(value, there, &path),
                    None => assert!(is_empty(value), "{path} is lost"),
                }
            }
        }
        (Value::Array(part), Value::Array(whole)) => {
            assert_eq!(part.len(), whole.len(), "{path}");
            for (index, (part, whole)) in part.iter().zip(whole).enumerate() {
                assert_within(part, whole, &format!("{path}[{index}]"));
            }
        }
        (Value::Number(part), Value::Number(whole)) => assert_eq!(part.as_f64(), whole.as_f64(), "{path}"),
        (Value::Number(part), Value::String(whole)) => assert_eq!(&part.to_string(), whole, "{path}"),
        _ => assert_eq!(part, whole, "{path}"),
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)
}

#[test]
fn types_keep_every_field() {
    is_kept::<Image>("Image");
    is_kept::<Volume>("Volume");
    is_kept::<Network>("Network");
    is_kept::<ResourceLimit>("ResourceLimit");
    is_kept::<Workload>("Workload");
    is_kept::<NodeState>("NodeState");
}

const KINDS: [&str; 6] = ["Image", "Volume", "Network", "ResourceLimit", "Workload", "NodeState"];

#[test]
fn rules_accept_every_document() {
    for kind in KINDS {
        for document in documents(kind) {
            if let Err(errors) = Validator::new().validate(&schema(kind), &document, None) {
                panic!("{kind} {}: {errors}", document["metadata"]["name"]);
            }
        }
    }
}

/// Paths of all fields, with `[]` for list entries.
fn paths_of_schema(schema: &Value, path: &str, paths: &mut BTreeSet<String>) {
    for (name, property) in schema["properties"].as_object().unwrap_or(&Map::new()) {
        let path = format!("{path}.{name}");
        paths_of_schema(property, &path, paths);
        paths_of_schema(&property["items"], &format!("{path}[]"), paths);
        paths.insert(path);
    }
}

fn paths_of_value(value: &Value, schema: &Value, path: &str, paths: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if schema["properties"].is_object() => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                paths_of_value(value, &schema["properties"][name], &path, paths);
                paths.insert(path);
            }
        }
        Value::Array(entries) => {
            for entry in entries {
                paths_of_value(entry, &schema["items"], &format!("{path}[]"), paths);
            }
        }
        _ => {}
    }
}

/// The two kinds of container have one type, and so do the probes; what one shows need not be shown again.
fn folded(path: &str) -> String {
    path.replace("initContainers", "containers")
        .replace("initContainerStatuses", "containerStatuses")
        .replace("lastState", "state")
        .replace("startupProbe", "probe")
        .replace("livenessProbe", "probe")
        .replace("readinessProbe", "probe")
        .replace("postStart", "handler")
        .replace("preStop", "handler")
        .replace("allocatable", "capacity")
        .replace(".projected.sources[].downwardAPI", ".downwardAPI")
        .replace(".projected.sources[].secret", ".projected.sources[].configMap")
        .replace(".secret.items", ".configMap.items")
        .replace(".projected.sources[].configMap.items", ".configMap.items")
}

#[test]
fn files_show_every_field_and_no_other() {
    for kind in KINDS {
        let schema = schema(kind);
        let mut declared = BTreeSet::new();
        paths_of_schema(&schema, "", &mut declared);
        let mut shown = BTreeSet::new();
        for mut document in documents(kind) {
            for identity in ["apiVersion", "kind", "metadata"] {
                document.as_object_mut().unwrap().remove(identity);
            }
            paths_of_value(&document, &schema, "", &mut shown);
        }
        let unknown: Vec<_> = shown.difference(&declared).collect();
        assert!(unknown.is_empty(), "{kind} does not declare {unknown:?}");
        let shown: BTreeSet<_> = shown.iter().map(|path| folded(path)).collect();
        let of_a_condition = |path: &&String| path.starts_with(".status.conditions[]");
        let declared: BTreeSet<_> =
            declared.iter().filter(|path| !of_a_condition(path)).map(|path| folded(path)).collect();
        let missing: Vec<_> = declared.difference(&shown).collect();
        assert!(missing.is_empty(), "the files of {kind} do not show {missing:?}");
    }
}

/// A spec made in Rust and one read from an empty object are the same.
#[test]
fn defaults_of_types_are_those_of_the_schema() {
    use nodelet_crds::{common::NodeSelector, network::NetworkDns, volume::*, workload::*};
    fn check<T: DeserializeOwned + Default + PartialEq + std::fmt::Debug>() {
        assert_eq!(serde_json::from_str::<T>("{}").unwrap(), T::default());
    }
    check::<nodelet_crds::NetworkSpec>();
    check::<nodelet_crds::VolumeSpec>();
    check::<nodelet_crds::ResourceLimitSpec>();
    check::<NetworkDns>();
    check::<NodeSelector>();
    check::<VolumeOwner>();
    check::<Probe>();
    check::<Update>();
    check::<Logging>();
    check::<SecurityContext>();
    check::<nodelet_crds::ImageStatus>();
    check::<nodelet_crds::WorkloadStatus>();
    check::<nodelet_crds::NodeStateStatus>();

    let workload: nodelet_crds::WorkloadSpec = serde_json::from_str(r#"{"containers":[]}"#).unwrap();
    assert_eq!(workload, nodelet_crds::WorkloadSpec::default());
    let image: nodelet_crds::ImageSpec = serde_json::from_str(r#"{"reference":""}"#).unwrap();
    assert_eq!(image, nodelet_crds::ImageSpec::default());
    let container: Container = serde_json::from_str(r#"{"name":"","image":""}"#).unwrap();
    assert_eq!(container, Container::default());
}
