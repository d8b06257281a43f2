//! A server over a temporary store, with one custom kind that uses every feature of schemas.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use nodelet_apiserver::{OpenError, Options, Server, Trusted};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

pub const WIDGETS: &str = "/apis/test.dev/v1/namespaces/default/widgets";
pub const MERGE: &str = "application/merge-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";

pub fn definition() -> CustomResourceDefinition {
    serde_json::from_str(r#"{
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.test.dev"},
        "spec": {"group": "test.dev", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList",
                "shortNames": ["wd"], "categories": ["test"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.size"}],
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "string", "jsonPath": ".spec.size"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": {"type": "object", "required": ["size"],
                        "x-kubernetes-validations": [
                            {"rule": "self.count <= 10 || self.size == 'large'", "message": "only large ones may have more than 10"},
                            {"rule": "self.fixed == oldSelf.fixed", "message": "fixed cannot be changed"}],
                        "properties": {
                            "size": {"type": "string", "enum": ["small", "large"]},
                            "count": {"type": "integer", "default": 1, "minimum": 0},
                            "fixed": {"type": "string", "default": "a"},
                            "note": {"type": "string"},
                            "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                            "args": {"type": "array", "items": {"type": "string"}},
                            "env": {"type": "object", "additionalProperties": {"type": "string"}},
                            "ports": {"type": "array", "x-kubernetes-list-type": "map",
                                "x-kubernetes-list-map-keys": ["port", "protocol"],
                                "items": {"type": "object", "required": ["port"], "properties": {
                                    "port": {"type": "integer"}, "name": {"type": "string"},
                                    "protocol": {"type": "string", "default": "TCP"}}}}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}
    }"#)
    .unwrap()
}

pub struct Fixture {
    pub server: Server,
    pub dir: Arc<TempDir>,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self { server: open(&dir), dir }
    }

    pub async fn reopen(self) -> Self {
        let Self { server, dir } = self;
        drop(server);
        Self { server: open(&dir), dir }
    }

    pub fn client(&self) -> kube::Client {
        self.server.client("default")
    }

    /// A request from a user.
    pub async fn send(&self, request: Request<Body>) -> http::Response<Body> {
        self.server.service().oneshot(request).await.unwrap()
    }

    pub async fn call(&self, method: Method, path: &str, kind: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let mut request = Request::builder().method(method).uri(path);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let response = self.send(request.body(body).unwrap()).await;
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, "", Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, "application/json", body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::PUT, path, "application/json", body).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::PATCH, path, kind, body).await
    }

    pub async fn delete(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::DELETE, path, "application/json", body).await
    }

    pub async fn apply(&self, path: &str, manager: &str, body: Value) -> (StatusCode, Value) {
        self.patch(&format!("{path}?fieldManager={manager}"), APPLY, body).await
    }

    /// Waits until `path` answers with `code`.
    pub async fn until(&self, path: &str, code: u16) -> Value {
        for _ in 0..500 {
            let (found, body) = self.get(path).await;
            if found == code {
                return body;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{path} never answered {code}: {:?}", self.get(path).await);
    }
}

/// Opens the store, once the server before has finished what it was about.
pub fn open(dir: &TempDir) -> Server {
    for _ in 0..1000 {
        let options = Options { store: dir.path().join("store.db"), ..Options::default() };
        match Server::open(options, vec![definition()]) {
            Err(OpenError::InUse { .. }) => std::thread::park_timeout(std::time::Duration::from_millis(5)),
            opened => return opened.unwrap(),
        }
    }
    panic!("the store stays in use");
}

pub fn widget(name: &str) -> Value {
    json!({"apiVersion": "test.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": "small"}})
}

pub fn trusted(mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(Trusted);
    request
}

/// Properties are tried this often; a case that fails is kept beside the test.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, FileFailurePersistence};
    let kept = FileFailurePersistence::WithSource("regressions");
    Config { cases, failure_persistence: Some(Box::new(kept)), ..Config::default() }
}
