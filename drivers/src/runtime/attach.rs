//! Attaching to a container's own program.
//!
//! What it prints is taken from its log, from the end of it on: so it is the log's writer alone that reads the
//! container's pipes, no client can hold up a container, and nothing is missed while the log is not rotated away
//! faster than it is read. For a container with a terminal the writer does not wait for the end of a line.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::WaitRequest;
use futures::FutureExt as _;
use tokio::sync::watch;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::containerd::Shared;
use super::input::PipeInput;
use super::session::{Input, Output, Session, Streams, TerminalSize};
use super::{ContainerSpec, Error, LogTarget, TaskState, exec, list, record, stdin};
use crate::containerd::is_not_found;
use crate::ids::ContainerId;
use crate::logs::{LogReader, Options, Source};

/// While containerd restarts, it is asked again this often.
const RETRY: Duration = Duration::from_millis(500);

/// How long the shim may take to open its two ends of a terminal's input, which it does in the background. Were ours the only
/// writing end, its close would be the console's: the shim shuts it down at the end of its input (`CopyConsole` in containerd's
/// cmd/containerd-shim-runc-v2/runc/platform.go).
const OPENS_WITHIN: Duration = Duration::from_secs(10);

/// See [`super::Runtime::attach`].
pub(super) async fn attach(shared: Arc<Shared>, id: &ContainerId, streams: Streams) -> Result<Session, Error> {
    let spec = record::journal(&shared, id).await?.spec;
    let failed = |doing: &str, source: std::io::Error| Error::Failed {
        doing: format!("{doing} container {id}"),
        source: Box::new(source),
    };
    let running = list::get(&shared, id).await?.is_some_and(|container| is_alive(&container.state));
    if !running {
        let source = "it is not running".into();
        return Err(Error::Failed { doing: format!("attaching to container {id}"), source });
    }
    if streams.stdin && !spec.stdin {
        let message = "the container was made without an input (stdin: true)".to_owned();
        return Err(Error::Invalid { field: "stdin".to_owned(), message });
    }
    let exit = exit(shared.clone(), id.clone()).boxed().shared();
    let output = async |wanted: bool, source: Source| match &spec.log {
        LogTarget::File { path, .. } if wanted => {
            let options = Options { source: Some(source), ..Options::default() };
            let done = exit.clone().map(|_| ()).boxed();
            let chunks = LogReader::new(path, options).attach(done).await;
            let chunks = chunks.map_err(|source| failed("reading the log of", source))?;
            Ok(Some(Box::new(StreamReader::new(chunks)) as Output))
        }
        _ => Ok(None),
    };
    let stdout = output(streams.stdout, Source::Stdout).await?;
    let stderr = output(streams.stderr && !spec.tty, Source::Stderr).await?;
    // After the output's begin was found, so that what answers to the input is part of it.
    let input = match streams.stdin {
        true => Some(open_input(&shared, &spec).map_err(|e| failed("opening the input of", e))?),
        false => None,
    };
    let (resize, mut sizes) = watch::channel(TerminalSize::default());
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    if spec.tty {
        let id = id.clone();
        tokio::spawn(gone.run_until_cancelled_owned(async move {
            while sizes.changed().await.is_ok() {
                let size = *sizes.borrow_and_update();
                exec::resize(&shared, &id, "", size).await;
            }
        }));
    }
    Ok(Session {
        stdin: input.map(|input| Box::new(input) as Input),
        stdout,
        stderr,
        resize: spec.tty.then_some(resize),
        exit: async move {
            let _guard = guard;
            exit.await
                .map_err(|reason| Error::Failed { doing: "waiting for a container".to_owned(), source: reason.into() })
        }
        .boxed(),
    })
}

/// The input of the container, which ends with this if it is to be used once.
fn open_input(shared: &Arc<Shared>, spec: &ContainerSpec) -> std::io::Result<PipeInput> {
    let run_dir = &shared.options.run_dir;
    if spec.tty {
        // Whatever the client does with its own.
        let keeper = stdin::open(run_dir, &spec.id)?;
        tokio::spawn(async move {
            tokio::time::sleep(OPENS_WITHIN).await;
            drop(keeper);
        });
    }
    if !spec.stdin_once {
        return Ok(PipeInput::lasting(stdin::open(run_dir, &spec.id)?));
    }
    let pipe = if spec.tty { stdin::open(run_dir, &spec.id)? } else { stdin::take(run_dir, &spec.id)? };
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    let (run_dir, id) = (run_dir.clone(), spec.id.clone());
    tokio::spawn(async move {
        ended.cancelled().await;
        stdin::end(&run_dir, &id);
    });
    Ok(PipeInput::ending(pipe, spec.tty, guard))
}

fn is_alive(state: &TaskState) -> bool {
    matches!(state, TaskState::Running { .. } | TaskState::Paused { .. } | TaskState::Created { .. })
}

/// The container's exit code, whatever containerd does meanwhile.
async fn exit(shared: Arc<Shared>, id: ContainerId) -> Result<u32, String> {
    let containerd = &shared.containerd;
    loop {
        let wait = WaitRequest { container_id: id.to_string(), ..Default::default() };
        match containerd.tasks().wait(containerd.request(wait)).await {
            Ok(answer) => return Ok(answer.into_inner().exit_status),
            Err(status) if is_not_found(&status) => return Err(format!("container {id} is gone")),
            Err(_) => {}
        }
        match list::get(&shared, &id).await {
            Ok(Some(container)) => match container.state {
                TaskState::Exited(exit) => return Ok(exit.code),
                TaskState::Absent => return Err(format!("container {id} is gone")),
                _ => {}
            },
            Ok(None) => return Err(format!("container {id} is gone")),
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}
