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

/// The operators between a key and its values, as messages list them.
const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

fn parse_labels(text: &str) -> Result<Vec<Requirement>, ApiError> {
    let mut tokens = Tokens { rest: text };
    let refuse = |message: String| ApiError::bad_request(message);
    let mut requirements = Vec::new();
    loop {
        match tokens.peek() {
            "" => return Ok(requirements),
            "!" => {}
            word if is_word(word) => {}
            other => return Err(refuse(format!("found '{other}', expected: !, identifier, or 'end of string'"))),
        }
        let requirement = parse_requirement(&mut tokens);
        requirements.push(requirement.map_err(|error| refuse(format!("unable to parse requirement: {error}")))?);
        match tokens.next() {
            "" => return Ok(requirements),
            "," => {
                let next = tokens.peek();
                if next != "!" && !is_word(next) {
                    return Err(refuse(format!("found '{next}', expected: identifier after ','")));
                }
            }
            other => return Err(refuse(format!("found '{other}', expected: ',' or 'end of string'"))),
        }
    }
}

/// The words and signs of a label selector; the end is an empty one.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn peek(&self) -> &'a str {
        let rest = self.rest.trim_start();
        let signs = rest.find(|c| !"=!<>".contains(c)).unwrap_or(rest.len());
        let length = match rest.chars().next() {
            None => 0,
            Some('(' | ')' | ',') => 1,
            Some('=' | '!' | '<' | '>') => {
                // The longest sign that there is.
                ["==", "!=", "=", "!", "<", ">"]
                    .iter()
                    .find(|sign| rest[..signs].starts_with(**sign))
                    .map_or(1, |s| s.len())
            }
            Some(_) => rest.find(|c: char| c.is_whitespace() || "=!<>(),".contains(c)).unwrap_or(rest.len()),
        };
        &rest[..length]
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.rest = &self.rest.trim_start()[token.len()..];
        token
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(['=', '!', '<', '>', '(', ')', ','])
}

fn parse_requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, String> {
    let missing = tokens.peek() == "!";
    if missing {
        tokens.next();
    }
    let key = match tokens.next() {
        word if is_word(word) => word.to_owned(),
        other => return Err(format!("found '{other}', expected: identifier")),
    };
    if let Some(rule) = crate::admission::wrong_label_key(&key) {
        return Err(format!("key: Invalid value: {key:?}: {rule}"));
    }
    if missing {
        return Ok(Requirement::Missing(key));
    }
    if matches!(tokens.peek(), "" | ",") {
        return Ok(Requirement::Exists(key));
    }
    let operator = tokens.next();
    let values = match operator {
        "in" | "notin" => parse_values(tokens)?,
        "=" | "==" | "!=" | ">" | "<" => vec![parse_value(tokens)?],
        other => return Err(format!("found '{other}', expected: {OPERATORS}")),
    };
    if let Some((i, value)) = values.iter().enumerate().find(|(_, value)| !is_label_value(value)) {
        return Err(format!("values[{i}][{key}]: Invalid value: {value:?}: {}", crate::admission::LABEL_VALUE_RULE));
    }
    let number = |values: &[String]| {
        let text = values.concat();
        let rule = "for 'Gt', 'Lt' operators, the value must be an integer";
        text.parse().map_err(|_| format!("values[0][{key}]: Invalid value: {text:?}: {rule}"))
    };
    Ok(match operator {
        "in" | "=" | "==" => Requirement::In(key, values),
        "notin" | "!=" => Requirement::NotIn(key, values),
        ">" => Requirement::Greater(key.clone(), number(&values)?),
        _ => Requirement::Less(key.clone(), number(&values)?),
    })
}

fn parse_value(tokens: &mut Tokens<'_>) -> Result<String, String> {
    match tokens.peek() {
        "" | "," => Ok(String::new()),
        word if is_word(word) => Ok(tokens.next().to_owned()),
        other => Err(format!("found '{other}', expected: identifier")),
    }
}

/// `(a, b)`.
fn parse_values(tokens: &mut Tokens<'_>) -> Result<Vec<String>, String> {
    match tokens.next() {
        "(" => {}
        other => return Err(format!("found '{other}' expected: '('")),
    }
    let mut values = vec![String::new()];
    loop {
        match tokens.next() {
            ")" => return Ok(values),
            "," => values.push(String::new()),
            word if is_word(word) => match values.last_mut() {
                Some(value) if value.is_empty() => *value = word.to_owned(),
                _ => return Err(format!("found '{word}', expected: ',' or ')'")),
            },
            other => return Err(format!("found '{other}', expected: ',', ')' or identifier")),
        }
    }
}

fn is_label_value(value: &str) -> bool {
    crate::admission::is_label_value(value)
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
        for (broken, message) in [
            ("app in web", "unable to parse requirement: found 'web' expected: '('"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("app in (web", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a=(", "unable to parse requirement: found '(', expected: identifier"),
            ("a,!", "unable to parse requirement: found '', expected: identifier"),
        ] {
            assert_eq!(parse_labels(broken).unwrap_err().message, message, "{broken}");
        }
        for broken in ["a=@", "-=x", "a>x", "a<", "a in (b c)", "ä=b", "a/b/c=d"] {
            assert!(parse_labels(broken).is_err(), "{broken}");
        }
    }
}
