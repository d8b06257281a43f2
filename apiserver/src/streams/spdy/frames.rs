//! Frames on the wire.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::headers::{HeaderError, HeaderReader, Headers};
use crate::streams::channel::CHUNK;

/// The longest control frame.
const CONTROL: usize = 16 * 1024;
const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const INITIAL_WINDOW: u32 = 7;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    Refused = 3,
    Cancel = 5,
}

/// A connection that cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("version {0} of the protocol is not spoken")]
    Version(u16),
    #[error("a control frame of {0} bytes")]
    TooLong(usize),
    #[error("frame of type {0} has the wrong length")]
    Length(u16),
    #[error("headers of stream {id}")]
    Headers {
        id: u32,
        #[source]
        source: HeaderError,
    },
    #[error("stream {0} cannot be opened")]
    Stream(u32),
    #[error("a server opened no stream {0}")]
    Reply(u32),
}

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open {
        id: u32,
        finished: bool,
        unidirectional: bool,
        headers: Headers,
    },
    /// A part of a data frame; `finished` with its last one.
    Data {
        id: u32,
        bytes: Bytes,
        finished: bool,
    },
    Reset {
        id: u32,
    },
    InitialWindow(u32),
    Ping(u32),
    GoAway,
    Headers {
        id: u32,
        finished: bool,
    },
    Window {
        id: u32,
        delta: u32,
    },
    /// Nothing that matters.
    Other,
}

/// Takes bytes apart.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    io: R,
    headers: HeaderReader,
    /// What is still to come of a data frame: stream, bytes, whether it is the last one.
    data: Option<(u32, usize, bool)>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, headers: HeaderReader::new(), data: None }
    }

    /// The next frame or part of one; `None` at the end of the connection. Not cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some((id, left, finished)) = self.data {
            return self.data(id, left, finished).await.map(Some);
        }
        let mut head = [0; 8];
        if self.io.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut head[1..]).await?;
        let mut head = &head[..];
        let (first, second) = (head.get_u32(), head.get_u32());
        let flags = (second >> 24) as u8;
        let length = (second & 0x00ff_ffff) as usize;
        if first >> 31 == 0 {
            return self.data(first, length, flags & FIN != 0).await.map(Some);
        }
        let (version, kind) = ((first >> 16 & 0x7fff) as u16, (first & 0xffff) as u16);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL {
            return Err(FrameError::TooLong(length));
        }
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).await?;
        self.control(kind, flags, &body).map(Some)
    }

    async fn data(&mut self, id: u32, left: usize, finished: bool) -> Result<Frame, FrameError> {
        let mut bytes = BytesMut::new();
        if left > 0 {
            bytes.reserve(left.min(CHUNK));
            if self.io.read_buf(&mut (&mut bytes).limit(left.min(CHUNK))).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        let left = left - bytes.len();
        self.data = (left > 0).then_some((id, left, finished));
        Ok(Frame::Data { id, bytes: bytes.freeze(), finished: finished && left == 0 })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: &[u8]) -> Result<Frame, FrameError> {
        let finished = flags & FIN != 0;
        let short = |_| FrameError::Length(kind);
        let word = |body: &mut &[u8]| body.try_get_u32().map_err(short);
        let frame = match kind {
            1 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                word(&mut body)?;
                body.try_get_u16().map_err(short)?;
                let headers = self.headers.read(body).map_err(|source| FrameError::Headers { id, source })?;
                return Ok(Frame::Open { id, finished, unidirectional: flags & UNIDIRECTIONAL != 0, headers });
            }
            2 => return Err(FrameError::Reply(word(&mut body)?)),
            3 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                word(&mut body)?;
                Frame::Reset { id }
            }
            4 => {
                let count = word(&mut body)? as usize;
                if body.len() != count.saturating_mul(8) {
                    return Err(FrameError::Length(kind));
                }
                let mut window = Frame::Other;
                for _ in 0..count {
                    let (setting, value) = (word(&mut body)? & 0x00ff_ffff, word(&mut body)?);
                    if setting == INITIAL_WINDOW {
                        window = Frame::InitialWindow(value);
                    }
                }
                window
            }
            6 => Frame::Ping(word(&mut body)?),
            7 => {
                word(&mut body)?;
                word(&mut body)?;
                Frame::GoAway
            }
            8 => {
                let id = word(&mut body)? & 0x7fff_ffff;
                // Unwanted, but the compression has to stay in step.
                self.headers.read(body).map_err(|source| FrameError::Headers { id, source })?;
                return Ok(Frame::Headers { id, finished });
            }
            9 => Frame::Window { id: word(&mut body)? & 0x7fff_ffff, delta: word(&mut body)? & 0x7fff_ffff },
            _ => return Ok(Frame::Other),
        };
        if body.is_empty() { Ok(frame) } else { Err(FrameError::Length(kind)) }
    }
}

