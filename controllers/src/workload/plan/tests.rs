//! Tables over the planner, a file for each subject: a healthy baseline and one change per case. Then properties over
//! generated nodes, and over generated histories of one.

use std::collections::BTreeMap;
use std::time::SystemTime;

use nodelet_crds::reasons;
use nodelet_crds::workload::RestartPolicy;
use nodelet_drivers::cgroups::Limits;
use nodelet_drivers::ids::{CgroupPath, IfName};
use nodelet_drivers::images::Fetch;
use nodelet_drivers::network::{AttachSpec, Attachment, LinkWish, Protocol, PublishedPort};
use nodelet_drivers::runtime::{Container, Exit, Security, TaskState};
use nodelet_drivers::sandbox::{EtcFiles, NetNamespace, SandboxSpec};

use super::*;
use crate::workload::model::{
    AttachWish, Health, ImageWish, PortWish, Probes, PullRule, Remembered, SandboxWish, SeenSandbox, Template, Wait,
};

mod ends;
mod forecasts;
mod histories;
mod properties;
mod running;
mod sidecars;
mod starts;
mod takeover;

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
            stdin_once: false,
            mounts: vec![],
            ulimits: vec![],
            devices: vec![],
            security: Security::default(),
            host_pid: false,
            share_pid: false,
            oom_score_adj: None,
            stop_signal: None,
            log_max_size: 1 << 20,
            log_max_files: 2,
        },
        limits: Limits::default(),
        requests: Default::default(),
        hash: "h1".to_owned(),
        probes: Probes::default(),
        ports: vec![],
        signal: None,
        sidecar: false,
        pre_stop: None,
        post_start: None,
    }
}

fn network() -> NetworkKey {
    NetworkKey::new("default/default").unwrap()
}

pub(in crate::workload) fn desired() -> Desired {
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
                own_users: false,
                host_uts: false,
                shared: true,
                shm_size: 0,
                sysctls: BTreeMap::new(),
            },
            attachments: vec![AttachWish {
                network: network(),
                addresses: vec![],
                link: LinkWish::default(),
                through_node: true,
            }],
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
        backoff: crate::backoff::RestartBackoff::default(),
        update: crate::workload::update::DEFAULT,
        revision: "r1".to_owned(),
        evicted: None,
        resize: None,
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
        sidecar: None,
        sandbox: SANDBOX.to_owned(),
        attempt,
        restarts: attempt,
        failures: 0,
        hash: "h1".to_owned(),
        heard: None,
        stopping: None,
        health: Health::default(),
        resize: None,
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
            link: LinkWish::default(),
        },
        addresses: vec!["10.89.0.2/24".parse().unwrap()],
        mac: "02:00:00:00:00:01".into(),
        host_link: IfName::new("nlv1").unwrap(),
        resolvers: vec![],
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
        Step::Signal { id, .. } => format!("signal {id}"),
        Step::UpdateLimits { id, .. } => format!("limits {id}"),
    }
}

/// One case: what differs from the healthy baseline, and the steps expected.
type Case = (&'static str, fn(&mut Desired, &mut Observed), &'static [&'static str]);

/// Checks each case on a workload that runs as wanted and whose image is there.
fn check(cases: &[Case]) {
    for (name, change, expected) in cases {
        let (mut desired, mut observed) = (desired(), healthy());
        observed.images.insert("main".into(), present());
        change(&mut desired, &mut observed);
        assert_eq!(steps(&desired, &observed), *expected, "{name}");
    }
}

fn wait(about: About) -> Wait {
    Wait { reason: "Test", message: "waits".into(), about }
}
