//! The life of objects: verbs, validation, ownership of parts, deletion.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::{Fixture, MERGE, WIDGETS, widget};
use http::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn create_fills_in_and_get_returns_it() {
    let api = Fixture::new();
    let (code, made) = api.post(WIDGETS, widget("a")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"], json!({"size": "small", "count": 1, "fixed": "a"}));
    let metadata = &made["metadata"];
    assert_eq!(metadata["generation"], 1);
    assert!(metadata["uid"].as_str().unwrap().len() == 36 && metadata["creationTimestamp"].is_string());
    assert_eq!(api.get(&format!("{WIDGETS}/a")).await, (http::StatusCode::OK, made));
    let (code, status) = api.post(WIDGETS, widget("a")).await;
    assert_eq!((code.as_u16(), &status["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(status["message"], r#"widgets.test.dev "a" already exists"#);
    let (code, status) = api.get(&format!("{WIDGETS}/b")).await;
    assert_eq!((code.as_u16(), &status["message"]), (404, &json!(r#"widgets.test.dev "b" not found"#)));
    let (code, status) = api.post("/apis/test.dev/v1/namespaces/none/widgets", widget("a")).await;
    assert_eq!((code.as_u16(), &status["message"]), (404, &json!(r#"namespaces "none" not found"#)));
    let mut generated = widget("x");
    generated["metadata"] = json!({"generateName": "x-"});
    let (_, made) = api.post(WIDGETS, generated).await;
    assert_eq!(made["metadata"]["name"].as_str().unwrap().len(), 7);
}

#[tokio::test]
async fn all_violations_at_once() {
    let api = Fixture::new();
    let mut bad = widget("Bad_Name");
    bad["spec"] = json!({"size": "huge", "count": "x", "ports": [{}]});
    let (code, status) = api.post(WIDGETS, bad).await;
    assert_eq!(code, 422);
    let fields: Vec<&str> =
        status["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["metadata.name", "spec.count", "spec.ports[0].port", "spec.size", "<nil>"]);
    assert!(
        status["message"].as_str().unwrap().starts_with(r#"Widget.test.dev "Bad_Name" is invalid: [metadata.name: "#)
    );
    let mut rule = widget("a");
    rule["spec"]["count"] = json!(11);
    let (code, status) = api.post(WIDGETS, rule).await;
    assert_eq!(code, 422);
    assert_eq!(
        status["message"],
        r#"Widget.test.dev "a" is invalid: spec: Invalid value: "object": only large ones may have more than 10"#
    );
    api.post(WIDGETS, widget("a")).await;
    let (code, status) = api.patch(&format!("{WIDGETS}/a"), MERGE, json!({"spec": {"fixed": "b"}})).await;
    assert_eq!(code, 422, "{status}");
    assert!(status["message"].as_str().unwrap().ends_with("fixed cannot be changed"));
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_about_or_dropped() {
    let api = Fixture::new();
    let mut odd = widget("a");
    odd["spec"]["sise"] = json!(1);
    let (code, status) = api.post(&format!("{WIDGETS}?fieldValidation=Strict"), odd.clone()).await;
    assert_eq!(code, 400);
    assert_eq!(
        status["message"],
        r#"Widget in version "v1" cannot be handled as a Widget: strict decoding error: unknown field "spec.sise""#
    );
    let request = http::Request::post(WIDGETS).body(axum::body::Body::from(odd.to_string())).unwrap();
    let response = api.send(request).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["warning"], r#"299 - "unknown field \"spec.sise\"""#);
    let twice = r#"{"metadata":{"name":"b"},"spec":{"size":"small","size":"large"}}"#;
    let request = http::Request::post(format!("{WIDGETS}?fieldValidation=Strict")).body(axum::body::Body::from(twice));
    assert_eq!(api.send(request.unwrap()).await.status(), 400);
}

#[tokio::test]
async fn updates_need_the_latest_version_and_change_nothing_for_nothing() {
    let api = Fixture::new();
    let path = format!("{WIDGETS}/a");
    let (_, made) = api.post(WIDGETS, widget("a")).await;
    let (code, same) = api.put(&path, made.clone()).await;
    assert_eq!((code.as_u16(), &same), (200, &made));
    let mut next = made.clone();
    next["spec"]["note"] = json!("x");
    let (code, updated) = api.put(&path, next.clone()).await;
    assert_eq!((code.as_u16(), &updated["metadata"]["generation"]), (200, &json!(2)));
    let (code, status) = api.put(&path, next.clone()).await;
    assert_eq!((code.as_u16(), &status["reason"]), (409, &json!("Conflict")));
    next["metadata"]["resourceVersion"] = Value::Null;
    assert_eq!(api.put(&path, next).await.0, 422);
    let (_, patched) = api.patch(&path, MERGE, json!({"spec": {"note": "x"}})).await;
    assert_eq!(patched, updated);
    let (_, labelled) = api.patch(&path, MERGE, json!({"metadata": {"labels": {"l": "v"}}})).await;
    assert_eq!(labelled["metadata"]["generation"], 2);
    let patch = json!([{"op": "test", "path": "/spec/note", "value": "x"}, {"op": "remove", "path": "/spec/note"}]);
    let (code, patched) = api.patch(&path, "application/json-patch+json", patch.clone()).await;
    assert_eq!((code.as_u16(), patched["spec"].get("note")), (200, None));
    assert_eq!(api.patch(&path, "application/json-patch+json", patch).await.0, 422);
    assert_eq!(api.patch(&path, "application/strategic-merge-patch+json", json!({})).await.0, 415);
    assert_eq!(api.call(Method::POST, WIDGETS, "application/vnd.kubernetes.protobuf", json!({})).await.0, 400);
    assert_eq!(api.call(Method::POST, WIDGETS, "text/plain", json!({})).await.0, 415);
}

#[tokio::test]
async fn status_is_a_part_of_its_own() {
    let api = Fixture::new();
    let mut with_status = widget("a");
    with_status["status"] = json!({"x": 1});
    let (_, made) = api.post(WIDGETS, with_status).await;
    assert_eq!(made.get("status"), None);
    let both = json!({"spec": {"note": "n"}, "status": {"phase": "Up"}});
    let (code, object) = api.patch(&format!("{WIDGETS}/a/status"), MERGE, both.clone()).await;
    assert_eq!(code, 200, "{object}");
    assert_eq!((&object["status"], object["spec"].get("note")), (&json!({"phase": "Up"}), None));
    assert_eq!(object["metadata"]["generation"], 1);
    let (_, object) =
        api.patch(&format!("{WIDGETS}/a"), MERGE, json!({"status": {"phase": "Down"}, "spec": {"note": "n"}})).await;
    assert_eq!((&object["status"]["phase"], &object["spec"]["note"]), (&json!("Up"), &json!("n")));
    assert_eq!(object["metadata"]["generation"], 2);
    let (code, _) = api.get("/api/v1/namespaces/default/configmaps/x/status").await;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let api = Fixture::new();
    let path = format!("{WIDGETS}/a");
    let mut held = widget("a");
    held["metadata"]["finalizers"] = json!(["test.dev/hold"]);
    let (_, made) = api.post(WIDGETS, held).await;
    let (code, going) = api.delete(&path, Value::Null).await;
    assert_eq!(code, 200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let (code, status) =
        api.patch(&path, MERGE, json!({"metadata": {"finalizers": ["test.dev/hold", "test.dev/more"]}})).await;
    assert_eq!(code, 422, "{status}");
    let (code, _) = api.patch(&path, MERGE, json!({"metadata": {"finalizers": []}})).await;
    assert_eq!(code, 200);
    assert_eq!(api.get(&path).await.0, 404);
    let (code, status) = api.delete(&path, Value::Null).await;
    assert_eq!(code, 404, "{status}");
    api.post(WIDGETS, widget("a")).await;
    let (code, _) = api.delete(&path, json!({"preconditions": {"uid": made["metadata"]["uid"]}})).await;
    assert_eq!(code, 409);
    let (code, status) = api.delete(&path, Value::Null).await;
    assert_eq!((code.as_u16(), &status["status"]), (200, &json!("Success")));
}

#[tokio::test]
async fn dependents_and_namespaces_are_collected() {
    let api = Fixture::new();
    let (_, owner) = api.post(WIDGETS, widget("owner")).await;
    let owned = json!({"metadata": {"name": "owned", "ownerReferences": [{"apiVersion": "test.dev/v1",
        "kind": "Widget", "name": "owner", "uid": owner["metadata"]["uid"]}]}});
    let configmaps = "/api/v1/namespaces/default/configmaps";
    let (code, body) = api.post(configmaps, owned).await;
    assert_eq!(code, 201, "{body}");
    api.delete(&format!("{WIDGETS}/owner"), Value::Null).await;
    api.until(&format!("{configmaps}/owned"), 404).await;

    let (code, made) = api.post("/api/v1/namespaces", json!({"metadata": {"name": "extra"}})).await;
    assert_eq!((code.as_u16(), &made["status"]["phase"]), (201, &json!("Active")));
    api.post("/api/v1/namespaces/extra/configmaps", json!({"metadata": {"name": "c"}})).await;
    let mut held = widget("held");
    held["metadata"]["finalizers"] = json!(["test.dev/hold"]);
    api.post("/apis/test.dev/v1/namespaces/extra/widgets", held).await;
    let (code, going) = api.delete("/api/v1/namespaces/extra", Value::Null).await;
    assert_eq!((code.as_u16(), &going["status"]["phase"]), (200, &json!("Terminating")));
    api.until("/api/v1/namespaces/extra/configmaps/c", 404).await;
    let (code, _) = api.post("/api/v1/namespaces/extra/configmaps", json!({"metadata": {"name": "d"}})).await;
    assert_eq!(code, 403);
    assert_eq!(api.get("/api/v1/namespaces/extra").await.0, 200);
    let held = "/apis/test.dev/v1/namespaces/extra/widgets/held";
    api.patch(held, MERGE, json!({"metadata": {"finalizers": null}})).await;
    api.until("/api/v1/namespaces/extra", 404).await;
    assert_eq!(api.delete("/api/v1/namespaces/default", Value::Null).await.0, 403);
}

#[tokio::test]
async fn foreground_waits_for_dependents_and_orphans_stay() {
    let api = Fixture::new();
    let configmaps = "/api/v1/namespaces/default/configmaps";
    for policy in ["Foreground", "Orphan"] {
        let (_, owner) = api.post(WIDGETS, widget("owner")).await;
        let owned = json!({"metadata": {"name": "owned", "finalizers": ["test.dev/hold"], "ownerReferences": [
            {"apiVersion": "test.dev/v1", "kind": "Widget", "name": "owner", "blockOwnerDeletion": true,
                "uid": owner["metadata"]["uid"]}]}});
        api.post(configmaps, owned).await;
        let (code, _) = api.delete(&format!("{WIDGETS}/owner"), json!({"propagationPolicy": policy})).await;
        assert_eq!(code, 200);
        if policy == "Orphan" {
            api.until(&format!("{WIDGETS}/owner"), 404).await;
            let (_, owned) = api.get(&format!("{configmaps}/owned")).await;
            assert_eq!(owned["metadata"].get("ownerReferences"), None);
        } else {
            for _ in 0..100 {
                if api.get(&format!("{configmaps}/owned")).await.1["metadata"]["deletionTimestamp"].is_string() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            assert_eq!(api.get(&format!("{WIDGETS}/owner")).await.0, 200);
            api.patch(&format!("{configmaps}/owned"), MERGE, json!({"metadata": {"finalizers": null}})).await;
            api.until(&format!("{WIDGETS}/owner"), 404).await;
            api.until(&format!("{configmaps}/owned"), 404).await;
        }
    }
}

#[tokio::test]
async fn secrets_and_configmaps_have_rules_of_their_own() {
    let api = Fixture::new();
    let secrets = "/api/v1/namespaces/default/secrets";
    let (code, made) =
        api.post(secrets, json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}, "immutable": true})).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["data"], &made["type"]), (&json!({"k": "dg=="}), &json!("Opaque")));
    let (code, status) = api.patch(&format!("{secrets}/s"), MERGE, json!({"data": {"k": "dw=="}})).await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(api.post(secrets, json!({"metadata": {"name": "t"}, "data": {"k": "***"}})).await.0, 400);
    let configmaps = "/api/v1/namespaces/default/configmaps";
    let strict = format!("{configmaps}?fieldValidation=Strict");
    assert_eq!(api.post(&strict, json!({"metadata": {"name": "c"}, "dta": {}})).await.0, 400);
    assert_eq!(api.post(&strict, json!({"metadata": {"name": "c", "lables": {}}})).await.0, 400);
    assert_eq!(api.post(&strict, json!({"metadata": {"name": "c"}, "data": {"a/b": ""}})).await.0, 422);
}

#[tokio::test]
async fn nodes_and_definitions_are_read_only_for_users() {
    let api = Fixture::new();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    assert_eq!(api.post("/api/v1/nodes", node.clone()).await.0, 405);
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(api.client());
    nodes.create(&Default::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    assert_eq!(api.get("/api/v1/nodes/n").await.0, 200);
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.test.dev";
    let (code, found) = api.get(crd).await;
    assert_eq!((code.as_u16(), &found["status"]["acceptedNames"]["kind"]), (200, &json!("Widget")));
    assert_eq!(api.delete(crd, Value::Null).await.0, 405);
}

#[tokio::test]
async fn everything_survives_reopening() {
    let api = Fixture::new();
    api.post(WIDGETS, widget("a")).await;
    api.post(WIDGETS, widget("b")).await;
    api.delete(&format!("{WIDGETS}/b"), Value::Null).await;
    let before = api.get(WIDGETS).await.1;
    let api = api.reopen().await;
    assert_eq!(api.get(WIDGETS).await.1, before);
    let (_, made) = api.post(WIDGETS, widget("c")).await;
    let rv = |v: &Value| v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(rv(&made) > rv(&before));
}

#[tokio::test]
async fn a_definition_that_goes_keeps_its_objects_for_when_it_comes_back() {
    let api = Fixture::new();
    let (_, made) = api.post(WIDGETS, widget("a")).await;
    let Fixture { server, dir } = api;
    drop(server);
    let open = |definitions: Vec<_>| loop {
        let options = nodelet_apiserver::Options { store: dir.path().join("store.db"), ..Default::default() };
        match nodelet_apiserver::Server::open(options, definitions.clone()) {
            Err(nodelet_apiserver::OpenError::InUse { .. }) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    let api = Fixture { server: open(vec![]), dir: dir.clone() };
    assert_eq!(api.get(&format!("{WIDGETS}/a")).await.0, 404);
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(api.get(crds).await.1["items"], json!([]));
    drop(api);
    let api = Fixture { server: open(vec![common::definition()]), dir: dir.clone() };
    assert_eq!(api.get(&format!("{WIDGETS}/a")).await.1, made);
    assert_eq!(api.get(crds).await.1["items"].as_array().unwrap().len(), 1);
}
