//! Running a program in a container, with its output. Dear (two processes of the OCI runtime each), so probes prefer
//! other ways.

use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, StartRequest, WaitRequest,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::containerd::Shared;
use super::record::{self, PROCESS_TYPE, json_any};
use super::{Error, ExecResult, ExecSpec, Streams, create};
use crate::containerd::is_not_found;
use crate::ids::ContainerId;

mod fifos;
mod interactive;
mod leftovers;

use fifos::Fifos;
pub(super) use fifos::{Live, make as make_fifo};
pub(super) use interactive::{open, resize};
pub(super) use leftovers::clear as clear_leftovers;

/// Output that is kept; the rest is read and dropped, so that the program never blocks on it.
const KEPT: usize = 16 << 10;
/// How long an ended program's children may hold its output open.
const OUTPUT_ENDS_WITHIN: Duration = Duration::from_millis(500);
/// How long a killed program may take to disappear.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// See [`super::Runtime::exec`]. `abandoned` fires when the caller is gone.
pub(super) async fn exec(
    shared: &Shared,
    id: &ContainerId,
    spec: &ExecSpec,
    abandoned: CancellationToken,
) -> Result<ExecResult, Error> {
    let failed = |source: std::io::Error| Error::Failed {
        doing: format!("running {:?} in container {id}", spec.command.first().map_or("", String::as_str)),
        source: Box::new(source),
    };
    let process = process(shared, id, &spec.command, false).await?;
    let exec_id = new_id();
    let streams = Streams { stdout: true, ..Streams::default() };
    let fifos = Fifos::make(&shared.options.run_dir, &shared.execs, id, &exec_id, streams).map_err(failed)?;
    let output = fifos.open_early().map_err(failed)?.stdout.map(Output::collect);
    let session = Session { shared, id, exec_id: &exec_id, spec };
    let result = match session.start(process, fifos.stdout()).await? {
        Ok(()) => session.wait(abandoned).await,
        Err(error) => Err(error),
    };
    // Always, also after a failed start; it returns when the output is copied, or after some seconds.
    let _ = tokio::time::timeout(OUTPUT_ENDS_WITHIN, session.delete()).await;
    let output = match output {
        Some(output) => output.finish().await,
        None => Vec::new(),
    };
    Ok(ExecResult { code: result?, output })
}

/// An id that no other program of the container has.
fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// One program, added to the task.
struct Session<'a> {
    shared: &'a Shared,
    id: &'a ContainerId,
    exec_id: &'a str,
    spec: &'a ExecSpec,
}

