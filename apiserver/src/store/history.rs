//! The recent changes of one table: what a watcher that comes back is told, and what it is told from then on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::{Key, Stored};

/// Changes kept, for watchers that reconnect as for those that read slowly, and the memory they may hold. A watcher
/// that falls behind further than this is cut off.
const KEPT: usize = 2048;
const KEPT_BYTES: usize = 4 << 20;
/// What a watcher takes at once. It is all that a watcher holds which does not read.
const TAKEN_BYTES: usize = 64 << 10;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One committed change.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    /// The new version; for a deletion the last one, with the version of the deletion.
    pub(crate) object: Arc<Stored>,
    pub(crate) previous: Option<Arc<Stored>>,
    /// The watch event as it goes over the wire, made once for all watchers.
    pub(crate) frame: Bytes,
}

impl Change {
    /// The change that makes an object what it is now.
    pub(super) fn new(kind: ChangeKind, key: Key, rv: u64, object: Value, previous: Option<Arc<Stored>>) -> Self {
        let (object, frame) = Stored::with_event(kind, key, rv, object);
        Self { kind, object: Arc::new(object), previous, frame }
    }

    pub(crate) fn rv(&self) -> u64 {
        self.object.rv
    }
}

const BEFORE_KIND: &[u8] = br#"{"type":""#;
const BEFORE_OBJECT: &[u8] = br#"","object":"#;
const AFTER_OBJECT: &[u8] = b"}\n";

/// A watch event around an object in JSON.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    frame_with(kind, |buffer| buffer.extend_from_slice(object))
}

/// A watch event around what `object` writes. It takes no more memory than its length.
pub(super) fn frame_with(kind: &str, object: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    thread_local! {
        static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    /// A larger buffer is given back, so that one large object does not cost memory for good.
    const REUSED: usize = 64 << 10;

    let mut buffer = SCRATCH.take();
    buffer.clear();
    for part in [BEFORE_KIND, kind.as_bytes(), BEFORE_OBJECT] {
        buffer.extend_from_slice(part);
    }
    object(&mut buffer);
    buffer.extend_from_slice(AFTER_OBJECT);
    let frame = Bytes::copy_from_slice(&buffer);
    if buffer.capacity() <= REUSED {
        SCRATCH.set(buffer);
    }
    frame
}

/// Where the object is in a watch event.
pub(super) fn object_in(kind: &str, frame: &[u8]) -> Range<usize> {
    BEFORE_KIND.len() + kind.len() + BEFORE_OBJECT.len()..frame.len() - AFTER_OBJECT.len()
}

#[derive(Debug)]
pub(super) struct History {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Every change after this version is in `changes`.
    complete_after: u64,
    /// The version of the last change, for those who wait for one.
    live: watch::Sender<u64>,
}

impl Default for History {
    fn default() -> Self {
        Self { changes: VecDeque::new(), bytes: 0, complete_after: 0, live: watch::Sender::new(0) }
    }
}

impl History {
    /// Starts with nothing known from before `rv`.
    pub(super) fn start_at(&mut self, rv: u64) {
        self.complete_after = rv;
    }

    pub(super) fn push(&mut self, change: Arc<Change>) {
        self.bytes += change.frame.len();
        self.changes.push_back(change);
        while self.changes.len() > KEPT || (self.bytes > KEPT_BYTES && self.changes.len() > 1) {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.bytes -= oldest.frame.len();
            self.complete_after = oldest.rv();
        }
    }

    /// Who has to be told of changes once the state can be read.
    pub(super) fn live(&self) -> &watch::Sender<u64> {
        &self.live
    }

    /// The changes after `rv`, or the oldest version to which this can be answered.
    pub(super) fn since(&self, rv: u64) -> Result<impl Iterator<Item = &Arc<Change>>, u64> {
        if rv < self.complete_after {
            return Err(self.complete_after);
        }
        let first = self.changes.partition_point(|change| change.rv() <= rv);
        Ok(self.changes.range(first..))
    }

    /// The first of the changes after `rv`: at least one if there is any.
    pub(super) fn next(&self, rv: u64) -> Result<Vec<Arc<Change>>, u64> {
        let mut bytes = 0;
        let fits = |change: &&Arc<Change>| {
            let first = bytes == 0;
            bytes += change.frame.len();
            first || bytes <= TAKEN_BYTES
        };
        Ok(self.since(rv)?.take_while(fits).cloned().collect())
    }

    pub(super) fn subscribe(&self, after: u64) -> Result<watch::Receiver<u64>, u64> {
        self.since(after).map(drop)?;
        Ok(self.live.subscribe())
    }
}
