//! The database file: its tables, its migrations, and the checks at the start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, params};
use sha2::{Digest, Sha256};

use super::{Key, State, Stored};

/// Steps that bring a database from one schema version to the next; the first makes it.
const MIGRATIONS: &[&str] = &[
    "
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
",
    // What a row's other columns add up to. Null is a row from before.
    "ALTER TABLE objects ADD COLUMN sum INTEGER;",
];

/// What a row adds up to: SQLite finds damage to its own structures, this finds damage to what is in them.
pub(super) fn sum(resource: &str, key: &Key, uid: &str, rv: u64, json: &[u8]) -> i64 {
    let mut digest = Sha256::new();
    for part in [resource.as_bytes(), key.namespace.as_bytes(), key.name.as_bytes(), uid.as_bytes()] {
        digest.update(part);
        digest.update([0]);
    }
    digest.update(rv.to_le_bytes());
    digest.update(json);
    let digest: [u8; 32] = digest.finalize().into();
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | i64::from(*byte))
}

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
        "{path} has schema version {found}, this release knows {known}: start the newer nodelet again, or put back a \
         backup of this one's (`nodelet restore FILE`); running containers are not touched"
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
        "{path} is damaged ({detail}): put back a backup (`nodelet restore FILE`, which keeps this one beside it), or \
         move it and its -wal away to start empty; running containers are not touched"
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
    let damaged = |detail: &str| OpenError::Corrupt { path: path.into(), detail: detail.into() };
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).ok();
    match size(path) {
        None if size(&beside(path, "-wal")).is_some_and(|size| size > 0) => {
            return Err(damaged("the file is gone, what belongs to it is not"));
        }
        // Made whole under another name first, so that an empty file is always damage.
        None => make(path)?,
        Some(0) => return Err(damaged("the file is empty")),
        Some(_) => {}
    }
    let database = |source| classify(path, source);
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(database)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-1024; PRAGMA foreign_keys=ON; \
             PRAGMA journal_size_limit=4194304; PRAGMA wal_autocheckpoint=1000;",
        )
        .map_err(database)?;
    // A backup under way holds a lock for moments.
    connection.busy_timeout(Duration::from_secs(10)).map_err(database)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(database)?;
    if verdict != "ok" {
        return Err(damaged(&verdict));
    }
    // SQLite takes what is shorter than a page for a database with nothing in it.
    if schema_version(path, &connection)? == 0 {
        return Err(damaged("it is not a store"));
    }
    migrate(path, &mut connection)?;
    Ok((connection, lock))
}

/// Makes a store with nothing in it.
fn make(path: &Path) -> Result<(), OpenError> {
    let fresh = beside(path, ".new");
    let file = |source| OpenError::File { path: fresh.clone(), source };
    let _ = std::fs::remove_file(&fresh);
    // Secrets live in it: nobody else may read it, from the first byte.
    let opened = private().create_new(true).open(&fresh).map_err(file)?;
    let mut connection = Connection::open(&fresh).map_err(|source| classify(path, source))?;
    migrate(&fresh, &mut connection)?;
    connection.close().map_err(|(_, source)| classify(path, source))?;
    opened.sync_all().map_err(file)?;
    put_in_place(&fresh, path).map_err(|source| OpenError::File { path: path.into(), source })
}

/// Renames, durably.
pub(super) fn put_in_place(fresh: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::rename(fresh, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// A name beside another.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
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

/// The schema version of a store, if this release can read it.
pub(super) fn schema_version(path: &Path, connection: &Connection) -> Result<usize, OpenError> {
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|source| classify(path, source))?;
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(OpenError::Newer { path: path.into(), found, known });
    }
    Ok(usize::try_from(found).unwrap_or(0))
}

