//! From the lines of a file to what is shown: filtered, joined, with or without time. Pure.

use super::Options;
use super::record::{Record, Source, parse};

/// A line of a container that is longer is shown in pieces, so that one without end does not fill the memory.
const LONGEST: usize = 1 << 20;

/// Joins parts and applies the options.
#[derive(Debug)]
pub(super) struct Lines {
    options: Options,
    /// For each stream what of its current line is not shown yet.
    begun: [Begun; 2],
    /// What may still be shown.
    left: u64,
    /// Parts of lines are shown as they come, and nothing is added.
    raw: bool,
}

#[derive(Debug, Default)]
struct Begun {
    text: Vec<u8>,
    /// Some of the line was read, and whether it is to be shown.
    shown: Option<bool>,
}

impl Lines {
    pub(super) fn new(options: Options) -> Self {
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        Self { options, begun: Default::default(), left, raw: false }
    }

    /// Gives the bytes that the container wrote, as soon as they are there.
    pub(super) fn raw(options: Options) -> Self {
        Self { raw: true, ..Self::new(options) }
    }

    /// Nothing more may be shown.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Takes a line of the file, without its newline, and appends what is now to be shown.
    pub(super) fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = parse(line) else {
            let raw = [line, b"\n"].concat();
            return self.show(&raw, out);
        };
        if self.raw {
            if self.wants(&record) {
                self.show(record.message, out);
                self.show(if record.ends_line { b"\n" } else { b"" }, out);
            }
            return;
        }
        let index = usize::from(record.source == Source::Stderr);
        // The first part of a line decides for all of it.
        let shown = match self.begun[index].shown {
            Some(shown) => shown,
            None => {
                let shown = self.wants(&record);
                if shown && self.options.timestamps {
                    self.begun[index].text.extend_from_slice(record.time.as_bytes());
                    self.begun[index].text.push(b' ');
                }
                shown
            }
        };
        self.begun[index].shown = (!record.ends_line).then_some(shown);
        if !shown {
            return;
        }
        self.begun[index].text.extend_from_slice(record.message);
        if record.ends_line {
            self.begun[index].text.push(b'\n');
        }
        if record.ends_line || self.begun[index].text.len() > LONGEST {
            let text = std::mem::take(&mut self.begun[index].text);
            self.show(&text, out);
        }
    }

    /// Nothing more comes: shows lines that were never ended.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        for index in 0..2 {
            let mut text = std::mem::take(&mut self.begun[index]).text;
            if !text.is_empty() {
                text.push(b'\n');
                self.show(&text, out);
            }
        }
    }

    fn wants(&self, record: &Record<'_>) -> bool {
        wants(&self.options, record)
    }

    fn show(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(text.len());
        out.extend_from_slice(&text[..length]);
        self.left -= length as u64;
    }
}

/// Whether a line that begins with this record is asked for.
pub(super) fn wants(options: &Options, record: &Record<'_>) -> bool {
    options.source.is_none_or(|source| source == record.source)
        // A time that cannot be understood hides nothing.
        && options.since.is_none_or(|since| record.time().is_none_or(|time| time >= since))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-01-01T00:00:00.000000000Z";

    fn show(options: Options, records: &[&str]) -> String {
        let mut lines = Lines::new(options);
        let mut out = Vec::new();
        for record in records {
            let line = if record.starts_with("std") { format!("{T} {record}") } else { (*record).to_owned() };
            lines.push(line.as_bytes(), &mut out);
        }
        lines.end(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parts_are_joined_for_each_stream_by_itself() {
        let records =
            ["stdout P one ", "stderr P two ", "stdout F three", "stderr F four", "stdout F ", "stdout P end"];
        assert_eq!(show(Options::default(), &records), "one three\ntwo four\n\nend\n");
        let stderr = Options { source: Some(Source::Stderr), ..Options::default() };
        assert_eq!(show(stderr, &records), "two four\n");
        let timestamps = Options { timestamps: true, ..Options::default() };
        assert_eq!(show(timestamps, &records[..3]), format!("{T} one three\n{T} two \n"));
    }

    #[test]
    fn what_is_no_record_is_shown() {
        assert_eq!(show(Options::default(), &["torn", "stdout F a"]), "torn\na\n");
    }

    #[test]
    fn bytes_are_limited() {
        let options = Options { limit_bytes: Some(5), ..Options::default() };
        assert_eq!(show(options, &["stdout F abc", "stdout F def"]), "abc\nd");
    }

    #[test]
    fn times_are_compared() {
        let since: jiff::Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
        let options = Options { since: Some(since.into()), ..Options::default() };
        let records = [
            "2026-01-01T00:00:00.4Z stdout P a",
            "2026-01-01T00:00:00.6Z stdout F b",
            "2026-01-01T00:00:00.500000Z stdout F c",
        ];
        assert_eq!(show(options, &records), "c\n", "the first part decides for the line");
    }

    #[test]
    fn an_endless_line_is_shown_in_pieces() {
        let part = format!("stdout P {}", "x".repeat(16 << 10));
        let mut lines = Lines::new(Options::default());
        let mut out = Vec::new();
        for _ in 0..100 {
            lines.push(format!("{T} {part}").as_bytes(), &mut out);
        }
        assert!(out.len() > LONGEST && lines.begun[0].text.len() <= LONGEST);
        lines.end(&mut out);
        assert_eq!(out.len(), 100 * (16 << 10) + 1);
    }
}
