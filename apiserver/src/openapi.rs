//! The OpenAPI documents: what `kubectl explain`, completion and strict validation read.

mod binary;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{Class, Resource, Writers};
use crate::represent;
use crate::request::{accepted, is_json};
use crate::server::Server;
use crate::status::ApiError;

/// Answers a request below `/openapi`.
pub(crate) fn answer(
    server: &Server,
    parts: &http::request::Parts,
    words: &[&str],
) -> Result<Response<Body>, ApiError> {
    let accepts = accepted(&parts.headers);
    let in_binary = |media: &str| media.replacen("v2@v1.0", "v2.v1.0", 1) == binary::MEDIA;
    let wanted = accepts.iter().find(|a| is_json(a.media) || (in_binary(a.media) && words == ["openapi", "v2"]));
    let wanted = wanted.ok_or_else(|| ApiError::not_acceptable("application/json"))?;
    let document = match words {
        ["openapi", "v2"] => version_2(server),
        ["openapi", "v3"] => index(server),
        ["openapi", "v3", "api", version] => version_3(server, "", version)?,
        ["openapi", "v3", "apis", group, version] => version_3(server, group, version)?,
        _ => return Err(ApiError::no_such_path()),
    };
    let (body, media) = if is_json(wanted.media) {
        (Bytes::from(document.to_string()), "application/json")
    } else {
        (Bytes::from(binary::encode(&document)), binary::MEDIA)
    };
    let tag = format!("\"{}\"", digest(&body));
    let tag = HeaderValue::from_str(&tag).map_err(|e| ApiError::internal(e.to_string()))?;
    let known = parts.headers.get(header::IF_NONE_MATCH).is_some_and(|given| *given == tag);
    let mut response =
        if known { represent::answer(StatusCode::NOT_MODIFIED, "") } else { represent::answer(StatusCode::OK, body) };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02X}")).collect()
}

fn groups(server: &Server) -> Vec<(String, String)> {
    let groups = server.inner.registry.groups();
    let pairs = groups.iter().flat_map(|(group, versions)| versions.iter().map(move |version| (*group, *version)));
    pairs.map(|(group, version)| (group.to_owned(), version.to_owned())).collect()
}

fn index(server: &Server) -> Value {
    let mut paths = Map::new();
    for (group, version) in groups(server) {
        let Ok(document) = version_3(server, &group, &version) else { continue };
        let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let url = format!("/openapi/v3/{path}?hash={}", digest(document.to_string().as_bytes()));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn served<'a>(server: &'a Server, group: &str, version: &str) -> Vec<&'a Resource> {
    server.inner.registry.all().iter().filter(|r| r.group == group && r.version == version).collect()
}

/// `io.k8s.api.core.v1.ConfigMap`, `dev.nodelet.v1alpha1.Workload`.
fn model(resource: &Resource) -> String {
    let package: Vec<&str> = match resource.group.as_str() {
        "" => vec!["io", "k8s", "api", "core"],
        group => group.rsplit('.').collect(),
    };
    format!("{}.{}.{}", package.join("."), resource.version, resource.kind)
}

fn kind(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

/// The schema of a kind and of its list. `prefix` is where references point.
fn models(resource: &Resource, prefix: &str) -> [(String, Value); 2] {
    let name = model(resource);
    let mut schema = resource.document.parsed();
    schema["x-kubernetes-group-version-kind"] = json!([kind(resource)]);
    let mut list_kind = kind(resource);
    list_kind["kind"] = json!(resource.list_kind());
    let list = json!({
        "description": format!("{} is a list of {}", resource.list_kind(), resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {
                "continue": {"type": "string"},
                "remainingItemCount": {"type": "integer", "format": "int64"},
                "resourceVersion": {"type": "string"}}},
            "items": {"type": "array", "items": {"$ref": format!("{prefix}{name}")}},
        },
        "x-kubernetes-group-version-kind": [list_kind],
    });
    [(format!("{name}List"), list), (name, schema)]
}

