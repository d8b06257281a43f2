//! Blocks of headers: one zlib stream for each direction of a connection, preset with a dictionary.

use bytes::Buf;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// The largest block, decompressed: kubectl's have less than 200 bytes.
const BLOCK: usize = 16 * 1024;
/// The most headers in a block.
const HEADERS: usize = 64;

/// A block that cannot be read. The connection cannot go on: its compression is out of step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum HeaderError {
    #[error("headers do not decompress")]
    Compression,
    #[error("more than {BLOCK} bytes of headers")]
    TooLong,
    #[error("more than {HEADERS} headers")]
    TooMany,
    #[error("headers end too early or too late")]
    Length,
    #[error("a header is not valid: {0}")]
    Invalid(&'static str),
}

/// Names and values; several values of a name have a NUL between them.
pub(super) type Headers = Vec<(String, String)>;

/// Reads what the client compresses.
#[derive(Debug)]
pub(super) struct HeaderReader(Decompress);

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.decompress(block)?)
    }

    fn decompress(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut text = Vec::new();
        let mut out = [0; 1024];
        let mut dictionary = false;
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut out, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).map_err(|_| HeaderError::Compression)?;
            let written = usize::try_from(self.0.total_out() - written).map_err(|_| HeaderError::Compression)?;
            block = block.get(read..).ok_or(HeaderError::Compression)?;
            text.extend_from_slice(out.get(..written).ok_or(HeaderError::Compression)?);
            if text.len() > BLOCK {
                return Err(HeaderError::TooLong);
            }
            match result {
                // More of this block may wait inside while `out` is filled.
                Ok(Status::Ok | Status::BufError) if read > 0 || written > 0 => {}
                Ok(Status::Ok | Status::BufError) if block.is_empty() => return Ok(text),
                Err(error) if error.needs_dictionary().is_some() && !dictionary => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| HeaderError::Compression)?;
                    dictionary = true;
                }
                _ => return Err(HeaderError::Compression),
            }
        }
    }
}

fn parse(mut text: &[u8]) -> Result<Headers, HeaderError> {
    let count = text.try_get_u32().map_err(|_| HeaderError::Length)? as usize;
    if count > HEADERS {
        return Err(HeaderError::TooMany);
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = string(&mut text)?;
        let value = string(&mut text)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase() || byte == 0) {
            return Err(HeaderError::Invalid("its name is empty or not in lower case"));
        }
        if headers.iter().any(|(known, _)| *known == name) {
            return Err(HeaderError::Invalid("its name comes twice"));
        }
        headers.push((name, value));
    }
    if text.is_empty() { Ok(headers) } else { Err(HeaderError::Length) }
}

fn string(text: &mut &[u8]) -> Result<String, HeaderError> {
    let length = text.try_get_u32().map_err(|_| HeaderError::Length)? as usize;
    let (bytes, rest) = text.split_at_checked(length).ok_or(HeaderError::Length)?;
    *text = rest;
    String::from_utf8(bytes.to_vec()).map_err(|_| HeaderError::Invalid("it is not UTF-8"))
}

/// Compresses what the client reads.
#[derive(Debug)]
pub(super) struct HeaderWriter {
    compress: Compress,
    usable: bool,
}

impl HeaderWriter {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        let usable = compress.set_dictionary(DICTIONARY).is_ok();
        Self { compress, usable }
    }

    /// A block; `None` if compression fails, which ends the connection.
    pub(super) fn write(&mut self, headers: &[(&str, &str)]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        let number = |length: usize| u32::try_from(length).ok().map(u32::to_be_bytes);
        text.extend_from_slice(&number(headers.len())?);
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&number(part.len())?);
            text.extend_from_slice(part.as_bytes());
        }
        if !self.usable {
            return None;
        }
        let mut block = Vec::with_capacity(text.len() + 64);
        let before = self.compress.total_in();
        loop {
            let done = usize::try_from(self.compress.total_in() - before).ok()?;
            let status = self.compress.compress_vec(text.get(done..)?, &mut block, FlushCompress::Sync).ok()?;
            // Room that is left means that nothing waits inside.
            if block.len() < block.capacity() {
                return Some(block);
            }
            if status == Status::StreamEnd {
                return None;
            }
            block.reserve(256);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_of_one_connection_share_their_compression() {
        let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
        let headers = [("streamtype", "data"), ("port", "80"), ("requestid", "17")];
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let block = writer.write(&headers).unwrap();
            sizes.push(block.len());
            let read = reader.read(&block).unwrap();
            assert_eq!(read.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>(), headers);
        }
        assert!(sizes[1] < sizes[0] && reader.read(&writer.write(&[]).unwrap()).unwrap().is_empty(), "{sizes:?}");
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(DICTIONARY).unwrap();
        let mut block = Vec::with_capacity(1 << 20);
        compress.compress_vec(&vec![0; 64 << 20], &mut block, FlushCompress::Sync).unwrap();
        assert!(block.len() < 100_000);
        assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::TooLong));
    }

    #[test]
    fn an_unknown_dictionary_is_refused() {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(b"something else").unwrap();
        let mut block = Vec::with_capacity(1000);
        compress.compress_vec(&[0; 4], &mut block, FlushCompress::Sync).unwrap();
        assert_eq!(HeaderReader::new().read(&block), Err(HeaderError::Compression));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for (text, expected) in [
            (&[][..], HeaderError::Length),
            (&[0, 0, 0, 1], HeaderError::Length),
            (&[255; 4], HeaderError::TooMany),
            (&[0, 0, 0, 1, 255, 255, 255, 255, 1], HeaderError::Length),
            (&[0, 0, 0, 0, 1], HeaderError::Length),
            (
                &[0, 0, 0, 1, 0, 0, 0, 1, b'A', 0, 0, 0, 0],
                HeaderError::Invalid("its name is empty or not in lower case"),
            ),
            (&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0], HeaderError::Invalid("it is not UTF-8")),
        ] {
            assert_eq!(parse(text), Err(expected), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4)) {
            let mut reader = HeaderReader::new();
            for block in &blocks {
                let _ = reader.read(block);
                let _ = parse(block);
            }
        }
    }
}
