//! Server-side apply: merging, ownership, conflicts, removal.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::{Fixture, MERGE, WIDGETS};
use proptest::prelude::*;
use serde_json::{Value, json};

fn config(spec: Value) -> Value {
    json!({"apiVersion": "test.dev/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec})
}

fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.iter().map(|e| format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn apply_creates_merges_and_removes_what_is_no_longer_applied() {
    let api = Fixture::new();
    let path = format!("{WIDGETS}/a");
    let first = config(json!({"size": "small", "note": "n", "env": {"A": "1", "B": "2"},
        "tags": ["x", "y"], "ports": [{"port": 80, "name": "web"}, {"port": 81}]}));
    let (code, made) = api.apply(&path, "one", first.clone()).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(managers(&made), ["one Apply"]);
    let (code, again) = api.apply(&path, "one", first).await;
    assert_eq!((code.as_u16(), &again), (200, &made));

    // Another one adds to map, set and list without conflict.
    let (code, both) = api
        .apply(
            &path,
            "two",
            config(json!({"size": "small", "env": {"C": "3"}, "tags": ["z", "x"],
            "ports": [{"port": 90}, {"port": 80, "protocol": "TCP"}]})),
        )
        .await;
    assert_eq!(code, 200, "{both}");
    assert_eq!(both["spec"]["env"], json!({"A": "1", "B": "2", "C": "3"}));
    assert_eq!(both["metadata"]["generation"], 2);
    let ports = |object: &Value| -> Vec<i64> {
        object["spec"]["ports"].as_array().unwrap().iter().map(|p| p["port"].as_i64().unwrap()).collect()
    };
    assert_eq!(ports(&both), [90, 80, 81]);
    assert_eq!(both["spec"]["ports"][1], json!({"port": 80, "name": "web", "protocol": "TCP"}));

    // The first lets go: what only it had goes, what both have stays.
    let (code, less) = api.apply(&path, "one", config(json!({"size": "small", "env": {"A": "1"}}))).await;
    assert_eq!(code, 200, "{less}");
    assert_eq!(less["spec"]["env"], json!({"A": "1", "C": "3"}));
    assert_eq!(less["spec"].get("note"), None);
    assert_eq!(less["spec"]["tags"], json!(["z", "x"]));
    assert_eq!(ports(&less), [90, 80]);
    // The name of port 80 was the first one's alone.
    assert_eq!(less["spec"]["ports"][1], json!({"port": 80, "protocol": "TCP"}));
}

#[tokio::test]
async fn conflicts_name_owner_and_field_and_force_takes_over() {
    let api = Fixture::new();
    let path = format!("{WIDGETS}/a");
    api.apply(&path, "one", config(json!({"size": "small", "note": "n"}))).await;
    let (code, status) = api.apply(&path, "two", config(json!({"size": "large", "note": "m"}))).await;
    assert_eq!(code, 409);
    assert_eq!(status["message"], "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.note\n- .spec.size");
    assert_eq!(
        status["details"]["causes"][0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.note"})
    );
    // The same value is shared, not fought over.
    let (code, shared) = api.apply(&path, "two", config(json!({"size": "small"}))).await;
    assert_eq!(code, 200, "{shared}");
    let forced = api
        .patch(
            &format!("{path}?force=true&fieldManager=two"),
            common::APPLY,
            config(json!({"size": "large", "note": "m"})),
        )
        .await;
    assert_eq!(forced.0, 200);
    assert_eq!(managers(&forced.1), ["two Apply"]);
    // Nothing is the first one's any more, so its leaving changes nothing.
    let (_, left) = api.patch(&path, MERGE, json!({"spec": {"note": "patched"}})).await;
    assert_eq!(managers(&left), ["two Apply", "nodelet Update"]);
    let (code, status) = api.apply(&path, "two", config(json!({"size": "large", "note": "m"}))).await;
    assert_eq!((code.as_u16(), &status["details"]["causes"][0]["field"]), (409, &json!(".spec.note")));
    assert_eq!(api.patch(&path, common::APPLY, config(json!({}))).await.0, 422);
}

#[tokio::test]
async fn status_and_metadata_are_applied_too() {
    let api = Fixture::new();
    let path = format!("{WIDGETS}/a");
    let mut first = config(json!({"size": "small"}));
    first["metadata"]["labels"] = json!({"l": "1", "m": "1"});
    first["metadata"]["finalizers"] = json!(["test.dev/x"]);
    first["status"] = json!({"ignored": true});
    let (_, made) = api.apply(&path, "one", first.clone()).await;
    assert_eq!(made.get("status"), None);
    let status = json!({"apiVersion": "test.dev/v1", "kind": "Widget", "metadata": {"name": "a"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "n": 1}});
    let (code, with_status) = api.apply(&format!("{path}/status"), "controller", status.clone()).await;
    assert_eq!(code, 200, "{with_status}");
    assert_eq!(with_status["status"]["n"], 1);
    assert_eq!(with_status["metadata"]["labels"], json!({"l": "1", "m": "1"}));
    assert_eq!(with_status["metadata"]["generation"], 1);
    let (_, same) = api.apply(&format!("{path}/status"), "controller", status.clone()).await;
    assert_eq!(same, with_status);
    first["metadata"]["labels"] = json!({"l": "2"});
    first["metadata"].as_object_mut().unwrap().remove("finalizers");
    let (code, relabelled) = api.apply(&path, "one", first).await;
    assert_eq!(code, 200, "{relabelled}");
    assert_eq!(relabelled["metadata"]["labels"], json!({"l": "2"}));
    assert_eq!(relabelled["metadata"].get("finalizers"), None);
    assert_eq!(relabelled["status"], with_status["status"]);
    let mut gone = status;
    gone["status"].as_object_mut().unwrap().remove("n");
    let (_, less) = api.apply(&format!("{path}/status"), "controller", gone).await;
    assert_eq!(less["status"], json!({"conditions": [{"type": "Ready", "status": "True"}]}));
}

#[tokio::test]
async fn applied_fields_are_checked_like_any_other() {
    let api = Fixture::new();
    let path = format!("{WIDGETS}/a?fieldValidation=Strict&fieldManager=one");
    let (code, status) = api.patch(&path, common::APPLY, config(json!({"size": "small", "sise": 1}))).await;
    assert_eq!(code, 400, "{status}");
    let (code, status) = api.patch(&path, common::APPLY, config(json!({"size": "huge"}))).await;
    assert_eq!(code, 422, "{status}");
    let configmaps = "/api/v1/namespaces/default/configmaps/c";
    let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    assert_eq!(api.apply(configmaps, "one", map(json!({"a": "1", "b": "1"}))).await.0, 201);
    let (_, less) = api.apply(configmaps, "one", map(json!({"b": "2"}))).await;
    assert_eq!(less["data"], json!({"b": "2"}));
}

/// Specs of widgets that are valid whatever they are merged with.
fn spec() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec!["a", "b", "c", "d"]);
    let env = prop::collection::btree_map(word.clone(), prop::sample::select(vec!["1", "2"]), 0..4);
    let tags = prop::collection::btree_set(word.clone(), 0..4);
    let ports = prop::collection::btree_map(1..5i64, prop::option::of(word.clone()), 0..4);
    (env, tags, ports, prop::option::of(word)).prop_map(|(env, tags, ports, note)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(port, name)| match name {
                Some(name) => json!({"port": port, "name": name}),
                None => json!({"port": port}),
            })
            .collect();
        let mut spec = json!({"size": "small", "env": env, "tags": tags, "ports": ports});
        if let Some(note) = note {
            spec["note"] = json!(note);
        }
        spec
    })
}

