//! Declared fields that this version of the agent does not carry out yet.
//!
//! The types declare the whole contract; the agent grows into it. Until a field works, using it is an error that names
//! it. The tables below are the one list: a feature lands by deleting its line, and the reference page follows.
//!
//! A line has a path in the form of the JSON, with `[]` for every entry of a list, and the values that are carried out.
//! What is absent is never refused.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::{ImageSpec, NetworkSpec, ResourceLimitSpec, VolumeSpec, WorkloadSpec};

/// A field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field within the object, such as `spec.containers[0].tty`.
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
    /// Its values that are carried out, where a `*` stands for any rest; all others are refused.
    pub allowed: &'static [&'static str],
}

const IMAGE: &[Limitation] = &[];

const VOLUME: &[Limitation] = &[];

const NETWORK: &[Limitation] = &[];

const RESOURCE_LIMIT: &[Limitation] = &[];

/// Fields of the Workload that a `fieldRef` can name.
const FIELDS: &[&str] = &[
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
];

const WORKLOAD: &[Limitation] = &[];

/// Of every entry of `initContainers` and `containers`.
const CONTAINER: &[Limitation] = &[Limitation { path: "env[].valueFrom.fieldRef.fieldPath", allowed: FIELDS }];

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
            visit(&spec, &path.collect::<Vec<_>>(), "spec", &mut |path, value| {
                errors.extend(limitation.judge(path, value));
            });
        }
    }
    errors
}

/// Calls `found` for every value that the path leads to, with the path that was taken.
fn visit(value: &Value, path: &[&str], taken: &str, found: &mut impl FnMut(&str, &Value)) {
    let Some((step, rest)) = path.split_first() else {
        found(taken, value);
        return;
    };
    let (field, each) = step.strip_suffix("[]").map_or((*step, false), |field| (field, true));
    let Some(child) = value.get(field) else { return };
    let taken = format!("{taken}.{field}");
    if each {
        for (index, entry) in child.as_array().into_iter().flatten().enumerate() {
            visit(entry, rest, &format!("{taken}[{index}]"), found);
        }
    } else {
        visit(child, rest, &taken, found);
    }
}

impl Limitation {
    fn judge(&self, path: &str, value: &Value) -> Option<FieldError> {
        let value = value.as_str()?;
        let is_allowed = self.allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(start) => value.starts_with(start),
            None => *allowed == value,
        });
        let message = format!("{value:?} is not supported by this version of nodelet");
        (!is_allowed).then(|| FieldError { path: path.to_owned(), message })
    }
}

#[cfg(test)]
mod tests;
