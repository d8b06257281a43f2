//! Cases as data: actions on objects, and what is answered.
//!
//! ```yaml
//! - name: an update of an old version is a conflict
//!   steps:
//!   - {do: create, of: configmaps, body: {metadata: {name: a}}, save: {rv: /metadata/resourceVersion}}
//!   - {do: patch, of: configmaps, name: a, patch: merge, body: {data: {x: "1"}}}
//!   - {do: update, of: configmaps, name: a, body: {metadata: {name: a, resourceVersion: "${rv}"}},
//!      code: 409, reason: Conflict, message: Operation cannot be fulfilled on …}
//! ```
//!
//! Each case has a namespace of its own, `${ns}`. Without `code` a step must succeed. `is` holds what the answer has at
//! least, `lacks` paths that it does not have, `names` the names of a list's items, `events` the types and names that a
//! watch shows. A `message` that ends with ` (re)` is a regular expression. A step with `on: nodelet` is for that server
//! only; a case with `needs: controllers` for servers that follow owners.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::subject::{Kind, Subject};

/// One case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    needs: String,
    steps: Vec<Step>,
}

/// One action and its expectation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Step {
    /// `create`, `get`, `list`, `update`, `patch`, `apply`, `delete`, `deletecollection`, `watch`, `request`, `typed`.
    #[serde(rename = "do")]
    pub action: String,
    /// The plural of the kind.
    pub of: String,
    /// Which object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// The type of a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
    /// The part of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subresource: Option<String>,
    /// Query parameters.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub with: Map<String, Value>,
    /// Of a `request`.
    pub method: String,
    /// Of a `request`.
    pub path: String,
    /// Of a `request`.
    pub headers: BTreeMap<String, String>,
    /// Of `typed`: class and method of the Python client.
    pub call: String,
    /// The only server that this step is for.
    #[serde(skip_serializing)]
    pub on: Option<String>,
    /// The status that is expected of a failure.
    #[serde(skip_serializing)]
    pub code: Option<u16>,
    #[serde(skip_serializing)]
    reason: Option<String>,
    #[serde(skip_serializing)]
    message: Option<String>,
    #[serde(skip_serializing)]
    is: Option<Value>,
    #[serde(skip_serializing)]
    lacks: Vec<String>,
    #[serde(skip_serializing)]
    names: Option<Vec<String>>,
    #[serde(skip_serializing)]
    events: Option<Vec<String>>,
    #[serde(skip_serializing)]
    save: BTreeMap<String, String>,
}

/// What became of an action.
#[derive(Debug, Default, Deserialize)]
pub struct Outcome {
    /// The HTTP status of a failure, if the client tells it; 0 for a failure whose status it does not tell.
    pub code: Option<u16>,
    /// The reason of a failure.
    pub reason: Option<String>,
    /// The message of a failure, if the client tells it as it was.
    pub message: Option<String>,
    /// What came back.
    #[serde(default)]
    pub object: Value,
}

/// A kind that cases can name.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// `v1`, `nodelet.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `ConfigMap`.
    pub kind: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

/// The kind behind a plural.
pub fn kind_of(plural: &str) -> Result<Named> {
    let (api_version, kind, namespaced) = match plural {
        "namespaces" => ("v1", "Namespace", false),
        "configmaps" => ("v1", "ConfigMap", true),
        "secrets" => ("v1", "Secret", true),
        "events" => ("v1", "Event", true),
        "leases" => ("coordination.k8s.io/v1", "Lease", true),
        "customresourcedefinitions" => ("apiextensions.k8s.io/v1", "CustomResourceDefinition", false),
        "images" => ("nodelet.dev/v1alpha1", "Image", true),
        "networks" => ("nodelet.dev/v1alpha1", "Network", true),
        "nodestates" => ("nodelet.dev/v1alpha1", "NodeState", false),
        "resourcelimits" => ("nodelet.dev/v1alpha1", "ResourceLimit", true),
        "volumes" => ("nodelet.dev/v1alpha1", "Volume", true),
        "workloads" => ("nodelet.dev/v1alpha1", "Workload", true),
        other => bail!("no kind has the plural {other}"),
    };
    Ok(Named { api_version, kind, namespaced })
}

/// A client that carries out actions.
pub trait Client {
    /// Does it; nothing if this client has no way to say it.
    fn act(&mut self, step: &Step, namespace: &str) -> Result<Option<Outcome>>;
}

/// Runs every case through a client and fails with every difference.
pub fn run_all(subject: &Subject, client: &mut dyn Client) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases");
    let mut files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut failures, mut said) = (Vec::new(), 0);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let cases: Vec<Case> = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        for (i, case) in cases.iter().enumerate() {
            if case.needs == "controllers" && !subject.controllers {
                continue;
            }
            match run(subject, client, case, &format!("{stem}-{i}")) {
                Ok(steps) => said += steps,
                Err(error) => failures.push(format!("{stem}: {}: {error:#}", case.name)),
            }
        }
    }
    eprintln!("{said} steps were carried out");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
    assert!(said > 0, "this client could say nothing");
}

