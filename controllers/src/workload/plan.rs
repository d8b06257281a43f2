//! Decides what to do next with one workload: a pure function from wanted, seen and now to a plan.
//!
//! The rules, in order:
//! 1. What should not run is asked to stop, killed after its grace period, and then cleared away, sandbox last.
//! 2. What is left of another revision goes before anything of this one is made.
//! 3. While the workload waits for something, nothing is started and nothing that runs is touched.
//! 4. The sandbox and its network come before containers and are repaired without touching them.
//! 5. Init containers run one after the other, once per sandbox, before any container.
//! 6. A container that must be replaced keeps running until its successor's image is on the node.
//! 7. A container that ended is restarted by the policy, after its back-off; its remains stay until the successor
//!    runs, so that its logs and exit state can be read.
//! 8. A workload that ran to its end gives back what it held (memory of its shim, addresses, volumes) once its status
//!    tells how it ended; its logs stay until it is deleted.
//! 9. With StartFirst a new revision comes up in a sandbox of its own beside the old, without the published ports. Once
//!    it has been healthy for long enough it takes them over, and only then the old is asked to stop. Whatever else is
//!    there of other revisions goes at once.
//! 10. A workload that ran past its deadline, or a container of which failed more often than it may, is stopped for
//!     good, and then cleared away as in rule 8.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nodelet_crds::reasons;
use nodelet_crds::workload::RestartPolicy;
use nodelet_drivers::cgroups::Limits;
use nodelet_drivers::ids::{ContainerId, NetworkKey, SandboxId};
use nodelet_drivers::runtime::{Exit, TaskState};
use serde::Serialize;

use super::model::{About, ContainerWish, Desired, GivenUp, Intent, Observed, SeenContainer, SeenImage};
use crate::backoff::{HEALTHY_RUN, restart_delay};

/// Between the move of the published ports and the request to stop: requests under way reach their end.
pub const DRAIN: Duration = Duration::from_secs(1);

/// Everything to be done now for one workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// `<namespace>/<name>`.
    pub workload: String,
    /// The generation it was made from.
    pub generation: i64,
    /// In this order; a failed step ends the execution.
    pub steps: Vec<Step>,
    /// Look again after this long, though nothing happened by then.
    pub again_in: Option<Duration>,
    /// What keeps containers from running, by container name.
    pub holds: Vec<Hold>,
    /// It has failed for good.
    pub given_up: Option<GivenUp>,
}

/// One effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Step {
    /// Run the preStop hook, if any, and send the stop signal.
    Ask {
        /// The container.
        id: ContainerId,
        /// Why it must stop.
        why: Why,
    },
    /// Kill all its processes.
    Kill {
        /// The container.
        id: ContainerId,
    },
    /// Clear away what is left of an ended or half-made container.
    Remove {
        /// The container.
        id: ContainerId,
    },
    /// Free a sandbox: ports, attachments, ephemeral volumes, mounts, namespaces, cgroup.
    Teardown {
        /// The sandbox.
        id: SandboxId,
    },
    /// Make or complete the sandbox, without its network.
    EnsureSandbox,
    /// Attach or repair the attachment of the sandbox to this network.
    Attach {
        /// The network.
        network: NetworkKey,
    },
    /// Detach from a network that is no longer wanted.
    Detach {
        /// The network.
        network: NetworkKey,
    },
    /// Make the published ports what they should be, or put them back.
    SetPorts,
    /// The same, and take them away from these sandboxes in the same moment.
    TakePorts {
        /// Sandboxes of former revisions.
        from: Vec<SandboxId>,
    },
    /// Write the files that containers share, and the ephemeral volumes.
    WriteFiles,
    /// Create and start a container.
    Start {
        /// Its name in the workload.
        container: String,
        /// It is an init container.
        init: bool,
        /// Its number.
        attempt: u32,
        /// How often it was restarted before.
        restarts: u32,
        /// How often in a row it failed before.
        failures: u32,
        /// The image record to use.
        image: String,
        /// Its digest.
        digest: String,
    },
    /// Change limits in place.
    UpdateLimits {
        /// The container.
        id: ContainerId,
        /// What they become.
        limits: Limits,
    },
}

/// Why a container must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Why {
    /// The workload is stopped or deleted.
    NotWanted,
    /// Its specification changed.
    Changed,
    /// A probe failed.
    Unhealthy,
    /// The sandbox must be made anew.
    SandboxChanged,
    /// A new revision has taken over.
    Superseded,
    /// The workload has failed for good.
    GivenUp,
}

