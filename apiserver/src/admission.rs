//! Making objects well-formed: what the server fills in, what it keeps from the client, and what it refuses.

use std::collections::HashSet;
use std::sync::LazyLock;

use base64::Engine;
use jiff::Timestamp;
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::apply;
use crate::body;
use crate::cel;
use crate::registry::{Class, Resource};
use crate::request::Context;
use crate::schema::join;
use crate::server::Inner;
use crate::status::{ApiError, FieldError};

/// Which part of an object a request changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, if the kind keeps that apart.
    Main,
    /// The status.
    Status,
}

impl Part {
    pub(crate) fn of(subresource: Option<&str>) -> Self {
        if subresource == Some("status") { Self::Status } else { Self::Main }
    }
}

/// The time as objects hold it: UTC, whole seconds.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Checks an object that came in against the path it came to, and removes or refuses unknown fields.
pub(crate) fn decode(
    context: &Context,
    resource: &Resource,
    namespace: Option<&str>,
    name: Option<&str>,
    object: &mut Value,
) -> Result<(), ApiError> {
    let Some(map) = object.as_object_mut() else {
        return Err(ApiError::bad_request(format!("a {} is an object, not a list or a scalar", resource.kind)));
    };
    for (field, expected) in [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())] {
        let given = map.entry(field).or_insert_with(|| json!(expected));
        if given.as_str() != Some(expected.as_str()) {
            let what = if field == "kind" { "kind" } else { "API version" };
            return Err(ApiError::bad_request(format!(
                "the {what} in the data ({}) does not match the expected {what} ({expected})",
                given.as_str().unwrap_or("not a string")
            )));
        }
    }
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    let Some(metadata) = metadata.as_object_mut() else {
        return Err(ApiError::bad_request("metadata is an object, not a list or a scalar"));
    };
    if let Some(namespace) = namespace {
        let given = metadata.get("namespace").and_then(Value::as_str).filter(|n| !n.is_empty()).unwrap_or(namespace);
        if given != namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({given} != {namespace})"
            )));
        }
        metadata.insert("namespace".into(), json!(namespace));
    } else {
        metadata.remove("namespace");
    }
    if let Some(name) = name {
        let given = metadata.get("name").and_then(Value::as_str).filter(|n| !n.is_empty()).unwrap_or(name);
        if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        metadata.insert("name".into(), json!(name));
    }
    let mut unknown = Vec::new();
    resource.schema.prune(object, "", &mut unknown);
    let problems = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    body::report(context, problems).map_err(|error| in_version(resource, error))
}

fn in_version(resource: &Resource, mut error: ApiError) -> ApiError {
    let (version, kind) = (&resource.version, &resource.kind);
    error.message = format!("{kind} in version {version:?} cannot be handled as a {kind}: {}", error.message);
    error
}

/// Sets a field, making the objects on the way to it. Where something else is in the way, that is left for the schema
/// to refuse.
fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((last, outer)) = path.split_last() else { return };
    let mut here = object;
    for step in outer {
        if here.is_null() {
            *here = json!({});
        }
        let Some(map) = here.as_object_mut() else { return };
        here = map.entry(*step).or_insert_with(|| json!({}));
    }
    if here.is_null() {
        *here = json!({});
    }
    if let Some(map) = here.as_object_mut() {
        map.insert((*last).to_owned(), value);
    }
}

/// What the server sets on every new object.
pub(crate) fn fill_in(resource: &Resource, object: &mut Value) {
    if resource.class == Class::Namespace {
        let name = object["metadata"]["name"].clone();
        set(object, &["metadata", "labels", "kubernetes.io/metadata.name"], name);
        set(object, &["spec", "finalizers"], json!(["kubernetes"]));
        set(object, &["status"], json!({"phase": "Active"}));
    } else if resource.has_status
        && resource.class == Class::Custom
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"] {
            metadata.remove(field);
        }
        metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
        metadata.insert("creationTimestamp".into(), json!(now()));
        if resource.has_generation {
            metadata.insert("generation".into(), json!(1));
        }
    }
    resource.schema.apply_defaults(object);
}

/// Makes a decoded object ready for being written as a new one.
pub(crate) fn for_create(
    inner: &Inner,
    context: &Context,
    resource: &Resource,
    object: &mut Value,
    tracked: bool,
) -> Result<(), ApiError> {
    if object["metadata"]["resourceVersion"].as_str().is_some_and(|rv| !rv.is_empty()) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    fill_in(resource, object);
    expand_string_data(resource, object);
    validate(inner, resource, object, None)?;
    if !tracked {
        apply::track_update(resource, context, Part::Main, None, object);
    }
    Ok(())
}

