//! Structural schemas: what a field may hold, what it defaults to, and how its lists and maps merge.
//!
//! A [`Schema`] is compiled once from OpenAPI JSON and then used to find unknown fields, to prune, to default and to
//! validate. It follows the rules for custom resources: every violation is reported, each with its field path.

mod validate;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value};

/// Depth beyond which no value is followed. Bodies from outside are already limited by the JSON parser.
const MAX_DEPTH: usize = 128;

/// How the items of a list are told apart (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    /// The list is one value.
    #[default]
    Atomic,
    /// Items are scalars, each at most once.
    Set,
    /// Items are objects, told apart by these fields.
    Map(Vec<String>),
}

/// A compiled structural schema.
///
/// There are thousands of them, most of which say no more than a type: what is rare is kept apart, so that a node of
/// the tree is small, and fields refer to their schemas, so that what many kinds share is there once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    types: Vec<String>,
    nullable: bool,
    pub(crate) properties: BTreeMap<String, Arc<Schema>>,
    pub(crate) additional: Option<Box<Schema>>,
    additional_any: bool,
    pub(crate) items: Option<Box<Schema>>,
    required: Vec<String>,
    choices: Vec<Value>,
    pattern: Option<Regex>,
    format: String,
    bounds: Option<Box<Bounds>>,
    pub(crate) default: Option<Value>,
    pub(crate) preserve_unknown: bool,
    int_or_string: bool,
    pub(crate) list_type: ListType,
    pub(crate) map_atomic: bool,
    junctors: Option<Box<Junctors>>,
}

/// What a number, or the size of something, may be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Bounds {
    minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
}

impl Bounds {
    const NONE: Self = Self {
        minimum: None,
        maximum: None,
        exclusive_minimum: false,
        exclusive_maximum: false,
        multiple_of: None,
        min_length: None,
        max_length: None,
        min_items: None,
        max_items: None,
        min_properties: None,
        max_properties: None,
    };
}

/// Schemas of which several, one or none has to fit.
#[derive(Debug, Clone)]
struct Junctors {
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

/// Patterns compiled so far: a schema repeats its few patterns many times, and each takes tens of kilobytes.
type Patterns = HashMap<String, Regex>;

impl Schema {
    /// Compiles OpenAPI JSON. An invalid pattern is the only thing that can be wrong; it is returned.
    pub(crate) fn compile(json: &Value) -> Result<Self, regex::Error> {
        Self::compile_at(json, &mut Patterns::new())
    }

