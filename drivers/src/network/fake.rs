//! Networks in memory: the same book as the real ones, and a kernel that can be broken by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::book::Book;
use super::{
    AttachSpec, Attachment, Error, Names, Network, NetworkEvent, NetworkSpec, Networks, Protocol, PublishedPort, book,
    bridge_name, ipam,
};
use crate::ids::{IfName, NetworkKey, SandboxId};

/// A fake node. What would be kernel state can be taken away with the `break_` methods, as another hand would.
#[derive(Debug, Default)]
pub struct FakeNetworks {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    book: Book,
    /// Bridges and host links that are there.
    links: BTreeSet<IfName>,
    /// Whether the table is there; and the ports in it.
    table: bool,
    elements: BTreeSet<PublishedPort>,
    routes: Vec<(IpNet, String)>,
    listeners: Vec<(Protocol, u16)>,
    readers: Vec<mpsc::Sender<NetworkEvent>>,
}

impl FakeNetworks {
    /// A node without networks.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a route of the node that subnets must not overlap.
    pub fn add_route(&self, destination: IpNet, link: &str) {
        self.lock().routes.push((destination, link.to_owned()));
    }

    /// Lets a program of the node listen.
    pub fn add_listener(&self, protocol: Protocol, port: u16) {
        self.lock().listeners.push((protocol, port));
    }

    /// Removes a bridge or host link as another hand would, and tells it.
    pub fn break_link(&self, link: &IfName) {
        let mut state = self.lock();
        state.links.remove(link);
        state.publish(&NetworkEvent::Link(link.clone()));
    }

    /// Removes our table as another hand would, and tells it.
    pub fn break_rules(&self) {
        let mut state = self.lock();
        state.table = false;
        state.elements.clear();
        state.publish(&NetworkEvent::Table);
    }

    /// Links that are there: bridges and host links.
    pub fn links(&self) -> Vec<IfName> {
        self.lock().links.iter().cloned().collect()
    }

    /// Whether our table is there.
    pub fn has_rules(&self) -> bool {
        self.lock().table
    }
}

impl State {
    fn publish(&mut self, event: &NetworkEvent) {
        self.readers.retain(|reader| {
            let _ = reader.try_send(event.clone());
            !reader.is_closed()
        });
    }

    fn sync_rules(&mut self) -> bool {
        let wanted: BTreeSet<PublishedPort> = self.book.ports.values().flatten().cloned().collect();
        let needed = !self.book.networks.is_empty() || !wanted.is_empty();
        let repaired = needed && (!self.table || self.elements != wanted);
        self.table = needed;
        self.elements = wanted;
        repaired
    }

    fn set_ports(&mut self, sandbox: &SandboxId, ports: &[PublishedPort]) {
        if ports.is_empty() {
            self.book.ports.remove(sandbox);
        } else {
            self.book.ports.insert(sandbox.clone(), ports.to_vec());
        }
        self.sync_rules();
    }

    fn attachments(&self, only: Option<&SandboxId>) -> Vec<Attachment> {
        let places = self.book.places.values().filter(|place| only.is_none_or(|only| place.spec.sandbox == *only));
        let complete = |link: &IfName, bridge: &IfName| self.links.contains(link) && self.links.contains(bridge);
        places.map(|p| self.book.attachment(p, complete(&p.host_link(), &bridge_name(&p.spec.network)))).collect()
    }

    fn ports(&self, only: Option<&SandboxId>) -> Vec<(SandboxId, PublishedPort, bool)> {
        let owners = self.book.ports.iter().filter(|(sandbox, _)| only.is_none_or(|only| only == *sandbox));
        owners.flat_map(|(s, ports)| ports.iter().map(|p| (s.clone(), p.clone(), self.elements.contains(p)))).collect()
    }
}

#[async_trait]
impl Networks for FakeNetworks {
    async fn list_networks(&self) -> Result<Vec<Network>, Error> {
        let state = self.lock();
        let network = |spec: &NetworkSpec| {
            let link = spec.driver.parent().cloned().unwrap_or_else(|| bridge_name(&spec.key));
            Network { spec: spec.clone(), complete: state.table && state.links.contains(&link), link }
        };
        Ok(state.book.networks.values().map(network).collect())
    }

    async fn ensure_network(&self, spec: &NetworkSpec) -> Result<Network, Error> {
        let mut state = self.lock();
        state.book.check_network(spec)?;
        for subnet in &spec.subnets {
            if let Some((route, link)) = state.routes.iter().find(|(route, _)| ipam::overlap(route, &subnet.cidr)) {
                let other = format!("route {route} on {link}");
                return Err(Error::Overlap { network: spec.key.clone(), subnet: subnet.cidr, other });
            }
        }
        let link = spec.driver.parent().cloned().unwrap_or_else(|| bridge_name(&spec.key));
        state.book.networks.insert(spec.key.clone(), spec.clone());
        state.links.insert(link.clone());
        state.sync_rules();
        Ok(Network { spec: spec.clone(), link, complete: true })
    }

