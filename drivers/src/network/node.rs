//! The one owner of the node's network state: the book, its records on disk, and the sockets to the kernel. Lives
//! on the worker thread; every method is synchronous.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use ipnet::IpNet;

use super::book::{Book, tunnel_name, vlan_name};
use super::dns::{NameServer, View};
use super::events::{Role, Watched};
use super::link::{Link, Links};
use super::netlink::Refused;
use super::nft::{self, Table};
use super::records::{Kind, Records};
use super::sysctl::ChangedSysctl;
use super::{Driver, Error, Names, Network, NetworkSpec, bridge_name, ipam};
use crate::ids::{NetworkKey, SandboxId};

/// See the module's documentation.
pub(super) struct Node {
    pub(super) book: Book,
    pub(super) records: Records,
    pub(super) links: Links,
    pub(super) table: Table,
    pub(super) watched: Watched,
    pub(super) changed_sysctls: Vec<ChangedSysctl>,
    /// Attachments whose links are being removed beside the worker.
    pub(super) leaving: HashSet<(SandboxId, NetworkKey)>,
    /// Attachments that plugins found damaged.
    pub(super) doubted: HashSet<(SandboxId, NetworkKey)>,
    pub(super) name_server: NameServer,
}

/// A netlink refusal with what was being done.
pub(super) fn refused(doing: impl Into<String>) -> impl FnOnce(Refused) -> Error {
    let doing = doing.into();
    move |source| Error::Netlink { doing, source: Box::new(source) }
}

/// An I/O error with what was being done.
pub(super) fn failed(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let doing = doing.into();
    move |source| Error::Io { doing, source }
}

/// Published ports as recorded.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct PortsRecord {
    pub(super) sandbox: SandboxId,
    pub(super) ports: Vec<super::PublishedPort>,
    /// Sandboxes that had these ports before: what is still on record of them is of no value any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) taken_from: Vec<SandboxId>,
}

/// What a sandbox is called, as recorded.
#[derive(serde::Serialize, serde::Deserialize)]
struct NamesRecord {
    sandbox: SandboxId,
    names: Names,
}

/// What the kernel has at one moment.
pub(super) struct Snapshot {
    pub(super) links: HashMap<String, Link>,
    pub(super) addresses: Vec<(u32, IpNet)>,
}

/// The elements that our tables should hold.
fn wanted_elements(book: &Book) -> nft::Elements {
    let guarded = book.places.values().filter(|place| book.is_guarded(place));
    nft::elements(book.networks.values(), guarded, book.ports.values().flatten())
}

impl Node {
    /// Opens the sockets in the calling thread's network namespace and reads the records.
    pub(super) fn open(dir: &Path, watched: Watched) -> Result<Self, Error> {
        let records = Records::open(dir).map_err(failed(format!("opening the records in {}", dir.display())))?;
        let mut node = Self {
            book: Book::default(),
            records,
            links: Links::open().map_err(failed("opening a netlink socket for links"))?,
            table: Table::open().map_err(failed("opening a netlink socket for nftables"))?,
            watched,
            changed_sysctls: Vec::new(),
            leaving: HashSet::new(),
            doubted: HashSet::new(),
            name_server: NameServer::new(),
        };
        node.read_records().map_err(failed(format!("reading the records in {}", dir.display())))?;
        let snapshot = node.snapshot()?;
        let plugged = |spec: &NetworkSpec| matches!(spec.driver, Driver::Cni(_));
        for spec in node.book.networks.values().filter(|spec| !plugged(spec)) {
            let name = spec.driver.parent().cloned().unwrap_or_else(|| bridge_name(&spec.key));
            let index = snapshot.links.get(name.as_str()).map_or(0, |link| link.index);
            let role = if spec.driver.parent().is_some() { Role::Parent(index) } else { Role::Bridge(index) };
            node.watched.expect(&name, role);
            if matches!(spec.driver, Driver::Vxlan(_)) {
                node.watched.expect(&tunnel_name(&spec.key), Role::Member(name.clone()));
            }
            if spec.vlan.is_some() {
                node.watched.expect(&vlan_name(&spec.key), Role::Member(name));
            }
        }
        for place in node.book.places.values().filter(|place| node.book.has_port(place)) {
            node.watched.expect(&place.host_link(), Role::Port);
        }
        // What ran before is answered for again before anybody looks at it.
        node.publish_names();
        for spec in node.book.networks.values().cloned().collect::<Vec<_>>() {
            if let Err(error) = node.listen_for_names(&spec) {
                tracing::warn!(network = %spec.key, error = &error as &dyn std::error::Error, "names are not answered yet");
            }
        }
        Ok(node)
    }

    fn read_records(&mut self) -> std::io::Result<()> {
        for spec in self.records.read_all::<NetworkSpec>(Kind::Networks)? {
            self.book.networks.insert(spec.key.clone(), spec);
        }
        for place in self.records.read_all::<super::book::Place>(Kind::Attachments)? {
            self.book.places.insert((place.spec.sandbox.clone(), place.spec.network.clone()), place);
        }
        for record in self.records.read_all::<NamesRecord>(Kind::Names)? {
            self.book.names.insert(record.sandbox, record.names);
        }
        let mut superseded = Vec::new();
        for record in self.records.read_all::<PortsRecord>(Kind::Ports)? {
            superseded.extend(record.taken_from);
            self.book.ports.insert(record.sandbox, record.ports);
        }
        // A move of ports was cut short after it had been decided.
        for sandbox in superseded {
            if self.book.ports.remove(&sandbox).is_some() {
                self.records.remove(Kind::Ports, sandbox.as_str())?;
            }
        }
        Ok(())
    }

