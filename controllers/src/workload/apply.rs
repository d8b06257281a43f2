//! Carries out a plan, step by step: the only writer of a workload's things on the node.
//!
//! Every step may be repeated, and a crash between any two leaves something that the next observation sees: the
//! sandbox writes its record before it acquires anything, the network its addresses, the runtime its container
//! record. The first failing step ends the execution; the steps before it stay done.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::runtime::events::EventType;
use nodelet_crds::workload::Workload;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::cgroups::{self, Budgets, Cgroups, Limits};
use nodelet_drivers::failpoint::passed;
use nodelet_drivers::ids::{ContainerId, IfName, NetworkKey, SandboxId};
use nodelet_drivers::network::{self, AttachSpec, Attachment};
use nodelet_drivers::runtime;
use nodelet_drivers::sandbox::{self, EtcPaths, NetNamespace, Sandbox};
use nodelet_drivers::volumes;

use super::hooks;
use super::model::{Desired, VolumeWish};
use super::plan::{DRAIN, Plan, Step, Why, published_ports};
use crate::context::{Context, chain};
use crate::resource_limit;

/// A step failed. The message says which; the cause is the driver's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container could not be made, started, stopped or removed.
    #[error("container {container}: {doing}")]
    Runtime {
        /// The container's name in the workload, or its id.
        container: String,
        /// What we were doing.
        doing: &'static str,
        /// The driver's error.
        #[source]
        source: runtime::Error,
    },
    /// The sandbox could not be made or removed.
    #[error("making the sandbox")]
    Sandbox(#[source] sandbox::Error),
    /// The network could not be attached or a port published.
    #[error("{doing}")]
    Network {
        /// What we were doing.
        doing: String,
        /// The driver's error.
        #[source]
        source: network::Error,
    },
    /// A volume could not be provided.
    #[error("volume {volume}")]
    Volume {
        /// Its name in the workload.
        volume: String,
        /// The driver's error.
        #[source]
        source: volumes::Error,
    },
    /// An image could not be shown in a volume.
    #[error("volume {volume}")]
    Image {
        /// Its name in the workload.
        volume: String,
        /// The driver's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The workload's cgroup could not be made or removed.
    #[error("making the cgroup")]
    Cgroup(#[source] nodelet_drivers::cgroups::Error),
    /// The time of its real-time processes could not be divided.
    #[error("resources.realtime")]
    Realtime(#[source] nodelet_drivers::cgroups::Error),
    /// A name derived from the workload is not usable.
    #[error("deriving a name")]
    Name(#[from] nodelet_drivers::ids::InvalidId),
    /// A hook failed.
    #[error("container {container}: the postStart hook failed: {why}")]
    Hook {
        /// The container.
        container: String,
        /// In words, with the beginning of its output.
        why: String,
    },
}

impl Error {
    /// The revision itself is at fault, as far as one can see: the node and its runtime are not.
    pub fn is_of_the_revision(&self) -> bool {
        matches!(self.reason(), reasons::RUN_CONTAINER_ERROR | reasons::INVALID_SPEC | reasons::POST_START_HOOK_FAILED)
    }

    /// The reason constant for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Runtime { source: runtime::Error::Unavailable { .. }, .. } => reasons::CONTAINERD_UNAVAILABLE,
            Self::Runtime { source: runtime::Error::Invalid { .. }, .. } => reasons::INVALID_SPEC,
            Self::Runtime { .. } => reasons::RUN_CONTAINER_ERROR,
            Self::Realtime(cgroups::Error::NoRealtime { .. }) => reasons::INSUFFICIENT_RESOURCES,
            Self::Sandbox(_) | Self::Cgroup(_) | Self::Realtime(_) | Self::Name(_) => reasons::SANDBOX_FAILED,
            Self::Network { source: network::Error::PortTaken { .. }, .. } => reasons::PORT_CONFLICT,
            Self::Network { source: network::Error::Exhausted { .. }, .. } => reasons::ADDRESS_UNAVAILABLE,
            Self::Network { .. } => reasons::NETWORK_FAILED,
            Self::Volume { .. } | Self::Image { .. } => reasons::MOUNT_FAILED,
            Self::Hook { .. } => reasons::POST_START_HOOK_FAILED,
        }
    }
}

mod mounts;
mod start;

use start::Start;

/// Executes `plan` for `desired`.
pub async fn apply(ctx: &Arc<Context>, object: &Workload, desired: &Arc<Desired>, plan: &Plan) -> Result<(), Error> {
    let applier = Applier { ctx, object, desired, has_cgroup: AtomicBool::new(false) };
    for step in &plan.steps {
        applier.step(step).await?;
        passed("a step of a plan");
    }
    Ok(())
}

struct Applier<'a> {
    ctx: &'a Arc<Context>,
    object: &'a Workload,
    desired: &'a Arc<Desired>,
    /// The workload's cgroup is known to be there.
    has_cgroup: AtomicBool,
}

impl Applier<'_> {
    async fn step(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Ask { id, why } => self.ask(id, *why).await,
            Step::Kill { id } => {
                self.on_container(id, "killing", self.ctx.drivers.runtime.kill(id, "SIGKILL", true)).await
            }
            Step::Remove { id } => {
                self.on_container(id, "removing", self.ctx.drivers.runtime.remove(id)).await?;
                self.ctx.stops.forget(id);
                self.ctx.resizes.forget(id);
                self.ctx.written.forget_container(id);
                Ok(())
            }
            Step::Teardown { id } => {
                self.has_cgroup.store(false, Ordering::Relaxed);
                teardown(self.ctx, id).await
            }
            Step::EnsureSandbox => self.ensure_sandbox().await,
            Step::Attach { network } => self.attach(network).await.map(|_| ()),
            Step::Detach { network } => self
                .ctx
                .drivers
                .networks
                .detach(&self.desired.sandbox.spec.id, network)
                .await
                .map_err(|source| Error::Network { doing: format!("detaching from network {network}"), source }),
            Step::SetPorts => self.take_ports(&[]).await,
            Step::TakePorts { from } => self.take_ports(from).await,
            Step::WriteFiles => self.write_files().await,
            Step::Start { container, init, attempt, restarts, failures, image, digest, volumes } => {
                let list = if *init { &self.desired.init } else { &self.desired.containers };
                let Some(wish) = list.iter().find(|wish| wish.name == *container) else { return Ok(()) };
                let start = Start {
                    wish,
                    init: *init,
                    attempt: *attempt,
                    restarts: *restarts,
                    failures: *failures,
                    image,
                    digest,
                    volumes,
                };
                self.start(&start).await
            }
            Step::Signal { id, content } => {
                self.on_container(id, "signalling", self.ctx.drivers.runtime.kill(id, "SIGHUP", false)).await?;
                self.ctx.written.tell(id, content.clone());
                let note = format!("Sent SIGHUP to container {}: its files changed", self.container_name(id));
                self.ctx.event(self.object, EventType::Normal, reasons::UPDATED, note).await;
                Ok(())
            }
            Step::UpdateLimits { id, limits } => self.update_limits(id, limits).await,
        }
    }

    /// What cannot be done, or not yet, keeps nothing else of the workload waiting: the container runs on as before.
    async fn update_limits(&self, id: &ContainerId, limits: &Limits) -> Result<(), Error> {
        let doing = "changing the limits of";
        let (resizes, name) = (&self.ctx.resizes, self.container_name(id));
        let mut result = Ok(());
        if let Err(error) = self.divide_realtime().await {
            let message = format!("container {name}: {}", chain(&error));
            let is_short = error.reason() == reasons::INSUFFICIENT_RESOURCES;
            resizes.retry(id, limits, if is_short { reasons::DEFERRED } else { reasons::ERROR }, message);
            return Ok(());
        }
        match self.ctx.drivers.runtime.update_limits(id, limits).await {
            Ok(None) => {
                resizes.forget(id);
                let note = format!("Changed the limits of container {name} in place");
                self.ctx.event(self.object, EventType::Normal, reasons::RESIZE_COMPLETED, note).await;
            }
            Ok(Some(excess)) => {
                let message = format!("container {name}: {excess}");
                resizes.retry(id, limits, reasons::ABOVE_LIMIT, message);
            }
            Err(error @ runtime::Error::Invalid { .. }) => {
                let message = format!("container {name}: {}", chain(&error));
                resizes.refuse(id, limits, reasons::INFEASIBLE, message);
            }
            Err(error @ runtime::Error::Failed { .. }) => {
                let message = format!("container {name}: {}", chain(&error));
                resizes.retry(id, limits, reasons::ERROR, message);
            }
            Err(error) => result = Err(error),
        }
        // What it has no more is free above, too.
        if let Err(error) = self.divide_realtime().await {
            tracing::warn!(container = %id, "{}", chain(&error));
        }
        self.on_container(id, doing, async { result }).await
    }

    /// Runs one call about a container and reads the container afterwards, whatever came of it.
    async fn on_container(
        &self,
        id: &ContainerId,
        doing: &'static str,
        call: impl Future<Output = Result<(), runtime::Error>>,
    ) -> Result<(), Error> {
        let result = call.await;
        let refreshed = self.ctx.containers.refresh(id).await;
        result.and(refreshed.map(|_| ())).map_err(|source| Error::Runtime { container: id.to_string(), doing, source })
    }

    async fn ask(&self, id: &ContainerId, why: Why) -> Result<(), Error> {
        self.ctx.stops.begin(id);
        let name = self.container_name(id);
        let note = match why {
            Why::NotWanted => format!("Stopping container {name}"),
            Why::Changed => format!("Stopping container {name}: its specification changed"),
            Why::Unhealthy => format!("Container {name} failed its liveness or startup probe and will be restarted"),
            Why::SandboxChanged => format!("Stopping container {name}: its network or namespaces changed"),
            Why::GivenUp => format!("Stopping container {name}: the workload has failed"),
            Why::Finished => format!("Stopping container {name}: the workload has ended"),
            Why::Superseded => format!("Stopping container {name}: its successor has taken over"),
        };
        let (type_, reason) = match why {
            Why::Unhealthy => (EventType::Warning, reasons::UNHEALTHY),
            _ => (EventType::Normal, reasons::KILLING),
        };
        self.ctx.event(self.object, type_, reason, note).await;
        let hooks::PreStop { hook, sandbox, ports } = hooks::pre_stop(self.ctx, self.object, self.desired, id);
        let drain = if why == Why::Superseded { DRAIN } else { Duration::ZERO };
        if hook.is_none() && drain.is_zero() {
            return send_stop(self.ctx, id).await.map_err(|source| Error::Runtime {
                container: name,
                doing: "stopping",
                source,
            });
        }
        // The hook may take the whole grace period; the workload's reconcile must not wait for it. If we are
        // killed meanwhile, the next start asks again.
        let (ctx, id, grace, object) = (self.ctx.clone(), id.clone(), self.desired.grace, self.object.clone());
        self.ctx.tasks.spawn(async move {
            // What was on its way to it still arrives.
            tokio::time::sleep(drain).await;
            if let (Some(hook), Some(sandbox)) = (hook, sandbox) {
                let target = hooks::target(&ctx.drivers, &id, &sandbox, &ports).await;
                if let Err(why) = hooks::run(&ctx.drivers, &target, &hook, grace).await {
                    tracing::warn!(container = %id, why, "preStop hook failed");
                    let note = format!("Container {name}: the preStop hook failed: {why}");
                    ctx.event(&object, EventType::Warning, reasons::PRE_STOP_HOOK_FAILED, note).await;
                }
            }
            if let Err(error) = send_stop(&ctx, &id).await {
                tracing::warn!(container = %id, error = %chain(&error), "stopping failed; it is killed after its grace period");
            }
        });
        Ok(())
    }

    fn container_name(&self, id: &ContainerId) -> String {
        let all = self.ctx.containers.of_workload(self.object.metadata.uid.as_deref().unwrap_or_default());
        all.unwrap_or_default()
            .iter()
            .find(|c| c.id == *id)
            .and_then(|c| c.labels.get(labels::CONTAINER).cloned())
            .unwrap_or_else(|| id.to_string())
    }

    async fn ensure_sandbox(&self) -> Result<(), Error> {
        let wish = &self.desired.sandbox;
        self.ctx.sandboxes.remember(self.object.metadata.uid.as_deref().unwrap_or_default(), &wish.spec.id);
        // Its record first: by it everything else is found again, also when another revision is wanted by then.
        self.ctx.drivers.sandboxes.ensure(&wish.spec).await.map_err(Error::Sandbox)?;
        self.ensure_cgroup().await
    }

    async fn ensure_cgroup(&self) -> Result<(), Error> {
        if self.has_cgroup.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (cgroups, path) = (self.ctx.drivers.cgroups.clone(), self.desired.cgroup.clone());
        crate::blocking(move || cgroups.ensure(&path, &Limits::default())).await.map_err(Error::Cgroup)?;
        passed("making the cgroup of a workload");
        self.has_cgroup.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the cgroup of the workload the time that is declared for real-time processes of its containers.
    async fn divide_realtime(&self) -> Result<(), Error> {
        let (cgroups, path) = (self.ctx.drivers.cgroups.clone(), self.desired.cgroup.clone());
        let (least, declared) = (self.desired.realtime(), resource_limit::realtime::budgets(self.ctx));
        crate::blocking(move || cgroups.divide_realtime(&path, least, &declared)).await.map_err(Error::Realtime)
    }

    async fn attach(&self, network: &NetworkKey) -> Result<Attachment, Error> {
        let wish = &self.desired.sandbox;
        let doing = || format!("attaching to network {network}");
        let sandbox = self.sandbox().await?;
        let (Some(index), Some(netns)) = (wish.attachments.iter().position(|a| a.network == *network), sandbox.netns)
        else {
            return Err(Error::Network { doing: doing(), source: network::Error::NotFound(network.clone()) });
        };
        let spec = AttachSpec {
            network: network.clone(),
            sandbox: wish.spec.id.clone(),
            netns,
            ifname: IfName::new(format!("eth{index}"))?,
            addresses: wish.attachments[index].addresses.clone(),
            default_route: index == 0,
            link: wish.attachments[index].link.clone(),
        };
        self.ctx.drivers.networks.attach(&spec).await.map_err(|source| Error::Network { doing: doing(), source })
    }

    /// Where a sandbox is attached, and by which addresses.
    async fn attachments(&self, id: &SandboxId) -> Result<Vec<Attachment>, Error> {
        self.ctx
            .drivers
            .networks
            .recorded_of(id)
            .await
            .map_err(|source| Error::Network { doing: "reading attachments".to_owned(), source })
    }

    async fn take_ports(&self, from: &[SandboxId]) -> Result<(), Error> {
        let attachments = self.attachments(&self.desired.sandbox.spec.id).await?;
        let ports = published_ports(self.desired, attachments.iter());
        self.ctx
            .drivers
            .networks
            .take_ports(from, &self.desired.sandbox.spec.id, &ports)
            .await
            .map_err(|source| Error::Network { doing: "publishing ports".to_owned(), source: self.with_owner(source) })
    }

    /// Names the Workload that has a port, where the driver knows of its sandbox only.
    fn with_owner(&self, error: network::Error) -> network::Error {
        let network::Error::PortTaken { host_ip, host_port, protocol, owner } = error else { return error };
        let id = owner.strip_prefix("sandbox ").and_then(|id| SandboxId::new(id).ok());
        let uid = id.and_then(|id| self.ctx.sandboxes.owner(&id));
        let workload = uid.and_then(|uid| self.ctx.workload_by_uid(&uid));
        let owner = workload.map_or(owner, |workload| format!("Workload {}", crate::image_users::title(&workload)));
        network::Error::PortTaken { host_ip, host_port, protocol, owner }
    }

    async fn write_files(&self) -> Result<(), Error> {
        self.write_etc().await?;
        let mut failed = None;
        for (name, volume) in &self.desired.sandbox.volumes {
            // One that has no room keeps none of the others from what is new.
            if let VolumeWish::Ephemeral(kind) = volume
                && let Err(error) = self.ephemeral(name, kind).await
            {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn write_etc(&self) -> Result<EtcPaths, Error> {
        let wish = &self.desired.sandbox;
        let mut files = wish.etc.clone();
        let mut own: Vec<(IpAddr, Vec<String>)> = Vec::new();
        let mut resolver = None;
        if let Some(sandbox) = match &wish.spec.net {
            NetNamespace::New => Some(&wish.spec.id),
            NetNamespace::Of(other) => Some(other),
            NetNamespace::Host => None,
        } {
            for attachment in self.attachments(sandbox).await? {
                own.extend(attachment.addresses.iter().map(|net| (net.addr(), vec![wish.spec.hostname.clone()])));
                resolver = resolver.or(attachment.resolvers.first().copied());
            }
        }
        if let Some(resolver) = resolver {
            files.nameservers.push(resolver);
            files.node_searches = true;
            // Names of ours are whole: without this, libraries would first try them in every search domain, and wait
            // for servers that do not answer.
            if !files.options.iter().any(|option| option.starts_with("ndots")) {
                files.options.push("ndots:0".to_owned());
            }
        }
        own.append(&mut files.hosts);
        files.hosts = own;
        self.ctx.drivers.sandboxes.write_etc(&wish.spec.id, &files).await.map_err(Error::Sandbox)
    }

    async fn sandbox(&self) -> Result<Sandbox, Error> {
        // Idempotent, and cheap when everything is in place.
        self.ctx.drivers.sandboxes.ensure(&self.desired.sandbox.spec).await.map_err(Error::Sandbox)
    }
}

/// Frees a sandbox in the reverse order of making; its own record goes last.
pub async fn teardown(ctx: &Context, id: &SandboxId) -> Result<(), Error> {
    let drivers = &ctx.drivers;
    drivers
        .networks
        .detach_all(id)
        .await
        .map_err(|source| Error::Network { doing: format!("detaching sandbox {id}"), source })?;
    passed("detaching a sandbox");
    drivers
        .volumes
        .remove_ephemeral(id)
        .await
        .map_err(|source| Error::Volume { volume: format!("of sandbox {id}"), source })?;
    passed("removing ephemeral volumes");
    drivers.runtime.remove_views(id, None).await.map_err(|source| Error::Runtime {
        container: format!("of sandbox {id}"),
        doing: "removing the images of its volumes",
        source,
    })?;
    let (cgroups, sandbox) = (drivers.cgroups.clone(), id.clone());
    let declared = resource_limit::realtime::budgets(ctx);
    crate::blocking(move || remove_cgroups(&*cgroups, &sandbox, &declared)).await.map_err(Error::Cgroup)?;
    passed("removing the cgroup of a workload");
    drivers.sandboxes.remove(id).await.map_err(Error::Sandbox)?;
    ctx.written.forget(id);
    ctx.sandboxes.forget(id);
    Ok(())
}

/// The sandbox's cgroup may lie below any ResourceLimit.
fn remove_cgroups(cgroups: &dyn Cgroups, sandbox: &SandboxId, declared: &Budgets) -> Result<(), cgroups::Error> {
    cgroups.of_sandbox(sandbox)?.iter().try_for_each(|path| resource_limit::remove(cgroups, path, declared))
}

async fn send_stop(ctx: &Context, id: &ContainerId) -> Result<(), runtime::Error> {
    let signal = ctx.drivers.runtime.stop_signal(id).await?;
    ctx.drivers.runtime.kill(id, &signal, false).await
}
