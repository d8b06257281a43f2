//! The status of a Workload, from what is wanted, what is there and what the plan holds back. Written only when it
//! changed, and after failed passes too.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::EventType;
use nodelet_crds::common::{Condition, Time, condition_type, find_condition, set_condition};
use nodelet_crds::labels;
use nodelet_crds::reasons;
use nodelet_crds::workload::status::{
    ContainerState, ContainerStatus, StateTerminated, WorkloadAddress, WorkloadPhase, WorkloadStatus,
};
use nodelet_crds::workload::{RestartPolicy, Workload};
use nodelet_drivers::failpoint::passed;
use nodelet_drivers::ids::ContainerId;
use nodelet_drivers::runtime::{Exit, TaskState};

mod resources;

use super::Update;
use super::model::{
    About, ContainerWish, Desired, GivenUp, Health, Intent, Observed, Remembered, SeenContainer, SeenImage,
};
use super::plan::{Hold, Plan};
use crate::context::{Context, chain};
use crate::controller::object_key;

/// What a pass came to.
pub enum Report<'a> {
    /// It could not look, or could not finish: what is known of the containers stays as it was.
    Failed {
        /// A reason constant.
        reason: &'static str,
        /// The cause chain and the next try.
        message: String,
    },
    /// It saw the node.
    Seen {
        /// What is wanted.
        desired: &'a Desired,
        /// What was there before the plan was carried out.
        before: &'a Observed,
        /// What is there now.
        observed: &'a Observed,
        /// What was done, and what is held back.
        plan: &'a Plan,
        /// How the update stands.
        update: &'a Update,
    },
}

/// Writes the status if it changed, and an Event where a container's state changed in a way worth one.
pub async fn publish(ctx: &Context, object: &Workload, report: Report<'_>) {
    let now = Time(whole_seconds(ctx.now()));
    let status = compute(object, &report, &ctx.settings.node_name, now);
    announce(ctx, object, &status).await;
    if let Err(error) = ctx.write_status(object, object.status.as_ref(), &status).await {
        tracing::warn!(workload = %object_key(object), "writing the status: {}", chain(&error));
    }
    passed("writing a status");
}

/// When the workload was first started, as it is declared now.
pub fn started_at(object: &Workload) -> Option<Timestamp> {
    let status = object.status.as_ref().filter(|status| !is_another_run(object, status))?;
    status.start_time.as_ref().map(|time| time.0)
}

/// It had ended, and was edited since: what comes is another run of it.
fn is_another_run(object: &Workload, status: &WorkloadStatus) -> bool {
    status.observed_generation != object.metadata.generation && is_over(status)
}

fn is_over(status: &WorkloadStatus) -> bool {
    matches!(status.phase, Some(WorkloadPhase::Succeeded | WorkloadPhase::Failed))
}

/// The status says that the workload, as it is declared now, has failed for good.
pub fn given_up(object: &Workload) -> Option<GivenUp> {
    let status = object.status.as_ref()?;
    let current = status.observed_generation == object.metadata.generation && is_over(status);
    let ready = find_condition(&status.conditions, condition_type::READY).filter(|_| current)?;
    let reasons = [reasons::DEADLINE_EXCEEDED, reasons::BACKOFF_LIMIT_EXCEEDED];
    let reason = reasons.into_iter().find(|reason| *reason == ready.reason)?;
    Some(GivenUp { reason, message: ready.message.clone() })
}

/// How long an object that has ended is kept yet; `None` if it is kept for ever or has not ended.
pub fn time_to_live(object: &Workload, now: Timestamp) -> Option<std::time::Duration> {
    let ttl = std::time::Duration::from_secs(u64::from(object.spec.ttl_seconds_after_finished?));
    let status = object.status.as_ref()?;
    if !is_over(status) || status.observed_generation != object.metadata.generation {
        return None;
    }
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    let ends = all.flat_map(|c| [&c.state.terminated, &c.last_state.terminated]).flatten();
    let ended = ends.filter_map(|end| end.finished_at.as_ref()).map(|time| time.0).max()?;
    // A clock that went backwards makes nobody wait for longer than the time to live.
    let past = std::time::Duration::try_from(now.duration_since(ended)).unwrap_or_default();
    Some(ttl.saturating_sub(past))
}

