//! Label and field selectors.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::jsonpath;
use crate::registry::Resource;
use crate::status::ApiError;
use crate::store::Stored;

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
    Greater(String, i64),
    Less(String, i64),
}

/// What a list, watch or deletecollection is limited to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    /// Path, wanted value, and whether it must be equal.
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    pub(crate) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, ApiError> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(resource, fields)? })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Stored) -> bool {
        self.labels.iter().all(|r| r.matches(&object.labels)) && self.matches_fields(object)
    }

    fn matches_fields(&self, object: &Stored) -> bool {
        let mut parsed: Option<Value> = None;
        self.fields.iter().all(|(path, wanted, equal)| {
            let same = match path.as_str() {
                "metadata.name" => *object.key.name == **wanted,
                "metadata.namespace" => *object.key.namespace == **wanted,
                _ => {
                    let value = parsed.get_or_insert_with(|| object.value());
                    jsonpath::first_text(value, &format!(".{path}")) == *wanted
                }
            };
            same == *equal
        })
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let number = |key: &String| labels.get(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Self::Exists(key) => labels.contains_key(key),
            Self::Missing(key) => !labels.contains_key(key),
            Self::Greater(key, than) => number(key).is_some_and(|n| n > *than),
            Self::Less(key, than) => number(key).is_some_and(|n| n < *than),
        }
    }
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<(String, String, bool)>, ApiError> {
    let mut fields = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (path, value, true)
        } else {
            return Err(ApiError::bad_request(format!(
                "Unable to find {:?} that match label selector \"\", field selector {text:?}: invalid selector: {part:?}; can't understand {part:?}",
                resource.qualified()
            )));
        };
        let known = matches!(path, "metadata.name" | "metadata.namespace")
            || resource.selectable.iter().any(|known| known.trim_start_matches('.') == path);
        if !known {
            return Err(ApiError::bad_request(format!("field label not supported: {path}")));
        }
        fields.push((path.to_owned(), value.to_owned(), equal));
    }
    Ok(fields)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, ApiError> {
    let bad = || ApiError::bad_request(format!("unable to parse requirement: {text:?} is not a label selector"));
    let mut requirements = Vec::new();
    for part in split_outside_parentheses(text) {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        requirements.push(parse_requirement(part).ok_or_else(bad)?);
    }
    Ok(requirements)
}

fn parse_requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return is_key(key.trim()).then(|| Requirement::Missing(key.trim().to_owned()));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return pair(key, value).map(|(k, v)| Requirement::NotIn(k, vec![v]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return pair(key, value).map(|(k, v)| Requirement::In(k, vec![v]));
    }
    if let Some((key, value)) = part.split_once('>') {
        return Some(Requirement::Greater(key.trim().to_owned(), value.trim().parse().ok()?));
    }
    if let Some((key, value)) = part.split_once('<') {
        return Some(Requirement::Less(key.trim().to_owned(), value.trim().parse().ok()?));
    }
    if let Some(open) = part.find('(') {
        let values = part[open + 1..].trim_end().strip_suffix(')')?;
        let mut head = part[..open].split_whitespace();
        let (key, operator) = (head.next()?, head.next()?);
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        return match operator {
            "in" if is_key(key) => Some(Requirement::In(key.to_owned(), values)),
            "notin" if is_key(key) => Some(Requirement::NotIn(key.to_owned(), values)),
            _ => None,
        };
    }
    is_key(part).then(|| Requirement::Exists(part.to_owned()))
}

fn pair(key: &str, value: &str) -> Option<(String, String)> {
    let (key, value) = (key.trim(), value.trim());
    let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    (is_key(key) && plain).then(|| (key.to_owned(), value.to_owned()))
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse_labels(selector).unwrap().iter().all(|r| r.matches(&labels))
    }

    #[test]
    fn every_operator() {
        let labels = [("app", "web"), ("tier", "2")];
        for yes in [
            "app=web",
            "app==web",
            "app!=db",
            "app",
            "!gone",
            "app in (web, db)",
            "app notin (db)",
            "tier>1",
            "tier<3",
            "app in (web),tier",
            "gone!=x",
            "gone notin (x)",
            "",
        ] {
            assert!(selects(yes, &labels), "{yes}");
        }
        for no in ["app=db", "gone", "!app", "app in (db)", "app notin (web,db)", "tier>2", "app=web,gone=x"] {
            assert!(!selects(no, &labels), "{no}");
        }
        for broken in ["app in web", "=x", "a b", "app in (web", "a=b c"] {
            assert!(parse_labels(broken).is_err(), "{broken}");
        }
    }
}
