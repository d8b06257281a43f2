//! Nothing that a client sends makes the server panic, answer with an internal error, or stop answering.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use common::{Fixture, WIDGETS, widget};
use http::{Method, Request};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics of any thread, those that the server catches as well.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(info);
        }));
    });
}

fn no_panics() {
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "the server panicked");
}

/// Changes to some bytes: flipped, put in, left out, said twice.
fn mutations() -> impl Strategy<Value = Vec<(u8, prop::sample::Index, u8)>> {
    prop::collection::vec((0..5u8, any::<prop::sample::Index>(), any::<u8>()), 0..6)
}

fn mutate(mut bytes: Vec<u8>, mutations: &[(u8, prop::sample::Index, u8)]) -> Vec<u8> {
    for (kind, place, byte) in mutations {
        let at = place.index(bytes.len() + 1).min(bytes.len().saturating_sub(1));
        match kind {
            _ if bytes.is_empty() => bytes.push(*byte),
            0 => bytes[at] ^= byte,
            1 => bytes.insert(at, *byte),
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {
                let again = bytes[at..(at + usize::from(*byte)).min(bytes.len())].to_vec();
                bytes.extend(again);
            }
        }
    }
    bytes
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 127 {
        bytes.push((number & 127) as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn length_delimited(field: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(field << 3 | 2, &mut bytes);
    varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// Messages of any shape, as objects of the kinds that are read as protobuf.
fn protobuf() -> impl Strategy<Value = Vec<u8>> {
    let number = (1..18u64, any::<u64>()).prop_map(|(field, number)| {
        let mut bytes = Vec::new();
        varint(field << 3, &mut bytes);
        varint(number, &mut bytes);
        bytes
    });
    let text = prop_oneof![
        Just(b"a".to_vec()),
        Just("é".as_bytes().to_vec()),
        Just(b"{\"f:data\":{}}".to_vec()),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    let text = (1..18u64, text).prop_map(|(field, text)| length_delimited(field, &text));
    let message = prop_oneof![number, text].prop_recursive(4, 32, 6, |inner| {
        (1..18u64, prop::collection::vec(inner, 0..6))
            .prop_map(|(field, parts)| length_delimited(field, &parts.concat()))
    });
    let kinds = prop::sample::select(vec![
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("v1", "Namespace"),
        ("v1", "Event"),
        ("events.k8s.io/v1", "Event"),
        ("coordination.k8s.io/v1", "Lease"),
        ("v1", "DeleteOptions"),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
    ]);
    (kinds, prop::collection::vec(message, 0..8)).prop_map(|((version, kind), parts)| {
        let name = length_delimited(1, &length_delimited(1, b"a"));
        let object = [name, parts.concat()].concat();
        let of_type = [length_delimited(1, version.as_bytes()), length_delimited(2, kind.as_bytes())].concat();
        [b"k8s\0".to_vec(), length_delimited(1, &of_type), length_delimited(2, &object)].concat()
    })
}

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
    let valid = prop::sample::select(bases.to_vec()).prop_map(|v| v.to_string().into_bytes());
    let operation = prop_oneof![
        value(),
        (
            prop::sample::select(vec!["add", "replace", "remove", "copy", "move", "test"]),
            prop::sample::select(vec![
                "",
                "/spec",
                "/spec/tags/-",
                "/spec/ports/0",
                "/metadata/labels/a~1b",
                "/data/k",
                "/x/y"
            ]),
            prop::sample::select(vec!["", "/spec", "/metadata", "/spec/tags/0", "/status"]),
            value(),
        )
            .prop_map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value})),
    ];
    prop_oneof![
        2 => (valid, mutations()).prop_map(|(bytes, mutations)| mutate(bytes, &mutations)),
        2 => (protobuf(), prop_oneof![Just(Vec::new()), mutations()]).prop_map(|(bytes, mutations)| mutate(bytes, &mutations)),
        2 => prop::collection::vec(operation, 0..5).prop_map(|v| Value::from(v).to_string().into_bytes()),
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
        count_panics();
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
        no_panics();
    }

    /// Requests as bytes, with something changed anywhere: in the line, the headers or the body.
    #[test]
    fn connections_survive_anything(requests in prop::collection::vec((
        prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
        prop_oneof![path(), "(/[a-z%0-9?&=.;,()!~+]{0,12}){0,8}"],
        prop::sample::select(vec!["application/json", "application/yaml", "application/apply-patch+yaml",
            "application/vnd.kubernetes.protobuf", "application/json; charset=latin1", "é"]),
        prop::sample::select(vec!["accept: */*", "accept: application/json;as=Table;v=v1;g=meta.k8s.io",
            "expect: 100-continue", "upgrade: SPDY/3.1\r\nconnection: upgrade", "transfer-encoding: chunked",
            "authorization: Bearer x", "content-length: 7", "user-agent: \u{1}", "accept-encoding: gzip"]),
        body(),
        mutations(),
    ), 40)) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        count_panics();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Fixture::new();
            api.post(WIDGETS, widget("a")).await;
            let (socket, shutdown) = (api.dir.path().join("s"), tokio_util::sync::CancellationToken::new());
            let (server, at, token) = (api.server.clone(), socket.clone(), shutdown.clone());
            let served = tokio::spawn(async move { server.serve_unix(&at, token).await });
            while tokio::net::UnixStream::connect(&socket).await.is_err() {
                tokio::task::yield_now().await;
            }
            for (method, path, kind, header, body, mutations) in requests {
                let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n{header}\r\n\
                    content-length: {}\r\n\r\n", body.len());
                let bytes = mutate([head.into_bytes(), body].concat(), &mutations);
                let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                let mut answer = Vec::new();
                // A watch that lost its time limit goes on; everything else ends.
                let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
                let said = String::from_utf8_lossy(&answer);
                let watches = String::from_utf8_lossy(&bytes).contains("watch");
                assert!(ended.is_ok() || watches, "{:?} does not end: {said}", String::from_utf8_lossy(&bytes));
                assert!(!said.starts_with("HTTP/1.1 500"), "{:?}: {said}", String::from_utf8_lossy(&bytes));
            }
            assert_eq!(api.get("/readyz").await.0, 200);
            assert_eq!(api.get(WIDGETS).await.0, 200);
            shutdown.cancel();
            served.await.unwrap().unwrap();
        });
        no_panics();
    }
}
