//! The part of JSONPath that printer columns and selectable fields use: fields, indexes, wildcards and equality
//! filters, as in `.status.conditions[?(@.type=="Ready")].status`.

use serde_json::Value;

/// Every value that `path` leads to; none if it is malformed.
pub(crate) fn find<'a>(root: &'a Value, path: &str) -> Vec<&'a Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut here = vec![root];
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = closing(inner) else { return Vec::new() };
            here = bracket(&here, &inner[..end]);
            rest = &inner[end + 1..];
        } else {
            let name_start = rest.strip_prefix('.').unwrap_or(rest);
            let (name, after) = field_name(name_start);
            if name.is_empty() {
                rest = after;
                if name_start.is_empty() || after == name_start {
                    break;
                }
                continue;
            }
            here = if name == "*" { children(&here) } else { here.into_iter().filter_map(|v| v.get(&name)).collect() };
            rest = after;
        }
    }
    here
}

/// The first value as text; empty if there is none.
pub(crate) fn first_text(root: &Value, path: &str) -> String {
    match find(root, path).first() {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// A field name up to the next `.` or `[`; a backslash keeps a dot in the name.
fn field_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, &text[i..]),
            '\\' => {
                if let Some((_, escaped)) = chars.next() {
                    name.push(escaped);
                }
            }
            _ => name.push(c),
        }
    }
    (name, "")
}

fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn children<'a>(values: &[&'a Value]) -> Vec<&'a Value> {
    values
        .iter()
        .flat_map(|v| match v {
            Value::Array(items) => items.iter().collect::<Vec<_>>(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        })
        .collect()
}

fn bracket<'a>(values: &[&'a Value], inside: &str) -> Vec<&'a Value> {
    let inside = inside.trim();
    if inside == "*" {
        return children(values);
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (path, wanted, equal) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((path, wanted)), _) => (path, wanted, true),
            (None, Some((path, wanted))) => (path, wanted, false),
            (None, None) => {
                let path = filter.trim().trim_start_matches('@');
                return children(values).into_iter().filter(|v| !find(v, path).is_empty()).collect();
            }
        };
        let path = path.trim().trim_start_matches('@');
        let wanted = unquote(wanted.trim());
        return children(values).into_iter().filter(|v| (first_text(v, path) == wanted) == equal).collect();
    }
    if let Ok(index) = inside.parse::<i64>() {
        return values
            .iter()
            .filter_map(|v| v.as_array())
            .filter_map(|items| {
                let at =
                    if index < 0 { items.len().checked_sub(index.unsigned_abs() as usize)? } else { index as usize };
                items.get(at)
            })
            .collect();
    }
    let name = unquote(inside);
    values.iter().filter_map(|v| v.get(name)).collect()
}

fn unquote(text: &str) -> &str {
    text.trim_matches(|c| c == '"' || c == '\'')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"metadata": {"labels": {"a.b/c": "x"}}, "status": {"n": 3, "list": [{"p": 1}, {"p": 2}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        let text = |path| first_text(&object, path);
        assert_eq!(text(r#".status.conditions[?(@.type=="Ready")].status"#), "True");
        assert_eq!(text(".status.conditions[?(@.type=='Other')].status"), "False");
        assert_eq!(text(".status.n"), "3");
        assert_eq!(text(".status.list[1].p"), "2");
        assert_eq!(text(".status.list[-1].p"), "2");
        assert_eq!(text(".metadata.labels['a.b/c']"), "x");
        assert_eq!(text(r".metadata.labels.a\.b/c"), "x");
        assert_eq!(find(&object, ".status.list[*].p").len(), 2);
        for broken in ["", ".", "..", "[", ".status.list[", ".status.list[9].p", ".a..b", "[?(]"] {
            let _ = find(&object, broken);
        }
    }
}
