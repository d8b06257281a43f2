//! `metadata.managedFields`: reading and writing the record of owners.

use serde_json::{Value, json};

use super::fields::FieldSet;

/// Managers of plain updates that are told apart; the oldest beyond that become one.
const MAX_UPDATERS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What one manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: String,
    pub(super) fields: FieldSet,
}

impl Entry {
    pub(super) fn same_manager(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// How conflicts name it.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
            if !self.time.is_empty() {
                text.push_str(&format!(" at {}", self.time));
            }
        }
        text
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        Some(Self {
            manager: text("manager"),
            operation: match value["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::from_json(value.get("fieldsV1")?),
        })
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager,
            "operation": match self.operation { Operation::Apply => "Apply", Operation::Update => "Update" },
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }
}

pub(super) fn read(object: &Value) -> Vec<Entry> {
    object["metadata"]["managedFields"].as_array().into_iter().flatten().filter_map(Entry::parse).collect()
}

/// What a client sent as managed fields.
pub(super) enum Given {
    Nothing,
    /// An empty list, or one empty entry: forget who owned what.
    Reset,
    Entries(Vec<Entry>),
}

pub(super) fn given(object: &Value) -> Given {
    match object["metadata"]["managedFields"].as_array() {
        None => Given::Nothing,
        Some(list) if list.is_empty() || (list.len() == 1 && list[0] == json!({})) => Given::Reset,
        Some(list) => {
            let entries: Vec<Entry> = list.iter().filter_map(Entry::parse).collect();
            if entries.len() == list.len() { Given::Entries(entries) } else { Given::Nothing }
        }
    }
}

pub(super) fn write(object: &mut Value, entries: &[Entry]) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    let list: Vec<Value> = entries.iter().filter(|e| !e.fields.is_empty()).map(Entry::to_json).collect();
    if list.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(list));
    }
}

/// Keeps the record from growing with every new client.
pub(super) fn bound(entries: &mut Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    while entries.iter().filter(|e| e.operation == Operation::Update).count() > MAX_UPDATERS {
        let mut updaters: Vec<usize> =
            (0..entries.len()).filter(|i| entries[*i].operation == Operation::Update).collect();
        updaters.sort_by(|a, b| entries[*a].time.cmp(&entries[*b].time));
        let (into, from) = (updaters[0].min(updaters[1]), updaters[0].max(updaters[1]));
        let gone = entries.remove(from);
        entries[into].manager = "ancient-changes".into();
        entries[into].fields = entries[into].fields.union(&gone.fields);
    }
}
