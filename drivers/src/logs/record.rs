//! One line of a log file.

use std::time::SystemTime;

/// One of a container's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output, and all output of a container with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a log file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was written, as the file says it.
    pub time: &'a str,
    /// The stream it came from.
    pub source: Source,
    /// The container's line ends here; otherwise the next record of the stream goes on with it.
    pub ends_line: bool,
    /// What the container wrote, without the newline.
    pub message: &'a [u8],
}

impl Record<'_> {
    /// When it was written; `None` if that cannot be understood.
    pub fn time(&self) -> Option<SystemTime> {
        self.time.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
    }
}

/// Takes a line (without its newline) apart; `None`: it is no record.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    // Cheap, and enough to tell a record from a line that only looks like one.
    if time.len() < 20 || time.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    let source = match fields.next()? {
        b"stdout" => Source::Stdout,
        b"stderr" => Source::Stderr,
        _ => return None,
    };
    // Tags are separated by ':'; the first is the one that is defined.
    let ends_line = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { time, source, ends_line, message: fields.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn records_are_taken_apart() {
        let record = parse(b"2016-10-06T00:17:09.669794202Z stderr P a message  with blanks ").unwrap();
        assert_eq!((record.source, record.ends_line), (Source::Stderr, false));
        assert_eq!(record.message, b"a message  with blanks ");
        assert_eq!(record.time(), Some(UNIX_EPOCH + Duration::new(1_475_713_029, 669_794_202)));
        assert_eq!(parse(b"2016-10-06T00:17:09.6+02:00 stdout F").unwrap().message, b"");
        assert!(parse(b"2016-10-06T00:17:09.669794202Z stdout F:x y").unwrap().ends_line);
    }

    #[test]
    fn other_lines_are_no_records() {
        for line in
            ["", "hello world foo bar", "2016-10-06T00:17:09.669794202Z stdin F x", "2016-10-06T00:17:09.6697942"]
        {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"2016-10-06T00:17:09.669794202Z stdout X y"), None);
        assert_eq!(parse(b"\xff\xff stdout F y"), None);
    }
}
