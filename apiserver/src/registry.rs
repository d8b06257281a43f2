//! What the server serves: one [`Resource`] per kind and version, built in or from a CustomResourceDefinition.

use std::collections::HashMap;
use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::cel::Rules;
use crate::schema::Schema;
use crate::{core_kinds, pods};

/// Who may write objects of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// Every authorised client.
    Everyone,
    /// Only callers inside this process; for everybody else the objects are read-only.
    Trusted,
    /// Nobody: the objects are those of another resource.
    Nobody,
}

/// Rules that only one built-in kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A kind without rules of its own.
    Plain,
    /// Its objects hold other objects; deletion empties them first.
    Namespace,
    /// `immutable`, and keys without a path in them.
    ConfigMap,
    /// `immutable`, `stringData`, base64.
    Secret,
    /// Expires.
    Event,
    /// Defined by a CustomResourceDefinition.
    Custom,
}

/// How a version of a kind differs from the form in which its objects are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// It is the stored form.
    Stored,
    /// `events.k8s.io/v1` over stored core `v1` Events.
    NewEvents,
    /// `v1` Pods over Workloads.
    Pods,
}

/// A printer column of the Table representation.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i32,
    pub(crate) path: String,
}

impl Column {
    pub(crate) fn new(name: &str, kind: &str, path: &str, priority: i32) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            format: if name == "Name" { "name".into() } else { String::new() },
            description: String::new(),
            priority,
            path: path.into(),
        }
    }
}

/// A schema as OpenAPI JSON. It is kept as text, a tenth of what it takes parsed, because it is rarely asked for.
#[derive(Clone, Default)]
pub(crate) struct SchemaText(Box<str>);

impl SchemaText {
    pub(crate) fn new(json: &Value) -> Self {
        Self(json.to_string().into())
    }

    pub(crate) fn parsed(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

/// One kind in one version.
pub(crate) struct Resource {
    /// Position in the registry.
    pub(crate) id: usize,
    /// Position of the resource whose store table holds the objects; `id` itself except for views.
    pub(crate) table: usize,
    pub(crate) view: View,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) has_status: bool,
    /// Whether `metadata.generation` is kept.
    pub(crate) has_generation: bool,
    pub(crate) writers: Writers,
    pub(crate) class: Class,
    /// Schema of the whole object, metadata included.
    pub(crate) schema: Schema,
    /// The same as OpenAPI JSON, for documents.
    pub(crate) document: SchemaText,
    pub(crate) rules: Option<Rules>,
    pub(crate) columns: Vec<Column>,
    /// Selectable fields beyond the metadata, as JSONPath (`.spec.nodeName`).
    pub(crate) selectable: Vec<String>,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.plural)
    }
}

impl Resource {
    /// `configmaps`, `workloads.nodelet.dev`.
    pub(crate) fn qualified(&self) -> String {
        qualify(&self.plural, &self.group)
    }

    /// `ConfigMap`, `Workload.nodelet.dev`.
    pub(crate) fn qualified_kind(&self) -> String {
        qualify(&self.kind, &self.group)
    }

    /// `v1`, `nodelet.dev/v1alpha1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(crate) fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match self.writers {
            Writers::Everyone => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            Writers::Trusted | Writers::Nobody => &["get", "list", "watch"],
        }
    }
}

fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// A definition that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The CustomResourceDefinition has no served version with a schema.
    #[error("{name} has no served version with a schema")]
    NoVersion {
        /// Name of the CustomResourceDefinition.
        name: String,
    },
    /// A pattern of the schema is no regular expression.
    #[error("schema of {name}")]
    Pattern {
        /// Name of the CustomResourceDefinition.
        name: String,
        /// What is wrong with the pattern.
        #[source]
        source: regex::Error,
    },
    /// A CEL rule does not compile.
    #[error("CEL rules of {name}: {detail}")]
    Rules {
        /// Name of the CustomResourceDefinition.
        name: String,
        /// The compiler's words.
        detail: String,
    },
}

/// All resources, in the order in which discovery lists them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    resources: Vec<Resource>,
    by_path: HashMap<(String, String, String), usize>,
}

impl Registry {
    /// The built-in kinds and the given custom ones.
    pub(crate) fn new(definitions: &[CustomResourceDefinition]) -> Result<Self, DefinitionError> {
        let mut registry = Registry::default();
        for resource in core_kinds::all() {
            registry.add(resource);
        }
        for definition in definitions {
            for resource in custom(definition)? {
                registry.add(resource);
            }
        }
        if let Some(workloads) = registry.find("nodelet.dev", "v1alpha1", "workloads") {
            let pods = pods::resource(workloads);
            registry.add(pods);
        }
        Ok(registry)
    }

