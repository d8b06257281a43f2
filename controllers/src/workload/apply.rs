//! Carries out a plan, step by step: the only writer of a workload's things on the node.
//!
//! Every step may be repeated, and a crash between any two leaves something that the next observation sees: the
//! sandbox writes its record before it acquires anything, the network its addresses, the runtime its container
//! record. The first failing step ends the execution; the steps before it stay done.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::events::EventType;
use nodelet_crds::workload::Workload;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::cgroups::{self, Cgroups};
use nodelet_drivers::failpoint::passed;
use nodelet_drivers::ids::{ContainerId, IfName, NetworkKey, SandboxId};
use nodelet_drivers::network::{self, AttachSpec, Attachment};
use nodelet_drivers::runtime::{self, ContainerSpec, Mount, MountSource, Namespace, Namespaces, Started};
use nodelet_drivers::sandbox::{self, EtcPaths, NetNamespace, Sandbox};
use nodelet_drivers::volumes::{self, Ephemeral, EphemeralSpec};

use super::model::{ContainerWish, Desired, MountWish, Template, VolumeWish, log_target};
use super::plan::{DRAIN, Plan, Step, Why, published_ports};
use super::{env, files, hooks, probes};
use crate::context::{Context, chain};
use crate::names;

/// A postStart hook may take this long.
const POST_START_LIMIT: Duration = Duration::from_secs(60);

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
    /// The workload's cgroup could not be made or removed.
    #[error("making the cgroup")]
    Cgroup(#[source] nodelet_drivers::cgroups::Error),
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
            Self::Sandbox(_) | Self::Cgroup(_) | Self::Name(_) => reasons::SANDBOX_FAILED,
            Self::Network { source: network::Error::PortTaken { .. }, .. } => reasons::PORT_CONFLICT,
            Self::Network { source: network::Error::Exhausted { .. }, .. } => reasons::ADDRESS_UNAVAILABLE,
            Self::Network { .. } => reasons::NETWORK_FAILED,
            Self::Volume { .. } => reasons::MOUNT_FAILED,
            Self::Hook { .. } => reasons::POST_START_HOOK_FAILED,
        }
    }
}

/// Executes `plan` for `desired`.
pub async fn apply(ctx: &Arc<Context>, object: &Workload, desired: &Arc<Desired>, plan: &Plan) -> Result<(), Error> {
    for step in &plan.steps {
        Applier { ctx, object, desired }.step(step).await?;
        passed("a step of a plan");
    }
    Ok(())
}

