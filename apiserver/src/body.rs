//! Bodies of requests: limited in size, JSON or YAML, with duplicate fields found.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::protobuf;
use crate::request::{Context, FieldValidation};
use crate::schema::join;
use crate::status::ApiError;

/// Largest body accepted, as by a real server.
pub(crate) const LIMIT: usize = 3 << 20;

/// Reads the body of a create or update.
pub(crate) fn object(context: &Context, bytes: &[u8]) -> Result<Value, ApiError> {
    match context.content_type.as_str() {
        "application/json" | "" => json(context, bytes),
        protobuf::MEDIA => protobuf::decode(bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(bytes),
        _ => {
            Err(ApiError::unsupported_media("application/json, application/yaml, application/vnd.kubernetes.protobuf"))
        }
    }
}

/// Most values in one body. A value takes far more memory than its text.
const MAX_VALUES: usize = 200_000;
/// Most problems that are said of one body.
const MAX_SAID: usize = 32;

/// Parses JSON and notes duplicate fields, for [`report`].
pub(crate) fn json(context: &Context, bytes: &[u8]) -> Result<Value, ApiError> {
    let (value, duplicates) = parse(bytes, "the body is not valid JSON")?;
    context.note(duplicates.iter().map(|path| format!("duplicate field {path:?}")));
    Ok(value)
}

/// Parses JSON within bounds; also says which fields are given twice. `what` is said of other things.
pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<(Value, Vec<String>), ApiError> {
    let mut found = Found::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = Strict { place: &Place::Root, found: &mut found }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match parsed {
        Ok(value) => Ok((value, found.duplicates)),
        Err(_) if found.values > MAX_VALUES => Err(ApiError::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: it holds more than {MAX_VALUES} values"),
        )),
        Err(error) => Err(ApiError::bad_request(format!("{what}: {error}"))),
    }
}

/// Parses YAML; JSON is YAML too.
pub(crate) fn yaml(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::bad_request("the body is not valid UTF-8"))?;
    serde_saphyr::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {}", first_line(&error.to_string()))))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Treats unknown fields, and duplicate ones found before, as `fieldValidation` asks.
pub(crate) fn report(context: &Context, unknown: Vec<String>) -> Result<(), ApiError> {
    let problems = [context.noted(), unknown].concat();
    if problems.is_empty() {
        return Ok(());
    }
    match context.field_validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => problems.into_iter().take(MAX_SAID).for_each(|problem| context.warn(problem)),
        FieldValidation::Strict => {
            let said = problems[..problems.len().min(MAX_SAID)].join(", ");
            let more = problems.len().saturating_sub(MAX_SAID);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            return Err(ApiError::bad_request(format!("strict decoding error: {said}{more}")));
        }
    }
    Ok(())
}

/// Where a value is. Written out only when something is said of it: a path of its own for every value would make small
/// bodies into much work.
enum Place<'a> {
    Root,
    Field(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn path(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Field(outer, name) => join(&outer.path(), name),
            Self::Item(outer, index) => format!("{}[{index}]", outer.path()),
        }
    }
}

/// What was met in a body.
#[derive(Default)]
struct Found {
    duplicates: Vec<String>,
    values: usize,
}

/// Deserialises a [`Value`], counts, and notes the path of fields given twice.
struct Strict<'a> {
    place: &'a Place<'a>,
    found: &'a mut Found,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.found.values += 1;
        if self.found.values > MAX_VALUES {
            return Err(serde::de::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let Self { place, found } = self;
        let mut list = Vec::new();
        loop {
            let item = Strict { place: &Place::Item(place, list.len()), found: &mut *found };
            match items.next_element_seed(item)? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let Self { place, found } = self;
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let here = Place::Field(place, &key);
            let value = fields.next_value_seed(Strict { place: &here, found: &mut *found })?;
            if map.contains_key(&key) && found.duplicates.len() < MAX_SAID {
                let here = here.path();
                found.duplicates.push(here.chars().take(1024).collect());
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
