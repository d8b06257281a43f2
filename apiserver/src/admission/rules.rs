//! What an object's metadata and the data of ConfigMaps and Secrets may hold, beyond their schemas.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use crate::registry::{Class, Resource};
use crate::status::FieldError;

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
/// What the value of a label may be.
pub(crate) const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

pub(super) fn metadata_rules(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
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
    for owner in metadata["ownerReferences"].as_array().into_iter().flatten() {
        for (field, called) in [("apiVersion", "version"), ("kind", "kind"), ("name", "name"), ("uid", "uid")] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                let (field, detail) =
                    (format!("metadata.ownerReferences.{field}"), format!("{called} must not be empty"));
                errors.push(FieldError::invalid(field, &json!(""), detail));
            }
        }
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

/// What is wrong with the key of a label, if anything is.
pub fn wrong_label_key(key: &str) -> Option<String> {
    let mut errors = Vec::new();
    qualified(key, "", &mut errors);
    errors.into_iter().next().and_then(|error| error.message.split(": ").last().map(str::to_owned))
}

/// Whether a label may have this value.
pub fn is_label_value(text: &str) -> bool {
    text.len() <= 63 && (text.is_empty() || QUALIFIED.is_match(text))
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

/// What is wrong with a key that, as the name of a file, would be outside its directory.
fn leads_elsewhere(key: &str) -> Option<&'static str> {
    match key {
        "." => Some("must not be '.'"),
        ".." => Some("must not be '..'"),
        _ if key.starts_with("..") => Some("must not start with '..'"),
        _ => None,
    }
}

pub(super) fn kind_rules(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if !matches!(resource.class, Class::ConfigMap | Class::Secret) {
        return;
    }
    for field in ["data", "binaryData"] {
        for key in object[field].as_object().into_iter().flat_map(serde_json::Map::keys) {
            if key.len() > 253 || !DATA_KEY.is_match(key) {
                let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                    'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                errors.push(FieldError::invalid(format!("{field}[{key}]"), &json!(key), rule));
            }
            if let Some(rule) = leads_elsewhere(key) {
                errors.push(FieldError::invalid(format!("{field}[{key}]"), &json!(key), rule));
            }
            if field == "binaryData" && object["data"].get(key).is_some() {
                let detail = "duplicate of key present in data";
                errors.push(FieldError::invalid(format!("{field}[{key}]"), &json!(key), detail));
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
