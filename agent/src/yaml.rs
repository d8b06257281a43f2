//! YAML and JSON documents whose every value knows where it stands in the file.
//!
//! A document is read once into plain JSON plus an index from field path to line and column, so whoever finds a
//! fault later (the configuration's types, the API server's schema) can name the place. Booleans and octal numbers
//! are read as Kubernetes reads them (`yes` is a boolean, `0644` is octal): the same file means the same to `kubectl`.
//! A key that appears twice is an error. Never panics, whatever the input; alias bombs run into a budget.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A place in a file; both count from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// The text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where, if the parser could tell.
    pub at: Option<Position>,
    /// What is wrong.
    pub message: String,
}

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its content.
    pub value: Value,
    /// Where each part of it stands.
    pub positions: Positions,
}

/// Field path (`spec.containers[0].image`) to position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    keys: BTreeMap<String, Position>,
    values: BTreeMap<String, Position>,
}

impl Positions {
    /// Where the value at `path` starts; for a path that is not in the file, its nearest parent that is.
    pub fn of_value(&self, path: &str) -> Option<Position> {
        ancestors(path).find_map(|path| self.values.get(path).copied())
    }

    /// Where the key at the end of `path` stands, or the value when it is an element of a list.
    pub fn of_key(&self, path: &str) -> Option<Position> {
        ancestors(path).find_map(|path| self.keys.get(path).or_else(|| self.values.get(path)).copied())
    }

    /// The same positions as seen from below `prefix`: `items[2].spec` becomes `spec`.
    pub fn below(&self, prefix: &str) -> Positions {
        let cut = |paths: &BTreeMap<String, Position>| {
            paths
                .iter()
                .filter_map(|(path, at)| {
                    let rest = path.strip_prefix(prefix)?;
                    (rest.is_empty() || rest.starts_with(['.', '[']))
                        .then(|| (rest.trim_start_matches('.').to_owned(), *at))
                })
                .collect()
        };
        Positions { keys: cut(&self.keys), values: cut(&self.values) }
    }
}

/// `a.b[0].c`, `a.b[0]`, `a.b`, `a`, and the document itself.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path.trim_start_matches('.')), |path| {
        (!path.is_empty()).then(|| path.rfind(['.', '[']).map_or("", |end| &path[..end]))
    })
}

/// Reads all documents of `text`; documents without content are left out.
///
/// # Errors
/// [`SyntaxError`] when the text is not YAML, a key is doubled or not a string, or the document is too big or deep.
pub fn parse(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 96, max_nodes: 100_000 },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let roots: Vec<Spanned<Tree>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| syntax_error(&error))?;
    Ok(roots
        .into_iter()
        .map(|root| {
            let mut positions = Positions::default();
            let value = index(root, String::new(), &mut positions);
            Document { value, positions }
        })
        .filter(|document| !document.value.is_null())
        .collect())
}

fn syntax_error(error: &serde_saphyr::Error) -> SyntaxError {
    let at = error.location().filter(|at| at.line() > 0).map(|at| Position { line: at.line(), column: at.column() });
    let text = error.without_snippet().to_string();
    // The parser ends its message with the place, which we print in front.
    let message = text.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or(message);
    let message = message.split(", set ").next().unwrap_or(message).trim_end_matches([':', ',']).to_owned();
    SyntaxError { at, message }
}

/// Splits the tree into its value and the positions of its parts.
fn index(node: Spanned<Tree>, path: String, positions: &mut Positions) -> Value {
    let at = Position { line: node.referenced.line(), column: node.referenced.column() };
    let value = match node.value {
        Tree::Scalar(value) => value,
        Tree::Sequence(items) => Value::Array(
            items.into_iter().enumerate().map(|(i, item)| index(item, format!("{path}[{i}]"), positions)).collect(),
        ),
        Tree::Mapping(entries) => {
            let mut map = Map::new();
            for (key, item) in entries {
                let below = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                let at = Position { line: key.referenced.line(), column: key.referenced.column() };
                positions.keys.insert(below.clone(), at);
                let value = index(item, below, positions);
                map.insert(key.value, value);
            }
            Value::Object(map)
        }
    };
    positions.values.insert(path, at);
    value
}

enum Tree {
    Scalar(Value),
    Sequence(Vec<Spanned<Tree>>),
    Mapping(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
        Ok(Tree::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::String(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Tree::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_and_places() {
        let text =
            "a: 1\nb:\n  - x: yes\n    mode: 0644\n  - [1.5, \"no\", null]\n---\n---\n# nothing\n---\nz: {q: s}\n";
        let documents = parse(text).expect("valid");
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].value, json!({"a": 1, "b": [{"x": true, "mode": 420}, [1.5, "no", null]]}));
        let at = |path| documents[0].positions.of_key(path).map(|p| (p.line, p.column));
        assert_eq!(at("b[0].mode"), Some((4, 5)));
        assert_eq!(at("b[0].missing.deeper"), Some((3, 5)));
        assert_eq!(at("b[1][1]"), Some((5, 11)));
        assert_eq!(documents[0].positions.of_value("b[0].mode"), Some(Position { line: 4, column: 11 }));
        assert_eq!(documents[1].positions.of_key("z.q"), Some(Position { line: 10, column: 5 }));
        let below = documents[0].positions.below("b[0]");
        assert_eq!(below.of_key("mode"), Some(Position { line: 4, column: 5 }));
    }

    #[test]
    fn faults_name_the_place() {
        let error = parse("a: 1\nb: [1\nc: 2\n").expect_err("unclosed");
        assert_eq!(error.at.map(|at| at.line), Some(3), "{error:?}");
        let error = parse("a: 1\nb: 2\na: 3\n").expect_err("doubled key");
        assert_eq!(error.at.map(|at| at.line), Some(3), "{error:?}");
        assert!(error.message.contains("duplicate"), "{error:?}");
        assert!(parse("a: &x [*x]").is_err());
        let deep = "[".repeat(5000);
        assert!(parse(&deep).is_err());
        let bomb = (0..30).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, i| {
            format!("{text}a{}: &a{} [*a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}]\n", i + 1, i + 1)
        });
        assert!(parse(&bomb).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_input_panics(text in "[ -~\n\t]{0,200}") {
            let _ = parse(&text);
        }
    }
}
