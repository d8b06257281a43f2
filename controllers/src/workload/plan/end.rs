//! Rules 8 and 10: workloads that ran to their end, or are given up.

use std::time::Duration;

use nodelet_crds::reasons;
use nodelet_crds::workload::RestartPolicy;
use nodelet_drivers::runtime::TaskState;

use super::{Planner, Step, Why, elapsed};
use crate::workload::model::{ContainerWish, GivenUp, SeenContainer};

impl Planner<'_> {
    /// Rule 10.
    pub(super) fn given_up(&mut self) -> Option<GivenUp> {
        let (desired, observed) = (self.desired, self.observed);
        if observed.given_up.is_some() {
            return observed.given_up.clone();
        }
        if let Some(limit) = desired.batch.backoff_limit {
            let wishes = desired.init.iter().filter(|wish| !wish.sidecar).map(|wish| (wish, true));
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

    pub(super) fn give_up(&mut self, given_up: GivenUp) {
        self.plan.given_up = Some(given_up);
        let observed = self.observed;
        let live: Vec<&SeenContainer> = observed.containers.iter().filter(|c| c.is_live()).collect();
        if !live.is_empty() {
            self.stop_in_order(live, Why::GivenUp);
        } else if observed.given_up.is_none() {
            // How they ended is told before their records go.
            self.again(Duration::from_millis(20));
        } else {
            self.clear_everything();
        }
    }

    /// The workload ran to its end, as its policy allows, and the runtime's records of it are gone: nothing to do.
    pub(super) fn is_finished(&self) -> bool {
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

    /// An init container failed, and is not tried again: no container will ever run.
    pub(super) fn init_failed(&self) -> bool {
        let failed = |c: &SeenContainer| matches!(&c.container.state, TaskState::Exited(exit) if exit.code != 0);
        let plain = self.desired.init.iter().filter(|wish| !wish.sidecar);
        self.desired.restart == RestartPolicy::Never
            && !self.has_begun()
            && plain.into_iter().any(|wish| self.current(wish, true).is_some_and(failed))
    }

    /// Its sidecars have nothing to serve then.
    pub(super) fn clear_sidecars(&mut self) {
        let observed = self.observed;
        let live = observed.containers.iter().filter(|c| c.is_live() && c.sidecar.is_some());
        self.stop_in_order(live.collect(), Why::Finished);
    }

    /// Rule 8. The status is written before the remains go, so that a crash in between loses no exit code.
    pub(super) fn clear_finished(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        if observed.containers.is_empty() && observed.sandbox.is_none() {
            return;
        }
        // Sidecars need not wait for that.
        let sidecars: Vec<&SeenContainer> = observed.containers.iter().filter(|c| c.is_live()).collect();
        let told = |wish: &ContainerWish| observed.remembered.get(&wish.name).is_some_and(|r| r.exit_code.is_some());
        if !desired.containers.iter().all(told) {
            self.stop_in_order(sidecars, Why::Finished);
            self.again(Duration::from_millis(20));
            return;
        }
        if !self.clear_away(observed.containers.iter(), Why::Finished) && observed.sandbox.is_some() {
            self.plan.steps.push(Step::Teardown { id: desired.sandbox.spec.id.clone() });
        }
    }
}
