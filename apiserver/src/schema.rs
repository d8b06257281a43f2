//! Structural schemas: what a field may hold, what it defaults to, and how its lists and maps merge.
//!
//! A [`Schema`] is compiled once from OpenAPI JSON and then used to find unknown fields, to prune, to default and to
//! validate. It follows the rules for custom resources: every violation is reported, each with its field path.

use std::collections::{BTreeMap, HashSet};

use regex::Regex;
use serde_json::{Map, Value};

use crate::status::FieldError;

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
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    types: Vec<String>,
    nullable: bool,
    pub(crate) properties: BTreeMap<String, Schema>,
    pub(crate) additional: Option<Box<Schema>>,
    additional_any: bool,
    pub(crate) items: Option<Box<Schema>>,
    required: Vec<String>,
    choices: Vec<Value>,
    pattern: Option<Regex>,
    format: String,
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
    pub(crate) default: Option<Value>,
    pub(crate) preserve_unknown: bool,
    int_or_string: bool,
    pub(crate) list_type: ListType,
    pub(crate) map_atomic: bool,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

impl Schema {
    /// Compiles OpenAPI JSON. An invalid pattern is the only thing that can be wrong; it is returned.
    pub(crate) fn compile(json: &Value) -> Result<Self, regex::Error> {
        let sub = |key: &str| -> Result<Option<Box<Schema>>, regex::Error> {
            json.get(key).filter(|v| v.is_object()).map(|v| Schema::compile(v).map(Box::new)).transpose()
        };
        let many = |key: &str| -> Result<Vec<Schema>, regex::Error> {
            json.get(key).and_then(Value::as_array).into_iter().flatten().map(Schema::compile).collect()
        };
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
            .map(|(name, schema)| Ok((name.clone(), Schema::compile(schema)?)))
            .collect::<Result<_, regex::Error>>()?;
        let pattern = json.get("pattern").and_then(Value::as_str).map(Regex::new).transpose()?;
        Ok(Schema {
            nullable: flag("nullable") || types.iter().any(|t| t == "null"),
            types: types.into_iter().filter(|t| t != "null").collect(),
            properties,
            additional: sub("additionalProperties")?,
            additional_any: flag("additionalProperties"),
            items: sub("items")?,
            required: words("required"),
            choices: json.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            pattern,
            format: text("format"),
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
            default: json.get("default").filter(|d| !d.is_null()).cloned(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string")
                || json.get("format").and_then(Value::as_str) == Some("int-or-string"),
            list_type,
            map_atomic: json.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic"),
            all_of: many("allOf")?,
            any_of: many("anyOf")?,
            one_of: many("oneOf")?,
            not: sub("not")?,
        })
    }

    /// The schema of one field of an object, if the schema knows it.
    pub(crate) fn field(&self, name: &str) -> Option<&Schema> {
        self.properties.get(name).or(self.additional.as_deref())
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

    /// Appends every violation found in `value`.
    pub(crate) fn validate(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        self.validate_at(value, path, errors, 0);
    }

    fn validate_at(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>, depth: usize) {
        if depth > MAX_DEPTH {
            errors.push(FieldError::invalid(path, &Value::Null, "nested too deeply"));
            return;
        }
        if value.is_null() && self.nullable {
            return;
        }
        if !self.type_allows(value) {
            let kind = Value::String(type_name(value).to_owned());
            let wanted = if self.int_or_string { "integer,string".to_owned() } else { self.types.join(",") };
            let detail = format!("{} in body must be of type {wanted}: {kind}", shown_path(path));
            errors.push(FieldError::type_invalid(path, &kind, detail));
            return;
        }
        if !self.choices.is_empty() && !self.choices.contains(value) {
            errors.push(FieldError::unsupported(path, value, &self.choices));
        }
        match value {
            Value::String(text) => self.validate_text(text, value, path, errors),
            Value::Number(number) => self.validate_number(number.as_f64().unwrap_or(0.0), value, path, errors),
            Value::Array(items) => self.validate_items(items, path, errors, depth),
            Value::Object(map) => self.validate_fields(map, path, errors, depth),
            Value::Bool(_) | Value::Null => {}
        }
        self.validate_junctors(value, path, errors, depth);
    }

    fn validate_junctors(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>, depth: usize) {
        let passes = |schema: &Schema| {
            let mut found = Vec::new();
            schema.validate_at(value, path, &mut found, depth + 1);
            found.is_empty()
        };
        for schema in &self.all_of {
            schema.validate_at(value, path, errors, depth + 1);
        }
        let kind = Value::String(type_name(value).to_owned());
        if !self.any_of.is_empty() && !self.int_or_string && !self.any_of.iter().any(passes) {
            let detail = format!("{} in body must validate at least one schema (anyOf)", shown_path(path));
            errors.push(FieldError::invalid(path, &kind, detail));
        }
        if !self.one_of.is_empty() && self.one_of.iter().filter(|s| passes(s)).count() != 1 {
            let detail = format!("{} in body must validate one and only one schema (oneOf)", shown_path(path));
            errors.push(FieldError::invalid(path, &kind, detail));
        }
        if self.not.as_deref().is_some_and(passes) {
            let detail = format!("{} in body must not validate the schema (not)", shown_path(path));
            errors.push(FieldError::invalid(path, &kind, detail));
        }
    }

    fn type_allows(&self, value: &Value) -> bool {
        if self.int_or_string {
            return value.is_string() || value.is_i64() || value.is_u64();
        }
        if self.types.is_empty() {
            return true;
        }
        self.types.iter().any(|wanted| match wanted.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0),
            "number" => value.is_number(),
            _ => true,
        })
    }