/// The status says that the update failed.
pub fn is_known_to_have_failed(object: &Workload) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|c| c.type_ == condition_type::PROGRESSING && c.reason == reasons::UPDATE_FAILED)
}

/// What the status remembers of the containers, by name.
pub fn remembered(object: &Workload) -> BTreeMap<String, Remembered> {
    let Some(status) = &object.status else { return BTreeMap::new() };
    // An end under another specification says nothing about this one.
    let current = status.observed_generation == object.metadata.generation;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    all.map(|c| {
        let end = c.state.terminated.as_ref().filter(|_| current);
        let remembered = Remembered {
            restarts: c.restart_count,
            exit_code: end.map(|end| end.exit_code),
            next_attempt: attempt_of(&c.container_id).map_or(0, |n| n.saturating_add(1)),
        };
        (c.name.clone(), remembered)
    })
    .collect()
}

/// What the status knows of the probes of this very container, if it runs.
pub fn known_health(object: &Workload, id: &ContainerId) -> Option<Health> {
    let all = object.status.iter().flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses));
    let known = all.filter(|c| c.state.running.is_some()).find(|c| c.container_id == id.as_str())?;
    Some(Health { started: known.started.unwrap_or(true), ready: known.ready, failed: false })
}

/// The attempt in a container id, see [`crate::names::container_id`].
fn attempt_of(container_id: &str) -> Option<u32> {
    container_id.rsplit_once('-')?.1.parse().ok()
}

fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn compute(object: &Workload, report: &Report<'_>, node: &str, now: Time) -> WorkloadStatus {
    let mut status = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    if is_another_run(object, &status) {
        status.start_time = None;
    }
    status.observed_generation = generation;
    status.node_name = Some(node.to_owned());
    match report {
        Report::Failed { reason, message } => {
            status.phase.get_or_insert(WorkloadPhase::Pending);
            let ready = condition_type::READY;
            set_condition(&mut status.conditions, ready, false, reason, message.clone(), generation, now);
        }
        Report::Seen { desired, before, observed, plan, update } => {
            let seen =
                Seen { desired, before, observed, plan, update, previous: object.status.clone().unwrap_or_default() };
            status.init_container_statuses = seen.containers(&desired.init, true);
            status.container_statuses = seen.containers(&desired.containers, false);
            let phase = seen.phase();
            status.phase = Some(phase);
            status.addresses = seen.addresses();
            status.revisions = update.history.summary();
            let running = update.history.find(&desired.revision).map(|revision| revision.number);
            status.revision = running.or(status.revision).filter(|_| !status.revisions.is_empty());
            if phase == WorkloadPhase::Running {
                status.start_time.get_or_insert_with(|| now.clone());
            }
            let sidecars = desired.init.iter().zip(&status.init_container_statuses).filter(|(wish, _)| wish.sidecar);
            let serving: Vec<_> =
                sidecars.map(|(_, status)| status).chain(&status.container_statuses).cloned().collect();
            for (type_, holds, reason, message) in seen.conditions(phase, &serving) {
                set_condition(&mut status.conditions, type_, holds, reason, message, generation, now.clone());
            }
            resources::set_conditions(&mut status.conditions, desired, observed, generation, &now);
            status.summarize();
            let ready = serving.iter().filter(|container| container.ready).count();
            status.ready_containers = Some(format!("{ready}/{}", serving.len()));
        }
    }
    status
}

