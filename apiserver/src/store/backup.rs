//! Copies of the store: taken while it is in use, put back while it is not.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::tables::{self, OpenError};

/// Added to the version counter of a restored store. Versions that clients remember from after the backup are then
/// all too old, so they list again instead of missing what changed.
const LEAP: i64 = 1_000_000;

/// A backup cannot be taken or put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is already there.
    #[error("{path} exists: choose another name")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file operation.
    #[error("file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Copying.
    #[error("copying {from} to {to}")]
    Copy {
        /// What is copied.
        from: PathBuf,
        /// Where it goes.
        to: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The backup is damaged or from a newer release, or the store is in use.
    #[error("restoring {path}")]
    Unusable {
        /// The backup.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
}

/// Copies the store to a new file, consistently, beside its writer.
pub(crate) fn backup(store: &Path, to: &Path) -> Result<(), BackupError> {
    if to.exists() {
        return Err(BackupError::Exists { path: to.into() });
    }
    let failed = |source| BackupError::Copy { from: store.into(), to: to.into(), source };
    // Secrets are in it: closed to others from the first byte. SQLite fills an empty file as it would a new one.
    tables::private().create_new(true).open(to).map_err(|source| BackupError::File { path: to.into(), source })?;
    let connection = Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    let target = to.to_string_lossy();
    connection.execute("VACUUM INTO ?1", params![target]).map_err(failed)?;
    Ok(())
}

/// Puts a backup in the place of a store that is not in use. What was there is kept beside it, as `*.before-restore`.
///
/// # Errors
/// When the backup is damaged or newer than this release, the store is in use, or a file cannot be written.
pub fn restore(from: &Path, store: &Path) -> Result<(), BackupError> {
    let unusable = |source| BackupError::Unusable { path: from.into(), source };
    if let Some(parent) = store.parent() {
        std::fs::create_dir_all(parent).map_err(|source| BackupError::File { path: parent.into(), source })?;
    }
    let _lock = tables::lock(store).map_err(unusable)?;
    let fresh = beside(store, ".restoring");
    let file = |source| BackupError::File { path: fresh.clone(), source };
    let _ = std::fs::remove_file(&fresh);
    tables::private().create_new(true).open(&fresh).map_err(file)?;
    std::fs::copy(from, &fresh).map_err(|source| BackupError::File { path: from.into(), source })?;
    check(&fresh).map_err(unusable)?;
    for suffix in ["", "-wal", "-shm"] {
        let (old, kept) = (beside(store, suffix), beside(store, &format!(".before-restore{suffix}")));
        match std::fs::rename(&old, kept) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(BackupError::File { path: old, source });
            }
            _ => {}
        }
    }
    std::fs::rename(&fresh, store).map_err(|source| BackupError::File { path: store.into(), source })
}

/// Checks a copy and moves its counter on.
fn check(path: &Path) -> Result<(), OpenError> {
    let failed = |source| tables::classify(path, source);
    let mut connection = Connection::open(path).map_err(failed)?;
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(OpenError::Corrupt { path: path.into(), detail: verdict });
    }
    tables::migrate(path, &mut connection)?;
    connection.execute("UPDATE counter SET rv = rv + ?1", params![LEAP]).map_err(failed)?;
    connection.close().map_err(|(_, source)| failed(source))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
