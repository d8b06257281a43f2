//! The reference page, made from the schemas. Test code: the page is a checked-in file, compared with this.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use serde_json::Value;

use crate::{
    ImageSpec, NetworkSpec, ResourceLimitSpec, VolumeSpec, WorkloadSpec,
    unsupported::{Declared, Limitation},
};

const INTRODUCTION: &str = "\
# API reference

<!-- Generated from the types in crds/. Change those, then: UPDATE_GENERATED=1 cargo test -p nodelet-crds -->

Group `nodelet.dev`, version `v1alpha1`. `kubectl get nodelet` lists all kinds. Runnable examples are in
[examples/](../examples/); why the types are as they are is in [decision 0002](decisions/0002-api-types.md).

How to read the tables:

- **Type**: *quantity* is a number or a string such as `500m`, `64Mi` or `2G`. *list by `x`* is merged entry by entry
  with `x` as the key when several writers apply the same object; a plain *list* is replaced as a whole.
- **Default**: what the API server fills in. A default in the description is the agent's, and not written into the
  object.
- ⛔ marks what this version of the agent does not carry out yet. Using it is an error that names the field.
- A field that is not in these tables is refused by the API server.
";

pub(super) fn reference(crds: &[CustomResourceDefinition]) -> String {
    let mut page = INTRODUCTION.to_owned();
    for crd in crds {
        kind(&mut page, crd);
    }
    page
}

fn kind(page: &mut String, crd: &CustomResourceDefinition) {
    let names = &crd.spec.names;
    let version = &crd.spec.versions[0];
    let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let short = names.short_names.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
    writeln!(page, "\n## {}\n\n{}\n", names.kind, schema.description.as_deref().unwrap_or_default()).unwrap();
    writeln!(page, "{}, plural `{}`, short `{short}`.", crd.spec.scope, names.plural).unwrap();

    let mut table = Table { limited: limited(&names.kind), ..Default::default() };
    for (part, properties) in schema.properties.iter().flatten() {
        table.rows.clear();
        if part == "spec" {
            table.rules(schema, "");
        }
        table.object(part, properties);
        writeln!(page, "\n### {}: {part}\n", names.kind).unwrap();
        page.push_str("| Field | Type | Default | Description |\n| --- | --- | --- | --- |\n");
        page.push_str(&table.rows);
        if !table.rules.is_empty() {
            page.push_str("\nRules:\n\n");
            for (path, message) in table.rules.drain(..) {
                let path = if path.is_empty() { String::new() } else { format!("`{path}`: ") };
                writeln!(page, "- {path}{message}").unwrap();
            }
        }
    }

    writeln!(page, "\n### {}: columns\n", names.kind).unwrap();
    page.push_str("| Column | Shows | Only with `-o wide` |\n| --- | --- | --- |\n");
    for column in version.additional_printer_columns.iter().flatten() {
        let wide = if column.priority.unwrap_or(0) > 0 { "yes" } else { "" };
        writeln!(page, "| {} | {} | {wide} |", column.name, column.description.as_deref().unwrap_or_default()).unwrap();
    }
}

/// The table of one part of an object, as it grows.
#[derive(Default)]
struct Table {
    rows: String,
    /// Rules with the field they are about, each message once.
    rules: Vec<(String, String)>,
    /// Objects that were described, by their schema, with the place.
    described: BTreeMap<String, String>,
    /// What is not carried out, by path.
    limited: BTreeSet<String>,
}