    fn validate_text(&self, text: &str, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let at = shown_path(path);
        let length = text.chars().count() as u64;
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            errors.push(FieldError::invalid(path, value, format!("{at} in body should be at least {min} chars long")));
        }
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            errors.push(FieldError::too_long(path, max));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.is_match(text)) {
            errors.push(FieldError::invalid(path, value, format!("{at} in body should match '{pattern}'")));
        }
        let well_formed = match self.format.as_str() {
            "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
            "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
            "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
            "ip" => text.parse::<std::net::IpAddr>().is_ok(),
            "uuid" => uuid::Uuid::try_parse(text).is_ok(),
            _ => true,
        };
        if !well_formed {
            let detail = format!("{at} in body must be of type {}: {value}", self.format);
            errors.push(FieldError::invalid(path, value, detail));
        }
    }

    fn validate_number(&self, number: f64, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let at = shown_path(path);
        if let Some(min) = self.minimum.filter(|m| number < *m || (self.exclusive_minimum && number <= *m)) {
            let or_equal = if self.exclusive_minimum { "" } else { " or equal to" };
            let detail = format!("{at} in body should be greater than{or_equal} {min}");
            errors.push(FieldError::invalid(path, value, detail));
        }
        if let Some(max) = self.maximum.filter(|m| number > *m || (self.exclusive_maximum && number >= *m)) {
            let or_equal = if self.exclusive_maximum { "" } else { " or equal to" };
            let detail = format!("{at} in body should be less than{or_equal} {max}");
            errors.push(FieldError::invalid(path, value, detail));
        }
        if let Some(step) = self.multiple_of.filter(|s| *s != 0.0 && number % s != 0.0) {
            errors.push(FieldError::invalid(path, value, format!("{at} in body should be a multiple of {step}")));
        }
        // Formats bound integers; schemars and kube-derive write them for every Rust integer.
        let bounds = match self.format.as_str() {
            "int32" => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
            "uint8" => Some((0.0, f64::from(u8::MAX))),
            "uint16" => Some((0.0, f64::from(u16::MAX))),
            "uint32" => Some((0.0, f64::from(u32::MAX))),
            "uint64" | "uint" => Some((0.0, f64::MAX)),
            _ => None,
        };
        if bounds.is_some_and(|(low, high)| number < low || number > high) && self.minimum.is_none_or(|m| number >= m) {
            let detail = format!("{at} in body must be of type {}: {value}", self.format);
            errors.push(FieldError::invalid(path, value, detail));
        }
    }

    fn validate_items(&self, items: &[Value], path: &str, errors: &mut Vec<FieldError>, depth: usize) {
        let at = shown_path(path);
        let count = items.len() as u64;
        if let Some(min) = self.min_items.filter(|min| count < *min) {
            let detail = format!("{at} in body should have at least {min} items");
            errors.push(FieldError::invalid(path, &Value::from(count), detail));
        }
        if let Some(max) = self.max_items.filter(|max| count > *max) {
            errors.push(FieldError::too_many(path, items.len(), max));
        }
        let mut seen = HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let here = format!("{path}[{i}]");
            if let Some(schema) = &self.items {
                schema.validate_at(item, &here, errors, depth + 1);
            }
            let identity = match &self.list_type {
                ListType::Atomic => continue,
                ListType::Set => item.clone(),
                ListType::Map(keys) => self.item_keys(item, keys),
            };
            if !seen.insert(identity.to_string()) {
                errors.push(FieldError::duplicate(here, &identity));
            }
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

    fn validate_fields(&self, map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>, depth: usize) {
        let at = shown_path(path);
        let count = map.len() as u64;
        if let Some(min) = self.min_properties.filter(|min| count < *min) {
            let detail = format!("{at} in body should have at least {min} properties");
            errors.push(FieldError::invalid(path, &Value::from(count), detail));
        }
        if let Some(max) = self.max_properties.filter(|max| count > *max) {
            errors.push(FieldError::too_many(path, map.len(), max));
        }
        for name in &self.required {
            if !map.contains_key(name) {
                errors.push(FieldError::required(join(path, name)));
            }
        }
        for (key, child) in map {
            if let Some(schema) = self.field(key) {
                schema.validate_at(child, &join(path, key), errors, depth + 1);
            }
        }
    }
}

