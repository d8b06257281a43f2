//! inotify over the drop-in directory: which files are complete and new, or gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};

use super::SETTLE;
use super::memory::Identity;

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// These files came, changed or went.
    Files(BTreeSet<String>),
    /// More than the kernel remembers: look at all.
    Unknown,
}

/// The watched directory.
pub(super) struct Watch {
    events: EventStream<Vec<u8>>,
    /// Read already, but not told.
    seen: Option<Changes>,
}

impl Watch {
    pub(super) fn new(directory: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        // Not creation, not writing: a file counts when its writer is done with it.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(directory, mask)?;
        Ok(Self { events: inotify.into_event_stream(vec![0; 16 * 1024])?, seen: None })
    }

    /// Waits for changes, and for the rest of their burst. Fails when the directory itself is gone. Cancel-safe: what
    /// was read stays in `seen`.
    pub(super) async fn next(&mut self) -> std::io::Result<Changes> {
        if self.seen.is_none() {
            let first = self.events.next().await;
            self.note(first)?;
        }
        tokio::time::sleep(SETTLE).await;
        while let Some(event) = self.events.next().now_or_never() {
            self.note(event)?;
        }
        Ok(self.seen.take().unwrap_or(Changes::Unknown))
    }

    fn note(&mut self, event: Option<std::io::Result<Event<OsString>>>) -> std::io::Result<()> {
        let event = event.unwrap_or_else(|| Err(std::io::Error::other("inotify ended")))?;
        if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
            return Err(std::io::Error::other("the directory was removed"));
        }
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.seen = Some(Changes::Unknown);
        }
        if let Changes::Files(files) = self.seen.get_or_insert_with(|| Changes::Files(BTreeSet::new())) {
            files.extend(event.name.and_then(|name| name.into_string().ok()).filter(|name| counts(name)));
        }
        Ok(())
    }
}

/// The archives that are there.
pub(super) async fn list(directory: &Path) -> std::io::Result<BTreeMap<String, Identity>> {
    let directory = directory.to_owned();
    crate::blocking(move || {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned).filter(|name| counts(name)) else {
                continue;
            };
            // Follows links: an archive may lie elsewhere. One that goes meanwhile is not there.
            match std::fs::metadata(entry.path()) {
                Ok(meta) if meta.is_file() => {
                    found.insert(name, Identity::of(&meta));
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(found)
    })
    .await
}

/// Hidden files and those that programs give to what they have not finished are none of ours.
fn counts(name: &str) -> bool {
    let unfinished = [".part", ".partial", ".tmp", ".crdownload", ".filepart", "~"];
    !name.starts_with('.') && !unfinished.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    fn names(files: &[&str]) -> Changes {
        Changes::Files(files.iter().map(|file| (*file).to_owned()).collect())
    }

    #[tokio::test]
    async fn a_file_counts_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut watch = Watch::new(directory.path()).unwrap();
        let mut half = std::fs::File::create(path("a.tar")).unwrap();
        half.write_all(b"half").unwrap();
        half.flush().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
        assert!(early.is_err(), "it is still being written: {early:?}");
        drop(half);
        assert_eq!(watch.next().await.unwrap(), names(&["a.tar"]));
        std::fs::write(path(".b.tar.new"), "b").unwrap();
        std::fs::rename(path(".b.tar.new"), path("b.tar")).unwrap();
        assert_eq!(watch.next().await.unwrap(), names(&["b.tar"]));
        assert_eq!(list(directory.path()).await.unwrap().into_keys().collect::<Vec<_>>(), ["a.tar", "b.tar"]);
        std::fs::remove_file(path("a.tar")).unwrap();
        assert_eq!(watch.next().await.unwrap(), names(&["a.tar"]));
        std::fs::remove_dir_all(directory.path()).unwrap();
        let end = async {
            loop {
                if let Err(error) = watch.next().await {
                    return error;
                }
            }
        };
        assert!(end.await.to_string().contains("removed"));
    }
}
