//! inotify over a directory, what is below it, and, while it is missing, what is above it.

use std::path::{Path, PathBuf};

use futures::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchMask, Watches};

/// A watched directory.
pub(super) struct Watch {
    directory: PathBuf,
    watches: Watches,
    events: EventStream<Vec<u8>>,
}

impl Watch {
    pub(super) fn new(directory: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; 16 * 1024])?;
        Ok(Self { directory: directory.to_owned(), watches, events })
    }

    /// Watches every directory there is now. Adding one again changes nothing; what is gone is dropped by the kernel.
    pub(super) fn renew(&mut self) {
        let content = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        for directory in directories(&self.directory) {
            if let Err(error) = self.watches.add(&directory, content | WatchMask::ONLYDIR) {
                // The look at the directory tells what is wrong with it.
                tracing::debug!(directory = %directory.display(), %error, "watching");
            }
        }
        // Somebody may make it, or put another one in its place.
        let mut above = self.directory.parent();
        while let Some(parent) = above {
            let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR | WatchMask::MASK_ADD;
            if self.watches.add(parent, mask).is_ok() {
                break;
            }
            above = parent.parent();
        }
    }

    /// Waits for an event. Cancel-safe.
    pub(super) async fn changed(&mut self) -> std::io::Result<()> {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    // Above the directory, only its own path matters.
                    if event.mask.contains(inotify::EventMask::IGNORED) {
                        continue;
                    }
                    return Ok(());
                }
                Some(Err(error)) => return Err(error),
                None => return Err(std::io::Error::other("inotify ended")),
            }
        }
    }

    /// Takes what came meanwhile.
    pub(super) fn drain(&mut self) {
        while let Some(Some(Ok(_))) = self.events.next().now_or_never() {}
    }
}

/// The directory and all below it that are not hidden.
fn directories(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(parent) = found.get(next).cloned() {
        next += 1;
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let is_directory = entry.file_type().is_ok_and(|type_| type_.is_dir());
            if is_directory && !entry.file_name().as_encoded_bytes().starts_with(b".") {
                found.push(entry.path());
            }
        }
    }
    found
}
