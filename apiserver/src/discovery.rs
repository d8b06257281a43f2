//! What the server tells about itself: versions, groups, resources, health.

use axum::body::Body;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::openapi;
use crate::registry::Resource;
use crate::represent;
use crate::request::{accepted, is_json};
use crate::server::Server;
use crate::status::ApiError;

/// The Kubernetes version whose API this is, for clients that look at it.
const KUBERNETES: (u32, u32) = (1, 32);

/// Answers a request that concerns no resource; `None` if it concerns one.
pub(crate) fn answer(
    server: &Server,
    parts: &http::request::Parts,
    segments: &[String],
) -> Result<Option<Response<Body>>, ApiError> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let known = matches!(
        words.as_slice(),
        [] | ["version" | "api" | "apis" | "healthz" | "livez" | "readyz"] | ["api" | "apis", _] | ["apis", _, _]
    ) || matches!(words.first(), Some(&("openapi" | "healthz" | "livez" | "readyz")));
    if !known {
        return Ok(None);
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    if words.first() == Some(&"openapi") {
        return openapi::answer(server, parts, &words).map(Some);
    }
    let registry = &server.inner.registry;
    let accepts = accepted(&parts.headers);
    if !accepts.iter().any(|a| is_json(a.media) || a.media.starts_with("text/")) {
        return Err(ApiError::not_acceptable("application/json"));
    }
    let aggregated = accepts
        .iter()
        .any(|a| a.parameters.get("as") == Some(&"APIGroupDiscoveryList") && a.parameters.get("v") == Some(&"v2"));
    let body = match words.as_slice() {
        [] => json!({"paths": paths(server)}),
        ["version"] => version(&server.inner.options.version),
        ["api" | "apis"] if aggregated => {
            let mut response = represent::answer(StatusCode::OK, aggregate(server, words[0] == "api").to_string());
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
            );
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            return Ok(Some(response));
        }
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }),
        ["apis"] => {
            let groups = registry.groups();
            let groups: Vec<Value> = groups.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let groups = registry.groups();
            let (name, versions) =
                groups.iter().find(|(g, _)| g == name && !g.is_empty()).ok_or_else(ApiError::no_such_path)?;
            let mut group = group(name, versions);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            group
        }
        ["api", version] => resources(server, "", version)?,
        ["apis", group, version] => resources(server, group, version)?,
        ["healthz" | "livez" | "readyz", ..] => {
            let verbose =
                parts.uri.query().is_some_and(|query| query.split('&').any(|word| word.starts_with("verbose")));
            let said =
                if verbose { format!("[+]ping ok\n[+]store ok\n{} check passed\n", words[0]) } else { "ok".into() };
            let mut response = Response::new(Body::from(said));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            return Ok(Some(response));
        }
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(Some(represent::answer(StatusCode::OK, body.to_string())))
}

fn version(own: &str) -> Value {
    let (major, minor) = KUBERNETES;
    json!({
        "major": major.to_string(),
        "minor": minor.to_string(),
        "gitVersion": format!("v{major}.{minor}.0+nodelet-{own}"),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", a => a }),
    })
}

fn paths(server: &Server) -> Vec<String> {
    let mut paths: Vec<String> = vec!["/api".into(), "/api/v1".into(), "/apis".into()];
    for (group, versions) in server.inner.registry.groups().iter().filter(|(g, _)| !g.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(["/healthz", "/livez", "/readyz", "/version"].map(Into::into));
    paths
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

fn served<'a>(server: &'a Server, group: &str, version: &str) -> Vec<&'a Resource> {
    server.inner.registry.all().iter().filter(|r| r.group == group && r.version == version).collect()
}

/// Parts of a resource's objects and their verbs.
fn parts_of(server: &Server, resource: &Resource) -> Vec<(String, Vec<String>)> {
    let mut parts = Vec::new();
    if resource.has_status {
        parts.push(("status".to_owned(), ["get", "patch", "update"].map(str::to_owned).to_vec()));
    }
    let original = server.inner.registry.original(resource);
    for (group, plural, part, verbs) in server.subresources.iter().flat_map(|s| s.served()) {
        if group == original.group && plural == original.plural {
            parts.push((part.to_owned(), verbs.iter().map(|v| (*v).to_owned()).collect()));
        }
    }
    if server.stream_server(original).is_some() {
        let streams = ["attach", "exec", "portforward"];
        parts.extend(streams.map(|part| (part.to_owned(), ["create", "get"].map(str::to_owned).to_vec())));
    }
    parts
}

fn resources(server: &Server, group: &str, version: &str) -> Result<Value, ApiError> {
    let served = served(server, group, version);
    let Some(first) = served.first() else { return Err(ApiError::no_such_path()) };
    let mut list = Vec::new();
    for resource in &served {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs(),
            "storageVersionHash": "",
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        list.push(entry);
        for (part, verbs) in parts_of(server, resource) {
            list.push(json!({
                "name": format!("{}/{part}", resource.plural),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": verbs,
            }));
        }
    }
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": list}))
}

/// Aggregated discovery: everything in one answer.
fn aggregate(server: &Server, core: bool) -> Value {
    let mut items = Vec::new();
    for (group, versions) in server.inner.registry.groups() {
        if group.is_empty() != core {
            continue;
        }
        let versions: Vec<Value> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Value> =
                    served(server, group, version).into_iter().map(|r| aggregate_resource(server, r)).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        items.push(json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions}));
    }
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregate_resource(server: &Server, resource: &Resource) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let parts: Vec<Value> = parts_of(server, resource)
        .into_iter()
        .map(|(part, verbs)| json!({"subresource": part, "responseKind": kind, "verbs": verbs}))
        .collect();
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs(),
    });
    for (field, value) in [
        ("shortNames", json!(resource.short_names)),
        ("categories", json!(resource.categories)),
        ("subresources", json!(parts)),
    ] {
        if value != json!([]) {
            entry[field] = value;
        }
    }
    entry
}
