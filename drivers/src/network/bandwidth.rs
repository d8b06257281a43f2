//! Bandwidth limits of attachments: of what a sandbox receives at the node's end of its link, of what it sends at its own.
//!
//! Where packets wait at the sender's own end, the program that sends them waits too, and nothing is dropped. A container that may
//! change its links (`NET_ADMIN`) can lift its own limit until the next look.

use std::io;

use super::book::Place;
use super::link::{Links, limit, unlimit};
use super::netlink::Refused;
use super::netns::Netns;
use super::node::{Node, failed, refused};
use super::{Error, NetworkSpec};

/// Bits per second as the kernel counts them.
fn bytes(bits: Option<u64>) -> Option<u64> {
    bits.map(|bits| (bits / 8).max(1))
}

impl Node {
    /// Makes the limits of an attachment those that it wishes for.
    pub(super) fn limit(&mut self, network: &NetworkSpec, place: &Place, before: Option<&Place>) -> Result<(), Error> {
        let wish = &place.spec.link;
        if !wish.is_limited() && !before.is_some_and(|before| before.spec.link.is_limited()) {
            return Ok(());
        }
        let without_module = |refusal: Refused| match refusal.errno {
            libc::ENOENT => Error::Unsupported {
                network: network.key.clone(),
                message: super::parent::without_module("sch_tbf", "CONFIG_NET_SCH_TBF"),
            },
            _ => refused(format!("limiting {} of sandbox {}", place.spec.ifname, place.spec.sandbox))(refusal),
        };
        if network.driver.has_bridge() {
            set(&mut self.links, place.host_link().as_str(), bytes(wish.ingress)).map_err(without_module)?;
        }
        let path = place.spec.netns.display();
        let netns = Netns::open(&place.spec.netns).map_err(failed(format!("opening network namespace {path}")))?;
        netns
            .run(|| Ok(set(&mut Links::open()?, place.spec.ifname.as_str(), bytes(wish.egress))))
            .map_err(failed(format!("entering {path}")))?
            .map_err(without_module)
    }
}

fn set(links: &mut Links, name: &str, rate: Option<u64>) -> Result<(), Refused> {
    let Some(link) = links.find(name)? else {
        return Err(Refused { errno: libc::ENODEV, detail: None, request: 0 });
    };
    match (rate, links.limit_of(link.index)?) {
        (Some(rate), held) if held != Some(rate) => links.apply(vec![limit(link.index, rate)]),
        (None, Some(_)) => links.apply(vec![unlimit(link.index)]),
        _ => Ok(()),
    }
}

/// Whether the limits are those that the attachment wishes for. What cannot be read is not.
pub(super) fn is_right(network: &NetworkSpec, place: &Place, netns: &Netns) -> bool {
    let wish = &place.spec.link;
    if !wish.is_limited() {
        return true;
    }
    let holds = |name: &str, rate: Option<u64>| -> io::Result<bool> {
        let mut links = Links::open()?;
        let held = links.find(name).and_then(|link| link.map_or(Ok(None), |link| links.limit_of(link.index)));
        Ok(held == Ok(bytes(rate)))
    };
    let outside = !network.driver.has_bridge() || holds(place.host_link().as_str(), wish.ingress).unwrap_or(false);
    outside && netns.run(|| holds(place.spec.ifname.as_str(), wish.egress)).unwrap_or(false)
}
