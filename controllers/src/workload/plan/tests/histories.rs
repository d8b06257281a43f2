//! A hundred thousand generated histories of one workload on a node: changes of its specification, crashes, lost
//! records, reboots, and an agent that is killed between any two steps. After each step the promises hold, and when
//! nothing more happens the node comes to rest as declared. A failure names the seed of its history, and what happened.

use std::collections::BTreeMap;

use super::*;

/// In four parts, which run beside each other.
const HISTORIES: u64 = 25_000;
/// Rounds within which a node comes to rest.
const ROUNDS: u32 = 30;

#[test]
fn histories_of_recreate() {
    (0..HISTORIES).for_each(|seed| history(seed, false, RestartPolicy::Always));
}

#[test]
fn histories_of_start_first() {
    (HISTORIES..2 * HISTORIES).for_each(|seed| history(seed, true, RestartPolicy::Always));
}

#[test]
fn more_histories_of_start_first() {
    (2 * HISTORIES..3 * HISTORIES).for_each(|seed| history(seed, true, RestartPolicy::Always));
}

#[test]
fn histories_of_other_policies() {
    for seed in 3 * HISTORIES..4 * HISTORIES {
        history(seed, false, if seed % 2 == 0 { RestartPolicy::OnFailure } else { RestartPolicy::Never });
    }
}

fn history(seed: u64, start_first: bool, restart: RestartPolicy) {
    let mut world = World::new(seed, start_first, restart);
    for _ in 0..4 + world.dice.below(6) {
        world.something_happens();
        for _ in 0..world.dice.below(4) {
            world.round();
        }
    }
    world.rest();
}

/// SplitMix64: a history is its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

struct World {
    seed: u64,
    dice: Dice,
    desired: Desired,
    sandboxes: BTreeMap<String, SeenSandbox>,
    containers: Vec<SeenContainer>,
    asked: BTreeMap<ContainerId, u64>,
    images_missing: bool,
    last_good: Option<SandboxId>,
    healthy_since: Option<u64>,
    clock: u64,
    changes: u64,
    story: Vec<&'static str>,
}

impl World {
    fn new(seed: u64, start_first: bool, restart: RestartPolicy) -> World {
        let mut desired = desired();
        desired.containers.push(wish("side"));
        if seed.is_multiple_of(3) {
            desired.init.push(wish("init"));
        }
        if seed.is_multiple_of(4) {
            let place = usize::from(seed.is_multiple_of(8)).min(desired.init.len());
            desired.init.insert(place, ContainerWish { sidecar: true, ..wish("helper") });
            desired.init.push(ContainerWish { sidecar: true, ..wish("proxy") });
        }
        if seed.is_multiple_of(5) {
            desired.sandbox.ports.clear();
        }
        desired.update.start_first = start_first;
        desired.restart = restart;
        World {
            seed,
            dice: Dice(seed),
            desired,
            sandboxes: BTreeMap::new(),
            containers: Vec::new(),
            asked: BTreeMap::new(),
            images_missing: false,
            last_good: None,
            healthy_since: None,
            clock: 0,
            changes: 1,
            story: Vec::new(),
        }
    }

    fn check(&self, holds: bool, what: &str) {
        assert!(holds, "seed {}: {what}\n{:?}\n{:#?}\n{:#?}", self.seed, self.story, self.sandboxes, self.containers);
    }

    fn now(&self) -> Timestamp {
        now() + Duration::from_secs(self.clock)
    }

    fn ours(&self) -> SandboxId {
        self.desired.sandbox.spec.id.clone()
    }

    fn observe(&mut self) -> Observed {
        let ours = self.ours();
        let others = self.sandboxes.iter().filter(|(id, _)| id.as_str() != ours.as_str());
        let serving = others.clone().find(|(_, sandbox)| !sandbox.ports.is_empty());
        let mut observed = Observed {
            sandbox: self.sandboxes.get(ours.as_str()).cloned(),
            stale_sandboxes: others.clone().map(|(id, _)| SandboxId::new(id.clone()).unwrap()).collect(),
            serving: serving.map(|(id, _)| SandboxId::new(id.clone()).unwrap()),
            containers: self.containers.clone(),
            last_good: self.last_good.clone(),
            ..Observed::default()
        };
        for container in &mut observed.containers {
            let asked = self.asked.get(container.id());
            container.stopping = asked.map(|asked| Duration::from_secs(self.clock - asked));
        }
        for wish in self.desired.init.iter().chain(&self.desired.containers) {
            let image = if self.images_missing { SeenImage::Pulling { message: String::new() } } else { present() };
            observed.images.insert(wish.name.clone(), image);
        }
        if crate::workload::update::is_healthy(&self.desired, &observed) {
            let healthy = self.clock - *self.healthy_since.get_or_insert(self.clock);
            observed.healthy_for = Some(Duration::from_secs(healthy));
            if observed.healthy_for >= Some(self.desired.update.healthy) && observed.serving.is_none() {
                self.last_good = Some(ours);
            }
        } else {
            self.healthy_since = None;
        }
        observed
    }

