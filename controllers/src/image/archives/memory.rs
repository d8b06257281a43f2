//! What is known of each file, across restarts: `<dataDir>/archives.json`. Losing it costs reading the files again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Tells a file from an earlier one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    pub(super) fn of(meta: &std::fs::Metadata) -> Self {
        Self { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) }
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    /// Normalised references of its images.
    pub(super) images: BTreeSet<String>,
    /// Why it could not be imported.
    pub(super) problem: Option<String>,
}

/// All files, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    pub(super) files: BTreeMap<String, Entry>,
    #[serde(skip)]
    saved: Vec<u8>,
}

const NAME: &str = "archives.json";

impl Memory {
    /// What an earlier run saved; nothing if that is unreadable.
    pub(super) async fn load(data_dir: &Path) -> Self {
        let saved = tokio::fs::read(data_dir.join(NAME)).await.unwrap_or_default();
        let mut memory: Self = serde_json::from_slice(&saved).unwrap_or_default();
        // What failed is tried again by every run.
        memory.files.retain(|_, entry| entry.problem.is_none());
        memory.saved = saved;
        memory
    }

    /// Saves it if it changed, in one step: the file is whole at any time.
    pub(super) async fn save(&mut self, data_dir: &Path) -> std::io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?;
        if bytes == self.saved {
            return Ok(());
        }
        let (path, new) = (data_dir.join(NAME), data_dir.join(".archives.json.new"));
        tokio::fs::write(&new, &bytes).await?;
        tokio::fs::File::open(&new).await?.sync_all().await?;
        tokio::fs::rename(&new, &path).await?;
        self.saved = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_imported_survives_and_what_failed_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::of(&std::fs::metadata(directory.path()).unwrap());
        let mut memory = Memory::load(directory.path()).await;
        assert_eq!(memory.files.len(), 0);
        let images = BTreeSet::from(["docker.io/library/app:1".to_owned()]);
        let good = Entry { identity: identity.clone(), images, problem: None };
        let bad = Entry { identity, images: BTreeSet::new(), problem: Some("no archive".to_owned()) };
        memory.files.insert("good.tar".to_owned(), good.clone());
        memory.files.insert("bad.tar".to_owned(), bad);
        memory.save(directory.path()).await.unwrap();
        let loaded = Memory::load(directory.path()).await;
        assert_eq!(loaded.files, BTreeMap::from([("good.tar".to_owned(), good)]));
        std::fs::write(directory.path().join(NAME), "{").unwrap();
        assert_eq!(Memory::load(directory.path()).await.files.len(), 0);
    }
}
