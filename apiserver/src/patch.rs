//! JSON patch, merge patch and strategic merge patch: from a live object to the patched one.

use json_patch::PatchOperation;
use json_patch::jsonptr::Pointer;
use serde_json::{Map, Value};

use crate::body;
use crate::status::ApiError;

/// Operations accepted in one JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that all `copy` operations of a patch may add, as on a real server.
const MAX_COPIED: usize = 3 << 20;
/// Bytes that all `move` operations of a patch may be about.
const MAX_MOVED: usize = 64 << 20;
/// Deepest place that an operation may make.
const MAX_DEPTH: usize = 128;

/// RFC 6902.
pub(crate) struct JsonPatch(json_patch::Patch);

impl JsonPatch {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let (operations, _) = body::parse(bytes, "error decoding patch")?;
        if !operations.is_array() {
            return Err(ApiError::bad_request("error decoding patch: it is not a list of operations"));
        }
        // As on a real server, what an operation says is looked at when it is carried out.
        let patch: json_patch::Patch = serde_json::from_value(operations).map_err(|error| refused(&error))?;
        if patch.0.len() > MAX_OPERATIONS {
            let message = format!("the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}");
            return Err(ApiError::new(413, "RequestEntityTooLarge", message));
        }
        Ok(Self(patch))
    }

    pub(crate) fn apply(&self, live: &Value) -> Result<Value, ApiError> {
        let mut object = live.clone();
        let (mut copied, mut moved) = (0, 0);
        for (i, operation) in self.0.0.iter().enumerate() {
            let (to, deep) = match operation {
                PatchOperation::Add(add) => (&*add.path, 0),
                PatchOperation::Copy(copy) => {
                    let (bytes, deep) = object.pointer(copy.from.as_str()).map(extent).unwrap_or_default();
                    copied += bytes;
                    if copied > MAX_COPIED {
                        let message = format!(
                            "unable to complete json patch operation, the accumulated size increase of copy \
                             operations is {copied}, exceeding the limit {MAX_COPIED}"
                        );
                        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
                    }
                    (&*copy.path, deep)
                }
                PatchOperation::Move(from) => {
                    let (bytes, deep) = object.pointer(from.from.as_str()).map(extent).unwrap_or_default();
                    moved += bytes;
                    if moved > MAX_MOVED {
                        let message = format!("the move operations of the patch concern more than {MAX_MOVED} bytes");
                        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
                    }
                    (&*from.path, deep)
                }
                PatchOperation::Replace(_) | PatchOperation::Remove(_) | PatchOperation::Test(_) => {
                    (Pointer::root(), 0)
                }
            };
            if to.as_str().matches('/').count() + deep > MAX_DEPTH {
                return Err(ApiError::bad_request(format!("the patch nests more than {MAX_DEPTH} levels deep")));
            }
            // On a copy of our own, so nothing has to be undone.
            json_patch::patch_unsafe(&mut object, std::slice::from_ref(operation)).map_err(|mut error| {
                error.operation = i;
                refused(&error)
            })?;
        }
        Ok(object)
    }
}

/// About how many bytes a value is as JSON, and how many levels it has.
fn extent(value: &Value) -> (usize, usize) {
    match value {
        Value::Object(map) => map.iter().fold((2, 1), |(bytes, deep), (key, value)| {
            let (below, levels) = extent(value);
            (bytes + key.len() + below + 4, deep.max(levels + 1))
        }),
        Value::Array(items) => items.iter().fold((2, 1), |(bytes, deep), item| {
            let (below, levels) = extent(item);
            (bytes + below + 1, deep.max(levels + 1))
        }),
        Value::String(text) => (text.len() + 2, 1),
        _ => (4, 1),
    }
}

/// A real server stops after these words; which operation it was helps whoever sent it.
fn refused(error: &dyn std::fmt::Display) -> ApiError {
    let message = format!("the server rejected our request due to an error in our request: {error}");
    ApiError::new(422, "Invalid", message)
}

/// RFC 7386.
pub(crate) fn merge(live: &Value, patch: &Value) -> Value {
    let mut object = live.clone();
    json_patch::merge(&mut object, patch);
    object
}

/// Strategic merge: like a merge patch, but lists with a merge key merge item by item, and the directives `$patch`,
/// `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys` are obeyed.
pub(crate) fn strategic(schema: &Value, live: &Value, patch: &Value) -> Result<Value, ApiError> {
    merge_value(Some(schema), live, patch)
}

