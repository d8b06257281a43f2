//! Refusing at the door what this version does not carry out, and what it cannot read: an object that has got in and
//! cannot be read would break the watch over all of its kind.

use std::sync::Arc;

use nodelet_apiserver::Validator;
use nodelet_crds::image::Image;
use nodelet_crds::network::Network;
use nodelet_crds::resource_limit::ResourceLimit;
use nodelet_crds::unsupported::{Declared, unsupported};
use nodelet_crds::volume::Volume;
use nodelet_crds::workload::Workload;
use nodelet_crds::{ImageSpec, NetworkSpec, ResourceLimitSpec, VolumeSpec, WorkloadSpec};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The checks beyond the schemas.
pub(super) fn validators() -> Vec<Validator> {
    vec![Arc::new(|object: &Value| {
        let is_ours = object["apiVersion"] == nodelet_crds::API_VERSION;
        // An object on its way out must lose its finalizers, whatever is in it.
        if !is_ours || object["metadata"]["deletionTimestamp"].is_string() {
            return Vec::new();
        }
        match object["kind"].as_str() {
            Some("Workload") => check::<Workload, WorkloadSpec>(object),
            Some("Image") => check::<Image, ImageSpec>(object),
            Some("Volume") => check::<Volume, VolumeSpec>(object),
            Some("Network") => check::<Network, NetworkSpec>(object),
            Some("ResourceLimit") => check::<ResourceLimit, ResourceLimitSpec>(object),
            _ => Vec::new(),
        }
    })]
}

/// `K` is the kind, `S` its spec.
fn check<K: DeserializeOwned, S: DeserializeOwned + Declared>(object: &Value) -> Vec<(String, String)> {
    // The schemas cannot say everything of numbers: `80.0` is an integer to them, and 1e300 an amount.
    let mut whole = object.clone();
    whole["metadata"] = serde_json::json!({});
    if let Err(error) = serde_path_to_error::deserialize::<_, K>(&whole) {
        return vec![(error.path().to_string(), format!("Invalid value: {}", error.inner()))];
    }
    let Ok(spec) = serde_json::from_value::<S>(object["spec"].clone()) else { return Vec::new() };
    unsupported(&spec).into_iter().map(|error| (error.path, error.message)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsupported_fields_are_named_unless_the_object_goes() {
        let check = &validators()[0];
        let mut object = json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "w"},
            "spec": {"containers": [{"name": "c", "image": "i", "env": [
                {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
            ]}]},
        });
        let message = "\"spec.serviceAccountName\" is not supported by this version of nodelet".to_owned();
        assert_eq!(check(&object), [("spec.containers[0].env[0].valueFrom.fieldRef.fieldPath".to_owned(), message)]);
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(check(&object), []);
    }

    #[test]
    fn what_fits_the_schema_and_no_type_is_refused() {
        let check = |resources: Value, port: Value| {
            validators()[0](&json!({
                "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "w"},
                "spec": {"containers": [{
                    "name": "c", "image": "i", "resources": resources, "ports": [{"containerPort": port}],
                }]},
            }))
        };
        let at = |path: &str, message: &str| vec![(format!("spec.containers[0].{path}"), message.to_owned())];
        assert_eq!(check(json!({"limits": {"cpu": "500m"}}), json!(80)), []);
        assert_eq!(
            check(json!({"limits": {"memory": "1000000000000E"}}), json!(80)),
            at("resources.limits.memory", "Invalid value: \"1000000000000E\" is too large: expected at most 1e29")
        );
        assert_eq!(
            check(json!({}), json!(80.0)),
            at("ports[0].containerPort", "Invalid value: invalid type: floating point `80.0`, expected u16")
        );
    }
}
