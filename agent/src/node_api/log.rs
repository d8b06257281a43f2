//! Reading a container's log: the files of its attempts, across rotations, to the end or on and on.
//!
//! `nodelet-logger` writes `<attempt>.log` and rotates it by rename to `.log.1` (the youngest), `.log.2`, … Files are
//! opened from the youngest on, so that a rotation in between shows a file twice (told by its inode) and hides none.
//! A follower keeps its file open over the rename, reads it to its end, and goes on with what came after it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

/// Read and sent at a time.
const CHUNK: usize = 128 << 10;
/// What was written last gets this long to arrive after the container's end.
const LINGER: Duration = Duration::from_millis(300);

/// A request that cannot be answered, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

/// The parameters of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LogOptions {
    pub(super) container: Option<String>,
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
}

impl LogOptions {
    pub(super) fn parse(query: &[(String, String)]) -> Result<Self, Refused> {
        let mut options = Self::default();
        for (key, value) in query {
            let fault = |expected: &str| Refused(format!("{key}={value:?} is not usable; expected {expected}"));
            let flag = || match value.as_str() {
                "" | "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(fault("true or false")),
            };
            match key.as_str() {
                "container" => options.container = Some(value.clone()).filter(|name| !name.is_empty()),
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(value.parse().map_err(|_| fault("a number of lines"))?),
                "sinceSeconds" => {
                    let seconds: u32 = value.parse().map_err(|_| fault("a number of seconds"))?;
                    options.since = Some(Timestamp::now() - Duration::from_secs(seconds.into()));
                }
                "sinceTime" => {
                    options.since = Some(value.parse().map_err(|_| fault("a time such as 2026-01-02T03:04:05Z"))?)
                }
                // What kubectl adds and what a later client may know must not break an older agent.
                _ => {}
            }
        }
        Ok(options)
    }
}

