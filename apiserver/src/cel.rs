//! CEL rules of custom resources (`x-kubernetes-validations`), evaluated by kube's CEL support.

use kube::core::cel::{CompiledSchema, RootContext, Validator};
use serde_json::Value;

use crate::registry::Resource;
use crate::status::FieldError;

thread_local! {
    // Registering the function libraries costs more than evaluating the rules of an object.
    static VALIDATOR: Validator = Validator::new();
}

/// Appends what the rules have against `object`; `old` is what it replaces, for rules about changes.
pub(crate) fn validate(
    resource: &Resource,
    rules: &CompiledSchema,
    object: &Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) {
    let root = RootContext {
        api_version: resource.api_version(),
        api_group: resource.group.clone(),
        kind: resource.kind.clone(),
    };
    let outcome = VALIDATOR.with(|v| v.validate_compiled_with_context(rules, object, old, Some(&root)));
    let Err(found) = outcome else { return };
    for error in found.into_vec() {
        let reason = match error.reason.as_deref() {
            Some("FieldValueForbidden") => "FieldValueForbidden",
            Some("FieldValueRequired") => "FieldValueRequired",
            Some("FieldValueDuplicate") => "FieldValueDuplicate",
            _ => "FieldValueInvalid",
        };
        let message = match reason {
            "FieldValueForbidden" => format!("Forbidden: {}", error.message),
            "FieldValueRequired" => format!("Required value: {}", error.message),
            _ => format!("Invalid value: {}: {}", shown(object, &error.field_path), error.message),
        };
        errors.push(FieldError { reason, field: error.field_path, message });
    }
}

/// What a real server prints as the value: its type for objects and lists, itself for scalars.
fn shown(object: &Value, path: &str) -> String {
    let mut here = object;
    for step in path.split('.').filter(|s| !s.is_empty()) {
        let (name, rest) = step.split_once('[').unwrap_or((step, ""));
        here = &here[name];
        for index in rest.split('[').filter_map(|i| i.trim_end_matches(']').parse::<usize>().ok()) {
            here = &here[index];
        }
    }
    match here {
        Value::Object(_) | Value::Null => "\"object\"".into(),
        Value::Array(_) => "\"array\"".into(),
        scalar => scalar.to_string(),
    }
}