/// The header of a data frame whose bytes follow.
pub(super) fn data_header(id: u32, length: usize, finished: bool) -> [u8; 8] {
    let second = u32::from(finished) << 24 | (length as u32 & 0x00ff_ffff);
    let mut header = [0; 8];
    header[..4].copy_from_slice(&id.to_be_bytes());
    header[4..].copy_from_slice(&second.to_be_bytes());
    header
}

/// A control frame of words.
pub(super) fn control(kind: u16, words: &[u32], rest: &[u8]) -> Bytes {
    let length = (words.len() * 4 + rest.len()) as u32;
    let mut frame = Vec::with_capacity(8 + length as usize);
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    frame.extend_from_slice(rest);
    frame.into()
}

pub(super) fn reply(id: u32, block: &[u8]) -> Bytes {
    control(2, &[id], block)
}

pub(super) fn reset(id: u32, why: Reset) -> Bytes {
    control(3, &[id, why as u32], &[])
}

pub(super) fn ping(id: u32) -> Bytes {
    control(6, &[id], &[])
}

/// `status` 0: all is well; 1: the client broke the protocol.
pub(super) fn go_away(last: u32, status: u32) -> Bytes {
    control(7, &[last, status], &[])
}

pub(super) fn window(id: u32, delta: u32) -> Bytes {
    control(9, &[id, delta], &[])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::headers::HeaderWriter;
    use super::*;

    async fn all(bytes: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn frames_are_read_as_they_are_written() {
        let block = HeaderWriter::new().write(&[("streamtype", "stdin")]).unwrap();
        let mut wire = control(1, &[1, 0], &[&[0, 0][..], &block].concat()).to_vec();
        wire.extend(data_header(1, 5, true));
        wire.extend(b"hello");
        for frame in [ping(3), reset(1, Reset::Cancel), window(0, 9), go_away(1, 0), control(99, &[7], &[])] {
            wire.extend(frame);
        }
        wire.extend(control(4, &[1, INITIAL_WINDOW, 70_000], &[]));
        let (frames, error) = all(&wire).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(
            frames,
            [
                Frame::Open {
                    id: 1,
                    finished: false,
                    unidirectional: false,
                    headers: vec![("streamtype".into(), "stdin".into())]
                },
                Frame::Data { id: 1, bytes: Bytes::from_static(b"hello"), finished: true },
                Frame::Ping(3),
                Frame::Reset { id: 1 },
                Frame::Window { id: 0, delta: 9 },
                Frame::GoAway,
                Frame::Other,
                Frame::InitialWindow(70_000),
            ]
        );
    }

    #[tokio::test]
    async fn a_long_data_frame_comes_in_pieces() {
        let mut wire = data_header(5, 100_000, true).to_vec();
        wire.extend(vec![7; 100_000]);
        let (frames, error) = all(&wire).await;
        assert!(error.is_none() && frames.len() == 4, "{}", frames.len());
        assert!(matches!(&frames[0], Frame::Data { finished: false, bytes, .. } if bytes.len() == CHUNK));
        assert!(matches!(&frames[3], Frame::Data { finished: true, .. }));
    }

    #[tokio::test]
    async fn what_is_wrong_ends_it() {
        let short_ping = control(6, &[], &[0, 0]);
        let long_window = control(9, &[1, 1, 1], &[]);
        let settings = control(4, &[u32::MAX], &[]);
        let version = [0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
        let huge = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
        for wire in [&short_ping[..], &long_window, &settings, &version, &huge, &reply(1, &[]), &[0x80, 3]] {
            let (_, error) = all(wire).await;
            assert!(error.is_some(), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut wire in proptest::collection::vec(any::<u8>(), 0..400), control in any::<bool>()) {
            // Most random bytes are data frames; these have more to say.
            if control && wire.len() > 8 {
                wire[..3].copy_from_slice(&[0x80, 3, 0]);
                wire[3] %= 10;
                wire[5..7].copy_from_slice(&[0, 0]);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(all(&wire));
        }
    }
}
