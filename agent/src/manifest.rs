//! Manifests: files of Kubernetes objects, and everything that can be said about them without a server.
//!
//! One bad object never hides the good ones beside it; only a file that is not YAML at all is lost as a whole.

use std::fmt;
use std::path::{Path, PathBuf};

pub use nodelet_controllers::context::chain;
use serde_json::{Value, json};

use crate::client;
use crate::yaml::{self, Position, Positions};

mod advice;

/// Names an object, whatever its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectKey {
    /// `nodelet.dev/v1alpha1`
    pub api_version: String,
    /// `Workload`
    pub kind: String,
    /// As written; the client's default namespace when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The same object, be it written in another version of its group.
    pub fn is_same(&self, other: &ObjectKey) -> bool {
        let group = |key: &ObjectKey| key.api_version.rsplit_once('/').map(|(group, _)| group.to_owned());
        self.kind == other.kind
            && self.name == other.name
            && self.namespace == other.namespace
            && group(self) == group(other)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// One object of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which one.
    pub key: ObjectKey,
    /// The file it is in.
    pub file: String,
    /// The object.
    pub value: Value,
    /// Where its fields stand in the file.
    pub positions: Positions,
}

/// Something in a manifest that is wrong, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: String,
    /// Where in it.
    pub at: Option<Position>,
    /// The object, if there is one that can be named.
    pub object: Option<String>,
    /// The field; empty when it is about the whole.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A file that was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// Its objects that can be named.
    pub objects: Vec<Object>,
    /// What is wrong with the rest.
    pub faults: Vec<Fault>,
    /// There is something in the file that could not be named, so what is missing here is not surely gone.
    pub incomplete: bool,
}

impl Object {
    /// A fault at `field` of this object.
    pub fn fault(&self, field: impl Into<String>, message: impl Into<String>) -> Fault {
        let field = field.into();
        let at = self.positions.of_key(&field);
        Fault { file: self.file.clone(), at, object: Some(self.key.to_string()), field, message: message.into() }
    }

    /// The server's refusal of this object as faults with places, one for each field it named.
    pub fn refusal(&self, error: &client::Error) -> Vec<Fault> {
        match error {
            client::Error::Refused { causes, .. } if !causes.is_empty() => causes
                .iter()
                .map(|cause| {
                    let field = cause.field.trim_start_matches('.').replace("<nil>", "");
                    self.fault(field, advice::advised(&self.value, cause))
                })
                .collect(),
            client::Error::UnknownKind(message) => vec![self.fault("kind", message.clone())],
            error => vec![self.fault("", chain(error))],
        }
    }
}

/// Whether a file of this name holds manifests.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads the text of `file`: documents, and the items of `List` kinds.
pub fn parse(file: &str, text: &str) -> Manifest {
    let documents = match yaml::parse(text) {
        Ok(documents) => documents,
        Err(error) => {
            let message = format!("not valid YAML: {}", error.message);
            let fault = Fault { file: file.to_owned(), at: error.at, object: None, field: String::new(), message };
            return Manifest { faults: vec![fault], incomplete: true, ..Manifest::default() };
        }
    };
    let mut manifest = Manifest::default();
    for document in documents {
        take(file, document.value, document.positions, &mut manifest);
    }
    manifest
}

fn take(file: &str, value: Value, positions: Positions, into: &mut Manifest) {
    let is_list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && value["items"].is_array();
    if is_list {
        for (i, item) in value["items"].as_array().into_iter().flatten().enumerate() {
            take(file, item.clone(), positions.below(&format!("items[{i}]")), into);
        }
        return;
    }
    match key_of(&value) {
        Ok(key) => into.objects.push(Object { key, file: file.to_owned(), value, positions }),
        Err((field, message)) => {
            let at = positions.of_key(field);
            let object = value["kind"].as_str().map(str::to_owned);
            into.faults.push(Fault { file: file.to_owned(), at, object, field: field.to_owned(), message });
            into.incomplete = true;
        }
    }
}

