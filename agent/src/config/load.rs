//! Reading the configuration and explaining what is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::overrides::{self, Origin, Override};
use super::{NodeletConfiguration, check};
use crate::yaml::{self, Position, Positions};

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("reading the configuration {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something in it is wrong; every fault that could be told is named.
    #[error("{0}")]
    Faults(Faults),
}

/// All that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `/etc/nodelet/config.yaml:7:3`, or the variable or flag.
    pub place: String,
    /// The key; empty when the text is not YAML.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub expected: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; expected {}; {}", self.problem, self.expected, self.remedy)
    }
}

/// What [`super::check`] finds; the place is found from the key.
pub(super) struct Finding {
    pub(super) key: String,
    pub(super) problem: String,
    pub(super) expected: String,
    pub(super) remedy: String,
}

/// Reads `path`, lays `overrides` over it (later ones win) and checks the result.
///
/// A missing file is an error only if `required`: the defaults make a working agent.
///
/// # Errors
/// [`Error`]
pub fn load(path: &Path, required: bool, overrides: &[Override]) -> Result<NodeletConfiguration, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    read(&path.display().to_string(), &text, overrides).map_err(|faults| Error::Faults(Faults(faults)))
}

/// [`load`] without the file system.
pub(super) fn read(name: &str, text: &str, overrides: &[Override]) -> Result<NodeletConfiguration, Vec<Fault>> {
    let place = Places { name, positions: Positions::default(), overrides };
    let documents = yaml::parse(text).map_err(|error| {
        vec![Fault {
            place: at(name, error.at),
            key: String::new(),
            problem: format!("not valid YAML: {}", error.message),
            expected: "one YAML document".to_owned(),
            remedy: "correct the syntax at this place".to_owned(),
        }]
    })?;
    if documents.len() > 1 {
        let second = documents[1].positions.of_value("");
        return Err(vec![Fault {
            place: at(name, second),
            key: String::new(),
            problem: "a second document".to_owned(),
            expected: "exactly one".to_owned(),
            remedy: "manifests belong into a directory of `sources`, not into the configuration".to_owned(),
        }]);
    }
    let (mut value, positions) = match documents.into_iter().next() {
        Some(document) => (document.value, document.positions),
        None => (json!({}), Positions::default()),
    };
    let place = Places { positions, ..place };
    if !value.is_object() {
        return Err(vec![Fault {
            place: place.of(""),
            key: String::new(),
            problem: format!("the document is {}", kind_of(&value)),
            expected: "a mapping with kind: NodeletConfiguration".to_owned(),
            remedy: "see `nodelet config print` for a complete one".to_owned(),
        }]);
    }
    for o in overrides {
        overrides::set(&mut value, &o.key, o.value.clone());
    }
    let mut misshapen = Vec::new();
    shapes(&value, &json!(NodeletConfiguration::default()), "", &place, &mut misshapen);
    if !misshapen.is_empty() {
        return Err(misshapen);
    }
    let configuration: NodeletConfiguration =
        serde_path_to_error::deserialize(&value).map_err(|error| vec![type_fault(&error, &value, &place)])?;
    let findings = check::check(&configuration);
    if findings.is_empty() {
        return Ok(configuration);
    }
    Err(findings
        .into_iter()
        .map(|Finding { key, problem, expected, remedy }| Fault {
            place: place.of(&key),
            key,
            problem,
            expected,
            remedy,
        })
        .collect())
}

struct Places<'a> {
    name: &'a str,
    positions: Positions,
    overrides: &'a [Override],
}

impl Places<'_> {
    fn of(&self, key: &str) -> String {
        match self.origin(key) {
            Some(origin) => origin.to_string(),
            None => at(self.name, self.positions.of_key(key)),
        }
    }

    /// The last override that set `key` or what holds it.
    fn origin(&self, key: &str) -> Option<&Origin> {
        let holds = |o: &&Override| {
            key.strip_prefix(o.key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.overrides.iter().rev().find(holds).map(|o| &o.origin)
    }
}

fn at(name: &str, position: Option<Position>) -> String {
    match position {
        Some(Position { line, column }) => format!("{name}:{line}:{column}"),
        None => name.to_owned(),
    }
}

/// Finds what is no mapping though its keys are known: the types would take a list for one, and say less of the rest.
fn shapes(value: &Value, default: &Value, key: &str, place: &Places<'_>, faults: &mut Vec<Fault>) {
    match (value, default) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                shapes(value, known.get(name).unwrap_or(&Value::Null), &below, place, faults);
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (i, value) in given.iter().enumerate() {
                shapes(value, known.first().unwrap_or(&Value::Null), &format!("{key}[{i}]"), place, faults);
            }
        }
        (value, Value::Object(known)) if !known.is_empty() => {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            faults.push(Fault {
                place: place.of(key),
                key: key.to_owned(),
                problem: format!("the value is {}", kind_of(value)),
                expected: format!("a mapping of {}", names.join(", ")),
                remedy: if value.is_null() {
                    "write its keys below it, or remove it"
                } else {
                    "write its keys below it"
                }
                .to_owned(),
            });
        }
        _ => {}
    }
}