/// Brings a store to this release's schema. One that holds something is copied first, to `*.schema-N`, for the release
/// that made it.
pub(super) fn migrate(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let database = |source| classify(path, source);
    let found = schema_version(path, connection)?;
    if found > 0 && found < MIGRATIONS.len() {
        let copy = beside(path, &format!(".schema-{found}"));
        let _ = std::fs::remove_file(&copy);
        let copied = private().create_new(true).open(&copy).map_err(|error| error.to_string()).and_then(|_| {
            let target = copy.to_string_lossy();
            connection.execute("VACUUM INTO ?1", params![target]).map_err(|error| error.to_string())
        });
        // Going on without is better than no agent; each step below is whole or not at all.
        if let Err(error) = copied {
            tracing::warn!(error, path = %copy.display(), "copying the store before its schema changes");
            let _ = std::fs::remove_file(&copy);
        }
    }
    for (i, step) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = connection.transaction().map_err(database)?;
        transaction.execute_batch(step).map_err(database)?;
        transaction.pragma_update(None, "user_version", i as i64 + 1).map_err(database)?;
        transaction.commit().map_err(database)?;
    }
    Ok(())
}

/// One row of the store, checked.
pub(super) struct Row {
    pub(super) resource: String,
    pub(super) stored: Stored,
}

/// Reads every object that `wanted` asks for by its resource, and the counter.
pub(super) fn each(
    path: &Path,
    connection: &Connection,
    mut wanted: impl FnMut(&str) -> bool,
    mut seen: impl FnMut(Row),
) -> Result<u64, OpenError> {
    // A table or column that is missing is damage too.
    let damaged = |source: rusqlite::Error| OpenError::Corrupt { path: path.into(), detail: source.to_string() };
    let counter: i64 = connection.query_row("SELECT rv FROM counter", [], |row| row.get(0)).map_err(damaged)?;
    let mut highest = counter.unsigned_abs();
    let mut select =
        connection.prepare("SELECT resource, namespace, name, uid, rv, json, sum FROM objects").map_err(damaged)?;
    let mut rows = select.query(params![]).map_err(damaged)?;
    while let Some(row) = rows.next().map_err(damaged)? {
        let text = |i: usize| row.get_ref(i).and_then(|v| Ok(v.as_str()?)).map_err(damaged);
        let resource = text(0)?;
        if !wanted(resource) {
            continue;
        }
        let key = Key::new(text(1)?, text(2)?);
        let rv = row.get::<_, i64>(4).map_err(damaged)?.unsigned_abs();
        let json = text(5)?.as_bytes();
        let broken = |detail: &str| OpenError::Corrupt {
            path: path.into(),
            detail: format!("{resource} {}/{}: {detail}", key.namespace, key.name),
        };
        let known: Option<i64> = row.get(6).map_err(damaged)?;
        if known.is_some_and(|known| known != sum(resource, &key, text(3).unwrap_or_default(), rv, json)) {
            return Err(broken("the checksum is wrong"));
        }
        let stored =
            Stored::read(key.clone(), rv, Bytes::copy_from_slice(json)).map_err(|error| broken(&error.to_string()))?;
        highest = highest.max(rv);
        seen(Row { resource: resource.to_owned(), stored });
    }
    Ok(highest)
}

/// Reads every object of the named tables; `complete` makes the JSON of one that lacks something by today's schema.
/// Objects of other resources stay in the file untouched: a release that knows their kind finds them again.
pub(super) fn load(
    path: &Path,
    connection: &Connection,
    names: &[String],
    complete: impl Fn(usize, &[u8]) -> Option<Bytes>,
    state: &mut State,
) -> Result<(), OpenError> {
    let ids: HashMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let add = |Row { resource, stored }: Row| {
        let Some(table) = ids.get(resource.as_str()) else { return };
        let completed =
            complete(*table, &stored.json).and_then(|json| Stored::read(stored.key.clone(), stored.rv, json).ok());
        state.put(*table, Arc::new(completed.unwrap_or(stored)));
    };
    let rv = each(path, connection, |resource| ids.contains_key(resource), add)?;
    state.rv = rv;
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
