//! Writing nftables transactions: netlink messages of nested attributes, numbers in network byte order.
//!
//! Names and numbers are those of `linux/netfilter/nf_tables.h`. Only what our table uses is here.

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NLA_F_NESTED: u16 = 1 << 15;
const NLM_F_REQUEST: u16 = 1;
pub(in crate::network) const NLM_F_ACK: u16 = 4;
pub(in crate::network) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// The families of tables, by their protocol numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Family {
    /// All of them, in questions.
    Any = 0,
    /// IPv4 and IPv6.
    Inet = 1,
    /// Frames on bridges.
    Bridge = 7,
}

/// Message types of the subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Verb {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
    GetGeneration = 16,
}

impl Verb {
    /// The message's `nlmsg_type`.
    pub(super) fn kind(self) -> u16 {
        SUBSYSTEM << 8 | self as u16
    }
}

/// A list of attributes being written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::network) struct Attrs(Vec<u8>);

impl Attrs {
    /// Appends raw bytes as one attribute.
    pub(in crate::network) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Callers keep every list far below this; see `ruleset::ELEMENTS_PER_MESSAGE`.
        let length = u16::try_from(4 + value.len()).expect("an attribute is shorter than 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a zero-terminated text.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends a number.
    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a list of attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs)) -> &mut Self {
        let mut inner = Attrs::default();
        fill(&mut inner);
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Appends attributes written elsewhere.
    pub(super) fn append(&mut self, other: &Attrs) -> &mut Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// The bytes written.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn write_message(buffer: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attrs: &[u8]) {
    let length = u32::try_from(20 + attrs.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&0u32.to_ne_bytes());
    buffer.push(family);
    buffer.push(0);
    buffer.extend_from_slice(&resource.to_be_bytes());
    buffer.extend_from_slice(attrs);
}

/// One request outside of a transaction: the `Get` verbs.
pub(super) fn query(family: Family, verb: Verb, flags: u16, sequence: u32, attrs: &Attrs) -> Vec<u8> {
    message(verb.kind(), flags, sequence, family as u8, attrs)
}

/// One message to a subsystem of netfilter.
pub(in crate::network) fn message(kind: u16, flags: u16, sequence: u32, family: u8, attrs: &Attrs) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(64);
    write_message(&mut buffer, kind, flags, sequence, family, 0, attrs.as_bytes());
    buffer
}

/// Changes that happen together or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch(Vec<Change>);

#[derive(Debug)]
struct Change {
    family: Family,
    verb: Verb,
    flags: u16,
    attrs: Attrs,
}

impl Batch {
    /// Appends a change.
    pub(super) fn push(&mut self, family: Family, verb: Verb, flags: u16, fill: impl FnOnce(&mut Attrs)) {
        let mut attrs = Attrs::default();
        fill(&mut attrs);
        self.0.push(Change { family, verb, flags, attrs });
    }

    /// Messages that [`Batch::encode`] will make.
    pub(super) fn messages(&self) -> usize {
        self.0.len() + 2
    }

    /// The transaction, numbered from `first`. The last change asks for an acknowledgement: refusals come anyhow.
    pub(super) fn encode(&self, first: u32) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(64 + self.0.iter().map(|change| change.attrs.0.len() + 20).sum::<usize>());
        let mut sequence = first;
        write_message(&mut buffer, NFNL_MSG_BATCH_BEGIN, 0, sequence, 0, SUBSYSTEM, &[]);
        for (number, Change { family, verb, flags, attrs }) in self.0.iter().enumerate() {
            sequence = sequence.wrapping_add(1);
            let ack = if number + 1 == self.0.len() { NLM_F_ACK } else { 0 };
            write_message(&mut buffer, verb.kind(), flags | ack, sequence, *family as u8, 0, attrs.as_bytes());
        }
        write_message(&mut buffer, NFNL_MSG_BATCH_END, 0, sequence.wrapping_add(1), 0, SUBSYSTEM, &[]);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut attrs = Attrs::default();
        attrs.text(1, "ab").nest(2, |inner| {
            inner.number(3, 7);
        });
        let le = |n: u16| n.to_ne_bytes();
        let mut expected = Vec::new();
        expected.extend([le(7), le(1)].concat());
        expected.extend(b"ab\0\0");
        expected.extend([le(12), le(2 | NLA_F_NESTED), le(8), le(3)].concat());
        expected.extend([0, 0, 0, 7]);
        assert_eq!(attrs.as_bytes(), expected);
    }

    #[test]
    fn a_batch_is_framed_and_only_its_last_change_asks_for_an_answer() {
        let mut batch = Batch::default();
        batch.push(Family::Inet, Verb::NewTable, NLM_F_CREATE, |attrs| {
            attrs.text(1, "t");
        });
        batch.push(Family::Bridge, Verb::DelTable, 0, |attrs| {
            attrs.text(1, "t");
        });
        let messages = crate::network::netlink::split(&batch.encode(5));
        let kinds: Vec<u16> = messages.iter().map(|m| m.kind).collect();
        assert_eq!(kinds, [16, 0xa00, 0xa02, 17]);
        let flags: Vec<u16> = messages.iter().map(|m| u16::from_ne_bytes([m.bytes[6], m.bytes[7]])).collect();
        assert_eq!(flags, [1, 1 | NLM_F_CREATE, 1 | NLM_F_ACK, 1]);
        assert_eq!(messages[1..3].iter().map(|m| m.payload()[0]).collect::<Vec<_>>(), [1, 7]);
    }
}
