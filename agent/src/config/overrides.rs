//! Values that come from elsewhere than the file: `NODELET_*` variables and flags.
//!
//! The name of a variable is the key's path: `runtime.cgroupParent` is `NODELET_RUNTIME_CGROUP_PARENT`. Variables that
//! are no key are left alone, since a Kubernetes Service of a fitting name injects such (`NODELET_PORT`).

use serde_json::{Value, json};

use super::NodeletConfiguration;

/// Where a value came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One value laid over the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The key, such as `api.listen`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// The overrides among `variables`.
pub fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Override> {
    let keys = keys();
    variables
        .into_iter()
        .filter_map(|(name, text)| {
            let (key, default) = keys.iter().find(|(key, _)| variable(key) == name)?;
            Some(Override { key: key.clone(), value: typed(default, &text), origin: Origin::Environment(name) })
        })
        .collect()
}

/// The override that a flag makes; an unknown `key` is found when the configuration is read.
pub fn from_flag(flag: &str, key: &str, text: &str) -> Override {
    let keys = keys();
    let default = keys.iter().find(|(known, _)| known == key).map_or(&Value::Null, |(_, default)| default);
    Override { key: key.to_owned(), value: typed(default, text), origin: Origin::Flag(flag.to_owned()) }
}

/// Every key that holds a value, with its default.
fn keys() -> Vec<(String, Value)> {
    fn walk(path: &str, value: &Value, into: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    walk(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, into);
                }
            }
            _ => into.push((path.to_owned(), value.clone())),
        }
    }
    let mut keys = Vec::new();
    walk("", &json!(NodeletConfiguration::default()), &mut keys);
    keys.retain(|(key, _)| key != "apiVersion" && key != "kind");
    keys
}

/// `runtime.cgroupParent` -> `NODELET_RUNTIME_CGROUP_PARENT`
fn variable(key: &str) -> String {
    let mut name = "NODELET_".to_owned();
    for c in key.chars() {
        match c {
            '.' => name.push('_'),
            c if c.is_ascii_uppercase() => {
                name.push('_');
                name.push(c);
            }
            c => name.push(c.to_ascii_uppercase()),
        }
    }
    name
}

/// Text as a value of the default's type; text that does not fit stays text, and the type check names it.
fn typed(default: &Value, text: &str) -> Value {
    let list = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    match default {
        Value::String(_) => json!(text),
        // nodeLabels: zone=west,rack=3
        Value::Object(_) => list()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (k.to_owned(), json!(v)))
            .collect(),
        // sources: /etc/nodelet/manifests,/srv/manifests
        Value::Array(_) => list().map(|directory| json!({"directory": directory})).collect(),
        _ => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    }
}

/// Puts `value` at `key`, making what is missing on the way.
pub(super) fn set(document: &mut Value, key: &str, value: Value) {
    let mut at = document;
    for part in key.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}
