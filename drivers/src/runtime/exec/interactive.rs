//! A program in a container that somebody talks to.
//!
//! A task of its own tends each program from its start to its deletion, so that one whose caller went away is ended
//! and cleared like any other. What a crash of the agent leaves is found by [`super::leftovers`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use futures::FutureExt as _;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::super::containerd::Shared;
use super::super::input::{PipeInput, Unread};
use super::super::session::{Input, Output, Program, Session, TerminalSize};
use super::super::{Error, create, record};
use super::fifos::{Ends, Fifos};
use crate::containerd::is_not_found;
use crate::ids::ContainerId;

/// How long a program that nobody wants any more may take to end after SIGHUP.
const HANGS_UP_WITHIN: Duration = Duration::from_secs(5);
/// How long a killed program may take to disappear.
const DIES_WITHIN: Duration = Duration::from_secs(10);
/// How long the shim may need to open a program's input.
const READS_WITHIN: Duration = Duration::from_secs(10);
/// While containerd restarts, it is asked again this often, so many times.
const RETRY: Duration = Duration::from_millis(250);
const RETRIES: u32 = 120;
const FEW: u32 = 4;

/// See [`super::super::Runtime::open_exec`]. Not to be cancelled before it returns; what it returns may be dropped.
pub(in super::super) async fn open(shared: Arc<Shared>, id: ContainerId, program: Program) -> Result<Session, Error> {
    let Program { command, mut streams } = program;
    streams.stderr &= !streams.tty;
    let process = super::process(&shared, &id, &command, streams.tty).await?;
    let exec = super::new_id();
    let doing = format!("running {:?} in container {id}", command.first().map_or("", String::as_str));
    let failed = |source: std::io::Error| Error::Failed { doing: doing.clone(), source: Box::new(source) };
    let fifos = Fifos::make(&shared.options.run_dir, &shared.execs, &id, &exec, streams).map_err(failed)?;
    let early = fifos.open_early().map_err(failed)?;
    let one = Exec { shared, id, exec, doing };
    one.add(process, &fifos, streams.tty).await?;
    let started = match one.start().await {
        Ok(()) => {
            fifos.open_late().map_err(|source| Error::Failed { doing: one.doing.clone(), source: Box::new(source) })
        }
        Err(error) => Err(error),
    };
    drop(early);
    match started {
        Ok(mut ends) => {
            discard_unless(streams.stdout, &mut ends.stdout);
            discard_unless(streams.stderr, &mut ends.stderr);
            Ok(one.tend(fifos, ends, streams.tty))
        }
        Err(error) => {
            // Always, also after a failed start.
            one.kill(libc::SIGKILL).await;
            one.delete(fifos, FEW).await;
            Err(error)
        }
    }
}

/// One program, added to a container's task.
pub(super) struct Exec {
    shared: Arc<Shared>,
    id: ContainerId,
    exec: String,
    doing: String,
}

impl Exec {
    /// One that an earlier agent left behind.
    pub(super) fn found(shared: Arc<Shared>, id: ContainerId, exec: &str) -> Self {
        let doing = format!("ending a program in container {id}");
        Self { shared, id, exec: exec.to_owned(), doing }
    }

    async fn add(&self, process: prost_types::Any, fifos: &Fifos, terminal: bool) -> Result<(), Error> {
        let containerd = &self.shared.containerd;
        let request = containerd.request(ExecProcessRequest {
            container_id: self.id.to_string(),
            exec_id: self.exec.clone(),
            stdin: fifos.stdin(),
            stdout: fifos.stdout(),
            stderr: fifos.stderr(),
            terminal,
            spec: Some(process),
        });
        match containerd.tasks().exec(request).await {
            Ok(_) => Ok(()),
            Err(status) if is_not_found(&status) => Err(record::absent(&self.id)),
            Err(status) => Err(containerd.error(self.doing.clone(), status)),
        }
    }

