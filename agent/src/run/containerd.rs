//! `runtime.managed`: an own containerd, for nodes that have none.
//!
//! It is started only when nobody answers at `runtime.address`, in a process group of its own and with its files below
//! `dataDir`, so it outlives the agent; the next agent adopts it. When it dies it is started again, with back-off.
//! A containerd that is not ours is used and never replaced: its own service manager is responsible for it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::NodeletConfiguration;

/// Shortest and longest time until it is started again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Having lived for so long, it may die again without a longer wait.
const STABLE: Duration = Duration::from_secs(60);
/// It has this long to answer after its start.
const START: Duration = Duration::from_secs(30);
/// Its log is put aside when it is longer than this at a start.
const LOG: u64 = 10 << 20;

/// The managed containerd cannot be kept running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be started at all.
    #[error("starting containerd (runtime.managed); install the containerd package, or set runtime.managed: false")]
    Spawn(#[source] io::Error),
    /// Its files cannot be written.
    #[error("preparing {path} for containerd", path = path.display())]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where everything of it is.
pub(super) struct Managed {
    address: PathBuf,
    root: PathBuf,
    state: PathBuf,
}

impl Managed {
    pub(super) fn new(configuration: &NodeletConfiguration) -> Self {
        Self {
            address: configuration.runtime.address.clone(),
            root: configuration.data_dir.join("containerd"),
            state: configuration.run_dir.join("containerd"),
        }
    }

    /// Keeps it running until `shutdown`, which leaves it alone.
    pub(super) async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut wait = BACKOFF.0;
        loop {
            let since = Instant::now();
            match self.answering().await {
                Some(pid) if self.recorded() == pid => {
                    tracing::info!(pid, "adopted the managed containerd that runs already");
                    if !self.ended(pid, &shutdown).await {
                        return Ok(());
                    }
                }
                Some(pid) => {
                    tracing::info!(pid, address = %self.address.display(), "a containerd runs here that is not ours: none is started");
                    shutdown.cancelled().await;
                    return Ok(());
                }
                None => {
                    let mut child = self.start()?;
                    let pid = i32::try_from(child.id()).unwrap_or_default();
                    self.until_answering(&shutdown).await;
                    if !self.ended(pid, &shutdown).await {
                        return Ok(());
                    }
                    // It has ended, so this does not block.
                    let _ = child.wait();
                }
            }
            if since.elapsed() > STABLE {
                wait = BACKOFF.0;
            }
            tracing::warn!(again_in = ?wait, log = %self.log().display(), "the managed containerd ended");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = sleep(wait) => {}
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Who answers at the address. 0 is somebody in another PID namespace.
    async fn answering(&self) -> Option<i32> {
        let stream = UnixStream::connect(&self.address).await.ok()?;
        Some(stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default())
    }

    /// Whom we started.
    fn recorded(&self) -> i32 {
        let text = fs::read_to_string(self.state.join("containerd.pid")).unwrap_or_default();
        text.trim().parse().unwrap_or(-1)
    }

    fn log(&self) -> PathBuf {
        self.root.join("containerd.log")
    }

    fn start(&self) -> Result<std::process::Child, Error> {
        let prepare = |path: &Path, result: io::Result<()>| {
            result.map_err(|source| Error::Prepare { path: path.to_owned(), source })
        };
        prepare(&self.root, fs::create_dir_all(&self.root))?;
        prepare(&self.state, fs::create_dir_all(&self.state))?;
        if let Some(directory) = self.address.parent() {
            prepare(directory, fs::create_dir_all(directory))?;
        }
        let file = self.root.join("config.toml");
        prepare(&file, fs::write(&file, self.config()))?;
        let log = self.log();
        if fs::metadata(&log).is_ok_and(|log| log.len() > LOG) {
            prepare(&log, fs::rename(&log, log.with_extension("log.1")))?;
        }
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.map_err(|source| Error::Prepare { path: log.clone(), source })?;
        let errors = output.try_clone().map_err(|source| Error::Prepare { path: log, source })?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // A signal to our group, such as Ctrl-C, is not meant for it. systemd's NOTIFY_SOCKET is not its own either.
            .process_group(0)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .spawn()
            .map_err(Error::Spawn)?;
        let pid = self.state.join("containerd.pid");
        prepare(&pid, fs::write(&pid, format!("{}\n", child.id())))?;
        tracing::info!(pid = child.id(), address = %self.address.display(), "started the managed containerd");
        Ok(child)
    }

    /// Understood by containerd 1.6, 1.7 and 2.x. CRI is the kubelet's; it would only cost memory.
    fn config(&self) -> String {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        format!(
            "version = 2\nroot = {}\nstate = {}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n\
             [grpc]\naddress = {}\n",
            quoted(&self.root.join("root")),
            quoted(&self.state.join("state")),
            quoted(&self.address)
        )
    }

    /// Waits until it answers; only a start does this, since the socket appears without an event we could trust.
    async fn until_answering(&self, shutdown: &CancellationToken) {
        let started = Instant::now();
        let answers = async {
            while UnixStream::connect(&self.address).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            answered = timeout(START, answers) => match answered {
                Ok(()) => tracing::info!(after = ?started.elapsed(), "the managed containerd answers"),
                Err(_) => tracing::warn!(log = %self.log().display(), "the managed containerd does not answer yet"),
            }
        }
    }

    /// Waits for the end of a process; `false`: the agent stops first.
    async fn ended(&self, pid: i32, shutdown: &CancellationToken) -> bool {
        let Some(process) = watch(pid) else { return true };
        tokio::select! {
            () = shutdown.cancelled() => false,
            _ = process.ready(Interest::READABLE) => true,
        }
    }
}

/// A process as something to wait for; `None` when it is gone.
fn watch(pid: i32) -> Option<AsyncFd<OwnedFd>> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // The replacement asks the caller, by `unsafe`, that the descriptor stays the same: an owned one that nobody else
    // can reach does.
    #[allow(deprecated)]
    AsyncFd::with_interest(process, Interest::READABLE).ok()
}
