//! CEL rules of custom resources (`x-kubernetes-validations`), evaluated by kube's CEL support.

use kube::core::cel::{CompiledSchema, RootContext, Validator, compile_schema};
use serde_json::Value;

use crate::registry::Resource;
use crate::status::FieldError;

thread_local! {
    // Registering the function libraries costs more than evaluating the rules of an object.
    static VALIDATOR: Validator = Validator::new();
}

/// The rules of one kind.
pub(crate) struct Rules {
    compiled: CompiledSchema,
    /// Whether a change of the status alone can break one.
    concern_status: bool,
}

impl Rules {
    /// The rules in the schema of a whole object.
    pub(crate) fn compile(schema: &Value) -> Result<Self, String> {
        let compiled = compile_schema(schema);
        match compiled.compilation_errors().first() {
            Some(error) => Err(error.to_string()),
            None => Ok(Self { concern_status: concern_status(schema), compiled }),
        }
    }
}

/// Of an object's metadata its rules see what never changes (`metadata.name`, `metadata.generateName`).
fn concern_status(schema: &Value) -> bool {
    fn has_rules(schema: &Value) -> bool {
        match schema {
            Value::Object(map) => map.contains_key(RULES) || map.values().any(has_rules),
            Value::Array(list) => list.iter().any(has_rules),
            _ => false,
        }
    }
    // Who names the spec or the metadata wherever an object is named, names nothing else of it.
    let names_more = |rule: &str| {
        let named = rule.to_lowercase().replace("self.spec", "").replace("self.metadata", "");
        named.contains("self")
    };
    let of_object = schema[RULES].as_array().into_iter().flatten();
    has_rules(&schema["properties"]["status"]) || of_object.filter_map(|rule| rule["rule"].as_str()).any(names_more)
}

const RULES: &str = "x-kubernetes-validations";

/// Appends what the rules have against `object`; `old` is what it replaces, for rules about changes. `same_but_status`
/// says that nothing but metadata and status differ between the two: what else there is has met the rules before.
pub(crate) fn validate(
    resource: &Resource,
    rules: &Rules,
    object: &Value,
    old: Option<&Value>,
    same_but_status: bool,
    errors: &mut Vec<FieldError>,
) {
    if same_but_status && !rules.concern_status {
        return;
    }
    let root = RootContext {
        api_version: resource.api_version(),
        api_group: resource.group.clone(),
        kind: resource.kind.clone(),
    };
    let outcome = VALIDATOR.with(|v| v.validate_compiled_with_context(&rules.compiled, object, old, Some(&root)));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_that_a_change_of_status_alone_can_break() {
        let of = |rule: &str| json!([{"rule": rule, "message": "m"}]);
        let whole = |rule: &str| json!({"type": "object", RULES: of(rule)});
        assert!(!concern_status(&whole("!has(self.spec.parent) || self.spec.parent != self.metadata.name")));
        assert!(!concern_status(&whole("self.spec.size >= oldSelf.spec.size")));
        assert!(!concern_status(&json!({"properties": {"spec": {"properties": {"x": {RULES: of("self > 0")}}}}})));
        assert!(concern_status(&whole("self.status.used <= self.spec.most")));
        assert!(concern_status(&whole("self == oldSelf")));
        assert!(concern_status(&json!({"properties": {"status": {"properties": {"x": {RULES: of("self > 0")}}}}})));
    }
}
