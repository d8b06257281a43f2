//! Starting a container: what it is made of, and what is done right after.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use kube::runtime::events::EventType;
use nodelet_crds::{labels, reasons};
use nodelet_drivers::failpoint::passed;
use nodelet_drivers::ids::ContainerId;
use nodelet_drivers::runtime::{ContainerSpec, Mount, MountSource, Namespace, Namespaces, Started};
use nodelet_drivers::sandbox::{NetNamespace, Sandbox};

use super::{Applier, Error};
use crate::context::chain;
use crate::names;
use crate::workload::model::{ContainerWish, Template, log_target};
use crate::workload::plan::UsedImage;
use crate::workload::{env, hooks, probes};

/// A postStart hook may take this long.
const POST_START_LIMIT: Duration = Duration::from_secs(60);

/// A container to start, as the plan says.
pub(super) struct Start<'a> {
    pub(super) wish: &'a ContainerWish,
    pub(super) init: bool,
    pub(super) attempt: u32,
    pub(super) restarts: u32,
    pub(super) failures: u32,
    pub(super) image: &'a str,
    pub(super) digest: &'a str,
    pub(super) volumes: &'a BTreeMap<String, UsedImage>,
}

impl Applier<'_> {
    pub(super) async fn start(&self, start: &Start<'_>) -> Result<(), Error> {
        let result = self.start_unchecked(start).await;
        if let Err(error @ Error::Runtime { .. }) = &result {
            self.ctx.image_checks.start_failed(&start.wish.image.fetch.reference, &chain(error));
        }
        result
    }

    async fn start_unchecked(&self, start: &Start<'_>) -> Result<(), Error> {
        let failed = |doing| move |source| Error::Runtime { container: start.wish.name.clone(), doing, source };
        let spec = self.container_spec(start).await?;
        let permit = self.ctx.starts.acquire().await;
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
        // A hook may take long, and makes no container.
        drop(permit);
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
        let target = hooks::target(&self.ctx.drivers, id, &self.desired.sandbox.spec.id, &wish.ports).await;
        let Err(why) = hooks::run(&self.ctx.drivers, &target, hook, POST_START_LIMIT).await else { return Ok(()) };
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
        self.divide_realtime().await?;
        let id = names::container_id(&sandbox.spec.id, &wish.name, start.attempt)?;
        let directory = crate::workload::log_directory(&self.ctx.settings.data_dir, self.object);
        let mut mounts = self.sandbox_mounts(&sandbox).await?;
        for mount in &template.mounts {
            mounts.push(self.mount(mount, start.image, start.volumes).await?);
        }
        let (own_addresses, node) = if uses_addresses(template) { self.addresses().await } else { Default::default() };
        let fill = |text: &String| env::fill_in(text, &own_addresses, &node);
        let joined = |path: Option<PathBuf>| path.map_or(Namespace::Host, Namespace::Path);
        let own = |path: Option<PathBuf>, host: bool| match path {
            None if !host => Namespace::Private,
            path => joined(path),
        };
        let mut own_labels = self.labels(start);
        if wish.probes.is_empty() && (!start.init || wish.sidecar) {
            let failed = |source| Error::Runtime { container: wish.name.clone(), doing: "reading its image", source };
            let wishes = self.ctx.drivers.runtime.image_wishes(start.image, start.digest).await.map_err(failed)?;
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
            stdin_once: template.stdin_once,
            namespaces: Namespaces {
                net: joined(sandbox.netns),
                ipc: own(sandbox.ipcns, sandbox.spec.host_ipc),
                uts: own(sandbox.utsns, sandbox.spec.host_uts),
                pid: match (template.host_pid, template.share_pid) {
                    (true, _) => Namespace::Host,
                    (false, true) => Namespace::Sandbox,
                    (false, false) => Namespace::Private,
                },
                user: sandbox.users,
            },
            hostname: Some(sandbox.spec.hostname),
            mounts,
            cgroup: names::container_cgroup(&desired.cgroup, &wish.name, start.attempt)?,
            limits: wish.limits.clone(),
            ulimits: template.ulimits.clone(),
            devices: template.devices.clone(),
            security: template.security.clone(),
            // The sandbox's namespaces have them already; the runtime would refuse them for the node's.
            sysctls: BTreeMap::new(),
            oom_score_adj: template.oom_score_adj,
            log: log_target(&directory, &wish.name, start.attempt, template),
            stop_signal: template.stop_signal.clone(),
            // They outlive a restart of the container and go with the sandbox. No volume's name has a dot.
            anonymous_volumes: Some(
                self.ctx.drivers.volumes.ephemeral_dir(&desired.sandbox.spec.id).join(format!("image.{}", wish.name)),
            ),
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
        all.extend(start.volumes.iter().map(|(volume, image)| (labels::volume_image(volume), image.digest.clone())));
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
        // Without one that is shared it is the OCI runtime's.
        let shm = sandbox.shm.clone().or_else(|| sandbox.spec.host_ipc.then(|| "/dev/shm".into()));
        mounts.extend(shm.map(|shm| bind(shm, "/dev/shm")));
        Ok(mounts)
    }
}

fn uses_addresses(template: &Template) -> bool {
    let values = template.env.iter().map(|(_, value)| value);
    values.chain(&template.command).chain(&template.args).any(|text| env::is_late(text))
}
