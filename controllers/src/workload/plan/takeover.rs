//! Rule 9: with StartFirst a new revision comes up beside the old and takes its place.

use std::time::Duration;

use nodelet_drivers::ids::SandboxId;

use super::{Planner, Step, Why};
use crate::workload::model::SeenContainer;

impl<'a> Planner<'a> {
    /// With StartFirst: another sandbox that has to serve until the wanted one is healthy. It is the one that the
    /// published ports lead to; without ports, that of the last good revision, else the one that was there first.
    pub(super) fn predecessor(&self) -> Option<&'a str> {
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
    pub(super) fn roll_over(&mut self, old: &str) {
        let (desired, observed) = (self.desired, self.observed);
        let ours = desired.sandbox.spec.id.as_str();
        self.clear_away(
            observed.containers.iter().filter(|c| c.sandbox != ours && c.sandbox != old),
            Why::SandboxChanged,
        );
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
        if self.clear_former_boot() {
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
        self.clear_away(observed.containers.iter().filter(|c| c.sandbox == old), Why::Superseded);
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
}
