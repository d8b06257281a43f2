//! The recent changes of one table: what a watcher that comes back is told, and what it is told from then on.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::broadcast;

use super::{Stored, watch_channel};

/// Changes kept for watchers that reconnect, and the memory they may hold.
const KEPT: usize = 2048;
const KEPT_BYTES: usize = 4 << 20;

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
    frame: OnceLock<Bytes>,
}

impl Change {
    pub(crate) fn new(kind: ChangeKind, object: Arc<Stored>, previous: Option<Arc<Stored>>) -> Self {
        Self { kind, object, previous, frame: OnceLock::new() }
    }

    pub(crate) fn rv(&self) -> u64 {
        self.object.rv
    }

    /// The watch event as it goes over the wire, made once for all watchers.
    pub(crate) fn frame(&self) -> Bytes {
        self.frame.get_or_init(|| frame(self.kind.name(), &self.object.json)).clone()
    }
}

/// A watch event around an object in JSON.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(object.len() + kind.len() + 24);
    frame.put_slice(br#"{"type":""#);
    frame.put_slice(kind.as_bytes());
    frame.put_slice(br#"","object":"#);
    frame.put_slice(object);
    frame.put_slice(b"}\n");
    frame.freeze()
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