/// `path.key`, and `key` at the root.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn shown_path(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::compile(&json!({
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "minLength": 1},
                "policy": {"type": "string", "enum": ["Always", "Never"], "default": "Always"},
                "count": {"type": "integer", "minimum": 1.0, "maximum": 5.0},
                "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "ports": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port", "protocol"],
                    "items": {"type": "object", "properties": {
                        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}
                }
            }
        }))
        .unwrap()
    }

    fn errors(value: Value) -> Vec<String> {
        let mut errors = Vec::new();
        schema().validate(&value, "spec", &mut errors);
        errors.into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn violations_are_worded_as_by_a_real_server() {
        assert_eq!(errors(json!({})), ["spec.image: Required value"]);
        assert_eq!(
            errors(json!({"image": 7})),
            [r#"spec.image: Invalid value: "integer": spec.image in body must be of type string: "integer""#]
        );
        assert_eq!(
            errors(json!({"image": "x", "policy": "Maybe", "count": 9})),
            [
                "spec.count: Invalid value: 9: spec.count in body should be less than or equal to 5",
                r#"spec.policy: Unsupported value: "Maybe": supported values: "Always", "Never""#,
            ]
        );
        assert_eq!(
            errors(json!({"image": "x", "ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]})),
            [r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#]
        );
        assert!(errors(json!({"image": "x", "port": "http"})).is_empty());
    }

    #[test]
    fn unknown_fields_are_pruned_and_named() {
        let mut value =
            json!({"image": "x", "imgae": 1, "free": {"any": 1}, "ports": [{"prot": 1}], "labels": {"a": "b"}});
        let mut unknown = Vec::new();
        schema().prune(&mut value, "spec", &mut unknown);
        assert_eq!(unknown, ["spec.imgae", "spec.ports[0].prot"]);
        assert_eq!(value, json!({"image": "x", "free": {"any": 1}, "ports": [{}], "labels": {"a": "b"}}));
    }

    #[test]
    fn defaults_reach_into_lists_and_replace_null() {
        let mut value = json!({"policy": null, "image": null, "ports": [{"port": 1}]});
        schema().apply_defaults(&mut value);
        assert_eq!(value, json!({"policy": "Always", "ports": [{"port": 1, "protocol": "TCP"}]}));
    }
}