    fn compile_at(json: &Value, patterns: &mut Patterns) -> Result<Self, regex::Error> {
        let mut sub = |key: &str| -> Result<Option<Box<Schema>>, regex::Error> {
            let found = json.get(key).filter(|v| v.is_object());
            found.map(|v| Schema::compile_at(v, patterns).map(Box::new)).transpose()
        };
        let (additional, items, not) = (sub("additionalProperties")?, sub("items")?, sub("not")?);
        let mut many = |key: &str| -> Result<Vec<Schema>, regex::Error> {
            let found = json.get(key).and_then(Value::as_array).into_iter().flatten();
            found.map(|v| Schema::compile_at(v, patterns)).collect()
        };
        let junctors = Junctors { all_of: many("allOf")?, any_of: many("anyOf")?, one_of: many("oneOf")?, not };
        let has_junctors = ["allOf", "anyOf", "oneOf", "not"].iter().any(|key| json.get(*key).is_some());
        let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        let size = |key: &str| json.get(key).and_then(Value::as_u64);
        let number = |key: &str| json.get(key).and_then(Value::as_f64);
        let text = |key: &str| json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let words = |key: &str| -> Vec<String> {
            json.get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        let types = match json.get("type") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(_)) => words("type"),
            _ => Vec::new(),
        };
        let list_type = match json.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(words("x-kubernetes-list-map-keys")),
            _ => ListType::Atomic,
        };
        let properties = json
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(name, schema)| Ok((name.clone(), Arc::new(Schema::compile_at(schema, patterns)?))))
            .collect::<Result<_, regex::Error>>()?;
        let pattern = match json.get("pattern").and_then(Value::as_str) {
            Some(pattern) => Some(match patterns.get(pattern) {
                Some(known) => known.clone(),
                None => patterns.entry(pattern.to_owned()).or_insert(Regex::new(pattern)?).clone(),
            }),
            None => None,
        };
        let bounds = Bounds {
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: size("minLength"),
            max_length: size("maxLength"),
            min_items: size("minItems"),
            max_items: size("maxItems"),
            min_properties: size("minProperties"),
            max_properties: size("maxProperties"),
        };
        Ok(Schema {
            nullable: flag("nullable") || types.iter().any(|t| t == "null"),
            types: types.into_iter().filter(|t| t != "null").collect(),
            properties,
            additional,
            additional_any: flag("additionalProperties"),
            items,
            required: words("required"),
            choices: json.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern,
            format: text("format"),
            bounds: (bounds != Bounds::NONE).then(|| Box::new(bounds)),
            default: json.get("default").filter(|d| !d.is_null()).cloned(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string")
                || json.get("format").and_then(Value::as_str) == Some("int-or-string"),
            list_type,
            map_atomic: json.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"),
            junctors: has_junctors.then(|| Box::new(junctors)),
        })
    }

    /// The schema of one field of an object, if the schema knows it.
    pub(crate) fn field(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).map(Arc::as_ref).or(self.additional.as_deref())
    }

    fn bounds(&self) -> &Bounds {
        self.bounds.as_deref().unwrap_or(&Bounds::NONE)
    }

    fn is_open(&self) -> bool {
        self.preserve_unknown
            || self.additional_any
            || (self.properties.is_empty() && self.additional.is_none() && self.types.is_empty())
    }

    /// Removes the fields that the schema does not know and returns their paths.
    pub(crate) fn prune(&self, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
        self.prune_at(value, path, unknown, 0);
    }

    fn prune_at(&self, value: &mut Value, path: &str, unknown: &mut Vec<String>, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(map) => {
                let open = self.is_open();
                map.retain(|key, _| {
                    let known = open || self.field(key).is_some();
                    if !known {
                        unknown.push(join(path, key));
                    }
                    known
                });
                for (key, child) in map.iter_mut() {
                    if let Some(schema) = self.field(key) {
                        schema.prune_at(child, &join(path, key), unknown, depth + 1);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for (i, item) in items.iter_mut().enumerate() {
                        schema.prune_at(item, &format!("{path}[{i}]"), unknown, depth + 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// Fills in defaults. A null where null is not allowed and a default exists counts as absent, and a null of a
    /// non-nullable field without default is dropped, both as for custom resources.
    pub(crate) fn apply_defaults(&self, value: &mut Value) {
        self.default_at(value, 0);
    }

    fn default_at(&self, value: &mut Value, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(map) => {
                for (name, schema) in &self.properties {
                    let given_null = matches!(map.get(name), Some(Value::Null)) && !schema.nullable;
                    match &schema.default {
                        Some(default) if given_null || !map.contains_key(name) => {
                            map.insert(name.clone(), default.clone());
                        }
                        None if given_null => {
                            map.remove(name);
                        }
                        _ => {}
                    }
                    if let Some(child) = map.get_mut(name) {
                        schema.default_at(child, depth + 1);
                    }
                }
                if let Some(schema) = &self.additional {
                    for (key, child) in map.iter_mut() {
                        if !self.properties.contains_key(key) {
                            schema.default_at(child, depth + 1);
                        }
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for item in items {
                        schema.default_at(item, depth + 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// The identity of an item of a map list: its key fields, with the defaults of those it leaves out.
    pub(crate) fn item_keys(&self, item: &Value, keys: &[String]) -> Value {
        let mut identity = Map::new();
        for key in keys {
            let given = item.get(key).filter(|v| !v.is_null());
            let default = || self.items.as_ref().and_then(|s| s.properties.get(key)).and_then(|s| s.default.as_ref());
            if let Some(value) = given.or_else(default) {
                identity.insert(key.clone(), value.clone());
            }
        }
        Value::Object(identity)
    }
}

/// `path.key`, and `key` at the root.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests;
