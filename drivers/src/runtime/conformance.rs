//! What every [`Runtime`] must do, as one suite that runs on the fake and on real daemons.
//!
//! Programs are written in the common part of a shell and the fake's little language, see [`super::fake`].

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::{
    Container, ContainerSpec, Error, ExecSpec, Exit, LogTarget, Namespace, Namespaces, Output, Program, Runtime,
    RuntimeEvent, Security, Session, Streams, TaskState, TerminalSize,
};
use crate::cgroups::Limits;
use crate::ids::{CgroupPath, ContainerId};

/// How long anything may take before a test calls it missing.
const SOON: Duration = Duration::from_secs(20);

/// What the suite needs beside the runtime.
#[derive(Debug, Clone)]
pub struct Fixture {
    image: String,
    cgroup_parent: CgroupPath,
}

impl Fixture {
    /// `image` has `sh`, `sleep` and `echo`, and its STOPSIGNAL is SIGINT; containers go below `cgroup_parent`.
    pub fn new(image: &str, cgroup_parent: CgroupPath) -> Self {
        Self { image: image.to_owned(), cgroup_parent }
    }

    /// A container that runs `script`, with nothing shared and nothing logged.
    pub fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: id.parse().expect("the suite's ids are valid"),
            sandbox: "suite".parse().expect("valid"),
            labels: BTreeMap::from([("nodelet.dev/workload".to_owned(), id.to_owned())]),
            image: self.image.clone(),
            command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            tty: false,
            stdin: false,
            stdin_once: false,
            namespaces: Namespaces {
                net: Namespace::Private,
                ipc: Namespace::Private,
                uts: Namespace::Private,
                pid: Namespace::Private,
                user: None,
            },
            hostname: None,
            mounts: Vec::new(),
            cgroup: self.cgroup_parent.join(id).expect("ids are valid names"),
            limits: Limits::default(),
            ulimits: Vec::new(),
            devices: Vec::new(),
            security: Security::default(),
            sysctls: BTreeMap::new(),
            oom_score_adj: None,
            log: LogTarget::None,
            stop_signal: None,
            anonymous_volumes: None,
        }
    }
}

/// Runs the whole suite on an empty runtime, and leaves it empty.
pub async fn all(runtime: &dyn Runtime, fixture: &Fixture) {
    absence_is_no_error(runtime).await;
    a_life(runtime, fixture).await;
    an_end_is_told(runtime, fixture).await;
    a_stop_is_graceful(runtime, fixture).await;
    mistakes_are_told_apart(runtime, fixture).await;
    limits_change_and_are_kept(runtime, fixture).await;
    programs_run_inside(runtime, fixture).await;
    programs_are_talked_to(runtime, fixture).await;
    containers_are_attached_to(runtime, fixture).await;
    assert!(runtime.sweep().await.expect("sweeping works").is_empty(), "something was left behind");
    assert!(runtime.list().await.expect("listing works").is_empty());
}

async fn absence_is_no_error(runtime: &dyn Runtime) {
    let nobody: ContainerId = "nobody".parse().expect("valid");
    assert!(!runtime.info().await.expect("the runtime answers").version.is_empty());
    assert_eq!(runtime.get(&nobody).await.expect("absence is an answer"), None);
    runtime.kill(&nobody, "SIGTERM", false).await.expect("nothing to kill");
    runtime.kill(&nobody, "9", true).await.expect("nothing to kill");
    runtime.remove(&nobody).await.expect("nothing to remove");
    assert!(matches!(runtime.start(&nobody).await, Err(Error::NotFound { .. })));
    assert!(matches!(runtime.stop_signal(&nobody).await, Err(Error::NotFound { .. })));
    let limits = Limits::default();
    assert!(matches!(runtime.update_limits(&nobody, &limits).await, Err(Error::NotFound { .. })));
    let exec = ExecSpec { command: vec!["true".to_owned()], timeout: None };
    assert!(matches!(runtime.exec(&nobody, &exec).await, Err(Error::NotFound { .. })));
    assert!(matches!(runtime.kill(&nobody, "SIGWHAT", false).await, Err(Error::Invalid { .. })));
}

