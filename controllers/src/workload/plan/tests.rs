//! Tables over the planner: a healthy baseline and one change per case; then properties over a model of the node.

use std::collections::BTreeMap;
use std::time::SystemTime;

use nodelet_drivers::cgroups::Limits;
use nodelet_drivers::ids::{CgroupPath, IfName};
use nodelet_drivers::images::Fetch;
use nodelet_drivers::network::{AttachSpec, Attachment, Protocol, PublishedPort};
use nodelet_drivers::runtime::{Container, Security};
use nodelet_drivers::sandbox::{EtcFiles, NetNamespace, SandboxSpec};
use proptest::prelude::*;

use super::*;
use crate::workload::model::{
    AttachWish, Health, ImageWish, PortWish, Probes, PullRule, Remembered, SandboxWish, SeenSandbox, Template, Wait,
};

mod histories;

const SANDBOX: &str = "web-1";
const OLD_SANDBOX: &str = "web-0";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn wish(name: &str) -> ContainerWish {
    ContainerWish {
        name: name.to_owned(),
        image: ImageWish { fetch: Fetch::new("web:1"), policy: PullRule::IfAbsent, digest: None },
        template: Template {
            command: vec![],
            args: vec![],
            working_dir: None,
            env: vec![],
            tty: false,
            stdin: false,
            mounts: vec![],
            ulimits: vec![],
            security: Security::default(),
            host_pid: false,
            oom_score_adj: None,
            stop_signal: None,
            log_max_size: 1 << 20,
            log_max_files: 2,
        },
        limits: Limits::default(),
        hash: "h1".to_owned(),
        probes: Probes::default(),
        ports: vec![],
        pre_stop: None,
        post_start: None,
    }
}

fn network() -> NetworkKey {
    NetworkKey::new("default/default").unwrap()
}

fn desired() -> Desired {
    Desired {
        title: "default/web".to_owned(),
        generation: 3,
        intent: Intent::Run,
        sandbox: SandboxWish {
            spec: SandboxSpec {
                id: SandboxId::new(SANDBOX).unwrap(),
                labels: BTreeMap::new(),
                hostname: "web".to_owned(),
                net: NetNamespace::New,
                host_ipc: false,
                host_uts: false,
                shm_size: 0,
                sysctls: BTreeMap::new(),
            },
            attachments: vec![AttachWish { network: network(), addresses: vec![] }],
            ports: vec![PortWish { host_ip: None, host_port: 8080, protocol: Protocol::Tcp, target_port: 80 }],
            etc: EtcFiles::default(),
            volumes: BTreeMap::new(),
        },
        cgroup: CgroupPath::new("/nodelet/web-1").unwrap(),
        init: vec![],
        containers: vec![wish("main")],
        restart: RestartPolicy::Always,
        grace: Duration::from_secs(10),
        batch: crate::workload::model::Batch::default(),
        update: crate::workload::update::DEFAULT,
        revision: "r1".to_owned(),
        waits: vec![],
    }
}

fn container(name: &str, attempt: u32, state: TaskState) -> SeenContainer {
    let created = SystemTime::from(now()) - Duration::from_secs(20);
    SeenContainer {
        container: Container {
            id: ContainerId::new(format!("{SANDBOX}-{name}-{attempt}")).unwrap(),
            labels: BTreeMap::new(),
            image: "docker.io/library/web:1".into(),
            created_at: created,
            limits: Limits::default(),
            state,
        },
        name: name.to_owned(),
        init: false,
        sandbox: SANDBOX.to_owned(),
        attempt,
        restarts: attempt,
        failures: 0,
        hash: "h1".to_owned(),
        stopping: None,
        health: Health::default(),
    }
}

fn running() -> TaskState {
    TaskState::Running { pid: 42 }
}

fn exited(code: u32, seconds_ago: u64) -> TaskState {
    TaskState::Exited(Exit { code, at: SystemTime::from(now()) - Duration::from_secs(seconds_ago), oom_killed: false })
}

fn attachment() -> Attachment {
    Attachment {
        spec: AttachSpec {
            network: network(),
            sandbox: SandboxId::new(SANDBOX).unwrap(),
            netns: "/run/netns".into(),
            ifname: IfName::new("eth0").unwrap(),
            addresses: vec![],
            default_route: true,
        },
        addresses: vec!["10.89.0.2/24".parse().unwrap()],
        mac: "02:00:00:00:00:01".into(),
        host_link: IfName::new("nlv1").unwrap(),
        complete: true,
    }
}

