//! What the API says of a field, in words that say what to write. Pure.
//!
//! A server answers as a Kubernetes API server does: with the pattern that a text does not match, or with nothing but
//! "unknown field". The schemas know more, and are the same wherever the server is.

use serde_json::Value;

use crate::client::Cause;
use crate::config::{kind_of, nearest};

/// Of more names than these, none is shown.
const FEW: usize = 16;

/// The sentence to show for `cause`, a refusal of `object`: the server's own where nothing can be added.
pub(super) fn advised(object: &Value, cause: &Cause) -> String {
    schema_of(object).and_then(|schema| advice(object, &schema, cause)).unwrap_or_else(|| cause.message.clone())
}

/// The schema of the object's kind, if it is one of ours.
fn schema_of(object: &Value) -> Option<Value> {
    let (group, version) = object["apiVersion"].as_str()?.split_once('/')?;
    let crd = nodelet_crds::crds()
        .into_iter()
        .find(|crd| crd.spec.group == group && Some(crd.spec.names.kind.as_str()) == object["kind"].as_str())?;
    let version = crd.spec.versions.into_iter().find(|found| found.name == version)?;
    serde_json::to_value(version.schema?.open_api_v3_schema?).ok()
}

fn advice(object: &Value, schema: &Value, cause: &Cause) -> Option<String> {
    let mut at = Some(object);
    let mut schema = schema;
    let mut rest = cause.field.as_str();
    while !rest.is_empty() {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let Some(below) = schema["properties"].get(&rest[..end]) else { break };
        at = at.and_then(|at| at.get(&rest[..end]));
        schema = below;
        rest = &rest[end..];
        while let Some((index, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            at = at.and_then(|at| at.get(index.parse::<usize>().ok()?));
            schema = &schema["items"];
            rest = after;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
    }
    if cause.message == "unknown field" {
        let mut known: Vec<&str> = schema["properties"].as_object()?.keys().map(String::as_str).collect();
        known.sort_unstable();
        return match nearest(rest, &known) {
            Some(near) => Some(format!("unknown field; did you mean {near}?")),
            None if known.len() <= FEW => Some(format!("unknown field; expected one of {}", known.join(", "))),
            None => None,
        };
    }
    let value = at.filter(|_| rest.is_empty())?;
    if let Some((_, wanted)) = cause.message.split_once(" in body must be of type ") {
        let wanted = wanted.split(':').next().unwrap_or_default();
        return Some(wrong_type(value, wanted));
    }
    let (_, pattern) = cause.message.split_once(" in body should match ")?;
    let description = schema["description"].as_str()?.trim_end_matches('.');
    let pattern = match schema["x-kubernetes-int-or-string"] {
        Value::Bool(true) => String::new(),
        _ => format!(" (as a pattern: {pattern})"),
    };
    Some(format!("{value} is not valid here; expected: {description}{pattern}"))
}

/// `wanted` is a type of JSON, or several joined by commas.
fn wrong_type(value: &Value, wanted: &str) -> String {
    let names: Vec<&str> = wanted
        .split(',')
        .map(|wanted| match wanted {
            "integer" => "a whole number",
            "number" => "a number",
            "boolean" => "true or false",
            "string" => "a string",
            "array" => "a list",
            "object" => "a mapping",
            other => other,
        })
        .collect();
    let scalar = matches!(value, Value::Bool(_) | Value::Number(_));
    let unquoted = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let remedy = match (wanted, unquoted) {
        ("boolean", Some(Value::Bool(_))) | ("integer" | "number", Some(Value::Number(_))) => "; remove the quotes",
        (wanted, _) if scalar && wanted.split(',').any(|wanted| wanted == "string") => "; put it in quotes",
        _ => "",
    };
    let shown = if value.is_array() || value.is_object() || value.is_null() {
        "the value".to_owned()
    } else {
        value.to_string()
    };
    format!("{shown} is {}; expected {}{remedy}", kind_of(value), names.join(" or "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(field: &str, message: &str) -> String {
        let object = json!({
            "apiVersion": "nodelet.dev/v1alpha1",
            "kind": "Workload",
            "spec": {
                "networks": [{"name": "default", "antiSpoofing": "true"}],
                "containers": [{
                    "image": "a b", "resources": {"limits": {"cpu": 0.5, "memory": "5Qx"}}, "ports": 80, "tty": 1, "args": null,
                }],
            },
        });
        advised(&object, &Cause { field: field.to_owned(), message: message.to_owned() })
    }

    #[test]
    fn a_field_says_what_it_takes() {
        let of_type = |field: &str, wanted: &str| {
            told(field, &format!("Invalid value: \"x\": {field} in body must be of type {wanted}: \"x\""))
        };
        let matching = |field: &str| told(field, &format!("Invalid value: \"x\": {field} in body should match '^x$'"));
        for (told, expected) in [
            (told("spec.networks[0].antiSpofing", "unknown field"), "unknown field; did you mean antiSpoofing?"),
            (
                told("spec.containers[0].resources.io[0].bytes", "unknown field"),
                "unknown field; expected one of device, readBytesPerSecond, readIOPS, writeBytesPerSecond, writeIOPS",
            ),
            (told("spec.something", "unknown field"), "unknown field"),
            (
                told("spec.containers[0].resources.limits.a.b/c", "unknown field"),
                "unknown field; expected one of cpu, hugepages-1Gi, hugepages-2Mi, memory",
            ),
            (
                of_type("spec.networks[0].antiSpoofing", "boolean"),
                "\"true\" is a string; expected true or false; remove the quotes",
            ),
            (
                of_type("spec.containers[0].resources.limits.cpu", "integer,string"),
                "0.5 is a number; expected a whole number or a string; put it in quotes",
            ),
            (of_type("spec.containers[0].ports", "array"), "80 is a number; expected a list"),
            (of_type("spec.containers[0].args", "array"), "the value is empty; expected a list"),
            (
                matching("spec.containers[0].resources.limits.memory"),
                "\"5Qx\" is not valid here; expected: Memory in bytes: `128Mi`",
            ),
            (
                matching("spec.containers[0].image"),
                "\"a b\" is not valid here; expected: The image: `[registry/]name[:tag][@sha256:…]` (as a pattern: '^x$')",
            ),
            (told("spec", "Invalid value: \"object\": a rule"), "Invalid value: \"object\": a rule"),
        ] {
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn what_is_not_ours_is_as_the_server_says() {
        let cause = Cause { field: "data.a".to_owned(), message: "unknown field".to_owned() };
        assert_eq!(advised(&json!({"apiVersion": "v1", "kind": "ConfigMap"}), &cause), "unknown field");
        assert_eq!(advised(&json!({"apiVersion": 3}), &cause), "unknown field");
    }
}
