//! Environment variables: from ConfigMaps, Secrets, fields and literals to values, in Kubernetes' order.

use std::collections::BTreeMap;

use kube::ResourceExt;
use nodelet_crds::reasons;
use nodelet_crds::workload::{Container, EnvVar, EnvVarSource, Workload};

use super::dereference::References;
use super::model::{About, Wait};
use crate::invalid::Invalid;

/// The variables of one container, in order, each name once. What is missing is added to `waits`.
pub fn variables(
    object: &Workload,
    container: &Container,
    path: &str,
    node: &str,
    references: &References,
    waits: &mut Vec<Wait>,
) -> Result<Vec<(String, String)>, Invalid> {
    let mut variables = Variables::default();
    for source in &container.env_from {
        if let Some(reference) = &source.config_map_ref {
            match references.config_maps.get(&reference.name).and_then(Option::as_ref) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        variables.set(format!("{}{key}", source.prefix), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => waits.push(missing("ConfigMap", &reference.name, None)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match references.secrets.get(&reference.name).and_then(Option::as_ref) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        // Bytes that are no text cannot be a variable.
                        if let Ok(text) = String::from_utf8(value.0.clone()) {
                            variables.set(format!("{}{key}", source.prefix), text);
                        }
                    }
                }
                None if reference.optional == Some(true) => {}
                None => waits.push(missing("Secret", &reference.name, None)),
            }
        }
    }
    for (index, env) in container.env.iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        if let Some(value) = value(object, env, &path, node, references, waits)? {
            let value = if env.value_from.is_none() { expand(&value, &variables.values) } else { value };
            variables.set(env.name.clone(), value);
        }
    }
    Ok(variables.into_ordered())
}

/// What is missing, as a wait.
pub fn missing(kind: &str, name: &str, key: Option<&str>) -> Wait {
    let message = match key {
        None => format!("{kind} {name:?} does not exist: create it, or mark the reference optional"),
        Some(key) => format!("{kind} {name:?} has no key {key:?}: add it, or mark the reference optional"),
    };
    Wait { reason: reasons::CONFIG_MISSING, message, about: About::Configuration }
}

fn value(
    object: &Workload,
    env: &EnvVar,
    path: &str,
    node: &str,
    references: &References,
    waits: &mut Vec<Wait>,
) -> Result<Option<String>, Invalid> {
    let Some(from) = &env.value_from else { return Ok(Some(env.value.clone().unwrap_or_default())) };
    let EnvVarSource { config_map_key_ref, secret_key_ref, field_ref, resource_field_ref } = from;
    if let Some(selector) = config_map_key_ref {
        let map = references.config_maps.get(&selector.name).and_then(Option::as_ref);
        let value = map.and_then(|map| map.data.as_ref()?.get(&selector.key).cloned());
        if value.is_none() && selector.optional != Some(true) {
            waits.push(missing("ConfigMap", &selector.name, map.map(|_| selector.key.as_str())));
        }
        return Ok(value);
    }
    if let Some(selector) = secret_key_ref {
        let secret = references.secrets.get(&selector.name).and_then(Option::as_ref);
        let Some(bytes) = secret.and_then(|secret| secret.data.as_ref()?.get(&selector.key)) else {
            if selector.optional != Some(true) {
                waits.push(missing("Secret", &selector.name, secret.map(|_| selector.key.as_str())));
            }
            return Ok(None);
        };
        return match String::from_utf8(bytes.0.clone()) {
            Ok(text) => Ok(Some(text)),
            // The value itself must not appear anywhere.
            Err(_) => Err(Invalid::field(
                format!("{path}.valueFrom.secretKeyRef"),
                format!("key {:?} of Secret {:?} is not UTF-8 text: mount it as a file", selector.key, selector.name),
            )),
        };
    }
    if let Some(selector) = field_ref {
        return field(object, &selector.field_path, node).map(Some).ok_or_else(|| {
            Invalid::field(
                format!("{path}.valueFrom.fieldRef.fieldPath"),
                format!(
                    "{:?} is not one of metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], \
                         metadata.annotations['KEY'], spec.nodeName",
                    selector.field_path
                ),
            )
        });
    }
    debug_assert!(resource_field_ref.is_none(), "refused as unsupported");
    Ok(None)
}

/// The value of a field of the object, as the downward API names it; an absent label or annotation is empty.
pub fn field(object: &Workload, path: &str, node: &str) -> Option<String> {
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    Some(match path {
        "metadata.name" => object.name_any(),
        "metadata.namespace" => object.namespace().unwrap_or_default(),
        "metadata.uid" => object.metadata.uid.clone().unwrap_or_default(),
        "spec.nodeName" => node.to_owned(),
        _ => {
            if let Some(key) = keyed("metadata.labels['") {
                object.labels().get(key).cloned().unwrap_or_default()
            } else {
                let key = keyed("metadata.annotations['")?;
                object.annotations().get(key).cloned().unwrap_or_default()
            }
        }
    })
}

/// Replaces `$(NAME)` by the variable's value; unknown names stay as they are, and `$$` is a plain `$`
/// (Kubernetes, "Define Dependent Environment Variables").
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

#[derive(Default)]
struct Variables {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        // The kernel ends a variable at NUL and its name at '='.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return;
        }
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn into_ordered(mut self) -> Vec<(String, String)> {
        self.order
            .into_iter()
            .filter_map(|name| {
                let value = self.values.remove(&name)?;
                Some((name, value))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_expanded_as_in_kubernetes() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            expand(&text, &BTreeMap::new());
        }
    }
}
