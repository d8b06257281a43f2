//! JSON patch, merge patch and strategic merge patch: from a live object to the patched one.

use serde_json::{Map, Value};

use crate::status::ApiError;

/// Operations accepted in one JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// RFC 6902.
pub(crate) struct JsonPatch(json_patch::Patch);

impl JsonPatch {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let patch: json_patch::Patch = serde_json::from_slice(bytes)
            .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
        if patch.0.len() > MAX_OPERATIONS {
            let message = format!("the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}");
            return Err(ApiError::new(413, "RequestEntityTooLarge", message));
        }
        Ok(Self(patch))
    }

    pub(crate) fn apply(&self, live: &Value) -> Result<Value, ApiError> {
        let mut object = live.clone();
        json_patch::patch(&mut object, &self.0).map_err(|error| {
            ApiError::new(
                422,
                "Invalid",
                format!("the server rejected our request due to an error in our request: {error}"),
            )
        })?;
        Ok(object)
    }
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
