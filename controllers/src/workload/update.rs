//! When an update is good, and when it has failed. Pure.
//!
//! A revision is good once all its containers were ready for `healthySeconds` without a break. It has failed when a
//! container ended three times in a row or could not be started three times, when its image can never be had, or
//! when `progressDeadlineSeconds` are over. Only a revision with a good predecessor can fail: the first one is tried
//! for ever, as there is nothing else to run.

use std::time::Duration;

use nodelet_crds::reasons;
use nodelet_crds::volume::AccessMode;
use nodelet_crds::workload::{RestartPolicy, UpdateStrategy, Workload};
use nodelet_drivers::ids::SandboxId;
use nodelet_drivers::runtime::TaskState;

use super::dereference::References;
use super::model::{ContainerWish, Desired, Observed, SeenContainer, SeenImage, UpdateWish, image_user};
use crate::invalid::Invalid;
use crate::names;

/// A container, or an attempt to start one, that failed this often fails the update.
pub const FAILURES: u32 = 3;

/// What holds without `spec.update`.
pub const DEFAULT: UpdateWish = UpdateWish {
    start_first: false,
    healthy: Duration::from_secs(10),
    deadline: Duration::from_secs(600),
    rollback: false,
};

/// Checks `spec.update`.
pub fn wish(object: &Workload, references: &References) -> Result<UpdateWish, Invalid> {
    let Some(update) = &object.spec.update else { return Ok(DEFAULT) };
    let start_first = update.strategy == UpdateStrategy::StartFirst;
    if start_first {
        beside(object, references)
            .map_err(|why| Invalid::field("spec.update.strategy", format!("StartFirst is not possible with {why}")))?;
    }
    let seconds = |value: Option<u32>, default| value.map_or(default, |n| Duration::from_secs(u64::from(n)));
    Ok(UpdateWish {
        start_first,
        healthy: seconds(update.healthy_seconds, DEFAULT.healthy),
        deadline: seconds(update.progress_deadline_seconds, DEFAULT.deadline),
        rollback: update.rollback_on_failure.unwrap_or(start_first),
    })
}

/// What keeps two of them from running beside each other.
fn beside(object: &Workload, references: &References) -> Result<(), String> {
    let spec = &object.spec;
    if matches!(spec.restart_policy, RestartPolicy::OnFailure | RestartPolicy::Never) {
        return Err(format!("restartPolicy {:?}", spec.restart_policy));
    }
    if spec.network_of.is_some() {
        return Err("networkOf: both would listen on the same ports".to_owned());
    }
    if let Some(network) = spec.networks.iter().find(|network| network.name == "host") {
        return Err(format!("the network {}: both would listen on the same ports", network.name));
    }
    if let Some(network) = spec.networks.iter().find(|network| network.ip.is_some()) {
        return Err(format!("a fixed address in network {}: both would need it", network.name));
    }
    let used = |name: &String| {
        let sources = spec.volumes.iter().filter_map(|volume| volume.volume.as_ref());
        sources.into_iter().any(|source| source.name == *name)
    };
    let once = references.volumes.iter().find(|(name, volume)| {
        used(name) && volume.as_ref().is_some_and(|volume| volume.spec.access_mode == AccessMode::ReadWriteOnce)
    });
    match once {
        Some((name, _)) => Err(format!("the Volume {name:?}, which is ReadWriteOnce")),
        None => Ok(()),
    }
}

/// The identity of a revision.
pub fn revision<'a>(sandbox: &SandboxId, containers: impl Iterator<Item = &'a ContainerWish>) -> String {
    let all: Vec<(&str, &str)> = containers.map(|wish| (wish.name.as_str(), wish.hash.as_str())).collect();
    names::short_hash(&format!("{sandbox} {all:?}"), 16)
}

/// All containers run as wanted and are ready.
pub fn is_healthy(desired: &Desired, observed: &Observed) -> bool {
    let healthy = |wish: &ContainerWish, init: bool| {
        current(desired, observed, wish, init).is_some_and(|c| {
            c.is_live()
                && c.hash == wish.hash
                && c.stopping.is_none()
                && c.health.started
                && c.health.ready
                && !c.health.failed
        })
    };
    observed.sandbox.as_ref().is_some_and(|sandbox| sandbox.complete)
        && desired.containers.iter().all(|wish| healthy(wish, false))
        && desired.init.iter().filter(|wish| wish.sidecar).all(|wish| healthy(wish, true))
}

