//! A blocking netlink socket: send a batch of requests, read every answer.
//!
//! The kernel handles netlink requests inside `send`, so a reply is waiting when it returns and blocking costs no
//! more than the work itself. Every socket belongs to the network namespace of the thread that opened it, for good.

use std::fmt;
use std::io;

use netlink_sys::{Socket as RawSocket, SocketAddr};

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Larger than any datagram the kernel sends: dumps are cut to the size of the reader's buffer, 32 KiB at most.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Room for one transaction with some ten thousand elements.
const SEND_BUFFER: usize = 8 * 1024 * 1024;

/// The kernel refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// The positive errno.
    pub(super) errno: i32,
    /// What the kernel adds to it, when it does.
    pub(super) detail: Option<String>,
    /// Which request of the batch it was, counted from zero.
    pub(super) request: usize,
}

impl Refused {
    /// An error that did not come as an answer.
    pub(super) fn io(error: &io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(libc::EIO), detail: None, request: 0 }
    }

    /// The object asked for is not there.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self.errno, libc::ENODEV | libc::ENOENT | libc::ESRCH)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

/// One message as received.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// `nlmsg_pid`: the socket whose request caused it, zero for the kernel's own doing.
    pub(super) port: u32,
    /// Header and payload, as the typed parsers want it.
    pub(super) bytes: Vec<u8>,
    flags: u16,
    sequence: u32,
}

impl Message {
    /// What follows the header.
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }
}

/// Cuts a datagram into messages; a broken rest is left out.
pub(super) fn split(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while bytes.len() >= HEADER {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let length = word(0) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        messages.push(Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            bytes: bytes[..length].to_vec(),
        });
        bytes = &bytes[bytes.len().min(length.next_multiple_of(4))..];
    }
    messages
}

/// A request socket of one protocol (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
pub(super) struct Socket {
    inner: RawSocket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut inner = RawSocket::new(protocol)?;
        let port = inner.bind_auto()?.port_number();
        inner.connect(&SocketAddr::new(0, 0))?;
        // Older kernels know no extended answers, and an unprivileged caller may not raise the buffer: both can be
        // done without.
        let _ = inner.set_ext_ack(true);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&inner, SEND_BUFFER);
        Ok(Self { inner, port, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// The port id that the kernel puts into notifications about what this socket caused.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Reserves `count` sequence numbers and returns the first.
    pub(super) fn reserve(&mut self, count: usize) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    /// Sends `count` requests numbered from `first`, each of which asks for an acknowledgement or is a dump, and
    /// returns everything that was answered. The first refusal wins; requests after it have been tried as well.
    pub(super) fn talk(&mut self, requests: &[u8], first: u32, count: usize) -> Result<Vec<Message>, Refused> {
        let mut attempts = 0;
        loop {
            let (answers, interrupted) = self.talk_once(requests, first, count)?;
            if is_change(requests) {
                crate::failpoint::passed("a change of links, addresses or routes");
            }
            attempts += 1;
            // A dump that was changed under way may lack entries. Five changes in a row are taken as they are: the
            // next pass looks again.
            if !interrupted || attempts == 5 {
                return Ok(answers);
            }
        }
    }

    fn talk_once(&mut self, requests: &[u8], first: u32, count: usize) -> Result<(Vec<Message>, bool), Refused> {
        self.send(requests)?;
        let (mut answers, mut refused, mut open, mut interrupted) = (Vec::new(), None, count, false);
        while open > 0 {
            for message in self.receive(0)? {
                let request = message.sequence.wrapping_sub(first) as usize;
                if request >= count {
                    continue; // a late answer to something we gave up
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        open -= 1;
                        if let (Some(error), None) = (refusal(&message, request), &refused) {
                            refused = Some(error);
                        }
                    }
                    _ => answers.push(message),
                }
            }
        }
        refused.map_or(Ok((answers, interrupted)), Err)
    }

    /// Sends a transaction (`NFNL_MSG_BATCH_BEGIN` … `END`) in which at least the last message asks for an
    /// acknowledgement. Everything or nothing of it has happened afterwards.
    pub(super) fn transact(&mut self, batch: &[u8], first: u32) -> Result<(), Refused> {
        self.send(batch)?;
        let (mut refused, mut answered) = (None, false);
        loop {
            let messages = match self.receive(libc::MSG_DONTWAIT) {
                Ok(messages) => messages,
                Err(error) if error.errno == libc::EAGAIN => break,
                Err(error) => return Err(error),
            };
            for message in messages.iter().filter(|m| m.kind == NLMSG_ERROR) {
                answered = true;
                let request = message.sequence.wrapping_sub(first) as usize;
                refused = refused.or_else(|| refusal(message, request));
            }
        }
        match refused {
            Some(error) => Err(error),
            None if answered => {
                crate::failpoint::passed("a transaction of packet-filter rules");
                Ok(())
            }
            None => {
                Err(Refused { errno: libc::EPROTO, detail: Some("no answer to the transaction".into()), request: 0 })
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Refused> {
        match self.inner.send(bytes, 0) {
            Ok(_) => Ok(()),
            Err(error) => Err(Refused::io(&error)),
        }
    }

    fn receive(&mut self, flags: i32) -> Result<Vec<Message>, Refused> {
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(split(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Refused::io(&error)),
            }
        }
    }
}

/// The first request is one of rtnetlink's that changes something: every fourth of its types reads.
fn is_change(requests: &[u8]) -> bool {
    let kind = requests.get(4..6).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
    (16..256).contains(&kind) && kind & 3 != 2
}

/// The refusal in an error or end message; `None` for an acknowledgement.
fn refusal(message: &Message, request: usize) -> Option<Refused> {
    let payload = message.payload();
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    Some(Refused { errno: code.saturating_neg(), detail: detail(message), request })
}

/// The text the kernel adds to a refusal (`NLMSGERR_ATTR_MSG`), behind the copy of the request's header or, unless
/// capped, of the whole request.
fn detail(message: &Message) -> Option<String> {
    if message.kind != NLMSG_ERROR || message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let payload = message.payload();
    let echoed = match message.flags & NLM_F_CAPPED {
        0 => u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?) as usize,
        _ => HEADER,
    };
    let attributes = payload.get(4 + echoed.next_multiple_of(4)..)?;
    super::nft::decode::Attributes::new(attributes)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}
