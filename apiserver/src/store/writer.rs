//! The thread that writes: many waiting writes, one transaction, one sync of the disk.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, RwLock, mpsc};

use rusqlite::{Connection, ErrorCode, params};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{Change, ChangeKind, Expect, Job, Key, State, Stored, Write, WriteError, WriteResult, tables, write_lock};

/// Writes that may share a transaction, and the bytes after which no more join it. Bounds the wait of the first one,
/// and lets watchers keep up: the bytes are well below what [`super::history`] keeps.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Largest object, as JSON. Bodies are limited, but patches can make objects grow.
const MAX_OBJECT: usize = 2 << 20;
/// Deepest object. The parser that reads it back gives up at 128.
const MAX_DEPTH: usize = 120;

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) names: Vec<String>,
    pub(super) state: Arc<RwLock<State>>,
    pub(super) changes: mpsc::Sender<(usize, Arc<Change>)>,
}

/// What the transaction under way has changed so far: `None` is a removed object.
type Pending = HashMap<(usize, Key), Option<Arc<Stored>>>;

struct Done {
    table: usize,
    change: Arc<Change>,
    reply: oneshot::Sender<WriteResult>,
}

impl Writer {
    /// Writes until every [`super::Store`] handle is gone.
    pub(super) fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = VecDeque::from([first]);
            batch.extend(jobs.try_iter().take(BATCH - 1));
            while !batch.is_empty() {
                self.write(&mut batch);
            }
        }
        // Leaves one plain file behind; failing to is harmless, the log is read at the next start.
        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// Writes some of the batch, at least the first.
    fn write(&mut self, batch: &mut VecDeque<Job>) {
        let start = self.state.read().unwrap_or_else(|p| p.into_inner()).rv;
        let mut rv = start;
        let mut pending = Pending::new();
        let mut done = Vec::with_capacity(batch.len());
        let outcome = self.transact(batch, &mut rv, &mut pending, &mut done);
        if let Err(error) = outcome {
            tracing::error!(error = %error, "store: {} writes refused", done.len());
            let answer = classify(&error);
            for Done { reply, .. } in done {
                let _ = reply.send(Err(answer.clone()));
            }
            return;
        }
        if done.is_empty() {
            return;
        }
        self.publish(rv, &done);
        for Done { table, change, reply } in done {
            let _ = reply.send(Ok(change.object.clone()));
            let _ = self.changes.send((table, change));
        }
    }

    /// Writes the batch in one transaction. On an error nothing of it is in the database; writes whose expectation
    /// does not hold are answered at once and do not concern the others.
    fn transact(
        &mut self,
        batch: &mut VecDeque<Job>,
        rv: &mut u64,
        pending: &mut Pending,
        done: &mut Vec<Done>,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let mut failure = None;
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some((write, reply)) = batch.pop_front()
        {
            let previous = match check(&self.state, pending, &write) {
                Ok(previous) => previous,
                Err(error) => {
                    let _ = reply.send(Err(error));
                    continue;
                }
            };
            let Write { table, key, object, remove, .. } = write;
            if !remove && is_deeper_than(&object, MAX_DEPTH) {
                let _ = reply.send(Err(WriteError::TooDeep { most: MAX_DEPTH }));
                continue;
            }
            let change = change(*rv + 1, key.clone(), object, remove, previous);
            if !remove && change.object.json.len() > MAX_OBJECT {
                let _ = reply.send(Err(WriteError::TooLarge { most: MAX_OBJECT }));
                continue;
            }
            *rv += 1;
            bytes += change.object.json.len();
            let at = (table, key);
            pending.insert(at, (!remove).then(|| change.object.clone()));
            if failure.is_none() {
                failure = store(&transaction, &self.names[table], &change).err();
            }
            done.push(Done { table, change: Arc::new(change), reply });
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        if done.is_empty() {
            return Ok(());
        }
        transaction.prepare_cached("UPDATE counter SET rv = ?1")?.execute(params![*rv as i64])?;
        transaction.commit()
    }

    fn publish(&self, rv: u64, done: &[Done]) {
        let mut state = write_lock(&self.state);
        for Done { table, change, .. } in done {
            match change.kind {
                ChangeKind::Deleted => drop(state.forget(*table, &change.object.key)),
                ChangeKind::Added | ChangeKind::Modified => drop(state.put(*table, change.object.clone())),
            }
            state.tables[*table].history.push(change.clone());
        }
        state.rv = rv;
        let tables: BTreeSet<usize> = done.iter().map(|done| done.table).collect();
        let waiting: Vec<_> = tables.into_iter().map(|table| state.tables[table].history.live().clone()).collect();
        // Those who wake read the state.
        drop(state);
        for live in waiting {
            live.send_replace(rv);
        }
    }
}

