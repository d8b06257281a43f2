//! The database file: its tables, its migrations, and the checks at the start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::{Key, State, Stored};

/// Steps that bring a database from one schema version to the next; the first makes it.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE objects (
        resource  TEXT NOT NULL,
        namespace TEXT NOT NULL,
        name      TEXT NOT NULL,
        uid       TEXT NOT NULL,
        rv        INTEGER NOT NULL,
        json      TEXT NOT NULL,
        PRIMARY KEY (resource, namespace, name)
    );
    CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 1), rv INTEGER NOT NULL);
    INSERT INTO counter VALUES (1, 1);
"];

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A definition cannot be served.
    #[error("definition of a custom resource")]
    Definition(#[from] crate::registry::DefinitionError),
    /// The directory cannot be made, or a file in it cannot be opened.
    #[error("opening {path}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process: stop the other nodelet, or give this one its own dataDir")]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// It was written by a newer release.
    #[error(
        "{path} has schema version {found}, this release knows {known}: start the newer nodelet again, or restore a \
         backup made by this one (nodelet restore FILE)"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Version found.
        found: i64,
        /// Version known.
        known: i64,
    },
    /// It fails the integrity check.
    #[error(
        "{path} is damaged ({detail}): move it away and restore a backup (nodelet restore FILE), or start empty; \
         running containers are not touched"
    )]
    Corrupt {
        /// The store.
        path: PathBuf,
        /// What the check found.
        detail: String,
    },
    /// The database refuses an operation.
    #[error("database {path}")]
    Database {
        /// The store.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The first objects cannot be written.
    #[error("writing the first objects: {detail}")]
    First {
        /// What went wrong.
        detail: String,
    },
    /// A thread cannot be started.
    #[error("starting a thread of the store")]
    Thread {
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// Opens the database, checked and migrated, and the lock that keeps other processes out.
pub(super) fn open(path: &Path) -> Result<(Connection, File), OpenError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| OpenError::File { path: parent.into(), source })?;
    }
    let lock = lock(path)?;
    let is_new = !path.exists();
    if is_new {
        // Secrets live in it: nobody else may read it, from the first byte.
        private().create(true).open(path).map_err(|source| OpenError::File { path: path.into(), source })?;
    }
    let database = |source| classify(path, source);
    let mut connection = Connection::open(path).map_err(database)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-1024; PRAGMA foreign_keys=ON; \
             PRAGMA journal_size_limit=4194304; PRAGMA wal_autocheckpoint=1000;",
        )
        .map_err(database)?;
    if !is_new {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(database)?;
        if verdict != "ok" {
            return Err(OpenError::Corrupt { path: path.into(), detail: verdict });
        }
    }
    migrate(path, &mut connection)?;
    Ok((connection, lock))
}

pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = private()
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|source| OpenError::File { path: lock_path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(OpenError::File { path: lock_path, source }),
    }
}

pub(super) fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

pub(super) fn migrate(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let database = |source| classify(path, source);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(database)?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(OpenError::Newer { path: path.into(), found, known });
    }
    for (i, step) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        let transaction = connection.transaction().map_err(database)?;
        transaction.execute_batch(step).map_err(database)?;
        transaction.pragma_update(None, "user_version", i as i64 + 1).map_err(database)?;
        transaction.commit().map_err(database)?;
    }
    Ok(())
}

/// Reads every object of the named tables. Objects of other resources stay in the file untouched: a release that
/// knows their kind finds them again.
pub(super) fn load(path: &Path, connection: &Connection, names: &[String], state: &mut State) -> Result<(), OpenError> {
    let database = |source| classify(path, source);
    let ids: HashMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    state.rv = connection
        .query_row("SELECT rv FROM counter", [], |row| row.get::<_, i64>(0))
        .map_err(database)?
        .unsigned_abs();
    let mut select = connection.prepare("SELECT resource, namespace, name, rv, json FROM objects").map_err(database)?;
    let mut rows = select.query(params![]).map_err(database)?;
    while let Some(row) = rows.next().map_err(database)? {
        let text = |i: usize| row.get_ref(i).and_then(|v| Ok(v.as_str()?));
        let Some(table) = ids.get(text(0).map_err(database)?) else { continue };
        let key = Key::new(text(1).map_err(database)?, text(2).map_err(database)?);
        let rv = row.get::<_, i64>(3).map_err(database)?.unsigned_abs();
        let json = Bytes::copy_from_slice(text(4).map_err(database)?.as_bytes());
        let stored = Stored::read(key.clone(), rv, json).map_err(|error| OpenError::Corrupt {
            path: path.into(),
            detail: format!("{} {}/{}: {error}", names[*table], key.namespace, key.name),
        })?;
        state.put(*table, Arc::new(stored));
    }
    let rv = state.rv;
    for table in &mut state.tables {
        table.history.start_at(rv);
    }
    Ok(())
}

pub(super) fn classify(path: &Path, source: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match source.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => OpenError::Corrupt { path: path.into(), detail: source.to_string() },
        _ => OpenError::Database { path: path.into(), source },
    }
}