    /// The resource whose objects these are: itself, but Workloads for Pods.
    pub(crate) fn original<'a>(&'a self, resource: &'a Resource) -> &'a Resource {
        if resource.view == View::Pods { self.get(resource.table) } else { resource }
    }

    fn add(&mut self, mut resource: Resource) {
        resource.id = self.resources.len();
        resource.table = match resource.view {
            View::Stored => resource.id,
            View::NewEvents => self.find("", "v1", "events").map_or(resource.id, |r| r.id),
            View::Pods => resource.table,
        };
        let path = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.by_path.insert(path, resource.id);
        self.resources.push(resource);
    }

    pub(crate) fn all(&self) -> &[Resource] {
        &self.resources
    }

    pub(crate) fn get(&self, id: usize) -> &Resource {
        &self.resources[id]
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        let path = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_path.get(&path).map(|id| &self.resources[*id])
    }

    pub(crate) fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// The built-in kind of a class, which every registry has.
    pub(crate) fn class(&self, class: Class) -> &Resource {
        self.resources.iter().find(|r| r.class == class).expect("built-in kinds are in every registry")
    }

    /// Groups in order of appearance, each with its versions.
    pub(crate) fn groups(&self) -> Vec<(&str, Vec<&str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for resource in &self.resources {
            match groups.iter_mut().find(|(group, _)| *group == resource.group) {
                Some((_, versions)) if versions.contains(&resource.version.as_str()) => {}
                Some((_, versions)) => versions.push(&resource.version),
                None => groups.push((&resource.group, vec![&resource.version])),
            }
        }
        groups
    }
}

/// The resources of one CustomResourceDefinition: one per served version.
fn custom(definition: &CustomResourceDefinition) -> Result<Vec<Resource>, DefinitionError> {
    let spec = &definition.spec;
    let crd_name = format!("{}.{}", spec.names.plural, spec.group);
    let mut found = Vec::new();
    for version in spec.versions.iter().filter(|v| v.served) {
        let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let Some(json) = schema.and_then(|s| serde_json::to_value(s).ok()) else { continue };
        let rules =
            Rules::compile(&json).map_err(|detail| DefinitionError::Rules { name: crd_name.clone(), detail })?;
        let (schema, document) =
            core_kinds::compile(json).map_err(|source| DefinitionError::Pattern { name: crd_name.clone(), source })?;
        let mut columns = vec![Column::new("Name", "string", ".metadata.name", 0)];
        match &version.additional_printer_columns {
            Some(given) if !given.is_empty() => columns.extend(given.iter().map(|c| Column {
                name: c.name.clone(),
                kind: c.type_.clone(),
                format: c.format.clone().unwrap_or_default(),
                description: c.description.clone().unwrap_or_default(),
                priority: c.priority.unwrap_or(0),
                path: c.json_path.clone(),
            })),
            _ => columns.push(Column::new("Age", "date", ".metadata.creationTimestamp", 0)),
        }
        found.push(Resource {
            id: 0,
            table: 0,
            view: View::Stored,
            group: spec.group.clone(),
            version: version.name.clone(),
            plural: spec.names.plural.clone(),
            singular: spec.names.singular.clone().unwrap_or_else(|| spec.names.kind.to_lowercase()),
            kind: spec.names.kind.clone(),
            short_names: spec.names.short_names.clone().unwrap_or_default(),
            categories: spec.names.categories.clone().unwrap_or_default(),
            namespaced: spec.scope == "Namespaced",
            has_status: version.subresources.as_ref().is_some_and(|s| s.status.is_some()),
            has_generation: true,
            writers: Writers::Everyone,
            class: Class::Custom,
            schema,
            document,
            rules: Some(rules),
            columns,
            selectable: version.selectable_fields.iter().flatten().map(|field| field.json_path.clone()).collect(),
        });
    }
    if found.is_empty() { Err(DefinitionError::NoVersion { name: crd_name }) } else { Ok(found) }
}

/// A CustomResourceDefinition as it is served: named, and with the status of one that is established.
pub(crate) fn served_definition(definition: &CustomResourceDefinition) -> Value {
    let spec = &definition.spec;
    let mut object = serde_json::to_value(definition).unwrap_or_else(|_| json!({}));
    object["apiVersion"] = json!("apiextensions.k8s.io/v1");
    object["kind"] = json!("CustomResourceDefinition");
    object["metadata"]["name"] = json!(format!("{}.{}", spec.names.plural, spec.group));
    let names = object["spec"]["names"].clone();
    let stored: Vec<&str> = spec.versions.iter().filter(|v| v.storage).map(|v| v.name.as_str()).collect();
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "1970-01-01T00:00:00Z"})
    };
    object["status"] = json!({
        "acceptedNames": names,
        "storedVersions": stored,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    });
    object
}
