//! Environment variables: from ConfigMaps, Secrets, fields and literals to values, in Kubernetes' order.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::ResourceExt;
use nodelet_crds::quantity::Quantity;
use nodelet_crds::reasons;
use nodelet_crds::workload::{Container, EnvVar, EnvVarSource, ResourceFieldSelector, Workload};

use super::dereference::References;
use super::desired::Place;
use super::model::{About, Wait};
use crate::invalid::Invalid;

/// The variables of one container, in order, each name once. What is missing is added to `waits`.
pub fn variables(
    object: &Workload,
    container: &Container,
    path: &str,
    place: &Place,
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
        if let Some(value) = value(object, container, env, &path, place, references, waits)? {
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
    container: &Container,
    env: &EnvVar,
    path: &str,
    place: &Place,
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
        if let Some(late) = late(&selector.field_path) {
            return Ok(Some(late));
        }
        return field(object, &selector.field_path, &place.node).map(Some).ok_or_else(|| {
            Invalid::field(
                format!("{path}.valueFrom.fieldRef.fieldPath"),
                format!(
                    "{:?} is not one of metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], \
                         metadata.annotations['KEY'], spec.nodeName, status.hostIP, status.hostIPs, status.podIP, status.podIPs",
                    selector.field_path
                ),
            )
        });
    }
    if let Some(selector) = resource_field_ref {
        let path = format!("{path}.valueFrom.resourceFieldRef");
        return resource(object, Some(&container.name), selector, &path, place.capacity).map(Some);
    }
    Ok(None)
}

/// What stands for an address until it is known, which is when the container is made. It is no part of what makes a
/// container another one: an address that changed with its sandbox restarts nothing by itself.
const LATE: char = '\u{f8ff}';

/// The placeholder of a field that is known late.
fn late(path: &str) -> Option<String> {
    let known = ["status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"];
    known.contains(&path).then(|| format!("{LATE}{path}{LATE}"))
}

/// Whether there is anything to be filled in.
pub fn is_late(text: &str) -> bool {
    text.contains(LATE)
}

/// Puts the addresses where their placeholders are. On the node's network the workload has the node's addresses.
pub fn fill_in(text: &str, workload: &[IpAddr], node: &[IpAddr]) -> String {
    if !is_late(text) {
        return text.to_owned();
    }
    let list = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (workload, node) = (list(if workload.is_empty() { node } else { workload }), list(node));
    let first = |all: &[String]| all.first().cloned().unwrap_or_default();
    [
        ("status.hostIPs", node.join(",")),
        ("status.podIPs", workload.join(",")),
        ("status.hostIP", first(&node)),
        ("status.podIP", first(&workload)),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (path, value)| text.replace(&format!("{LATE}{path}{LATE}"), &value))
}

/// What a container has of a resource: the named one, else `own`.
pub fn resource(
    object: &Workload,
    own: Option<&str>,
    selector: &ResourceFieldSelector,
    path: &str,
    capacity: (u32, u64),
) -> Result<String, Invalid> {
    let bad = |message| Invalid::field(format!("{path}.containerName"), message);
    let Some(name) = selector.container_name.as_deref().or(own) else {
        return Err(bad("is needed: a volume is of no container by itself".to_owned()));
    };
    let mut all = object.spec.init_containers.iter().chain(&object.spec.containers);
    let of = all.find(|other| other.name == name).ok_or_else(|| bad(format!("there is no container {name:?}")))?;
    amount(of, selector, path, capacity)
}

/// An amount in units of the divisor, rounded up. Without a limit it is what the node has, as in Kubernetes.
pub fn amount(
    container: &Container,
    selector: &ResourceFieldSelector,
    path: &str,
    (cpus, memory): (u32, u64),
) -> Result<String, Invalid> {
    let resources = container.resources.clone().unwrap_or_default();
    let (kind, what) = selector.resource.split_once('.').unwrap_or_default();
    let limit = resources.limits.as_ref();
    let declared = if kind == "limits" { limit } else { resources.requests.as_ref().or(limit) };
    let bad = |field: &str, error| Invalid::field(format!("{path}.{field}"), error);
    let (value, unit) = match what {
        "cpu" => {
            let found = declared.and_then(|amounts| amounts.cpu.as_ref()).map(Quantity::milli_cpu).transpose();
            let unit = selector.divisor.as_ref().map_or(Ok(1000), Quantity::milli_cpu);
            (found.map(|n| n.or((kind == "limits").then_some(u64::from(cpus) * 1000))), unit)
        }
        "memory" => {
            let found = declared.and_then(|amounts| amounts.memory.as_ref()).map(Quantity::bytes).transpose();
            let unit = selector.divisor.as_ref().map_or(Ok(1), Quantity::bytes);
            (found.map(|n| n.or((kind == "limits").then_some(memory))), unit)
        }
        other => return Err(bad("resource", format!("{other:?} is none of cpu and memory"))),
    };
    let value = value.map_err(|error| bad("resource", error.to_string()))?.unwrap_or(0);
    let unit = unit.map_err(|error| bad("divisor", error.to_string()))?.max(1);
    Ok(value.div_ceil(unit).to_string())
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

    #[test]
    fn addresses_are_filled_in_late() {
        let (own, node) = (["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()], ["192.0.2.1".parse().unwrap()]);
        let text = ["status.podIP", "status.podIPs", "status.hostIP"].map(|path| late(path).unwrap()).join(" ");
        assert_eq!(fill_in(&text, &own, &node), "10.1.0.2 10.1.0.2,fd00::2 192.0.2.1");
        assert_eq!(fill_in(&text, &[], &node), "192.0.2.1 192.0.2.1 192.0.2.1");
        assert_eq!(fill_in("plain", &own, &node), "plain");
        assert_eq!(late("metadata.name"), None);
    }

    #[test]
    fn amounts_are_rounded_up_and_default_to_the_node() {
        let container = |resources: serde_json::Value| -> Container {
            serde_json::from_value(serde_json::json!({"name": "c", "image": "i", "resources": resources})).unwrap()
        };
        let of = |resource: &str, divisor: Option<&str>, resources: serde_json::Value| {
            let selector = serde_json::json!({"resource": resource, "divisor": divisor});
            amount(&container(resources), &serde_json::from_value(selector).unwrap(), "p", (4, 1 << 30)).unwrap()
        };
        let some = serde_json::json!({"limits": {"cpu": "1500m", "memory": "100Mi"}, "requests": {"cpu": "250m"}});
        assert_eq!(of("limits.cpu", None, some.clone()), "2");
        assert_eq!(of("limits.cpu", Some("1m"), some.clone()), "1500");
        assert_eq!(of("requests.cpu", Some("1m"), some.clone()), "250");
        assert_eq!(of("limits.memory", Some("1Mi"), some.clone()), "100");
        assert_eq!(of("limits.memory", None, some), (100u64 << 20).to_string());
        assert_eq!(of("limits.cpu", None, serde_json::json!({})), "4");
        assert_eq!(of("limits.memory", Some("1Gi"), serde_json::json!({})), "1");
        assert_eq!(of("requests.memory", None, serde_json::json!({})), "0");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            expand(&text, &BTreeMap::new());
        }
    }
}