    /// One pass of the reconciler, which may be killed between two steps of its plan.
    fn round(&mut self) {
        self.clock += [0, 1, 5, 400][self.dice.below(4) as usize];
        let observed = self.observe();
        let plan = plan(&self.desired, &observed, self.now());
        let cut = match self.dice.below(3) {
            0 => self.dice.below(plan.steps.len() as u64 + 1) as usize,
            _ => plan.steps.len(),
        };
        for step in &plan.steps[..cut] {
            self.apply(step, true);
        }
        if cut < plan.steps.len() {
            self.story.push("agent killed");
            self.asked.clear();
        }
    }

    fn apply(&mut self, step: &Step, some_ignore_the_signal: bool) {
        let ours = self.ours();
        if let Step::Ask { id, .. } | Step::Kill { id } | Step::Remove { id } | Step::UpdateLimits { id, .. } = step {
            self.check(self.containers.iter().any(|c| c.id() == id), "a foreign container is touched");
        }
        match step {
            Step::Ask { id, why } => {
                if !matches!(why, Why::Unhealthy | Why::Changed) {
                    self.check(!self.is_needed(id), "a sidecar is stopped before what it serves");
                }
                self.asked.insert(id.clone(), self.clock);
                if !some_ignore_the_signal || self.dice.below(3) > 0 {
                    self.end(id.clone(), 143);
                }
            }
            Step::Kill { id } => self.end(id.clone(), 137),
            Step::Remove { id } => self.containers.retain(|c| c.id() != id),
            Step::Teardown { id } => {
                self.check(self.sandboxes.contains_key(id.as_str()), "a foreign sandbox is torn down");
                let lives = |c: &SeenContainer| c.sandbox == id.as_str() && c.is_live();
                self.check(!self.containers.iter().any(lives), "torn down alive");
                self.sandboxes.remove(id.as_str());
            }
            Step::EnsureSandbox => {
                let new = SeenSandbox { complete: true, netns: None, attachments: vec![], ports: vec![] };
                self.sandboxes.entry(ours.to_string()).or_insert(new).complete = true;
            }
            Step::Attach { .. } => self.own_sandbox().attachments = vec![attachment()],
            Step::Detach { .. } => self.own_sandbox().attachments.clear(),
            Step::SetPorts => self.publish(),
            Step::TakePorts { from } => {
                let healthy = self.healthy_since.map(|since| Duration::from_secs(self.clock - since));
                self.check(
                    healthy >= Some(self.desired.update.healthy),
                    "the ports move to what has not proved itself",
                );
                for id in from {
                    if let Some(sandbox) = self.sandboxes.get_mut(id.as_str()) {
                        sandbox.ports.clear();
                    }
                }
                self.publish();
            }
            Step::WriteFiles => self.check(self.sandboxes.contains_key(ours.as_str()), "files without a sandbox"),
            Step::Start { container, init, attempt, restarts, failures, .. } => {
                self.start(container, *init, *attempt, *restarts, *failures);
            }
            Step::Signal { id, content } => {
                for c in self.containers.iter_mut().filter(|c| c.id() == id) {
                    c.heard = Some(content.clone());
                }
            }
            Step::UpdateLimits { id, limits } => {
                for c in self.containers.iter_mut().filter(|c| c.id() == id) {
                    c.container.limits = limits.clone();
                }
            }
        }
    }

    /// It is a sidecar, and something that came after it still runs.
    fn is_needed(&self, id: &ContainerId) -> bool {
        let Some(sidecar) = self.containers.iter().find(|c| c.id() == id && c.sidecar.is_some()) else { return false };
        let later = |c: &SeenContainer| c.sidecar.is_none_or(|place| Some(place) > sidecar.sidecar);
        self.containers.iter().any(|c| c.is_live() && c.sandbox == sidecar.sandbox && later(c))
    }