fn port() -> PublishedPort {
    PublishedPort {
        host_ip: None,
        host_port: 8080,
        protocol: Protocol::Tcp,
        target_ip: "10.89.0.2".parse().unwrap(),
        target_port: 80,
    }
}

fn present() -> SeenImage {
    SeenImage::Present { name: "docker.io/library/web:1".into(), digest: "sha256:1".into() }
}

/// A workload that runs as wanted.
fn healthy() -> Observed {
    Observed {
        sandbox: Some(SeenSandbox {
            complete: true,
            netns: None,
            attachments: vec![attachment()],
            ports: vec![(port(), true)],
        }),
        containers: vec![container("main", 0, running())],
        ..Observed::default()
    }
}

/// The steps of a plan in short words.
fn steps(desired: &Desired, observed: &Observed) -> Vec<String> {
    plan(desired, observed, now()).steps.iter().map(short).collect()
}

fn short(step: &Step) -> String {
    match step {
        Step::Ask { id, why } => format!("ask {id} {why:?}"),
        Step::Kill { id } => format!("kill {id}"),
        Step::Remove { id } => format!("remove {id}"),
        Step::Teardown { id } => format!("teardown {id}"),
        Step::EnsureSandbox => "sandbox".to_owned(),
        Step::Attach { network } => format!("attach {network}"),
        Step::Detach { network } => format!("detach {network}"),
        Step::SetPorts => "ports".to_owned(),
        Step::TakePorts { .. } => "take ports".to_owned(),
        Step::WriteFiles => "files".to_owned(),
        Step::Start { container, attempt, restarts, failures, .. } => {
            format!("start {container} {attempt} r{restarts} f{failures}")
        }
        Step::UpdateLimits { id, .. } => format!("limits {id}"),
    }
}