    async fn start(&self) -> Result<(), Error> {
        let containerd = &self.shared.containerd;
        let start = StartRequest { container_id: self.id.to_string(), exec_id: self.exec.clone() };
        match containerd.tasks().start(containerd.request(start)).await {
            Ok(_) => Ok(()),
            Err(status) => {
                Err(create::bad_command(&status).unwrap_or_else(|| containerd.error(self.doing.clone(), status)))
            }
        }
    }

    /// Gives the streams away and sees to the rest.
    fn tend(self, fifos: Fifos, ends: Ends, tty: bool) -> Session {
        let (reading, read) = mpsc::channel(1);
        let (exit, exited) = oneshot::channel();
        let (input_ended, abandoned) = (CancellationToken::new(), CancellationToken::new());
        let (resize, sizes) = watch::channel(TerminalSize::default());
        let output = |pipe: Option<pipe::Receiver>| {
            pipe.map(|pipe| Box::new(Reader { pipe, reading: Some(reading.clone()) }) as Output)
        };
        let guard = abandoned.clone().drop_guard();
        let session = Session {
            stdin: ends
                .stdin
                .map(|pipe| Box::new(PipeInput::ending(pipe, tty, input_ended.clone().drop_guard())) as Input),
            stdout: output(ends.stdout),
            stderr: output(ends.stderr),
            resize: tty.then_some(resize),
            exit: async move {
                let code = exited.await;
                guard.disarm();
                code.unwrap_or_else(|_| {
                    let source = "the agent is stopping".into();
                    Err(Error::Failed { doing: "waiting for a program".to_owned(), source })
                })
            }
            .boxed(),
        };
        // Else the channel would never end.
        drop(reading);
        tokio::spawn(async move {
            let code = self.see_through((input_ended, ends.keeper), sizes, abandoned, tty).await;
            let _ = exit.send(code);
            wait_for_readers(read).await;
            self.delete(fifos, RETRIES).await;
        });
        session
    }

    /// Waits for the program's end, and does meanwhile what its streams ask for.
    async fn see_through(
        &self,
        (input_ended, mut keeper): (CancellationToken, Option<Unread>),
        mut sizes: watch::Receiver<TerminalSize>,
        abandoned: CancellationToken,
        tty: bool,
    ) -> Result<u32, Error> {
        let input = async {
            input_ended.cancelled().await;
            // An end before that would be missed. A program that closed its input is waited for in vain.
            if let Some(keeper) = &mut keeper {
                let _ = tokio::time::timeout(READS_WITHIN, keeper.reader()).await;
            }
            drop(keeper);
            // A terminal whose input is closed goes away, with what the program still prints.
            if !tty {
                self.close_input().await;
            }
            std::future::pending::<()>().await;
        };
        let resizes = async {
            while sizes.changed().await.is_ok() {
                let size = *sizes.borrow_and_update();
                self.resize(size).await;
            }
            std::future::pending::<()>().await;
        };
        // The first two only end what has lost its meaning, the others only wait.
        tokio::select! {
            () = input => {}
            () = resizes => {}
            code = self.wait() => return code,
            () = abandoned.cancelled() => {}
        }
        self.close_input().await;
        self.kill(libc::SIGHUP).await;
        if let Ok(code) = tokio::time::timeout(HANGS_UP_WITHIN, self.wait()).await {
            return code;
        }
        self.end().await
    }

    /// Kills it and waits.
    async fn end(&self) -> Result<u32, Error> {
        self.kill(libc::SIGKILL).await;
        let waited = tokio::time::timeout(DIES_WITHIN, self.wait()).await;
        waited.unwrap_or_else(|elapsed| Err(Error::Failed { doing: self.doing.clone(), source: Box::new(elapsed) }))
    }

    async fn wait(&self) -> Result<u32, Error> {
        let containerd = &self.shared.containerd;
        let mut tries = 0;
        loop {
            let wait = WaitRequest { container_id: self.id.to_string(), exec_id: self.exec.clone() };
            match containerd.tasks().wait(containerd.request(wait)).await {
                Ok(answer) => return Ok(answer.into_inner().exit_status),
                // containerd restarts: the program goes on meanwhile.
                Err(status) if !is_not_found(&status) && tries < RETRIES => {
                    tries += 1;
                    tokio::time::sleep(RETRY).await;
                }
                Err(status) => return Err(containerd.error(self.doing.clone(), status)),
            }
        }
    }

