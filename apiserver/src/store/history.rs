//! The recent changes of one table: what a watcher that comes back is told, and what it is told from then on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::broadcast;

use super::{Key, Stored, watch_channel};

/// Changes kept for watchers that reconnect, and the memory they may hold.
const KEPT: usize = 2048;
const KEPT_BYTES: usize = 1 << 20;

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
    frame: Bytes,
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

    /// The watch event as it goes over the wire, made once for all watchers.
    pub(crate) fn frame(&self) -> Bytes {
        self.frame.clone()
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

/// Changes of a table from some version on: first those that already happened, then the live ones.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) missed: Vec<Arc<Change>>,
    pub(crate) live: broadcast::Receiver<Arc<Change>>,
    /// The version of the store at the moment of subscribing.
    pub(crate) current: u64,
}

#[derive(Debug, Default)]
pub(super) struct History {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Every change after this version is in `changes`.
    complete_after: u64,
    /// Made for the first watcher: its slots are there from the start, and most tables are never watched.
    live: OnceLock<broadcast::Sender<Arc<Change>>>,
}

impl History {
    /// Starts with nothing known from before `rv`.
    pub(super) fn start_at(&mut self, rv: u64) {
        self.complete_after = rv;
    }

    pub(super) fn push(&mut self, change: Arc<Change>) {
        self.bytes += change.object.json.len();
        self.changes.push_back(change.clone());
        while self.changes.len() > KEPT || (self.bytes > KEPT_BYTES && self.changes.len() > 1) {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.bytes -= oldest.object.json.len();
            self.complete_after = oldest.rv();
        }
        // Without watchers there is nobody to tell.
        if let Some(live) = self.live.get() {
            let _ = live.send(change);
        }
    }

    /// The changes after `rv`, or the oldest version to which this can be answered.
    pub(super) fn since(&self, rv: u64) -> Result<Vec<Arc<Change>>, u64> {
        if rv < self.complete_after {
            return Err(self.complete_after);
        }
        let first = self.changes.partition_point(|change| change.rv() <= rv);
        Ok(self.changes.range(first..).cloned().collect())
    }

    pub(super) fn subscribe(&self, after: u64, current: u64) -> Result<Subscription, u64> {
        Ok(Subscription { missed: self.since(after)?, live: self.live.get_or_init(watch_channel).subscribe(), current })
    }
}