/// Who the object is, or the field that leaves it open.
fn key_of(value: &Value) -> Result<ObjectKey, (&'static str, String)> {
    if !value.is_object() {
        return Err(("", "not an object; expected apiVersion, kind and metadata".to_owned()));
    }
    let text = |field: &'static str, value: &Value, example: &str| match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        Value::Null => Err((field, format!("is missing; expected a string such as {example}"))),
        Value::Bool(_) | Value::Number(_) => {
            Err((field, format!("{value} is not a name but a number or a boolean of YAML; put it in quotes")))
        }
        other => Err((field, format!("{other} is not a name; expected a string such as {example}"))),
    };
    let api_version = text("apiVersion", &value["apiVersion"], "nodelet.dev/v1alpha1")?;
    let kind = text("kind", &value["kind"], "Workload")?;
    let metadata = &value["metadata"];
    if metadata["name"].is_null() && metadata["generateName"].is_string() {
        return Err(("metadata.generateName", "is not usable in a manifest; give it a metadata.name".to_owned()));
    }
    let name = text("metadata.name", &metadata["name"], "web")?;
    let namespace = match &metadata["namespace"] {
        Value::Null => None,
        namespace => Some(text("metadata.namespace", namespace, "default")?),
    };
    Ok(ObjectKey { api_version, kind, namespace, name })
}

/// Places objects in the order in which they can be applied: what others refer to comes first.
pub fn rank(kind: &str) -> u8 {
    match kind {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "ConfigMap" | "Secret" | "ServiceAccount" => 2,
        "ResourceLimit" | "Network" | "Volume" => 3,
        "Image" => 4,
        _ => 5,
    }
}

/// All manifest files at `path`: itself, or what is below a directory, in the order of their names.
///
/// # Errors
/// The directory cannot be read.
pub fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            // Also `..data` and its timestamped directories: a mounted ConfigMap's files are links into them.
            continue;
        }
        if entry.file_type()?.is_dir() {
            found.extend(files(&path)?);
        } else if is_manifest(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Puts the object's namespace where the server expects it.
pub fn with_namespace(mut value: Value, namespace: Option<&str>) -> Value {
    if let Some(namespace) = namespace {
        value["metadata"]["namespace"] = json!(namespace);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let manifest = parse("f.yaml", text);
        let objects = manifest.objects.iter().map(|object| object.key.to_string());
        objects.chain(manifest.faults.iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn documents_lists_and_json() {
        let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
- apiVersion: v1
  kind: ConfigMap
---
{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"ns\"}}
---
apiVersion: nodelet.dev/v1alpha1
kind: WorkloadList
items:
- {apiVersion: nodelet.dev/v1alpha1, kind: Workload, metadata: {name: b, namespace: ns}}
";
        assert_eq!(
            told(text),
            [
                "ConfigMap a",
                "Namespace ns",
                "Workload ns/b",
                "f.yaml:5:3: ConfigMap: metadata.name: is missing; expected a string such as web"
            ]
        );
    }

    #[test]
    fn faults_name_file_line_object_and_field() {
        for (text, expected) in [
            (
                "kind: Workload\nmetadata: {name: a}\n",
                "f.yaml:1:1: Workload: apiVersion: is missing; expected a string such as nodelet.dev/v1alpha1",
            ),
            (
                "apiVersion: v1\nkind: 7\n",
                "f.yaml:2:1: kind: 7 is not a name but a number or a boolean of YAML; put it in quotes",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata:\n  generateName: x-\n",
                "f.yaml:4:3: Pod: metadata.generateName: is not usable in a manifest; give it a metadata.name",
            ),
            ("- a\n", "f.yaml:1:1: not an object; expected apiVersion, kind and metadata"),
            ("a: [\n", "f.yaml:1:4: not valid YAML: unclosed bracket '['"),
        ] {
            assert_eq!(told(text), [expected]);
        }
    }

    #[test]
    fn refusals_become_lines() {
        let text = "# a shop\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {name: web}\nspec:\n  containers:\n  - name: web\n    imagee: x\n";
        let object = &parse("f.yaml", text).objects[0];
        let cause = client::Cause { field: "spec.containers[0].imagee".into(), message: "unknown field".into() };
        let refused =
            client::Error::Refused { code: 400, reason: String::new(), message: "long".into(), causes: vec![cause] };
        let told: Vec<String> = object.refusal(&refused).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["f.yaml:8:5: Workload web: spec.containers[0].imagee: unknown field; did you mean image?"]);
        let refused =
            client::Error::Refused { code: 409, reason: String::new(), message: "conflict".into(), causes: vec![] };
        assert_eq!(object.refusal(&refused)[0].to_string(), "f.yaml:2:1: Workload web: conflict");
    }
}
