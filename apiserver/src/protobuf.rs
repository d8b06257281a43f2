//! Bodies in Kubernetes' protobuf: `kubectl create configmap` and other typed clients send nothing else.
//!
//! Only reading is served, and only the messages of the kinds that typed clients write here; answers are JSON, which
//! every client accepts. A message becomes the JSON that the client could have sent instead. Field numbers are those
//! of the Kubernetes API's `generated.proto` files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::status::ApiError;

/// The media type.
pub(crate) const MEDIA: &str = "application/vnd.kubernetes.protobuf";

/// Four bytes that begin every body.
const MAGIC: &[u8] = b"k8s\0";
const MAX_DEPTH: usize = 16;

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    Flag,
    /// Repeated text.
    Texts,
    /// `map<string, string>`.
    TextMap,
    /// `map<string, bytes>`; base64 in JSON.
    BytesMap,
    /// Seconds and nanoseconds; a time in JSON with this many digits after the second.
    Time(usize),
    /// JSON in bytes.
    Json,
    Message(&'static Message),
    Messages(&'static Message),
}

struct Message(&'static [(u32, &'static str, Kind)]);

use Kind::{BytesMap, Flag, Json, Message as One, Messages as Many, Number, Text, TextMap, Texts, Time};

const SECONDS: Kind = Time(0);
const MICROS: Kind = Time(6);

static OWNER: Message = Message(&[
    (1, "kind", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "controller", Flag),
    (7, "blockOwnerDeletion", Flag),
]);
static FIELDS: Message = Message(&[(1, "", Json)]);
static MANAGED: Message = Message(&[
    (1, "manager", Text),
    (2, "operation", Text),
    (3, "apiVersion", Text),
    (4, "time", SECONDS),
    (6, "fieldsType", Text),
    (7, "fieldsV1", One(&FIELDS)),
    (8, "subresource", Text),
]);
static META: Message = Message(&[
    (1, "name", Text),
    (2, "generateName", Text),
    (3, "namespace", Text),
    (5, "uid", Text),
    (6, "resourceVersion", Text),
    (7, "generation", Number),
    (8, "creationTimestamp", SECONDS),
    (9, "deletionTimestamp", SECONDS),
    (10, "deletionGracePeriodSeconds", Number),
    (11, "labels", TextMap),
    (12, "annotations", TextMap),
    (13, "ownerReferences", Many(&OWNER)),
    (14, "finalizers", Texts),
    (17, "managedFields", Many(&MANAGED)),
]);
static CONFIG_MAP: Message =
    Message(&[(1, "metadata", One(&META)), (2, "data", TextMap), (3, "binaryData", BytesMap), (4, "immutable", Flag)]);