/// The container meant: the named one, or the first.
pub(super) fn container(object: &Value, wanted: Option<&str>) -> Result<String, Refused> {
    let names = |list: &str| -> Vec<String> {
        let containers = object["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str()).map(str::to_owned).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    match wanted {
        None => main.first().cloned().ok_or_else(|| Refused("the workload has no containers".to_owned())),
        Some(wanted) if main.iter().chain(&init).any(|name| name == wanted) => Ok(wanted.to_owned()),
        Some(wanted) => {
            let all: Vec<String> = main.into_iter().chain(init).collect();
            Err(Refused(format!("the workload has no container {wanted:?}; it has {}", all.join(", "))))
        }
    }
}

/// Whether nothing of the workload will write again.
pub(super) fn is_over(object: &Value) -> bool {
    matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Stopped"))
}

/// The body with the log; `ended` resolves when the workload has ended.
pub(super) fn open(
    directory: PathBuf,
    container: &str,
    object: &Value,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Result<Body, Refused> {
    let attempts = attempts(&directory);
    let chosen = if options.previous { attempts.iter().rev().nth(1) } else { attempts.last() };
    let Some(attempt) = chosen.copied() else {
        let what = if options.previous { "no previous container has a log" } else { "no log yet" };
        return Err(Refused(format!("container {container:?}: {what}{}", waiting(object, container))));
    };
    let (lines, received) = mpsc::channel(4);
    let follow = options.follow && !options.previous;
    let reader = Reader::new(directory, attempt, &options);
    tokio::spawn(async move {
        // The reader of the body may go away at any time; nobody else wants to know.
        let told = lines.clone();
        if let Err(error) = Box::pin(send(reader, follow, lines, ended)).await {
            tracing::debug!(%error, "reading a log");
            let _ = told.send(Err(error)).await;
        }
    });
    Ok(super::body(received))
}

/// Why a container has not started, from the status.
fn waiting(object: &Value, container: &str) -> String {
    let statuses =
        ["containerStatuses", "initContainerStatuses"].into_iter().filter_map(|list| object["status"][list].as_array());
    let status = statuses.flatten().find(|status| status["name"] == container);
    let waiting = status.map(|status| &status["state"]["waiting"]).filter(|waiting| waiting.is_object());
    waiting.map_or_else(String::new, |waiting| {
        let text = |field: &str| waiting[field].as_str().unwrap_or_default();
        format!("; it waits: {} {}", text("reason"), text("message")).trim_end().to_owned()
    })
}

/// The numbers of the attempts that have a log, in order.
fn attempts(directory: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<u64> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect();
    found.sort_unstable();
    found
}

type Lines = mpsc::Sender<io::Result<Vec<u8>>>;

async fn send(mut reader: Reader, follow: bool, lines: Lines, ended: impl Future<Output = ()>) -> io::Result<()> {
    let mut changes = if follow {
        let inotify = Inotify::init()?;
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF;
        inotify.watches().add(&reader.directory, mask)?;
        Some(inotify.into_event_stream(vec![0; 4096])?)
    } else {
        None
    };
    let mut ended = std::pin::pin!(ended);
    let mut is_over = false;
    loop {
        loop {
            let (back, chunk) = tokio::task::spawn_blocking(move || {
                let chunk = reader.next();
                (reader, chunk)
            })
            .await
            .map_err(io::Error::other)?;
            reader = back;
            let chunk = chunk?;
            let Some(chunk) = chunk else { break };
            if !chunk.is_empty() && lines.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
        let Some(changes) = &mut changes else { return Ok(()) };
        if is_over {
            return Ok(());
        }
        // All arms are cancel-safe: whatever woke us, the files are read to their end.
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(event)) if event.mask.contains(inotify::EventMask::DELETE_SELF) => is_over = true,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = lines.closed() => return Ok(()),
            () = &mut ended => {
                is_over = true;
                tokio::time::sleep(LINGER).await;
            }
        }
    }
}

/// Where a log is read, and how its lines are shown.
struct Reader {
    directory: PathBuf,
    attempt: u64,
    /// Still to be read, the youngest first and the next one last.
    files: Vec<File>,
    /// The file being read.
    current: Option<File>,
    /// The begin of a record whose end is not written yet.
    rest: Vec<u8>,
    /// The last record was a part of a line.
    is_in_line: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    follow: bool,
}

impl Reader {
    fn new(directory: PathBuf, attempt: u64, options: &LogOptions) -> Self {
        let mut reader = Self {
            directory,
            attempt,
            files: Vec::new(),
            current: None,
            rest: Vec::new(),
            is_in_line: false,
            timestamps: options.timestamps,
            since: options.since,
            follow: options.follow && !options.previous,
        };
        reader.find();
        if let Some(lines) = options.tail {
            reader.skip_to_last(lines);
        }
        reader
    }

    /// Opens the files of the attempt that are younger than what is known, from the youngest on.
    ///
    /// What is known is told by the inode of the youngest file we hold open: as long as we do, the inode is no other's.
    fn find(&mut self) {
        let inode = |file: &File| file.metadata().map(|metadata| metadata.ino()).ok();
        let known = self.files.first().or(self.current.as_ref()).and_then(inode);
        let name = format!("{}.log", self.attempt);
        let mut inodes = HashSet::new();
        let mut found = Vec::new();
        for number in 0.. {
            let path =
                if number == 0 { self.directory.join(&name) } else { self.directory.join(format!("{name}.{number}")) };
            let Ok(file) = File::open(path) else {
                // Between the rename and the new file there is no current one.
                if number == 0 {
                    continue;
                }
                break;
            };
            let this = inode(&file);
            if this == known && known.is_some() {
                break;
            }
            // A rotation meanwhile shows one twice.
            if this.is_some_and(|this| inodes.insert(this)) {
                found.push(file);
            }
        }
        found.append(&mut self.files);
        self.files = found;
    }

    /// Formatted lines; `None` when there is nothing more for now.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(file) = &mut self.current {
                let mut chunk = vec![0; CHUNK];
                let read = file.read(&mut chunk)?;
                if read > 0 {
                    return Ok(Some(self.show(&chunk[..read])));
                }
            }
            if let Some(file) = self.files.pop() {
                self.current = Some(file);
                continue;
            }
            if !self.follow {
                return Ok(None);
            }
            let successor = attempts(&self.directory).into_iter().find(|attempt| *attempt > self.attempt);
            self.find();
            if self.files.is_empty() && successor.is_none() {
                return Ok(None);
            }
            // The writer was done with this file before there was another. What it wrote between our last read and
            // then is in it now.
            let mut last = Vec::new();
            if let Some(file) = &mut self.current {
                file.read_to_end(&mut last)?;
            }
            if let (true, Some(successor)) = (self.files.is_empty() && last.is_empty(), successor) {
                self.attempt = successor;
                self.current = None;
                self.rest.clear();
                self.find();
                if self.files.is_empty() {
                    return Ok(None);
                }
            }
            if !last.is_empty() {
                return Ok(Some(self.show(&last)));
            }
        }
    }

    /// Leaves out all but the last lines.
    fn skip_to_last(&mut self, lines: usize) {
        let mut wanted = lines;
        for i in 0..self.files.len() {
            let mut content = Vec::new();
            if self.files[i].read_to_end(&mut content).is_err() {
                continue;
            }
            let starts = line_starts(&content);
            if starts.len() >= wanted {
                let start = if wanted == 0 { content.len() } else { starts[starts.len() - wanted] };
                let _ = self.files[i].seek(SeekFrom::Start(start as u64));
                self.files.truncate(i + 1);
                return;
            }
            wanted -= starts.len();
            let _ = self.files[i].rewind();
        }
    }

    fn show(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut records = rest.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(record) = records.next() {
            match record.strip_suffix(b"\n") {
                Some(record) => self.record(record, &mut shown),
                None => self.rest = record.to_vec(),
            }
        }
        shown
    }

    fn record(&mut self, record: &[u8], shown: &mut Vec<u8>) {
        let Some((time, is_whole, message)) = parse(record) else {
            // Not of our writing; better shown than hidden.
            shown.extend_from_slice(record);
            shown.push(b'\n');
            return;
        };
        if let Some(since) = self.since
            && std::str::from_utf8(time)
                .ok()
                .and_then(|time| time.parse::<Timestamp>().ok())
                .is_some_and(|time| time < since)
        {
            return;
        }
        if self.timestamps && !self.is_in_line {
            shown.extend_from_slice(time);
            shown.push(b' ');
        }
        shown.extend_from_slice(message);
        if is_whole {
            shown.push(b'\n');
        }
        self.is_in_line = !is_whole;
    }
}

/// `<time> <stream> <F|P> <message>`: the time, whether the line ends here, and the message.
fn parse(record: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let message = parts.next().unwrap_or_default();
    match tag {
        b"F" => Some((time, true, message)),
        b"P" => Some((time, false, message)),
        _ => None,
    }
}

/// Where each line begins whose end is in `content`, or that is the begun last one.
fn line_starts(content: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut offset = 0;
    let mut is_in_line = false;
    for record in content.split_inclusive(|byte| *byte == b'\n') {
        if !is_in_line {
            starts.push(offset);
        }
        is_in_line = parse(record.strip_suffix(b"\n").unwrap_or(record)).is_some_and(|(_, is_whole, _)| !is_whole);
        offset += record.len();
    }
    starts
}

#[cfg(test)]
mod tests;
