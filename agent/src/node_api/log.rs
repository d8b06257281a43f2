//! Which log is meant by a request, and following it from one attempt of a container to the next.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use futures::future::{BoxFuture, Either, FutureExt, Shared, select};
use futures::{Stream, StreamExt, pin_mut};
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use nodelet_drivers::logs::{self, LogReader};
use serde_json::Value;
use tokio::sync::mpsc;

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
    read: logs::Options,
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
                "timestamps" => options.read.timestamps = flag()?,
                "tailLines" => options.read.tail_lines = Some(value.parse().map_err(|_| fault("a number of lines"))?),
                "sinceSeconds" => {
                    let seconds: u32 = value.parse().map_err(|_| fault("a number of seconds"))?;
                    options.read.since = SystemTime::now().checked_sub(Duration::from_secs(seconds.into()));
                }
                "sinceTime" => {
                    let time: Timestamp = value.parse().map_err(|_| fault("a time such as 2026-01-02T03:04:05Z"))?;
                    options.read.since = Some(time.into());
                }
                "limitBytes" => options.read.limit_bytes = Some(value.parse().map_err(|_| fault("a number of bytes"))?),
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
    let attempts = logs::attempts(&directory);
    let chosen = if options.previous { attempts.iter().rev().nth(1) } else { attempts.last() };
    let Some(attempt) = chosen.copied() else {
        let what = if options.previous { "no previous container has a log" } else { "no log yet" };
        return Err(Refused(format!("container {container:?}: {what}{}", waiting(object, container))));
    };
    let (lines, received) = mpsc::channel(4);
    let LogOptions { follow, previous, read, .. } = options;
    // The body's reader may go away at any time; the task then ends with its next chunk, or at once when it waits.
    tokio::spawn(async move {
        let closed = lines.clone();
        let sent = async {
            if follow && !previous {
                send_on(directory, attempt, read, ended.boxed().shared(), &lines).await;
            } else {
                send(LogReader::new(logs::path(&directory, attempt), read).read(), &lines).await;
            }
        };
        pin_mut!(sent);
        let gone = closed.closed();
        pin_mut!(gone);
        select(sent, gone).await;
    });
    Ok(super::body(received))
}

/// Why a container has not started, from the status.
pub(super) fn waiting(object: &Value, container: &str) -> String {
    let statuses =
        ["containerStatuses", "initContainerStatuses"].into_iter().filter_map(|list| object["status"][list].as_array());
    let status = statuses.flatten().find(|status| status["name"] == container);
    let waiting = status.map(|status| &status["state"]["waiting"]).filter(|waiting| waiting.is_object());
    waiting.map_or_else(String::new, |waiting| {
        let text = |field: &str| waiting[field].as_str().unwrap_or_default();
        format!("; it waits: {} {}", text("reason"), text("message")).trim_end().to_owned()
    })
}

type Lines = mpsc::Sender<std::io::Result<axum::body::Bytes>>;

/// Sends all of a log; `false` when its reader is gone or it cannot be read.
async fn send(log: impl Stream<Item = std::io::Result<axum::body::Bytes>>, lines: &Lines) -> bool {
    pin_mut!(log);
    while let Some(chunk) = log.next().await {
        let failed = chunk.is_err();
        if lines.send(chunk).await.is_err() || failed {
            return false;
        }
    }
    true
}

/// Sends the log of this attempt and of those after it, until the workload has ended.
async fn send_on(
    directory: PathBuf,
    mut attempt: u32,
    mut options: logs::Options,
    ended: Shared<BoxFuture<'static, ()>>,
    lines: &Lines,
) {
    loop {
        let (until, path) = (ended.clone(), logs::path(&directory, attempt));
        let successor = successor(directory.clone(), attempt).boxed().shared();
        let next = successor.clone();
        let done = async move {
            select(until, next).await;
            // The writer may still be at the last lines.
            tokio::time::sleep(LINGER).await;
        };
        if !send(LogReader::new(path, options.clone()).follow(done.boxed()), lines).await {
            return;
        }
        attempt = match select(successor, ended.clone()).await {
            Either::Left((Some(next), _)) => next,
            _ => return,
        };
        options.tail_lines = None;
    }
}

/// The attempt after this one, once it has a log; `None` when the directory is gone.
async fn successor(directory: PathBuf, attempt: u32) -> Option<u32> {
    let inotify = Inotify::init().ok()?;
    let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF;
    inotify.watches().add(&directory, mask).ok()?;
    let mut changes = inotify.into_event_stream(vec![0; 4096]).ok()?;
    loop {
        if let Some(next) = logs::attempts(&directory).into_iter().find(|next| *next > attempt) {
            return Some(next);
        }
        let change = changes.next().await?.ok()?;
        if change.mask.contains(inotify::EventMask::DELETE_SELF) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests;