/// A container does not run yet, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// The container.
    pub container: String,
    /// A reason constant, as Kubernetes words them.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// Decides. See the module's rules.
pub fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    let mut planner = Planner {
        desired,
        observed,
        now,
        plan: Plan {
            workload: desired.title.clone(),
            generation: desired.generation,
            steps: Vec::new(),
            again_in: None,
            holds: Vec::new(),
            given_up: None,
        },
    };
    planner.decide();
    planner.plan
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn decide(&mut self) {
        if self.desired.intent != Intent::Run {
            self.clear_everything();
            return;
        }
        if let Some(given_up) = self.given_up() {
            self.give_up(given_up);
            return;
        }
        if let Some(old) = self.predecessor() {
            self.roll_over(old);
            return;
        }
        if !self.clear_strangers() {
            return;
        }
        if self.blocked() {
            self.hold_all_for_waits();
            return;
        }
        self.clear_predecessors();
        if self.is_finished() {
            self.clear_finished();
            return;
        }
        self.ensure_sandbox(true);
        if self.run_init() {
            self.run_containers();
        }
    }

    /// Rule 10.
    fn given_up(&mut self) -> Option<GivenUp> {
        let (desired, observed) = (self.desired, self.observed);
        if observed.given_up.is_some() {
            return observed.given_up.clone();
        }
        if let Some(limit) = desired.batch.backoff_limit {
            let wishes = desired.init.iter().map(|wish| (wish, true));
            for (wish, init) in wishes.chain(desired.containers.iter().map(|wish| (wish, false))) {
                let Some(seen) = self.current(wish, init).filter(|seen| seen.hash == wish.hash) else { continue };
                if let TaskState::Exited(exit) = &seen.container.state
                    && exit.code != 0
                    && seen.failures >= limit
                {
                    let times = limit.saturating_add(1);
                    let message =
                        format!("container {} failed {times} times, at last with code {}", wish.name, exit.code);
                    return Some(GivenUp { reason: reasons::BACKOFF_LIMIT_EXCEEDED, message });
                }
            }
        }
        let (deadline, started) = (desired.batch.deadline?, observed.started_at?);
        if self.is_finished() {
            return None;
        }
        let rest = deadline.saturating_sub(elapsed(started, self.now));
        if rest.is_zero() {
            let message = format!("ran for more than {} s", deadline.as_secs());
            return Some(GivenUp { reason: reasons::DEADLINE_EXCEEDED, message });
        }
        self.again(rest);
        None
    }

    fn give_up(&mut self, given_up: GivenUp) {
        self.plan.given_up = Some(given_up);
        let observed = self.observed;
        let live: Vec<&SeenContainer> = observed.containers.iter().filter(|c| c.is_live()).collect();
        if !live.is_empty() {
            live.into_iter().for_each(|container| self.stop(container, Why::GivenUp));
        } else if observed.given_up.is_none() {
            // How they ended is told before their records go.
            self.again(Duration::from_millis(20));
        } else {
            self.clear_everything();
        }
    }

    /// With StartFirst: another sandbox that has to serve until the wanted one is healthy. It is the one that the
    /// published ports lead to; without ports, that of the last good revision, else the one that was there first.
    fn predecessor(&self) -> Option<&'a str> {
        let observed = self.observed;
        let ours = self.desired.sandbox.spec.id.as_str();
        if !self.desired.update.start_first {
            return None;
        }
        let is = |id: &Option<SandboxId>, c: &SeenContainer| id.as_ref().is_some_and(|id| id.as_str() == c.sandbox);
        let others = observed.containers.iter().filter(|c| !c.init && c.is_live() && c.sandbox != ours);
        let first = others.min_by_key(|c| {
            (!is(&observed.serving, c), c.stopping.is_some(), !is(&observed.last_good, c), c.container.created_at)
        });
        first.map(|c| c.sandbox.as_str())
    }

    /// Rule 9.
    fn roll_over(&mut self, old: &str) {
        let (desired, observed) = (self.desired, self.observed);
        let ours = desired.sandbox.spec.id.as_str();
        for container in observed.containers.iter().filter(|c| c.sandbox != ours && c.sandbox != old) {
            match container.is_live() {
                true => self.stop(container, Why::SandboxChanged),
                false => self.plan.steps.push(Step::Remove { id: container.id().clone() }),
            }
        }
        let is_empty = |id: &&SandboxId| !observed.containers.iter().any(|c| c.sandbox == id.as_str());
        for id in observed.stale_sandboxes.iter().filter(is_empty) {
            self.plan.steps.push(Step::Teardown { id: id.clone() });
        }
        if self.blocked() || !self.images_present() {
            if self.blocked() {
                self.hold_all_for_waits()
            } else {
                self.hold_for_images()
            }
            return;
        }
        self.clear_predecessors();
        let taken_over = self.has_taken_over();
        self.ensure_sandbox(taken_over);
        if self.run_init() {
            self.run_containers();
        }
        let rest = match observed.healthy_for {
            _ if taken_over => Duration::ZERO,
            Some(time) => desired.update.healthy.saturating_sub(time),
            None => return,
        };
        if !rest.is_zero() {
            self.again(rest);
            return;
        }
        if !taken_over && (observed.serving.is_some() || !desired.sandbox.ports.is_empty()) {
            let from = observed.stale_sandboxes.iter().cloned().collect();
            self.plan.steps.push(Step::TakePorts { from });
        }
        for container in observed.containers.iter().filter(|c| c.sandbox == old) {
            match container.is_live() {
                true => self.stop(container, Why::Superseded),
                false => self.plan.steps.push(Step::Remove { id: container.id().clone() }),
            }
        }
    }

    /// The wanted sandbox serves: the published ports lead to it or, without any, it has been good before.
    fn has_taken_over(&self) -> bool {
        let (desired, observed) = (self.desired, self.observed);
        let Some(sandbox) = &observed.sandbox else { return false };
        if observed.serving.is_some() || !desired.sandbox.ports.is_empty() {
            return observed.serving.is_none() && !sandbox.ports.is_empty();
        }
        let ours = desired.sandbox.spec.id.as_str();
        let lives = |c: &SeenContainer| !c.init && c.is_live() && c.stopping.is_none() && c.sandbox == ours;
        observed.last_good.as_ref() == Some(&desired.sandbox.spec.id) && observed.containers.iter().any(lives)
    }

    /// Rule 1.
    fn clear_everything(&mut self) {
        let observed = self.observed;
        let live: Vec<&SeenContainer> = observed.containers.iter().filter(|c| c.is_live()).collect();
        for container in &live {
            self.stop(container, Why::NotWanted);
        }
        for container in observed.containers.iter().filter(|c| !c.is_live()) {
            self.plan.steps.push(Step::Remove { id: container.id().clone() });
        }
        if !live.is_empty() {
            return;
        }
        for id in &observed.stale_sandboxes {
            self.plan.steps.push(Step::Teardown { id: id.clone() });
        }
        if observed.sandbox.is_some() {
            self.plan.steps.push(Step::Teardown { id: self.desired.sandbox.spec.id.clone() });
        }
    }

    /// Rule 2. Returns whether the way is free.
    fn clear_strangers(&mut self) -> bool {
        let (desired, observed) = (self.desired, self.observed);
        let ours = desired.sandbox.spec.id.as_str();
        let mut busy = false;
        for container in &observed.containers {
            let wanted = container.sandbox == ours
                && if container.init { &desired.init } else { &desired.containers }
                    .iter()
                    .any(|wish| wish.name == container.name);
            if wanted {
                continue;
            }
            if container.is_live() {
                // A new revision that cannot start yet does not take the old one down (rules 3 and 6).
                if self.blocked() || !self.images_present() {
                    self.hold_for_images();
                    busy = true;
                    continue;
                }
                let why = if container.sandbox == ours { Why::NotWanted } else { Why::SandboxChanged };
                self.stop(container, why);
                busy |= container.sandbox != ours;
            } else {
                self.plan.steps.push(Step::Remove { id: container.id().clone() });
            }
        }
        if busy {
            return false;
        }
        for id in &observed.stale_sandboxes {
            self.plan.steps.push(Step::Teardown { id: id.clone() });
        }
        true
    }

    /// What was started once is not held back by a dependency that went away or a network that is being repaired.
    fn blocked(&self) -> bool {
        let ours = self.desired.sandbox.spec.id.as_str();
        let begun = self.observed.containers.iter().any(|c| !c.init && c.sandbox == ours);
        self.desired.waits.iter().any(|wait| !(begun && matches!(wait.about, About::Dependencies | About::Networks)))
    }

    fn images_present(&self) -> bool {
        self.observed.images.values().all(|image| matches!(image, SeenImage::Present { .. }))
    }

    fn hold_for_images(&mut self) {
        for wish in self.desired.init.iter().chain(&self.desired.containers) {
            self.image_of(wish);
        }
    }

    /// Rule 3.
    fn hold_all_for_waits(&mut self) {
        let Some(first) = self.desired.waits.first() else { return };
        for wish in &self.desired.containers {
            if !self.current(wish, false).is_some_and(SeenContainer::is_live) {
                self.plan.holds.push(Hold {
                    container: wish.name.clone(),
                    reason: first.reason,
                    message: first.message.clone(),
                });
            }
        }
    }

    /// Containers whose successor exists: replacements that were cut short.
    fn clear_predecessors(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        for (wish, init) in desired.init.iter().map(|w| (w, true)).chain(desired.containers.iter().map(|w| (w, false)))
        {
            let Some(current) = self.current(wish, init) else { continue };
            for old in observed.containers.iter().filter(|c| {
                c.name == wish.name && c.init == init && c.sandbox == current.sandbox && c.attempt < current.attempt
            }) {
                if old.is_live() {
                    self.plan.steps.push(Step::Kill { id: old.id().clone() });
                }
                self.plan.steps.push(Step::Remove { id: old.id().clone() });
            }
        }
    }

    /// The workload ran to its end, as its policy allows, and the runtime's records of it are gone: nothing to do.
    fn is_finished(&self) -> bool {
        if self.desired.restart != RestartPolicy::OnFailure && self.desired.restart != RestartPolicy::Never {
            return false;
        }
        self.desired.containers.iter().all(|wish| {
            let code = match self.current(wish, false) {
                Some(SeenContainer { container, hash, .. }) => match &container.state {
                    TaskState::Exited(exit) if *hash == wish.hash => i32::try_from(exit.code).ok(),
                    _ => return false,
                },
                None => self.observed.remembered.get(&wish.name).and_then(|r| r.exit_code),
            };
            code.is_some_and(|code| code == 0 || self.desired.restart == RestartPolicy::Never)
        })
    }

    /// Rule 8. The status is written before the remains go, so that a crash in between loses no exit code.
    fn clear_finished(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        if observed.containers.is_empty() && observed.sandbox.is_none() {
            return;
        }
        let told = |wish: &ContainerWish| observed.remembered.get(&wish.name).is_some_and(|r| r.exit_code.is_some());
        if !desired.containers.iter().all(told) {
            self.again(Duration::from_millis(20));
            return;
        }
        for container in &observed.containers {
            self.plan.steps.push(Step::Remove { id: container.id().clone() });
        }
        if observed.sandbox.is_some() {
            self.plan.steps.push(Step::Teardown { id: desired.sandbox.spec.id.clone() });
        }
    }

    /// Rule 4. The ports are left to whoever has them unless `publish`.
    fn ensure_sandbox(&mut self, publish: bool) {
        let wish = &self.desired.sandbox;
        let seen = self.observed.sandbox.as_ref();
        let fresh = seen.is_none_or(|s| !s.complete);
        if fresh {
            self.plan.steps.push(Step::EnsureSandbox);
        }
        let attachments = seen.map_or(&[][..], |s| &s.attachments);
        let mut attached = false;
        for attach in &wish.attachments {
            let fine = attachments.iter().any(|a| a.spec.network == attach.network && a.complete);
            if fresh || !fine {
                self.plan.steps.push(Step::Attach { network: attach.network.clone() });
                attached = true;
            }
        }
        for gone in attachments.iter().filter(|a| !wish.attachments.iter().any(|w| w.network == a.spec.network)) {
            self.plan.steps.push(Step::Detach { network: gone.spec.network.clone() });
        }
        if publish && (attached || self.ports_differ()) {
            self.plan.steps.push(Step::SetPorts);
        }
        if fresh || attached || !self.observed.outdated_files.is_empty() {
            self.plan.steps.push(Step::WriteFiles);
        }
    }

    fn ports_differ(&self) -> bool {
        let Some(seen) = &self.observed.sandbox else { return !self.desired.sandbox.ports.is_empty() };
        let wanted = published_ports(self.desired, seen.attachments.iter());
        seen.ports.iter().any(|(_, in_kernel)| !in_kernel)
            || wanted.len() != seen.ports.len()
            || wanted.iter().any(|port| !seen.ports.iter().any(|(p, _)| p == port))
    }

    /// Rule 5. Returns whether the containers may run.
    fn run_init(&mut self) -> bool {
        let (desired, observed) = (self.desired, self.observed);
        let ours = desired.sandbox.spec.id.as_str();
        if observed.containers.iter().any(|c| !c.init && c.sandbox == ours) {
            return true;
        }
        for wish in &desired.init {
            let current = self.current(wish, true);
            if let Some(SeenContainer { container, .. }) = current
                && let TaskState::Exited(exit) = &container.state
                && exit.code == 0
            {
                continue;
            }
            // An init container of a workload that always runs is tried until it succeeds.
            let policy = match desired.restart {
                RestartPolicy::Never => RestartPolicy::Never,
                _ => RestartPolicy::OnFailure,
            };
            self.run_one(wish, true, policy);
            for waiting in &desired.containers {
                self.plan.holds.push(Hold {
                    container: waiting.name.clone(),
                    reason: reasons::INITIALIZING,
                    message: format!("waits for init container {}", wish.name),
                });
            }
            return false;
        }
        true
    }

    /// Rules 6 and 7.
    fn run_containers(&mut self) {
        for wish in &self.desired.containers {
            self.run_one(wish, false, self.desired.restart);
        }
    }

    fn run_one(&mut self, wish: &ContainerWish, init: bool, policy: RestartPolicy) {
        let observed = self.observed;
        let Some(current) = self.current(wish, init) else {
            let remembered = observed.remembered.get(&wish.name).cloned().unwrap_or_default();
            self.start(wish, init, remembered.next_attempt, remembered.restarts, 0);
            return;
        };
        match &current.container.state {
            TaskState::Running { .. } | TaskState::Paused { .. } => self.keep_or_replace(wish, current),
            TaskState::Exited(exit) => self.after_exit(wish, current, exit, policy),
            TaskState::Absent | TaskState::Created { .. } | TaskState::Unknown => {
                // Half made, or its task was taken from under us. Its name may be reused only once it is clean.
                self.plan.steps.push(Step::Remove { id: current.id().clone() });
                self.start(wish, init, current.attempt.saturating_add(1), current.restarts, current.failures);
            }
        }
    }

    fn keep_or_replace(&mut self, wish: &ContainerWish, current: &SeenContainer) {
        if current.stopping.is_some() {
            self.stop(current, Why::Changed);
        } else if current.hash != wish.hash {
            if self.image_of(wish).is_some() {
                self.stop(current, Why::Changed);
            }
        } else if current.health.failed {
            self.stop(current, Why::Unhealthy);
        } else if current.container.limits != wish.limits {
            self.plan.steps.push(Step::UpdateLimits { id: current.id().clone(), limits: wish.limits.clone() });
        }
    }

    fn after_exit(&mut self, wish: &ContainerWish, current: &SeenContainer, exit: &Exit, policy: RestartPolicy) {
        let next = current.attempt.saturating_add(1);
        let replaced = current.hash != wish.hash;
        if replaced {
            // It ended because it was asked to, for a change: the successor is a new container, not a restart.
            self.replace(wish, current, next, current.restarts, 0, Duration::ZERO);
            return;
        }
        let wanted = match policy {
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure => exit.code != 0,
            RestartPolicy::Never => false,
        };
        if !wanted {
            return;
        }
        let ended = Timestamp::try_from(exit.at).unwrap_or(self.now);
        let ran = since(current.container.created_at, ended);
        // Where failures are limited, each counts, however long it took.
        let forgotten = ran >= HEALTHY_RUN && self.desired.batch.backoff_limit.is_none();
        let failures = if forgotten { 1 } else { current.failures.saturating_add(1) };
        let delay = restart_delay(failures);
        // A clock that went backwards lengthens nothing beyond the delay itself.
        let waited = elapsed(ended, self.now);
        let rest = delay.saturating_sub(waited);
        self.replace(wish, current, next, current.restarts.saturating_add(1), failures, rest);
    }

    fn replace(
        &mut self,
        wish: &ContainerWish,
        current: &SeenContainer,
        attempt: u32,
        restarts: u32,
        failures: u32,
        wait: Duration,
    ) {
        if !wait.is_zero() {
            self.again(wait);
            self.plan.holds.push(Hold {
                container: wish.name.clone(),
                reason: reasons::CRASH_LOOP_BACK_OFF,
                message: format!("restarts in {} s after failure {failures} in a row", wait.as_secs().max(1)),
            });
            return;
        }
        let before = self.plan.steps.len();
        self.start(wish, current.init, attempt, restarts, failures);
        if self.plan.steps.len() > before {
            self.plan.steps.push(Step::Remove { id: current.id().clone() });
        }
    }

    fn start(&mut self, wish: &ContainerWish, init: bool, attempt: u32, restarts: u32, failures: u32) {
        if let Some((image, digest)) = self.image_of(wish) {
            self.plan.steps.push(Step::Start {
                container: wish.name.clone(),
                init,
                attempt,
                restarts,
                failures,
                image,
                digest,
            });
        }
    }

    /// The image record and digest for a start, or a hold that says why there is none yet.
    fn image_of(&mut self, wish: &ContainerWish) -> Option<(String, String)> {
        let (reason, message) = match self.observed.images.get(&wish.name) {
            Some(SeenImage::Present { name, digest }) => return Some((name.clone(), digest.clone())),
            Some(SeenImage::Pulling { message }) => (reasons::PULLING, message.clone()),
            Some(SeenImage::Failed { reason, message }) => (*reason, message.clone()),
            None => (reasons::PULLING, format!("image {} is being looked up", wish.image.fetch.reference)),
        };
        if !self.plan.holds.iter().any(|hold| hold.container == wish.name) {
            self.plan.holds.push(Hold { container: wish.name.clone(), reason, message });
        }
        None
    }

    fn stop(&mut self, container: &SeenContainer, why: Why) {
        let drain = if why == Why::Superseded { DRAIN } else { Duration::ZERO };
        let grace = self.desired.grace.saturating_add(drain);
        match container.stopping {
            None => {
                self.plan.steps.push(Step::Ask { id: container.id().clone(), why });
                self.again(grace);
            }
            Some(asked) if asked >= grace => {
                self.plan.steps.push(Step::Kill { id: container.id().clone() });
                // Its exit wakes us; this only guards against a lost event.
                self.again(Duration::from_secs(2));
            }
            Some(asked) => self.again(grace - asked),
        }
    }

    fn again(&mut self, after: Duration) {
        // A timer that fires early would only plan the same again.
        let after = after + Duration::from_millis(5);
        self.plan.again_in = Some(self.plan.again_in.map_or(after, |old| old.min(after)));
    }

    /// The youngest container of that name in the wanted sandbox.
    fn current(&self, wish: &ContainerWish, init: bool) -> Option<&'a SeenContainer> {
        let ours = self.desired.sandbox.spec.id.as_str();
        self.observed
            .containers
            .iter()
            .filter(|c| c.name == wish.name && c.init == init && c.sandbox == ours)
            .max_by_key(|c| c.attempt)
    }
}

