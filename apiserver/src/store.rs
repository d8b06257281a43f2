//! The store: every object in memory for reading, every change in SQLite before it is acknowledged.
//!
//! One thread owns the database and all changes. It takes every write that is waiting, makes them one transaction,
//! and only after the commit shows them to readers and watchers and answers the writers. Readers never touch the
//! disk and never wait for one that is slow or full. A change carries its expectation of what it replaces, which is
//! checked where the change is made, so optimistic concurrency has no gap.
//!
//! The resource version is one counter over the whole store; it only grows, restarts included.

mod backup;
mod history;
mod tables;
mod writer;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

pub use backup::{BackupError, Copied, Restored, backup, restore};
pub(crate) use history::{Change, ChangeKind, frame};
pub use tables::OpenError;

/// Name of an object within one table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) rv: u64,
    pub(crate) uid: Box<str>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Uids of the owners.
    pub(crate) owners: Vec<Box<str>>,
    /// Whether a deletion is under way.
    pub(crate) deleting: bool,
    /// The object as JSON.
    pub(crate) json: Bytes,
}

impl Stored {
    /// Describes an object; its `metadata.resourceVersion` is set to `rv`.
    pub(crate) fn new(key: Key, rv: u64, object: Value) -> Self {
        Self::with_event(ChangeKind::Modified, key, rv, object).0
    }

    /// An object and the watch event that tells of it. The object's JSON is a part of the event's, so that both are
    /// in memory once.
    fn with_event(kind: ChangeKind, key: Key, rv: u64, mut object: Value) -> (Self, Bytes) {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), Value::String(rv.to_string()));
        }
        let event = history::frame_with(kind.name(), |buffer| {
            // Writing JSON into memory cannot fail: its keys are strings.
            let _ = serde_json::to_writer(buffer, &object);
        });
        let json = event.slice(history::object_in(kind.name(), &event));
        (Self::describe(key, rv, &object, json), event)
    }

    fn describe(key: Key, rv: u64, object: &Value, json: Bytes) -> Self {
        let metadata = &object["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        Self {
            key,
            rv,
            uid: metadata["uid"].as_str().unwrap_or_default().into(),
            labels: labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect(),
            owners: metadata["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|owner| owner["uid"].as_str().map(Into::into))
                .collect(),
            deleting: metadata["deletionTimestamp"].is_string(),
            json,
        }
    }

    /// Describes an object that was stored before. Only its metadata is looked at, the rest has to be JSON.
    fn read(key: Key, rv: u64, json: Bytes) -> serde_json::Result<Self> {
        let Ok(Head { metadata }) = serde_json::from_slice(&json) else {
            // Metadata that no release has written is still somebody's data.
            let object: Value = serde_json::from_slice(&json)?;
            return Ok(Self::describe(key, rv, &object, json));
        };
        Ok(Self {
            key,
            rv,
            uid: metadata.uid.into(),
            labels: metadata.labels,
            owners: metadata.owner_references.into_iter().map(|owner| owner.uid.into()).collect(),
            deleting: metadata.deletion_timestamp.is_some(),
            json,
        })
    }

    /// Who has to let go of the object before it goes, read without the rest.
    pub(crate) fn finalizers(&self) -> Vec<String> {
        let head = serde_json::from_slice::<Held>(&self.json);
        head.map(|held| held.metadata.finalizers).unwrap_or_default()
    }

    /// The object, parsed.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }
}

/// What [`Stored`] tells of an object, read without the rest.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default, borrow)]
    owner_references: Vec<Owner<'a>>,
    #[serde(default)]
    deletion_timestamp: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Owner<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

/// What keeps an object.
#[derive(Deserialize)]
struct Held {
    metadata: Finalizers,
}

#[derive(Deserialize)]
struct Finalizers {
    #[serde(default)]
    finalizers: Vec<String>,
}

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Absent,
    Version(u64),
}