/// How the two versions of OpenAPI write the same things.
#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn prefix(self) -> &'static str {
        if self == Self::V2 { "#/definitions/" } else { "#/components/schemas/" }
    }

    fn parameter(self, place: &str, name: &str, kind: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place});
        if place == "path" {
            parameter["required"] = json!(true);
        }
        if self == Self::V2 {
            parameter["type"] = json!(kind);
            parameter["uniqueItems"] = json!(true);
        } else {
            parameter["schema"] = json!({"type": kind, "uniqueItems": true});
        }
        parameter
    }

    fn responses(self, schema: &Value) -> Value {
        match self {
            Self::V2 => json!({"200": {"description": "OK", "schema": schema}}),
            Self::V3 => json!({"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}}),
        }
    }
}

fn operation(dialect: Dialect, resource: &Resource, action: &str, extra: &[(&str, &str)], body: &[&str]) -> Value {
    let name = model(resource);
    let answer = if action == "list" { format!("{name}List") } else { name.clone() };
    let schema = json!({"$ref": format!("{}{answer}", dialect.prefix())});
    let mut parameters: Vec<Value> = extra.iter().map(|(n, kind)| dialect.parameter("query", n, kind)).collect();
    let mut operation = json!({
        "operationId": format!("{action}{}{}{}", resource.group.replace('.', ""), resource.version, resource.kind),
        "responses": dialect.responses(&schema),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind(resource),
    });
    if !body.is_empty() {
        let sent = if action == "patch" {
            json!({"type": "object"})
        } else {
            json!({"$ref": format!("{}{name}", dialect.prefix())})
        };
        if dialect == Dialect::V2 {
            parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": sent}));
            operation["consumes"] = json!(body);
        } else {
            let content: Map<String, Value> =
                body.iter().map(|kind| ((*kind).to_owned(), json!({"schema": sent}))).collect();
            operation["requestBody"] = json!({"content": content, "required": true});
        }
    }
    if dialect == Dialect::V2 {
        operation["produces"] = json!(["application/json"]);
    }
    operation["parameters"] = json!(parameters);
    operation
}

const WRITE: [(&str, &str); 3] = [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const LIST: [(&str, &str); 9] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const DELETE: [(&str, &str); 3] =
    [("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")];
const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The paths of a resource with their operations.
fn paths(dialect: Dialect, resource: &Resource, into: &mut Map<String, Value>) {
    let root = match resource.group.as_str() {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    let op = |action, extra: &[(&str, &str)], body: &[&str]| operation(dialect, resource, action, extra, body);
    let force = [&WRITE[..], &[("force", "boolean")]].concat();
    let in_namespace = dialect.parameter("path", "namespace", "string");
    let of_name = dialect.parameter("path", "name", "string");
    let (base, mut fixed) = if resource.namespaced {
        into.insert(format!("{root}/{}", resource.plural), json!({"get": op("list", &LIST, &[])}));
        (format!("{root}/namespaces/{{namespace}}/{}", resource.plural), vec![in_namespace])
    } else {
        (format!("{root}/{}", resource.plural), Vec::new())
    };
    let writable = resource.writers == Writers::Everyone;
    let mut collection = json!({"parameters": fixed, "get": op("list", &LIST, &[])});
    if writable {
        collection["post"] = op("post", &WRITE, &["application/json", "application/yaml"]);
        collection["delete"] = op("deletecollection", &LIST, &[]);
    }
    into.insert(base.clone(), collection);
    fixed.insert(0, of_name);
    let item = |part: &str| {
        let mut item = json!({"parameters": fixed, "get": op("get", &[], &[])});
        if writable {
            item["put"] = op("put", &WRITE, &["application/json", "application/yaml"]);
            // A client that reads of strategic merge here uses it; custom kinds do not have it.
            let kinds = if resource.class == Class::Custom { &PATCHES[..3] } else { &PATCHES[..] };
            item["patch"] = op("patch", &force, kinds);
            if part.is_empty() {
                item["delete"] = op("delete", &DELETE, &[]);
            }
        }
        item
    };
    into.insert(format!("{base}/{{name}}"), item(""));
    if resource.has_status {
        into.insert(format!("{base}/{{name}}/status"), item("status"));
    }
}

fn version_3(server: &Server, group: &str, version: &str) -> Result<Value, ApiError> {
    let served = served(server, group, version);
    if served.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let mut schemas = Map::new();
    let mut all = Map::new();
    for resource in served {
        schemas.extend(models(resource, Dialect::V3.prefix()));
        paths(Dialect::V3, resource, &mut all);
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": {"title": "nodelet", "version": server.inner.options.version},
        "paths": all,
        "components": {"schemas": schemas},
    }))
}

fn version_2(server: &Server) -> Value {
    let mut definitions = Map::new();
    let mut all = Map::new();
    for resource in server.inner.registry.all() {
        for (name, mut schema) in models(resource, Dialect::V2.prefix()) {
            simplify(&mut schema);
            definitions.insert(name, schema);
        }
        paths(Dialect::V2, resource, &mut all);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "nodelet", "version": server.inner.options.version},
        "paths": all,
        "definitions": definitions,
    })
}

/// Leaves out what OpenAPI v2 cannot say.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for unknown in ["anyOf", "oneOf", "not", "nullable"] {
                // A property may have such a name; then its value is a schema of its own.
                if map.get(unknown).is_some_and(|v| v.is_array() || v.is_boolean()) {
                    map.remove(unknown);
                }
            }
            map.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        _ => {}
    }
}
