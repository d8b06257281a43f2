//! Cuts a stream of bytes into lines, and lines that are too long into parts.

/// Longest record: containerd's own logger cuts at the same length.
pub(crate) const LINE_LIMIT: usize = 16 << 10;
/// Room for the rest of a line and one read.
const BUFFER: usize = 4 * LINE_LIMIT;

/// The unfinished line of one stream. Most containers say little at a time: of the buffer, only the pages that a read
/// has reached are ever taken from the kernel, which is why nothing clears it.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    /// What was read and is not yet emitted.
    buffer: Vec<u8>,
}

impl Framing {
    /// Where the next bytes are appended: it has room for at least three times [`LINE_LIMIT`].
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer.reserve_exact(BUFFER - self.buffer.len());
        &mut self.buffer
    }

    /// `read` bytes were appended to [`Framing::buffer`]: gives every line that is now whole, and every part of a line
    /// that is longer than `limit`, to `emit`; the flag says whether the line ends there.
    pub(crate) fn advance(&mut self, read: usize, limit: usize, mut emit: impl FnMut(bool, &[u8])) {
        // What was left from before holds no newline, so it is not searched again.
        let mut searched = self.buffer.len() - read;
        let mut start = 0;
        while let Some(length) = crate::sys::find_newline(&self.buffer[searched..]) {
            let end = searched + length;
            while end - start > limit {
                emit(false, &self.buffer[start..start + limit]);
                start += limit;
            }
            emit(true, &self.buffer[start..end]);
            start = end + 1;
            searched = start;
        }
        while self.buffer.len() - start > limit {
            emit(false, &self.buffer[start..start + limit]);
            start += limit;
        }
        self.buffer.drain(..start);
    }

    /// Gives what is left of the last line, if anything, to `emit`.
    pub(crate) fn take_rest(&mut self, emit: impl FnOnce(&[u8])) {
        if !self.buffer.is_empty() {
            emit(&self.buffer);
            self.buffer.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `piece` bytes; `F:`/`P:` and the line for each record.
    fn records(input: &[u8], piece: usize, limit: usize) -> Vec<String> {
        let mut framing = Framing::default();
        let mut out = Vec::new();
        let mut keep =
            |full, line: &[u8]| out.push(format!("{}:{}", if full { 'F' } else { 'P' }, String::from_utf8_lossy(line)));
        for chunk in input.chunks(piece) {
            framing.buffer().extend_from_slice(chunk);
            framing.advance(chunk.len(), limit, &mut keep);
        }
        framing.take_rest(|rest| keep(true, rest));
        out
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        for piece in 1..20 {
            assert_eq!(records(b"one\n\ntwo\nrest", piece, 8), ["F:one", "F:", "F:two", "F:rest"], "{piece}");
        }
    }

    #[test]
    fn long_lines_are_cut() {
        for piece in 1..30 {
            assert_eq!(records(b"123456789012\n12345678\nx", piece, 8), ["P:12345678", "F:9012", "F:12345678", "F:x"]);
            assert_eq!(records(b"1234567890123456789", piece, 8), ["P:12345678", "P:90123456", "F:789"]);
        }
    }
}
