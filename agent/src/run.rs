//! The agent: everything wired together, started in order, watched, and stopped in order.
//!
//! Started: the store and its API first, so that clients are answered within milliseconds; then what reaches the node;
//! then the reconcilers and the sources. Stopped: sources and reconcilers first, the API last. Neither the first
//! signal, which drains with a deadline, nor the second, which does not wait, touches a workload. Every task has an
//! owner here; one that ends by itself ends the process with an error, and the service manager starts it again. Only
//! when the system itself goes down, and systemd-logind waits for us, the workloads are stopped, in order.

mod api_metrics;
mod containerd;
mod drivers;
mod http;
mod lock;
mod logger;
mod logging;
mod notify;
mod shutdown;
mod source_status;
mod tasks;
mod validate;

use std::path::PathBuf;
use std::time::Duration;

use nodelet_apiserver::Server;
use nodelet_controllers::image_collector::{Collector, Marks};
use nodelet_controllers::workload::preview::Previews;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::client::Client;
use crate::config::NodeletConfiguration;
use crate::node_api::{NodeApi, NodeStreams};
use crate::sources::directory::DirectorySource;
use crate::sources::metrics::Metrics as SourceMetrics;
use tasks::Tasks;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What runs gets this long to finish after the first signal.
const DRAIN: Duration = Duration::from_secs(10);

