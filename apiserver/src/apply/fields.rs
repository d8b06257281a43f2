//! Sets of fields, in the form in which `managedFields` holds them (`FieldsV1`), and the sets that objects have and
//! differ in.
//!
//! A path step is a string: `f:name` for a field, `k:{"key":…}` for an item of a map list, `v:…` for an item of a
//! set.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{ListType, Schema};

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// Whether the path that ends here is in the set.
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

const LEAF: FieldSet = FieldSet { member: true, children: BTreeMap::new() };

/// How the parts of a value are told apart.
pub(super) enum Shape<'a> {
    /// By field name.
    Fields(&'a Map<String, Value>),
    /// By the keys of its items.
    Items(Vec<(String, &'a Value)>),
    /// Not at all: it is one value.
    Whole,
}

/// The shape of a value under a schema. What no schema describes has granular objects and atomic lists.
pub(super) fn shape<'a>(schema: Option<&Schema>, value: &'a Value) -> Shape<'a> {
    match value {
        Value::Object(map) if !schema.is_some_and(|s| s.map_atomic) => Shape::Fields(map),
        Value::Array(items) => match schema.map(|s| (&s.list_type, s)) {
            Some((ListType::Map(keys), schema)) => {
                let key = |item: &Value| format!("k:{}", schema.item_keys(item, keys));
                Shape::Items(items.iter().map(|item| (key(item), item)).collect())
            }
            Some((ListType::Set, _)) => Shape::Items(items.iter().map(|item| (format!("v:{item}"), item)).collect()),
            _ => Shape::Whole,
        },
        _ => Shape::Whole,
    }
}

/// The schema one step down.
pub(super) fn step<'a>(schema: Option<&'a Schema>, step: &str) -> Option<&'a Schema> {
    let schema = schema?;
    match step.strip_prefix("f:") {
        Some(name) => schema.field(name),
        None => schema.items.as_deref(),
    }
}

impl FieldSet {
    /// Every field of a value.
    pub(crate) fn of(schema: Option<&Schema>, value: &Value) -> Self {
        let parts: Vec<(String, &Value, bool)> = match shape(schema, value) {
            Shape::Fields(map) => map.iter().map(|(k, v)| (format!("f:{k}"), v, false)).collect(),
            Shape::Items(items) => items.into_iter().map(|(k, v)| (k, v, true)).collect(),
            Shape::Whole => return LEAF,
        };
        if parts.is_empty() {
            return LEAF;
        }
        let mut set = Self::default();
        for (key, part, is_item) in parts {
            let mut child = Self::of(step(schema, &key), part);
            child.member |= is_item;
            set.children.insert(key, child);
        }
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut children = self.children.clone();
        for (key, theirs) in &other.children {
            let merged = children.get(key).map_or_else(|| theirs.clone(), |ours| ours.union(theirs));
            children.insert(key.clone(), merged);
        }
        Self { member: self.member || other.member, children }
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let both = self.children.iter().filter_map(|(key, ours)| {
            let common = ours.intersection(other.children.get(key)?);
            (!common.is_empty()).then(|| (key.clone(), common))
        });
        Self { member: self.member && other.member, children: both.collect() }
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        let left = self.children.iter().filter_map(|(key, ours)| {
            let left = other.children.get(key).map_or_else(|| ours.clone(), |theirs| ours.difference(theirs));
            (!left.is_empty()).then(|| (key.clone(), left))
        });
        Self { member: self.member && !other.member, children: left.collect() }
    }

    /// Takes out a field, named by the steps to it, and everything below.
    pub(crate) fn remove(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => drop(self.children.remove(&format!("f:{last}"))),
            [first, rest @ ..] => {
                let key = format!("f:{first}");
                if let Some(child) = self.children.get_mut(&key) {
                    child.remove(rest);
                    if child.is_empty() {
                        self.children.remove(&key);
                    }
                }
            }
        }
    }

    /// Keeps one field of the root and what is below it.
    pub(crate) fn keep_only(&mut self, field: &str) {
        let key = format!("f:{field}");
        self.children.retain(|k, _| *k == key);
    }

    /// Every path, as messages show them: `.spec.containers[name="web"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(String::new(), &mut paths);
        paths
    }

    fn collect(&self, here: String, paths: &mut Vec<String>) {
        for (key, child) in &self.children {
            child.collect(format!("{here}{}", shown(key)), paths);
        }
        if self.member {
            paths.push(here);
        }
    }

    /// As `FieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.to_json());
        }
        Value::Object(map)
    }

    /// From `FieldsV1`; what is not understood is left out.
    pub(super) fn from_json(value: &Value) -> Self {
        let mut set = Self::read(value, 0);
        set.member = false;
        set
    }

    fn read(value: &Value, depth: usize) -> Self {
        let Some(map) = value.as_object().filter(|map| !map.is_empty() && depth < 128) else { return LEAF };
        let mut set = Self { member: map.contains_key("."), children: BTreeMap::new() };
        for (key, child) in map {
            let key = match key.strip_prefix("k:") {
                // Rewritten, so that equal keys are equal strings.
                Some(keys) => match serde_json::from_str::<Value>(keys) {
                    Ok(keys) => format!("k:{keys}"),
                    Err(_) => continue,
                },
                None if key.starts_with("f:") || key.starts_with("v:") => key.clone(),
                None => continue,
            };
            set.children.insert(key, Self::read(child, depth + 1));
        }
        set
    }
}

fn shown(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        _ => key.to_owned(),
    }
}

/// The fields that `new` adds or changes, and those that it lacks.
pub(super) fn compare(schema: Option<&Schema>, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
    if old == new {
        return Default::default();
    }
    let (old_parts, new_parts) = match (shape(schema, old), shape(schema, new)) {
        (Shape::Fields(old), Shape::Fields(new)) => (named(old), named(new)),
        (Shape::Items(old), Shape::Items(new)) => (old, new),
        _ => {
            return (
                FieldSet::of(schema, new).or_leaf(),
                FieldSet::of(schema, old).difference(&FieldSet::of(schema, new)),
            );
        }
    };
    let items = matches!(old, Value::Array(_));
    let old_parts: BTreeMap<String, &Value> = old_parts.into_iter().collect();
    let new_parts: BTreeMap<String, &Value> = new_parts.into_iter().collect();
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    for (key, new) in &new_parts {
        let below = step(schema, key);
        match old_parts.get(key) {
            Some(old) => {
                let (c, r) = compare(below, old, new);
                for (into, found) in [(&mut changed, c), (&mut removed, r)] {
                    if !found.is_empty() {
                        into.children.insert(key.clone(), found);
                    }
                }
            }
            None => {
                let mut added = FieldSet::of(below, new);
                added.member |= items;
                changed.children.insert(key.clone(), added);
            }
        }
    }
    for (key, old) in old_parts.iter().filter(|(key, _)| !new_parts.contains_key(*key)) {
        let mut gone = FieldSet::of(step(schema, key), old);
        // Whoever owned the map itself, or everything in it, owns nothing there any more.
        gone.member = true;
        removed.children.insert(key.clone(), gone);
    }
    (changed, removed)
}

fn named(map: &Map<String, Value>) -> Vec<(String, &Value)> {
    map.iter().map(|(key, value)| (format!("f:{key}"), value)).collect()
}

impl FieldSet {
    fn or_leaf(self) -> Self {
        if self.is_empty() { LEAF } else { self }
    }
}
