//! VXLAN links and where they send what has no better destination: their forwarding entries.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Route};

use super::{Links, Refused, Request, link_message, parse};

/// The destination of frames to everybody and to nobody known.
const ANYBODY: [u8; 6] = [0; 6];

/// A VXLAN link that learns where its peers' hosts are; `ipv6` says of which family the peers are.
pub(in crate::network) fn create_vxlan(name: &str, vni: u32, port: u16, ipv6: bool, mtu: u32) -> Request {
    let mut data = vec![InfoVxlan::Id(vni), InfoVxlan::Port(port), InfoVxlan::Learning(true)];
    if ipv6 {
        // No group: this only tells the family.
        data.push(InfoVxlan::Group6(Ipv6Addr::UNSPECIFIED));
    }
    let message = link_message(vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ]);
    Request(Route::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// Sends a copy of what is for everybody or nobody known to this peer.
pub(in crate::network) fn add_peer(link: u32, peer: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.header.kind = RouteType::Unspec;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(ANYBODY.to_vec()),
        NeighbourAttribute::Destination(NeighbourAddress::from(peer)),
    ];
    Request(Route::NewNeighbour(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND)
}

impl Links {
    /// The peers that a VXLAN link sends to.
    pub(in crate::network) fn peers(&mut self, link: u32) -> Result<BTreeSet<IpAddr>, Refused> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.header.ifindex = link;
        let answers = self.talk(vec![Request(Route::GetNeighbour(request), NLM_F_DUMP)])?;
        let peers = answers.iter().filter_map(|answer| match parse(answer)? {
            Route::NewNeighbour(body) if body.header.ifindex == link => parse_peer(&body),
            _ => None,
        });
        Ok(peers.collect())
    }
}

fn parse_peer(entry: &NeighbourMessage) -> Option<IpAddr> {
    let (mut anybody, mut destination) = (false, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => anybody = *mac == ANYBODY,
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => destination = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => destination = Some(IpAddr::V6(*v6)),
            // Of bridges' entries the parser leaves addresses as they are.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from).ok();
                destination = v4.or_else(|| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from).ok());
            }
            _ => {}
        }
    }
    destination.filter(|_| anybody)
}
