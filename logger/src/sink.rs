//! The log file: records in, rotation by size, lines dropped and counted while it cannot be written.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::args::Args;
use crate::framing::LINE_LIMIT;
use crate::timestamp;

/// Written at once when a batch has become this long.
const BATCH: usize = 64 << 10;
/// What a record has besides its line: time stamp, stream, flag, spaces, newline.
const OVERHEAD: usize = timestamp::LENGTH + " stdout F \n".len();

/// One of the container's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The current file and what is to be written to it next.
pub(crate) struct Sink {
    args: Args,
    /// Absent after it could not be opened.
    file: Option<File>,
    /// Bytes in the current file.
    size: u64,
    batch: Vec<u8>,
    stamp: [u8; timestamp::LENGTH],
    dropped: Dropped,
}

/// What was lost since the file could last be written.
#[derive(Debug, Default)]
struct Dropped {
    records: u64,
    why: Option<io::Error>,
}

impl Sink {
    /// Opens the file to append to it. A failure is not final: each batch tries again.
    pub(crate) fn open(args: Args) -> Self {
        let mut sink = Self {
            args,
            file: None,
            size: 0,
            batch: Vec::new(),
            stamp: timestamp::format(SystemTime::now()),
            dropped: Dropped::default(),
        };
        if let Err(error) = sink.open_file() {
            sink.dropped.why = Some(error);
        }
        sink
    }

    /// Longest line of one record, so that no record is longer than a file may be.
    pub(crate) fn line_limit(&self) -> usize {
        let fits = self.args.max_size.saturating_sub(OVERHEAD as u64);
        LINE_LIMIT.min(usize::try_from(fits).unwrap_or(usize::MAX))
    }

    /// Whether a line is written before it has ended.
    pub(crate) fn writes_unfinished_lines(&self) -> bool {
        self.args.unfinished_lines
    }

    /// Whether something was lost that the file does not say yet.
    pub(crate) fn has_dropped(&self) -> bool {
        self.dropped.records > 0
    }

    /// The records that follow came now.
    pub(crate) fn begin_batch(&mut self) {
        self.stamp = timestamp::format(SystemTime::now());
    }

    /// Adds a record, which is written by the next [`Sink::flush`] at the latest.
    pub(crate) fn record(&mut self, stream: Stream, full: bool, line: &[u8]) {
        let length = OVERHEAD + line.len();
        if self.size + (self.batch.len() + length) as u64 > self.args.max_size {
            // What comes next begins the next file.
            self.flush();
        }
        self.batch.extend_from_slice(&self.stamp);
        self.batch.extend_from_slice(match (stream, full) {
            (Stream::Stdout, true) => b" stdout F ",
            (Stream::Stdout, false) => b" stdout P ",
            (Stream::Stderr, true) => b" stderr F ",
            (Stream::Stderr, false) => b" stderr P ",
        });
        self.batch.extend_from_slice(line);
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes the batch with one call, or drops and counts what cannot be written.
    pub(crate) fn flush(&mut self) {
        if self.has_dropped() {
            self.report_dropped();
        }
        if !self.batch.is_empty() {
            let mut batch = std::mem::take(&mut self.batch);
            if let Err((written, error)) = self.append(&batch) {
                self.drop_records(&batch[written..], error);
            }
            batch.clear();
            self.batch = batch;
        }
    }

    /// Says in the file what was lost, if it can be written again.
    fn report_dropped(&mut self) {
        let why = self.dropped.why.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        let records = self.dropped.records;
        let mut marker = self.stamp.to_vec();
        let text = format!(" stderr F nodelet-logger: {records} lines were lost, the log could not be written{why}\n");
        marker.extend_from_slice(text.as_bytes());
        match self.append(&marker) {
            Ok(()) => self.dropped = Dropped::default(),
            Err((_, error)) => self.dropped.why = Some(error),
        }
    }

    /// Appends whole records. After an error the file ends with the last record that fits; says how many bytes
    /// those are.
    fn append(&mut self, records: &[u8]) -> Result<(), (usize, io::Error)> {
        let needed = records.len() as u64;
        if self.file.is_none() {
            self.open_file().map_err(|error| (0, error))?;
        }
        if self.size > 0 && self.size + needed > self.args.max_size {
            self.rotate().map_err(|error| (0, error))?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut written = 0;
        let error = loop {
            match file.write(&records[written..]) {
                Ok(0) => break io::Error::from(io::ErrorKind::WriteZero),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
            if written == records.len() {
                self.size += written as u64;
                return Ok(());
            }
        };
        // A torn record would swallow the next one.
        let whole = records[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        match file.set_len(self.size + whole as u64) {
            Ok(()) => self.size += whole as u64,
            // What is in the file now is unknown; the next append opens it anew and asks.
            Err(_) => self.file = None,
        }
        Err((whole, error))
    }

    fn drop_records(&mut self, records: &[u8], why: io::Error) {
        self.dropped.records += records.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.dropped.why = Some(why);
    }

    /// Begins a new file: `x` becomes `x.1`, `x.1` becomes `x.2`, and the oldest goes. While that fails the
    /// current file stays as it is, so that the limit holds.
    fn rotate(&mut self) -> io::Result<()> {
        let current = &self.args.path;
        let moved = if self.args.max_files == 1 {
            std::fs::remove_file(current)
        } else {
            // A gap in the numbers is no error; only the last rename decides whether there is room.
            for number in (1..self.args.max_files - 1).rev() {
                let _ = std::fs::rename(self.rotated(number), self.rotated(number + 1));
            }
            std::fs::rename(current, self.rotated(1))
        };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = None;
        self.size = 0;
        self.open_file()
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.args.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// Opens the current file and takes its size; makes its directory if that is missing.
    fn open_file(&mut self) -> io::Result<()> {
        let open = || OpenOptions::new().append(true).create(true).mode(0o640).open(&self.args.path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = self.args.path.parent().unwrap_or(&self.args.path);
                DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
                open()?
            }
            other => other?,
        };
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }
}