struct Seen<'a> {
    desired: &'a Desired,
    before: &'a Observed,
    observed: &'a Observed,
    plan: &'a Plan,
    update: &'a Update,
    previous: WorkloadStatus,
}

impl Seen<'_> {
    fn current(&self, wish: &ContainerWish, init: bool) -> Option<&SeenContainer> {
        let ours = self.desired.sandbox.spec.id.as_str();
        let all = self.observed.containers.iter().filter(|c| c.name == wish.name && c.init == init);
        // One of another revision still counts while the new one is not there.
        all.max_by_key(|c| (c.sandbox == ours, c.attempt))
    }

    fn hold(&self, name: &str) -> Option<&Hold> {
        self.plan.holds.iter().find(|hold| hold.container == name)
    }

    fn containers(&self, wishes: &[ContainerWish], init: bool) -> Vec<ContainerStatus> {
        wishes.iter().map(|wish| self.container(wish, init)).collect()
    }

    fn container(&self, wish: &ContainerWish, init: bool) -> ContainerStatus {
        let list = if init { &self.previous.init_container_statuses } else { &self.previous.container_statuses };
        let previous = list.iter().find(|c| c.name == wish.name).cloned().unwrap_or_default();
        let Some(current) = self.current(wish, init) else { return self.absent(wish, previous) };
        let id = current.id().to_string();
        let same = previous.container_id == id;
        let last_state = if same { previous.last_state.clone() } else { self.last_end(wish, init, current, &previous) };
        let started_at = Timestamp::try_from(current.container.created_at).ok().map(|t| Time(whole_seconds(t)));
        let mut status = ContainerStatus {
            name: wish.name.clone(),
            last_state,
            restart_count: current.restarts,
            image: wish.image.fetch.reference.clone(),
            image_id: current.container.labels.get(labels::IMAGE_DIGEST).cloned().unwrap_or_default(),
            container_id: id.clone(),
            allocated_resources: match &self.desired.resize {
                Some(_) => previous.allocated_resources.clone(),
                None => resources::allocated(wish.requests),
            },
            ..Default::default()
        };
        match &current.container.state {
            TaskState::Running { .. } | TaskState::Paused { .. } => {
                status.state = ContainerState::running(started_at);
                status.resources = resources::in_force(&current.container.limits);
                status.started = Some(current.health.started);
                status.ready = (!init || wish.sidecar) && current.health.started && current.health.ready;
            }
            TaskState::Exited(exit) => {
                let end = terminated(current.id(), exit, started_at);
                status.ready = init && !wish.sidecar && exit.code == 0;
                match self.hold(&wish.name) {
                    Some(hold) => {
                        status.state = ContainerState::waiting(hold.reason, hold.message.clone());
                        status.last_state = ContainerState::terminated(end);
                    }
                    None => status.state = ContainerState::terminated(end),
                }
            }
            TaskState::Absent | TaskState::Created { .. } | TaskState::Unknown => {
                status.state = self.waiting(wish);
            }
        }
        status
    }

    /// The runtime knows no such container.
    fn absent(&self, wish: &ContainerWish, previous: ContainerStatus) -> ContainerStatus {
        let ended = previous.state.terminated.is_some();
        let keeps_end = ended && self.hold(&wish.name).is_none() && self.desired.intent == Intent::Run;
        let was_running = previous.state.running.is_some();
        let last_state = if ended && !keeps_end { previous.state.clone() } else { previous.last_state.clone() };
        ContainerStatus {
            name: wish.name.clone(),
            state: if keeps_end { previous.state } else { self.waiting(wish) },
            last_state: if was_running { self.end_before(wish).unwrap_or(last_state) } else { last_state },
            ready: false,
            started: None,
            restart_count: previous.restart_count,
            image: wish.image.fetch.reference.clone(),
            image_id: previous.image_id,
            container_id: previous.container_id,
            allocated_resources: None,
            resources: None,
        }
    }

    fn waiting(&self, wish: &ContainerWish) -> ContainerState {
        match (self.hold(&wish.name), self.desired.intent) {
            (Some(hold), _) => ContainerState::waiting(hold.reason, hold.message.clone()),
            (None, Intent::Run) => ContainerState::waiting(reasons::STARTING, ""),
            (None, _) if self.desired.evicted.is_some() => ContainerState::waiting(self.stop_reason(), ""),
            (None, Intent::Stop | Intent::Delete) => ContainerState::waiting(reasons::STOPPED, ""),
        }
    }

    fn stop_reason(&self) -> &'static str {
        self.desired.evicted.as_ref().map_or(reasons::STOPPED, |evicted| evicted.reason)
    }

    /// How the predecessor of `current` ended.
    fn last_end(
        &self,
        wish: &ContainerWish,
        init: bool,
        current: &SeenContainer,
        previous: &ContainerStatus,
    ) -> ContainerState {
        let mut ended: Vec<&SeenContainer> = self
            .before
            .containers
            .iter()
            .filter(|c| c.name == wish.name && c.init == init && c.id() != current.id())
            .collect();
        ended.sort_by_key(|c| c.attempt);
        if let Some(predecessor) = ended.pop()
            && let TaskState::Exited(exit) = &predecessor.container.state
        {
            let started = Timestamp::try_from(predecessor.container.created_at).ok().map(|t| Time(whole_seconds(t)));
            return ContainerState::terminated(terminated(predecessor.id(), exit, started));
        }
        if previous.state.terminated.is_some() { previous.state.clone() } else { previous.last_state.clone() }
    }

    fn end_before(&self, wish: &ContainerWish) -> Option<ContainerState> {
        let before = self.before.containers.iter().filter(|c| c.name == wish.name).max_by_key(|c| c.attempt)?;
        let TaskState::Exited(exit) = &before.container.state else { return None };
        Some(ContainerState::terminated(terminated(before.id(), exit, None)))
    }

    fn phase(&self) -> WorkloadPhase {
        let wishes = &self.desired.containers;
        let live = self.observed.containers.iter().any(|c| !c.init && c.is_live());
        if live {
            return WorkloadPhase::Running;
        }
        if self.desired.intent != Intent::Run {
            let over = self.observed.containers.is_empty();
            return if over && self.desired.evicted.is_some() {
                WorkloadPhase::Pending
            } else if over {
                WorkloadPhase::Stopped
            } else {
                self.previous.phase.unwrap_or_default()
            };
        }
        if self.plan.given_up.is_some() {
            return WorkloadPhase::Failed;
        }
        if let Some(phase) = self.finished() {
            return phase;
        }
        // Between an end and the next start it still counts as running, as in Kubernetes.
        let has_run = wishes
            .iter()
            .any(|w| self.current(w, false).is_some_and(|c| matches!(c.container.state, TaskState::Exited(_))));
        if has_run { WorkloadPhase::Running } else { WorkloadPhase::Pending }
    }

    /// `Succeeded` or `Failed` when nothing will be started any more.
    fn finished(&self) -> Option<WorkloadPhase> {
        let ends = matches!(self.desired.restart, RestartPolicy::Never | RestartPolicy::OnFailure);
        if !ends {
            return None;
        }
        if self.desired.restart == RestartPolicy::Never {
            let failed = |w: &ContainerWish| {
                self.current(w, true)
                    .is_some_and(|c| matches!(&c.container.state, TaskState::Exited(exit) if exit.code != 0))
            };
            if self.desired.init.iter().filter(|wish| !wish.sidecar).any(failed) {
                return Some(WorkloadPhase::Failed);
            }
        }
        let mut all_well = true;
        for wish in &self.desired.containers {
            if self.hold(&wish.name).is_some() {
                return None;
            }
            let code = match self.current(wish, false) {
                Some(c) => match &c.container.state {
                    TaskState::Exited(exit) if c.hash == wish.hash => i64::from(exit.code),
                    _ => return None,
                },
                None => i64::from(self.observed.remembered.get(&wish.name)?.exit_code?),
            };
            if code != 0 && self.desired.restart == RestartPolicy::OnFailure {
                return None;
            }
            all_well &= code == 0;
        }
        Some(if all_well { WorkloadPhase::Succeeded } else { WorkloadPhase::Failed })
    }

    fn addresses(&self) -> Vec<WorkloadAddress> {
        let Some(sandbox) = &self.observed.sandbox else { return Vec::new() };
        let mut addresses = Vec::new();
        for wish in &self.desired.sandbox.attachments {
            let name = wish.network.as_str().split_once('/').map_or(wish.network.as_str(), |(_, name)| name);
            for attachment in sandbox.attachments.iter().filter(|a| a.spec.network == wish.network) {
                addresses.extend(
                    attachment
                        .addresses
                        .iter()
                        .map(|net| WorkloadAddress { network: name.to_owned(), ip: net.addr().to_string() }),
                );
            }
        }
        addresses
    }

    fn conditions(
        &self,
        phase: WorkloadPhase,
        containers: &[ContainerStatus],
    ) -> Vec<(&'static str, bool, &'static str, String)> {
        let wait = |about: About| self.desired.waits.iter().find(|wait| wait.about == about);
        let part = |type_, about, fine: bool| match wait(about) {
            Some(wait) => (type_, false, wait.reason, wait.message.clone()),
            None if fine => (type_, true, reasons::READY, String::new()),
            None => (type_, false, reasons::PENDING, String::new()),
        };
        let made = self.observed.sandbox.as_ref().is_some_and(|s| s.complete);
        let (ready, reason, message) = self.ready(phase, containers);
        let rolled_out =
            self.desired.containers.iter().all(|wish| self.current(wish, false).is_some_and(|c| c.hash == wish.hash));
        let initialized = self.desired.init.is_empty()
            || self.observed.containers.iter().any(|c| !c.init && c.sandbox == self.desired.sandbox.spec.id.as_str())
            || matches!(phase, WorkloadPhase::Succeeded);
        let image = self.observed.images.iter().find_map(|(name, image)| match image {
            SeenImage::Present { .. } => None,
            SeenImage::Pulling { message } => Some((reasons::IMAGES_PENDING, format!("{name}: {message}"))),
            SeenImage::Failed { reason, message } => Some((*reason, format!("{name}: {message}"))),
        });
        let images = match image {
            Some((reason, message)) => (condition_type::IMAGES_READY, false, reason, message),
            None => (condition_type::IMAGES_READY, true, reasons::READY, String::new()),
        };
        vec![
            (
                condition_type::INITIALIZED,
                initialized,
                if initialized { reasons::COMPLETE } else { reasons::INITIALIZING },
                String::new(),
            ),
            images,
            part(condition_type::VOLUMES_READY, About::Volumes, true),
            part(condition_type::NETWORKS_READY, About::Networks, made || phase == WorkloadPhase::Succeeded),
            self.progressing(phase, rolled_out && self.outdated().is_none()),
            (condition_type::READY, ready, reason, message),
        ]
    }

    fn progressing(&self, phase: WorkloadPhase, rolled_out: bool) -> (&'static str, bool, &'static str, String) {
        let type_ = condition_type::PROGRESSING;
        if let Some(message) = &self.update.held {
            return (type_, false, reasons::ROLLED_BACK, message.clone());
        }
        if let Some(message) = &self.update.failed {
            return (type_, false, reasons::UPDATE_FAILED, message.clone());
        }
        let over = matches!(phase, WorkloadPhase::Succeeded | WorkloadPhase::Failed);
        let reason = if rolled_out { reasons::COMPLETE } else { reasons::PROGRESSING };
        (type_, self.desired.intent == Intent::Run && !rolled_out && !over, reason, String::new())
    }

    fn ready(&self, phase: WorkloadPhase, containers: &[ContainerStatus]) -> (bool, &'static str, String) {
        if let Some(stuck) = self.plan.holds.iter().find(|hold| hold.reason == reasons::KILL_FAILED) {
            return (false, stuck.reason, format!("container {} {}", stuck.container, stuck.message));
        }
        if let Some(evicted) = &self.desired.evicted {
            return (false, evicted.reason, evicted.message.clone());
        }
        match phase {
            WorkloadPhase::Succeeded => return (false, reasons::COMPLETED, "all containers ended well".to_owned()),
            WorkloadPhase::Stopped => return (false, reasons::STOPPED, "spec.stopped is true".to_owned()),
            WorkloadPhase::Failed => {
                if let Some(given_up) = &self.plan.given_up {
                    return (false, given_up.reason, given_up.message.clone());
                }
                let failed = containers.iter().filter_map(|c| Some((c, c.state.terminated.as_ref()?)));
                let text: Vec<String> = failed
                    .filter(|(_, end)| end.exit_code != 0)
                    .map(|(c, end)| format!("container {} ended with code {} ({})", c.name, end.exit_code, end.reason))
                    .collect();
                return (false, reasons::ERROR, text.join("; "));
            }
            WorkloadPhase::Pending | WorkloadPhase::Running => {}
        }
        if self.desired.intent == Intent::Delete {
            return (false, reasons::TERMINATING, "being deleted".to_owned());
        }
        if self.predecessor_serves() {
            let hold = self.plan.holds.first();
            let why = hold.map_or_else(String::new, |hold| format!(": container {}: {}", hold.container, hold.message));
            return (true, reasons::RUNNING, format!("the revision before serves until this one is healthy{why}"));
        }
        if let Some(hold) = self.plan.holds.first() {
            return (false, hold.reason, format!("container {}: {}", hold.container, hold.message));
        }
        // What has taken over serves while its predecessor is on its way out.
        let took_over = self.desired.update.start_first && super::update::is_healthy(self.desired, self.observed);
        if let Some(old) = self.outdated().filter(|_| !took_over) {
            return (false, reasons::PROGRESSING, format!("container {old} still runs an earlier specification"));
        }
        let unready: Vec<&str> = containers.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
        if unready.is_empty() {
            // What runs serves, also while it waits for something to be updated; the wait is said.
            let message = self.desired.waits.first().map_or_else(String::new, |wait| wait.message.clone());
            return (true, reasons::RUNNING, message);
        }
        if let Some(wait) = self.desired.waits.first() {
            return (false, wait.reason, wait.message.clone());
        }
        (false, reasons::CONTAINERS_NOT_READY, format!("not ready: {}", unready.join(", ")))
    }
}