/// Runs one case; answers how many of its steps the client could say. After one that it cannot, the rest is left out.
fn run(subject: &Subject, client: &mut dyn Client, case: &Case, namespace: &str) -> Result<usize> {
    subject.namespace(namespace)?;
    let mut saved = BTreeMap::from([("ns".to_owned(), namespace.to_owned())]);
    for (i, step) in case.steps.iter().enumerate() {
        if step.on.as_deref().is_some_and(|on| on != subject.kind.name()) {
            continue;
        }
        let step = fill_in(step, &saved)?;
        let Some(outcome) = client.act(&step, namespace)? else { return Ok(i) };
        check(subject.kind, &step, &outcome).with_context(|| {
            format!("step {} ({} {} {})", i + 1, step.action, step.of, step.name.as_deref().unwrap_or_default())
        })?;
        for (name, path) in &step.save {
            let value = outcome.object.pointer(path).with_context(|| format!("no {path} to save"))?;
            saved.insert(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    Ok(case.steps.len())
}

/// A step with `${name}` replaced by what was saved.
fn fill_in(step: &Step, saved: &BTreeMap<String, String>) -> Result<Step> {
    let replace = |text: &str| {
        saved.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${{{name}}}"), value))
    };
    fn walk(value: &mut Value, replace: &dyn Fn(&str) -> String) {
        match value {
            Value::String(text) => *text = replace(text),
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, replace)),
            Value::Object(map) => map.values_mut().for_each(|item| walk(item, replace)),
            _ => {}
        }
    }
    let mut step = step.clone();
    step.path = replace(&step.path);
    step.message = step.message.as_deref().map(&replace);
    step.body.iter_mut().chain(step.is.iter_mut()).for_each(|value| walk(value, &replace));
    step.with.values_mut().for_each(|value| walk(value, &replace));
    Ok(step)
}

fn check(kind: Kind, step: &Step, outcome: &Outcome) -> Result<()> {
    let shown = || format!("answered by {}: {outcome:?}", kind.name());
    match (step.code, outcome.code) {
        (None, None) => {}
        (Some(wanted), Some(found)) => ensure!(found == 0 || wanted == found, "expected {wanted}, {}", shown()),
        (wanted, _) => bail!("expected {wanted:?}, {}", shown()),
    }
    if let (Some(wanted), Some(found)) = (&step.reason, &outcome.reason) {
        ensure!(wanted == found, "expected reason {wanted}, {}", shown());
    }
    if let (Some(wanted), Some(found)) = (&step.message, &outcome.message) {
        let same = match wanted.strip_suffix(" (re)") {
            Some(pattern) => Regex::new(&format!("(?s)^(?:{pattern})$"))?.is_match(found),
            None => wanted == found,
        };
        ensure!(same, "expected message\n  {wanted}\nfound\n  {found}");
    }
    if let Some(wanted) = &step.is {
        contains(wanted, &outcome.object, "").with_context(|| outcome.object.to_string())?;
    }
    for path in &step.lacks {
        let found = outcome.object.pointer(path);
        ensure!(found.is_none_or(Value::is_null), "expected no {path}, {}", shown());
    }
    if let Some(wanted) = &step.names {
        let items = outcome.object["items"].as_array().into_iter().flatten();
        let found: Vec<&str> = items.filter_map(|item| item["metadata"]["name"].as_str()).collect();
        ensure!(found == *wanted, "expected the items {wanted:?}, found {found:?}");
    }
    if let Some(wanted) = &step.events {
        let events = outcome.object["events"].as_array().into_iter().flatten();
        let found: Vec<String> = events
            .map(|event| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let name = text(&event["object"]["metadata"]["name"]);
                format!("{} {name}", text(&event["type"])).trim().to_owned()
            })
            .collect();
        ensure!(found == *wanted, "expected the events {wanted:?}, found {found:?}");
    }
    Ok(())
}

/// Whether everything in `wanted` is in `found`; lists are compared item by item.
fn contains(wanted: &Value, found: &Value, path: &str) -> Result<()> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            for (field, value) in wanted {
                contains(value, found.get(field).unwrap_or(&Value::Null), &format!("{path}.{field}"))?;
            }
            Ok(())
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            wanted.iter().zip(found).enumerate().try_for_each(|(i, (w, f))| contains(w, f, &format!("{path}[{i}]")))
        }
        (Value::String(wanted), Value::String(found)) if wanted.ends_with(" (re)") => {
            let pattern = Regex::new(&format!("^(?:{})$", wanted.trim_end_matches(" (re)")))?;
            ensure!(pattern.is_match(found), "expected {path} to match {wanted}, found {found}");
            Ok(())
        }
        _ => {
            ensure!(wanted == found, "expected {path} to be {wanted}, found {found}");
            Ok(())
        }
    }
}
