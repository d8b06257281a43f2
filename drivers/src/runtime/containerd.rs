//! The runtime on containerd: state shared by the verbs, and the trait as their table of contents. Each verb has a
//! file of its own beside this one; the sequences and their reasons are in `docs/decisions/0004-containerd.md`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::exits::Exits;
use super::image::{self, ImageCache};
use super::list::Known;
use super::node::Node;
use super::shims::Shims;
use super::{
    Container, ContainerSpec, Error, ExecResult, ExecSpec, ImageWishes, Program, Runtime, RuntimeEvent, RuntimeInfo,
    Session, Started, Streams, anchors, attach, create, events, exec, info, layers, limits, list, orphans, remove,
    signal, start, stdin, sweep, view,
};
use crate::cgroups::{Excess, Limits};
use crate::containerd::Containerd;
use crate::ids::{CgroupPath, ContainerId, SandboxId};
use crate::volumes::SnapshotMount;

/// Containers that are made at a time, for each CPU of the node: with two, 100 starts take longer, and with more hardly
/// less (docs/decisions/0016).
pub const CREATIONS_PER_CPU: usize = 4;

/// How containers are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// `nodelet-logger`, an absolute path as containerd's shim sees it.
    pub logger: PathBuf,
    /// Name or path of the OCI runtime, such as `crun`; `None` is containerd's default, runc.
    pub oci_runtime: Option<String>,
    /// containerd's runtime handler.
    pub handler: String,
    /// Where the OCI runtime keeps its state; `None` is `/run/containerd/runc`, shared by all containerd daemons of
    /// the node. (The runtime adds the containerd namespace.)
    pub oci_root: Option<PathBuf>,
    /// Where the cgroup hierarchy is mounted.
    pub cgroup_root: PathBuf,
    /// Below it are the pipes of programs in containers (`exec/`) and of containers' input (`stdin/`), under the same
    /// path for containerd.
    pub run_dir: PathBuf,
    /// Let the default seccomp profile admit programs of the node's other architectures, such as 32-bit ones. It
    /// makes every start of a container markedly slower, so it is off by default.
    pub foreign_architectures: bool,
    /// Sandboxes to a shim; 0 gives each its own. Shared ones take less memory and time, and one that dies takes the
    /// containers of all its sandboxes with it. With containerd 1.7 and later they are kept by anchors.
    pub shim_pool: usize,
    /// The cgroup below which anchors are.
    pub cgroup_parent: CgroupPath,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            logger: PathBuf::from("/var/lib/nodelet/bin/nodelet-logger"),
            oci_runtime: None,
            handler: "io.containerd.runc.v2".to_owned(),
            oci_root: None,
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            run_dir: PathBuf::from("/run/nodelet"),
            foreign_architectures: false,
            shim_pool: 0,
            cgroup_parent: CgroupPath::new("/nodelet").expect("it is a valid path"),
        }
    }
}

/// [`Runtime`] on containerd.
#[derive(Clone, Debug)]
pub struct ContainerdRuntime {
    shared: Arc<Shared>,
}

/// What the verbs share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) containerd: Containerd,
    pub(super) options: Options,
    pub(super) node: Node,
    pub(super) images: ImageCache,
    pub(super) exits: Exits,
    /// Containers as last seen, for those whose record somebody deletes while their task is there.
    pub(super) known: Known,
    /// Name and version of the OCI runtime, asked for once.
    pub(super) oci_runtime: tokio::sync::OnceCell<String>,
    pub(super) shims: Shims,
    pub(super) anchors: anchors::Keeper,
    pub(super) suspects: orphans::Suspects,
    /// See [`CREATIONS_PER_CPU`].
    pub(super) creating: Semaphore,
    /// Programs are started two at a time for each CPU: without a bound, probes of a node that cannot keep up pile up for ever.
    pub(super) execs_starting: Semaphore,
    /// See [`Shared::watch`].
    sees_processes: tokio::sync::OnceCell<bool>,
    /// Programs that we run in containers just now.
    pub(super) execs: exec::Live,
    /// Calls that go on to their end when the caller goes away.
    pub(super) tasks: TaskTracker,
}

impl Shared {
    /// Watches the first process of a container by its pid, if pids mean the same to us and to containerd. An agent
    /// in a container without the node's pid namespace must not: its pids are other processes. It has the events of
    /// containerd instead.
    pub(super) async fn watch(&self, id: &ContainerId, pid: u32, cgroup: &CgroupPath) {
        if self.sees_processes().await {
            self.exits.watch(&self.node, id, pid, cgroup);
        }
    }

    /// Whether pids mean the same to us and to containerd.
    pub(super) async fn sees_processes(&self) -> bool {
        let sees = self.sees_processes.get_or_try_init(|| sees_process_of(self.containerd.address())).await;
        matches!(sees, Ok(true))
    }
}

/// Whether the process behind a socket is one of our pid namespace: else the kernel gives no pid for it.
async fn sees_process_of(socket: &Path) -> std::io::Result<bool> {
    let peer = tokio::net::UnixStream::connect(socket).await?.peer_cred()?.pid();
    let sees = peer.is_some_and(|pid| pid > 0);
    if !sees {
        tracing::warn!("containerd runs in another pid namespace; exits are noticed later. Share the node's (hostPID)");
    }
    Ok(sees)
}

