//! A log as a stream.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use inotify::{EventMask, Inotify, WatchMask};

use super::files::{Cursor, Progress};
use super::lines::Lines;
use super::{Options, tail};

/// Size from which lines are handed on.
const CHUNK: usize = 128 << 10;
/// After the end of a container its logger may still be writing: the log is read once nothing came for this long.
const QUIET: Duration = Duration::from_millis(200);

/// Where the reading is, and what it waits for.
struct State {
    /// Taken by the thread that reads; `None` until the first read has found where to begin.
    work: Option<Work>,
    path: PathBuf,
    options: Options,
    /// Absent when only what is there now is wanted.
    follow: Option<Follow>,
    ended: bool,
}

struct Follow {
    changes: Option<BoxStream<'static, ()>>,
    done: BoxFuture<'static, ()>,
    is_done: bool,
}

/// The blocking part.
struct Work {
    cursor: Cursor,
    lines: Lines,
}

pub(super) fn stream(
    path: PathBuf,
    options: Options,
    done: Option<BoxFuture<'static, ()>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let follow = done.map(|done| Follow { changes: None, done, is_done: false });
    let state = State { work: None, path, options, follow, ended: false };
    stream::try_unfold(state, |state| Box::pin(next(state)))
}

/// What is written from now on, byte for byte.
pub(super) async fn attach(
    path: PathBuf,
    options: Options,
    done: BoxFuture<'static, ()>,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    // Before the end of the log is looked for, so that no change falls between them.
    let changes = Some(changes(&path)?);
    let options = Options { tail_lines: Some(0), timestamps: false, ..options };
    let (from, wanted) = (path.clone(), options.clone());
    let begin = tokio::task::spawn_blocking(move || {
        let start = tail::start(&from, &wanted, 0)?;
        io::Result::Ok(Work { cursor: Cursor::new(from, start), lines: Lines::raw(wanted) })
    });
    let work = Some(begin.await.map_err(io::Error::other)??);
    let follow = Some(Follow { changes, done, is_done: false });
    let state = State { work, path, options, follow, ended: false };
    Ok(stream::try_unfold(state, |state| Box::pin(next(state))))
}

async fn next(mut state: State) -> io::Result<Option<(Bytes, State)>> {
    while !state.ended {
        if let Some(follow) = &mut state.follow
            && follow.changes.is_none()
        {
            // Before the first look, so that no change falls between them.
            follow.changes = Some(changes(&state.path)?);
        }
        let (work, path, options) = (state.work.take(), state.path.clone(), state.options.clone());
        let read = tokio::task::spawn_blocking(move || -> io::Result<_> {
            let mut work = match work {
                Some(work) => work,
                None => Work::begin(path, options)?,
            };
            let out = work.read()?;
            Ok((work, out))
        });
        let (mut work, mut out) = read.await.map_err(io::Error::other)??;
        let full = work.lines.is_full();
        if out.is_empty() || full {
            let more = match &mut state.follow {
                Some(follow) if !full => follow.wait().await,
                _ => false,
            };
            if !more {
                state.ended = true;
                work.end(&mut out);
            }
        }
        state.work = Some(work);
        if !out.is_empty() {
            return Ok(Some((out.into(), state)));
        }
    }
    Ok(None)
}

impl Work {
    fn begin(path: PathBuf, options: Options) -> io::Result<Self> {
        let start = match options.tail_lines {
            Some(wanted) => tail::start(&path, &options, wanted)?,
            None => None,
        };
        Ok(Self { cursor: Cursor::new(path, start), lines: Lines::new(options) })
    }

    /// Some of what is there; empty when everything was read.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < CHUNK && !self.lines.is_full() {
            let lines = &mut self.lines;
            if self.cursor.advance(|line| lines.push(line, &mut out))? == Progress::CaughtUp {
                break;
            }
        }
        Ok(out)
    }

    /// What has no end and will get none.
    fn end(&mut self, out: &mut Vec<u8>) {
        if let Some(rest) = self.cursor.take_rest() {
            self.lines.push(&rest, out);
        }
        self.lines.end(out);
    }
}

impl Follow {
    /// Waits until there may be something new; `false`: nothing more will come.
    async fn wait(&mut self) -> bool {
        let Some(changes) = &mut self.changes else { return false };
        if self.is_done {
            return tokio::time::timeout(QUIET, changes.next()).await.is_ok_and(|change| change.is_some());
        }
        // Cancel-safe: a change that is lost with its future is followed by a look at the files in either case.
        tokio::select! {
            change = changes.next() => change.is_some(),
            () = &mut self.done => {
                self.is_done = true;
                true
            }
        }
    }
}

/// Says when a file of the log's directory changed. Ends with the directory.
fn changes(path: &Path) -> io::Result<BoxStream<'static, ()>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
    inotify.watches().add(path.parent().unwrap_or(path), mask)?;
    let events = inotify.into_event_stream(vec![0; 4096])?;
    let ended = |event: &io::Result<inotify::EventOwned>| match event {
        Ok(event) => event.mask.contains(EventMask::IGNORED),
        Err(_) => true,
    };
    // A flood of events is one change.
    let changes = events.take_while(move |event| futures::future::ready(!ended(event))).ready_chunks(256).map(|_| ());
    Ok(changes.boxed())
}
