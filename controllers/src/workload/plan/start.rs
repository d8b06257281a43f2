//! Rules 5, 6, 7 and 11: containers are started, in order, replaced and restarted.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nodelet_crds::reasons;
use nodelet_crds::workload::RestartPolicy;
use nodelet_drivers::runtime::{Exit, TaskState};

use super::{Hold, Planner, Step, UsedImage, Why, elapsed};
use crate::workload::model::{ContainerWish, ImageWish, SeenContainer, SeenImage, VolumeWish, image_of_volume};
use crate::workload::resizes::Unfinished;

impl Planner<'_> {
    /// Rules 5 and 11. Returns whether the containers may run.
    pub(super) fn run_init(&mut self) -> bool {
        let desired = self.desired;
        let begun = self.has_begun();
        for wish in &desired.init {
            let doing = if wish.sidecar {
                self.run_one(wish, true, RestartPolicy::Always);
                if begun || self.current(wish, true).is_some_and(|c| is_up(c, wish)) {
                    continue;
                }
                format!("waits for sidecar {} to be started", wish.name)
            } else {
                if begun || self.current(wish, true).is_some_and(ended_well) {
                    continue;
                }
                // An init container of a workload that always runs is tried until it succeeds.
                let policy = match desired.restart {
                    RestartPolicy::Never => RestartPolicy::Never,
                    _ => RestartPolicy::OnFailure,
                };
                self.run_one(wish, true, policy);
                format!("waits for init container {}", wish.name)
            };
            for waiting in &desired.containers {
                self.plan.holds.push(Hold {
                    container: waiting.name.clone(),
                    reason: reasons::INITIALIZING,
                    message: doing.clone(),
                });
            }
            return false;
        }
        true
    }

    /// Rules 6 and 7.
    pub(super) fn run_containers(&mut self) {
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
        } else {
            self.resize(wish, current);
            // Its files were written before.
            if let Some(content) = wish.signal.as_ref().filter(|content| current.heard.as_ref() != Some(content)) {
                self.plan.steps.push(Step::Signal { id: current.id().clone(), content: content.clone() });
            }
        }
    }

    /// Limits are changed in place, unless the node has no room or the last try of the same was in vain.
    fn resize(&mut self, wish: &ContainerWish, current: &SeenContainer) {
        if current.container.limits == wish.limits || self.desired.resize.is_some() {
            return;
        }
        match current.resize.as_ref().filter(|last| last.wanted == wish.limits) {
            Some(Unfinished { rest: None, .. }) => {}
            Some(Unfinished { rest: Some(rest), .. }) if !rest.is_zero() => self.again(*rest),
            _ => {
                let limits = wish.limits.clone();
                self.plan.steps.push(Step::UpdateLimits { id: current.id().clone(), limits });
            }
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
        let forgotten = ran >= self.desired.backoff.reset && self.desired.batch.backoff_limit.is_none();
        let failures = if forgotten { 1 } else { current.failures.saturating_add(1) };
        let delay = self.desired.backoff.delay(failures);
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
        if let Some((image, digest)) = self.image_of(wish)
            && let Some(volumes) = self.volume_images(wish)
        {
            self.plan.steps.push(Step::Start {
                container: wish.name.clone(),
                init,
                attempt,
                restarts,
                failures,
                image,
                digest,
                volumes,
            });
        }
    }

    /// The image record and digest for a start, or a hold that says why there is none yet.
    pub(super) fn image_of(&mut self, wish: &ContainerWish) -> Option<(String, String)> {
        match self.observed.images.get(&wish.name) {
            Some(SeenImage::Present { name, digest }) => Some((name.clone(), digest.clone())),
            other => {
                self.hold_for_image(wish, &wish.image, other);
                None
            }
        }
    }

    /// The images that the container mounts, or a hold that says why one is not on the node yet.
    fn volume_images(&mut self, wish: &ContainerWish) -> Option<BTreeMap<String, UsedImage>> {
        let (desired, observed) = (self.desired, self.observed);
        let mut found = BTreeMap::new();
        for mount in &wish.template.mounts {
            let Some(VolumeWish::Image(image)) = desired.sandbox.volumes.get(&mount.volume) else { continue };
            match observed.images.get(&image_of_volume(&mount.volume)) {
                Some(SeenImage::Present { name, digest }) => {
                    let used = UsedImage { name: name.clone(), digest: digest.clone() };
                    found.insert(mount.volume.clone(), used);
                }
                other => {
                    self.hold_for_image(wish, image, other);
                    return None;
                }
            }
        }
        Some(found)
    }

    fn hold_for_image(&mut self, wish: &ContainerWish, image: &ImageWish, seen: Option<&SeenImage>) {
        let (reason, message) = match seen {
            Some(SeenImage::Pulling { message }) => (reasons::PULLING, message.clone()),
            Some(SeenImage::Failed { reason, message }) => (*reason, message.clone()),
            Some(SeenImage::Present { .. }) | None => {
                (reasons::PULLING, format!("image {} is being looked up", image.fetch.reference))
            }
        };
        if !self.plan.holds.iter().any(|hold| hold.container == wish.name) {
            self.plan.holds.push(Hold { container: wish.name.clone(), reason, message });
        }
    }
}

/// A sidecar runs as wanted and has come up.
fn is_up(container: &SeenContainer, wish: &ContainerWish) -> bool {
    let is_right = container.is_live() && container.hash == wish.hash && container.stopping.is_none();
    is_right && container.health.started && !container.health.failed
}

fn ended_well(container: &SeenContainer) -> bool {
    matches!(&container.container.state, TaskState::Exited(exit) if exit.code == 0)
}

/// Time from `start` to `end`, zero when the clock went backwards.
fn since(start: std::time::SystemTime, end: Timestamp) -> Duration {
    Timestamp::try_from(start).map_or(Duration::ZERO, |start| elapsed(start, end))
}
