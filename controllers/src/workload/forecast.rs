//! What a plan leads to when all goes well: the steps of this and of all following plans, until there is nothing left
//! to do. Pure: the node is played by a copy of the observation, on which each step has its effect at once.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use nodelet_drivers::ids::{ContainerId, IfName};
use nodelet_drivers::network::{AttachSpec, Attachment};
use nodelet_drivers::runtime::{Container, Exit, TaskState};
use serde::Serialize;

use super::model::{Desired, Health, Observed, SeenContainer, SeenSandbox};
use super::plan::{Hold, Step, Why, plan};
use super::update;
use crate::names;

/// Plans in a row that are looked at. An update with sidecars takes about ten.
const ROUNDS: usize = 64;

/// The steps to come.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// In their order.
    pub steps: Vec<Expected>,
    /// What keeps containers from running after the last step.
    pub holds: Vec<Hold>,
    /// Containers that run now and will be replaced, or stopped.
    pub interrupted: Vec<String>,
    /// For how long at most the workload serves nothing while it is stopped, the time of its new start not counted;
    /// `None`: it serves all the time.
    pub down_seconds: Option<u64>,
}

/// One step to come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Expected {
    /// In words.
    pub what: String,
    /// The step itself.
    pub step: Step,
}

/// Plays it through. Images that are missing count as fetched.
pub fn forecast(desired: &Desired, observed: &Observed, now: Timestamp) -> Forecast {
    let mut node = Node { desired, observed: observed.clone(), now };
    let serves = |c: &SeenContainer| !c.init && c.is_live();
    let served = observed.containers.iter().any(serves);
    let mut all = Forecast { steps: Vec::new(), holds: Vec::new(), interrupted: Vec::new(), down_seconds: None };
    let mut stages = 0;
    for _ in 0..ROUNDS {
        node.observed.healthy_for =
            update::is_healthy(desired, &node.observed).then_some(desired.update.healthy.max(Duration::from_secs(1)));
        let plan = plan(desired, &node.observed, node.now);
        let settled = node.settle();
        if plan.steps.is_empty() && !settled {
            all.holds = plan.holds;
            break;
        }
        let mut asks = false;
        for step in plan.steps {
            if let Step::Ask { id, why } = &step {
                asks |= *why != Why::Superseded;
                if let Some(c) = node.observed.containers.iter().find(|c| c.id() == id && serves(c)) {
                    all.interrupted.push(c.name.clone());
                }
            }
            all.steps.push(Expected { what: node.describe(&step), step: step.clone() });
            node.apply(&step);
        }
        let down = served && !node.observed.containers.iter().any(serves);
        stages += u64::from(asks);
        if down {
            all.down_seconds = Some(stages.saturating_mul(desired.grace.as_secs()));
        }
        // Back-offs and deadlines of what was seen are over by then.
        node.now += Duration::from_secs(400);
    }
    all.interrupted.sort_unstable();
    all.interrupted.dedup();
    all
}

struct Node<'a> {
    desired: &'a Desired,
    observed: Observed,
    now: Timestamp,
}

