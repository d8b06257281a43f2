//! Reading netlink attributes. Broken input ends the reading; it is never a panic.

/// Attributes of a list: kind without flags, and value.
#[derive(Debug, Clone)]
pub(in crate::network) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads `bytes` as a list of attributes.
    pub(in crate::network) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The value of the first attribute of that kind.
    pub(in crate::network) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The nested list of the first attribute of that kind.
    pub(in crate::network) fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    /// The text of the first attribute of that kind.
    pub(in crate::network) fn text(&self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
    }

    /// The number of the first attribute of that kind.
    pub(in crate::network) fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // Without the flags for "nested" and "network byte order".
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The attributes of an nftables message, behind its `struct nfgenmsg`.
pub(in crate::network) fn attributes(payload: &[u8]) -> Attributes<'_> {
    Attributes(payload.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_received_is_a_panic(bytes: Vec<u8>) {
            for (_, value) in Attributes::new(&bytes) {
                let inner = Attributes::new(value);
                let _ = (inner.text(1), inner.number(2), inner.nested(3).map(Iterator::count));
            }
            let _ = attributes(&bytes).count();
            let _ = crate::network::netlink::split(&bytes);
        }
    }
}
