//! The expressions that our rules are made of, as `nft` would compile them.
//!
//! A rule is a sequence of expressions over sixteen 4-byte registers (numbered from 8); a comparison or lookup that
//! fails ends the rule. Fields of a concatenated key start at register boundaries.

use super::encode::Attrs;

/// The first 4-byte register (`NFT_REG32_00`).
const REG0: u32 = 8;

/// One expression of a rule.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    name: &'static str,
    data: Attrs,
}

impl Expr {
    /// Appends it to a rule's list.
    pub(super) fn write(&self, list: &mut Attrs) {
        list.nest(1, |element| {
            element.text(1, self.name).nest(2, |data| {
                data.append(&self.data);
            });
        });
    }
}

fn expr(name: &'static str, fill: impl FnOnce(&mut Attrs)) -> Expr {
    let mut data = Attrs::default();
    fill(&mut data);
    Expr { name, data }
}

/// A field of a packet or its surroundings that can be loaded into a register.
#[derive(Debug, Clone, Copy)]
pub(super) enum Field {
    /// Family of the packet: 2 or 10. One byte.
    Family,
    /// Transport protocol. One byte.
    Transport,
    /// Name of the link it came in by. 16 bytes.
    InputLink,
    /// Name of the link it leaves by. 16 bytes.
    OutputLink,
    /// IPv4 addresses.
    Source4,
    /// IPv4 destination.
    Destination4,
    /// IPv6 addresses.
    Source6,
    /// IPv6 destination.
    Destination6,
    /// Destination port, which TCP, UDP and SCTP have at the same place.
    DestinationPort,
    /// Type of the frame, 0x8100 if it is tagged. Two bytes.
    FrameType,
    /// Hardware address that the frame comes from. Six bytes.
    FrameSource,
    /// Hardware address that an ARP packet tells.
    ArpSource,
    /// IPv4 address that an ARP packet tells it for.
    ArpAddress,
    /// Type of an ICMPv6 packet. One byte.
    IcmpType,
    /// Address that a neighbour advertisement is about.
    Advertised,
    /// Bits of `enum ip_conntrack_status`.
    TrackStatus,
    /// Bits of the connection's state.
    TrackState,
    /// `RTN_*` type of the source address.
    SourceType,
    /// `RTN_*` type of the destination address.
    DestinationType,
}

impl Field {
    /// Loads it into 4-byte register number `to`.
    pub(super) fn load(self, to: u32) -> Expr {
        let register = REG0 + to;
        let meta = |key: u32| {
            expr("meta", |a| {
                a.number(1, register).number(2, key);
            })
        };
        let payload = |base: u32, offset: u32, length: u32| {
            expr("payload", |a| {
                a.number(1, register).number(2, base).number(3, offset).number(4, length);
            })
        };
        let track = |key: u32| {
            expr("ct", |a| {
                a.number(1, register).number(2, key);
            })
        };
        // Result 3 is the address type; flag 1 asks for the source, 2 for the destination.
        let fib = |flag: u32| {
            expr("fib", |a| {
                a.number(1, register).number(2, 3).number(3, flag);
            })
        };
        match self {
            Field::Family => meta(15),
            Field::Transport => meta(16),
            Field::InputLink => meta(6),
            Field::OutputLink => meta(7),
            Field::Source4 => payload(1, 12, 4),
            Field::Destination4 => payload(1, 16, 4),
            Field::Source6 => payload(1, 8, 16),
            Field::Destination6 => payload(1, 24, 16),
            Field::DestinationPort => payload(2, 2, 2),
            Field::FrameType => payload(0, 12, 2),
            Field::FrameSource => payload(0, 6, 6),
            Field::ArpSource => payload(1, 8, 6),
            Field::ArpAddress => payload(1, 14, 4),
            Field::IcmpType => payload(2, 0, 1),
            Field::Advertised => payload(2, 8, 16),
            Field::TrackState => track(0),
            Field::TrackStatus => track(2),
            Field::SourceType => fib(1),
            Field::DestinationType => fib(2),
        }
    }

    /// Registers of four bytes that it fills.
    fn registers(self) -> u32 {
        match self {
            Field::InputLink | Field::OutputLink | Field::Source6 | Field::Destination6 | Field::Advertised => 4,
            Field::FrameSource | Field::ArpSource => 2,
            _ => 1,
        }
    }
}

fn compare(register: u32, operator: u32, value: &[u8]) -> Expr {
    expr("cmp", |a| {
        a.number(1, REG0 + register).number(2, operator).nest(3, |data| {
            data.bytes(1, value);
        });
    })
}

/// The field has this value.
pub(super) fn is(field: Field, value: &[u8]) -> Vec<Expr> {
    vec![field.load(0), compare(0, 0, value)]
}

/// Keeps only these bits of the first register.
fn mask(bits: [u8; 4]) -> Expr {
    expr("bitwise", |a| {
        a.number(1, REG0).number(2, REG0).number(3, 4);
        a.nest(4, |data| {
            data.bytes(1, &bits);
        });
        a.nest(5, |data| {
            data.bytes(1, &[0; 4]);
        });
    })
}

/// The loaded field, masked, has this value.
pub(super) fn is_masked(field: Field, bits: [u8; 4], value: [u8; 4]) -> Vec<Expr> {
    vec![field.load(0), mask(bits), compare(0, 0, &value)]
}

/// At least one of these bits is set; `field` is a number of four bytes in the machine's order.
pub(super) fn has_bit(field: Field, bits: u32) -> Vec<Expr> {
    vec![field.load(0), mask(bits.to_ne_bytes()), compare(0, 1, &[0; 4])]
}

fn load_key(fields: &[Field]) -> Vec<Expr> {
    let mut next = 0;
    let load = |field: &Field| {
        let at = next;
        next += field.registers();
        field.load(at)
    };
    fields.iter().map(load).collect()
}

/// The concatenation of these fields is, or is not, in the set.
pub(super) fn in_set(fields: &[Field], set: &str, wanted: bool) -> Vec<Expr> {
    let mut exprs = load_key(fields);
    exprs.push(expr("lookup", |a| {
        a.text(1, set).number(2, REG0).number(5, u32::from(!wanted));
    }));
    exprs
}

/// Looks the concatenation of these fields up in a map of address and port and translates the destination.
pub(super) fn translate_destination(fields: &[Field], map: &str, ipv6: bool) -> Vec<Expr> {
    let mut exprs = load_key(fields);
    exprs.push(expr("lookup", |a| {
        a.text(1, map).number(2, REG0).number(3, REG0);
    }));
    let (family, port) = if ipv6 { (10, REG0 + 4) } else { (2, REG0 + 1) };
    exprs.push(expr("nat", |a| {
        a.number(1, 1).number(2, family).number(3, REG0).number(5, port);
    }));
    exprs
}

/// The source becomes the address of the link the packet leaves by.
pub(super) fn masquerade() -> Vec<Expr> {
    vec![expr("masq", |_| {})]
}

/// What becomes of the packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
}

/// Ends the rule, and, but for a jump that returns, the chain.
pub(super) fn verdict(verdict: Verdict) -> Vec<Expr> {
    let (code, chain) = match verdict {
        Verdict::Drop => (0i32, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
    };
    vec![expr("immediate", |a| {
        a.number(1, 0).nest(2, |data| {
            data.nest(2, |v| {
                v.bytes(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    v.text(2, chain);
                }
            });
        });
    })]
}
