//! Networks on a link of the node, and their attachments: macvlan and ipvlan.
//!
//! Nothing is made on the node itself: each sandbox gets a link of its own that sends and receives through the parent,
//! past the node's own addresses and rules. So there is no gateway of ours, no name server and no published port, and the
//! kernel lets node and sandboxes of one parent not reach each other.

use std::io;
use std::path::Path;

use netlink_packet_route::link::InfoKind;

use super::book::Place;
use super::events::Role;
use super::link::{Link, Links, create_child, delete};
use super::netlink::Refused;
use super::netns::Netns;
use super::node::{Node, Snapshot, failed, refused};
use super::veth::{configure, is_sound_inside};
use super::{Driver, Error, MacvlanMode, NetworkSpec};
use crate::ids::IfName;

/// Whether the parent is there and up.
pub(super) fn is_complete(parent: &IfName, snapshot: &Snapshot) -> bool {
    snapshot.links.get(parent.as_str()).is_some_and(|link| link.up)
}

/// Why this network cannot be on its parent, beside those of `others`. The kernel would refuse the first attachment, or change
/// the links of the others.
pub(super) fn check<'a>(spec: &NetworkSpec, others: impl Iterator<Item = &'a NetworkSpec>) -> Result<(), String> {
    let Some(parent) = spec.driver.parent() else { return Ok(()) };
    let passes_through = |driver: &Driver| matches!(driver, Driver::Macvlan { mode: MacvlanMode::Passthru, .. });
    let conflict = |other: &NetworkSpec| {
        let key = &other.key;
        match (&spec.driver, &other.driver) {
            (own, theirs) if passes_through(own) || passes_through(theirs) => {
                Some(format!("its parent {parent} carries network {key}, and passthru takes all of it"))
            }
            (Driver::Ipvlan { mode: own, .. }, Driver::Ipvlan { mode: theirs, .. }) if own != theirs => {
                let mode = format!("{theirs:?}").to_lowercase();
                Some(format!("all ipvlan links of {parent} have one mode, and those of network {key} have {mode}"))
            }
            (Driver::Ipvlan { .. }, Driver::Macvlan { .. }) => {
                Some(format!("its parent {parent} carries macvlan of network {key}, and cannot carry ipvlan, too"))
            }
            (Driver::Macvlan { .. }, Driver::Ipvlan { .. }) => {
                Some(format!("its parent {parent} carries ipvlan of network {key}, and cannot carry macvlan, too"))
            }
            _ => None,
        }
    };
    others.filter(|other| other.driver.parent() == Some(parent)).find_map(conflict).map_or(Ok(()), Err)
}

/// What to do about a kind of link that the kernel does not have.
pub(super) fn without_module(module: &str, option: &str) -> String {
    format!("this kernel has no {module}: install the module {module} (modprobe {module}), or a kernel with {option}")
}

impl Node {
    /// Checks the parent, and has its loss told.
    pub(super) fn check_parent(&mut self, spec: &NetworkSpec, parent: &IfName) -> Result<(), Error> {
        let (kind, module, option) = match spec.driver {
            Driver::Ipvlan { .. } => (InfoKind::IpVlan, "ipvlan", "CONFIG_IPVLAN"),
            _ => (InfoKind::MacVlan, "macvlan", "CONFIG_MACVLAN"),
        };
        if !self.links.can_make(kind).map_err(refused(format!("asking for {module}")))? {
            let message = without_module(module, option);
            return Err(Error::Unsupported { network: spec.key.clone(), message });
        }
        let link = self.parent(spec, parent)?;
        self.watched.expect(parent, Role::Parent(link.index));
        Ok(())
    }

    /// The link `parent`, if it is there, up, and has room for the network's MTU.
    pub(super) fn parent(&mut self, spec: &NetworkSpec, parent: &IfName) -> Result<Link, Error> {
        let unsupported = |message: String| Error::Unsupported { network: spec.key.clone(), message };
        let found = self.links.find(parent.as_str()).map_err(refused(format!("looking for {parent}")))?;
        match found {
            None => Err(unsupported(format!("its parent {parent} is not on this node: was it renamed or removed?"))),
            Some(link) if !link.up => Err(unsupported(format!("its parent {parent} is down"))),
            Some(link) => match spec.mtu.filter(|mtu| *mtu > link.mtu) {
                Some(mtu) => {
                    Err(unsupported(format!("MTU {mtu} does not fit its parent {parent}, which has {}", link.mtu)))
                }
                None => Ok(link),
            },
        }
    }

    /// No network of ours needs the parent's events any more, unless another one does.
    pub(super) fn forget_parent(&mut self, spec: &NetworkSpec) {
        let Some(parent) = spec.driver.parent() else { return };
        if !self.book.networks.values().any(|other| other.key != spec.key && other.driver.parent() == Some(parent)) {
            self.watched.forget(parent);
        }
    }

    /// Makes or repairs a sandbox's link on `parent`.
    pub(super) fn make_child(
        &mut self,
        network: &NetworkSpec,
        parent: &IfName,
        place: &Place,
        before: Option<&Place>,
    ) -> Result<(), Error> {
        let path = place.spec.netns.display();
        let netns = Netns::open(&place.spec.netns).map_err(failed(format!("opening network namespace {path}")))?;
        if before.is_some_and(|before| before.is_same_link(place)) && is_sound_inside(network, place, &netns) {
            return super::mtu::fit(network, place, &netns);
        }
        let link = self.parent(network, parent)?;
        // Under another name first: the kernel looks for the one asked for among the node's links, too, and there is often an
        // `eth0`.
        let born = place.host_link();
        let mut create = || {
            let mtu = network.mtu.unwrap_or(link.mtu);
            let mac = matches!(network.driver, Driver::Macvlan { .. }).then(|| place.mac());
            self.links.apply(vec![create_child(&network.driver, link.index, born.as_str(), netns.fd(), mac, mtu)])
        };
        let doing = || format!("creating {} in {path} on {parent}", place.spec.ifname);
        // A damaged one of ours, or one that was not named yet: nobody else makes links there.
        delete_inside(&place.spec.netns, &place.spec.ifname)?;
        match create() {
            Err(Refused { errno: libc::EEXIST, .. }) => {
                delete_inside(&place.spec.netns, &born)?;
                create()
            }
            other => other,
        }
        .map_err(refused(doing()))?;
        netns
            .run(|| Ok(Links::open()?.rename(born.as_str(), place.spec.ifname.as_str())))
            .map_err(failed(format!("entering {path}")))?
            .map_err(refused(doing()))?;
        let outcome = netns.run(|| configure(network, place));
        outcome
            .map_err(failed(format!("entering {path}")))?
            .map_err(refused(format!("setting up {} in {path}", place.spec.ifname)))
    }
}

/// Removes a sandbox's link; its absence, and that of its namespace, is success.
pub(super) fn delete_inside(path: &Path, ifname: &IfName) -> Result<(), Error> {
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(format!("opening network namespace {}", path.display()))(error)),
    };
    let outcome = netns.run(|| Ok(Links::open()?.apply(vec![delete(ifname.as_str())])));
    match outcome {
        Ok(Err(error)) if !error.is_absence() => Err(refused(format!("removing {ifname}"))(error)),
        Ok(_) => Ok(()),
        // The namespace went and its path is an ordinary file by now: the link went with it.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(failed("entering a network namespace")(error)),
    }
}
