//! Nothing that a client sends makes the server panic or answer with an internal error.
#![allow(clippy::unwrap_used)]

mod common;

use axum::body::Body;
use common::{Fixture, WIDGETS, widget};
use http::{Method, Request};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};

/// JSON with the names that mean something, in places where they do not belong.
fn value() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "a",
        "",
        "v1",
        "ConfigMap",
        "Widget",
        "test.dev/v1",
        "$patch",
        "delete",
        "replace",
        "/",
        "/metadata/name",
        "-1",
        "é",
        "2026-01-01T00:00:00Z",
        "apiVersion",
        "kind",
        "TCP",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "status",
        "data",
        "stringData",
        "binaryData",
        "immutable",
        "name",
        "namespace",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "managedFields",
        "fieldsV1",
        "f:spec",
        "k:{}",
        "uid",
        "resourceVersion",
        "generateName",
        "deletionTimestamp",
        "creationTimestamp",
        "generation",
        "size",
        "env",
        "tags",
        "ports",
        "port",
        "protocol",
        "count",
        "op",
        "path",
        "value",
        "from",
        "$patch",
        "$retainKeys",
        "$setElementOrder/ports",
        "$deleteFromPrimitiveList/finalizers",
        "propagationPolicy",
        "preconditions",
        "dryRun",
        "phase",
        "conditions",
        "manager",
        "operation",
        "fieldsType",
        "type",
    ]);
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| map
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

/// A valid object with something put over one of its parts.
fn almost(base: Value) -> impl Strategy<Value = Value> {
    let place = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "data",
        "metadata.labels",
        "metadata.annotations",
        "metadata.finalizers",
        "metadata.ownerReferences",
        "metadata.managedFields",
        "metadata.name",
        "spec.finalizers",
        "spec.ports",
        "stringData",
    ]);
    (place, value()).prop_map(move |(place, value)| {
        let mut object = base.clone();
        match place.split_once('.') {
            Some((outer, inner)) => object[outer][inner] = value,
            None => object[place] = value,
        }
        object
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let bases = [
        widget("a"),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}),
        json!({"metadata": {"name": "a"}}),
    ];
    prop_oneof![
        4 => prop::sample::select(bases.to_vec()).prop_flat_map(almost).prop_map(|v| v.to_string().into_bytes()),
        3 => value().prop_map(|v| v.to_string().into_bytes()),
        1 => prop::collection::vec(value(), 1..3).prop_map(|v| Value::from(v).to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(|tail| [b"k8s\0".to_vec(), tail].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

fn path() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        format!("{WIDGETS}/a"),
        format!("{WIDGETS}/a/status"),
        WIDGETS.to_owned(),
        "/api/v1/namespaces/default/configmaps".into(),
        "/api/v1/namespaces/default/configmaps/a".into(),
        "/api/v1/namespaces/default/secrets".into(),
        "/api/v1/namespaces".into(),
        "/api/v1/namespaces/b".into(),
        "/api/v1/namespaces/b/status".into(),
        "/apis/events.k8s.io/v1/namespaces/default/events".into(),
        "/apis/coordination.k8s.io/v1/namespaces/default/leases/a".into(),
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".into(),
        "/api".into(),
        "/openapi/v3/api/v1".into(),
    ]);
    let query = prop::sample::select(vec![
        "",
        "fieldManager=a",
        "fieldManager=a&force=true",
        "dryRun=All",
        "labelSelector=a%20in%20(b",
        "labelSelector=!a,b%3E3",
        "fieldSelector=metadata.name=a",
        "fieldSelector=spec.size%3D",
        "limit=1",
        "limit=-1",
        "continue=e30",
        "continue=x",
        "resourceVersion=1",
        "resourceVersion=x",
        "watch=true&timeoutSeconds=0",
        "watch=true&resourceVersion=1&timeoutSeconds=0",
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1&timeoutSeconds=0",
        "fieldValidation=Strict",
        "fieldValidation=x",
        "%ff=%ff",
        "&&=&",
        "propagationPolicy=Orphan",
        "includeObject=Object",
    ]);
    (known, query).prop_map(|(path, query)| format!("{path}?{query}"))
}

proptest! {
    #![proptest_config(common::cases(48))]

    #[test]
    fn requests_are_answered(requests in prop::collection::vec((
        prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE"]),
        path(),
        prop::sample::select(vec!["", "application/json", "application/yaml", "application/json-patch+json",
            "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml",
            "application/vnd.kubernetes.protobuf"]),
        prop::sample::select(vec!["*/*", "application/json;as=Table;v=v1;g=meta.k8s.io",
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"]),
        body(),
    ), 60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Fixture::new();
            api.post(WIDGETS, widget("a")).await;
            api.post("/api/v1/namespaces", json!({"metadata": {"name": "b"}})).await;
            for (method, path, kind, accept, body) in requests {
                let request = Request::builder()
                    .method(Method::from_bytes(method.as_bytes()).unwrap())
                    .uri(&path)
                    .header("content-type", kind)
                    .header("accept", accept)
                    .body(Body::from(body.clone()))
                    .unwrap();
                let response = api.send(request).await;
                let code = response.status().as_u16();
                let answer = response.into_body().collect().await.unwrap().to_bytes();
                assert!(code < 500 || code == 504, "{method} {path} {kind} {}: {code} {}",
                    String::from_utf8_lossy(&body), String::from_utf8_lossy(&answer));
            }
            // Everything that got in can be read by the next process.
            let api = api.reopen().await;
            for path in [WIDGETS, "/api/v1/configmaps", "/api/v1/secrets", "/api/v1/namespaces", "/api/v1/events"] {
                assert_eq!(api.get(path).await.0, 200, "{path}");
            }
        });
    }
}
