//! VLANs of a link: links whose frames are tagged on their parent.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Route;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo};

use super::{Request, link_message};

/// The VLAN `id` of the link with index `parent`, by 802.1Q. It is left down.
pub(in crate::network) fn create_vlan(name: &str, parent: u32, id: u16, mtu: u32) -> Request {
    let message = link_message(vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Link(parent),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
        ]),
    ]);
    Request(Route::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// The number of a VLAN link.
pub(super) fn parse_vlan(infos: &[LinkInfo]) -> Option<u16> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => {
            data.iter().find_map(|info| if let InfoVlan::Id(id) = info { Some(*id) } else { None })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;
    use crate::network::nft::decode::Attributes;

    #[test]
    fn the_request_says_what_the_kernel_reads() {
        for (name, parent, id, mtu) in [("nlq1", 2u32, 1u16, 1500u32), ("nlq2", 77, 4094, 9000), ("nlq3", 1, 100, 576)]
        {
            let Request(body, flags) = create_vlan(name, parent, id, mtu);
            let mut bytes = vec![0; body.buffer_len()];
            body.emit(&mut bytes);
            // Behind `struct ifinfomsg`: IFLA_IFNAME, IFLA_MTU, IFLA_LINK and IFLA_LINKINFO.
            let attributes = Attributes::new(&bytes[16..]);
            assert_eq!(flags & NLM_F_EXCL, NLM_F_EXCL);
            assert_eq!(attributes.text(3), Some(name));
            assert_eq!(attributes.get(4), Some(&mtu.to_ne_bytes()[..]));
            assert_eq!(attributes.get(5), Some(&parent.to_ne_bytes()[..]));
            let info = attributes.nested(18).unwrap();
            assert_eq!(info.text(1), Some("vlan"));
            // IFLA_VLAN_ID; without IFLA_VLAN_PROTOCOL the kernel takes 802.1Q.
            let data: Vec<_> = info.nested(2).unwrap().collect();
            assert_eq!(data, [(1, &id.to_ne_bytes()[..])]);
        }
    }
}
