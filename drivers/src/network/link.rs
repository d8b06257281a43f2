//! Links, addresses and routes by rtnetlink: typed requests in, plain values out. Nothing here decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoIpVlan, InfoKind, InfoMacVlan,
    InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, IpVlanMode, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage, MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Route};

use super::netlink::{Message, Refused, Socket};
use super::{Driver, IpvlanMode, MacvlanMode};

mod shape;
mod tunnel;
mod vlan;

pub(super) use self::shape::{limit, unlimit};
pub(super) use self::tunnel::{add_peer, create_vxlan};
pub(super) use self::vlan::create_vlan;

const RT_TABLE_LOCAL: u8 = 255;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// What the kernel says about one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// Index of the bridge it is a port of.
    pub(super) master: Option<u32>,
    pub(super) mtu: u32,
    pub(super) mac: Option<Mac>,
    /// Of a VXLAN link: its network number and port.
    pub(super) vxlan: Option<(u32, u16)>,
    /// Of a VLAN link: its number.
    pub(super) vlan: Option<u16>,
}

/// A route to somewhere else than the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KernelRoute {
    pub(super) destination: IpNet,
    pub(super) gateway: Option<IpAddr>,
    pub(super) link: Option<u32>,
}

/// A request and its flags beside `NLM_F_REQUEST`.
pub(super) struct Request(Route, u16);

/// A rtnetlink socket.
pub(super) struct Links(Socket);

impl Links {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self(Socket::open(netlink_sys::protocols::NETLINK_ROUTE)?))
    }

    /// See [`Socket::port`].
    pub(super) fn port(&self) -> u32 {
        self.0.port()
    }

    /// Sends all requests in one datagram. The kernel tries each; the first refusal is returned.
    pub(super) fn apply(&mut self, requests: Vec<Request>) -> Result<(), Refused> {
        self.talk(requests).map(|_| ())
    }

    fn talk(&mut self, requests: Vec<Request>) -> Result<Vec<Message>, Refused> {
        let count = requests.len();
        let first = self.0.reserve(count);
        let mut bytes = Vec::with_capacity(256 * count);
        for (number, Request(body, flags)) in requests.into_iter().enumerate() {
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | flags;
            header.sequence_number = first.wrapping_add(u32::try_from(number).unwrap_or(u32::MAX));
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(body));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
        }
        self.0.talk(&bytes, first, count)
    }

    /// The link of that name.
    pub(super) fn find(&mut self, name: &str) -> Result<Option<Link>, Refused> {
        let request = link_message(vec![LinkAttribute::IfName(name.to_owned()), skip_statistics()]);
        match self.talk(vec![Request(Route::GetLink(request), NLM_F_ACK)]) {
            Ok(answers) => Ok(answers.iter().find_map(parse_link)),
            Err(refused) if refused.is_absence() => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// Whether the kernel can make links of this kind, which may load a module. Only for kinds that need more than a
    /// name, so that the question makes nothing.
    pub(super) fn can_make(&mut self, kind: InfoKind) -> Result<bool, Refused> {
        let attributes =
            vec![LinkAttribute::IfName("nlprobe".to_owned()), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
        let request = Request(Route::NewLink(link_message(attributes)), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        match self.apply(vec![request]) {
            Err(Refused { errno: libc::EOPNOTSUPP, .. }) => Ok(false),
            // "Invalid argument" is the answer of a driver that is there.
            Ok(()) | Err(Refused { errno: libc::EINVAL, .. }) => Ok(true),
            Err(refused) => Err(refused),
        }
    }

    /// Gives a link that is down another name.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), Refused> {
        let Some(link) = self.find(from)? else {
            return Err(Refused { errno: libc::ENODEV, detail: None, request: 0 });
        };
        let mut message = link_message(vec![LinkAttribute::IfName(to.to_owned())]);
        message.header.index = link.index;
        self.apply(vec![Request(Route::SetLink(message), NLM_F_ACK)])
    }

    /// All links of the namespace.
    pub(super) fn list(&mut self) -> Result<Vec<Link>, Refused> {
        let request = link_message(vec![skip_statistics()]);
        let answers = self.talk(vec![Request(Route::GetLink(request), NLM_F_DUMP)])?;
        Ok(answers.iter().filter_map(parse_link).collect())
    }

    /// All addresses of the namespace, with the index of their link.
    pub(super) fn addresses(&mut self) -> Result<Vec<(u32, IpNet)>, Refused> {
        let answers = self.talk(vec![Request(Route::GetAddress(AddressMessage::default()), NLM_F_DUMP)])?;
        Ok(answers.iter().filter_map(parse_address).collect())
    }

    /// All unicast routes of both families and all tables, the default ones included.
    pub(super) fn routes(&mut self) -> Result<Vec<KernelRoute>, Refused> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answers = self.talk(vec![Request(Route::GetRoute(request), NLM_F_DUMP)])?;
            routes.extend(answers.iter().filter_map(parse_route));
        }
        Ok(routes)
    }
}

