//! What is promised, on disk: one JSON file per network, attachment and sandbox with ports.
//!
//! A record is written before the kernel is asked and removed after the kernel object is gone, so that a crash in
//! between leaves a record without object, never an object without record. The directory is on a tmpfs that ends
//! with the kernel's objects, so nothing is synced; a rename makes each change whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A directory of records.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

/// The kinds of records; each is a folder.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// A network, named by its bridge.
    Networks,
    /// An attachment, named by its host link.
    Attachments,
    /// Published ports, named by their sandbox.
    Ports,
    /// What a sandbox is called, named by it.
    Names,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Networks, Kind::Attachments, Kind::Ports, Kind::Names];

    fn folder(self) -> &'static str {
        match self {
            Kind::Networks => "networks",
            Kind::Attachments => "attachments",
            Kind::Ports => "ports",
            Kind::Names => "names",
        }
    }
}

impl Records {
    /// Opens, and makes, the directory.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        for kind in Kind::ALL {
            std::fs::create_dir_all(dir.join(kind.folder()))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where a record is; for messages.
    pub(super) fn path(&self, kind: Kind, name: &str) -> PathBuf {
        self.dir.join(kind.folder()).join(format!("{name}.json"))
    }

    /// Writes or replaces a record.
    pub(super) fn write(&self, kind: Kind, name: &str, value: &impl Serialize) -> io::Result<()> {
        let path = self.path(kind, name);
        let draft = path.with_extension("tmp");
        let result = self.write_draft(&path, &draft, value);
        match result {
            // Somebody cleared the run directory: the promise is needed all the more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(self.dir.join(kind.folder()))?;
                self.write_draft(&path, &draft, value)
            }
            other => other,
        }
    }

    fn write_draft(&self, path: &Path, draft: &Path, value: &impl Serialize) -> io::Result<()> {
        std::fs::write(draft, serde_json::to_vec(value)?)?;
        crate::failpoint::passed("drafting a record of a network");
        std::fs::rename(draft, path)?;
        crate::failpoint::passed("a record of a network");
        Ok(())
    }

    /// Removes a record; absence is success.
    pub(super) fn remove(&self, kind: Kind, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(kind, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                crate::failpoint::passed("removing a record of a network");
                Ok(())
            }
        }
    }

    /// All readable records of a kind. Drafts of an interrupted write are removed; an unreadable record is set
    /// aside as `.broken` with a warning, since nothing can be done for what it promised but to report it.
    pub(super) fn read_all<T: DeserializeOwned>(&self, kind: Kind) -> io::Result<Vec<T>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(self.dir.join(kind.folder()))? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {}
                Some("tmp") => {
                    std::fs::remove_file(&path)?;
                    continue;
                }
                _ => continue,
            }
            match serde_json::from_slice(&std::fs::read(&path)?) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "unreadable network record set aside");
                    std::fs::rename(&path, path.with_extension("broken"))?;
                }
            }
        }
        Ok(records)
    }

    /// Removes the directory if no record is left in it.
    pub(super) fn remove_if_empty(&self) {
        for kind in Kind::ALL {
            let _ = std::fs::remove_dir(self.dir.join(kind.folder()));
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}
