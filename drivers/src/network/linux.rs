//! The kernel-backed [`Networks`]: a handle on the one thread that owns the node's network state.
//!
//! Netlink is synchronous and serialised by the kernel's own lock, so one thread that does one thing after the other
//! loses no speed, and no async thread ever blocks or changes its namespace.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::cni::Attaching;
use super::events::{Listener, Watched};
use super::node::{Node, failed};
use super::sysctl::ChangedSysctl;
use super::{AttachSpec, Attachment, Error, Names, Network, NetworkEvent, NetworkSpec, Networks, PublishedPort};
use crate::ids::{NetworkKey, SandboxId};

type Job = Box<dyn FnOnce(&mut Node) + Send>;

/// Networks of this node's kernel. Clones share one worker.
///
/// The network namespace it works in is that of the thread that calls [`LinuxNetworks::new`].
#[derive(Clone)]
pub struct LinuxNetworks {
    jobs: Sender<Job>,
    watched: Watched,
    _listener: Arc<Listener>,
}

impl LinuxNetworks {
    /// Reads the records in `<run_dir>/network/`, which it makes, and starts the worker and the listener. Touches
    /// no link and no rule: what is missing is repaired by [`Networks::ensure_network`] and [`Networks::attach`].
    pub fn new(run_dir: &Path) -> Result<Self, Error> {
        let watched = Watched::default();
        let mut node = Node::open(&run_dir.join("network"), watched.clone())?;
        let own_ports = vec![node.links.port(), node.table.port()];
        let listener = Listener::start(watched.clone(), own_ports).map_err(failed("listening for network events"))?;
        let (jobs, inbox) = channel::<Job>();
        std::thread::Builder::new()
            .name("net-worker".into())
            .spawn(move || inbox.into_iter().for_each(|job| job(&mut node)))
            .map_err(failed("starting the network worker"))?;
        Ok(Self { jobs, watched, _listener: Arc::new(listener) })
    }

    /// Kernel parameters that were changed since the start, for reports.
    pub async fn changed_sysctls(&self) -> Result<Vec<ChangedSysctl>, Error> {
        self.run(|node| Ok(node.changed_sysctls.clone())).await
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let ended = || failed("asking the network worker")(std::io::Error::other("its thread has ended"));
        // A caller that went away does not want the answer; the work is done all the same.
        let job = Box::new(move |node: &mut Node| drop(reply.send(work(node))));
        self.jobs.send(job).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl LinuxNetworks {
    /// Detaches a sandbox from one or all networks, without keeping the worker busy while the kernel waits.
    pub(super) async fn leave(&self, sandbox: &SandboxId, network: Option<NetworkKey>) -> Result<(), Error> {
        let leaving = sandbox.clone();
        let departure = self.run(move |node| node.begin_detach(&leaving, network.as_ref())).await?;
        for place in &departure.plugged {
            super::cni::unplug(place).await?;
        }
        let networks = tokio::task::spawn_blocking(move || departure.delete_links())
            .await
            .map_err(|join| failed("removing links")(std::io::Error::other(join)))??;
        let sandbox = sandbox.clone();
        self.run(move |node| node.end_detach(&sandbox, networks)).await
    }
}

#[async_trait]
impl Networks for LinuxNetworks {
    async fn list_networks(&self) -> Result<Vec<Network>, Error> {
        self.run(Node::list_networks).await
    }

    async fn ensure_network(&self, spec: &NetworkSpec) -> Result<Network, Error> {
        let wanted = spec.clone();
        let network = self.run(move |node| node.ensure_network(&wanted)).await?;
        self.audit_plugins(spec).await?;
        Ok(network)
    }

    async fn remove_network(&self, key: &NetworkKey) -> Result<(), Error> {
        let key = key.clone();
        self.run(move |node| node.remove_network(&key)).await
    }

    async fn free_subnet(&self) -> Result<IpNet, Error> {
        self.run(Node::free_subnet).await
    }

    async fn list_attachments(&self) -> Result<Vec<Attachment>, Error> {
        self.run(|node| node.list_attachments(None)).await
    }

    async fn attachments_of(&self, sandbox: &SandboxId) -> Result<Vec<Attachment>, Error> {
        let sandbox = sandbox.clone();
        self.run(move |node| node.list_attachments(Some(&sandbox))).await
    }

    async fn recorded_of(&self, sandbox: &SandboxId) -> Result<Vec<Attachment>, Error> {
        let sandbox = sandbox.clone();
        self.run(move |node| {
            Ok(node.book.places_of(&sandbox).map(|place| node.book.attachment(place, false)).collect())
        })
        .await
    }

    async fn ports_of(&self, sandbox: &SandboxId) -> Result<Vec<(PublishedPort, bool)>, Error> {
        let sandbox = sandbox.clone();
        let ports = self.run(move |node| node.list_ports(Some(&sandbox))).await?;
        Ok(ports.into_iter().map(|(_, port, there)| (port, there)).collect())
    }

    async fn attach(&self, spec: &AttachSpec) -> Result<Attachment, Error> {
        let spec = spec.clone();
        match self.run(move |node| node.attach(&spec)).await? {
            Attaching::Done(attachment) => Ok(*attachment),
            Attaching::Plugins(place, before) => self.plug(*place, before.map(|before| *before)).await,
        }
    }

    async fn detach(&self, sandbox: &SandboxId, network: &NetworkKey) -> Result<(), Error> {
        self.leave(sandbox, Some(network.clone())).await
    }

    async fn detach_all(&self, sandbox: &SandboxId) -> Result<(), Error> {
        self.leave(sandbox, None).await
    }

    async fn set_ports(&self, sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        let (sandbox, ports) = (sandbox.clone(), ports.to_vec());
        self.run(move |node| node.set_ports(&sandbox, &ports)).await
    }

    async fn take_ports(&self, from: &[SandboxId], sandbox: &SandboxId, ports: &[PublishedPort]) -> Result<(), Error> {
        let (from, sandbox, ports) = (from.to_vec(), sandbox.clone(), ports.to_vec());
        self.run(move |node| node.take_ports(&from, &sandbox, &ports)).await
    }

    async fn list_ports(&self) -> Result<Vec<(SandboxId, PublishedPort, bool)>, Error> {
        self.run(|node| node.list_ports(None)).await
    }

    async fn set_names(&self, changes: &[(SandboxId, Option<Names>)]) -> Result<(), Error> {
        let changes = changes.to_vec();
        self.run(move |node| node.set_names(&changes)).await
    }

    async fn list_names(&self) -> Result<BTreeMap<SandboxId, Names>, Error> {
        self.run(|node| Ok(node.book.names.clone())).await
    }

    async fn repair_rules(&self) -> Result<bool, Error> {
        self.run(Node::repair_rules).await
    }

    async fn remove_rules(&self) -> Result<(), Error> {
        self.run(Node::remove_rules).await
    }

    fn events(&self) -> mpsc::Receiver<NetworkEvent> {
        self.watched.subscribe()
    }
}
