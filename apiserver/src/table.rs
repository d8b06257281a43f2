//! The Table representation: what `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::jsonpath;
use crate::registry::{Column, Resource};
use crate::represent;
use crate::store::Stored;

/// What each row carries besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Metadata,
    Object,
    None,
}

/// The Table of some objects. Without `headers` it has no column definitions, as later events of a watch.
pub(crate) fn of(resource: &Resource, objects: &[&Stored], include: Include, headers: bool, metadata: Value) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects.iter().map(|stored| row(resource, stored, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if headers { definitions(resource) } else { json!([]) },
        "rows": rows,
    })
}

/// The row of one object.
pub(crate) fn row(resource: &Resource, stored: &Stored, include: Include, now: Timestamp) -> Value {
    // Columns of events are those of the stored form.
    let stored_form = stored.value();
    let cells: Vec<Value> = resource.columns.iter().map(|c| cell(c, &stored_form, now)).collect();
    match include {
        Include::None => json!({"cells": cells}),
        Include::Metadata => json!({"cells": cells, "object": represent::partial(stored_form)}),
        Include::Object => json!({"cells": cells, "object": represent::view(resource, stored)}),
    }
}

/// The columns of a resource.
pub(crate) fn definitions(resource: &Resource) -> Value {
    resource.columns.iter().map(definition).collect()
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        // A cell holds an age as text, already worked out.
        "type": if column.kind == "date" { "string" } else { &column.kind },
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    })
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    if let Some((how, path)) = column.path.split_once(':').filter(|(how, _)| !how.starts_with('.')) {
        let first = || path.split('|').flat_map(|p| jsonpath::find(object, p)).find(|v| !v.is_null());
        return match how {
            "count" => {
                let size = |v: &Value| v.as_object().map_or(0, serde_json::Map::len);
                json!(path.split('|').flat_map(|p| jsonpath::find(object, p)).map(size).sum::<usize>())
            }
            "phase" => first().cloned().unwrap_or_else(|| json!("Pending")),
            "age" => json!(first().and_then(Value::as_str).map_or("<unknown>".into(), |t| age(t, now))),
            "object" => {
                let about = first().unwrap_or(&Value::Null);
                let text = |key: &str| about[key].as_str().unwrap_or_default().to_lowercase();
                json!(format!("{}/{}", text("kind"), about["name"].as_str().unwrap_or_default()))
            }
            _ => {
                let ready = first().and_then(Value::as_array).into_iter().flatten().find(|c| c["type"] == "Ready");
                json!(match ready.and_then(|c| c["status"].as_str()) {
                    Some("True") => "Ready",
                    Some(_) => "NotReady",
                    None => "Unknown",
                })
            }
        };
    }
    let found = column.path.split('|').flat_map(|path| jsonpath::find(object, path)).find(|v| !v.is_null());
    let Some(value) = found else {
        return Value::Null;
    };
    match (column.kind.as_str(), value) {
        ("date", Value::String(time)) => Value::String(age(time, now)),
        ("string", Value::String(_)) | ("integer" | "number", Value::Number(_)) | ("boolean", Value::Bool(_)) => {
            value.clone()
        }
        (_, Value::String(text)) => json!(text),
        (_, other) => json!(other.to_string()),
    }
}

fn age(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => short_duration(now.as_second() - then.as_second()),
        Err(_) => "<invalid>".into(),
    }
}

/// A duration as Kubernetes prints it: `45s`, `5m30s`, `3h12m`, `2d4h`, `90d`, `2y10d`.
fn short_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86400);
    let two = |a: i64, unit: &str, b: i64, small: &str| {
        if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{small}") }
    };
    if s < 120 {
        format!("{s}s")
    } else if m < 10 {
        two(m, "m", s % 60, "s")
    } else if m < 180 {
        format!("{m}m")
    } else if h < 8 {
        two(h, "h", m % 60, "m")
    } else if h < 48 {
        format!("{h}h")
    } else if h < 192 {
        two(d, "d", h % 24, "h")
    } else if d < 730 {
        format!("{d}d")
    } else if d < 8 * 365 {
        two(d / 365, "y", d % 365, "d")
    } else {
        format!("{}y", d / 365)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (900, "15m"),
            (11520, "3h12m"),
            (36000, "10h"),
            (187_200, "2d4h"),
            (7_776_000, "90d"),
            (63_936_000, "2y10d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(short_duration(seconds), text);
        }
    }
}