    fn own_sandbox(&mut self) -> &mut SeenSandbox {
        let (ours, seed) = (self.ours(), self.seed);
        self.sandboxes.get_mut(ours.as_str()).unwrap_or_else(|| panic!("seed {seed}: no sandbox yet"))
    }

    fn publish(&mut self) {
        let ours = self.ours();
        let taken = |(id, sandbox): (&String, &SeenSandbox)| *id != ours.as_str() && !sandbox.ports.is_empty();
        let wanted = published_ports(&self.desired, self.sandboxes[ours.as_str()].attachments.iter());
        self.check(wanted.is_empty() || !self.sandboxes.iter().any(taken), "a port has two owners");
        self.own_sandbox().ports = wanted.into_iter().map(|port| (port, true)).collect();
    }

    fn start(&mut self, name: &str, init: bool, attempt: u32, restarts: u32, failures: u32) {
        let ours = self.ours();
        let whole = self.sandboxes.get(ours.as_str()).is_some_and(|sandbox| sandbox.complete);
        self.check(whole, "started outside a sandbox");
        self.check(self.desired.intent == Intent::Run, "started though it should not run");
        let twice = |c: &SeenContainer| {
            c.is_live()
                && match self.desired.update.start_first {
                    // New beside old is what was asked for, but never two of one name in one sandbox.
                    true => c.sandbox == ours.as_str() && c.name == name,
                    // What uses a ReadWriteOnce volume: no two revisions at a time, and no two of one name.
                    false => c.sandbox != ours.as_str() || c.name == name,
                }
        };
        self.check(!self.containers.iter().any(twice), "two instances at a time");
        let list = if init { &self.desired.init } else { &self.desired.containers };
        let wish = list.iter().find(|wish| wish.name == name).unwrap();
        let mut started = container(name, attempt, running());
        started.container.id = ContainerId::new(format!("{ours}-{name}-{attempt}")).unwrap();
        started.container.created_at = self.now().into();
        started.container.limits = wish.limits.clone();
        started.hash.clone_from(&wish.hash);
        started.sandbox = ours.to_string();
        (started.init, started.restarts, started.failures) = (init, restarts, failures);
        if wish.sidecar {
            started.sidecar = self.desired.init.iter().position(|other| other.name == name).map(|n| n as u32);
        }
        let begun = self.containers.iter().any(|c| !c.init && c.sandbox == ours.as_str());
        let up =
            |name: &str| self.containers.iter().any(|c| c.name == name && c.sandbox == ours.as_str() && c.is_live());
        let mut sidecars = self.desired.init.iter().filter(|wish| wish.sidecar);
        self.check(init || begun || sidecars.all(|wish| up(&wish.name)), "started before its sidecars");
        self.check(!(begun && init && !wish.sidecar), "an init container runs beside containers");
        self.check(!self.containers.iter().any(|c| c.id() == started.id()), "an id was used twice");
        self.asked.remove(started.id());
        self.containers.push(started);
    }

    fn end(&mut self, id: ContainerId, code: u32) {
        let at = self.now().into();
        for c in self.containers.iter_mut().filter(|c| *c.id() == id && c.is_live()) {
            c.container.state = TaskState::Exited(Exit { code, at, oom_killed: false });
        }
    }

    fn some_container(&mut self) -> Option<usize> {
        let count = self.containers.len() as u64;
        (count > 0).then(|| self.dice.below(count) as usize)
    }