/// Makes a decoded object ready for replacing `live`.
pub(crate) fn for_update(
    inner: &Inner,
    context: &Context,
    resource: &Resource,
    part: Part,
    live: &Value,
    object: &mut Value,
    tracked: bool,
) -> Result<(), ApiError> {
    let name = live["metadata"]["name"].as_str().unwrap_or_default();
    let given = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if given.is_empty() && resource.class == Class::Custom && part == Part::Main && !tracked {
        let error = FieldError::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(ApiError::invalid(resource, name, &[error]));
    }
    if !given.is_empty() && live["metadata"]["resourceVersion"] != given {
        return Err(ApiError::modified(resource, name));
    }
    if let Some(uid) = object["metadata"]["uid"].as_str().filter(|uid| live["metadata"]["uid"] != *uid) {
        let detail = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            live["metadata"]["uid"].as_str().unwrap_or_default()
        );
        return Err(ApiError::conflict(resource, name, &detail));
    }
    keep_apart(resource, part, live, object);
    keep_metadata(live, object);
    resource.schema.apply_defaults(object);
    expand_string_data(resource, object);
    if resource.has_generation && part == Part::Main && significant(resource, live) != significant(resource, object) {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or(0);
        object["metadata"]["generation"] = json!(generation + 1);
    }
    validate(inner, resource, object, Some(live))?;
    if !tracked {
        apply::track_update(resource, context, part, Some(live), object);
    }
    Ok(())
}

/// Keeps what the request's part does not concern as it is.
fn keep_apart(resource: &Resource, part: Part, live: &Value, object: &mut Value) {
    let copy = |from: &Value, to: &mut Value, field: &str| {
        let Some(to) = to.as_object_mut() else { return };
        match from.get(field) {
            Some(value) => to.insert(field.into(), value.clone()),
            None => to.remove(field),
        };
    };
    match part {
        Part::Status => {
            let mut whole = live.clone();
            copy(object, &mut whole, "status");
            let managed = object["metadata"]["managedFields"].take();
            if !managed.is_null() {
                whole["metadata"]["managedFields"] = managed;
            }
            *object = whole;
        }
        Part::Main if resource.has_status => copy(live, object, "status"),
        Part::Main => {}
    }
    if resource.class == Class::Namespace {
        copy(live, object, "spec");
    }
}

/// Keeps the metadata that only the server sets.
fn keep_metadata(live: &Value, object: &mut Value) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
        "resourceVersion",
    ] {
        match live["metadata"].get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    // Empty collections are not kept, as no client can tell them from absent ones.
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match metadata.get(field) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

/// The part of an object whose change is a new generation.
fn significant<'a>(resource: &Resource, object: &'a Value) -> Map<String, Value> {
    let all: Option<&'a Map<String, Value>> = object.as_object();
    all.into_iter()
        .flatten()
        .filter(|(field, _)| *field != "metadata" && (*field != "status" || !resource.has_status))
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect()
}

/// A Secret's `stringData` is a way of writing `data`.
fn expand_string_data(resource: &Resource, object: &mut Value) {
    if resource.class != Class::Secret {
        return;
    }
    let Some(Value::Object(plain)) = object.as_object_mut().and_then(|o| o.remove("stringData")) else { return };
    for (key, value) in plain {
        // What is not text stays as it is, for the schema to refuse.
        let value = match value {
            Value::String(text) => json!(base64::engine::general_purpose::STANDARD.encode(text)),
            other => other,
        };
        set(object, &["data", &key], value);
    }
}

/// Refuses an object with everything that is wrong with it. What was wrong before and is left alone is let pass: a
/// rule that came with an upgrade must not keep anybody from reporting status or letting go of an old object.
pub(crate) fn validate(
    inner: &Inner,
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let mut errors = violations(inner, resource, object, old);
    if errors.is_empty() {
        return Ok(());
    }
    if let Some(old) = old {
        let before = violations(inner, resource, old, None);
        errors.retain(|error| !before.contains(error));
        if errors.is_empty() {
            return Ok(());
        }
    }
    let mut seen = HashSet::new();
    errors.retain(|e| seen.insert((e.field.clone(), e.message.clone())));
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiError::invalid(resource, name, &errors))
}

fn violations(inner: &Inner, resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    metadata_rules(resource, object, old, &mut errors);
    resource.schema.validate(object, "", &mut errors);
    kind_rules(resource, object, old, &mut errors);
    // Rules are written for objects that fit the schema.
    if errors.is_empty()
        && let Some(rules) = &resource.rules
    {
        cel::validate(resource, rules, object, old, &mut errors);
    }
    for validator in &inner.options.validators {
        for (path, message) in validator(object) {
            let known = ["Forbidden", "Invalid value", "Required value", "Unsupported value", "Duplicate value"];
            let worded = known.iter().any(|prefix| message.starts_with(prefix));
            let message = if worded { message } else { format!("Forbidden: {message}") };
            errors.push(FieldError { reason: "FieldValueForbidden", field: path, message });
        }
    }
    errors
}