fn link_message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

fn skip_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// No link-local IPv6 address by the kernel: less noise, and no traffic that nobody asked for.
fn no_link_local() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])])
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

/// A bridge that forwards at once. It is left down.
pub(super) fn create_bridge(name: &str, mac: Mac, mtu: u32) -> Request {
    let message = link_message(vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])),
        ]),
    ]);
    Request(Route::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// Sets MTU and text of a link and takes it up.
pub(super) fn set_bridge(name: &str, mtu: u32, alias: &str) -> Request {
    let attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::IfAlias(alias.to_owned()),
        no_link_local(),
    ];
    Request(Route::SetLink(up(link_message(attributes))), NLM_F_ACK)
}

/// A veth pair whose other end is born inside `netns` under its final name.
pub(super) fn create_veth(host: &str, inside: &str, netns: BorrowedFd<'_>, mac: Mac, mtu: u32) -> Request {
    let peer = link_message(vec![
        LinkAttribute::IfName(inside.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ]);
    let message = link_message(vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    Request(Route::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// A link on the link with index `parent`, born inside `netns` under its final name.
pub(super) fn create_child(
    driver: &Driver,
    parent: u32,
    inside: &str,
    netns: BorrowedFd<'_>,
    mac: Option<Mac>,
    mtu: u32,
) -> Request {
    let (kind, data) = match driver {
        Driver::Ipvlan { mode, .. } => {
            let mode = match mode {
                IpvlanMode::L2 => IpVlanMode::L2,
                IpvlanMode::L3 => IpVlanMode::L3,
                IpvlanMode::L3s => IpVlanMode::L3S,
            };
            (InfoKind::IpVlan, InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]))
        }
        _ => {
            let mode = match driver {
                Driver::Macvlan { mode: MacvlanMode::Private, .. } => MacVlanMode::Private,
                Driver::Macvlan { mode: MacvlanMode::Vepa, .. } => MacVlanMode::Vepa,
                Driver::Macvlan { mode: MacvlanMode::Passthru, .. } => MacVlanMode::Passthrough,
                _ => MacVlanMode::Bridge,
            };
            (InfoKind::MacVlan, InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]))
        }
    };
    let mut attributes = vec![
        LinkAttribute::IfName(inside.to_owned()),
        LinkAttribute::Link(parent),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    Request(Route::NewLink(link_message(attributes)), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// Makes the node's end of a veth pair a port of the bridge with index `bridge` and takes it up.
pub(super) fn set_port(host: &str, bridge: u32, mtu: u32, alias: &str) -> Request {
    let message = link_message(vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(bridge),
        LinkAttribute::IfAlias(alias.to_owned()),
        no_link_local(),
    ]);
    Request(Route::SetLink(up(message)), NLM_F_ACK)
}

/// Lets a bridge send a frame back out of the port it came from.
pub(super) fn set_hairpin(host: &str, on: bool) -> Request {
    let message = link_message(vec![
        LinkAttribute::IfName(host.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)])),
        ]),
    ]);
    // Changing a port's own settings is possible by the request that makes links, and not by the one that sets them.
    Request(Route::NewLink(message), NLM_F_ACK)
}

/// Sets the largest packet of a link.
pub(super) fn set_mtu(name: &str, mtu: u32) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(mtu)];
    Request(Route::SetLink(link_message(attributes)), NLM_F_ACK)
}

/// Takes up the link with that index.
pub(super) fn set_up(index: u32, ipv6: bool) -> Request {
    let mut message = link_message(if ipv6 { Vec::new() } else { vec![no_link_local()] });
    message.header.index = index;
    Request(Route::SetLink(up(message)), NLM_F_ACK)
}

/// Removes a link; its peer goes with it.
pub(super) fn delete(name: &str) -> Request {
    Request(Route::DelLink(link_message(vec![LinkAttribute::IfName(name.to_owned())])), NLM_F_ACK)
}

