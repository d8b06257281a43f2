//! Refusing at the door what this version does not carry out.

use std::sync::Arc;

use nodelet_apiserver::Validator;
use nodelet_crds::unsupported::{Declared, unsupported};
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
            Some("Workload") => check::<WorkloadSpec>(object),
            Some("Image") => check::<ImageSpec>(object),
            Some("Volume") => check::<VolumeSpec>(object),
            Some("Network") => check::<NetworkSpec>(object),
            Some("ResourceLimit") => check::<ResourceLimitSpec>(object),
            _ => Vec::new(),
        }
    })]
}

fn check<S: DeserializeOwned + Declared>(object: &Value) -> Vec<(String, String)> {
    // What does not even have the form was refused by the schema.
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
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Volume", "metadata": {"name": "v"},
            "spec": {"nfs": {"server": "nas", "path": "/x"}},
        });
        let found = check(&object);
        assert_eq!(found, [("spec.nfs".to_owned(), "is not supported by this version of nodelet".to_owned())]);
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(check(&object), []);
    }
}
