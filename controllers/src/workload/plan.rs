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
//! 11. A sidecar, an init container that is always restarted, is started in its turn among the init containers; the
//!     next one waits until it is started. From then on it runs beside the containers and is restarted whenever it
//!     ends. It is stopped when all containers have ended, the last one first, and keeps no workload from its end.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nodelet_drivers::cgroups::Limits;
use nodelet_drivers::ids::{ContainerId, NetworkKey, SandboxId};
use serde::Serialize;

use super::model::{About, ContainerWish, Desired, GivenUp, Intent, Observed, SeenContainer, SeenImage};

mod end;
mod sandbox;
mod start;
mod stop;
mod takeover;

pub use sandbox::published_ports;

/// Between the move of the published ports and the request to stop: requests under way reach their end.
pub const DRAIN: Duration = Duration::from_secs(1);

/// An image on the node that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsedImage {
    /// The image record.
    pub name: String,
    /// Its digest.
    pub digest: String,
}

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
        /// The images that it mounts, by volume.
        volumes: BTreeMap<String, UsedImage>,
    },
    /// Tell a container by SIGHUP that files it mounts have changed.
    Signal {
        /// The container.
        id: ContainerId,
        /// The content, as a hash.
        content: String,
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
    /// A sidecar of a workload that has ended.
    Finished,
}

impl Why {
    /// Of a container, after "which".
    pub fn words(self) -> &'static str {
        match self {
            Why::NotWanted => "is no longer wanted",
            Why::Changed => "is specified in another way now",
            Why::Unhealthy => "failed its liveness or startup probe",
            Why::SandboxChanged => "is of another revision",
            Why::Superseded => "its successor has taken over from",
            Why::GivenUp => "is part of a workload that has failed",
            Why::Finished => "serves a workload that has ended",
        }
    }
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
        if self.clear_former_boot() {
            return;
        }
        self.clear_predecessors();
        if self.is_finished() {
            self.clear_finished();
            return;
        }
        if self.init_failed() {
            self.clear_sidecars();
            return;
        }
        self.ensure_sandbox(true);
        if self.run_init() {
            self.run_containers();
        }
    }

    /// What was started once is not held back by a dependency that went away or a network that is being repaired.
    fn blocked(&self) -> bool {
        let begun = self.has_begun();
        self.desired.waits.iter().any(|wait| !(begun && matches!(wait.about, About::Dependencies | About::Networks)))
    }

    /// There is a container other than an init container, since the boot: that takes the sandbox and leaves records.
    fn has_begun(&self) -> bool {
        let ours = self.desired.sandbox.spec.id.as_str();
        self.observed.sandbox.is_some() && self.observed.containers.iter().any(|c| !c.init && c.sandbox == ours)
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

/// Time from `start` to `end`, zero when the clock went backwards.
fn elapsed(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
pub(super) mod tests;