    async fn remove_network(&self, key: &NetworkKey) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(place) = state.book.places_in(key).next() {
            let message = format!("sandbox {} is still attached: detach it first", place.spec.sandbox);
            return Err(Error::Unsupported { network: key.clone(), message });
        }
        state.book.networks.remove(key);
        state.links.remove(&bridge_name(key));
        state.sync_rules();
        Ok(())
    }

    async fn free_subnet(&self) -> Result<IpNet, Error> {
        let state = self.lock();
        let taken: Vec<IpNet> = state.routes.iter().map(|(route, _)| *route).collect();
        state.book.free_subnet(&taken).ok_or_else(|| Error::Io {
            doing: "choosing a subnet".to_owned(),
            source: std::io::Error::other("every candidate is taken"),
        })
    }

    async fn list_attachments(&self) -> Result<Vec<Attachment>, Error> {
        Ok(self.lock().attachments(None))
    }

    async fn attachments_of(&self, sandbox: &SandboxId) -> Result<Vec<Attachment>, Error> {
        Ok(self.lock().attachments(Some(sandbox)))
    }

    async fn ports_of(&self, sandbox: &SandboxId) -> Result<Vec<(PublishedPort, bool)>, Error> {
        Ok(self.lock().ports(Some(sandbox)).into_iter().map(|(_, port, there)| (port, there)).collect())
    }

    async fn attach(&self, spec: &AttachSpec) -> Result<Attachment, Error> {
        let mut state = self.lock();
        let place = state.book.find_place(spec)?;
        state.links.insert(bridge_name(&spec.network));
        state.links.insert(place.host_link());
        state.book.places.insert((spec.sandbox.clone(), spec.network.clone()), place.clone());
        Ok(state.book.attachment(&place, true))
    }

    async fn detach(&self, sandbox: &SandboxId, network: &NetworkKey) -> Result<(), Error> {
        let mut state = self.lock();
        let Some(place) = state.book.places.remove(&(sandbox.clone(), network.clone())) else { return Ok(()) };
        state.links.remove(&place.host_link());
        let gone: Vec<IpAddr> = place.addresses.iter().map(IpNet::addr).collect();
        let mut ports = state.book.ports.get(sandbox).cloned().unwrap_or_default();
        ports.retain(|port| !gone.contains(&port.target_ip));
        state.set_ports(sandbox, &ports);
        Ok(())
    }

    async fn detach_all(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let mut state = self.lock();
        let hosts: Vec<IfName> = state.book.places_of(sandbox).map(book::Place::host_link).collect();
        state.links.retain(|link| !hosts.contains(link));
        state.book.places.retain(|(owner, _), _| owner != sandbox);
        state.book.names.remove(sandbox);
        state.set_ports(sandbox, &[]);
        Ok(())
    }

    async fn set_ports(&self, sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        self.take_ports(&[], sandbox, ports).await
    }

    async fn take_ports(&self, from: &[SandboxId], sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        let mut state = self.lock();
        state.book.check_ports_without(from, sandbox, ports)?;
        if let Some(port) = ports.iter().find(|port| state.listeners.contains(&(port.protocol, port.host_port))) {
            return Err(Error::PortTaken {
                host_ip: book::host_ip(port),
                host_port: port.host_port,
                protocol: port.protocol,
                owner: "a listener on the node".to_owned(),
            });
        }
        for other in from.iter().filter(|other| *other != sandbox) {
            state.book.ports.remove(other);
        }
        state.set_ports(sandbox, ports);
        Ok(())
    }

    async fn list_ports(&self) -> Result<Vec<(SandboxId, PublishedPort, bool)>, Error> {
        Ok(self.lock().ports(None))
    }

    async fn set_names(&self, changes: &[(SandboxId, Option<Names>)]) -> Result<(), Error> {
        self.lock().book.set_names(changes);
        Ok(())
    }

    async fn list_names(&self) -> Result<BTreeMap<SandboxId, Names>, Error> {
        Ok(self.lock().book.names.clone())
    }

    async fn repair_rules(&self) -> Result<bool, Error> {
        Ok(self.lock().sync_rules())
    }

    async fn remove_rules(&self) -> Result<(), Error> {
        self.lock().sync_rules();
        Ok(())
    }

    fn events(&self) -> mpsc::Receiver<NetworkEvent> {
        let (sender, receiver) = mpsc::channel(256);
        // A fresh channel has room.
        let _ = sender.try_send(NetworkEvent::Resync);
        self.lock().readers.push(sender);
        receiver
    }
}
