//! kube-rs.

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy, ValidationDirective, VersionMatch, WatchEvent, WatchParams,
};
use serde_json::{Value, json};

use crate::subject::Subject;
use crate::table::{Client, Outcome, Step, kind_of};

/// A client of kube-rs.
pub struct KubeRs<'a> {
    subject: &'a Subject,
    client: kube::Client,
}

impl<'a> KubeRs<'a> {
    /// For this server.
    pub fn new(subject: &'a Subject) -> Result<Self> {
        Ok(Self { subject, client: subject.client()? })
    }
}

impl Client for KubeRs<'_> {
    fn act(&mut self, step: &Step, namespace: &str) -> Result<Option<Outcome>> {
        match self.subject.runtime.block_on(act(&self.client, step, namespace)) {
            Ok(None) => Ok(None),
            Ok(Some(object)) => Ok(Some(Outcome { object, ..Outcome::default() })),
            Err(error) => match error.downcast::<kube::Error>()? {
                kube::Error::Api(status) => Ok(Some(Outcome {
                    code: Some(status.code),
                    reason: Some(status.reason.clone()),
                    message: Some(status.message.clone()),
                    object: serde_json::to_value(&*status)?,
                })),
                other => Err(other).context("kube-rs could not make sense of the answer"),
            },
        }
    }
}

/// A step's query parameters, of which each is asked for once; what is left over cannot be said.
struct Query<'a>(&'a Step, Vec<&'a str>);

