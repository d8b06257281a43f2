//! What came from a source, kept in the API so that it outlives the agent.
//!
//! One ConfigMap per source in namespace `nodelet-system`. It is written before anything new is applied (old and new
//! together), so a crash in between leaves nothing that is not known to have come from the source.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Apply, Client, Error, Kinds};
use crate::manifest::ObjectKey;

/// The namespace of nodelet's own objects.
pub const NAMESPACE: &str = "nodelet-system";
/// Who applies objects of sources.
pub const FIELD_MANAGER: &str = "nodelet-source";

/// File name to the objects that came from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, Vec<ObjectKey>>);

impl Inventory {
    /// From pairs of object and file.
    pub fn from_objects(objects: impl IntoIterator<Item = (ObjectKey, String)>) -> Self {
        let mut files: BTreeMap<String, Vec<ObjectKey>> = BTreeMap::new();
        for (key, file) in objects {
            files.entry(file).or_default().push(key);
        }
        files.values_mut().for_each(|keys| keys.sort());
        Self(files)
    }

    /// All objects with their files.
    pub fn objects(&self) -> impl Iterator<Item = (&ObjectKey, &str)> {
        self.0.iter().flat_map(|(file, keys)| keys.iter().map(move |key| (key, file.as_str())))
    }

    /// Nothing came from the source.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Vec::is_empty)
    }

    /// Both together.
    pub fn union(&self, other: &Inventory) -> Inventory {
        let both = self.objects().chain(other.objects());
        Self::from_objects(both.map(|(key, file)| (key.clone(), file.to_owned())).collect::<BTreeMap<_, _>>())
    }
}

/// Where the inventory of one source is.
#[derive(Debug, Clone)]
pub struct InventoryStore {
    name: String,
    directory: String,
}

impl InventoryStore {
    /// The inventory of `directory`.
    pub fn of(directory: &Path) -> Self {
        let directory = directory.display().to_string();
        let hash = Sha256::digest(directory.as_bytes());
        let hash: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
        Self { name: format!("nodelet-inventory-{hash}"), directory }
    }

    /// Reads it; a source never seen has an empty one.
    ///
    /// # Errors
    /// [`Error`], also when its content cannot be read: a lost inventory must not look like an empty one.
    pub async fn load(&self, client: &Client, kinds: &Kinds) -> Result<Inventory, Error> {
        let kind = kinds.of("v1", "ConfigMap")?;
        let Some(object) = client.get(kind, Some(NAMESPACE), &self.name).await? else {
            return Ok(Inventory::default());
        };
        let text = object["data"]["inventory"].as_str().unwrap_or("{}");
        serde_json::from_str(text).map(Inventory).map_err(Error::Answer)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn save(&self, client: &Client, kinds: &Kinds, inventory: &Inventory) -> Result<(), Error> {
        let how = Apply { manager: FIELD_MANAGER, force: true, dry_run: false };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        client.apply(kinds.of("v1", "Namespace")?, None, NAMESPACE, &namespace, how).await?;
        let object: Value = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "annotations": {"nodelet.dev/directory": self.directory},
            },
            "data": {"inventory": json!(inventory.0).to_string()},
        });
        client.apply(kinds.of("v1", "ConfigMap")?, Some(NAMESPACE), &self.name, &object, how).await?;
        Ok(())
    }
}
