//! Where the last lines of a log begin.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Options;
use super::files::{Place, numbered, numbers, open};
use super::lines::wants;
use super::record::{Source, parse};

/// The place from which exactly the last `wanted` lines (of those that `options` ask for) are read; `None`: from the
/// begin, there are fewer.
pub(super) fn start(path: &Path, options: &Options, wanted: u64) -> io::Result<Option<Place>> {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut missing = wanted;
    let mut seen = Vec::new();
    // From the youngest: a rotation meanwhile makes us meet a file twice, never miss one.
    for number in 0..=numbers(path)?.last().copied().unwrap_or(0) + 1 {
        let Some(file) = open(&numbered(path, number))? else { continue };
        let place = Place::new(file, 0)?;
        if seen.contains(&place.inode) {
            continue;
        }
        seen.push(place.inode);
        let (starts, end) = last_lines(&place, options, missing)?;
        if missing == 0 {
            return Ok(Some(place.at(end)));
        }
        if starts.len() == missing {
            let offset = starts.front().copied().unwrap_or(end);
            return Ok(Some(place.at(offset)));
        }
        missing -= starts.len();
    }
    Ok(None)
}

/// Where the last lines of one file begin, at most `most` of them, and where its last record ends.
fn last_lines(place: &Place, options: &Options, most: usize) -> io::Result<(VecDeque<u64>, u64)> {
    let mut reader = BufReader::with_capacity(64 << 10, &place.file);
    let mut starts = VecDeque::new();
    let mut begun = [false; 2];
    let (mut line, mut offset) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)? as u64;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok((starts, offset));
        }
        line.pop();
        let is_start = match parse(&line) {
            None => true,
            Some(record) => {
                let begun = &mut begun[usize::from(record.source == Source::Stderr)];
                let first = !std::mem::replace(begun, !record.ends_line);
                first && wants(options, &record)
            }
        };
        if is_start && most > 0 {
            if starts.len() == most {
                starts.pop_front();
            }
            starts.push_back(offset);
        }
        offset += read;
    }
}