impl Seen<'_> {
    /// With StartFirst: containers of another revision that are all ready and were not asked to stop.
    fn predecessor_serves(&self) -> bool {
        let ours = self.desired.sandbox.spec.id.as_str();
        let serving = self.observed.serving.as_ref().or(self.observed.last_good.as_ref());
        let Some(old) = serving.map(|id| id.as_str()).filter(|id| *id != ours) else { return false };
        let mut all = self.observed.containers.iter().filter(|c| !c.init && c.sandbox == old).peekable();
        let serves = |c: &SeenContainer| {
            c.is_live() && c.stopping.is_none() && c.health.started && c.health.ready && !c.health.failed
        };
        self.desired.update.start_first && all.peek().is_some() && all.all(serves)
    }

    /// A container that runs, and not as it is wanted now.
    fn outdated(&self) -> Option<&str> {
        let sandbox = self.desired.sandbox.spec.id.as_str();
        let wanted = |c: &SeenContainer| {
            let wish = self.desired.containers.iter().find(|wish| wish.name == c.name);
            // While something is waited for, what is wanted is not fully known, and nothing is replaced.
            !self.desired.waits.is_empty()
                || c.stopping.is_none() && c.sandbox == sandbox && wish.is_some_and(|wish| wish.hash == c.hash)
        };
        self.observed.containers.iter().find(|c| !c.init && c.is_live() && !wanted(c)).map(|c| c.name.as_str())
    }
}

