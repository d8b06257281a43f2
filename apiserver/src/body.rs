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
        other => Err(ApiError::unsupported_media(
            other,
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Parses JSON. Duplicate fields are an error or a warning, as the request wants it.
pub(crate) fn json(context: &Context, bytes: &[u8]) -> Result<Value, ApiError> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { path: String::new(), duplicates: &mut duplicates }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    report(context, duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect())?;
    Ok(value)
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

/// Treats unknown and duplicate fields as `fieldValidation` asks.
pub(crate) fn report(context: &Context, problems: Vec<String>) -> Result<(), ApiError> {
    if problems.is_empty() {
        return Ok(());
    }
    match context.field_validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => problems.into_iter().take(32).for_each(|problem| context.warn(problem)),
        FieldValidation::Strict => {
            return Err(ApiError::bad_request(format!("strict decoding error: {}", problems.join(", "))));
        }
    }
    Ok(())
}

/// Deserialises a [`Value`] and notes the path of every field given twice.
struct Strict<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
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
        let Self { path, duplicates } = self;
        let mut list = Vec::new();
        loop {
            let item = Strict { path: format!("{path}[{}]", list.len()), duplicates: &mut *duplicates };
            match items.next_element_seed(item)? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let Self { path, duplicates } = self;
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let here = join(&path, &key);
            let value = fields.next_value_seed(Strict { path: here.clone(), duplicates: &mut *duplicates })?;
            if map.insert(key, value).is_some() {
                duplicates.push(here);
            }
        }
        Ok(Value::Object(map))
    }
}
