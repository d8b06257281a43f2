//! Copies of the store: taken while it is in use, put back while it is not.
//!
//! A copy is one file that SQLite made in one read transaction, checked before it gets its name. Neither way leaves
//! half of a file under a name that means something, and the store that a restore replaces is kept.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, params};

use super::tables::{self, OpenError, beside};

/// Added to the version counter of a restored store. Versions that clients remember from after the backup are then
/// all too old, so they list again instead of missing what changed.
const LEAP: u64 = 1_000_000;

/// A backup cannot be taken or put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is nothing to copy.
    #[error("{path} does not exist: there is nothing to back up, or dataDir is another")]
    NoStore {
        /// The store.
        path: PathBuf,
    },
    /// The file is already there.
    #[error("{path} exists: choose another name, or say that it may be replaced (--force)")]
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
    /// The copy did not come out whole.
    #[error("checking the copy of {path}")]
    Check {
        /// The store.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The backup is no store, damaged or from a newer release.
    #[error("{path} cannot be restored; the store is as it was")]
    Unusable {
        /// The backup.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The store is in use, or its lock cannot be had.
    #[error("the agent has to be stopped for a restore (`systemctl stop nodelet`); its workloads go on")]
    Running(#[source] OpenError),
}

/// A copy that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Objects in it.
    pub objects: u64,
    /// The resource version that it shows.
    pub version: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// A copy that was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Objects in it.
    pub objects: u64,
    /// The resource version at which the store goes on.
    pub version: u64,
    /// Where the store is that was there before, if there was one.
    pub kept: Option<PathBuf>,
}

/// Copies the store to a file that only its owner may read: consistently, beside whoever uses the store. The file
/// appears whole or not at all; one of that name is replaced if `replace` says so.
///
/// # Errors
/// When there is no store, it is damaged or newer, or the file exists or cannot be written.
pub fn backup(store: &Path, to: &Path, replace: bool) -> Result<Copied, BackupError> {
    if !store.exists() {
        return Err(BackupError::NoStore { path: store.into() });
    }
    if !replace && to.exists() {
        return Err(BackupError::Exists { path: to.into() });
    }
    let fresh = Unfinished(beside(to, &format!(".{}", std::process::id())));
    let copy = |source| BackupError::Copy { from: store.into(), to: to.into(), source };
    let check = |source| BackupError::Check { path: store.into(), source };
    let file = |source| BackupError::File { path: to.into(), source };
    let _ = std::fs::remove_file(&fresh.0);
    // Secrets are in it: closed to others from the first byte. SQLite fills an empty file as it would a new one.
    let opened = tables::private().create_new(true).open(&fresh.0).map_err(file)?;
    let connection = open(store).map_err(copy)?;
    tables::schema_version(store, &connection).map_err(check)?;
    connection.execute("VACUUM INTO ?1", params![fresh.0.to_string_lossy()]).map_err(copy)?;
    let copied = Connection::open_with_flags(&fresh.0, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(copy)?;
    let (objects, version) = verify(store, &copied).map_err(check)?;
    copied.close().map_err(|(_, source)| copy(source))?;
    opened.sync_all().map_err(file)?;
    let bytes = opened.metadata().map_err(file)?.len();
    tables::put_in_place(&fresh.0, to).map_err(file)?;
    Ok(Copied { objects, version, bytes })
}

/// Puts a backup in the place of a store that is not in use. What was there is kept beside it, as
/// `*.before-restore-TIME`.
///
/// # Errors
/// When the backup is damaged or newer than this release, the store is in use, or a file cannot be written. The store
/// is then as it was.
pub fn restore(from: &Path, store: &Path) -> Result<Restored, BackupError> {
    let unusable = |source| BackupError::Unusable { path: from.into(), source };
    if let Some(parent) = store.parent() {
        std::fs::create_dir_all(parent).map_err(|source| BackupError::File { path: parent.into(), source })?;
    }
    let _lock = tables::lock(store).map_err(BackupError::Running)?;
    let fresh = Unfinished(beside(store, ".restoring"));
    let copied = copy_file(from, &fresh.0)?;
    // A plain copy of a store in use has its last changes in a second file.
    if beside(from, "-wal").exists() {
        copy_file(&beside(from, "-wal"), &beside(&fresh.0, "-wal"))?;
    }
    let settled = settle(store);
    let (objects, version) = prepare(&fresh.0, settled).map_err(unusable)?;
    copied.sync_all().map_err(|source| BackupError::File { path: fresh.0.clone(), source })?;
    let kept = keep(store)?;
    tables::put_in_place(&fresh.0, store).map_err(|source| BackupError::File { path: store.into(), source })?;
    Ok(Restored { objects, version, kept })
}

/// A file that is removed unless it got its real name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(beside(&self.0, suffix));
        }
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    Ok(connection)
}

