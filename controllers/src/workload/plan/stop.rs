//! Rules 1, 2 and 11: what should not run is stopped, in order, and cleared away, sandbox last.

use std::time::Duration;

use nodelet_crds::reasons;
use nodelet_drivers::runtime::TaskState;

use super::{DRAIN, Hold, Planner, Step, Why};
use crate::workload::model::SeenContainer;

/// Who lives for this long after it was killed is told of.
const UNKILLABLE: Duration = Duration::from_secs(10);

impl<'a> Planner<'a> {
    /// Rule 1.
    pub(super) fn clear_everything(&mut self) {
        let observed = self.observed;
        if self.clear_away(observed.containers.iter(), Why::NotWanted) {
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
    pub(super) fn clear_strangers(&mut self) -> bool {
        let (desired, observed) = (self.desired, self.observed);
        let ours = desired.sandbox.spec.id.as_str();
        let is_wanted = |c: &SeenContainer| {
            let wishes = if c.init { &desired.init } else { &desired.containers };
            c.sandbox == ours && wishes.iter().any(|wish| wish.name == c.name)
        };
        let strangers = || observed.containers.iter().filter(|c| !is_wanted(c));
        if strangers().any(SeenContainer::is_live) && (self.blocked() || !self.images_present()) {
            // A new revision that cannot start yet does not take the old one down (rules 3 and 6).
            self.hold_for_images();
            self.clear_away(strangers().filter(|c| !c.is_live()), Why::NotWanted);
            return false;
        }
        self.clear_away(strangers().filter(|c| c.sandbox == ours), Why::NotWanted);
        if self.clear_away(strangers().filter(|c| c.sandbox != ours), Why::SandboxChanged) {
            return false;
        }
        for id in &observed.stale_sandboxes {
            self.plan.steps.push(Step::Teardown { id: id.clone() });
        }
        true
    }

    /// Containers whose successor exists: replacements that were cut short.
    pub(super) fn clear_predecessors(&mut self) {
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

    /// What a boot or a lost sandbox left of containers in it: records, of which nothing runs. They go before another
    /// sandbox is made, so that init containers run anew in it (rule 5).
    pub(super) fn clear_former_boot(&mut self) -> bool {
        let (desired, observed) = (self.desired, self.observed);
        let ours = desired.sandbox.spec.id.as_str();
        let mine: Vec<&SeenContainer> = observed.containers.iter().filter(|c| c.sandbox == ours).collect();
        let lost = observed.sandbox.as_ref().is_none_or(|sandbox| !sandbox.complete);
        let is_remains = |c: &&SeenContainer| !c.is_live() && !matches!(c.container.state, TaskState::Exited(_));
        if desired.init.is_empty() || !lost || mine.is_empty() || !mine.iter().all(is_remains) {
            return false;
        }
        for container in mine {
            self.plan.steps.push(Step::Remove { id: container.id().clone() });
        }
        // What comes next is planned by what is left then.
        self.again(Duration::ZERO);
        true
    }

    /// Stops what runs of these containers, in order, and removes what does not. Returns whether any runs yet.
    pub(super) fn clear_away(&mut self, all: impl Iterator<Item = &'a SeenContainer>, why: Why) -> bool {
        let (live, ended): (Vec<_>, Vec<_>) = all.partition(|c| c.is_live());
        let any = !live.is_empty();
        self.stop_in_order(live, why);
        for container in ended {
            self.plan.steps.push(Step::Remove { id: container.id().clone() });
        }
        any
    }

    /// Rule 11: a sidecar is asked once all that came after it has ended. What was asked already is seen to its end.
    pub(super) fn stop_in_order(&mut self, live: Vec<&'a SeenContainer>, why: Why) {
        let last = |sandbox: &str| live.iter().filter(|c| c.sandbox == sandbox).map(|c| place(c)).max();
        let due = |c: &&&SeenContainer| c.stopping.is_some() || Some(place(c)) == last(&c.sandbox);
        for container in live.iter().filter(due) {
            self.stop(container, why);
        }
    }

    pub(super) fn stop(&mut self, container: &SeenContainer, why: Why) {
        let drain = if why == Why::Superseded { DRAIN } else { Duration::ZERO };
        let grace = self.desired.grace.saturating_add(drain);
        match container.stopping {
            None => {
                self.plan.steps.push(Step::Ask { id: container.id().clone(), why });
                self.again(grace);
            }
            Some(asked) if asked >= grace => {
                let overdue = asked - grace;
                if overdue >= UNKILLABLE {
                    self.plan.holds.push(Hold {
                        container: container.name.clone(),
                        reason: reasons::KILL_FAILED,
                        message: format!(
                            "does not end though it was killed {} s ago: a process of it waits in the kernel, as for a \
                             disk or a file server that does not answer; it is tried again",
                            overdue.as_secs() / 10 * 10
                        ),
                    });
                }
                self.plan.steps.push(Step::Kill { id: container.id().clone() });
                // Its exit wakes us; this only guards against a lost event.
                self.again(Duration::from_secs(2));
            }
            Some(asked) => self.again(grace - asked),
        }
    }
}

/// Where a container is in the order of stops, the last first: containers after all sidecars.
fn place(container: &SeenContainer) -> (bool, u32) {
    container.sidecar.map_or((true, 0), |place| (false, place))
}
