//! Streams of the fake's programs.
//!
//! Programs of [`Runtime::open_exec`](super::super::Runtime::open_exec) print what follows `echo `, copy their input to
//! their output if they are `cat`, go on for ever if they `sleep`, and end with the N of `exit N`. A container's own
//! program echoes its input like a terminal, and prints what [`FakeRuntime::print`] says.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::io::StreamReader;

use super::super::{
    Error, Input, Output, Program, Runtime as _, RuntimeEvent, Session, Streams, TaskState, TerminalSize,
};
use super::{FakeRuntime, absent, number_after};
use crate::ids::ContainerId;

/// Capacity of a fake pipe.
const PIPE: usize = 64 << 10;

/// What those who are attached to a container share.
#[derive(Debug, Clone)]
pub(super) struct Console {
    printed: broadcast::Sender<Bytes>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    typed: Vec<u8>,
    sizes: Vec<TerminalSize>,
}

impl Default for Console {
    fn default() -> Self {
        Self { printed: broadcast::Sender::new(1024), seen: Arc::default() }
    }
}

impl Console {
    fn with_seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Remembers the sizes that a terminal takes.
    fn resizable(&self) -> watch::Sender<TerminalSize> {
        let (sender, mut sizes) = watch::channel(TerminalSize::default());
        let console = self.clone();
        tokio::spawn(async move {
            while sizes.changed().await.is_ok() {
                let size = *sizes.borrow_and_update();
                console.with_seen(|seen| seen.sizes.push(size));
            }
        });
        sender
    }
}

impl FakeRuntime {
    /// The container's own program prints something; who is attached sees it.
    pub fn print(&self, id: &ContainerId, text: &str) {
        if let Some(entry) = self.lock().containers.get(id) {
            let _ = entry.console.printed.send(Bytes::copy_from_slice(text.as_bytes()));
        }
    }

    /// What the container's own program has read.
    pub fn typed(&self, id: &ContainerId) -> Vec<u8> {
        let state = self.lock();
        state.containers.get(id).map(|entry| entry.console.with_seen(|seen| seen.typed.clone())).unwrap_or_default()
    }

    /// Sizes that terminals in the container took, in order.
    pub fn sizes(&self, id: &ContainerId) -> Vec<TerminalSize> {
        let state = self.lock();
        state.containers.get(id).map(|entry| entry.console.with_seen(|seen| seen.sizes.clone())).unwrap_or_default()
    }

    /// Programs of execs that have not ended.
    pub fn programs(&self) -> usize {
        self.lock().programs
    }

    pub(super) fn start_program(&self, id: &ContainerId, program: &Program) -> Result<Session, Error> {
        let console = self.running(id, "running a program in")?.1;
        if program.command.first().is_some_and(|program| program == "/nonexistent") {
            let message = "exec: \"/nonexistent\": no such file or directory".to_owned();
            return Err(Error::Invalid { field: "command".to_owned(), message });
        }
        let Streams { stdin, stdout, stderr, tty } = program.streams;
        let (input, mut reads) = tokio::io::duplex(PIPE);
        let (mut prints, output) = tokio::io::duplex(PIPE);
        let (errors, stderr_output) = tokio::io::duplex(PIPE);
        let script = program.command.join(" ");
        let running = Running::begin(self.clone());
        let task = tokio::spawn(async move {
            let _running = running;
            let _errors = errors;
            if let Some(at) = script.find("echo ") {
                let text = script[at + 5..].split(';').next().unwrap_or_default().trim();
                let _ = prints.write_all(format!("{text}\n").as_bytes()).await;
            }
            if script.contains("sleep") {
                std::future::pending::<()>().await;
            }
            if script.split([' ', ';']).any(|word| word == "cat") && stdin {
                let _ = tokio::io::copy(&mut reads, &mut prints).await;
            }
            number_after(&script, "exit ").unwrap_or(0)
        });
        let task = tokio_util::task::AbortOnDropHandle::new(task);
        Ok(Session {
            stdin: stdin.then(|| Box::new(input) as Input),
            stdout: stdout.then(|| Box::new(output) as Output),
            stderr: (stderr && !tty).then(|| Box::new(stderr_output) as Output),
            resize: tty.then(|| console.resizable()),
            exit: async move {
                task.await.map_err(|e| Error::Failed { doing: "running a program".to_owned(), source: Box::new(e) })
            }
            .boxed(),
        })
    }

    pub(super) fn join(&self, id: &ContainerId, streams: Streams) -> Result<Session, Error> {
        let (spec, console) = self.running(id, "attaching to")?;
        if streams.stdin && !spec.stdin {
            let message = "the container was made without an input (stdin: true)".to_owned();
            return Err(Error::Invalid { field: "stdin".to_owned(), message });
        }
        let mut events = self.events();
        let (runtime, of) = (self.clone(), id.clone());
        let exit = async move {
            loop {
                match runtime.get(&of).await? {
                    None => return Err(absent(&of)),
                    Some(container) => {
                        if let TaskState::Exited(exit) = container.state {
                            return Ok(exit.code);
                        }
                    }
                }
                while !matches!(events.recv().await, None | Some(RuntimeEvent::Container { .. })) {}
            }
        };
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let exit = exit.map(move |code| {
            let _ = ended.send(());
            code
        });
        let exit = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(exit));
        let output = streams.stdout.then(|| {
            let chunks =
                BroadcastStream::new(console.printed.subscribe()).map(|chunk| chunk.map_err(std::io::Error::other));
            Box::new(StreamReader::new(chunks.take_until(end).boxed())) as Output
        });
        let input = streams.stdin.then(|| {
            let (input, mut reads) = tokio::io::duplex(PIPE);
            let console = console.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = reads.read(&mut buffer).await {
                    console.with_seen(|seen| seen.typed.extend_from_slice(&buffer[..length]));
                    let _ = console.printed.send(Bytes::copy_from_slice(&buffer[..length]));
                }
            });
            Box::new(input) as Input
        });
        Ok(
            Session {
                stdin: input,
                stdout: output,
                stderr: (streams.stderr && !spec.tty).then(|| Box::new(tokio::io::empty()) as Output),
                resize: spec.tty.then(|| console.resizable()),
                exit: async move {
                    exit.await.map_err(|e| Error::Failed { doing: "waiting".to_owned(), source: Box::new(e) })?
                }
                .boxed(),
            },
        )
    }

    fn running(&self, id: &ContainerId, doing: &str) -> Result<(super::ContainerSpec, Console), Error> {
        let state = self.available()?;
        let entry = state.containers.get(id).ok_or_else(|| absent(id))?;
        if !matches!(entry.state, TaskState::Running { .. }) {
            let source = "it is not running".into();
            return Err(Error::Failed { doing: format!("{doing} container {id}"), source });
        }
        Ok((entry.spec.clone(), entry.console.clone()))
    }
}

/// Counts a program until it ends or is ended.
struct Running(FakeRuntime);

impl Running {
    fn begin(runtime: FakeRuntime) -> Self {
        runtime.lock().programs += 1;
        Self(runtime)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().programs -= 1;
    }
}