/// The object that a write replaces, if what the write expects holds.
fn check(state: &RwLock<State>, pending: &Pending, write: &Write) -> Result<Option<Arc<Stored>>, WriteError> {
    let state = state.read().unwrap_or_else(|p| p.into_inner());
    let now = |table: usize, key: &Key| match pending.get(&(table, key.clone())) {
        Some(pending) => pending.clone(),
        None => state.get(table, key),
    };
    let current = now(write.table, &write.key);
    match (write.expect, &current) {
        (Expect::Absent, None) => {}
        (Expect::Absent, Some(_)) => return Err(WriteError::Exists),
        (Expect::Version(_), None) => return Err(WriteError::Missing),
        (Expect::Version(rv), Some(current)) if current.rv != rv => return Err(WriteError::Changed),
        (Expect::Version(_), Some(_)) => {}
    }
    if let Some(namespaces) = write.namespaces {
        match now(namespaces, &Key::new("", &write.key.namespace)) {
            None => return Err(WriteError::NamespaceMissing),
            Some(namespace) if namespace.deleting => return Err(WriteError::NamespaceTerminating),
            Some(_) => {}
        }
    }
    Ok(current)
}

fn change(rv: u64, key: Key, mut object: Value, remove: bool, previous: Option<Arc<Stored>>) -> Change {
    if !object.is_object() {
        object = Value::Object(serde_json::Map::new());
    }
    let kind = match (remove, &previous) {
        (true, _) => ChangeKind::Deleted,
        (false, None) => ChangeKind::Added,
        (false, Some(_)) => ChangeKind::Modified,
    };
    Change::new(kind, key, rv, object, previous)
}

/// Whether a value has more than so many levels.
fn is_deeper_than(value: &Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else { return true };
    match value {
        Value::Array(items) => items.iter().any(|item| is_deeper_than(item, below)),
        Value::Object(map) => map.values().any(|item| is_deeper_than(item, below)),
        _ => false,
    }
}

fn store(transaction: &Connection, resource: &str, change: &Change) -> rusqlite::Result<()> {
    let object = &change.object;
    let (namespace, name) = (&*object.key.namespace, &*object.key.name);
    if change.kind == ChangeKind::Deleted {
        transaction
            .prepare_cached("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
            .execute(params![resource, namespace, name])?;
        return Ok(());
    }
    let json = std::str::from_utf8(&object.json).unwrap_or("{}");
    let sum = tables::sum(resource, &object.key, &object.uid, object.rv, json.as_bytes());
    transaction
        .prepare_cached(
            "INSERT INTO objects (resource, namespace, name, uid, rv, json, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
             ON CONFLICT (resource, namespace, name) DO UPDATE SET uid = ?4, rv = ?5, json = ?6, sum = ?7",
        )?
        .execute(params![resource, namespace, name, &*object.uid, object.rv as i64, json, sum])?;
    Ok(())
}

fn classify(error: &rusqlite::Error) -> WriteError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => WriteError::Full,
        _ => WriteError::Storage(error.to_string()),
    }
}