async fn a_life(runtime: &dyn Runtime, fixture: &Fixture) {
    let spec = fixture.spec("life", "sleep 1000");
    runtime.create(&spec).await.expect("the container can be made");
    let TaskState::Created { pid } = get(runtime, &spec.id).await.state else { panic!("not created") };
    assert!(matches!(runtime.create(&spec).await, Err(Error::AlreadyExists { .. })));
    assert_eq!(runtime.start(&spec.id).await.expect("it starts").pid, pid);
    assert_eq!(runtime.start(&spec.id).await.expect("starting again is no error").pid, pid);
    let list = runtime.list().await.expect("listing works");
    let [container] = &list[..] else { panic!("not one container: {list:?}") };
    assert_eq!(container.state, TaskState::Running { pid });
    assert_eq!((&container.id, &container.labels, &container.image), (&spec.id, &spec.labels, &spec.image));
    assert_eq!(runtime.get(&spec.id).await.expect("it is there").as_ref(), Some(container));
    // Running ones are removed, too.
    runtime.remove(&spec.id).await.expect("it can be removed");
    assert_eq!(runtime.get(&spec.id).await.expect("absence is an answer"), None);
    runtime.remove(&spec.id).await.expect("removing again is no error");
    // The id is free again.
    runtime.create(&spec).await.expect("the id can be used again");
    runtime.remove(&spec.id).await.expect("one that never started can be removed");
}

async fn an_end_is_told(runtime: &dyn Runtime, fixture: &Fixture) {
    let mut events = runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let spec = fixture.spec("end", "exit 7");
    runtime.create(&spec).await.expect("the container can be made");
    runtime.start(&spec.id).await.expect("it starts");
    wait_for(&mut events, &spec.id, "exit").await;
    let Exit { code, oom_killed, .. } = exit(&get(runtime, &spec.id).await);
    assert_eq!((code, oom_killed), (7, false));
    assert_eq!(exit(&runtime.list().await.expect("listing works")[0]).code, 7);
    runtime.kill(&spec.id, "SIGTERM", false).await.expect("killing an ended one is no error");
    runtime.kill(&spec.id, "SIGKILL", true).await.expect("killing an ended one is no error");
    runtime.remove(&spec.id).await.expect("it can be removed");
    wait_for(&mut events, &spec.id, "delete").await;
}

async fn a_stop_is_graceful(runtime: &dyn Runtime, fixture: &Fixture) {
    let mut events = runtime.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    let spec = fixture.spec("stop", "trap 'exit 3' TERM; while true; do sleep 0.05; done");
    runtime.create(&spec).await.expect("the container can be made");
    assert_eq!(runtime.stop_signal(&spec.id).await.expect("it has one"), "SIGINT");
    runtime.start(&spec.id).await.expect("it starts");
    // A shell needs a moment until its trap is set, and then exits in between two sleeps.
    tokio::time::sleep(Duration::from_millis(200)).await;
    runtime.kill(&spec.id, "SIGTERM", false).await.expect("it can be signalled");
    wait_for(&mut events, &spec.id, "exit").await;
    assert_eq!(exit(&get(runtime, &spec.id).await).code, 3);
    runtime.remove(&spec.id).await.expect("it can be removed");

    let mut spec = fixture.spec("stubborn", "trap '' TERM; while true; do sleep 0.05; done");
    spec.stop_signal = Some("SIGQUIT".to_owned());
    runtime.create(&spec).await.expect("the container can be made");
    assert_eq!(runtime.stop_signal(&spec.id).await.expect("it has one"), "SIGQUIT");
    runtime.start(&spec.id).await.expect("it starts");
    tokio::time::sleep(Duration::from_millis(200)).await;
    runtime.kill(&spec.id, "TERM", false).await.expect("it can be signalled");
    runtime.kill(&spec.id, "KILL", false).await.expect("it can be signalled");
    wait_for(&mut events, &spec.id, "exit").await;
    assert_eq!(exit(&get(runtime, &spec.id).await).code, 137);
    runtime.remove(&spec.id).await.expect("it can be removed");
}

async fn mistakes_are_told_apart(runtime: &dyn Runtime, fixture: &Fixture) {
    let mut spec = fixture.spec("mistake", "sleep 1000");
    spec.image = "nodelet.test/none:1".to_owned();
    assert!(matches!(runtime.create(&spec).await, Err(Error::NotFound { what: "image", .. })));
    runtime.remove(&spec.id).await.expect("whatever was made is cleared");

    let mut spec = fixture.spec("mistake", "");
    spec.command = vec!["/nonexistent".to_owned()];
    match runtime.create(&spec).await {
        Err(Error::Invalid { field, .. }) => assert_eq!(field, "command"),
        other => panic!("not invalid: {other:?}"),
    }
    assert_eq!(get(runtime, &spec.id).await.state, TaskState::Absent, "the record stays as the journal");
    runtime.remove(&spec.id).await.expect("half-made ones can be removed");

    let mut spec = fixture.spec("mistake", "sleep 1000");
    spec.stdin = true;
    assert!(matches!(runtime.create(&spec).await, Err(Error::Invalid { .. })));
    runtime.remove(&spec.id).await.expect("whatever was made is cleared");
}

