//! Making objects well-formed: what the server fills in, what it keeps from the client, and what it refuses.

mod rules;

use std::collections::HashSet;

use base64::Engine;
use jiff::Timestamp;
pub(crate) use rules::VALUE_RULE as LABEL_VALUE_RULE;
pub use rules::{is_label_value, wrong_label_key};
use rules::{kind_rules, metadata_rules};
use serde_json::{Map, Value, json};

use crate::apply;
use crate::body;
use crate::cel;
use crate::registry::{Class, Resource};
use crate::request::Context;
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
            let given = given.as_str().unwrap_or("not a string");
            return Err(ApiError::bad_request(match field {
                "kind" => format!(
                    "{given} in version {:?} cannot be handled as a {expected}: this is where {expected} objects are",
                    resource.version
                ),
                _ => format!(
                    "the API version in the data ({given}) does not match the expected API version ({expected})"
                ),
            }));
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
            return Err(ApiError::bad_request(match name {
                None => "the namespace of the provided object does not match the namespace sent on the request".into(),
                Some(_) => format!(
                    "the namespace of the object ({given}) does not match the namespace on the request ({namespace})"
                ),
            }));
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

/// What a real server cannot even read into the type of a built-in kind is a bad request, before any rule is asked.
pub(crate) fn readable(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    if resource.class == Class::Custom {
        return Ok(());
    }
    let refuse = |detail: &str| Err(in_version(resource, ApiError::bad_request(detail)));
    let mut errors = Vec::new();
    resource.schema.validate(object, "", &mut errors);
    // Null is the same as nothing there.
    let unreadable = |e: &&FieldError| e.reason == "FieldValueTypeInvalid" && !e.message.ends_with(": \"null\"");
    if let Some(error) = errors.iter().find(unreadable) {
        let detail = error.message.split_once(": ").and_then(|(_, rest)| rest.split_once(": "));
        return refuse(detail.map_or(error.message.as_str(), |(_, detail)| detail));
    }
    let encoded = match resource.class {
        Class::Secret => "data",
        Class::ConfigMap => "binaryData",
        _ => return Ok(()),
    };
    for text in object[encoded].as_object().into_iter().flat_map(Map::values).filter_map(Value::as_str) {
        if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
            // The value is not shown: it may be a secret.
            let plain = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
            let at = text.find(|c| !plain(c)).unwrap_or(text.len() / 4 * 4);
            return refuse(&format!("illegal base64 data at input byte {at}"));
        }
    }
    Ok(())
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
    warn_of_finalizers(context, object, None);
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
        return Err(ApiError::no_version(resource, name));
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
    if resource.has_generation && part == Part::Main && !is_same_but_status(resource, live, object) {
        let generation = live["metadata"]["generation"].as_i64().unwrap_or(0);
        object["metadata"]["generation"] = json!(generation + 1);
    }
    validate(inner, resource, object, Some(live))?;
    if !tracked {
        apply::track_update(resource, context, part, Some(live), object);
    }
    warn_of_finalizers(context, object, Some(live));
    Ok(())
}

/// Warns of new finalizers that somebody else may use too.
fn warn_of_finalizers(context: &Context, object: &Value, live: Option<&Value>) {
    let of = |object: &Value| object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let known = live.map(of).unwrap_or_default();
    for finalizer in of(object).iter().filter(|finalizer| !known.contains(finalizer)).filter_map(Value::as_str) {
        if !finalizer.contains('/') && !matches!(finalizer, "foregroundDeletion" | "orphan" | "kubernetes") {
            context.warn(format!(
                "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name including a path (/) to \
                 avoid accidental conflicts with other finalizer writers"
            ));
        }
    }
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

/// Whether all is equal but metadata and status, of which no change is a new generation.
fn is_same_but_status(resource: &Resource, one: &Value, other: &Value) -> bool {
    fn rest<'a>(resource: &Resource, object: &'a Value) -> impl Iterator<Item = (&'a String, &'a Value)> {
        let has_status = resource.has_status;
        let all = object.as_object().into_iter().flatten();
        all.filter(move |(field, _)| *field != "metadata" && (*field != "status" || !has_status))
    }
    rest(resource, one).count() == rest(resource, other).count()
        && rest(resource, one).all(|(field, value)| other.get(field) == Some(value))
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

/// Most faults of one object that are said.
const MAX_CAUSES: usize = 256;

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
    // Nobody reads more, and an object can have any number of faults.
    errors.truncate(MAX_CAUSES);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiError::invalid(resource, name, &errors))
}

fn violations(inner: &Inner, resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    metadata_rules(resource, object, old, &mut errors);
    resource.schema.validate(object, "", &mut errors);
    // Said by the rules for metadata, without the position in the list.
    errors.retain(|e| e.reason != "FieldValueRequired" || !e.field.starts_with("metadata.ownerReferences["));
    kind_rules(resource, object, old, &mut errors);
    if let Some(rules) = &resource.rules {
        // Rules are written for objects that fit the schema, as far as a rule can meet what does not.
        let blocks = |error: &FieldError| {
            matches!(
                error.reason,
                "FieldValueNotSupported"
                    | "FieldValueRequired"
                    | "FieldValueTooLong"
                    | "FieldValueTooMany"
                    | "FieldValueTypeInvalid"
            )
        };
        if errors.iter().any(blocks) {
            errors.push(FieldError {
                reason: "FieldValueInvalid",
                field: "<nil>".into(),
                message: "Invalid value: null: some validation rules were not checked because the object was invalid; \
                          correct the existing errors to complete validation"
                    .into(),
            });
        } else {
            let same_but_status = old.is_some_and(|old| is_same_but_status(resource, old, object));
            cel::validate(resource, rules, object, old, same_but_status, &mut errors);
        }
    }
    for validator in &inner.options.validators {
        for (path, message) in validator(object) {
            // Said already, of the field itself or of what is below it.
            if errors.iter().any(|error| error.field.starts_with(&path)) {
                continue;
            }
            let known = ["Forbidden", "Invalid value", "Required value", "Unsupported value", "Duplicate value"];
            let worded = known.iter().any(|prefix| message.starts_with(prefix));
            let message = if worded { message } else { format!("Forbidden: {message}") };
            errors.push(FieldError { reason: "FieldValueForbidden", field: path, message });
        }
    }
    errors
}
