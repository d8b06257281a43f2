//! Connections the kernel tracks, as far as they stand in the way of a published UDP port.
//!
//! A UDP "connection" lives as long as packets come. A client that keeps sending keeps its old translation, to a
//! sandbox that is gone, or its missing one, from before the port was published. So when a UDP port changes, what is
//! tracked for it is forgotten and the next packet is looked at anew.

use std::collections::HashSet;
use std::net::IpAddr;

use super::netlink::{Refused, Socket};
use super::nft::decode::{Attributes, attributes};
use super::nft::encode::{Attrs, NLM_F_ACK, NLM_F_DUMP, message};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const UDP: u8 = 17;

/// One direction of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    protocol: u8,
    destination_port: u16,
}

/// Forgets tracked UDP connections to these ports of the node, as far as they went to the node itself, or to one of
/// `targets`.
pub(super) fn forget_udp(
    socket: &mut Socket,
    ports: &HashSet<u16>,
    node: &HashSet<IpAddr>,
    targets: &HashSet<IpAddr>,
) -> Result<(), Refused> {
    for family in [2u8, 10] {
        let first = socket.reserve(1);
        let request = message(SUBSYSTEM << 8 | GET, NLM_F_DUMP, first, family, &Attrs::default());
        let tracked = socket.talk(&request, first, 1)?;
        for entry in &tracked {
            let attrs = attributes(entry.payload());
            let (Some(original), Some(reply)) = (tuple(&attrs, CTA_TUPLE_ORIG), tuple(&attrs, CTA_TUPLE_REPLY)) else {
                continue;
            };
            let ours = node.contains(&reply.source) || targets.contains(&reply.source);
            if original.protocol == UDP && ports.contains(&original.destination_port) && ours {
                delete(socket, family, &attrs)?;
            }
        }
    }
    Ok(())
}

/// Deletes one entry, named by its own tuple and id so that a successor of it is not meant.
fn delete(socket: &mut Socket, family: u8, entry: &Attributes<'_>) -> Result<(), Refused> {
    let mut attrs = Attrs::default();
    for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
        if let Some(value) = entry.get(kind) {
            attrs.bytes(if kind == CTA_TUPLE_ORIG { kind | 1 << 15 } else { kind }, value);
        }
    }
    let first = socket.reserve(1);
    let request = message(SUBSYSTEM << 8 | DELETE, NLM_F_ACK, first, family, &attrs);
    match socket.talk(&request, first, 1) {
        // It ended by itself meanwhile.
        Err(refused) if refused.errno == libc::ENOENT => Ok(()),
        other => other.map(|_| ()),
    }
}

fn tuple(attrs: &Attributes<'_>, kind: u16) -> Option<Tuple> {
    let tuple = attrs.nested(kind)?;
    let (ip, proto) = (tuple.nested(1)?, tuple.nested(2)?);
    // CTA_IP_V4_SRC or CTA_IP_V6_SRC.
    let source = match ip.get(1) {
        Some(bytes) => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        None => IpAddr::from(<[u8; 16]>::try_from(ip.get(3)?).ok()?),
    };
    Some(Tuple {
        source,
        protocol: *proto.get(1)?.first()?,
        destination_port: proto.get(3).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes),
    })
}