/// One change to one object.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) table: usize,
    pub(crate) key: Key,
    pub(crate) expect: Expect,
    /// The new object; for a removal its last state, which watchers are shown.
    pub(crate) object: Value,
    pub(crate) remove: bool,
    /// The table of namespaces, if the object's namespace has to exist and not be going away.
    pub(crate) namespaces: Option<usize>,
}

/// Why a write was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the object exists")]
    Exists,
    #[error("the object does not exist")]
    Missing,
    #[error("the object has changed")]
    Changed,
    #[error("the namespace does not exist")]
    NamespaceMissing,
    #[error("the namespace is being terminated")]
    NamespaceTerminating,
    #[error("no space left for the store")]
    Full,
    #[error("the object would be larger than {most} bytes")]
    TooLarge { most: usize },
    #[error("the object would be nested more than {most} levels deep")]
    TooDeep { most: usize },
    #[error("writing the store: {0}")]
    Storage(String),
}

pub(crate) type WriteResult = Result<Arc<Stored>, WriteError>;

/// Everything readers see. Changed by the writer thread alone, after each commit.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) rv: u64,
    tables: Vec<Table>,
    uids: HashMap<Box<str>, (usize, Key)>,
    dependents: HashMap<Box<str>, BTreeSet<(usize, Key)>>,
}

#[derive(Debug)]
struct Table {
    objects: BTreeMap<Key, Arc<Stored>>,
    history: history::History,
}

impl State {
    fn new(tables: usize) -> Self {
        let table = |_| Table { objects: BTreeMap::new(), history: history::History::default() };
        Self { tables: (0..tables).map(table).collect(), ..Self::default() }
    }

    pub(crate) fn get(&self, table: usize, key: &Key) -> Option<Arc<Stored>> {
        self.tables.get(table)?.objects.get(key).cloned()
    }

    /// All objects of a table, or those of one namespace, in order of namespace and name.
    pub(crate) fn list(&self, table: usize, namespace: Option<&str>) -> Vec<Arc<Stored>> {
        let Some(table) = self.tables.get(table) else { return Vec::new() };
        match namespace {
            None => table.objects.values().cloned().collect(),
            Some(namespace) => table
                .objects
                .range(Key::new(namespace, "")..)
                .take_while(|(key, _)| *key.namespace == *namespace)
                .map(|(_, object)| object.clone())
                .collect(),
        }
    }

    /// Objects of a table whose deletion is under way.
    pub(crate) fn deleting(&self, table: usize) -> Vec<Arc<Stored>> {
        self.tables[table].objects.values().filter(|object| object.deleting).cloned().collect()
    }