fn address_message(link: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.family = family(address.addr());
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    match address {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V4(_) => {}
        // Addresses of ours are unique by construction; without this they cannot be used for a second.
        IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    message
}

/// Gives a link an address; giving it again is success.
pub(super) fn add_address(link: u32, address: IpNet) -> Request {
    Request(Route::NewAddress(address_message(link, address)), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes an address from a link.
pub(super) fn remove_address(link: u32, address: IpNet) -> Request {
    Request(Route::DelAddress(address_message(link, address)), NLM_F_ACK)
}

/// The default route of `gateway`'s family.
pub(super) fn set_default_route(link: u32, gateway: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(link)];
    Request(Route::NewRoute(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
}

/// A default route without a gateway.
pub(super) fn set_default_link(link: u32, ipv6: bool) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if ipv6 { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(link)];
    Request(Route::NewRoute(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
}

/// Lets an IPv6 address just given to a link receive at once. The kernel does this too, but from a work queue, and
/// answers that come earlier are lost.
pub(super) fn set_local_route(link: u32, address: Ipv6Addr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = 128;
    message.header.table = RT_TABLE_LOCAL;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(address)), RouteAttribute::Oif(link)];
    Request(Route::NewRoute(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Reads a message. What the typed parser does not understand is some foreign link of a newer kernel's invention.
fn parse(message: &Message) -> Option<Route> {
    match NetlinkMessage::<Route>::deserialize(&message.bytes).ok()?.into_parts().1 {
        NetlinkPayload::InnerMessage(body) => Some(body),
        _ => None,
    }
}

fn parse_link(message: &Message) -> Option<Link> {
    let (Route::NewLink(body) | Route::DelLink(body)) = parse(message)? else { return None };
    let mut link = Link {
        index: body.header.index,
        name: String::new(),
        up: body.header.flags.contains(LinkFlags::Up),
        master: None,
        mtu: 0,
        mac: None,
        vxlan: None,
        vlan: None,
    };
    for attribute in body.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|index| *index != 0),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                (link.vxlan, link.vlan) = (parse_vxlan(&infos), vlan::parse_vlan(&infos));
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_vxlan(infos: &[LinkInfo]) -> Option<(u32, u16)> {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let vni = data.iter().find_map(|info| if let InfoVxlan::Id(vni) = info { Some(*vni) } else { None });
    let port = data.iter().find_map(|info| if let InfoVxlan::Port(port) = info { Some(*port) } else { None });
    Some((vni?, port?))
}

fn parse_address(message: &Message) -> Option<(u32, IpNet)> {
    let (Route::NewAddress(body) | Route::DelAddress(body)) = parse(message)? else { return None };
    let mut found = None;
    for attribute in body.attributes {
        match attribute {
            // On point-to-point links `Address` is the other side's.
            AddressAttribute::Local(address) => found = Some(address),
            AddressAttribute::Address(address) => found = found.or(Some(address)),
            _ => {}
        }
    }
    Some((body.header.index, IpNet::new(found?, body.header.prefix_len).ok()?))
}

fn parse_route(message: &Message) -> Option<KernelRoute> {
    let Route::NewRoute(body) = parse(message)? else { return None };
    if body.header.kind != RouteType::Unicast {
        return None;
    }
    let any = match body.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let address = |address: RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(v6)),
        _ => None,
    };
    let (mut destination, mut gateway, mut link) = (any, None, None);
    for attribute in body.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = address(to)?,
            RouteAttribute::Gateway(via) => gateway = address(via),
            RouteAttribute::Oif(index) => link = Some(index),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, body.header.destination_prefix_length).ok()?;
    Some(KernelRoute { destination, gateway, link })
}

/// A change of links or addresses, as the kernel announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// A link is there, in this state.
    Link(Link),
    /// A link is gone, or, with the bridge's family, no longer a port.
    Gone(String),
    /// The link with this index lost an address.
    AddressGone(u32),
}

/// Reads a notification; `None` for what does not matter.
pub(super) fn parse_change(message: &Message) -> Option<Change> {
    match message.kind {
        libc::RTM_NEWLINK => parse_link(message).map(Change::Link),
        libc::RTM_DELLINK => parse_link(message).map(|link| Change::Gone(link.name)),
        libc::RTM_DELADDR => parse_address(message).map(|(index, _)| Change::AddressGone(index)),
        _ => None,
    }
}
