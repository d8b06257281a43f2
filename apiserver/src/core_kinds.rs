//! The built-in kinds: their schemas, taken from the Kubernetes types, and what those types do not say.
//!
//! The types carry no merge information, so the lists that merge by key or as a set are named here, as the
//! Kubernetes API reference declares them.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Secret};
use k8s_openapi::api::events::v1::Event as NewEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::pods;
use crate::registry::{Class, Column, Resource, SchemaText, View, Writers};
use crate::schema::Schema;

/// The schema of a Kubernetes type with everything it refers to written in place.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut json = schema.to_value();
    if let Some(root) = json.as_object_mut() {
        root.remove("components");
        root.remove("title");
    }
    json
}

fn object_meta() -> Value {
    let mut schema = schema_of::<ObjectMeta>();
    mark(
        &mut schema,
        &["ownerReferences"],
        json!({
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"],
        "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "uid"}),
    );
    mark(
        &mut schema,
        &["finalizers"],
        json!({
        "x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"}),
    );
    mark(&mut schema, &["managedFields", "[]", "fieldsV1"], json!({"x-kubernetes-preserve-unknown-fields": true}));
    schema
}

/// The schema of `metadata`, which every kind has.
static METADATA: LazyLock<(Value, Arc<Schema>)> = LazyLock::new(|| {
    let json = object_meta();
    let schema = Schema::compile(&json).expect("metadata has no patterns");
    (json, Arc::new(schema))
});

/// Gives an object schema the common fields, `apiVersion`, `kind` and the full `metadata`, and compiles it.
pub(crate) fn compile(mut json: Value) -> Result<(Schema, SchemaText), regex::Error> {
    if !json["properties"].is_object() {
        json["properties"] = json!({});
    }
    json["properties"]["metadata"] = json!({});
    for field in ["apiVersion", "kind"] {
        if !json["properties"][field].is_object() {
            json["properties"][field] = json!({"type": "string"});
        }
    }
    let (metadata_json, metadata) = &*METADATA;
    let mut schema = Schema::compile(&json)?;
    schema.properties.insert("metadata".into(), metadata.clone());
    json["properties"]["metadata"] = metadata_json.clone();
    Ok((schema, SchemaText::new(&json)))
}

/// Adds keys to the schema at a path of property names; `[]` steps into the items of a list.
fn mark(schema: &mut Value, path: &[&str], extra: Value) {
    let mut here = schema;
    for step in path {
        here = if *step == "[]" { &mut here["items"] } else { &mut here["properties"][*step] };
    }
    if let (Some(here), Value::Object(extra)) = (here.as_object_mut(), extra) {
        here.extend(extra);
    }
}

struct Kind {
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    short_names: &'static [&'static str],
    namespaced: bool,
    has_status: bool,
    writers: Writers,
    class: Class,
    view: View,
    columns: Vec<Column>,
    selectable: &'static [&'static str],
}

impl Kind {
    fn build(self, json: Value) -> Resource {
        let (schema, document) = compile(json).expect("schemas of built-in kinds have no patterns");
        Resource {
            id: 0,
            table: 0,
            view: self.view,
            group: self.group.into(),
            version: self.version.into(),
            plural: self.plural.into(),
            singular: self.kind.to_lowercase(),
            kind: self.kind.into(),
            short_names: self.short_names.iter().map(|s| (*s).to_owned()).collect(),
            categories: Vec::new(),
            namespaced: self.namespaced,
            has_status: self.has_status,
            has_generation: false,
            writers: self.writers,
            class: self.class,
            schema,
            document,
            rules: None,
            columns: self.columns,
            selectable: self.selectable.iter().map(|s| (*s).to_owned()).collect(),
        }
    }
}

pub(crate) fn columns(more: &[(&str, &str, &str, i32)]) -> Vec<Column> {
    let mut columns = vec![Column::new("Name", "string", ".metadata.name", 0)];
    columns.extend(more.iter().map(|(name, kind, path, priority)| Column::new(name, kind, path, *priority)));
    columns
}

const AGE: (&str, &str, &str, i32) = ("Age", "date", ".metadata.creationTimestamp", 0);