    async fn close_input(&self) {
        let containerd = &self.shared.containerd;
        let close = CloseIoRequest { container_id: self.id.to_string(), exec_id: self.exec.clone(), stdin: true };
        if let Err(status) = containerd.tasks().close_io(containerd.request(close)).await
            && !is_not_found(&status)
        {
            tracing::debug!(container = %self.id, %status, "closing the input of a program");
        }
    }

    async fn resize(&self, size: TerminalSize) {
        resize(&self.shared, &self.id, &self.exec, size).await;
    }

    async fn kill(&self, signal: i32) {
        let containerd = &self.shared.containerd;
        let (container_id, exec_id) = (self.id.to_string(), self.exec.clone());
        let kill = KillRequest { container_id, exec_id, signal: signal.unsigned_abs(), all: false };
        let _ = containerd.tasks().kill(containerd.request(kill)).await;
    }

    /// Takes the program off the task, and the pipes after it.
    async fn delete(&self, fifos: Fifos, tries: u32) {
        if self.take_off(tries).await { drop(fifos) } else { fifos.leave() }
    }

    async fn take_off(&self, tries: u32) -> bool {
        let containerd = &self.shared.containerd;
        for _ in 0..tries {
            let (container_id, exec_id) = (self.id.to_string(), self.exec.clone());
            let request = containerd.request(DeleteProcessRequest { container_id, exec_id });
            match containerd.tasks().delete_process(request).await {
                Ok(_) => return true,
                Err(status) if is_not_found(&status) => return true,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
        false
    }

    /// Ends it, whatever state it is in; for one that was found.
    pub(super) async fn clear(&self) -> bool {
        self.kill(libc::SIGKILL).await;
        let containerd = &self.shared.containerd;
        let wait = WaitRequest { container_id: self.id.to_string(), exec_id: self.exec.clone() };
        let _ = tokio::time::timeout(DIES_WITHIN, containerd.tasks().wait(containerd.request(wait))).await;
        let (container_id, exec_id) = (self.id.to_string(), self.exec.clone());
        let request = containerd.request(DeleteProcessRequest { container_id, exec_id });
        match containerd.tasks().delete_process(request).await {
            Ok(_) => true,
            Err(status) => is_not_found(&status),
        }
    }
}

/// Tells a terminal its size; of the container's own program if `exec` is empty.
pub(in super::super) async fn resize(shared: &Shared, id: &ContainerId, exec: &str, size: TerminalSize) {
    if size.width == 0 || size.height == 0 {
        return;
    }
    let containerd = &shared.containerd;
    let (width, height) = (size.width.into(), size.height.into());
    let request = ResizePtyRequest { container_id: id.to_string(), exec_id: exec.to_owned(), width, height };
    if let Err(status) = containerd.tasks().resize_pty(containerd.request(request)).await {
        tracing::debug!(container = %id, %status, "resizing a terminal");
    }
}

/// Reads what nobody asked for, so that the program does not wait for a reader.
fn discard_unless(wanted: bool, output: &mut Option<pipe::Receiver>) {
    if !wanted && let Some(mut pipe) = output.take() {
        tokio::spawn(async move { tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await });
    }
}

/// Until all outputs were read to their end, or are wanted no more.
async fn wait_for_readers(mut read: mpsc::Receiver<()>) {
    // Nothing is ever sent: the channel ends with its last sender.
    while read.recv().await.is_some() {}
}

/// An output. Knows when it was read to its end.
struct Reader {
    pipe: pipe::Receiver,
    reading: Option<mpsc::Sender<()>>,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.pipe).poll_read(cx, buffer);
        let ended = match &result {
            Poll::Ready(Ok(())) => buffer.filled().len() == before && buffer.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended {
            self.reading = None;
        }
        result
    }
}
