//! The largest packet of attachments that are there already: changed on the link as it is.

use std::io;

use super::book::Place;
use super::link::{Links, set_mtu};
use super::netlink::Refused;
use super::netns::Netns;
use super::node::{failed, refused};
use super::{Error, NetworkSpec};

/// Gives the link inside the network's MTU, as it is: what runs there goes on.
pub(super) fn fit(network: &NetworkSpec, place: &Place, netns: &Netns) -> Result<(), Error> {
    let Some(wanted) = wanted(network) else { return Ok(()) };
    let ifname = place.spec.ifname.as_str();
    let fit = || -> io::Result<Result<(), Refused>> {
        let mut links = Links::open()?;
        Ok(match links.find(ifname) {
            Ok(Some(link)) if link.mtu != wanted => links.apply(vec![set_mtu(ifname, wanted)]),
            other => other.map(|_| ()),
        })
    };
    let path = place.spec.netns.display();
    let doing = format!("setting the MTU of {ifname} in {path}");
    netns.run(fit).map_err(failed(format!("entering {path}")))?.map_err(refused(doing))
}

/// The MTU that links inside have to have; `None` where the parent's is as good as any.
pub(super) fn wanted(network: &NetworkSpec) -> Option<u32> {
    if network.driver.has_bridge() { Some(super::bridge::mtu(network)) } else { network.mtu }
}
