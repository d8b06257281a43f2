//! Startup, liveness and readiness of running containers.
//!
//! Each container with probes has one task that probes it and keeps its [`Health`]; a change wakes the workload. The
//! task begins with what the status says of that very container, so that a restart of the agent neither flaps
//! readiness nor runs a startup probe again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use nodelet_crds::labels;
use nodelet_crds::workload::{ExecAction, Probe, Workload};
use nodelet_drivers::ids::ContainerId;
use nodelet_drivers::runtime::HealthCheck;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::model::{Health, Probes};
use crate::context::Context;

mod check;

pub use check::{Target, http_get};

/// How long a runtime that is busy may take to start and to end a program. The kubelet gives it as long.
const EXEC_OVERHEAD: Duration = Duration::from_secs(120);

/// The probing tasks of the node.
pub struct Probers {
    tasks: Mutex<HashMap<ContainerId, Entry>>,
    wake: mpsc::Sender<ObjectRef<Workload>>,
}

struct Entry {
    probes: Probes,
    health: Arc<Mutex<Health>>,
    _stop: DropGuard,
}

impl Probers {
    /// No task yet; changes of health are told to `wake`.
    pub fn new(wake: mpsc::Sender<ObjectRef<Workload>>) -> Self {
        Self { tasks: Mutex::default(), wake }
    }

    /// What the probes of a container say; `None` if it has no task.
    pub fn health(&self, id: &ContainerId) -> Option<Health> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.get(id).map(|entry| *entry.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Probes the container like this from now on. Called again with equal probes it changes nothing; with others
    /// it starts over from the present health.
    pub fn ensure(
        &self,
        ctx: &Arc<Context>,
        workload: ObjectRef<Workload>,
        target: Target,
        probes: &Probes,
        known: Option<Health>,
    ) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let before = tasks.get(&target.container);
        if before.is_some_and(|entry| entry.probes == *probes) {
            return;
        }
        let present = before.map(|entry| *entry.health.lock().unwrap_or_else(PoisonError::into_inner)).or(known);
        let health = present.unwrap_or_else(|| initial(probes));
        let health = Arc::new(Mutex::new(Health { failed: false, ..health }));
        let stop = CancellationToken::new();
        let prober = Prober {
            ctx: ctx.clone(),
            workload,
            probes: probes.clone(),
            health: health.clone(),
            wake: self.wake.clone(),
            target: target.clone(),
        };
        let cancelled = stop.clone();
        ctx.tasks.spawn(async move {
            tokio::select! {
                // Cancel-safe: a check under way is abandoned with its container.
                () = cancelled.cancelled() => {}
                () = prober.run() => {}
            }
        });
        tasks.insert(target.container, Entry { probes: probes.clone(), health, _stop: stop.drop_guard() });
    }

    /// Ends the tasks of all containers of which `alive` is not true.
    pub fn retain(&self, alive: impl Fn(&ContainerId) -> bool) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| alive(id));
    }

    /// Ends all tasks.
    pub fn clear(&self) {
        self.retain(|_| false);
    }
}

/// The probes of a container: those declared, else what its image's HEALTHCHECK makes.
pub fn of(declared: Option<&Probes>, container: &BTreeMap<String, String>) -> Probes {
    let declared = declared.cloned().unwrap_or_default();
    let label = container.get(labels::HEALTHCHECK).filter(|_| declared.is_empty());
    match label.and_then(|text| serde_json::from_str(text).ok()) {
        Some(readiness) => Probes { readiness: Some(readiness), ..declared },
        None => declared,
    }
}

/// A HEALTHCHECK as a readiness probe: as with Docker, a container that fails it is told of and not restarted.
/// Before its first success a container is not ready in any case, so that the start period needs no mention.
pub fn of_image(check: &HealthCheck) -> Probe {
    let seconds = |time: Duration| u32::try_from(time.as_secs_f64().ceil() as u64).unwrap_or(u32::MAX).max(1);
    Probe {
        exec: Some(ExecAction { command: check.command.clone() }),
        period_seconds: seconds(check.interval),
        timeout_seconds: seconds(check.timeout),
        failure_threshold: check.retries.max(1),
        success_threshold: 1,
        ..Probe::default()
    }
}

/// The health of a container that was just started.
pub fn initial(probes: &Probes) -> Health {
    Health { started: probes.startup.is_none(), ready: probes.readiness.is_none(), failed: false }
}

struct Prober {
    ctx: Arc<Context>,
    workload: ObjectRef<Workload>,
    probes: Probes,
    health: Arc<Mutex<Health>>,
    wake: mpsc::Sender<ObjectRef<Workload>>,
    target: Target,
}

/// What a run of equal results came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Success,
    Failure,
}

impl Prober {
    async fn run(&self) {
        if let Some(startup) = &self.probes.startup
            && !self.current().started
        {
            match self.first_verdict(startup).await {
                Verdict::Success => self.update(|health| health.started = true).await,
                Verdict::Failure => {
                    self.update(|health| health.failed = true).await;
                    return;
                }
            }
        }
        tokio::join!(self.liveness(), self.readiness());
    }