    fn something_happens(&mut self) {
        let kind = self.dice.below(13);
        let names = [
            "new revision",
            "changed",
            "exit",
            "task lost",
            "reboot",
            "stop or go",
            "waits",
            "images",
            "unhealthy",
            "link lost",
            "limits",
            "half made",
            "record lost",
        ];
        self.story.push(names[kind as usize]);
        self.changes += 1;
        match kind {
            0 => {
                // Sometimes back to what was good.
                let id = match (&self.last_good, self.dice.below(3)) {
                    (Some(good), 0) => good.clone(),
                    _ => SandboxId::new(format!("web-{}", self.changes)).unwrap(),
                };
                self.desired.sandbox.spec.id = id;
                self.healthy_since = None;
            }
            1 => {
                let hash = format!("h{}", self.changes);
                let which = self.dice.below(2) as usize;
                self.desired.containers[which].hash = hash;
            }
            2 | 3 | 8 | 11 | 12 => {
                let code = self.dice.below(2) as u32;
                let Some(at) = self.some_container() else { return };
                let id = self.containers[at].id().clone();
                let c = &mut self.containers[at];
                match kind {
                    2 => self.end(id, code),
                    3 => c.container.state = TaskState::Absent,
                    8 => c.health.failed = c.is_live(),
                    11 if !c.is_live() => c.container.state = TaskState::Created { pid: 7 },
                    11 => {}
                    _ => drop(self.containers.remove(at)),
                }
            }
            4 => {
                self.sandboxes.clear();
                self.asked.clear();
                self.containers.iter_mut().for_each(|c| c.container.state = TaskState::Absent);
                self.clock += 60;
            }
            5 => {
                let run = self.desired.intent == Intent::Run;
                self.desired.intent = if run { Intent::Stop } else { Intent::Run };
            }
            6 => {
                let about = [About::Dependencies, About::Configuration, About::Networks, About::Volumes]
                    [self.dice.below(4) as usize];
                match self.desired.waits.pop() {
                    Some(_) => {}
                    None => self.desired.waits.push(wait(about)),
                }
            }
            7 => self.images_missing = !self.images_missing,
            9 => {
                let lost = self.dice.below(2) == 0;
                for sandbox in self.sandboxes.values_mut() {
                    sandbox.attachments.iter_mut().for_each(|a| a.complete = lost);
                    sandbox.ports.iter_mut().for_each(|(_, there)| *there = !lost);
                }
            }
            _ => self.desired.containers[0].limits.pids_max = Some(self.changes),
        }
    }

    /// Nothing happens any more: what is declared is what comes about, and then there is nothing to do.
    fn rest(&mut self) {
        self.story.push("rest");
        self.desired.waits.clear();
        self.images_missing = false;
        for round in 0.. {
            self.check(round < ROUNDS, "no rest");
            self.clock += 400;
            self.containers.iter_mut().for_each(|c| c.health.failed = false);
            // An init container does its work.
            let done: Vec<_> =
                self.containers.iter().filter(|c| c.init && c.sidecar.is_none()).map(|c| c.id().clone()).collect();
            done.into_iter().for_each(|id| self.end(id, 0));
            let observed = self.observe();
            let steps = plan(&self.desired, &observed, self.now()).steps;
            let mature = observed.healthy_for.is_none_or(|time| time >= self.desired.update.healthy);
            if steps.is_empty()
                && mature
                && !self.containers.iter().any(|c| c.init && c.sidecar.is_none() && c.is_live())
            {
                break;
            }
            steps.iter().for_each(|step| self.apply(step, false));
        }
        let ours = self.ours();
        if self.desired.intent != Intent::Run {
            self.check(self.containers.is_empty() && self.sandboxes.is_empty(), "something is left");
            return;
        }
        self.check(self.sandboxes.keys().all(|id| id.as_str() == ours.as_str()), "an old sandbox is left");
        let over =
            self.desired.restart != RestartPolicy::Always && !self.containers.iter().any(|c| !c.init && c.is_live());
        for wish in self.desired.init.iter().filter(|wish| wish.sidecar) {
            let of: Vec<_> = self.containers.iter().filter(|c| c.name == wish.name).collect();
            self.check(over || of.len() == 1 && of[0].is_live() && of[0].hash == wish.hash, "a sidecar does not run");
            self.check(!over || of.iter().all(|c| !c.is_live()), "a sidecar outlives its workload");
        }
        for wish in self.desired.containers.clone() {
            let of: Vec<_> = self.containers.iter().filter(|c| !c.init && c.name == wish.name).collect();
            self.check(of.len() <= 1, "two of one");
            if self.desired.restart == RestartPolicy::Always {
                let right = of.len() == 1 && of[0].is_live() && of[0].hash == wish.hash && of[0].limits_are(&wish);
                self.check(right, "it does not run as declared");
                let ports = self.sandboxes[ours.as_str()].ports.iter().filter(|(_, there)| *there).count();
                self.check(ports == self.desired.sandbox.ports.len(), "its ports are not published");
            }
        }
    }
}

impl SeenContainer {
    fn limits_are(&self, wish: &ContainerWish) -> bool {
        self.container.limits == wish.limits
    }
}
