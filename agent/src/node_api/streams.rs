//! `exec`, `attach` and `portforward` of workloads, over the drivers.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use async_trait::async_trait;
use futures::FutureExt;
use jiff::Timestamp;
use nodelet_apiserver as api;
use nodelet_apiserver::{PortConnection, Process, StdStreams, StreamError, StreamKind, StreamTarget};
use nodelet_crds::labels;
use nodelet_drivers::ids::{ContainerId, SandboxId};
use nodelet_drivers::runtime::{self, Container, Program, Runtime, Session, Streams, TaskState, TerminalSize};
use nodelet_drivers::sandbox::{Sandboxes, connect::connect_loopback};
use serde_json::Value;
use tokio::sync::watch;

/// Exit codes by which shells tell why a program did not start.
const NOT_FOUND: u32 = 127;
const NOT_RUNNABLE: u32 = 126;

/// Leads the streams of the API's clients into containers.
#[derive(Default)]
pub struct NodeStreams {
    reach: OnceLock<Reach>,
}

/// The drivers that lead there.
struct Reach {
    runtime: Arc<dyn Runtime>,
    sandboxes: Arc<dyn Sandboxes>,
}

#[async_trait]
impl api::Streams for NodeStreams {
    async fn check(&self, target: &StreamTarget, kind: StreamKind) -> Result<(), StreamError> {
        let reach = self.reach()?;
        match kind {
            StreamKind::Exec | StreamKind::Attach => reach.container(target).await.map(|_| ()),
            StreamKind::PortForward => reach.any_container(target).await.map(|_| ()),
        }
    }

    async fn exec(
        &self,
        target: &StreamTarget,
        command: Vec<String>,
        streams: StdStreams,
    ) -> Result<Process, StreamError> {
        let reach = self.reach()?;
        let container = reach.container(target).await?;
        let program = Program { command, streams: wanted(streams) };
        match reach.runtime.open_exec(&container.id, &program).await {
            Ok(session) => Ok(process(session)),
            // As a shell does: said on the program's error output, told by the exit code.
            Err(runtime::Error::Invalid { field, message }) if field == "command" => Ok(unstartable(&message, streams)),
            Err(error) => Err(failed(error, "running the command")),
        }
    }

    async fn attach(&self, target: &StreamTarget, streams: StdStreams) -> Result<Process, StreamError> {
        let reach = self.reach()?;
        let container = reach.container(target).await?;
        match reach.runtime.attach(&container.id, wanted(streams)).await {
            Ok(session) => Ok(process(session)),
            Err(runtime::Error::Invalid { message, .. }) => {
                let name = target.container.as_deref().unwrap_or_default();
                Err(StreamError::Invalid(format!("container {name} takes no input: {message}")))
            }
            Err(error) => Err(failed(error, "attaching")),
        }
    }

    async fn connect(&self, target: &StreamTarget, port: u16) -> Result<Box<dyn PortConnection>, StreamError> {
        let reach = self.reach()?;
        let container = reach.any_container(target).await?;
        let broken = |message: String| StreamError::Connect(message);
        let sandbox = container.labels.get(labels::SANDBOX).and_then(|id| SandboxId::new(id).ok());
        let sandbox = sandbox.ok_or_else(|| broken(format!("container {} names no sandbox", container.id)))?;
        let found = reach.sandboxes.get(&sandbox).await.map_err(|error| StreamError::Failed {
            message: format!("looking for the network of workload {}", target.name),
            source: Box::new(error),
        })?;
        let found = found.ok_or_else(|| broken(format!("workload {} has no network namespace", target.name)))?;
        match connect_loopback(found.netns.as_deref(), port).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Err(error) => Err(broken(format!("connecting to localhost:{port} in workload {}: {error}", target.name))),
        }
    }
}

impl NodeStreams {
    /// One that cannot reach anything yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Gives it the drivers, which come after the server that this is part of.
    pub fn reach_with(&self, runtime: Arc<dyn Runtime>, sandboxes: Arc<dyn Sandboxes>) {
        let _ = self.reach.set(Reach { runtime, sandboxes });
    }

    fn reach(&self) -> Result<&Reach, StreamError> {
        self.reach.get().ok_or_else(|| StreamError::Failed {
            message: "containers cannot be reached yet".to_owned(),
            source: "the agent is starting".into(),
        })
    }
}

impl Reach {
    /// The running container that is meant.
    async fn container(&self, target: &StreamTarget) -> Result<Container, StreamError> {
        let name = target.container.as_deref().unwrap_or_default();
        if let Some(container) = self.named_by_status(target, |status| status["name"] == name).await?
            && container.labels.get(labels::CONTAINER).is_some_and(|own| own == name)
        {
            return Ok(container);
        }
        let mut all = self.all(target).await?;
        all.retain(|container| container.labels.get(labels::CONTAINER).is_some_and(|own| own == name));
        all.sort_by_key(|container| container.created_at);
        match all.iter().rev().find(|container| is_running(container)) {
            Some(container) => Ok(container.clone()),
            None => Err(StreamError::NotRunning(not_running(target, name, all.last(), SystemTime::now()))),
        }
    }

