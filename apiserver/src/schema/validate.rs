//! Checking values against a schema: every violation, each at its path, worded as a real server words it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{ListType, MAX_DEPTH, Schema, join};
use crate::status::FieldError;

impl Schema {
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
        let Some(junctors) = &self.junctors else { return };
        let passes = |schema: &Schema| {
            let mut found = Vec::new();
            schema.validate_at(value, path, &mut found, depth + 1);
            found.is_empty()
        };
        for schema in &junctors.all_of {
            schema.validate_at(value, path, errors, depth + 1);
        }
        let kind = Value::String(type_name(value).to_owned());
        if !junctors.any_of.is_empty() && !self.int_or_string && !junctors.any_of.iter().any(passes) {
            let detail = format!("{} in body must validate at least one schema (anyOf)", shown_path(path));
            errors.push(FieldError::invalid(path, &kind, detail));
        }
        if !junctors.one_of.is_empty() && junctors.one_of.iter().filter(|s| passes(s)).count() != 1 {
            let detail = format!("{} in body must validate one and only one schema (oneOf)", shown_path(path));
            errors.push(FieldError::invalid(path, &kind, detail));
        }
        if junctors.not.as_deref().is_some_and(passes) {
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
        let (at, limits) = (shown_path(path), self.bounds());
        let length = text.chars().count() as u64;
        if let Some(min) = limits.min_length.filter(|min| length < *min) {
            errors.push(FieldError::invalid(path, value, format!("{at} in body should be at least {min} chars long")));
        }
        if let Some(max) = limits.max_length.filter(|max| length > *max) {
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
        let (at, limits) = (shown_path(path), self.bounds());
        if let Some(min) = limits.minimum.filter(|m| number < *m || (limits.exclusive_minimum && number <= *m)) {
            let or_equal = if limits.exclusive_minimum { "" } else { " or equal to" };
            let detail = format!("{at} in body should be greater than{or_equal} {min}");
            errors.push(FieldError::invalid(path, value, detail));
        }
        if let Some(max) = limits.maximum.filter(|m| number > *m || (limits.exclusive_maximum && number >= *m)) {
            let or_equal = if limits.exclusive_maximum { "" } else { " or equal to" };
            let detail = format!("{at} in body should be less than{or_equal} {max}");
            errors.push(FieldError::invalid(path, value, detail));
        }
        if let Some(step) = limits.multiple_of.filter(|s| *s != 0.0 && number % s != 0.0) {
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
        if bounds.is_some_and(|(low, high)| number < low || number > high) && limits.minimum.is_none_or(|m| number >= m)
        {
            let detail = format!("{at} in body must be of type {}: {value}", self.format);
            errors.push(FieldError::invalid(path, value, detail));
        }
    }

    fn validate_items(&self, items: &[Value], path: &str, errors: &mut Vec<FieldError>, depth: usize) {
        let (at, limits) = (shown_path(path), self.bounds());
        let count = items.len() as u64;
        if let Some(min) = limits.min_items.filter(|min| count < *min) {
            let detail = format!("{at} in body should have at least {min} items");
            errors.push(FieldError::invalid(path, &Value::from(count), detail));
        }
        if let Some(max) = limits.max_items.filter(|max| count > *max) {
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

    fn validate_fields(&self, map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>, depth: usize) {
        let (at, limits) = (shown_path(path), self.bounds());
        let count = map.len() as u64;
        if let Some(min) = limits.min_properties.filter(|min| count < *min) {
            let detail = format!("{at} in body should have at least {min} properties");
            errors.push(FieldError::invalid(path, &Value::from(count), detail));
        }
        if let Some(max) = limits.max_properties.filter(|max| count > *max) {
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
