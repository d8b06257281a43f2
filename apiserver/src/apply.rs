//! Server-side apply and the record of who set which field.
//!
//! An apply merges a configuration into the live object as the schema says, takes ownership of the fields in it,
//! removes those that this owner applied before and no longer does, and refuses to change what somebody else set,
//! unless forced. Every other write is recorded too, so that an apply meets it.

mod fields;
mod managed;
mod merge;

use serde_json::{Map, Value, json};

pub(crate) use fields::FieldSet;
use managed::{Entry, Operation};

use crate::admission::{Part, now};
use crate::registry::Resource;
use crate::request::Context;
use crate::status::ApiError;

/// What is applied, by whom.
pub(crate) struct Configuration<'a> {
    /// The decoded configuration.
    pub(crate) object: Value,
    pub(crate) manager: &'a str,
    pub(crate) part: Part,
    pub(crate) force: bool,
}

impl Configuration<'_> {
    fn entry(&self, resource: &Resource, time: String) -> Entry {
        Entry {
            manager: self.manager.to_owned(),
            operation: Operation::Apply,
            api_version: resource.api_version(),
            subresource: subresource(self.part),
            time,
            fields: fields_of(resource, self.part, &self.configured()),
        }
    }

    /// The configuration without what no manager can own and without nulls.
    fn configured(&self) -> Value {
        let mut object = self.object.clone();
        drop_nulls(&mut object);
        object
    }
}