impl Session<'_> {
    fn doing(&self) -> String {
        format!("running {:?} in container {}", self.spec.command.first().map_or("", String::as_str), self.id)
    }

    /// Adds it to the task and starts it. The outer error says that it was not added, so that there is nothing to
    /// delete.
    async fn start(&self, process: prost_types::Any, path: String) -> Result<Result<(), Error>, Error> {
        // Closed never.
        let _permit = self.shared.execs_starting.acquire().await;
        self.add(process, path).await?;
        let containerd = &self.shared.containerd;
        let request = StartRequest { container_id: self.id.to_string(), exec_id: self.exec_id.to_owned() };
        Ok(match containerd.tasks().start(containerd.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) => Err(create::bad_command(&status).unwrap_or_else(|| containerd.error(self.doing(), status))),
        })
    }

    async fn add(&self, process: prost_types::Any, path: String) -> Result<(), Error> {
        let containerd = &self.shared.containerd;
        let request = containerd.request(ExecProcessRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec_id.to_owned(),
            stdout: path.clone(),
            stderr: path,
            spec: Some(process),
            ..Default::default()
        });
        match containerd.tasks().exec(request).await {
            Ok(_) => Ok(()),
            Err(status) if is_not_found(&status) => Err(record::absent(self.id)),
            Err(status) => Err(containerd.error(self.doing(), status)),
        }
    }

    /// Waits for its end; ends it when it takes too long.
    async fn wait(&self, abandoned: CancellationToken) -> Result<u32, Error> {
        let containerd = &self.shared.containerd;
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.to_owned());
        let wait = || containerd.request(WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() });
        let timeout = async {
            match self.spec.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let mut tasks = containerd.tasks();
        // All arms only wait; dropping the wait call has no effect on the program.
        tokio::select! {
            answer = tasks.wait(wait()) => {
                return answer
                    .map(|answer| answer.into_inner().exit_status)
                    .map_err(|status| containerd.error(self.doing(), status));
            }
            () = timeout => {}
            () = abandoned.cancelled() => {}
        }
        let (container_id, exec_id) = (container_id.clone(), exec_id.clone());
        let kill = KillRequest { container_id, exec_id, signal: libc::SIGKILL.unsigned_abs(), all: false };
        let _ = containerd.tasks().kill(containerd.request(kill)).await;
        let _ = tokio::time::timeout(DIES_WITHIN, containerd.tasks().wait(wait())).await;
        let text = self.spec.timeout.map_or_else(|| "abandoned".to_owned(), |t| format!("no end within {t:?}"));
        let source = Box::new(std::io::Error::new(std::io::ErrorKind::TimedOut, text));
        Err(Error::Failed { doing: self.doing(), source })
    }

    async fn delete(&self) {
        let containerd = &self.shared.containerd;
        let (container_id, exec_id) = (self.id.to_string(), self.exec_id.to_owned());
        let request = containerd.request(DeleteProcessRequest { container_id, exec_id });
        let _ = containerd.tasks().delete_process(request).await;
    }
}

/// The container's own process with another program: same user, environment, directory and confinement.
async fn process(
    shared: &Shared,
    id: &ContainerId,
    command: &[String],
    terminal: bool,
) -> Result<prost_types::Any, Error> {
    let doing = || format!("reading the specification of container {id}");
    if command.is_empty() {
        return Err(Error::Invalid { field: "exec.command".to_owned(), message: "is empty".to_owned() });
    }
    let record = record::get(shared, id).await?.ok_or_else(|| record::absent(id))?;
    let bytes = record.spec.unwrap_or_default().value;
    let mut oci: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::Failed { doing: doing(), source: Box::new(e) })?;
    let mut process = oci.get_mut("process").map(serde_json::Value::take).unwrap_or_default();
    let Some(fields) = process.as_object_mut() else {
        return Err(Error::Failed { doing: doing(), source: "it has no process".into() });
    };
    fields.insert("args".to_owned(), command.into());
    fields.insert("terminal".to_owned(), terminal.into());
    fields.remove("consoleSize");
    if terminal && let Some(env) = fields.entry("env").or_insert_with(|| Vec::<String>::new().into()).as_array_mut() {
        let has_term = env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")));
        if !has_term {
            env.push("TERM=xterm".into());
        }
    }
    json_any(PROCESS_TYPE, &process)
}

/// What comes out of the pipe.
struct Output {
    stop: watch::Sender<bool>,
    task: AbortOnDropHandle<Vec<u8>>,
}

impl Output {
    fn collect(mut receiver: pipe::Receiver) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            let mut buffer = [0u8; 4096];
            loop {
                // Biased: what is in the pipe comes before the word to stop. Both arms are cancel-safe: a read that
                // is dropped has read nothing.
                let length = tokio::select! {
                    biased;
                    read = receiver.read(&mut buffer) => read.unwrap_or(0),
                    _ = stopped.wait_for(|stop| *stop) => 0,
                };
                if length == 0 {
                    return kept;
                }
                let room = KEPT.saturating_sub(kept.len()).min(length);
                kept.extend_from_slice(&buffer[..room]);
            }
        });
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    async fn finish(self) -> Vec<u8> {
        self.stop.send_replace(true);
        self.task.await.unwrap_or_default()
    }
}