impl Table {
    /// The row of a field and those of everything below it.
    fn field(&mut self, path: &str, schema: &JSONSchemaProps, required: bool) {
        let (inner, below) = match &schema.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => (items.as_ref(), format!("{path}[]")),
            _ => (schema, path.to_owned()),
        };
        let mut description = escape(schema.description.as_deref().unwrap_or_default());
        let seen = inner.properties.as_ref().is_some_and(|properties| properties.len() > 3);
        let seen = seen.then(|| self.described.get(&key(inner)).cloned()).flatten();
        if let Some(place) = &seen {
            write!(description, " Fields as `{place}`.").unwrap();
        }
        if self.limited.contains(&path.replace("[]", "")) {
            description.push_str(" ⛔ all others");
        }
        let default = schema.default.as_ref().map_or(String::new(), |default| match &default.0 {
            Value::String(text) => format!("`{text}`"),
            Value::Number(number) => format!("`{}`", number.as_f64().unwrap_or_default()),
            other => format!("`{other}`"),
        });
        let required = if required { ", required" } else { "" };
        writeln!(self.rows, "| `{path}` | {}{required} | {default} | {description} |", type_of(schema)).unwrap();
        if seen.is_none() {
            if inner.properties.is_some() {
                self.described.insert(key(inner), below.clone());
            }
            self.rules(inner, &below);
            self.children(&below, inner);
        }
    }

    /// All rows of a part of the object, such as its spec.
    fn object(&mut self, path: &str, schema: &JSONSchemaProps) {
        self.rules(schema, path);
        self.children(path, schema);
    }

    fn children(&mut self, path: &str, schema: &JSONSchemaProps) {
        let required = schema.required.as_deref().unwrap_or_default();
        for (name, property) in schema.properties.iter().flatten() {
            self.field(&format!("{path}.{name}"), property, required.contains(name));
        }
    }

    fn rules(&mut self, schema: &JSONSchemaProps, path: &str) {
        for rule in schema.x_kubernetes_validations.iter().flatten() {
            let rule = (path.to_owned(), rule.message.clone().unwrap_or_else(|| rule.rule.clone()));
            if !self.rules.contains(&rule) {
                self.rules.push(rule);
            }
        }
    }
}

/// The schema without what its place adds.
fn key(schema: &JSONSchemaProps) -> String {
    let schema = JSONSchemaProps { description: None, default: None, ..schema.clone() };
    serde_json::to_string(&schema).unwrap()
}

/// Type and bounds of a field, in words.
fn type_of(schema: &JSONSchemaProps) -> String {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return if schema.pattern.is_some() { "quantity".to_owned() } else { "number or name".to_owned() };
    }
    let mut words = match schema.type_.as_deref() {
        Some("array") => {
            let entries = match &schema.items {
                Some(JSONSchemaPropsOrArray::Schema(items)) => type_of(items),
                _ => "anything".to_owned(),
            };
            let keys = schema.x_kubernetes_list_map_keys.iter().flatten();
            let keys = keys.map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            match schema.x_kubernetes_list_type.as_deref() {
                Some("map") => format!("list by {keys}"),
                Some("set") => format!("set of {entries}"),
                _ if entries == "object" => "list".to_owned(),
                _ => format!("list of {entries}"),
            }
        }
        Some("object") => match &schema.additional_properties {
            Some(JSONSchemaPropsOrBool::Schema(values)) => format!("map to {}", type_of(values)),
            _ => "object".to_owned(),
        },
        Some("string") if schema.enum_.is_some() => {
            let values = schema.enum_.iter().flatten();
            let values = values.map(|value| match &value.0 {
                Value::String(text) if !text.is_empty() => format!("`{text}`"),
                other => format!("`{other}`"),
            });
            return values.collect::<Vec<_>>().join(" or ");
        }
        Some("string") if schema.format.as_deref() == Some("date-time") => "time".to_owned(),
        other => other.unwrap_or("anything").to_owned(),
    };
    match (schema.minimum, schema.maximum) {
        (Some(least), Some(most)) if most < 4e9 => write!(words, ", {least} to {most}").unwrap(),
        (Some(least), _) => write!(words, ", at least {least}").unwrap(),
        (None, Some(most)) => write!(words, ", at most {most}").unwrap(),
        (None, None) => {}
    }
    if let Some(most) = schema.max_items {
        write!(words, ", at most {most}").unwrap();
    }
    words
}

fn escape(text: &str) -> String {
    text.replace("\n\n", " ").replace('|', "\\|")
}

/// Fields of a kind of which not all values are carried out, without brackets.
fn limited(kind: &str) -> BTreeSet<String> {
    let tables = match kind {
        "Image" => ImageSpec::LIMITATIONS,
        "Volume" => VolumeSpec::LIMITATIONS,
        "Network" => NetworkSpec::LIMITATIONS,
        "ResourceLimit" => ResourceLimitSpec::LIMITATIONS,
        "Workload" => WorkloadSpec::LIMITATIONS,
        _ => &[],
    };
    let full = |base: &str, limitation: &Limitation| {
        let path = if base.is_empty() { limitation.path.to_owned() } else { format!("{base}.{}", limitation.path) };
        format!("spec.{}", path.replace("[]", ""))
    };
    tables.iter().flat_map(|(base, table)| table.iter().map(move |limitation| full(base, limitation))).collect()
}