fn subresource(part: Part) -> String {
    if part == Part::Status { "status".into() } else { String::new() }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The fields of an object that a request to a part of it can own.
fn fields_of(resource: &Resource, part: Part, object: &Value) -> FieldSet {
    let mut fields = FieldSet::of(Some(&resource.schema), object);
    restrict(resource, part, &mut fields);
    fields
}

fn restrict(resource: &Resource, part: Part, fields: &mut FieldSet) {
    for field in ["apiVersion", "kind"] {
        fields.remove(&[field]);
    }
    for field in [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "managedFields",
        "selfLink",
    ] {
        fields.remove(&["metadata", field]);
    }
    match part {
        Part::Main if resource.has_status => fields.remove(&["status"]),
        Part::Main => {}
        Part::Status => fields.keep_only("status"),
    }
}

/// The object that a first apply creates.
pub(crate) fn first(resource: &Resource, configuration: &Configuration<'_>) -> Value {
    let mut object = configuration.configured();
    let entry = configuration.entry(resource, now());
    managed::write(&mut object, &[entry]);
    object
}

/// The object that an apply makes of the live one.
pub(crate) fn merge(resource: &Resource, live: &Value, configuration: &Configuration<'_>) -> Result<Value, ApiError> {
    let part = configuration.part;
    let schema = Some(&resource.schema);
    let mut entries = managed::read(live);
    let mut own = configuration.entry(resource, now());
    // An apply that owns nothing has nothing to share: it must not become a change by recording others.
    if entries.is_empty() && !own.fields.is_empty() {
        // Written before ownership was recorded: everything belongs to whoever that was.
        entries.push(Entry {
            manager: "before-first-apply".into(),
            operation: Operation::Update,
            api_version: resource.api_version(),
            subresource: String::new(),
            time: now(),
            fields: fields_of(resource, Part::Main, live),
        });
    }
    let at = entries.iter().position(|entry| entry.same_manager(&own));
    let previous = at.map(|at| entries.remove(at));

    let mut applied = configuration.configured();
    restrict_object(resource, part, live, &mut applied);
    let mut merged = merge::merge(schema, Some(live), &applied);
    let (changed, _) = fields::compare(schema, live, &merged);
    resolve(configuration, &changed, &mut entries)?;

    if let Some(previous) = &previous {
        let dropped = previous.fields.difference(&own.fields);
        let kept = entries.iter().fold(own.fields.clone(), |kept, entry| kept.union(&entry.fields));
        merge::remove(schema, &mut merged, &dropped, &kept);
        if previous.fields == own.fields && previous.api_version == own.api_version {
            own.time.clone_from(&previous.time);
        }
    }
    // What the removal took away belongs to nobody any more, whoever claims it. What was not there before is not taken
    // away: an empty map that somebody applies is not kept, and stays theirs.
    let lost = FieldSet::of(schema, live).difference(&FieldSet::of(schema, &merged));
    for entry in &mut entries {
        entry.fields = entry.fields.difference(&lost);
    }
    entries.insert(at.unwrap_or(entries.len()), own);
    managed::write(&mut merged, &entries);
    Ok(merged)
}

/// Leaves of a configuration what the request's part concerns.
fn restrict_object(resource: &Resource, part: Part, live: &Value, applied: &mut Value) {
    let Some(map) = applied.as_object_mut() else { return };
    match part {
        Part::Main if resource.has_status => drop(map.remove("status")),
        Part::Main => {}
        Part::Status => {
            map.retain(|field, _| matches!(field.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
            let mut metadata = Map::new();
            // The version stays a precondition.
            for field in ["resourceVersion", "uid"] {
                if let Some(value) = map.get("metadata").and_then(|m| m.get(field)) {
                    metadata.insert(field.into(), value.clone());
                }
            }
            map.insert("metadata".into(), Value::Object(metadata));
        }
    }
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        for field in ["creationTimestamp", "deletionTimestamp", "generation", "selfLink"] {
            metadata.remove(field);
        }
        for field in ["name", "namespace"] {
            if live["metadata"].get(field).is_none() {
                metadata.remove(field);
            }
        }
    }
}

/// Finds changed fields that others own: an error, or with force their loss.
fn resolve(configuration: &Configuration<'_>, changed: &FieldSet, entries: &mut [Entry]) -> Result<(), ApiError> {
    let mut found = Vec::new();
    for entry in entries.iter_mut() {
        let conflict = entry.fields.intersection(changed);
        if conflict.is_empty() {
            continue;
        }
        if configuration.force {
            entry.fields = entry.fields.difference(&conflict);
            continue;
        }
        found.push((entry.describe(), conflict.paths()));
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(conflicts(found)),
    }
}

/// The answer to an apply that meets others: who owns which fields, the owners by name.
fn conflicts(mut found: Vec<(String, Vec<String>)>) -> ApiError {
    found.sort();
    let mut causes = Vec::new();
    let mut said = Vec::new();
    for (who, paths) in &found {
        let message = format!("conflict with {who}");
        let cause = |path| json!({"reason": "FieldManagerConflict", "message": message, "field": path});
        causes.extend(paths.iter().map(cause));
        said.push(format!("conflicts with {who}:\n- {}", paths.join("\n- ")));
    }
    let message = match (found.as_slice(), causes.len()) {
        ([(who, paths)], 1) => format!("Apply failed with 1 conflict: conflict with {who}: {}", paths.concat()),
        (_, count) => format!("Apply failed with {count} conflicts: {}", said.join("\n")),
    };
    ApiError { details: Some(json!({"causes": causes})), ..ApiError::new(409, "Conflict", message) }
}

/// Records a write that is no apply: the fields it changed are its sender's, and nobody else's any more.
pub(crate) fn track_update(
    resource: &Resource,
    context: &Context,
    part: Part,
    live: Option<&Value>,
    object: &mut Value,
) {
    let schema = Some(&resource.schema);
    let (mut changed, mut removed) = match live {
        Some(live) => fields::compare(schema, live, object),
        None => (FieldSet::of(schema, object), FieldSet::default()),
    };
    restrict(resource, part, &mut changed);
    restrict(resource, part, &mut removed);
    let mut entries = match managed::given(object) {
        managed::Given::Reset => Vec::new(),
        managed::Given::Entries(entries) => entries,
        managed::Given::Nothing => live.map(managed::read).unwrap_or_default(),
    };
    let mut own = Entry {
        manager: context.manager.clone(),
        operation: Operation::Update,
        api_version: resource.api_version(),
        subresource: subresource(part),
        time: now(),
        fields: changed.clone(),
    };
    let lost = changed.union(&removed);
    if !lost.is_empty() {
        let at = entries.iter().position(|entry| entry.same_manager(&own));
        let before = at.map(|at| entries.remove(at));
        for entry in &mut entries {
            entry.fields = entry.fields.difference(&lost);
        }
        if let Some(before) = &before {
            own.fields = before.fields.difference(&removed).union(&changed);
        }
        entries.insert(at.unwrap_or(entries.len()), own);
        managed::bound(&mut entries);
    }
    managed::write(object, &entries);
}