    async fn liveness(&self) {
        let Some(probe) = &self.probes.liveness else { return };
        let mut counter = Counter::new(probe, Some(Verdict::Success));
        let mut next = first_check(probe);
        loop {
            tokio::time::sleep_until(next).await;
            next = Instant::now() + period(probe);
            if counter.count(self.check(probe).await) == Some(Verdict::Failure) {
                self.update(|health| health.failed = true).await;
                return;
            }
        }
    }

    async fn readiness(&self) {
        let Some(probe) = &self.probes.readiness else { return };
        let known = if self.current().ready { Verdict::Success } else { Verdict::Failure };
        let mut counter = Counter::new(probe, Some(known));
        let mut next = first_check(probe);
        loop {
            tokio::time::sleep_until(next).await;
            next = Instant::now() + period(probe);
            if let Some(verdict) = counter.count(self.check(probe).await) {
                self.update(|health| health.ready = verdict == Verdict::Success).await;
            }
        }
    }

    async fn first_verdict(&self, probe: &Probe) -> Verdict {
        let mut counter = Counter::new(probe, None);
        let mut next = first_check(probe);
        loop {
            tokio::time::sleep_until(next).await;
            next = Instant::now() + period(probe);
            if let Some(verdict) = counter.count(self.check(probe).await) {
                return verdict;
            }
        }
    }

    async fn check(&self, probe: &Probe) -> bool {
        let limit = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
        // The runtime ends a program that takes too long, and the next one waits until it has: on a node that cannot
        // keep up they would pile up else. What starting and ending it takes is not the program's fault.
        let within = if probe.exec.is_some() { limit + EXEC_OVERHEAD } else { limit };
        let result = match tokio::time::timeout(within, check::check(&self.ctx, &self.target, probe, limit)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", within.as_secs())),
        };
        if let Err(why) = &result {
            tracing::debug!(container = %self.target.container, why, "probe failed");
        }
        result.is_ok()
    }

    fn current(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn update(&self, change: impl FnOnce(&mut Health)) {
        let changed = {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *health;
            change(&mut health);
            before != *health
        };
        if changed {
            let _ = self.wake.send(self.workload.clone()).await;
        }
    }
}

fn first_check(probe: &Probe) -> Instant {
    Instant::now() + Duration::from_secs(u64::from(probe.initial_delay_seconds))
}

fn period(probe: &Probe) -> Duration {
    Duration::from_secs(u64::from(probe.period_seconds.max(1)))
}

/// Counts equal results in a row against the thresholds.
struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    verdict: Option<Verdict>,
    last: Option<bool>,
    run: u32,
}

impl Counter {
    fn new(probe: &Probe, verdict: Option<Verdict>) -> Self {
        Self {
            success_threshold: probe.success_threshold.max(1),
            failure_threshold: probe.failure_threshold.max(1),
            verdict,
            last: None,
            run: 0,
        }
    }

    /// A new verdict, if this result made one.
    fn count(&mut self, success: bool) -> Option<Verdict> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let (threshold, verdict) = match success {
            true => (self.success_threshold, Verdict::Success),
            false => (self.failure_threshold, Verdict::Failure),
        };
        if self.run < threshold || self.verdict == Some(verdict) {
            return None;
        }
        self.verdict = Some(verdict);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe { success_threshold: 2, failure_threshold: 3, ..Default::default() };
        let mut counter = Counter::new(&probe, Some(Verdict::Failure));
        let results = [true, false, true, true, true, false, false, true, false, false, false, false];
        let verdicts: Vec<_> = results.into_iter().map(|r| counter.count(r)).collect();
        let mut expected = vec![None; 12];
        expected[3] = Some(Verdict::Success);
        expected[10] = Some(Verdict::Failure);
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn a_health_check_counts_unless_a_probe_is_declared() {
        let check = HealthCheck {
            command: vec!["check".to_owned()],
            interval: Duration::from_millis(1500),
            timeout: Duration::from_secs(30),
            start_period: Duration::ZERO,
            retries: 4,
        };
        let text = serde_json::to_string(&of_image(&check)).unwrap();
        let container = BTreeMap::from([(labels::HEALTHCHECK.to_owned(), text)]);
        let readiness = of(Some(&Probes::default()), &container).readiness.unwrap();
        assert_eq!((readiness.period_seconds, readiness.timeout_seconds, readiness.failure_threshold), (2, 30, 4));
        assert_eq!(readiness.exec.unwrap().command, ["check"]);
        let declared = Probes { liveness: Some(Probe::default()), ..Default::default() };
        assert_eq!(of(Some(&declared), &container), declared);
        assert!(of(None, &BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_new_container_is_not_ready_before_its_probe_says_so() {
        let probes = Probes { readiness: Some(Probe::default()), ..Default::default() };
        assert_eq!(initial(&probes), Health { started: true, ready: false, failed: false });
    }
}