fn copy_file(from: &Path, to: &Path) -> Result<File, BackupError> {
    let _ = std::fs::remove_file(to);
    let mut source = File::open(from).map_err(|source| BackupError::File { path: from.into(), source })?;
    let failed = |source| BackupError::File { path: to.into(), source };
    let mut target = tables::private().create_new(true).open(to).map_err(failed)?;
    std::io::copy(&mut source, &mut target).map_err(failed)?;
    Ok(target)
}

/// Checks every page and every object; says how many there are, and the version.
fn verify(path: &Path, connection: &Connection) -> Result<(u64, u64), OpenError> {
    let verdict: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|source| tables::classify(path, source))?;
    if verdict != "ok" {
        return Err(OpenError::Corrupt { path: path.into(), detail: verdict });
    }
    let mut objects = 0;
    let version = tables::each(path, connection, |_| true, |_| objects += 1)?;
    Ok((objects, version))
}

/// Checks a copy, brings it to this release's schema, and moves its counter beyond what clients may have seen.
fn prepare(path: &Path, seen: Option<u64>) -> Result<(u64, u64), OpenError> {
    let failed = |source| tables::classify(path, source);
    let mut connection = open(path).map_err(failed)?;
    // An empty file is a database to SQLite.
    if tables::schema_version(path, &connection)? == 0 {
        return Err(OpenError::Corrupt { path: path.into(), detail: "it is not a store".into() });
    }
    tables::migrate(path, &mut connection)?;
    let (objects, version) = verify(path, &connection)?;
    let version = version.max(seen.unwrap_or(0)) + LEAP;
    connection.execute("UPDATE counter SET rv = ?1", params![version as i64]).map_err(failed)?;
    let _ = std::fs::remove_file(beside(path, ".schema-1"));
    connection.close().map_err(|(_, source)| failed(source))?;
    Ok((objects, version))
}

/// Folds what a store has in its second file into the first, and tells its version. A damaged one is left alone.
fn settle(store: &Path) -> Option<u64> {
    let connection = open(store).ok()?;
    let _: rusqlite::Result<i64> = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    let version: i64 = connection.query_row("SELECT rv FROM counter", [], |row| row.get(0)).ok()?;
    connection.close().ok()?;
    Some(version.unsigned_abs())
}

/// Gives the present store a second name, and its other files that name too. The store keeps its first one until the
/// new store takes it, so there is one at any time.
fn keep(store: &Path) -> Result<Option<PathBuf>, BackupError> {
    if !store.exists() {
        return Ok(None);
    }
    let failed = |source| BackupError::File { path: store.into(), source };
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let names = (1..).map(|n| if n == 1 { stamp.clone() } else { format!("{stamp}-{n}") });
    let kept = names.map(|name| beside(store, &format!(".before-restore-{name}"))).find(|path| !path.exists());
    let kept = kept.unwrap_or_else(|| beside(store, ".before-restore"));
    if std::fs::hard_link(store, &kept).is_err() {
        // A filesystem without links.
        copy_file(store, &kept)?.sync_all().map_err(failed)?;
    }
    let wal = beside(store, "-wal");
    if wal.exists() {
        std::fs::rename(&wal, beside(&kept, "-wal")).map_err(failed)?;
    }
    let _ = std::fs::remove_file(beside(store, "-shm"));
    Ok(Some(kept))
}