/// The agent could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two agents would fight over one directory.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// A directory of ours cannot be made.
    #[error("making the directory {path}", path = path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The operating system gives no threads or signals.
    #[error("{doing}")]
    System {
        /// What for.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store does not open.
    #[error("opening the store")]
    Store(#[source] nodelet_apiserver::OpenError),
    /// A listener cannot be made.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The log writer cannot be put in its place.
    #[error(transparent)]
    Logger(#[from] logger::Error),
    /// What reaches the node cannot be made.
    #[error(transparent)]
    Drivers(#[from] drivers::Error),
    /// A metric's name is taken.
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
    /// A task ended that should not.
    #[error("{name} ended unexpectedly")]
    Ended {
        /// Which.
        name: String,
        /// Why, if it said.
        #[source]
        source: Option<tasks::Fault>,
    },
    /// A second signal came while draining.
    #[error("a second signal came while {0} still ran; workloads go on")]
    Forced(String),
}

/// Runs the agent until a signal. What went wrong is logged, too.
///
/// # Errors
/// [`Error`]; workloads go on whatever it is.
pub fn run(configuration: NodeletConfiguration) -> Result<(), Error> {
    logging::start(&configuration.observability);
    let result = blocking(configuration);
    match &result {
        Ok(()) => tracing::info!("stopped; workloads go on"),
        Err(error) => tracing::error!("{}", crate::manifest::chain(error)),
    }
    result
}

/// As many files may be open as the system lets us: the customary 1,024, which programs with select(2) need, are few for
/// hundreds of workloads.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the number of open files stays as it is: {error}");
    }
}

fn blocking(configuration: NodeletConfiguration) -> Result<(), Error> {
    for path in [&configuration.data_dir, &configuration.run_dir] {
        std::fs::create_dir_all(path).map_err(|source| Error::Directory { path: path.clone(), source })?;
    }
    let _lock = lock::Lock::take(&configuration.data_dir)?;
    allow_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("nodelet")
        .build()
        .map_err(|source| Error::System { doing: "starting threads", source })?;
    let result = runtime.block_on(Box::pin(agent(configuration)));
    // Blocking calls that hang (a dead NFS server) must not hold the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

/// CPUs and memory of the node.
fn capacity() -> (u32, u64) {
    let facts = nodelet_drivers::host::facts();
    (facts.cpus, facts.memory_bytes)
}

async fn agent(configuration: NodeletConfiguration) -> Result<(), Error> {
    let started = std::time::Instant::now();
    let mut signals = Signals::new()?;
    let registry = Registry::new();
    build_info(&registry)?;

    let options = nodelet_apiserver::Options {
        store: configuration.data_dir.join("store.db"),
        version: VERSION.to_owned(),
        validators: validate::validators(),
        ..Default::default()
    };
    let gc = &configuration.images.gc;
    let collector = Collector::new(Marks {
        high_percent: gc.high_percent.into(),
        low_percent: gc.low_percent.into(),
        min_age: Duration::from_secs(gc.min_age_seconds),
    });
    let previews = Previews::default();
    let node_name = configuration.effective_node_name();
    let node_api = NodeApi::new(node_name, &configuration.data_dir, collector.clone(), previews.clone());
    let server = Server::open(options, nodelet_crds::crds()).map_err(Error::Store)?.with_subresources(node_api.clone());
    let streams = NodeStreams::new();
    let server = server.with_streams(streams.clone());
    node_api.follow_with(server.client("default"));

    // What serves goes last, so it has a token of its own.
    let mut serving = Tasks::new();
    serve_api(&configuration, &server, &mut serving);
    let certificates = api_metrics::Certificates::register(&registry)?.follow(server.certificates(), serving.token());
    serving.spawn("the metrics of the API", async {
        certificates.await;
        Ok::<_, std::convert::Infallible>(())
    });
    let (ready, readiness) = watch::channel(http::Readiness::default());
    let runtime_ready = watch::Sender::new(false);
    if !configuration.observability.listen.is_empty() {
        let http = http::Http::bind(
            &configuration.observability.listen,
            registry.clone(),
            readiness,
            runtime_ready.subscribe(),
        )
        .await?;
        let token = serving.token();
        serving.spawn("the metrics endpoint", async move { http.serve(token).await });
    }
    tracing::info!(
        version = VERSION, node = configuration.effective_node_name(),
        socket = %configuration.socket().display(), after = ?started.elapsed(), "serving"
    );

    if configuration.runtime.managed {
        let managed = containerd::Managed::new(&configuration);
        let token = serving.token();
        serving.spawn("the managed containerd", async move { managed.run(token).await });
    }
    let logger = logger::install(&configuration.data_dir)?;
    let drivers = drivers::assemble(&configuration, logger)?;
    let node = drivers.clone();
    streams.reach_with(drivers.runtime.clone(), drivers.sandboxes.clone());

    let mut working = Tasks::new();
    let settings = nodelet_controllers::Settings {
        node_name: configuration.effective_node_name(),
        node_labels: configuration.node_labels.clone(),
        data_dir: configuration.data_dir.clone(),
        run_dir: configuration.run_dir.clone(),
        audit: Duration::from_secs(configuration.runtime.audit_seconds),
        version: VERSION.to_owned(),
        runtime_ready,
        collector,
        previews,
        capacity: capacity(),
        eviction: configuration.eviction.settings(capacity().1),
        system_reserved: configuration.system_reserved.amounts(),
        restart_backoff: configuration.runtime.crash_loop_back_off.to_backoff(),
    };
    let client = server.client("default");
    let token = working.token();
    let metrics = registry.clone();
    working.spawn("the reconcilers", {
        let client = client.clone();
        async move { Box::pin(nodelet_controllers::run(client, drivers, settings, &metrics, token)).await }
    });
    let source_metrics = SourceMetrics::register(&registry)?;
    let mut reports = Vec::new();
    for source in &configuration.sources {
        let (report, latest) = watch::channel(None);
        reports.push(latest);
        let source = DirectorySource {
            directory: source.directory.clone(),
            client: Client::new(client.clone()),
            audit: Duration::from_secs(configuration.runtime.audit_seconds),
            metrics: source_metrics.clone(),
            report,
        };
        let name = format!("the source {}", source.directory.display());
        let token = working.token();
        working.spawn(name, source.run(token));
    }
    let node_name = configuration.effective_node_name();
    let token = working.token();
    working.spawn("the sources' status", source_status::run(Client::new(client), node_name, reports, ready, token));

    notify::ready();
    let token = working.token();
    working.spawn("the watchdog", notify::watchdog(token));
    supervise(working, serving, &mut signals, &server.client("default"), &node).await
}

/// Waits for a signal or a fault, then stops everything in order.
async fn supervise(
    mut working: Tasks,
    mut serving: Tasks,
    signals: &mut Signals,
    client: &kube::Client,
    drivers: &nodelet_controllers::Drivers,
) -> Result<(), Error> {
    // Cancel-safe: tasks that ended stay to be collected, signals stay pending, and the lock on a shutdown is given back.
    let mut going_down = None;
    let fault = tokio::select! {
        () = signals.stop() => None,
        shutdown = shutdown::announced() => {
            going_down = Some(shutdown);
            None
        }
        ended = working.ended() => Some(ended),
        ended = serving.ended() => Some(ended),
    };
    notify::stopping();
    if let Some(shutdown) = going_down {
        stop_workloads(shutdown, &mut working, client, drivers, signals).await;
    }
    match &fault {
        None => tracing::info!("stopping: draining for at most {} s, workloads go on", DRAIN.as_secs()),
        Some((name, _)) => tracing::error!(task = name, "stopping: a task ended unexpectedly; workloads go on"),
    }
    let drain = async {
        let mut late = working.stop(DRAIN).await;
        late.extend(serving.stop(Duration::from_secs(3)).await);
        late
    };
    let late = tokio::select! {
        late = drain => late,
        () = signals.stop() => return Err(Error::Forced("the drain".to_owned())),
    };
    if !late.is_empty() {
        tracing::warn!(tasks = late.join(", "), "not finished in time");
    }
    match fault {
        None => Ok(()),
        Some((name, source)) => Err(Error::Ended { name, source }),
    }
}

/// The system goes down: nothing is started any more, and what runs is stopped in order. Then this waits for the signal
/// that ends us, or for word that the system stays up: the next start of the agent starts everything again.
async fn stop_workloads(
    shutdown: shutdown::Shutdown,
    working: &mut Tasks,
    client: &kube::Client,
    drivers: &nodelet_controllers::Drivers,
    signals: &mut Signals,
) {
    let start = std::time::Instant::now();
    tracing::info!(within = ?shutdown.within, "the system goes down: stopping all workloads");
    let late = working.stop(shutdown.within / 4).await;
    if !late.is_empty() {
        tracing::warn!(tasks = late.join(", "), "not finished in time");
    }
    let rest = shutdown.within.saturating_sub(start.elapsed());
    let stopped = nodelet_controllers::shutdown::stop_all(client, drivers, rest).await;
    tracing::info!(containers = stopped, took = ?start.elapsed(), "all workloads are stopped");
    tokio::select! {
        () = shutdown.let_go() => tracing::info!("the system stays up; starting anew"),
        () = signals.stop() => {}
    }
}

fn serve_api(configuration: &NodeletConfiguration, server: &Server, serving: &mut Tasks) {
    let socket = configuration.socket();
    let (unix, token) = (server.clone(), serving.token());
    serving.spawn("the API's socket", async move { unix.serve_unix(&socket, token).await });
    // Empty means the socket only; anything else was checked to be an address.
    if let Ok(listen) = configuration.api.listen.parse() {
        let (tls, token, pki) = (server.clone(), serving.token(), configuration.data_dir.join("pki"));
        serving.spawn("the API at api.listen", async move { tls.serve_tls(listen, &pki, None, token).await });
    }
}

/// `nodelet_build_info{version="…"} 1`
fn build_info(registry: &Registry) -> Result<(), prometheus::Error> {
    let info = IntGaugeVec::new(Opts::new("nodelet_build_info", "The running version."), &["version"])?;
    info.with_label_values(&[VERSION]).set(1);
    registry.register(Box::new(info))
}

/// The signals that end the agent, and the one that does not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let of = |kind| signal(kind).map_err(|source| Error::System { doing: "listening for signals", source });
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// The next signal to stop. Cancel-safe.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::warn!("a new configuration takes effect at the next start; workloads survive it"),
            }
        }
    }
}
