//! Declared fields that this version of the agent does not carry out yet.
//!
//! The types declare the whole contract; the agent grows into it. Until a field works, using it is an error that names
//! it. The tables below are the one list: a feature lands by deleting its line, and the reference page follows.
//!
//! A line has a path in the form of the JSON, with `[]` for every entry of a list, and the values that are refused.
//! What is absent is never refused, nor is a value that asks for nothing (`false`, `0`, an empty string or list).

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::{ImageSpec, NetworkSpec, ResourceLimitSpec, VolumeSpec, WorkloadSpec};

/// A field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field within the object, such as `spec.containers[0].stdin`.
    pub path: String,
    /// What is wrong, without the path.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for FieldError {}

/// One line of a table.
#[derive(Clone, Copy, Debug)]
pub struct Limitation {
    /// The field below `spec`, with `[]` for every entry of a list.
    pub path: &'static str,
    /// Which of its values are refused.
    pub refused: Refused,
}

/// Which values of a field are refused.
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// All that ask for something.
    Set,
    /// These.
    Values(&'static [&'static str]),
    /// All but these, where a `*` stands for any rest.
    AllBut(&'static [&'static str]),
    /// All that ask for something while this field beside it does not.
    Without(&'static str),
}

const fn set(path: &'static str) -> Limitation {
    Limitation { path, refused: Refused::Set }
}

const fn values(path: &'static str, values: &'static [&'static str]) -> Limitation {
    Limitation { path, refused: Refused::Values(values) }
}

const IMAGE: &[Limitation] = &[];

const VOLUME: &[Limitation] =
    &[set("tmpfs"), set("block"), set("nfs"), set("capacity"), values("populateFrom", &["image"])];

const NETWORK: &[Limitation] = &[values("driver", &["ipvlan", "vxlan", "cni"])];

const RESOURCE_LIMIT: &[Limitation] = &[];

/// Fields of the Workload that a `fieldRef` can name.
const FIELDS: Refused = Refused::AllBut(&[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.labels['*",
    "metadata.annotations",
    "metadata.annotations['*",
    "spec.nodeName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
]);

const WORKLOAD: &[Limitation] = &[
    set("shareProcessNamespace"),
    set("volumes[].image"),
    set("volumes[].downwardAPI.items[].resourceFieldRef"),
    set("volumes[].projected.sources[].downwardAPI.items[].resourceFieldRef"),
];

/// Of every entry of `initContainers` and `containers`.
const CONTAINER: &[Limitation] = &[
    Limitation { path: "stdin", refused: Refused::Without("tty") },
    Limitation { path: "env[].valueFrom.fieldRef.fieldPath", refused: FIELDS },
];

/// A spec whose unsupported fields are known.
pub trait Declared: Serialize {
    /// Paths below `spec` and the table that holds below each.
    const LIMITATIONS: &'static [(&'static str, &'static [Limitation])];
}

impl Declared for ImageSpec {
    const LIMITATIONS: &'static [(&'static str, &'static [Limitation])] = &[("", IMAGE)];
}

impl Declared for VolumeSpec {
    const LIMITATIONS: &'static [(&'static str, &'static [Limitation])] = &[("", VOLUME)];
}

impl Declared for NetworkSpec {
    const LIMITATIONS: &'static [(&'static str, &'static [Limitation])] = &[("", NETWORK)];
}

impl Declared for ResourceLimitSpec {
    const LIMITATIONS: &'static [(&'static str, &'static [Limitation])] = &[("", RESOURCE_LIMIT)];
}

impl Declared for WorkloadSpec {
    const LIMITATIONS: &'static [(&'static str, &'static [Limitation])] =
        &[("", WORKLOAD), ("initContainers[]", CONTAINER), ("containers[]", CONTAINER)];
}

/// Every field of the spec that asks for something this version does not carry out, in the order of the tables.
///
/// Empty means that the agent does all that the spec asks for.
pub fn unsupported<S: Declared>(spec: &S) -> Vec<FieldError> {
    // A spec is made of strings, numbers, lists and maps with string keys, so that it always has a JSON form.
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let mut errors = Vec::new();
    for (base, limitations) in S::LIMITATIONS {
        for limitation in *limitations {
            let path = [*base, limitation.path].into_iter().flat_map(|part| part.split('.')).filter(|s| !s.is_empty());
            visit(&spec, &Value::Null, &path.collect::<Vec<_>>(), "spec", &mut |path, value, beside| {
                errors.extend(limitation.refused.judge(path, value, beside));
            });
        }
    }
    errors
}

/// Calls `found` for every value that the path leads to, with the path that was taken and the object that holds it.
fn visit(value: &Value, holder: &Value, path: &[&str], taken: &str, found: &mut impl FnMut(&str, &Value, &Value)) {
    let Some((step, rest)) = path.split_first() else {
        found(taken, value, holder);
        return;
    };
    let (field, each) = step.strip_suffix("[]").map_or((*step, false), |field| (field, true));
    let Some(child) = value.get(field) else { return };
    let taken = format!("{taken}.{field}");
    if each {
        for (index, entry) in child.as_array().into_iter().flatten().enumerate() {
            visit(entry, value, rest, &format!("{taken}[{index}]"), found);
        }
    } else {
        visit(child, value, rest, &taken, found);
    }
}

impl Refused {
    fn judge(self, path: &str, value: &Value, holder: &Value) -> Option<FieldError> {
        let error = |message: String| Some(FieldError { path: path.to_owned(), message });
        match self {
            Refused::Set if asks(value) => error("is not supported by this version of nodelet".to_owned()),
            Refused::Values(values) => {
                let value = value.as_str().filter(|value| values.contains(value))?;
                error(format!("{value:?} is not supported by this version of nodelet"))
            }
            Refused::AllBut(allowed) => {
                let value = value.as_str()?;
                let is_allowed = allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
                    Some(start) => value.starts_with(start),
                    None => *allowed == value,
                });
                if is_allowed { None } else { error(format!("{value:?} is not supported by this version of nodelet")) }
            }
            Refused::Without(other) if asks(value) && !holder.get(other).is_some_and(asks) => {
                error(format!("without {other} is not supported by this version of nodelet"))
            }
            Refused::Set | Refused::Without(_) => None,
        }
    }
}

/// Whether a value asks for something. An empty object does (`tmpfs: {}`), false and nought do not.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(value) => !value.is_empty(),
        Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests;