impl ContainerdRuntime {
    /// A runtime in the connection's namespace. Must be called within a tokio runtime.
    pub fn new(containerd: Containerd, options: Options) -> Self {
        // Whoever had the only use of an input was attached to an agent that is gone.
        stdin::end_taken(&options.run_dir);
        let node = Node::observe(&options.cgroup_root);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let (anchors, words) = anchors::Keeper::new();
        let shared = Arc::new(Shared {
            containerd,
            shims: Shims::new(options.shim_pool, cpus + 1),
            anchors,
            suspects: orphans::Suspects::default(),
            options,
            node,
            images: ImageCache::default(),
            exits: Exits::default(),
            known: Known::default(),
            oci_runtime: tokio::sync::OnceCell::new(),
            creating: Semaphore::new(cpus * CREATIONS_PER_CPU),
            execs_starting: Semaphore::new(cpus * 2),
            sees_processes: tokio::sync::OnceCell::new(),
            execs: exec::Live::default(),
            tasks: TaskTracker::new(),
        });
        // Ends with the last clone of this runtime.
        tokio::spawn(anchors::keep(Arc::downgrade(&shared), words));
        Self { shared }
    }

    /// Waits until no call that must not be cut short is under way: a client that goes away during the creation of
    /// a task leaves shims behind. For an orderly end of the agent.
    pub async fn drain(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.tasks.reopen();
    }

    /// Runs `call` in a task of its own, so that it goes on to its end when the caller goes away.
    async fn uncancelled<T, F>(&self, doing: String, call: impl FnOnce(Arc<Shared>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let task = self.shared.tasks.spawn(call(self.shared.clone()));
        match task.await {
            Ok(result) => result,
            Err(source) => Err(Error::Failed { doing, source: Box::new(source) }),
        }
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    async fn info(&self) -> Result<RuntimeInfo, Error> {
        info::info(&self.shared).await
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        list::list(&self.shared).await
    }

    async fn get(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        list::get(&self.shared, id).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error> {
        let spec = spec.clone();
        let doing = format!("creating container {}", spec.id);
        self.uncancelled(doing, |shared| async move { create::create(&shared, spec).await }).await
    }

    async fn start(&self, id: &ContainerId) -> Result<Started, Error> {
        let id = id.clone();
        let doing = format!("starting container {id}");
        self.uncancelled(doing, |shared| async move { start::start(&shared, &id).await }).await
    }

    async fn kill(&self, id: &ContainerId, signal: &str, all: bool) -> Result<(), Error> {
        signal::kill(&self.shared, id, signal, all).await
    }

    async fn image_wishes(&self, image: &str, digest: &str) -> Result<ImageWishes, Error> {
        let facts = match self.shared.images.get(digest) {
            Some(known) => known,
            None => image::facts(&self.shared, image).await?,
        };
        Ok(ImageWishes { health_check: facts.health_check.clone() })
    }

    async fn view(&self, sandbox: &SandboxId, name: &str, image: &str) -> Result<Vec<SnapshotMount>, Error> {
        view::view(&self.shared, sandbox, name, image).await
    }

    async fn remove_views(&self, sandbox: &SandboxId, name: Option<&str>) -> Result<(), Error> {
        view::remove(&self.shared, sandbox, name).await
    }

    async fn stop_signal(&self, id: &ContainerId) -> Result<String, Error> {
        signal::stop_signal(&self.shared, id).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        let id = id.clone();
        let doing = format!("removing container {id}");
        self.uncancelled(doing, |shared| async move { remove::remove(&shared, &id).await }).await
    }

    async fn update_limits(&self, id: &ContainerId, limits: &Limits) -> Result<Option<Excess>, Error> {
        limits::update(&self.shared, id, limits).await
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecResult, Error> {
        let (id, spec) = (id.clone(), spec.clone());
        let doing = format!("running a program in container {id}");
        let abandoned = tokio_util::sync::CancellationToken::new();
        // A caller that goes away does not leave the program running.
        let _on_drop = abandoned.clone().drop_guard();
        self.uncancelled(doing, |shared| async move { exec::exec(&shared, &id, &spec, abandoned).await }).await
    }

    async fn open_exec(&self, id: &ContainerId, program: &Program) -> Result<Session, Error> {
        let (id, program) = (id.clone(), program.clone());
        let doing = format!("running a program in container {id}");
        // A caller that goes away drops the session, which ends the program.
        self.uncancelled(doing, |shared| exec::open(shared, id, program)).await
    }

    async fn attach(&self, id: &ContainerId, streams: Streams) -> Result<Session, Error> {
        attach::attach(self.shared.clone(), id, streams).await
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        events::events(self.shared.clone())
    }

    async fn sweep(&self) -> Result<Vec<String>, Error> {
        sweep::sweep(self.shared.clone()).await
    }

    async fn writable_layer(&self, id: &ContainerId) -> Result<Option<PathBuf>, Error> {
        layers::writable(&self.shared, id).await
    }

    async fn end_orphan_shims(&self) -> Vec<String> {
        orphans::end_old(&self.shared).await
    }
}
