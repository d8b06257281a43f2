//! A runtime in memory with the contract of the real one, for tests of whole nodes.
//!
//! Containers "run" commands in a tiny language, found anywhere in the joined command: `exit N` ends with N as soon
//! as it is started, `trap 'exit N' TERM` ends with N on SIGTERM, a program called `/nonexistent` cannot be
//! run, and everything else runs until a signal ends it with 128 + its number. Programs run by
//! [`Runtime::exec`] print what follows `echo `, end with the N of `exit N`, and `sleep` outlasts every timeout; `stuck`
//! does so for a second more, as on a node that cannot keep up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{
    Container, ContainerSpec, Error, ExecResult, ExecSpec, Exit, LogTarget, Program, Runtime, RuntimeEvent,
    RuntimeInfo, Session, Started, Streams, TaskState, signal,
};
use crate::cgroups::{Excess, Limits};
use crate::ids::{ContainerId, SandboxId};
use crate::volumes::SnapshotMount;

mod streams;

/// Length of a reader's queue, as short as is fair, so that tests meet its overflow.
const QUEUE: usize = 64;

/// [`Runtime`] in memory. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<ContainerId, Entry>,
    /// Image names and their STOPSIGNAL; an unknown image is an error only once one is declared.
    images: BTreeMap<String, Option<String>>,
    readers: Vec<mpsc::Sender<RuntimeEvent>>,
    next_pid: u32,
    fail_create: Option<String>,
    fail_start: Option<String>,
    fail_update: Option<String>,
    /// Memory that containers use, in bytes.
    used: BTreeMap<ContainerId, u64>,
    unavailable: bool,
    orphans: Vec<String>,
    /// Programs of execs that run.
    programs: usize,
    calls: Vec<String>,
    execs: Vec<String>,
    /// Execs that a busy runtime has not ended yet: now, and at most.
    stuck: (usize, usize),
}

#[derive(Debug, Clone)]
struct Entry {
    spec: ContainerSpec,
    created_at: SystemTime,
    state: TaskState,
    paused: bool,
    console: streams::Console,
}

impl FakeRuntime {
    /// An empty node.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares an image. From the first on, containers of other images are refused as on a real node.
    pub fn add_image(&self, name: &str, stop_signal: Option<&str>) {
        self.lock().images.insert(name.to_owned(), stop_signal.map(str::to_owned));
    }

    /// The container's first process ends on its own.
    pub fn crash(&self, id: &ContainerId, code: u32) {
        self.lock().end(id, code, false);
    }

    /// The kernel kills the container for memory.
    pub fn oom_kill(&self, id: &ContainerId) {
        let mut state = self.lock();
        state.tell_container(id, "oom");
        state.end(id, 137, true);
    }

    /// The next create fails half-way with these words: the record is there, the task is not.
    pub fn fail_next_create(&self, message: &str) {
        self.lock().fail_create = Some(message.to_owned());
    }

    /// The next start fails with these words.
    pub fn fail_next_start(&self, message: &str) {
        self.lock().fail_start = Some(message.to_owned());
    }

    /// The next change of limits is refused with these words.
    pub fn fail_next_update(&self, message: &str) {
        self.lock().fail_update = Some(message.to_owned());
    }

    /// From now on the container uses so many bytes of memory.
    pub fn set_memory_use(&self, id: &ContainerId, bytes: u64) {
        self.lock().used.insert(id.clone(), bytes);
    }

    /// Somebody else deletes the container behind our back.
    pub fn delete_behind(&self, id: &ContainerId) {
        let mut state = self.lock();
        state.containers.remove(id);
        state.tell_container(id, "delete");
    }

    /// The daemon goes away (`true`) or comes back, which readers of events learn as a resync.
    pub fn set_unavailable(&self, unavailable: bool) {
        let mut state = self.lock();
        state.unavailable = unavailable;
        if !unavailable {
            state.tell(&RuntimeEvent::Resync);
        }
    }

    /// Sends a hint to all readers.
    pub fn emit(&self, event: &RuntimeEvent) {
        self.lock().tell(event);
    }