    /// Any running container of the workload: they share one network.
    async fn any_container(&self, target: &StreamTarget) -> Result<Container, StreamError> {
        if let Some(container) = self.named_by_status(target, |_| true).await? {
            return Ok(container);
        }
        let all = self.all(target).await?;
        all.into_iter().find(is_running).ok_or_else(|| {
            let phase = target.object["status"]["phase"].as_str().unwrap_or("Pending");
            StreamError::NotRunning(format!("workload {} has no running container; it is {phase}", target.name))
        })
    }

    /// A running container that the workload's status names: quick, and right but for a moment after a restart.
    async fn named_by_status(
        &self,
        target: &StreamTarget,
        wanted: impl Fn(&Value) -> bool + Send,
    ) -> Result<Option<Container>, StreamError> {
        for id in ids_in_status(&target.object, wanted) {
            let found = self.runtime.get(&id).await.map_err(|error| failed(error, "looking for the container"))?;
            if let Some(container) = found.filter(|container| is_of(container, target) && is_running(container)) {
                return Ok(Some(container));
            }
        }
        Ok(None)
    }

    async fn all(&self, target: &StreamTarget) -> Result<Vec<Container>, StreamError> {
        let mut all = self.runtime.list().await.map_err(|error| failed(error, "looking for the container"))?;
        all.retain(|container| is_of(container, target));
        Ok(all)
    }
}

/// Ids of those containers of the workload's status that are `wanted`.
fn ids_in_status(object: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<ContainerId> {
    let mut ids = Vec::new();
    for list in ["containerStatuses", "initContainerStatuses"] {
        for status in object["status"][list].as_array().into_iter().flatten().filter(|status| wanted(status)) {
            let id = status["containerID"].as_str().unwrap_or_default();
            ids.extend(ContainerId::new(id.rsplit('/').next().unwrap_or_default()).ok());
        }
    }
    ids
}

fn is_of(container: &Container, target: &StreamTarget) -> bool {
    let uid = target.object["metadata"]["uid"].as_str();
    uid.is_some() && container.labels.get(labels::WORKLOAD_UID).map(String::as_str) == uid
}

fn is_running(container: &Container) -> bool {
    matches!(container.state, TaskState::Running { .. })
}

/// Why a container cannot be talked to, and where to look.
fn not_running(target: &StreamTarget, name: &str, last: Option<&Container>, now: SystemTime) -> String {
    let state = match last.map(|container| &container.state) {
        Some(TaskState::Exited(exit)) => {
            let ago = now.duration_since(exit.at).unwrap_or_default().as_secs();
            let at = Timestamp::try_from(exit.at).map(|at| format!("{at:.0}")).unwrap_or_default();
            let why = if exit.oom_killed { ", killed for its memory" } else { "" };
            format!("it ended {ago} s ago, at {at}, with exit code {}{why}", exit.code)
        }
        Some(TaskState::Paused { .. }) => "it is paused".to_owned(),
        Some(TaskState::Created { .. }) => "it is just being started".to_owned(),
        _ => match super::log::waiting(&target.object, name) {
            reason if reason.is_empty() => "it has not started yet".to_owned(),
            reason => reason.trim_start_matches("; ").to_owned(),
        },
    };
    let logs = match last {
        Some(_) => format!("; its output: kubectl logs {} -c {name}, or nodelet logs", target.name),
        None => String::new(),
    };
    format!("container {name} of {} is not running: {state}{logs}", target.name)
}

fn wanted(streams: StdStreams) -> Streams {
    let StdStreams { stdin, stdout, stderr, tty } = streams;
    Streams { stdin, stdout, stderr, tty }
}

/// The driver's session in the server's words.
fn process(session: Session) -> Process {
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let exit = exit.map(|code| code.map_err(|error| failed(error, "waiting for its end"))).boxed();
    Process { stdin, stdout, stderr, resize: resize.map(translated), exit }
}

fn translated(to: watch::Sender<TerminalSize>) -> watch::Sender<api::TerminalSize> {
    let (sender, mut sizes) = watch::channel(api::TerminalSize::default());
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let api::TerminalSize { width, height } = *sizes.borrow_and_update();
            if to.send(TerminalSize { width, height }).is_err() {
                return;
            }
        }
    });
    sender
}

/// A program that never was, with its last words.
fn unstartable(message: &str, streams: StdStreams) -> Process {
    let code = match message.contains("not found") || message.contains("no such file") {
        true => NOT_FOUND,
        false => NOT_RUNNABLE,
    };
    let words = || Box::new(std::io::Cursor::new(format!("{message}\n").into_bytes())) as api::Output;
    let on_stdout = streams.stdout && (streams.tty || !streams.stderr);
    let nothing = || Box::new(tokio::io::empty()) as api::Output;
    Process {
        stdin: streams.stdin.then(|| Box::new(tokio::io::sink()) as api::Input),
        stdout: streams.stdout.then(|| if on_stdout { words() } else { nothing() }),
        stderr: (streams.stderr && !streams.tty).then(words),
        resize: streams.tty.then(|| watch::Sender::new(api::TerminalSize::default())),
        exit: futures::future::ready(Ok(code)).boxed(),
    }
}

fn failed(error: runtime::Error, doing: &str) -> StreamError {
    match error {
        runtime::Error::NotFound { .. } => StreamError::NotRunning("the container is gone".to_owned()),
        runtime::Error::Invalid { field, message } => StreamError::Start(format!("{field}: {message}")),
        error => StreamError::Failed { message: doing.to_owned(), source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests;