/// Turns what the types say into a [`Fault`]: the sentence has the form "problem, expected this".
fn type_fault(error: &serde_path_to_error::Error<serde_json::Error>, document: &Value, place: &Places<'_>) -> Fault {
    let path = error.path().to_string();
    let mut key = if path == "." { String::new() } else { path };
    let message = error.inner().to_string();
    let (problem, expected) = parts(&message);
    let mut expected = expected.unwrap_or_else(|| "another value".to_owned());
    let mut remedy = "correct the value".to_owned();
    let mut problem = problem.replace('`', "");
    if let Some(field) = problem.strip_prefix("unknown field ") {
        let field = field.to_owned();
        if key.rsplit('.').next() != Some(field.as_str()) {
            key = if key.is_empty() { field.clone() } else { format!("{key}.{field}") };
        }
        let known: Vec<&str> = expected.trim_start_matches("one of ").split(", ").collect();
        remedy = match nearest(&field, &known) {
            Some(near) => format!("did you mean {near}?"),
            None => "remove the key".to_owned(),
        };
        problem = "unknown key".to_owned();
    } else if let Some(variant) = problem.strip_prefix("unknown variant ") {
        problem = format!("{variant:?} is not known");
    } else if let Some(field) = problem.strip_prefix("missing field ") {
        return Fault {
            place: place.of(&key),
            problem: format!("{field} is missing"),
            expected: format!("{field}: <value>"),
            remedy: format!("add {field}"),
            key,
        };
    } else if let Some(given) = problem.strip_prefix("invalid type: ").map(str::to_owned) {
        let quoted = given.strip_prefix("string \"").and_then(|text| text.strip_suffix('"'));
        if given == "null" {
            remedy = "write a value, or remove the key".to_owned();
        } else if quoted.is_some_and(|text| text.parse::<f64>().is_ok() || matches!(text, "true" | "false")) {
            remedy = "remove the quotes".to_owned();
        } else if quoted.is_none() && expected == "a string" {
            remedy = "put it in quotes".to_owned();
        }
        problem = match given.as_str() {
            "null" => "the value is empty".to_owned(),
            given => format!("the value is {}", article(given)),
        };
    } else if let Some(given) = problem.strip_prefix("invalid value: integer ") {
        problem = format!("{given} is out of range");
    }
    if let Some(right) = probe(document, &key, &expected) {
        expected = right;
    }
    let expected = expected
        .replace("struct ", "a mapping for ")
        .replace("u32", "a whole number from 0 to 4294967295")
        .replace("u64", "a whole number from 0 on")
        .replace("u8", "a whole number from 0 to 255");
    Fault { place: place.of(&key), key, problem, expected, remedy }
}

/// A message of the types as what is wrong, and what was expected if it says that.
fn parts(message: &str) -> (&str, Option<String>) {
    match message.split_once(", expected ").or_else(|| message.split_once(": expected ")) {
        Some((problem, expected)) => (problem, Some(expected.replace('`', ""))),
        None => (message, None),
    }
}

/// What `key` takes, where its type says less than [`check`]: found by a value of the right type that is hardly right.
fn probe(document: &Value, key: &str, expected: &str) -> Option<String> {
    let stand_in = match expected {
        "u8" => json!(u8::MAX),
        "u32" => json!(u32::MAX),
        "u64" => json!(u64::MAX),
        "string or map" => json!(""),
        _ => return None,
    };
    let mut document = document.clone();
    overrides::set(&mut document, key, stand_in);
    match serde_path_to_error::deserialize::<_, NodeletConfiguration>(&document) {
        Ok(configuration) => check::check(&configuration).into_iter().find(|f| f.key == key).map(|f| f.expected),
        Err(error) if error.path().to_string() == key => parts(&error.inner().to_string()).1,
        Err(_) => None,
    }
}

fn article(given: &str) -> String {
    if given.starts_with(['a', 'e', 'i', 'o', 'u']) { format!("an {given}") } else { format!("a {given}") }
}

/// What a value is, with its article.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The known word that is at most two edits away.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(&word.to_lowercase(), &candidate.to_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}