    /// The object with a uid, wherever it is.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<(usize, Key)> {
        self.uids.get(uid).cloned()
    }

    /// Objects that name `uid` as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(usize, Key)> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Tells of every change to a table that comes after this call, by its version. Fails with the oldest version from
    /// which the table can be followed if `after` is before that.
    pub(crate) fn subscribe(&self, table: usize, after: u64) -> Result<watch::Receiver<u64>, u64> {
        self.tables[table].history.subscribe(after)
    }

    /// The first changes to a table after a version, none if there is no later one. Fails with the oldest version to
    /// which this can be answered.
    pub(crate) fn next_changes(&self, table: usize, after: u64) -> Result<Vec<Arc<Change>>, u64> {
        self.tables[table].history.next(after)
    }

    fn put(&mut self, table: usize, object: Arc<Stored>) -> Option<Arc<Stored>> {
        let old = self.forget(table, &object.key);
        self.uids.insert(object.uid.clone(), (table, object.key.clone()));
        for owner in &object.owners {
            self.dependents.entry(owner.clone()).or_default().insert((table, object.key.clone()));
        }
        self.tables[table].objects.insert(object.key.clone(), object);
        old
    }

    fn forget(&mut self, table: usize, key: &Key) -> Option<Arc<Stored>> {
        let old = self.tables[table].objects.remove(key)?;
        self.uids.remove(&old.uid);
        for owner in &old.owners {
            if let Some(known) = self.dependents.get_mut(owner) {
                known.remove(&(table, key.clone()));
                if known.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        Some(old)
    }
}

type Job = (Write, oneshot::Sender<WriteResult>);

/// A database that is open and checked, but not yet read.
pub(crate) struct Opened {
    path: PathBuf,
    connection: rusqlite::Connection,
    lock: std::fs::File,
}

/// Opens or creates the database. This needs nothing else of the server.
pub(crate) fn open(path: &Path) -> Result<Opened, OpenError> {
    let (connection, lock) = tables::open(path)?;
    Ok(Opened { path: path.into(), connection, lock })
}

/// Handle of the store. Dropping it finishes the writes that wait and closes the database.
#[derive(Debug)]
pub(crate) struct Store {
    state: Arc<RwLock<State>>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Held for as long as the store is open, so that no second process opens it.
    _lock: std::fs::File,
}

impl Store {
    /// Reads tables of these names from an opened database. `complete` makes the JSON of a stored object that lacks
    /// something by today's schema. `changes` is sent every committed change.
    pub(crate) fn start(
        opened: Opened,
        names: Vec<String>,
        complete: impl Fn(usize, &[u8]) -> Option<Bytes>,
        changes: mpsc::Sender<(usize, Arc<Change>)>,
    ) -> Result<Self, OpenError> {
        let Opened { path, connection, lock } = opened;
        let mut state = State::new(names.len());
        tables::load(&path, &connection, &names, complete, &mut state)?;
        let state = Arc::new(RwLock::new(state));
        let (jobs, waiting) = mpsc::channel();
        let writer = writer::Writer { connection, names, state: state.clone(), changes };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&waiting))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { state, jobs: Some(jobs), writer: Some(thread), _lock: lock })
    }

    /// The current state. Hold the guard briefly and never across an await.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn get(&self, table: usize, key: &Key) -> Option<Arc<Stored>> {
        self.read().get(table, key)
    }

    /// Makes a change and returns once it is on disk.
    pub(crate) async fn write(&self, write: Write) -> WriteResult {
        self.submit(write).await.unwrap_or_else(|_| Err(stopped()))
    }

    /// [`Store::write`] for threads of their own, and for the start.
    pub(crate) fn write_blocking(&self, write: Write) -> WriteResult {
        futures::executor::block_on(self.submit(write)).unwrap_or_else(|_| Err(stopped()))
    }

    /// Makes several changes that share a sync; the first that is refused is told.
    pub(crate) fn write_all_blocking(&self, writes: Vec<Write>) -> Result<(), WriteError> {
        let answers: Vec<_> = writes.into_iter().map(|write| self.submit(write)).collect();
        for answer in answers {
            futures::executor::block_on(answer).unwrap_or_else(|_| Err(stopped()))?;
        }
        Ok(())
    }

    fn submit(&self, write: Write) -> oneshot::Receiver<WriteResult> {
        let (reply, answer) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // A send that fails drops the reply, and the receiver says so.
            let _ = jobs.send((write, reply));
        }
        answer
    }

    /// The objects of a table as they were at `rv`, or the oldest version that can still be told.
    pub(crate) fn list_at(&self, table: usize, namespace: Option<&str>, rv: u64) -> Result<Vec<Arc<Stored>>, u64> {
        let state = self.read();
        let current = state.list(table, namespace);
        if rv >= state.rv {
            return Ok(current);
        }
        let changes: Vec<_> = state.tables[table].history.since(rv)?.collect();
        let mut objects: BTreeMap<Key, Arc<Stored>> = current.into_iter().map(|o| (o.key.clone(), o)).collect();
        for change in changes.iter().rev() {
            if namespace.is_some_and(|n| *change.object.key.namespace != *n) {
                continue;
            }
            match &change.previous {
                Some(previous) => objects.insert(previous.key.clone(), previous.clone()),
                None => objects.remove(&change.object.key),
            };
        }
        Ok(objects.into_values().collect())
    }
}

fn stopped() -> WriteError {
    WriteError::Storage("the store is closed".into())
}

fn write_lock(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
