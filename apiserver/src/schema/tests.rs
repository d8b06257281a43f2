use serde_json::json;

use super::*;

fn schema() -> Schema {
    Schema::compile(&json!({
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {"type": "string", "minLength": 1},
            "policy": {"type": "string", "enum": ["Always", "Never"], "default": "Always"},
            "count": {"type": "integer", "minimum": 1.0, "maximum": 5.0},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "ports": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}
            }
        }
    }))
    .unwrap()
}

fn errors(value: Value) -> Vec<String> {
    let mut errors = Vec::new();
    schema().validate(&value, "spec", &mut errors);
    errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

#[test]
fn violations_are_worded_as_by_a_real_server() {
    assert_eq!(errors(json!({})), ["spec.image: Required value"]);
    assert_eq!(
        errors(json!({"image": 7})),
        [r#"spec.image: Invalid value: "integer": spec.image in body must be of type string: "integer""#]
    );
    assert_eq!(
        errors(json!({"image": "x", "policy": "Maybe", "count": 9})),
        [
            "spec.count: Invalid value: 9: spec.count in body should be less than or equal to 5",
            r#"spec.policy: Unsupported value: "Maybe": supported values: "Always", "Never""#,
        ]
    );
    assert_eq!(
        errors(json!({"image": "x", "ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]})),
        [r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#]
    );
    assert!(errors(json!({"image": "x", "port": "http"})).is_empty());
}

#[test]
fn unknown_fields_are_pruned_and_named() {
    let mut value = json!({"image": "x", "imgae": 1, "free": {"any": 1}, "ports": [{"prot": 1}], "labels": {"a": "b"}});
    let mut unknown = Vec::new();
    schema().prune(&mut value, "spec", &mut unknown);
    assert_eq!(unknown, ["spec.imgae", "spec.ports[0].prot"]);
    assert_eq!(value, json!({"image": "x", "free": {"any": 1}, "ports": [{}], "labels": {"a": "b"}}));
}

#[test]
fn defaults_reach_into_lists_and_replace_null() {
    let mut value = json!({"policy": null, "image": null, "ports": [{"port": 1}]});
    schema().apply_defaults(&mut value);
    assert_eq!(value, json!({"policy": "Always", "ports": [{"port": 1, "protocol": "TCP"}]}));
}