static SECRET: Message = Message(&[
    (1, "metadata", One(&META)),
    (2, "data", BytesMap),
    (3, "type", Text),
    (4, "stringData", TextMap),
    (5, "immutable", Flag),
]);
static NAMESPACE_SPEC: Message = Message(&[(1, "finalizers", Texts)]);
static NAMESPACE: Message = Message(&[(1, "metadata", One(&META)), (2, "spec", One(&NAMESPACE_SPEC))]);
static REFERENCE: Message = Message(&[
    (1, "kind", Text),
    (2, "namespace", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "resourceVersion", Text),
    (7, "fieldPath", Text),
]);
static SOURCE: Message = Message(&[(1, "component", Text), (2, "host", Text)]);
static SERIES: Message = Message(&[(1, "count", Number), (2, "lastObservedTime", MICROS)]);
static EVENT: Message = Message(&[
    (1, "metadata", One(&META)),
    (2, "involvedObject", One(&REFERENCE)),
    (3, "reason", Text),
    (4, "message", Text),
    (5, "source", One(&SOURCE)),
    (6, "firstTimestamp", SECONDS),
    (7, "lastTimestamp", SECONDS),
    (8, "count", Number),
    (9, "type", Text),
    (10, "eventTime", MICROS),
    (11, "series", One(&SERIES)),
    (12, "action", Text),
    (13, "related", One(&REFERENCE)),
    (14, "reportingComponent", Text),
    (15, "reportingInstance", Text),
]);
static NEW_EVENT: Message = Message(&[
    (1, "metadata", One(&META)),
    (2, "eventTime", MICROS),
    (3, "series", One(&SERIES)),
    (4, "reportingController", Text),
    (5, "reportingInstance", Text),
    (6, "action", Text),
    (7, "reason", Text),
    (8, "regarding", One(&REFERENCE)),
    (9, "related", One(&REFERENCE)),
    (10, "note", Text),
    (11, "type", Text),
    (12, "deprecatedSource", One(&SOURCE)),
    (13, "deprecatedFirstTimestamp", SECONDS),
    (14, "deprecatedLastTimestamp", SECONDS),
    (15, "deprecatedCount", Number),
]);
static LEASE_SPEC: Message = Message(&[
    (1, "holderIdentity", Text),
    (2, "leaseDurationSeconds", Number),
    (3, "acquireTime", MICROS),
    (4, "renewTime", MICROS),
    (5, "leaseTransitions", Number),
    (6, "strategy", Text),
    (7, "preferredHolder", Text),
]);
static LEASE: Message = Message(&[(1, "metadata", One(&META)), (2, "spec", One(&LEASE_SPEC))]);
static PRECONDITIONS: Message = Message(&[(1, "uid", Text), (2, "resourceVersion", Text)]);
static DELETE_OPTIONS: Message = Message(&[
    (1, "gracePeriodSeconds", Number),
    (2, "preconditions", One(&PRECONDITIONS)),
    (3, "orphanDependents", Flag),
    (4, "propagationPolicy", Text),
    (5, "dryRun", Texts),
]);
static RESOURCE_ATTRIBUTES: Message = Message(&[
    (1, "namespace", Text),
    (2, "verb", Text),
    (3, "group", Text),
    (4, "version", Text),
    (5, "resource", Text),
    (6, "subresource", Text),
    (7, "name", Text),
]);
static OTHER_ATTRIBUTES: Message = Message(&[(1, "path", Text), (2, "verb", Text)]);
static ACCESS_SPEC: Message = Message(&[
    (1, "resourceAttributes", One(&RESOURCE_ATTRIBUTES)),
    (2, "nonResourceAttributes", One(&OTHER_ATTRIBUTES)),
]);
static ACCESS_REVIEW: Message = Message(&[(1, "metadata", One(&META)), (2, "spec", One(&ACCESS_SPEC))]);
static EMPTY_REVIEW: Message = Message(&[(1, "metadata", One(&META))]);

fn message(api_version: &str, kind: &str) -> Option<&'static Message> {
    Some(match (api_version, kind) {
        ("v1", "ConfigMap") => &CONFIG_MAP,
        ("v1", "Secret") => &SECRET,
        ("v1", "Namespace") => &NAMESPACE,
        ("v1", "Event") => &EVENT,
        ("events.k8s.io/v1", "Event") => &NEW_EVENT,
        ("coordination.k8s.io/v1", "Lease") => &LEASE,
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => &ACCESS_REVIEW,
        ("authentication.k8s.io/v1", "SelfSubjectReview") => &EMPTY_REVIEW,
        (_, "DeleteOptions") => &DELETE_OPTIONS,
        _ => return None,
    })
}