    /// All links and addresses of the node.
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let links = self.links.list().map_err(refused("listing links"))?;
        let addresses = self.links.addresses().map_err(refused("listing addresses"))?;
        Ok(Snapshot { links: links.into_iter().map(|link| (link.name.clone(), link)).collect(), addresses })
    }

    /// Whether a table is needed at all.
    pub(super) fn needs_table(&self) -> bool {
        let bridges = || self.book.networks.values().any(|network| network.driver.has_bridge());
        !self.book.ports.is_empty() || bridges()
    }

    /// Puts our table in order, which may mean that there is none. Returns whether it was not in order.
    pub(super) fn sync_table(&mut self) -> Result<bool, Error> {
        if !self.needs_table() {
            let removing = refused(format!("removing nftables table {}", nft::TABLE));
            return self.table.remove().map(|()| false).map_err(removing);
        }
        let wanted = wanted_elements(&self.book);
        match self.table.sync(&wanted) {
            // Somebody else was at it between our look and our write.
            Err(Refused { errno: libc::ENOENT | libc::EEXIST | libc::EBUSY | libc::ERESTART, .. }) => {
                self.table.sync(&wanted)
            }
            other => other,
        }
        .map_err(refused(format!("writing nftables table {}", nft::TABLE)))
    }

    /// Changes elements of our table, after the book. Costs the same however many there are.
    pub(super) fn change_table(&mut self, remove: Vec<nft::Member>, add: Vec<nft::Member>) -> Result<(), Error> {
        if remove.is_empty() && add.is_empty() {
            return Ok(());
        }
        if !self.needs_table() {
            return self.sync_table().map(|_| ());
        }
        let Self { book, table, .. } = self;
        match table.change(remove, add, || wanted_elements(book)) {
            // Somebody else was at it between our look and our write, or the table is damaged: all of it is looked at.
            Err(_) => self.sync_table().map(|_| ()),
            Ok(_) => Ok(()),
        }
    }

    /// See [`super::Networks::list_networks`].
    pub(super) fn list_networks(&mut self) -> Result<Vec<Network>, Error> {
        let snapshot = self.snapshot()?;
        let wanted = wanted_elements(&self.book);
        let rules = !self.needs_table()
            || self.table.is_intact(&wanted).map_err(refused(format!("reading nftables table {}", nft::TABLE)))?;
        let network = |spec: &NetworkSpec| Network {
            spec: spec.clone(),
            link: spec.driver.parent().cloned().unwrap_or_else(|| bridge_name(&spec.key)),
            complete: rules && super::bridge::is_complete(spec, &snapshot),
        };
        Ok(self.book.networks.values().map(network).collect())
    }

    /// See [`super::Networks::free_subnet`].
    pub(super) fn free_subnet(&mut self) -> Result<IpNet, Error> {
        let routes = self.links.routes().map_err(refused("listing routes"))?;
        let taken: Vec<IpNet> =
            routes.iter().map(|route| route.destination).filter(|net| net.prefix_len() > 0).collect();
        self.book.free_subnet(&taken).ok_or_else(|| Error::Io {
            doing: "choosing a subnet".to_owned(),
            source: std::io::Error::other("every /24 of 10.89.0.0/16 to 10.99.0.0/16 overlaps a route or a network"),
        })
    }

    /// See [`super::Networks::set_names`].
    pub(super) fn set_names(&mut self, changes: &[(SandboxId, Option<Names>)]) -> Result<(), Error> {
        let changed = self.book.set_names(changes);
        if changed.is_empty() {
            return Ok(());
        }
        // Nobody is promised anything by a name, so it is answered first: a record only matters to the next agent.
        self.publish_names();
        for sandbox in changed {
            let path = self.records.path(Kind::Names, sandbox.as_str());
            match self.book.names.get(&sandbox) {
                Some(names) => {
                    let record = NamesRecord { sandbox: sandbox.clone(), names: names.clone() };
                    let writing = failed(format!("writing {}", path.display()));
                    self.records.write(Kind::Names, sandbox.as_str(), &record).map_err(writing)?;
                }
                None => {
                    let removing = failed(format!("removing {}", path.display()));
                    self.records.remove(Kind::Names, sandbox.as_str()).map_err(removing)?;
                }
            }
        }
        Ok(())
    }

    /// Lets the name server know what the book says.
    pub(super) fn publish_names(&self) {
        self.name_server.publish(View::new(&self.book));
    }

    /// Answers names on the network's gateways, or not, as it says.
    pub(super) fn listen_for_names(&mut self, spec: &NetworkSpec) -> Result<(), Error> {
        let gateways = if spec.dns.enabled { spec.subnets.iter().map(ipam::gateway).collect() } else { Vec::new() };
        self.name_server.listen(&spec.key, &gateways).map_err(|refusal| Error::Io {
            doing: format!(
                "listening on {} port 53 to answer names (another name server may have it: let it listen on its own addresses only, or set dns.enabled to false)",
                refusal.address
            ),
            source: refusal.source,
        })
    }

    /// See [`super::Networks::repair_rules`].
    pub(super) fn repair_rules(&mut self) -> Result<bool, Error> {
        self.sync_table()
    }

    /// See [`super::Networks::remove_rules`].
    pub(super) fn remove_rules(&mut self) -> Result<(), Error> {
        if !self.needs_table() {
            self.sync_table()?;
            self.records.remove_if_empty();
        }
        Ok(())
    }

    /// The network's record.
    pub(super) fn network(&self, key: &NetworkKey) -> Result<&NetworkSpec, Error> {
        self.book.networks.get(key).ok_or_else(|| Error::NotFound(key.clone()))
    }
}