    /// Leaves something for the next [`Runtime::sweep`] to find.
    pub fn add_orphan(&self, what: &str) {
        self.lock().orphans.push(what.to_owned());
    }

    /// The node starts anew: records stay, what ran does not. Tell the agent by starting it.
    pub fn reboot(&self) {
        self.lock().containers.values_mut().for_each(|entry| entry.state = TaskState::Absent);
    }

    /// Commands that were run in containers, in order: "a true", …
    pub fn execs(&self) -> Vec<String> {
        self.lock().execs.clone()
    }

    /// How many programs were under way at most that took the runtime longer than they may take.
    pub fn most_stuck(&self) -> usize {
        self.lock().stuck.1
    }

    /// The specification a container was made from.
    pub fn spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        self.lock().containers.get(id).map(|entry| entry.spec.clone())
    }

    /// Calls that changed something, in order: "create a", "start a", "kill a SIGTERM", "remove a", …
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn available(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.lock();
        if state.unavailable {
            return Err(Error::Unavailable { address: "fake".to_owned(), source: "switched off by the test".into() });
        }
        Ok(state)
    }
}

impl State {
    fn tell(&mut self, event: &RuntimeEvent) {
        self.readers.retain(|reader| match reader.try_send(event.clone()) {
            Ok(()) => true,
            // A full queue keeps its last place for the word that something was missed; whoever reads it looks at
            // everything.
            Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        for reader in &self.readers {
            if reader.capacity() == 1 {
                let _ = reader.try_send(RuntimeEvent::Resync);
            }
        }
    }

    fn tell_container(&mut self, id: &ContainerId, topic: &str) {
        self.tell(&RuntimeEvent::Container { id: id.clone(), topic: topic.to_owned() });
    }

    fn end(&mut self, id: &ContainerId, code: u32, oom_killed: bool) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        if entry.is_alive() {
            entry.state = TaskState::Exited(Exit { code, at: SystemTime::now(), oom_killed });
            self.tell_container(id, "exit");
        }
    }
}

impl Entry {
    fn is_alive(&self) -> bool {
        matches!(self.state, TaskState::Created { .. } | TaskState::Running { .. } | TaskState::Paused { .. })
    }

    fn script(&self) -> String {
        [self.spec.command.join(" "), self.spec.args.join(" ")].join(" ")
    }

