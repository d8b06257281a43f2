//! The OpenAPI v2 document in protobuf, the only form of it that older kubectl and Helm read.
//!
//! Field numbers are those of `OpenAPIv2.proto` of google/gnostic. What those clients do not look at is left out.

use serde_json::{Map, Value};

/// The media type as answers carry it. Clients ask for it with an at sign, which is not allowed in one, and refuse to
/// parse it in an answer.
pub(super) const MEDIA: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A message being written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: Writer) {
        self.bytes(field, &message.0);
    }

    fn text(&mut self, field: u64, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: &Value) {
        value.as_array().into_iter().flatten().for_each(|text| self.text(field, text));
    }

    fn flag(&mut self, field: u64, value: &Value) {
        if value == true {
            self.varint(field << 3);
            self.0.push(1);
        }
    }

    /// Map entries: a name and a message each.
    fn named<'a>(
        &mut self,
        field: u64,
        entries: impl IntoIterator<Item = (&'a String, &'a Value)>,
        write: impl Fn(&Value) -> Writer,
    ) {
        for (name, value) in entries {
            let mut entry = Writer::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, write(value));
            self.message(field, entry);
        }
    }

    fn extensions(&mut self, field: u64, of: &Value) {
        self.named(field, entries(of).filter(|(name, _)| name.starts_with("x-")), any);
    }
}

fn entries(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flat_map(Map::iter)
}

/// Free JSON, which is YAML.
fn any(value: &Value) -> Writer {
    let mut any = Writer::default();
    any.bytes(2, value.to_string().as_bytes());
    any
}

pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut info = Writer::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    let mut paths = Writer::default();
    paths.named(2, entries(&document["paths"]), path);
    let mut definitions = Writer::default();
    definitions.named(1, entries(&document["definitions"]), schema);
    let mut out = Writer::default();
    out.text(1, &document["swagger"]);
    out.message(2, info);
    out.message(8, paths);
    out.message(9, definitions);
    out.0
}

fn path(value: &Value) -> Writer {
    let mut path = Writer::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = value.get(method) {
            path.message(field, operation(found));
        }
    }
    for found in value["parameters"].as_array().into_iter().flatten() {
        path.message(9, parameter(found));
    }
    path
}

fn operation(value: &Value) -> Writer {
    let mut operation = Writer::default();
    operation.text(5, &value["operationId"]);
    operation.texts(6, &value["produces"]);
    operation.texts(7, &value["consumes"]);
    for found in value["parameters"].as_array().into_iter().flatten() {
        operation.message(8, parameter(found));
    }
    let mut responses = Writer::default();
    responses.named(1, entries(&value["responses"]), response);
    operation.message(9, responses);
    operation.extensions(13, value);
    operation
}

fn response(value: &Value) -> Writer {
    let mut response = Writer::default();
    response.text(1, &value["description"]);
    if let Some(found) = value.get("schema") {
        let mut item = Writer::default();
        item.message(1, schema(found));
        response.message(2, item);
    }
    let mut out = Writer::default();
    out.message(1, response);
    out
}

fn parameter(value: &Value) -> Writer {
    let mut inner = Writer::default();
    let mut parameter = Writer::default();
    if value["in"] == "body" {
        inner.text(2, &value["name"]);
        inner.text(3, &value["in"]);
        inner.flag(4, &value["required"]);
        inner.message(5, schema(&value["schema"]));
        parameter.message(1, inner);
    } else {
        let in_path = value["in"] == "path";
        inner.flag(1, &value["required"]);
        inner.text(2, &value["in"]);
        inner.text(4, &value["name"]);
        inner.text(if in_path { 5 } else { 6 }, &value["type"]);
        let mut other = Writer::default();
        other.message(if in_path { 4 } else { 3 }, inner);
        parameter.message(2, other);
    }
    let mut item = Writer::default();
    item.message(1, parameter);
    item
}

fn schema(value: &Value) -> Writer {
    let mut schema_out = Writer::default();
    schema_out.text(1, &value["$ref"]);
    schema_out.text(2, &value["format"]);
    schema_out.text(4, &value["description"]);
    if let Some(default) = value.get("default") {
        schema_out.message(5, any(default));
    }
    schema_out.text(13, &value["pattern"]);
    schema_out.texts(19, &value["required"]);
    for choice in value["enum"].as_array().into_iter().flatten() {
        schema_out.message(20, any(choice));
    }
    match &value["additionalProperties"] {
        Value::Bool(true) => {
            let mut additional = Writer::default();
            additional.flag(2, &Value::Bool(true));
            schema_out.message(21, additional);
        }
        found @ Value::Object(_) => {
            let mut additional = Writer::default();
            additional.message(1, schema(found));
            schema_out.message(21, additional);
        }
        _ => {}
    }
    if value["type"].is_string() {
        let mut kind = Writer::default();
        kind.text(1, &value["type"]);
        schema_out.message(22, kind);
    }
    if value["items"].is_object() {
        let mut items = Writer::default();
        items.message(1, schema(&value["items"]));
        schema_out.message(23, items);
    }
    for found in value["allOf"].as_array().into_iter().flatten() {
        schema_out.message(24, schema(found));
    }
    if value["properties"].is_object() {
        let mut properties = Writer::default();
        properties.named(1, entries(&value["properties"]), schema);
        schema_out.message(25, properties);
    }
    schema_out.extensions(31, value);
    schema_out
}