/// Every built-in kind. Columns whose path starts with `count:` show the number of entries, those with `keys:` how
/// many keys a map has, and so on; see `table.rs`.
pub(crate) fn all() -> Vec<Resource> {
    let base = || Kind {
        group: "",
        version: "v1",
        plural: "",
        kind: "",
        short_names: &[],
        namespaced: true,
        has_status: false,
        writers: Writers::Everyone,
        class: Class::Plain,
        view: View::Stored,
        columns: Vec::new(),
        selectable: &[],
    };
    let event_columns = || {
        vec![
            Column::new(
                "Last Seen",
                "string",
                "age:.lastTimestamp|.series.lastObservedTime|.eventTime|.metadata.creationTimestamp",
                0,
            ),
            Column::new("Type", "string", ".type", 0),
            Column::new("Reason", "string", ".reason", 0),
            Column::new("Object", "string", "object:.involvedObject", 0),
            Column::new("Source", "string", ".source.component|.reportingComponent", 1),
            Column::new("Message", "string", ".message", 0),
            Column::new("First Seen", "string", "age:.firstTimestamp|.eventTime|.metadata.creationTimestamp", 1),
            Column::new("Count", "string", ".count|.series.count", 1),
            Column::new("Name", "string", ".metadata.name", 1),
        ]
    };
    let event_fields = &[
        ".involvedObject.kind",
        ".involvedObject.namespace",
        ".involvedObject.name",
        ".involvedObject.uid",
        ".involvedObject.apiVersion",
        ".involvedObject.resourceVersion",
        ".involvedObject.fieldPath",
        ".reason",
        ".reportingComponent",
        ".source",
        ".type",
    ];
    vec![
        Kind {
            plural: "namespaces",
            kind: "Namespace",
            short_names: &["ns"],
            namespaced: false,
            has_status: true,
            class: Class::Namespace,
            columns: columns(&[("Status", "string", ".status.phase", 0), AGE]),
            selectable: &[".status.phase"],
            ..base()
        }
        .build(schema_of::<Namespace>()),
        Kind {
            plural: "configmaps",
            kind: "ConfigMap",
            short_names: &["cm"],
            class: Class::ConfigMap,
            columns: columns(&[("Data", "integer", "count:.data|.binaryData", 0), AGE]),
            ..base()
        }
        .build(schema_of::<ConfigMap>()),
        Kind {
            plural: "secrets",
            kind: "Secret",
            class: Class::Secret,
            columns: columns(&[("Type", "string", ".type", 0), ("Data", "integer", "count:.data", 0), AGE]),
            selectable: &[".type"],
            ..base()
        }
        .build(secret()),
        Kind {
            plural: "events",
            kind: "Event",
            short_names: &["ev"],
            class: Class::Event,
            columns: event_columns(),
            selectable: event_fields,
            ..base()
        }
        .build(schema_of::<Event>()),
        Kind {
            plural: "nodes",
            kind: "Node",
            short_names: &["no"],
            namespaced: false,
            has_status: true,
            writers: Writers::Trusted,
            columns: columns(&[
                ("Status", "string", r#"ready:.status.conditions"#, 0),
                AGE,
                ("Version", "string", ".status.nodeInfo.kubeletVersion", 0),
                ("Internal-IP", "string", r#".status.addresses[?(@.type=="InternalIP")].address"#, 1),
                ("OS-Image", "string", ".status.nodeInfo.osImage", 1),
                ("Kernel-Version", "string", ".status.nodeInfo.kernelVersion", 1),
                ("Container-Runtime", "string", ".status.nodeInfo.containerRuntimeVersion", 1),
            ]),
            selectable: &[".spec.unschedulable"],
            ..base()
        }
        .build(node()),
        Kind {
            group: "events.k8s.io",
            plural: "events",
            kind: "Event",
            short_names: &["ev"],
            view: View::NewEvents,
            columns: event_columns(),
            selectable: &[],
            ..base()
        }
        .build(schema_of::<NewEvent>()),
        Kind {
            group: "coordination.k8s.io",
            plural: "leases",
            kind: "Lease",
            columns: columns(&[("Holder", "string", ".spec.holderIdentity", 0), AGE]),
            ..base()
        }
        .build(schema_of::<Lease>()),
        Kind {
            group: "apiextensions.k8s.io",
            plural: "customresourcedefinitions",
            kind: "CustomResourceDefinition",
            short_names: &["crd", "crds"],
            namespaced: false,
            has_status: false,
            writers: Writers::Trusted,
            columns: columns(&[("Created At", "date-time", ".metadata.creationTimestamp", 0)]),
            ..base()
        }
        // The type refers to itself without end, and nobody writes it through the API.
        .build(json!({"type": "object", "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})),
    ]
}

fn secret() -> Value {
    let mut schema = schema_of::<Secret>();
    mark(&mut schema, &["type"], json!({"default": "Opaque"}));
    schema
}

fn node() -> Value {
    let mut schema = schema_of::<Node>();
    let keyed = |key: &str| {
        json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key],
            "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": key})
    };
    mark(&mut schema, &["status", "conditions"], keyed("type"));
    mark(&mut schema, &["status", "addresses"], keyed("type"));
    mark(&mut schema, &["spec", "podCIDRs"], json!({"x-kubernetes-list-type": "set"}));
    schema
}

/// Field names of an Event in core `v1` and in `events.k8s.io/v1`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Turns a stored object into the form of a view.
pub(crate) fn to_view(resource: &Resource, object: &mut Value) {
    match resource.view {
        View::Stored => {}
        View::NewEvents => rename(object, "events.k8s.io/v1", EVENT_FIELDS.iter().copied()),
        View::Pods => pods::of_workload(object),
    }
}

/// Turns an object in the form of a view into the stored one.
pub(crate) fn to_stored(resource: &Resource, object: &mut Value) {
    if resource.view == View::NewEvents {
        rename(object, "v1", EVENT_FIELDS.iter().map(|(stored, view)| (*view, *stored)));
    }
}

fn rename<'a>(object: &mut Value, api_version: &str, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_object_mut() else { return };
    map.insert("apiVersion".into(), json!(api_version));
    for (from, to) in fields {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}