fn merge_value(schema: Option<&Value>, live: &Value, patch: &Value) -> Result<Value, ApiError> {
    match (live, patch) {
        (Value::Object(live), Value::Object(patch)) => merge_map(schema, live, patch).map(Value::Object),
        (_, Value::Object(patch)) => merge_map(schema, &Map::new(), patch).map(Value::Object),
        (Value::Array(live), Value::Array(patch)) => merge_list(schema, live, patch).map(Value::Array),
        (_, Value::Array(patch)) => merge_list(schema, &[], patch).map(Value::Array),
        (_, other) => Ok(other.clone()),
    }
}

fn child<'a>(schema: Option<&'a Value>, field: &str) -> Option<&'a Value> {
    let schema = schema?;
    schema["properties"].get(field).or_else(|| schema.get("additionalProperties").filter(|s| s.is_object()))
}

fn merge_map(
    schema: Option<&Value>,
    live: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            let mut replaced = patch.clone();
            replaced.remove("$patch");
            return Ok(replaced);
        }
        Some("delete") => return Ok(Map::new()),
        Some("merge") | None => {}
        Some(other) => return Err(ApiError::bad_request(format!("Unknown patch type found: {other}"))),
    }
    let mut merged = live.clone();
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        merged.retain(|key, _| keep.iter().any(|k| k == key.as_str()));
    }
    for (field, value) in patch {
        if let Some(name) = field.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(list)), Some(gone)) = (merged.get_mut(name), value.as_array()) {
                list.retain(|item| !gone.contains(item));
            }
        } else if field.starts_with('$') {
            continue;
        } else if value.is_null() {
            merged.remove(field);
        } else {
            let here = merged.get(field).unwrap_or(&Value::Null);
            let value = merge_value(child(schema, field), here, value)?;
            merged.insert(field.clone(), value);
        }
    }
    for (field, order) in patch {
        let Some(name) = field.strip_prefix("$setElementOrder/") else { continue };
        let key = child(schema, name).and_then(|s| s["x-kubernetes-patch-merge-key"].as_str());
        if let (Some(Value::Array(list)), Some(order)) = (merged.get_mut(name), order.as_array()) {
            let place = |item: &Value| {
                let same = |wanted: &Value| key.map_or(wanted == item, |key| wanted[key] == item[key]);
                order.iter().position(same).unwrap_or(usize::MAX)
            };
            list.sort_by_key(place);
        }
    }
    Ok(merged)
}

fn merge_list(schema: Option<&Value>, live: &[Value], patch: &[Value]) -> Result<Vec<Value>, ApiError> {
    let merges = schema.is_some_and(|s| s["x-kubernetes-patch-strategy"] == "merge");
    let is_directive = |item: &&Value, what: &str| item["$patch"] == what;
    if !merges || patch.iter().any(|item| is_directive(&item, "replace")) {
        return Ok(patch.iter().filter(|item| !is_directive(item, "replace")).cloned().collect());
    }
    let schema = schema.unwrap_or(&Value::Null);
    let mut merged = live.to_vec();
    let Some(key) = schema["x-kubernetes-patch-merge-key"].as_str() else {
        for item in patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(merged);
    };
    for item in patch {
        let identity = &item[key];
        if identity.is_null() {
            return Err(ApiError::bad_request(format!("map: {item} does not contain declared merge key: {key}")));
        }
        let at = merged.iter().position(|live| live[key] == *identity);
        match (at, is_directive(&item, "delete")) {
            (Some(at), true) => drop(merged.remove(at)),
            (None, true) => {}
            (Some(at), false) => merged[at] = merge_value(schema.get("items"), &merged[at], item)?,
            (None, false) => merged.push(merge_value(schema.get("items"), &Value::Null, item)?),
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategic_merges_by_key_and_obeys_directives() {
        let schema = json!({"properties": {
            "set": {"x-kubernetes-patch-strategy": "merge"},
            "plain": {},
            "keyed": {"x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name",
                "items": {"properties": {}}}}});
        let live = json!({"set": ["a", "b"], "plain": [1], "map": {"x": 1, "y": 2},
            "keyed": [{"name": "a", "v": 1}, {"name": "b", "v": 2}]});
        let patch = json!({"set": ["c"], "$deleteFromPrimitiveList/set": ["a"], "plain": [2], "map": {"x": null},
            "keyed": [{"name": "b", "v": 3, "w": 4}, {"name": "a", "$patch": "delete"}, {"name": "c"}],
            "$setElementOrder/keyed": [{"name": "c"}, {"name": "b"}]});
        let merged = strategic(&schema, &live, &patch).unwrap();
        assert_eq!(merged["plain"], json!([2]));
        assert_eq!(merged["map"], json!({"y": 2}));
        assert_eq!(merged["keyed"], json!([{"name": "c"}, {"name": "b", "v": 3, "w": 4}]));
        let replaced = strategic(&schema, &live, &json!({"map": {"$patch": "replace", "z": 1}})).unwrap();
        assert_eq!(replaced["map"], json!({"z": 1}));
    }
}
