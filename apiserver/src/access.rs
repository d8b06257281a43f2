//! Who may do what, and telling clients so.

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::admission::now;
use crate::registry::Writers;
use crate::represent;
use crate::request::{Context, Target, User};
use crate::status::ApiError;
use crate::{body, protobuf};

/// Refuses what the sender may not do.
pub(crate) fn authorize(
    context: &Context,
    target: &Target<'_>,
    method: &Method,
    is_write: bool,
) -> Result<(), ApiError> {
    let resource = target.resource;
    let writable = match resource.writers {
        Writers::Everyone => true,
        Writers::Trusted => context.trusted,
        Writers::Nobody => false,
    };
    if is_write && !writable {
        return Err(ApiError::method_not_allowed());
    }
    let verb = verb(method, target.name.is_some(), context.query.flag("watch"));
    if may(&context.user, verb, &resource.group, &resource.plural) {
        return Ok(());
    }
    let place = match &target.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let name = target.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
    let message = format!(
        "{}{name} is forbidden: User {:?} cannot {verb} resource {:?} in API group {:?} {place}",
        resource.qualified(),
        context.user.name,
        resource.plural,
        resource.group
    );
    Err(ApiError::new(403, "Forbidden", message))
}

fn verb(method: &Method, named: bool, watch: bool) -> &'static str {
    match (method.as_str(), named) {
        ("GET" | "HEAD", _) if watch => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        (_, true) => "delete",
        (_, false) => "deletecollection",
    }
}

/// Whether a user may do something with a resource.
fn may(user: &User, verb: &str, group: &str, plural: &str) -> bool {
    let reads = matches!(verb, "get" | "list" | "watch");
    !user.read_only || (reads && !(group.is_empty() && plural == "secrets"))
}

/// `kubectl auth whoami` and `kubectl auth can-i`; `None` for other paths.
pub(crate) fn review(
    parts: &http::request::Parts,
    segments: &[String],
    bytes: &[u8],
) -> Result<Option<Response<Body>>, ApiError> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let user = || parts.extensions.get::<User>().cloned().unwrap_or_else(User::root);
    let answer = match words.as_slice() {
        ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] => {
            let user = user();
            json!({
                "kind": "SelfSubjectReview",
                "apiVersion": "authentication.k8s.io/v1",
                "metadata": {"creationTimestamp": now()},
                "status": {"userInfo": {"username": user.name, "groups": user.groups}},
            })
        }
        ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] if parts.method == Method::POST => {
            let context = Context::new(parts)?;
            let asked = match context.content_type.as_str() {
                protobuf::MEDIA => protobuf::decode(bytes)?,
                _ => body::object(&context, bytes)?,
            };
            access_review(&user(), &asked["spec"])
        }
        ["apis", "authorization.k8s.io", "v1", "selfsubjectrulesreviews"] => rules_review(&user(), bytes),
        _ => return Ok(None),
    };
    if parts.method != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    Ok(Some(represent::answer(StatusCode::CREATED, answer.to_string())))
}

/// `kubectl auth can-i --list`: the same in every namespace.
fn rules_review(user: &User, bytes: &[u8]) -> Value {
    let spec = serde_json::from_slice(bytes).map_or(Value::Null, |asked: Value| asked["spec"].clone());
    let (resources, paths) = if user.read_only {
        let verbs = json!(["get", "list", "watch"]);
        // What the reader may not see has to be left out by naming all else.
        let core = ["configmaps", "events", "namespaces", "nodes", "pods", "pods/log"];
        let others = ["apiextensions.k8s.io", "coordination.k8s.io", "events.k8s.io", "nodelet.dev"];
        let rules = json!([
            {"verbs": verbs, "apiGroups": [""], "resources": core},
            {"verbs": verbs, "apiGroups": others, "resources": ["*"]},
        ]);
        (rules, json!([{"verbs": ["get"], "nonResourceURLs": ["*"]}]))
    } else {
        let all = json!(["*"]);
        (json!([{"verbs": all, "apiGroups": all, "resources": all}]), json!([{"verbs": all, "nonResourceURLs": all}]))
    };
    json!({
        "kind": "SelfSubjectRulesReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": if spec.is_null() { json!({}) } else { spec },
        "status": {"resourceRules": resources, "nonResourceRules": paths, "incomplete": false},
    })
}

fn access_review(user: &User, spec: &Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let about = &spec["resourceAttributes"];
    let allowed = if about.is_object() {
        // Whoever opens a stream writes, by whatever verb.
        let stream = crate::streams::kind_of(&text(&about["subresource"])).is_some();
        let verb = if stream { "create".into() } else { text(&about["verb"]) };
        may(user, &verb, &text(&about["group"]), &text(&about["resource"]))
    } else {
        !user.read_only || text(&spec["nonResourceAttributes"]["verb"]) == "get"
    };
    json!({
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": spec,
        "status": {"allowed": allowed},
    })
}