impl Node<'_> {
    /// What happens by itself: init containers end well. Returns whether anything did.
    fn settle(&mut self) -> bool {
        let exit = self.exit(0);
        let inits = self.observed.containers.iter_mut().filter(|c| c.init && c.sidecar.is_none() && c.is_live());
        inits.map(|c| c.container.state = exit.clone()).count() > 0
    }

    fn exit(&self, code: u32) -> TaskState {
        TaskState::Exited(Exit { code, at: SystemTime::from(self.now), oom_killed: false })
    }

    fn name(&self, id: &ContainerId) -> String {
        let found = self.observed.containers.iter().find(|c| c.id() == id);
        found.map_or_else(|| id.to_string(), |c| c.name.clone())
    }

    fn describe(&self, step: &Step) -> String {
        match step {
            Step::Ask { id, why } => {
                let seconds = self.desired.grace.as_secs();
                format!("stop container {}, which {}; killed after {seconds} s", self.name(id), why.words())
            }
            Step::Kill { id } => format!("kill container {}", self.name(id)),
            Step::Remove { id } => format!("remove what is left of container {}", self.name(id)),
            Step::Teardown { id } => format!("free sandbox {id}: ports, addresses, temporary volumes"),
            Step::EnsureSandbox => format!("make sandbox {}", self.desired.sandbox.spec.id),
            Step::Attach { network } => format!("attach to network {network}"),
            Step::Detach { network } => format!("detach from network {network}"),
            Step::SetPorts | Step::TakePorts { .. } => {
                let ports: Vec<_> = self.desired.sandbox.ports.iter().map(|p| p.host_port.to_string()).collect();
                match (ports.is_empty(), step) {
                    (true, _) => "withdraw the published ports".to_owned(),
                    (false, Step::SetPorts) => format!("publish ports {}", ports.join(", ")),
                    (false, _) => format!("move published ports {} over, once it is healthy", ports.join(", ")),
                }
            }
            Step::WriteFiles => "write the files that containers share".to_owned(),
            Step::Start { container, image, .. } => format!("start container {container} from {image}"),
            Step::Signal { id, .. } => format!("send SIGHUP to container {}: files of it changed", self.name(id)),
            Step::UpdateLimits { id, .. } => format!("change the limits of container {} in place", self.name(id)),
        }
    }

    fn apply(&mut self, step: &Step) {
        let ours = self.desired.sandbox.spec.id.clone();
        match step {
            Step::Ask { id, .. } | Step::Kill { id } => {
                let exit = self.exit(143);
                self.of(id).for_each(|c| c.container.state = exit.clone());
            }
            Step::Remove { id } => self.observed.containers.retain(|c| c.id() != id),
            Step::Teardown { id } => {
                self.observed.stale_sandboxes.remove(id);
                self.observed.serving.take_if(|serving| serving == id);
                if *id == ours {
                    self.observed.sandbox = None;
                }
            }
            Step::EnsureSandbox => self.sandbox().complete = true,
            Step::Attach { network } => {
                let Ok(link) = IfName::new("eth0") else { return };
                let wished = self.desired.sandbox.attachments.iter().find(|a| a.network == *network);
                let spec = AttachSpec {
                    network: network.clone(),
                    sandbox: ours,
                    netns: PathBuf::new(),
                    ifname: link.clone(),
                    addresses: Vec::new(),
                    default_route: true,
                    link: wished.map(|a| a.link.clone()).unwrap_or_default(),
                };
                // Which address it gets does not matter here, only that it has one.
                let fixed = wished.map(|a| a.addresses.clone()).unwrap_or_default();
                let addresses = if fixed.is_empty() { vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)] } else { fixed };
                let attachment = Attachment {
                    spec,
                    addresses: addresses.into_iter().map(IpNet::from).collect(),
                    mac: String::new(),
                    host_link: link,
                    resolvers: Vec::new(),
                    complete: true,
                };
                let all = &mut self.sandbox().attachments;
                all.retain(|a| a.spec.network != *network);
                all.push(attachment);
            }
            Step::Detach { network } => self.sandbox().attachments.retain(|a| a.spec.network != *network),
            Step::SetPorts | Step::TakePorts { .. } => {
                self.observed.serving = None;
                let desired = self.desired;
                let wanted = super::plan::published_ports(desired, self.sandbox().attachments.clone().iter());
                self.sandbox().ports = wanted.into_iter().map(|port| (port, true)).collect();
            }
            Step::WriteFiles => self.observed.outdated_files.clear(),
            Step::Signal { id, content } => self.of(id).for_each(|c| c.heard = Some(content.clone())),
            Step::UpdateLimits { id, limits } => self.of(id).for_each(|c| c.container.limits = limits.clone()),
            Step::Start { container, init, attempt, restarts, failures, image, .. } => {
                let list = if *init { &self.desired.init } else { &self.desired.containers };
                let Some(place) = list.iter().position(|wish| wish.name == *container) else { return };
                let wish = &list[place];
                let Ok(id) = names::container_id(&ours, container, *attempt) else { return };
                self.observed.containers.retain(|c| *c.id() != id);
                self.observed.containers.push(SeenContainer {
                    container: Container {
                        id,
                        labels: Default::default(),
                        image: image.clone(),
                        created_at: self.now.into(),
                        limits: wish.limits.clone(),
                        state: TaskState::Running { pid: 0 },
                    },
                    name: container.clone(),
                    init: *init,
                    sidecar: wish.sidecar.then(|| u32::try_from(place).unwrap_or(u32::MAX)),
                    sandbox: ours.to_string(),
                    attempt: *attempt,
                    restarts: *restarts,
                    failures: *failures,
                    hash: wish.hash.clone(),
                    heard: wish.signal.clone(),
                    stopping: None,
                    health: Health::default(),
                    resize: None,
                });
            }
        }
    }

    fn of(&mut self, id: &ContainerId) -> impl Iterator<Item = &mut SeenContainer> {
        self.observed.containers.iter_mut().filter(move |c| c.id() == id)
    }

    fn sandbox(&mut self) -> &mut SeenSandbox {
        let new = || SeenSandbox { complete: true, netns: None, attachments: Vec::new(), ports: Vec::new() };
        self.observed.sandbox.get_or_insert_with(new)
    }
}