struct Applier<'a> {
    ctx: &'a Arc<Context>,
    object: &'a Workload,
    desired: &'a Arc<Desired>,
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
                self.ctx.written.forget_container(id);
                Ok(())
            }
            Step::Teardown { id } => teardown(self.ctx, id).await,
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
            Step::Start { container, init, attempt, restarts, failures, image, digest } => {
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
            Step::UpdateLimits { id, limits } => {
                self.on_container(id, "changing the limits of", self.ctx.drivers.runtime.update_limits(id, limits))
                    .await
            }
        }
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
                let target = hooks::target(&ctx, &id, &sandbox, &ports).await;
                if let Err(why) = hooks::run(&ctx, &target, &hook, grace).await {
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
        let (cgroups, path) = (self.ctx.drivers.cgroups.clone(), self.desired.cgroup.clone());
        crate::blocking(move || cgroups.ensure(&path, &nodelet_drivers::cgroups::Limits::default()))
            .await
            .map_err(Error::Cgroup)?;
        passed("making the cgroup of a workload");
        Ok(())
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
        };
        self.ctx.drivers.networks.attach(&spec).await.map_err(|source| Error::Network { doing: doing(), source })
    }

    async fn attachments(&self, id: &SandboxId) -> Result<Vec<Attachment>, Error> {
        self.ctx
            .drivers
            .networks
            .attachments_of(id)
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
        for (name, volume) in &self.desired.sandbox.volumes {
            if let VolumeWish::Ephemeral(kind) = volume {
                self.ephemeral(name, kind).await?;
            }
        }
        Ok(())
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

    async fn ephemeral(&self, name: &str, kind: &Ephemeral) -> Result<PathBuf, Error> {
        let spec =
            EphemeralSpec { sandbox: self.desired.sandbox.spec.id.clone(), name: name.to_owned(), kind: kind.clone() };
        let path = self
            .ctx
            .drivers
            .volumes
            .ensure_ephemeral(&spec)
            .await
            .map_err(|source| Error::Volume { volume: name.to_owned(), source })?;
        self.ctx.written.remember(&spec.sandbox, name, files::fingerprint(kind));
        Ok(path)
    }

    async fn sandbox(&self) -> Result<Sandbox, Error> {
        // Idempotent, and cheap when everything is in place.
        self.ctx.drivers.sandboxes.ensure(&self.desired.sandbox.spec).await.map_err(Error::Sandbox)
    }

    async fn start(&self, start: &Start<'_>) -> Result<(), Error> {
        let result = self.start_unchecked(start).await;
        if let Err(error @ Error::Runtime { .. }) = &result {
            self.ctx.image_checks.start_failed(&start.wish.image.fetch.reference, &chain(error));
        }
        result
    }

    async fn start_unchecked(&self, start: &Start<'_>) -> Result<(), Error> {
        let failed = |doing| move |source| Error::Runtime { container: start.wish.name.clone(), doing, source };
        let spec = self.container_spec(start).await?;
        // More than this at once only makes each of them slower.
        let _permit = self.ctx.starts.acquire().await;
        let runtime = &self.ctx.drivers.runtime;
        if let Err(error) = runtime.create(&spec).await {
            // What is half made has a record; it is cleared now if that works, else by the next pass.
            if let Err(error) = runtime.remove(&spec.id).await {
                tracing::warn!(container = %spec.id, error = %chain(&error), "clearing a half-made container");
            }
            let _ = self.ctx.containers.refresh(&spec.id).await;
            return Err(failed("creating")(error));
        }
        passed("the creation of a container");
        let started = runtime.start(&spec.id).await;
        let refreshed = self.ctx.containers.refresh(&spec.id).await;
        let Started { pid } = started.map_err(failed("starting"))?;
        refreshed.map_err(failed("reading"))?;
        tracing::info!(
            workload = %self.desired.title, container = %start.wish.name, attempt = start.attempt, pid, "started"
        );
        if start.restarts > 0 && start.failures > 0 {
            let (namespace, name) = self.desired.title.split_once('/').unwrap_or_default();
            self.ctx.metrics.container_restarts.with_label_values(&[namespace, name, &start.wish.name]).inc();
        }
        let note = format!("Started container {}", start.wish.name);
        self.ctx.event(self.object, EventType::Normal, reasons::STARTED, note).await;
        self.post_start(start.wish, &spec.id).await
    }

    /// A failing postStart hook ends its container, as in Kubernetes.
    async fn post_start(&self, wish: &ContainerWish, id: &ContainerId) -> Result<(), Error> {
        let Some(hook) = &wish.post_start else { return Ok(()) };
        let target = hooks::target(self.ctx, id, &self.desired.sandbox.spec.id, &wish.ports).await;
        let Err(why) = hooks::run(self.ctx, &target, hook, POST_START_LIMIT).await else { return Ok(()) };
        let container = wish.name.clone();
        let killed = self.ctx.drivers.runtime.kill(id, "SIGKILL", true).await;
        killed.map_err(|source| Error::Runtime {
            container: container.clone(),
            doing: "ending it after its postStart hook failed",
            source,
        })?;
        Err(Error::Hook { container, why })
    }

    async fn container_spec(&self, start: &Start<'_>) -> Result<ContainerSpec, Error> {
        let (wish, desired) = (start.wish, self.desired);
        let template = &wish.template;
        let sandbox = self.sandbox().await?;
        // The sandbox may have been completed by an agent that died before it came to this.
        self.ensure_cgroup().await?;
        let id = names::container_id(&sandbox.spec.id, &wish.name, start.attempt)?;
        let directory = crate::workload::log_directory(&self.ctx.settings.data_dir, self.object);
        let mut mounts = self.sandbox_mounts(&sandbox).await?;
        for mount in &template.mounts {
            mounts.push(self.mount(mount).await?);
        }
        let (own_addresses, node) = if uses_addresses(template) { self.addresses().await } else { Default::default() };
        let fill = |text: &String| env::fill_in(text, &own_addresses, &node);
        let joined = |path: Option<PathBuf>| path.map_or(Namespace::Host, Namespace::Path);
        let mut own_labels = self.labels(start);
        if wish.probes.is_empty() && (!start.init || wish.sidecar) {
            let failed = |source| Error::Runtime { container: wish.name.clone(), doing: "reading its image", source };
            let wishes = self.ctx.drivers.runtime.image_wishes(start.image).await.map_err(failed)?;
            let probe = wishes.health_check.as_ref().map(probes::of_image);
            let text = probe.and_then(|probe| serde_json::to_string(&probe).ok());
            if let Some(text) = text.filter(|text| text.len() <= hooks::LABEL_MAX) {
                own_labels.insert(labels::HEALTHCHECK.to_owned(), text);
            }
        }
        Ok(ContainerSpec {
            labels: own_labels,
            sandbox: sandbox.spec.id.clone(),
            image: start.image.to_owned(),
            command: template.command.iter().map(fill).collect(),
            args: template.args.iter().map(fill).collect(),
            working_dir: template.working_dir.clone(),
            env: template.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect(),
            tty: template.tty,
            stdin: template.stdin,
            namespaces: Namespaces {
                net: joined(sandbox.netns),
                ipc: joined(sandbox.ipcns),
                uts: joined(sandbox.utsns),
                pid: if template.host_pid { Namespace::Host } else { Namespace::Private },
            },
            mounts,
            cgroup: names::container_cgroup(&desired.cgroup, &wish.name, start.attempt)?,
            limits: wish.limits.clone(),
            ulimits: template.ulimits.clone(),
            security: template.security.clone(),
            // The sandbox's namespaces have them already; the runtime would refuse them for the node's.
            sysctls: BTreeMap::new(),
            oom_score_adj: template.oom_score_adj,
            log: log_target(&directory, &wish.name, start.attempt, template),
            stop_signal: template.stop_signal.clone(),
            id,
        })
    }

    /// Those of the workload, and those by which the node is reached.
    async fn addresses(&self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let spec = &self.desired.sandbox.spec;
        let id = if let NetNamespace::Of(other) = &spec.net { other } else { &spec.id };
        let attachments = self.attachments(id).await.unwrap_or_default();
        let own = attachments.iter().flat_map(|a| &a.addresses).map(ipnet::IpNet::addr).collect();
        let node = crate::blocking(nodelet_drivers::host::addresses).await;
        (own, crate::node_facts::reachable(&node.unwrap_or_default()))
    }

    fn labels(&self, start: &Start<'_>) -> BTreeMap<String, String> {
        let mut all = self.desired.sandbox.spec.labels.clone();
        let own = [
            (labels::SANDBOX, self.desired.sandbox.spec.id.to_string()),
            (labels::CONTAINER, start.wish.name.clone()),
            (labels::TYPE, if start.init { labels::TYPE_INIT } else { labels::TYPE_MAIN }.to_owned()),
            (labels::ATTEMPT, start.attempt.to_string()),
            (labels::RESTARTS, start.restarts.to_string()),
            (labels::FAILURES, start.failures.to_string()),
            (labels::SPEC_HASH, start.wish.hash.clone()),
            (labels::GENERATION, self.desired.generation.to_string()),
            (labels::IMAGE_DIGEST, start.digest.to_owned()),
        ];
        all.extend(own.map(|(key, value)| (key.to_owned(), value)));
        all.extend(hooks::label(start.wish));
        all.extend(start.wish.signal.clone().map(|content| (labels::HEARD.to_owned(), content)));
        if start.wish.sidecar
            && let Some(place) = self.desired.init.iter().position(|wish| wish.name == start.wish.name)
        {
            all.insert(labels::SIDECAR.to_owned(), place.to_string());
        }
        all
    }

    async fn sandbox_mounts(&self, sandbox: &Sandbox) -> Result<Vec<Mount>, Error> {
        let etc = self.write_etc().await?;
        let bind = |source: PathBuf, destination: &str| Mount {
            destination: destination.to_owned(),
            source: MountSource::Bind(source),
            read_only: false,
            propagation: String::new(),
        };
        let mut mounts = vec![
            bind(etc.hosts, "/etc/hosts"),
            bind(etc.hostname, "/etc/hostname"),
            bind(etc.resolv_conf, "/etc/resolv.conf"),
        ];
        mounts.push(bind(sandbox.shm.clone().unwrap_or_else(|| "/dev/shm".into()), "/dev/shm"));
        Ok(mounts)
    }

    async fn mount(&self, mount: &MountWish) -> Result<Mount, Error> {
        let failed = |source| Error::Volume { volume: mount.volume.clone(), source };
        let volumes = &self.ctx.drivers.volumes;
        let root = match self.desired.sandbox.volumes.get(&mount.volume) {
            Some(VolumeWish::Path(path)) => path.clone(),
            Some(VolumeWish::HostPath(path, kind)) => volumes.ensure_host_path(path, *kind).await.map_err(failed)?,
            Some(VolumeWish::Ephemeral(kind)) => self.ephemeral(&mount.volume, kind).await?,
            None => {
                return Err(failed(volumes::Error::Invalid {
                    field: "volumeMounts".to_owned(),
                    message: format!("there is no volume {:?} in spec.volumes", mount.volume),
                }));
            }
        };
        let source = match &mount.sub_path {
            Some(sub) => volumes.ensure_sub_path(&self.desired.sandbox.spec.id, &root, sub).await.map_err(failed)?,
            None => root,
        };
        Ok(Mount {
            destination: mount.path.clone(),
            source: MountSource::Bind(source),
            read_only: mount.read_only,
            propagation: mount.propagation.clone(),
        })
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
    let (cgroups, name) = (drivers.cgroups.clone(), id.to_string());
    crate::blocking(move || remove_cgroups(&*cgroups, &name)).await.map_err(Error::Cgroup)?;
    passed("removing the cgroup of a workload");
    drivers.sandboxes.remove(id).await.map_err(Error::Sandbox)?;
    ctx.written.forget(id);
    ctx.sandboxes.forget(id);
    Ok(())
}

/// The sandbox's cgroup may lie below any ResourceLimit: its last part is the sandbox's id.
fn remove_cgroups(cgroups: &dyn Cgroups, sandbox: &str) -> Result<(), cgroups::Error> {
    for path in cgroups.list()? {
        if path.as_str().rsplit('/').next() == Some(sandbox) {
            cgroups.remove(&path)?;
        }
    }
    Ok(())
}

struct Start<'a> {
    wish: &'a ContainerWish,
    init: bool,
    attempt: u32,
    restarts: u32,
    failures: u32,
    image: &'a str,
    digest: &'a str,
}

async fn send_stop(ctx: &Context, id: &ContainerId) -> Result<(), runtime::Error> {
    let signal = ctx.drivers.runtime.stop_signal(id).await?;
    ctx.drivers.runtime.kill(id, &signal, false).await
}

fn uses_addresses(template: &Template) -> bool {
    let values = template.env.iter().map(|(_, value)| value);
    values.chain(&template.command).chain(&template.args).any(|text| env::is_late(text))
}
