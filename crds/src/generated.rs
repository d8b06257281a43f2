//! The CRDs, as the API server serves them and as YAML.
//!
//! The schemas that kube derives are tidied in one place: `nullable` is dropped (a field is there or not, null has no
//! meaning of its own), the formats of Rust's unsigned numbers, which Kubernetes does not know, become bounds, and the
//! line breaks of doc comments go.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{Image, Network, NodeState, ResourceLimit, Volume, Workload};

/// The CRDs of all kinds, in the order in which a reader meets them.
///
/// Deriving them from the types takes half of the time in which an agent is ready, so a release build holds them as
/// they were derived when `make crds` ran; a test compares the two.
pub fn crds() -> Vec<CustomResourceDefinition> {
    if cfg!(debug_assertions) {
        return derived();
    }
    serde_json::from_str(DERIVED).expect("a test reads it")
}

/// [`derived`] as JSON.
const DERIVED: &str = include_str!("generated/crds.json");

/// The CRDs as the types say.
fn derived() -> Vec<CustomResourceDefinition> {
    let mut crds =
        vec![Image::crd(), Volume::crd(), Network::crd(), ResourceLimit::crd(), Workload::crd(), NodeState::crd()];
    for crd in &mut crds {
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                tidy(schema);
            }
        }
    }
    crds
}

/// The CRDs of all kinds as one YAML stream, ready for `kubectl apply -f -`.
pub fn crds_yaml() -> String {
    crds().iter().map(|crd| format!("---\n{}", crd_yaml(crd))).collect()
}

/// One CRD as YAML.
pub(crate) fn crd_yaml(crd: &CustomResourceDefinition) -> String {
    let mut crd =
        serde_json::to_value(crd).expect("a CRD is made of strings, numbers, lists and maps with string keys");
    whole_numbers(&mut crd);
    // Every string on one line: readers differ in how they fold block scalars, and a diff shows one line per change.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&crd, options).expect("what has a JSON form has a YAML form")
}

/// Writes `1.0` as `1`: the schema's bounds are floating-point numbers in Rust, and whole ones in fact.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() < 9e15);
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(entries) => entries.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(description) = &mut schema.description {
        *description = one_line_per_paragraph(description);
    }
    let most = match schema.format.as_deref() {
        Some("uint8") => Some(f64::from(u8::MAX)),
        Some("uint16") => Some(f64::from(u16::MAX)),
        Some("uint32") => Some(f64::from(u32::MAX)),
        Some("uint" | "uint64") => None,
        _ => {
            tidy_children(schema);
            return;
        }
    };
    schema.format = Some("int64".to_owned());
    schema.minimum = schema.minimum.or(Some(0.0));
    schema.maximum = schema.maximum.or(most);
}

fn tidy_children(schema: &mut JSONSchemaProps) {
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        tidy(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}

fn one_line_per_paragraph(text: &str) -> String {
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