/// One case: what differs from the healthy baseline, and the steps expected.
type Case = (&'static str, fn(&mut Desired, &mut Observed), &'static [&'static str]);

#[test]
fn one_change_on_a_healthy_workload() {
    let cases: &[Case] = &[
        ("nothing", |_, _| {}, &[]),
        ("stopped", |d, _| d.intent = Intent::Stop, &["ask web-1-main-0 NotWanted"]),
        (
            "stopped, grace over",
            |d, o| {
                d.intent = Intent::Stop;
                o.containers[0].stopping = Some(Duration::from_secs(10));
            },
            &["kill web-1-main-0"],
        ),
        (
            "stopped, asked already",
            |d, o| {
                d.intent = Intent::Stop;
                o.containers[0].stopping = Some(Duration::from_secs(3));
            },
            &[],
        ),
        (
            "deleted and dead",
            |d, o| {
                d.intent = Intent::Delete;
                o.containers[0].container.state = exited(0, 1);
            },
            &["remove web-1-main-0", "teardown web-1"],
        ),
        (
            "first crash: at once, the dead one goes after its successor runs",
            |_, o| o.containers[0].container.state = exited(1, 0),
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "second crash: waits",
            |_, o| {
                o.containers[0].container.state = exited(1, 0);
                o.containers[0].failures = 1;
            },
            &[],
        ),
        (
            "second crash, a second ago",
            |_, o| {
                o.containers[0].container.state = exited(1, 1);
                o.containers[0].failures = 1;
            },
            &["start main 1 r1 f2", "remove web-1-main-0"],
        ),
        (
            "crash after a healthy time",
            |_, o| {
                o.containers[0].container.created_at -= Duration::from_secs(3600);
                o.containers[0].container.state = exited(1, 0);
                o.containers[0].failures = 9;
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "the clock went back by years: waits no longer than the delay",
            |_, o| {
                let later = SystemTime::from(now()) + Duration::from_secs(1_000_000_000);
                o.containers[0].container.created_at = later;
                o.containers[0].container.state = TaskState::Exited(Exit { code: 1, at: later, oom_killed: false });
                o.containers[0].failures = 3;
            },
            &[],
        ),
        (
            "task taken away",
            |_, o| o.containers[0].container.state = TaskState::Absent,
            &["remove web-1-main-0", "start main 1 r0 f0"],
        ),
        (
            "half made",
            |_, o| o.containers[0].container.state = TaskState::Created { pid: 7 },
            &["remove web-1-main-0", "start main 1 r0 f0"],
        ),
        ("record taken away", |_, o| o.containers.clear(), &["start main 0 r0 f0"]),
        ("changed", |d, _| d.containers[0].hash = "h2".into(), &["ask web-1-main-0 Changed"]),
        (
            "changed, image not there yet: keeps running",
            |d, o| {
                d.containers[0].hash = "h2".into();
                o.images.insert("main".into(), SeenImage::Pulling { message: String::new() });
            },
            &[],
        ),
        (
            "changed and ended",
            |d, o| {
                d.containers[0].hash = "h2".into();
                o.containers[0].container.state = exited(143, 0);
            },
            &["start main 1 r0 f0", "remove web-1-main-0"],
        ),
        ("limits", |d, _| d.containers[0].limits.pids_max = Some(9), &["limits web-1-main-0"]),
        ("unhealthy", |_, o| o.containers[0].health.failed = true, &["ask web-1-main-0 Unhealthy"]),
        (
            "veth gone",
            |_, o| o.sandbox.as_mut().unwrap().attachments[0].complete = false,
            &["attach default/default", "ports", "files"],
        ),
        ("port element gone", |_, o| o.sandbox.as_mut().unwrap().ports[0].1 = false, &["ports"]),
        ("port no longer wanted", |d, _| d.sandbox.ports.clear(), &["ports"]),
        ("network no longer wanted", |d, _| d.sandbox.attachments.clear(), &["detach default/default", "ports"]),
        (
            "a file changed",
            |_, o| {
                o.outdated_files.insert("conf".into());
            },
            &["files"],
        ),
        (
            "a container no longer wanted",
            |_, o| o.containers.push(container("extra", 0, running())),
            &["ask web-1-extra-0 NotWanted"],
        ),
        ("a dependency went away: what runs is not touched", |d, _| d.waits.push(wait(About::Dependencies)), &[]),
        (
            "a dependency went away and it crashed: restarted all the same",
            |d, o| {
                d.waits.push(wait(About::Dependencies));
                o.containers[0].container.state = exited(1, 0);
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "configuration went away and it crashed: held",
            |d, o| {
                d.waits.push(wait(About::Configuration));
                o.containers[0].container.state = exited(1, 0);
            },
            &[],
        ),
        (
            "two attempts: the older goes",
            |_, o| o.containers.push(container("main", 1, running())),
            &["kill web-1-main-0", "remove web-1-main-0"],
        ),
        (
            "another sandbox revision: the old one goes first",
            |_, o| {
                o.sandbox = None;
                o.containers[0].sandbox = OLD_SANDBOX.into();
                o.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
            },
            &["ask web-1-main-0 SandboxChanged"],
        ),
        (
            "another sandbox revision, dead",
            |_, o| {
                o.sandbox = None;
                o.containers[0].sandbox = OLD_SANDBOX.into();
                o.containers[0].container.state = exited(0, 0);
                o.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
            },
            &[
                "remove web-1-main-0",
                "teardown web-0",
                "sandbox",
                "attach default/default",
                "ports",
                "files",
                "start main 0 r0 f0",
            ],
        ),
        (
            "another sandbox revision, and its image is not there: the old one runs on",
            |_, o| {
                o.sandbox = None;
                o.containers[0].sandbox = OLD_SANDBOX.into();
                o.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
                o.images.insert("main".into(), SeenImage::Pulling { message: String::new() });
            },
            &[],
        ),
        (
            "after a reboot",
            |_, o| {
                o.sandbox = None;
                o.containers[0].container.state = TaskState::Absent;
            },
            &["sandbox", "attach default/default", "ports", "files", "remove web-1-main-0", "start main 1 r0 f0"],
        ),
        (
            "policy Never and ended",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.containers[0].container.state = exited(1, 0);
            },
            &[],
        ),
        (
            "policy Never and ended, and the status tells: gives back what it held",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.containers[0].container.state = exited(1, 0);
                let remembered = Remembered { restarts: 0, exit_code: Some(1), next_attempt: 1 };
                o.remembered.insert("main".into(), remembered);
            },
            &["remove web-1-main-0", "teardown web-1"],
        ),
        (
            "policy OnFailure and ended well",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                o.containers[0].container.state = exited(0, 0);
            },
            &[],
        ),
        (
            "policy OnFailure and failed",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                o.containers[0].container.state = exited(2, 0);
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "failed as often as it may",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.backoff_limit = Some(2);
                o.containers[0].failures = 1;
                o.containers[0].container.state = exited(2, 15);
            },
            &["start main 1 r1 f2", "remove web-1-main-0"],
        ),
        (
            "failed more often than it may: told first",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.backoff_limit = Some(2);
                o.containers[0].failures = 2;
                o.containers[0].container.state = exited(2, 15);
            },
            &[],
        ),
        (
            "failed more often than it may, told",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                o.containers[0].container.state = exited(2, 15);
                o.given_up = Some(GivenUp { reason: "Test", message: String::new() });
            },
            &["remove web-1-main-0", "teardown web-1"],
        ),
        (
            "given up, and nothing is left",
            |_, o| {
                *o = Observed::default();
                o.given_up = Some(GivenUp { reason: "Test", message: String::new() });
            },
            &[],
        ),
        (
            "its deadline is near",
            |d, o| {
                d.batch.deadline = Some(Duration::from_secs(20));
                o.started_at = Some(now() - Duration::from_secs(19));
            },
            &[],
        ),
        (
            "its deadline is over",
            |d, o| {
                d.batch.deadline = Some(Duration::from_secs(20));
                o.started_at = Some(now() - Duration::from_secs(20));
            },
            &["ask web-1-main-0 GivenUp"],
        ),
        (
            "its deadline is over, and it ended well before",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.deadline = Some(Duration::from_secs(20));
                o.started_at = Some(now() - Duration::from_secs(30));
                o.containers[0].container.state = exited(0, 15);
            },
            &[],
        ),
        (
            "ended well, and its records are gone since",
            |d, o| {
                d.restart = RestartPolicy::Never;
                *o = Observed::default();
                let remembered = Remembered { restarts: 0, exit_code: Some(0), next_attempt: 1 };
                o.remembered.insert("main".into(), remembered);
            },
            &[],
        ),
    ];
    for (name, change, expected) in cases {
        let (mut desired, mut observed) = (desired(), healthy());
        observed.images.insert("main".into(), present());
        change(&mut desired, &mut observed);
        assert_eq!(steps(&desired, &observed), *expected, "{name}");
    }
}