async fn limits_change_and_are_kept(runtime: &dyn Runtime, fixture: &Fixture) {
    let mut spec = fixture.spec("limits", "sleep 1000");
    spec.limits = Limits { memory_max: Some(64 << 20), pids_max: Some(50), ..Limits::default() };
    runtime.create(&spec).await.expect("the container can be made");
    assert_eq!(get(runtime, &spec.id).await.limits, spec.limits);
    runtime.start(&spec.id).await.expect("it starts");
    let limits = Limits { memory_max: Some(128 << 20), cpu_millis: Some(500), ..Limits::default() };
    runtime.update_limits(&spec.id, &limits).await.expect("limits can be changed while it runs");
    let container = get(runtime, &spec.id).await;
    assert_eq!(container.limits, limits);
    assert!(matches!(container.state, TaskState::Running { .. }));
    runtime.remove(&spec.id).await.expect("it can be removed");
}

async fn programs_run_inside(runtime: &dyn Runtime, fixture: &Fixture) {
    let spec = fixture.spec("inside", "trap '' TERM; while true; do sleep 0.05; done");
    let run = |script: &str, timeout| ExecSpec {
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        timeout,
    };
    runtime.create(&spec).await.expect("the container can be made");
    runtime.start(&spec.id).await.expect("it starts");
    let result = runtime.exec(&spec.id, &run("echo hello; exit 4", Some(SOON))).await.expect("it runs");
    assert_eq!((result.code, result.output.as_slice()), (4, b"hello\n".as_slice()));
    let result = runtime.exec(&spec.id, &run("sleep 1000", Some(Duration::from_millis(300)))).await;
    assert!(matches!(result, Err(Error::Failed { .. })), "{result:?}");
    let missing = ExecSpec { command: vec!["/nonexistent".to_owned()], timeout: None };
    assert!(matches!(runtime.exec(&spec.id, &missing).await, Err(Error::Invalid { .. })));
    assert!(matches!(get(runtime, &spec.id).await.state, TaskState::Running { .. }));
    runtime.remove(&spec.id).await.expect("it can be removed");
}

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Streams = Streams { tty: true, ..ALL };

fn program(script: &str, streams: Streams) -> Program {
    Program { command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()], streams }
}

/// Reads an output to its end.
pub async fn read_all(output: Option<Output>) -> String {
    let mut bytes = Vec::new();
    let mut output = output.expect("the stream was asked for");
    let read = tokio::time::timeout(SOON, output.read_to_end(&mut bytes)).await;
    read.expect("the output ends soon").expect("it can be read");
    String::from_utf8(bytes).expect("the suite's programs print text")
}

async fn end(session: Session) -> u32 {
    let code = tokio::time::timeout(SOON, session.exit).await;
    code.expect("the program ends soon").expect("its exit is known")
}

