//! `nodelet-logger`: writes one container's output to a file in the CRI log format and rotates it.
//!
//! containerd's shim starts one per container (`binary:///path/to/nodelet-logger?path=…`), so it is as small as it
//! can be: one thread, one poll loop, no runtime. What it promises:
//!
//! - It never ends before the container's output ends: a dead logger is a broken pipe in the container.
//! - It never waits for anything but output: a full disk drops lines, which are counted and reported in the file
//!   as soon as it can be written again. (A file system that hangs does hold it up; there is no help against that.)
//! - Rotated and current file together never pass `max-size` times `max-files`.
//!
//! Started with: arguments as pairs in any order (`path`, `max-size`, `max-files`,
//! `unfinished-lines`, `input`), the container's stdout at
//! descriptor 3 and stderr at 4 (which may be missing with a terminal), and descriptor 5 to close when ready. The
//! caller waits for that, and the file is open by then.
//!
//! Being there for as long as the container is, and static, it has two small tasks besides: it keeps a container's
//! [input] open, and under another name it is the first process of containers that [share](reaper) a process
//! namespace.

mod args;
mod framing;
mod input;
mod reaper;
mod sink;
mod sys;
mod timestamp;

use std::fs::File;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use args::Args;
use framing::Framing;
use input::Held;
use sink::{Sink, Stream};

/// How long SIGTERM leaves for reading what is still in the pipes. The shim kills after 12 s.
const DRAIN: Duration = Duration::from_secs(5);
/// How often a file that could not be written is tried again while the container is silent.
const RETRY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match std::env::args_os().next().as_deref().and_then(called_as) {
        Some(input::RUNTIME) => return input::run_runtime(),
        Some(reaper::NAME) => return reaper::run(),
        _ => {}
    }
    // Before anything is opened, so that no file of ours can be taken for one of these.
    let [stdout, stderr, ready] = [3, 4, 5].map(sys::inherited);
    let args = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            if let Some(path) = error.path {
                report(Args { path, ..Args::default() }, &error.message);
            }
            return ExitCode::from(2);
        }
    };
    let Ok(terminate) = sys::ignore_and_catch_signals() else { return ExitCode::FAILURE };
    // The working directory is the container's bundle, which should stay removable.
    let _ = std::env::set_current_dir("/");
    let input = args.input.as_deref().map(input::Held::open);
    let sink = Sink::open(args);
    drop(ready);
    let source = |(pipe, stream): (Option<File>, _)| Some(Source { pipe: pipe?, stream, framing: Framing::default() });
    run([(stdout, Stream::Stdout), (stderr, Stream::Stderr)].map(source), &terminate, input, sink);
    ExitCode::SUCCESS
}

/// The last part of the path that we were started by.
fn called_as(path: &std::ffi::OsStr) -> Option<&str> {
    std::path::Path::new(path).file_name()?.to_str()
}

/// Leaves a message where the container's log would have been.
fn report(args: Args, message: &str) {
    let mut sink = Sink::open(args);
    sink.begin_batch();
    sink.record(Stream::Stderr, true, format!("nodelet-logger: {message}").as_bytes());
    sink.flush();
}

/// One of the container's streams that has not ended.
struct Source {
    pipe: File,
    stream: Stream,
    framing: Framing,
}

/// Copies until both streams have ended or the time to drain is over.
fn run(mut sources: [Option<Source>; 2], terminate: &File, mut input: Option<Held>, mut sink: Sink) {
    let mut deadline: Option<Instant> = None;
    while sources.iter().any(Option::is_some) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        let retry = sink.has_dropped().then_some(RETRY);
        let timeout = left.into_iter().chain(retry).min();
        // Once terminating, further signals change nothing, so they are no longer waited for.
        let signals = deadline.is_none().then_some(terminate);
        let [out, err] = sources.each_ref().map(|source| source.as_ref().map(|source| &source.pipe));
        let ready = sys::poll([out, err, signals, input.as_ref().and_then(Held::end)], timeout);
        if ready[2] {
            deadline = Some(Instant::now() + DRAIN);
        }
        if ready[3] {
            input = None;
        }
        sink.begin_batch();
        for (slot, ready) in sources.iter_mut().zip(ready) {
            if ready
                && let Some(source) = slot
                && !source.copy_once(&mut sink)
            {
                *slot = None;
            }
        }
        sink.flush();
    }
    sink.begin_batch();
    for source in sources.iter_mut().flatten() {
        source.end(&mut sink);
    }
    sink.flush();
}

impl Source {
    /// One read, and the records it completes. `false`: the stream has ended.
    fn copy_once(&mut self, sink: &mut Sink) -> bool {
        let read = match sys::read(&self.pipe, self.framing.buffer()) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => return true,
            // A terminal's last reader gets EIO where a pipe's gets the end.
            Err(_) => 0,
        };
        if read == 0 {
            self.end(sink);
            return false;
        }
        let (stream, limit) = (self.stream, sink.line_limit());
        self.framing.advance(read, limit, |full, line| sink.record(stream, full, line));
        if sink.writes_unfinished_lines() {
            self.framing.take_rest(|part| sink.record(stream, false, part));
        }
        true
    }

    /// Whatever came without a newline at the end.
    fn end(&mut self, sink: &mut Sink) {
        self.framing.take_rest(|line| sink.record(self.stream, true, line));
    }
}