#[test]
fn a_successor_takes_over_once_it_is_healthy() {
    type Case = (&'static str, fn(&mut Desired, &mut Observed), &'static [&'static str]);
    let cases: &[Case] = &[
        ("not long enough", |_, _| {}, &[]),
        (
            "long enough",
            |_, o| o.healthy_for = Some(Duration::from_secs(10)),
            &["take ports", "ask web-0-main-0 Superseded"],
        ),
        (
            "taken over, then no longer ready",
            |_, o| {
                o.healthy_for = None;
                o.serving = None;
                o.sandbox.as_mut().unwrap().ports = vec![(port(), true)];
                o.containers[0].stopping = Some(Duration::from_secs(2));
            },
            &[],
        ),
        (
            "taken over, the old one's grace and drain are over",
            |_, o| {
                o.serving = None;
                o.sandbox.as_mut().unwrap().ports = vec![(port(), true)];
                o.containers[0].stopping = Some(Duration::from_secs(11));
            },
            &["kill web-0-main-0"],
        ),
        (
            "the old one ended by itself: nothing to wait for",
            |_, o| o.containers[0].container.state = exited(1, 0),
            &["remove web-0-main-0", "teardown web-0", "ports"],
        ),
        (
            "a third one is in the way",
            |_, o| {
                let mut third = container("main", 0, running());
                third.sandbox = "web-x".to_owned();
                third.container.id = ContainerId::new("web-x-main-0").unwrap();
                o.containers.push(third);
                o.stale_sandboxes.insert(SandboxId::new("web-x").unwrap());
            },
            &["ask web-x-main-0 SandboxChanged"],
        ),
        (
            "without ports",
            |d, o| {
                d.sandbox.ports.clear();
                o.serving = None;
                o.healthy_for = Some(Duration::from_secs(10));
            },
            &["ask web-0-main-0 Superseded"],
        ),
        (
            "back to what was good, without ports",
            |d, o| {
                d.sandbox.ports.clear();
                o.serving = None;
                o.last_good = Some(SandboxId::new(SANDBOX).unwrap());
            },
            &["ask web-0-main-0 Superseded"],
        ),
        (
            "the image cannot be had",
            |_, o| {
                o.containers.pop();
                o.images.insert("main".into(), SeenImage::Pulling { message: String::new() });
            },
            &[],
        ),
        ("stopped", |d, _| d.intent = Intent::Stop, &["ask web-0-main-0 NotWanted", "ask web-1-main-0 NotWanted"]),
    ];
    for (name, change, expected) in cases {
        let (mut desired, mut observed) = (desired(), healthy());
        desired.update.start_first = true;
        let mut old = container("main", 0, running());
        old.sandbox = OLD_SANDBOX.to_owned();
        old.container.id = ContainerId::new(format!("{OLD_SANDBOX}-main-0")).unwrap();
        old.hash = "h0".to_owned();
        observed.containers.insert(0, old);
        let id = SandboxId::new(OLD_SANDBOX).unwrap();
        observed.stale_sandboxes.insert(id.clone());
        observed.serving = Some(id.clone());
        observed.last_good = Some(id);
        observed.sandbox.as_mut().unwrap().ports.clear();
        observed.healthy_for = Some(Duration::from_secs(9));
        change(&mut desired, &mut observed);
        assert_eq!(steps(&desired, &observed), *expected, "{name}");
    }
}

fn wait(about: About) -> Wait {
    Wait { reason: "Test", message: "waits".into(), about }
}

#[test]
fn a_new_workload_is_made_in_order() {
    let mut observed = Observed::default();
    assert_eq!(steps(&desired(), &observed), ["sandbox", "attach default/default", "ports", "files"]);
    observed.images.insert("main".into(), present());
    assert_eq!(
        steps(&desired(), &observed),
        ["sandbox", "attach default/default", "ports", "files", "start main 0 r0 f0"]
    );
}

#[test]
fn back_off_says_when_it_looks_again() {
    let mut observed = healthy();
    observed.images.insert("main".into(), present());
    observed.containers[0].container.state = exited(1, 0);
    observed.containers[0].failures = 4;
    let plan = plan(&desired(), &observed, now());
    assert_eq!(plan.steps, []);
    assert_eq!(plan.holds[0].reason, reasons::CRASH_LOOP_BACK_OFF);
    let again = plan.again_in.unwrap();
    assert!(again >= Duration::from_secs(8) && again < Duration::from_secs(9), "{again:?}");
}

#[test]
fn init_containers_run_in_order_and_once() {
    let mut desired = desired();
    desired.init = vec![wish("first"), wish("second")];
    let mut observed = healthy();
    observed.containers.clear();
    for name in ["first", "second", "main"] {
        observed.images.insert(name.into(), present());
    }
    let init = |name: &str, state| SeenContainer { init: true, ..container(name, 0, state) };
    assert_eq!(steps(&desired, &observed), ["start first 0 r0 f0"]);
    observed.containers.push(init("first", running()));
    assert_eq!(steps(&desired, &observed), [""; 0]);
    observed.containers[0] = init("first", exited(0, 1));
    assert_eq!(steps(&desired, &observed), ["start second 0 r0 f0"]);
    observed.containers.push(init("second", exited(1, 1)));
    assert_eq!(steps(&desired, &observed), ["start second 1 r1 f1", "remove web-1-second-0"]);
    desired.restart = RestartPolicy::Never;
    assert_eq!(steps(&desired, &observed), [""; 0]);
    observed.containers[1] = init("second", exited(0, 1));
    assert_eq!(steps(&desired, &observed), ["start main 0 r0 f0"]);
    // The record of an init container may be gone once a container was made.
    observed.containers = vec![container("main", 0, running())];
    assert_eq!(steps(&desired, &observed), [""; 0]);
}

/// Applies a plan to the observation, as the node would come to look after it.
fn apply_to_model(desired: &Desired, observed: &mut Observed, plan: &Plan) {
    for step in &plan.steps {
        match step {
            Step::Ask { id, .. } | Step::Kill { id } => {
                for c in observed.containers.iter_mut().filter(|c| c.id() == id) {
                    c.container.state = exited(143, 0);
                }
            }
            Step::Remove { id } => observed.containers.retain(|c| c.id() != id),
            Step::Teardown { id } => {
                assert!(
                    !observed.containers.iter().any(|c| c.sandbox == id.as_str() && c.is_live()),
                    "torn down alive"
                );
                observed.stale_sandboxes.remove(id);
                if observed.serving.as_ref() == Some(id) {
                    observed.serving = None;
                }
                if *id == desired.sandbox.spec.id {
                    observed.sandbox = None;
                }
            }
            Step::EnsureSandbox => {
                let sandbox = observed.sandbox.get_or_insert(SeenSandbox {
                    complete: true,
                    netns: None,
                    attachments: vec![],
                    ports: vec![],
                });
                sandbox.complete = true;
            }
            Step::Attach { .. } => observed.sandbox.as_mut().unwrap().attachments = vec![attachment()],
            Step::Detach { .. } => observed.sandbox.as_mut().unwrap().attachments.clear(),
            Step::SetPorts | Step::TakePorts { .. } => {
                if matches!(step, Step::TakePorts { .. }) {
                    observed.serving = None;
                }
                assert!(observed.serving.is_none(), "a port with two owners");
                let sandbox = observed.sandbox.as_mut().unwrap();
                sandbox.ports =
                    published_ports(desired, sandbox.attachments.iter()).into_iter().map(|p| (p, true)).collect();
            }
            Step::WriteFiles => observed.outdated_files.clear(),
            Step::Start { container: name, init, attempt, restarts, failures, .. } => {
                assert!(observed.sandbox.as_ref().unwrap().complete, "started outside a sandbox");
                let mut started = container(name, *attempt, running());
                started.init = *init;
                started.restarts = *restarts;
                started.failures = *failures;
                let list = if *init { &desired.init } else { &desired.containers };
                let wish = list.iter().find(|w| w.name == *name).unwrap();
                started.hash.clone_from(&wish.hash);
                started.container.limits = wish.limits.clone();
                assert!(!observed.containers.iter().any(|c| c.id() == started.id()), "an id was used twice");
                observed.containers.push(started);
            }
            Step::UpdateLimits { id, limits } => {
                for c in observed.containers.iter_mut().filter(|c| c.id() == id) {
                    c.container.limits = limits.clone();
                }
            }
        }
    }
}

fn any_state() -> impl Strategy<Value = TaskState> {
    prop_oneof![
        Just(TaskState::Absent),
        Just(TaskState::Created { pid: 1 }),
        Just(running()),
        Just(TaskState::Unknown),
        (0u32..3, 0u64..400).prop_map(|(code, ago)| exited(code, ago)),
    ]
}

prop_compose! {
    fn any_container()(
        name in prop_oneof![Just("main"), Just("side"), Just("gone")],
        attempt in 0u32..3,
        state in any_state(),
        old in any::<bool>(),
        hash in prop_oneof![Just("h1"), Just("h0")],
        failures in 0u32..12,
        asked in prop::option::of(0u64..20),
        unhealthy in any::<bool>(),
    ) -> SeenContainer {
        let mut c = container(name, attempt, state);
        if old {
            c.sandbox = OLD_SANDBOX.to_owned();
            c.container.id = ContainerId::new(format!("{OLD_SANDBOX}-{name}-{attempt}")).unwrap();
        }
        c.hash = hash.to_owned();
        c.failures = failures;
        c.stopping = asked.map(Duration::from_secs);
        c.health.failed = unhealthy;
        c
    }
}

prop_compose! {
    fn any_world()(
        containers in prop::collection::vec(any_container(), 0..6),
        sandbox in prop::option::of((any::<bool>(), any::<bool>(), any::<bool>())),
        stale in any::<bool>(),
        intent in prop_oneof![3 => Just(Intent::Run), 1 => Just(Intent::Stop), 1 => Just(Intent::Delete)],
        restart in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        start_first in any::<bool>(),
        serving in any::<bool>(),
        good in prop::option::of(prop_oneof![Just(SANDBOX), Just(OLD_SANDBOX)]),
    ) -> (Desired, Observed) {
        let mut desired = desired();
        desired.containers.push(wish("side"));
        desired.intent = intent;
        desired.restart = restart;
        desired.update.start_first = start_first && restart == RestartPolicy::Always;
        let mut observed = Observed::default();
        let mut seen = std::collections::BTreeSet::new();
        for c in containers {
            if seen.insert(c.container.id.clone()) {
                observed.containers.push(c);
            }
        }
        observed.sandbox = sandbox.map(|(complete, attached, published)| SeenSandbox {
            complete,
            netns: None,
            attachments: if attached { vec![attachment()] } else { vec![] },
            ports: if published { vec![(port(), true)] } else { vec![] },
        });
        if stale || observed.containers.iter().any(|c| c.sandbox == OLD_SANDBOX) {
            observed.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
        }
        let published = observed.sandbox.as_ref().is_some_and(|sandbox| !sandbox.ports.is_empty());
        if serving && !published && !observed.stale_sandboxes.is_empty() {
            observed.serving = Some(SandboxId::new(OLD_SANDBOX).unwrap());
        }
        observed.last_good = good.map(|id| SandboxId::new(id).unwrap());
        for name in ["main", "side"] {
            observed.images.insert(name.to_owned(), present());
        }
        (desired, observed)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is there, planning and applying comes to rest within a few rounds, in the wanted state.
    #[test]
    fn every_world_comes_to_rest((desired, mut observed) in any_world()) {
        for round in 0.. {
            prop_assert!(round < 8, "no rest: {observed:?}");
            // Time passes between the rounds: back-offs and grace periods end.
            let later = now() + Duration::from_secs(1000 * (round + 1));
            for c in &mut observed.containers {
                c.stopping = c.stopping.map(|_| Duration::from_secs(100));
                // A restarted container is healthy.
                if round > 0 && c.is_live() { c.health = Health::default(); c.stopping = None; }
            }
            let healthy = crate::workload::update::is_healthy(&desired, &observed);
            observed.healthy_for = healthy.then_some(Duration::from_secs(100));
            let plan = plan(&desired, &observed, later);
            if plan.steps.is_empty() {
                break;
            }
            apply_to_model(&desired, &mut observed, &plan);
        }
        if desired.intent == Intent::Run {
            prop_assert!(observed.stale_sandboxes.is_empty());
            for wish in &desired.containers {
                let of: Vec<_> = observed.containers.iter().filter(|c| c.name == wish.name).collect();
                prop_assert!(of.len() <= 1, "two of one: {of:?}");
                if desired.restart == RestartPolicy::Always {
                    prop_assert!(of.len() == 1 && of[0].is_live() && of[0].hash == wish.hash);
                }
            }
        } else {
            prop_assert!(observed.containers.is_empty() && observed.sandbox.is_none());
            prop_assert!(observed.stale_sandboxes.is_empty());
        }
    }

    /// With StartFirst, what the ports lead to is not stopped before they lead to something that was healthy for long
    /// enough, and they are not moved before.
    #[test]
    fn nothing_that_serves_is_stopped_before_its_successor_serves((desired, observed) in any_world()) {
        let old = |id: &ContainerId| id.as_str().starts_with(OLD_SANDBOX);
        let serves = observed.containers.iter().any(|c| c.is_live() && !c.init && c.sandbox == OLD_SANDBOX);
        if desired.intent == Intent::Run && desired.update.start_first && observed.serving.is_some() && serves {
            for step in plan(&desired, &observed, now()).steps {
                match step {
                    Step::Ask { id, .. } | Step::Kill { id } => prop_assert!(!old(&id), "{id}"),
                    Step::Teardown { id } => prop_assert!(id.as_str() != OLD_SANDBOX),
                    Step::SetPorts | Step::TakePorts { .. } => prop_assert!(false, "moved too early"),
                    _ => {}
                }
            }
        }
    }

    /// A plan never names anything that is not the workload's own.
    #[test]
    fn only_own_things_are_touched((desired, observed) in any_world()) {
        let own: std::collections::BTreeSet<String> =
            observed.containers.iter().map(|c| c.id().to_string()).collect();
        for step in plan(&desired, &observed, now()).steps {
            if let Step::Ask { id, .. } | Step::Kill { id } | Step::Remove { id } | Step::UpdateLimits { id, .. } = step {
                prop_assert!(own.contains(id.as_str()));
            }
        }
    }
}
