//! Merging a configuration into an object, and removing what its owner no longer applies.

use std::collections::HashMap;

use serde_json::Value;

use super::fields::{FieldSet, Shape, shape, step};
use crate::schema::Schema;

/// `live` with everything that `applied` says.
pub(super) fn merge(schema: Option<&Schema>, live: Option<&Value>, applied: &Value) -> Value {
    let Some(live) = live else { return applied.clone() };
    match (shape(schema, live), shape(schema, applied)) {
        (Shape::Fields(live), Shape::Fields(applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let below = schema.and_then(|s| s.field(name));
                merged.insert(name.clone(), merge(below, live.get(name), value));
            }
            Value::Object(merged)
        }
        (Shape::Items(live), Shape::Items(applied)) => Value::Array(merge_items(schema, &live, &applied)),
        _ => applied.clone(),
    }
}

/// Items that both have come in the order of the configuration; those that only the object has keep their place
/// among them.
fn merge_items(schema: Option<&Schema>, live: &[(String, &Value)], applied: &[(String, &Value)]) -> Vec<Value> {
    let places: HashMap<&str, usize> = applied.iter().enumerate().map(|(i, (key, _))| (key.as_str(), i)).collect();
    let before: HashMap<&str, &Value> = live.iter().map(|(key, item)| (key.as_str(), *item)).collect();
    let items = schema.and_then(|s| s.items.as_deref());
    let merged = |(key, item): &(String, &Value)| merge(items, before.get(key.as_str()).copied(), item);
    let (mut out, mut next) = (Vec::new(), 0);
    for (key, item) in live {
        match places.get(key.as_str()) {
            None => out.push((*item).clone()),
            Some(place) if *place >= next => {
                out.extend(applied[next..=*place].iter().map(merged));
                next = place + 1;
            }
            Some(_) => {}
        }
    }
    out.extend(applied[next..].iter().map(merged));
    out
}

/// Removes the `dropped` fields from a value, except those that are still `kept` by somebody. Says whether nothing
/// of the value is left.
pub(super) fn remove(schema: Option<&Schema>, value: &mut Value, dropped: &FieldSet, kept: &FieldSet) -> bool {
    let nothing = FieldSet::default();
    match value {
        Value::Object(map) => {
            for (key, gone) in &dropped.children {
                let Some(name) = key.strip_prefix("f:") else { continue };
                let kept = kept.children.get(key);
                let below = schema.and_then(|s| s.field(name));
                let Some(child) = map.get_mut(name) else { continue };
                let is_leaf = gone.children.is_empty();
                let empty = if is_leaf { true } else { remove(below, child, gone, kept.unwrap_or(&nothing)) };
                if empty && kept.is_none_or(FieldSet::is_empty) {
                    map.remove(name);
                }
            }
            map.is_empty()
        }
        Value::Array(items) => {
            let keys: Vec<String> = match shape(schema, &Value::Array(items.clone())) {
                Shape::Items(parts) => parts.into_iter().map(|(key, _)| key).collect(),
                _ => return false,
            };
            let below = schema.and_then(|s| step(Some(s), "k:"));
            let mut left = Vec::with_capacity(items.len());
            for (key, mut item) in keys.into_iter().zip(std::mem::take(items)) {
                let (Some(gone), kept) = (dropped.children.get(&key), kept.children.get(&key)) else {
                    left.push(item);
                    continue;
                };
                let is_kept = kept.is_some_and(|kept| !kept.is_empty());
                if gone.member && !is_kept {
                    continue;
                }
                if item.is_object() {
                    remove(below, &mut item, gone, kept.unwrap_or(&nothing));
                }
                left.push(item);
            }
            *items = left;
            items.is_empty()
        }
        _ => false,
    }
}