/// The published ports of a workload, given where it is attached: its first attachment of the right family.
pub fn published_ports<'a>(
    desired: &Desired,
    attachments: impl Iterator<Item = &'a nodelet_drivers::network::Attachment> + Clone,
) -> Vec<nodelet_drivers::network::PublishedPort> {
    let order = |key: &NetworkKey| desired.sandbox.attachments.iter().position(|a| a.network == *key);
    let mut places: Vec<_> = attachments.filter_map(|a| order(&a.spec.network).map(|n| (n, a))).collect();
    places.sort_by_key(|(n, _)| *n);
    let address =
        |v6: bool| places.iter().flat_map(|(_, a)| &a.addresses).map(ipnet::IpNet::addr).find(|ip| ip.is_ipv6() == v6);
    let mut ports = Vec::new();
    for wish in &desired.sandbox.ports {
        // Without a host address the port is published in every family the workload has.
        let families: &[bool] = match wish.host_ip {
            Some(ip) if ip.is_ipv6() => &[true],
            Some(_) => &[false],
            None => &[false, true],
        };
        for target_ip in families.iter().filter_map(|v6| address(*v6)) {
            ports.push(nodelet_drivers::network::PublishedPort {
                host_ip: wish.host_ip,
                host_port: wish.host_port,
                protocol: wish.protocol,
                target_ip,
                target_port: wish.target_port,
            });
        }
    }
    ports
}

/// Time from `start` to `end`, zero when the clock went backwards.
fn since(start: std::time::SystemTime, end: Timestamp) -> Duration {
    Timestamp::try_from(start).map_or(Duration::ZERO, |start| elapsed(start, end))
}

/// Time from `start` to `end`, zero when the clock went backwards.
fn elapsed(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests;