/// Reads a body.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, ApiError> {
    let broken = || ApiError::bad_request("the body is not valid Kubernetes protobuf");
    let envelope = bytes.strip_prefix(MAGIC).ok_or_else(broken)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(envelope) {
        match field.ok_or_else(broken)? {
            (1, Wire::Bytes(type_meta)) => {
                for field in fields(type_meta) {
                    match field.ok_or_else(broken)? {
                        (1, Wire::Bytes(text)) => api_version = text_of(text),
                        (2, Wire::Bytes(text)) => kind = text_of(text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let Some(message) = message(&api_version, &kind) else {
        return Err(ApiError::unsupported_media("application/json, application/yaml"));
    };
    let mut object = read(message, raw, 0).ok_or_else(broken)?;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    Ok(object)
}

/// A value as it is on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; `None` where it is broken.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Option<(u32, Wire<'_>)>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field)
    })
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<(u32, Wire<'a>)> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).ok()?;
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at_checked(length)?;
        *rest = left;
        Some(taken)
    };
    let value = match key & 7 {
        0 => Wire::Number(varint(rest)?),
        1 => Wire::Bytes(take(8)?),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let (taken, left) = rest.split_at_checked(length)?;
            *rest = left;
            Wire::Bytes(taken)
        }
        5 => Wire::Bytes(take(4)?),
        _ => return None,
    };
    Some((number, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(message: &Message, bytes: &[u8], depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut object = Map::new();
    for field in fields(bytes) {
        let (number, wire) = field?;
        let Some((_, name, kind)) = message.0.iter().find(|(known, _, _)| *known == number) else { continue };
        match (kind, wire) {
            // Go writes plain fields even when they are empty; JSON leaves them out.
            (Text, Wire::Bytes([])) | (Number, Wire::Number(0)) => {}
            (Text, Wire::Bytes(text)) => put(&mut object, name, json!(text_of(text))),
            (Number, Wire::Number(number)) => put(&mut object, name, json!(number.cast_signed())),
            (Flag, Wire::Number(flag)) => put(&mut object, name, json!(flag != 0)),
            (Texts, Wire::Bytes(text)) => push(&mut object, name, json!(text_of(text))),
            (TextMap | BytesMap, Wire::Bytes(entry)) => {
                let (key, value) = entry_of(entry)?;
                let value = if matches!(kind, TextMap) { text_of(value) } else { STANDARD.encode(value) };
                let map = object.entry(*name).or_insert_with(|| json!({}));
                map[key] = json!(value);
            }
            (Time(digits), Wire::Bytes(bytes)) => {
                if let Some(time) = time(bytes, *digits)? {
                    put(&mut object, name, json!(time));
                }
            }
            (Json, Wire::Bytes(bytes)) => return serde_json::from_slice(bytes).ok(),
            (One(inner), Wire::Bytes(bytes)) => {
                let value = read(inner, bytes, depth + 1)?;
                // A message that Go wrote though it is empty.
                if value.as_object().is_none_or(|map| !map.is_empty()) {
                    put(&mut object, name, value);
                }
            }
            (Many(inner), Wire::Bytes(bytes)) => push(&mut object, name, read(inner, bytes, depth + 1)?),
            _ => return None,
        }
    }
    Some(Value::Object(object))
}

fn put(object: &mut Map<String, Value>, name: &str, value: Value) {
    object.insert(name.to_owned(), value);
}

fn push(object: &mut Map<String, Value>, name: &str, value: Value) {
    if let Value::Array(list) = object.entry(name).or_insert_with(|| json!([])) {
        list.push(value);
    }
}

fn entry_of(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (mut key, mut value) = (String::new(), &[][..]);
    for field in fields(bytes) {
        match field? {
            (1, Wire::Bytes(bytes)) => key = text_of(bytes),
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Some((key, value))
}

/// A time in JSON; nothing for the zero time.
fn time(bytes: &[u8], digits: usize) -> Option<Option<String>> {
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for field in fields(bytes) {
        match field? {
            (1, Wire::Number(number)) => seconds = number.cast_signed(),
            (2, Wire::Number(number)) => nanos = i32::try_from(number).ok()?,
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Some(None);
    }
    // The zero time of Go lies before what is a time here.
    let Ok(time) = Timestamp::new(seconds, nanos) else { return Some(None) };
    let text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let micros = if digits == 0 { String::new() } else { format!(".{:06}", nanos / 1000) };
    Some(Some(format!("{text}{micros}Z")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_map_becomes_json() {
        let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
        let metadata = [field(1, b"conf"), field(2, b""), field(8, b"")].concat();
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let raw = [field(1, &metadata), field(2, &entry)].concat();
        let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
        let body = [MAGIC, &field(1, &kind), &field(2, &raw), &field(3, b""), &field(4, b"")].concat();
        let expected =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"k": "v"}});
        assert_eq!(decode(&body).unwrap(), expected);
        // Nothing that is cut or changed makes it panic.
        for length in 0..body.len() {
            let _ = decode(&body[..length]);
            let mut changed = body.clone();
            changed[length] ^= 0xff;
            let _ = decode(&changed);
        }
    }
}