async fn programs_are_talked_to(runtime: &dyn Runtime, fixture: &Fixture) {
    let spec = fixture.spec("talk", "trap '' TERM; while true; do sleep 0.05; done");
    let nobody: ContainerId = "nobody".parse().expect("valid");
    let cat = program("cat; exit 5", ALL);
    assert!(matches!(runtime.open_exec(&nobody, &cat).await, Err(Error::NotFound { .. })));
    runtime.create(&spec).await.expect("the container can be made");
    runtime.start(&spec.id).await.expect("it starts");

    // What goes in comes out, and the end of the input is seen.
    let mut session = runtime.open_exec(&spec.id, &cat).await.expect("it starts");
    let mut stdin = session.stdin.take().expect("asked for");
    stdin.write_all(b"one\ntwo").await.expect("it reads");
    stdin.shutdown().await.expect("the end can be told");
    assert_eq!(read_all(session.stdout.take()).await, "one\ntwo");
    assert_eq!(read_all(session.stderr.take()).await, "");
    assert_eq!(end(session).await, 5);

    // Dropping the input is its end, too, and what was not asked for is not there.
    let only = Streams { stdin: true, ..Streams::default() };
    let mut session = runtime.open_exec(&spec.id, &program("cat; exit 6", only)).await.expect("it starts");
    assert!(session.stdout.is_none() && session.stderr.is_none() && session.resize.is_none());
    session.stdin = None;
    assert_eq!(end(session).await, 6);

    // On a terminal.
    let mut session = runtime.open_exec(&spec.id, &program("echo hello; exit 3", TERMINAL)).await.expect("it starts");
    assert!(session.stderr.is_none(), "a terminal has one output");
    let resize = session.resize.take().expect("a terminal has a size");
    resize.send_replace(TerminalSize { width: 80, height: 24 });
    assert!(read_all(session.stdout.take()).await.contains("hello"));
    assert_eq!(end(session).await, 3);

    let missing = Program { command: vec!["/nonexistent".to_owned()], streams: ALL };
    assert!(matches!(runtime.open_exec(&spec.id, &missing).await, Err(Error::Invalid { .. })));

    // One that nobody wants any more.
    drop(runtime.open_exec(&spec.id, &program("sleep 1000", ALL)).await.expect("it starts"));
    runtime.remove(&spec.id).await.expect("it can be removed");
    assert!(runtime.open_exec(&spec.id, &cat).await.is_err(), "it is gone");
}

async fn containers_are_attached_to(runtime: &dyn Runtime, fixture: &Fixture) {
    let mut spec = fixture.spec("attach", "cat");
    spec.tty = true;
    spec.stdin = true;
    assert!(matches!(runtime.attach(&spec.id, TERMINAL).await, Err(Error::NotFound { .. })));
    runtime.create(&spec).await.expect("the container can be made");
    runtime.start(&spec.id).await.expect("it starts");
    let mut first = runtime.attach(&spec.id, TERMINAL).await.expect("it runs");
    assert!(first.resize.is_some() && first.stderr.is_none());
    let mut stdin = first.stdin.take().expect("it has an input");
    stdin.write_all(b"first\n").await.expect("it reads");
    stdin.shutdown().await.expect("which ends nothing");
    drop((stdin, first));
    let mut second = runtime.attach(&spec.id, TERMINAL).await.expect("it runs on");
    second.stdin.as_mut().expect("it has an input").write_all(b"second\n").await.expect("it still reads");
    assert!(matches!(get(runtime, &spec.id).await.state, TaskState::Running { .. }));
    runtime.kill(&spec.id, "SIGKILL", true).await.expect("it can be killed");
    assert_eq!(end(second).await, 137);
    assert!(runtime.attach(&spec.id, TERMINAL).await.is_err(), "it has ended");
    runtime.remove(&spec.id).await.expect("it can be removed");

    let spec = fixture.spec("mute", "sleep 1000");
    runtime.create(&spec).await.expect("the container can be made");
    runtime.start(&spec.id).await.expect("it starts");
    match runtime.attach(&spec.id, ALL).await {
        Err(Error::Invalid { field, .. }) => assert_eq!(field, "stdin"),
        other => panic!("not invalid: {other:?}"),
    }
    runtime.attach(&spec.id, Streams { stdin: false, ..ALL }).await.expect("there is nothing to hear, but it runs");
    runtime.remove(&spec.id).await.expect("it can be removed");
}

/// A container that must be there.
pub async fn get(runtime: &dyn Runtime, id: &ContainerId) -> Container {
    runtime.get(id).await.expect("the runtime answers").unwrap_or_else(|| panic!("{id} is not there"))
}

/// How a container that must have ended did.
pub fn exit(container: &Container) -> Exit {
    match &container.state {
        TaskState::Exited(exit) => exit.clone(),
        state => panic!("{} has not ended: {state:?}", container.id),
    }
}

/// The next hint.
pub async fn next(events: &mut mpsc::Receiver<RuntimeEvent>) -> RuntimeEvent {
    let event = tokio::time::timeout(SOON, events.recv()).await;
    event.expect("an event comes soon").expect("the stream does not end")
}

/// Reads hints until one of this kind for this container.
pub async fn wait_for(events: &mut mpsc::Receiver<RuntimeEvent>, id: &ContainerId, topic: &str) {
    let wanted = RuntimeEvent::Container { id: id.clone(), topic: topic.to_owned() };
    while next(events).await != wanted {}
}