impl<'a> Query<'a> {
    fn text(&mut self, name: &'static str) -> Option<String> {
        self.1.push(name);
        let value = self.0.with.get(name)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    fn all_said(&self) -> bool {
        self.0.with.keys().all(|name| self.1.contains(&name.as_str()))
    }
}

async fn act(client: &kube::Client, step: &Step, namespace: &str) -> Result<Option<Value>> {
    if step.action == "request" {
        return request(client, step).await.map(Some);
    }
    if step.action == "typed" {
        return Ok(None);
    }
    let named = kind_of(&step.of)?;
    let (group, version) = named.api_version.split_once('/').unwrap_or(("", named.api_version));
    let resource =
        ApiResource::from_gvk_with_plural(&kube::core::GroupVersionKind::gvk(group, version, named.kind), &step.of);
    let api: Api<DynamicObject> = if named.namespaced {
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    };
    let mut body = step.body.clone().unwrap_or_default();
    if body.is_object() && matches!(step.action.as_str(), "create" | "update" | "apply") {
        for (field, value) in [("apiVersion", named.api_version), ("kind", named.kind)] {
            if body[field].is_null() {
                body[field] = value.into();
            }
        }
    }
    let name = step.name.clone().unwrap_or_default();
    let is_status = step.subresource.as_deref() == Some("status");
    let mut query = Query(step, Vec::new());
    let dry_run = query.text("dryRun").as_deref() == Some("All");
    let field_manager = query.text("fieldManager");
    let write = PostParams { dry_run, field_manager: field_manager.clone() };
    let json = |object: DynamicObject| serde_json::to_value(object);
    let answer = match step.action.as_str() {
        "get" if query.all_said() => json(api.get(&name).await?)?,
        "create" if query.all_said() => json(api.create(&write, &serde_json::from_value(body)?).await?)?,
        "update" if query.all_said() && is_status => {
            json(api.replace_status(&name, &write, &serde_json::from_value(body)?).await?)?
        }
        "update" if query.all_said() => json(api.replace(&name, &write, &serde_json::from_value(body)?).await?)?,
        "patch" | "apply" => {
            let patch = match (step.action.as_str(), step.patch.as_deref()) {
                ("apply", _) => Patch::Apply(body),
                (_, Some("merge")) => Patch::Merge(body),
                (_, Some("strategic")) => Patch::Strategic(body),
                (_, Some("json")) => match serde_json::from_value(body) {
                    Ok(patch) => Patch::Json::<Value>(patch),
                    // It checks patches itself.
                    Err(_) => return Ok(None),
                },
                _ => return Ok(None),
            };
            let force = query.text("force").as_deref() == Some("true");
            let field_validation = match query.text("fieldValidation").as_deref() {
                Some("Strict") => Some(ValidationDirective::Strict),
                Some("Warn") => Some(ValidationDirective::Warn),
                Some("Ignore") => Some(ValidationDirective::Ignore),
                _ => None,
            };
            let parameters = PatchParams { dry_run, force, field_manager, field_validation };
            if !query.all_said() {
                return Ok(None);
            }
            match is_status {
                true => json(api.patch_status(&name, &parameters, &patch).await?)?,
                false => json(api.patch(&name, &parameters, &patch).await?)?,
            }
        }
        "list" => {
            let Some(parameters) = list(&mut query)? else { return Ok(None) };
            serde_json::to_value(api.list(&parameters).await?)?
        }
        "delete" | "deletecollection" => {
            let policy = match query.text("propagationPolicy").as_deref() {
                Some("Foreground") => Some(PropagationPolicy::Foreground),
                Some("Background") => Some(PropagationPolicy::Background),
                Some("Orphan") => Some(PropagationPolicy::Orphan),
                _ => None,
            };
            let preconditions = body.get("preconditions").map(|wanted| Preconditions {
                uid: wanted["uid"].as_str().map(str::to_owned),
                resource_version: wanted["resourceVersion"].as_str().map(str::to_owned),
            });
            let parameters =
                DeleteParams { dry_run, propagation_policy: policy, preconditions, ..DeleteParams::default() };
            if step.action == "deletecollection" {
                let Some(selected) = list(&mut query)? else { return Ok(None) };
                let gone = api.delete_collection(&parameters, &selected).await?;
                return Ok(Some(gone.either(serde_json::to_value, serde_json::to_value)?));
            }
            if !query.all_said() {
                return Ok(None);
            }
            api.delete(&name, &parameters).await?.either(json, serde_json::to_value)?
        }
        "watch" => return watch(&api, step, query).await,
        _ => return Ok(None),
    };
    Ok(Some(answer))
}

fn list(query: &mut Query<'_>) -> Result<Option<ListParams>> {
    let parameters = ListParams {
        label_selector: query.text("labelSelector"),
        field_selector: query.text("fieldSelector"),
        limit: query.text("limit").map(|limit| limit.parse()).transpose()?,
        continue_token: query.text("continue"),
        resource_version: query.text("resourceVersion"),
        version_match: match query.text("resourceVersionMatch").as_deref() {
            Some("Exact") => Some(VersionMatch::Exact),
            Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
            _ => None,
        },
        ..ListParams::default()
    };
    Ok(query.all_said().then_some(parameters))
}

async fn watch(api: &Api<DynamicObject>, step: &Step, mut query: Query<'_>) -> Result<Option<Value>> {
    let mut parameters = WatchParams::default().timeout(query.text("timeoutSeconds").map_or(Ok(1), |t| t.parse())?);
    parameters.label_selector = query.text("labelSelector");
    parameters.field_selector = query.text("fieldSelector");
    parameters.bookmarks = query.text("allowWatchBookmarks").as_deref() == Some("true");
    if query.text("sendInitialEvents").as_deref() == Some("true") {
        let _version_match = query.text("resourceVersionMatch");
        parameters = parameters.initial_events();
    }
    let from = query.text("resourceVersion").unwrap_or_else(|| "0".to_owned());
    if !query.all_said() || step.name.is_some() {
        return Ok(None);
    }
    let events: Vec<WatchEvent<DynamicObject>> = api.watch(&parameters, &from).await?.boxed().try_collect().await?;
    let events = events.into_iter().map(|event| match event {
        WatchEvent::Added(object) => Ok(json!({"type": "ADDED", "object": object})),
        WatchEvent::Modified(object) => Ok(json!({"type": "MODIFIED", "object": object})),
        WatchEvent::Deleted(object) => Ok(json!({"type": "DELETED", "object": object})),
        WatchEvent::Bookmark(mark) => Ok(json!({"type": "BOOKMARK", "object": {"metadata": {
            "resourceVersion": mark.metadata.resource_version, "annotations": mark.metadata.annotations}}})),
        WatchEvent::Error(status) => Err(kube::Error::Api(status)),
    });
    Ok(Some(json!({"events": events.collect::<Result<Vec<Value>, _>>()?})))
}

async fn request(client: &kube::Client, step: &Step) -> Result<Value> {
    let mut request = http::Request::builder().method(step.method.as_str()).uri(&step.path);
    for (name, value) in &step.headers {
        request = request.header(name, value);
    }
    let body = match &step.body {
        None => Vec::new(),
        Some(body) => {
            if !step.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type")) {
                request = request.header("content-type", "application/json");
            }
            body.as_str().map_or_else(|| body.to_string(), str::to_owned).into_bytes()
        }
    };
    let text = client.request_text(request.body(body)?).await?;
    if step.path.contains("watch=") {
        let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        return Ok(json!({"events": events}));
    }
    Ok(serde_json::from_str(&text).unwrap_or_else(|_| json!({"text": text})))
}