/// Whether everything that `wanted` says holds in `found`.
fn holds(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(w), Value::Object(f)) => w.iter().all(|(k, v)| f.get(k).is_some_and(|f| holds(v, f))),
        (Value::Array(w), Value::Array(f)) => w.iter().all(|w| f.iter().any(|f| holds(w, f))),
        (w, f) => w == f,
    }
}

proptest! {
    #![proptest_config(common::cases(48))]

    /// Forced applies of two managers in any order: what was applied last holds, applying it again changes nothing,
    /// and a manager alone gets exactly what it says.
    #[test]
    fn applies_hold_and_are_idempotent(steps in prop::collection::vec((any::<bool>(), spec()), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Fixture::new();
            for (who, spec) in &steps {
                let path = format!("{WIDGETS}/a?force=true&fieldManager={who}");
                let (code, object) = api.patch(&path, common::APPLY, config(spec.clone())).await;
                assert!(code.is_success(), "{object}");
                // An empty map or list of one manager does not empty that of the other.
                assert!(holds(spec, &object["spec"]) , "{spec} in {}", object["spec"]);
                let (_, again) = api.patch(&path, common::APPLY, config(spec.clone())).await;
                assert_eq!(&again, &object);
            }
            let (_, last) = steps.last().unwrap();
            for who in [true, false] {
                api.patch(&format!("{WIDGETS}/a?force=true&fieldManager={who}"), common::APPLY, config(last.clone())).await;
            }
            let (_, object) = api.get(&format!("{WIDGETS}/a")).await;
            for field in ["env", "tags", "note"] {
                let empty = |v: &Value| v.is_null() || *v == json!({}) || *v == json!([]);
                assert!(object["spec"][field] == last[field] || (empty(&object["spec"][field]) && empty(&last[field])),
                    "{field}: {} is not {}", object["spec"], last);
            }
            assert_eq!(object["spec"]["ports"].as_array().map_or(0, Vec::len), last["ports"].as_array().unwrap().len());
        });
    }
}