fn current<'a>(
    desired: &Desired,
    observed: &'a Observed,
    wish: &ContainerWish,
    init: bool,
) -> Option<&'a SeenContainer> {
    let ours = desired.sandbox.spec.id.as_str();
    let all = observed.containers.iter().filter(|c| c.name == wish.name && c.init == init && c.sandbox == ours);
    all.max_by_key(|c| c.attempt)
}

/// How far a revision is that was not found good yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Since it is wanted, or since the agent started.
    pub running: Duration,
    /// How often in a row a step of it failed, and how.
    pub errors: u32,
    /// The last of these errors.
    pub error: String,
}

/// How an update stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is good.
    Good,
    /// It may still get good; look again at the latest after this long.
    UnderWay(Duration),
    /// It will not.
    Failed(String),
}

/// Judges a revision that has not been found good yet.
pub fn judge(desired: &Desired, observed: &Observed, progress: &Progress) -> Verdict {
    let healthy_for = observed.healthy_for;
    if healthy_for.is_some_and(|time| time >= desired.update.healthy) {
        return Verdict::Good;
    }
    if let Some(why) = failure(desired, observed, progress) {
        return Verdict::Failed(why);
    }
    let rest = desired.update.deadline.saturating_sub(progress.running);
    // What is healthy is given the time to prove it, also past the deadline.
    match healthy_for {
        Some(time) => Verdict::UnderWay(desired.update.healthy.saturating_sub(time)),
        None if rest.is_zero() => Verdict::Failed(overdue(desired, observed)),
        None => Verdict::UnderWay(rest),
    }
}

fn failure(desired: &Desired, observed: &Observed, progress: &Progress) -> Option<String> {
    if progress.errors >= FAILURES {
        return Some(progress.error.clone());
    }
    for (name, image) in &observed.images {
        if let SeenImage::Failed { reason, message } = image
            && [
                reasons::ARCHIVE_FAILED,
                reasons::PLATFORM_MISMATCH,
                reasons::VERIFICATION_FAILED,
                reasons::IMAGE_NEVER_PULL,
            ]
            .contains(reason)
        {
            return Some(format!("{}: {message}", image_user(name)));
        }
    }
    let inits = desired.init.iter().map(|wish| (wish, true));
    let all = inits.chain(desired.containers.iter().map(|wish| (wish, false)));
    for (wish, init) in all {
        let Some(seen) = current(desired, observed, wish, init) else { continue };
        let TaskState::Exited(exit) = &seen.container.state else { continue };
        let failed = !init || wish.sidecar || exit.code != 0;
        if failed && seen.hash == wish.hash && seen.failures.saturating_add(1) >= FAILURES {
            return Some(format!("container {} ended {FAILURES} times in a row, with code {}", wish.name, exit.code));
        }
    }
    None
}

fn overdue(desired: &Desired, observed: &Observed) -> String {
    let seconds = desired.update.deadline.as_secs();
    let mut causes: Vec<String> = Vec::new();
    for (name, image) in &observed.images {
        if let SeenImage::Failed { message, .. } | SeenImage::Pulling { message } = image {
            causes.push(format!("{}: {message}", image_user(name)));
        }
    }
    for wish in &desired.containers {
        let seen = current(desired, observed, wish, false).filter(|c| c.hash == wish.hash);
        match seen {
            Some(seen) if seen.is_live() && !seen.health.started => {
                causes.push(format!("container {}: its startup probe did not succeed", wish.name));
            }
            Some(seen) if seen.is_live() && !seen.health.ready => {
                causes.push(format!("container {}: its readiness probe does not succeed", wish.name));
            }
            Some(seen) if seen.is_live() => {}
            Some(_) => causes.push(format!("container {} does not run", wish.name)),
            None if observed.images.contains_key(&wish.name) && !causes.is_empty() => {}
            None => causes.push(format!("container {} was not started", wish.name)),
        }
    }
    format!("not healthy within {seconds} s: {}", causes.join("; "))
}