    fn container(&self) -> Container {
        Container {
            id: self.spec.id.clone(),
            labels: self.spec.labels.clone(),
            image: self.spec.image.clone(),
            created_at: self.created_at,
            limits: self.spec.limits.clone(),
            state: match &self.state {
                TaskState::Running { pid } if self.paused => TaskState::Paused { pid: *pid },
                state => state.clone(),
            },
        }
    }
}

/// The number after `word`, unless it stands in a trap.
fn number_after(script: &str, word: &str) -> Option<u32> {
    let rest = &script[script.find(word)? + word.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn absent(id: &ContainerId) -> Error {
    Error::NotFound { what: "container", id: id.to_string() }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn info(&self) -> Result<RuntimeInfo, Error> {
        let _state = self.available()?;
        Ok(RuntimeInfo {
            version: "0.0.0".to_owned(),
            oci_runtime: "fake 0".to_owned(),
            snapshotter: "fake".to_owned(),
        })
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        Ok(self.available()?.containers.values().map(Entry::container).collect())
    }

    async fn get(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        Ok(self.available()?.containers.get(id).map(Entry::container))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), Error> {
        let mut state = self.available()?;
        state.calls.push(format!("create {}", spec.id));
        if spec.stdin && !spec.tty && spec.log == LogTarget::None {
            let message = "input without a terminal (tty) is kept open by the log's writer".to_owned();
            return Err(Error::Invalid { field: "stdin".to_owned(), message });
        }
        if !state.images.is_empty() && !state.images.contains_key(&spec.image) {
            return Err(Error::NotFound { what: "image", id: spec.image.clone() });
        }
        if state.containers.contains_key(&spec.id) {
            return Err(Error::AlreadyExists { what: "container", id: spec.id.to_string() });
        }
        let pid = 100_000 + state.next_pid;
        state.next_pid += 1;
        let mut entry = Entry {
            spec: spec.clone(),
            created_at: SystemTime::now(),
            state: TaskState::Absent,
            paused: false,
            console: streams::Console::default(),
        };
        let failure = state.fail_create.take();
        let unrunnable = spec.command.first().is_some_and(|program| program == "/nonexistent");
        if failure.is_none() && !unrunnable {
            entry.state = TaskState::Created { pid };
        }
        state.containers.insert(spec.id.clone(), entry);
        if let Some(message) = failure {
            return Err(Error::Failed {
                doing: format!("creating the task of container {}", spec.id),
                source: message.into(),
            });
        }
        if unrunnable {
            let message = "exec: \"/nonexistent\": no such file or directory".to_owned();
            return Err(Error::Invalid { field: "command".to_owned(), message });
        }
        Ok(())
    }

    async fn start(&self, id: &ContainerId) -> Result<Started, Error> {
        let mut state = self.available()?;
        state.calls.push(format!("start {id}"));
        if let Some(message) = state.fail_start.take() {
            return Err(Error::Failed { doing: format!("starting container {id}"), source: message.into() });
        }
        let entry = state.containers.get_mut(id).ok_or_else(|| absent(id))?;
        let pid = match entry.state {
            TaskState::Created { pid } => pid,
            TaskState::Running { pid } => return Ok(Started { pid }),
            _ => {
                let source = "the task is not in a state to be started".into();
                return Err(Error::Failed { doing: format!("starting container {id}"), source });
            }
        };
        entry.state = TaskState::Running { pid };
        let script = entry.script();
        if !script.contains("trap ")
            && let Some(code) = number_after(&script, "exit ")
        {
            state.end(id, code, false);
        }
        Ok(Started { pid })
    }

    async fn kill(&self, id: &ContainerId, name: &str, all: bool) -> Result<(), Error> {
        let number = signal::parse(name)?;
        let mut state = self.available()?;
        state.calls.push(format!("kill {id} {name}{}", if all { " all" } else { "" }));
        let Some(entry) = state.containers.get(id) else { return Ok(()) };
        let script = entry.script();
        // Signals that end a process by default and are not harmless by convention.
        let fatal = ![libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH].contains(&number);
        let trapped = number_after(&script, "trap 'exit ").filter(|_| number == libc::SIGTERM);
        let ignores = script.contains("trap '' TERM") && number == libc::SIGTERM;
        // As one that waits in the kernel for a disk that does not answer.
        let stuck = script.contains("uninterruptible");
        if fatal && !ignores && !stuck {
            state.end(id, trapped.unwrap_or(128 + number.unsigned_abs()), false);
        }
        Ok(())
    }

    async fn view(&self, _sandbox: &SandboxId, _name: &str, image: &str) -> Result<Vec<SnapshotMount>, Error> {
        let state = self.available()?;
        if !state.images.is_empty() && !state.images.contains_key(image) {
            return Err(Error::NotFound { what: "image", id: image.to_owned() });
        }
        Ok(vec![SnapshotMount { kind: "bind".to_owned(), source: image.into(), options: Vec::new() }])
    }

    async fn remove_views(&self, _sandbox: &SandboxId, _name: Option<&str>) -> Result<(), Error> {
        self.available().map(drop)
    }

    async fn stop_signal(&self, id: &ContainerId) -> Result<String, Error> {
        let state = self.available()?;
        let spec = &state.containers.get(id).ok_or_else(|| absent(id))?.spec;
        let of_image = || state.images.get(&spec.image).cloned().flatten();
        Ok(spec.stop_signal.clone().or_else(of_image).unwrap_or_else(|| "SIGTERM".to_owned()))
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        let mut state = self.available()?;
        state.calls.push(format!("remove {id}"));
        state.end(id, 137, false);
        if state.containers.remove(id).is_some() {
            state.tell_container(id, "delete");
        }
        Ok(())
    }

    async fn update_limits(&self, id: &ContainerId, limits: &Limits) -> Result<Option<Excess>, Error> {
        let mut state = self.available()?;
        state.calls.push(format!("update_limits {id}"));
        if let Some(message) = state.fail_update.take() {
            return Err(Error::Invalid { field: "resources".to_owned(), message });
        }
        let used = state.used.get(id).copied().unwrap_or_default();
        let entry = state.containers.get_mut(id).ok_or_else(|| absent(id))?;
        let in_force = entry.spec.limits.memory_max;
        let excess = limits.memory_max.filter(|max| used > *max && in_force.is_none_or(|now| now > *max));
        let excess = excess.map(|wanted| Excess { wanted, used, in_force });
        let memory_max = excess.map_or(limits.memory_max, |excess| excess.in_force);
        entry.spec.limits = Limits { memory_max, ..limits.clone() };
        Ok(excess)
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<ExecResult, Error> {
        let script = spec.command.join(" ");
        {
            let mut state = self.available()?;
            let entry = state.containers.get(id).ok_or_else(|| absent(id))?;
            if !matches!(entry.state, TaskState::Running { .. }) {
                let source = "the container does not run".into();
                return Err(Error::Failed { doing: format!("running {script:?} in container {id}"), source });
            }
            state.execs.push(format!("{id} {script}"));
        }
        if script.contains("stuck") {
            // The runtime is at it whether or not somebody still waits for the answer.
            let (state, time) = (self.clone(), spec.timeout.unwrap_or_default() + Duration::from_secs(1));
            let ended = tokio::spawn(async move {
                {
                    let stuck = &mut state.lock().stuck;
                    *stuck = (stuck.0 + 1, stuck.1.max(stuck.0 + 1));
                }
                tokio::time::sleep(time).await;
                state.lock().stuck.0 -= 1;
            });
            let _ = ended.await;
            return Ok(ExecResult { code: 1, output: Vec::new() });
        }
        if script.contains("sleep") {
            tokio::time::sleep(spec.timeout.unwrap_or(Duration::MAX)).await;
            let source = Box::new(std::io::Error::from(std::io::ErrorKind::TimedOut));
            return Err(Error::Failed { doing: format!("running {script:?} in container {id}"), source });
        }
        if spec.command.first().is_some_and(|program| program == "/nonexistent") {
            let message = "exec: \"/nonexistent\": no such file or directory".to_owned();
            return Err(Error::Invalid { field: "command".to_owned(), message });
        }
        let output = script.find("echo ").map(|at| script[at + 5..].split(';').next().unwrap_or_default().trim());
        let output = output.map(|text| format!("{text}\n").into_bytes()).unwrap_or_default();
        Ok(ExecResult { code: number_after(&script, "exit ").unwrap_or(0), output })
    }

    async fn open_exec(&self, id: &ContainerId, program: &Program) -> Result<Session, Error> {
        self.start_program(id, program)
    }

    async fn attach(&self, id: &ContainerId, streams: Streams) -> Result<Session, Error> {
        self.join(id, streams)
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let _ = sender.try_send(RuntimeEvent::Resync);
        self.lock().readers.push(sender);
        receiver
    }

    async fn sweep(&self) -> Result<Vec<String>, Error> {
        let mut state = self.available()?;
        let orphans: BTreeSet<String> = state.orphans.drain(..).collect();
        Ok(orphans.into_iter().collect())
    }

    async fn end_orphan_shims(&self) -> Vec<String> {
        // It has no shims.
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{self, Fixture};
    use super::*;

    #[tokio::test]
    async fn conforms() {
        let runtime = FakeRuntime::new();
        runtime.add_image("image", Some("SIGINT"));
        conformance::all(&runtime, &Fixture::new("image", "/nodelet-fake".parse().unwrap())).await;
    }

    #[tokio::test]
    async fn a_slow_reader_gets_one_resync() {
        let runtime = FakeRuntime::new();
        let mut events = runtime.events();
        let id: ContainerId = "a".parse().unwrap();
        for _ in 0..1000 {
            runtime.emit(&RuntimeEvent::Container { id: id.clone(), topic: "exit".to_owned() });
        }
        let mut seen = Vec::new();
        while let Ok(event) = events.try_recv() {
            seen.push(event);
        }
        assert_eq!(seen.len(), QUEUE);
        assert_eq!(seen.last(), Some(&RuntimeEvent::Resync));
    }
}
