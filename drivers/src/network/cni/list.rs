//! A CNI configuration list, as read from its file, and what each plugin of it is given. Pure but for the reading.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Versions of the specification that we speak, oldest first. Before 0.3 there were neither lists nor one form of results.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A configuration list: plugins that run one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::network) struct List {
    pub(super) name: String,
    pub(super) version: String,
    #[serde(default)]
    disable_check: bool,
    #[serde(default)]
    disable_gc: bool,
    pub(super) plugins: Vec<Map<String, Value>>,
}

impl List {
    /// Reads a list, or the configuration of a single plugin; the error says what is wrong with it.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| format!("is not JSON: {error}"))?;
        Self::parse(&value)
    }

    fn parse(value: &Value) -> Result<Self, String> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let flag = |key: &str| value.get(key).is_some_and(|v| v == &json!(true) || v == &json!("true"));
        let name = text("name").filter(|name| !name.is_empty()).ok_or("has no name")?;
        let named: Vec<&str> = match value.get("cniVersions").and_then(Value::as_array) {
            Some(versions) => versions.iter().filter_map(Value::as_str).chain(text("cniVersion")).collect(),
            None => text("cniVersion").into_iter().collect(),
        };
        let version = VERSIONS.iter().rev().find(|version| named.contains(version));
        let version = version.ok_or_else(|| {
            let named = if named.is_empty() { "no cniVersion".to_owned() } else { named.join(", ") };
            format!("names {named}, of which none is among {}", VERSIONS.join(", "))
        })?;
        let plugins = match value.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("has plugins that are not a list".to_owned()),
            None => vec![value.clone()],
        };
        let plugins: Vec<_> = plugins
            .into_iter()
            .map(|plugin| match plugin {
                Value::Object(plugin) if is_program(&plugin) => Ok(plugin),
                other => Err(format!("has a plugin whose type is not the name of a program: {other}")),
            })
            .collect::<Result<_, _>>()?;
        if plugins.is_empty() {
            return Err("has no plugins".to_owned());
        }
        let (disable_check, disable_gc) = (flag("disableCheck"), flag("disableGC"));
        Ok(Self { name: name.to_owned(), version: (*version).to_owned(), disable_check, disable_gc, plugins })
    }

    /// Whether attachments can be checked: since 0.4.0.
    pub(super) fn has_check(&self) -> bool {
        !self.disable_check && self.is_at_least("0.4.0")
    }

    /// Whether what is no longer attached can be collected: since 1.1.0.
    pub(super) fn has_gc(&self) -> bool {
        !self.disable_gc && self.is_at_least("1.1.0")
    }

    /// Whether a plugin is told the result of the whole list when an attachment goes: since 0.4.0.
    pub(super) fn tells_result_on_removal(&self) -> bool {
        self.is_at_least("0.4.0")
    }

    fn is_at_least(&self, version: &str) -> bool {
        let place = |wanted: &str| VERSIONS.iter().position(|version| *version == wanted);
        place(&self.version) >= place(version)
    }

    /// What a plugin reads: its own part of the list, with name and version, what the runtime adds for the capabilities
    /// that the plugin has, and the result of those before it.
    pub(super) fn input(
        &self,
        plugin: &Map<String, Value>,
        capabilities: &Map<String, Value>,
        before: Option<&Value>,
    ) -> Map<String, Value> {
        let mut input = plugin.clone();
        let has = input.remove("capabilities").unwrap_or_default();
        input.insert("name".to_owned(), json!(self.name));
        input.insert("cniVersion".to_owned(), json!(self.version));
        let wanted = capabilities.iter().filter(|(name, _)| has.get(*name) == Some(&json!(true)));
        let wanted: Map<_, _> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !wanted.is_empty() {
            input.insert("runtimeConfig".to_owned(), Value::Object(wanted));
        }
        if let Some(before) = before {
            input.insert("prevResult".to_owned(), before.clone());
        }
        input
    }

    /// Whether some plugin has this capability.
    pub(super) fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.get("capabilities").and_then(|c| c.get(name)) == Some(&json!(true)))
    }
}

/// The program of a plugin.
pub(super) fn program(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn is_program(plugin: &Map<String, Value>) -> bool {
    let name = program(plugin);
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(value: Value) -> Result<List, String> {
        List::parse(&value)
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let plugin = json!({"type": "bridge"});
        for (value, expected) in [
            (json!({"cniVersion": "1.0.0", "plugins": [plugin]}), "has no name"),
            (json!({"name": "n", "plugins": [plugin]}), "no cniVersion"),
            (json!({"name": "n", "cniVersion": "0.2.0", "plugins": [plugin]}), "names 0.2.0, of which none"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": []}), "has no plugins"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": {}}), "not a list"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "../sh"}]}), "not the name of a program"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": [1]}), "not the name of a program"),
        ] {
            let wrong = list(value).unwrap_err();
            assert!(wrong.contains(expected), "{wrong}");
        }
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let of = |versions: Value| {
            list(json!({"name": "n", "cniVersion": "0.3.1", "cniVersions": versions, "type": "x"})).unwrap().version
        };
        assert_eq!(of(json!(["0.4.0", "1.0.0", "9.0.0"])), "1.0.0");
        assert_eq!(of(json!([])), "0.3.1");
        let old = list(json!({"name": "n", "cniVersion": "0.3.1", "type": "x"})).unwrap();
        assert!(!old.has_check() && !old.has_gc());
        let new = list(json!({"name": "n", "cniVersion": "1.1.0", "disableGC": true, "type": "x"})).unwrap();
        assert!(new.has_check() && !new.has_gc());
    }

    #[test]
    fn a_plugin_reads_its_part_and_what_was_before() {
        let list = list(json!({
            "name": "n", "cniVersion": "1.0.0",
            "plugins": [{"type": "a", "capabilities": {"ips": true, "mac": false}, "x": 1}],
        }))
        .unwrap();
        let capabilities = json!({"ips": ["10.0.0.9/24"], "mac": "02:00:00:00:00:01"});
        let input = list.input(&list.plugins[0], capabilities.as_object().unwrap(), Some(&json!({"ips": []})));
        let expected = json!({
            "name": "n", "cniVersion": "1.0.0", "type": "a", "x": 1,
            "runtimeConfig": {"ips": ["10.0.0.9/24"]}, "prevResult": {"ips": []},
        });
        assert_eq!(Value::Object(input), expected);
    }
}