fn terminated(id: &ContainerId, exit: &Exit, started_at: Option<Time>) -> StateTerminated {
    let code = i32::try_from(exit.code).unwrap_or(-1);
    let reason = match code {
        _ if exit.oom_killed => reasons::OOM_KILLED,
        0 => reasons::COMPLETED,
        _ => reasons::ERROR,
    };
    StateTerminated {
        exit_code: code,
        signal: (129..=192).contains(&code).then(|| code - 128),
        reason: reason.to_owned(),
        message: String::new(),
        started_at,
        finished_at: Timestamp::try_from(exit.at).ok().map(|t| Time(whole_seconds(t))),
        container_id: id.to_string(),
    }
}

/// Events for what people ask about afterwards: ends, back-offs, and waiting for images or configuration.
async fn announce(ctx: &Context, object: &Workload, status: &WorkloadStatus) {
    let before = object.status.clone().unwrap_or_default();
    for container in &status.container_statuses {
        let old = before.container_statuses.iter().find(|c| c.name == container.name);
        let end = container.state.terminated.as_ref().or(container.last_state.terminated.as_ref());
        let old_end = old.and_then(|c| c.state.terminated.as_ref().or(c.last_state.terminated.as_ref()));
        if let Some(end) = end
            && old_end.map(|e| &e.container_id) != Some(&end.container_id)
        {
            let note = format!("Container {} ended with code {} ({})", container.name, end.exit_code, end.reason);
            let (type_, reason) = match end.exit_code {
                0 => (EventType::Normal, reasons::COMPLETED),
                _ if end.reason == reasons::OOM_KILLED => (EventType::Warning, reasons::OOM_KILLED),
                _ => (EventType::Warning, reasons::ERROR),
            };
            ctx.event(object, type_, reason, note).await;
        }
        if let Some(waiting) = &container.state.waiting
            && waiting.reason == reasons::CRASH_LOOP_BACK_OFF
            && old.and_then(|c| c.state.waiting.as_ref()).map(|w| &w.reason) != Some(&waiting.reason)
        {
            let note = format!("Container {} {}", container.name, waiting.message);
            ctx.event(object, EventType::Warning, reasons::BACK_OFF, note).await;
        }
    }
    for (reason, message) in resources::news(&before.conditions, &status.conditions) {
        ctx.event(object, EventType::Warning, reason, message.to_owned()).await;
    }
    let reason_of = |conditions: &[Condition]| {
        find_condition(conditions, condition_type::READY).map(|c| (c.status.clone(), c.reason.clone()))
    };
    let (old, new) = (reason_of(&before.conditions), reason_of(&status.conditions));
    // Failed pulls have their Events where they are seen, one for each try.
    let notable = [
        reasons::IMAGE_NEVER_PULL,
        reasons::CONFIG_MISSING,
        reasons::WAITING_FOR_DEPENDENCY,
        reasons::VOLUME_IN_USE,
        reasons::INSUFFICIENT_RESOURCES,
        reasons::EVICTED,
        reasons::PREEMPTED,
        reasons::NOT_FOUND,
        reasons::DEADLINE_EXCEEDED,
        reasons::BACKOFF_LIMIT_EXCEEDED,
        reasons::KILL_FAILED,
    ];
    if let Some((_, reason)) = &new
        && old != new
        && let Some(reason) = notable.iter().find(|r| *r == reason)
    {
        let message = find_condition(&status.conditions, condition_type::READY).map(|c| c.message.clone());
        ctx.event(object, EventType::Warning, reason, message.unwrap_or_default()).await;
    }
}