static LABEL: LazyLock<Regex> = LazyLock::new(|| regex("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static QUALIFIED: LazyLock<Regex> = LazyLock::new(|| regex("^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));
static DATA_KEY: LazyLock<Regex> = LazyLock::new(|| regex("^[-._a-zA-Z0-9]+$"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of names are constants")
}

const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
    or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
    must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
    end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn metadata_rules(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let metadata = &object["metadata"];
    match metadata["name"].as_str().filter(|n| !n.is_empty()) {
        None => errors.push(FieldError {
            message: "Required value: name or generateName is required".into(),
            ..FieldError::required("metadata.name")
        }),
        Some(_) if old.is_some() => {}
        Some(name) => {
            let value = json!(name);
            let (pattern, rule, max) = match resource.class {
                Class::Namespace => (&LABEL, LABEL_RULE, 63),
                _ => (&SUBDOMAIN, SUBDOMAIN_RULE, 253),
            };
            if name.len() > max {
                let detail = format!("must be no more than {max} bytes");
                errors.push(FieldError::invalid("metadata.name", &value, detail));
            }
            if !pattern.is_match(name) {
                errors.push(FieldError::invalid("metadata.name", &value, rule));
            }
        }
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        qualified(key, "metadata.labels", errors);
        let text = value.as_str().unwrap_or_default();
        if text.len() > 63 {
            errors.push(FieldError::invalid("metadata.labels", value, "must be no more than 63 bytes"));
        }
        if !text.is_empty() && !QUALIFIED.is_match(text) {
            errors.push(FieldError::invalid("metadata.labels", value, VALUE_RULE));
        }
    }
    let mut total = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        qualified(&key.to_lowercase(), "metadata.annotations", errors);
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > 256 << 10 {
        errors.push(FieldError::too_long("metadata.annotations", 256 << 10));
    }
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        qualified(finalizer.as_str().unwrap_or_default(), "metadata.finalizers", errors);
    }
    if let Some(old) = old.filter(|old| old["metadata"]["deletionTimestamp"].is_string()) {
        let none = Vec::new();
        let before = old["metadata"]["finalizers"].as_array().unwrap_or(&none);
        let added: Vec<&Value> =
            metadata["finalizers"].as_array().into_iter().flatten().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{}",
                json!(added).to_string().replace('[', "{").replace(']', "}")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
}

/// `name` or `prefix/name`.
fn qualified(key: &str, field: &str, errors: &mut Vec<FieldError>) {
    let value = json!(key);
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|p| p.is_empty() || p.len() > 253 || !SUBDOMAIN.is_match(p)) {
        errors.push(FieldError::invalid(field, &value, format!("prefix part {SUBDOMAIN_RULE}")));
    }
    if name.len() > 63 {
        errors.push(FieldError::invalid(field, &value, "name part must be no more than 63 bytes"));
    }
    if !QUALIFIED.is_match(name) {
        errors.push(FieldError::invalid(field, &value, QUALIFIED_RULE));
    }
}

fn kind_rules(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if !matches!(resource.class, Class::ConfigMap | Class::Secret) {
        return;
    }
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            if key.len() > 253 || !DATA_KEY.is_match(key) || key == "." || key == ".." {
                let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                    'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                errors.push(FieldError::invalid(format!("{field}[{key}]"), &json!(key), rule));
            }
            let encoded = field == "binaryData" || resource.class == Class::Secret;
            let decodes = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).is_ok();
            if encoded && !value.as_str().is_some_and(decodes) {
                // The value is not shown: it may be a secret.
                let error = FieldError::invalid(join(field, key), &json!("***"), "must be base64");
                errors.push(error);
            }
        }
    }
    let size: usize = ["data", "binaryData"]
        .iter()
        .flat_map(|field| object[*field].as_object().into_iter().flatten())
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > (1 << 20) * 4 / 3 {
        errors.push(FieldError::too_long("", 1 << 20));
    }
    let Some(old) = old else { return };
    if resource.class == Class::Secret && old["type"] != object["type"] {
        errors.push(FieldError::invalid("type", &object["type"], "field is immutable"));
    }
    if old["immutable"] == true {
        let fixed = "field is immutable when `immutable` is set";
        for field in ["immutable", "data", "binaryData"] {
            if old.get(field) != object.get(field) {
                errors.push(FieldError::forbidden(field, fixed));
            }
        }
    }
}
