//! Images that may be damaged are read in full before anything is started from them, and repaired.
//!
//! A power cut can leave files of an image empty or torn although containerd counts it as there. So after a boot that
//! no orderly stop of the agent preceded, every image is checked at its first use; and at any time, once, one whose
//! container does not start for a reason that damage can have, or ends as soon as it is started. What differs is dropped, unpacked from what is sound or
//! fetched again, and told. Nothing is started from the image meanwhile.

mod boot;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::runtime::events::EventType;
use nodelet_crds::reasons;
use nodelet_crds::workload::Workload;
use nodelet_drivers::images::{Damage, Fetch, normalize};

use crate::backoff::Backoff;
use crate::context::{Context, chain};
use boot::Boot;

/// Who ends sooner has hardly begun.
const AT_ONCE: Duration = Duration::from_secs(5);
/// So many such ends in a row are no accident.
const IN_A_ROW: u32 = 2;
/// How shells, loaders and the kernel say that a file is not what it should be: cannot be executed, not found, an
/// illegal instruction, a page that is not there, an address that is none.
const DAMAGED_CODES: [u32; 5] = [126, 127, 128 + 4, 128 + 7, 128 + 11];

/// What is known of an image that is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// There is no reason to doubt it.
    Trusted,
    /// It is being read or repaired; the workloads that name it are woken when that ends.
    UnderWay,
    /// It is damaged and could not be repaired, or could not be read. Tried again by itself.
    Failed {
        /// The cause chain.
        message: String,
        /// How many times in a row.
        failures: u32,
        /// When it is tried again, from now.
        retry_in: Duration,
    },
}

/// Which images are in doubt.
pub(crate) struct ImageChecks {
    state: Mutex<State>,
}

struct State {
    boot: Boot,
    /// By normalised reference: a start failed.
    suspects: HashSet<String>,
    /// Suspected and found sound: the failure has another reason.
    cleared: HashSet<String>,
    running: HashSet<String>,
    failed: HashMap<String, Failure>,
}

/// A check that found what could not be put right.
struct Failure {
    /// The cause chain.
    message: String,
    /// How many in a row.
    count: u32,
    /// When it is tried again.
    next: Instant,
    /// What is damaged is not needed to run containers.
    usable: bool,
}

impl ImageChecks {
    /// Compares this boot with what the last run of the agent left in `file`.
    pub(crate) fn load(file: PathBuf, boot_id: &str) -> Self {
        let boot = Boot::load(file, boot_id);
        if boot.is_unclean() {
            tracing::warn!("the node was not shut down in order: images are checked before their first use");
        }
        Self {
            state: Mutex::new(State {
                boot,
                suspects: HashSet::new(),
                cleared: HashSet::new(),
                running: HashSet::new(),
                failed: HashMap::new(),
            }),
        }
    }

    /// The agent stops in order.
    pub(crate) fn orderly_stop(&self) {
        self.lock().boot.orderly_stop();
    }

    /// A container could not be started: its image is checked if the reason may be damage.
    pub(crate) fn start_failed(&self, reference: &str, reason: &str) {
        let Ok(name) = normalize(reference) else { return };
        let mut state = self.lock();
        if shows_damage(reason) && !state.cleared.contains(&name) {
            state.suspects.insert(name);
        }
    }

    /// A container ended by itself with `code` after `ran`, and `failures` before it did in a row: its image is checked
    /// if damage may be the reason. A program that cannot be executed is, to who started it, one that ends at once.
    pub(crate) fn ended(&self, reference: &str, code: u32, ran: Duration, failures: u32) {
        let at_once = code != 0 && ran < AT_ONCE;
        if !at_once || (failures < IN_A_ROW && !DAMAGED_CODES.contains(&code)) {
            return;
        }
        let Ok(name) = normalize(reference) else { return };
        let mut state = self.lock();
        if !state.cleared.contains(&name) {
            state.suspects.insert(name);
        }
    }

    /// Whether there is no reason to doubt the image of that (not normalised) reference.
    pub(crate) fn trusts(&self, reference: &str) -> bool {
        normalize(reference).is_ok_and(|name| {
            let state = self.lock();
            !state.suspects.contains(&name) && !state.boot.doubts(&name)
        })
    }

    /// Whether the image may be used; begins to check it if it is in doubt. Asking again is free.
    pub(crate) fn look(&self, ctx: &Arc<Context>, user: &Workload, fetch: &Fetch) -> Check {
        let Ok(name) = normalize(&fetch.reference) else { return Check::Trusted };
        let mut state = self.lock();
        if !state.suspects.contains(&name) && !state.boot.doubts(&name) {
            return Check::Trusted;
        }
        if state.running.contains(&name) {
            return Check::UnderWay;
        }
        let failures = match state.failed.get(&name) {
            // Who found that tries again.
            Some(Failure { usable: true, .. }) => return Check::Trusted,
            Some(Failure { message, count, next, .. }) => {
                let retry_in = next.saturating_duration_since(Instant::now());
                if !retry_in.is_zero() {
                    return Check::Failed { message: message.clone(), failures: *count, retry_in };
                }
                *count
            }
            None => 0,
        };
        state.running.insert(name.clone());
        drop(state);
        let (checked, user, fetch) = (ctx.clone(), user.clone(), fetch.clone());
        ctx.pulls.spawn(async move { checked.image_checks.check(&checked, &user, &fetch, name, failures).await });
        Check::UnderWay
    }

    /// Checks and repairs. What may be used as it is wakes nobody who would ask again, so it is tried again from here.
    async fn check(&self, ctx: &Context, user: &Workload, fetch: &Fetch, name: String, mut failures: u32) {
        loop {
            let outcome = repair(ctx, user, fetch, &name).await;
            let retry = {
                let mut state = self.lock();
                state.running.remove(&name);
                match outcome {
                    Ok(()) => {
                        state.suspects.remove(&name);
                        state.failed.remove(&name);
                        state.boot.trust(&name);
                        state.cleared.insert(name.clone());
                        None
                    }
                    Err((message, usable)) => {
                        failures = failures.saturating_add(1);
                        let delay = Backoff::RETRY.jittered(failures);
                        let failure = Failure { message, count: failures, next: Instant::now() + delay, usable };
                        state.failed.insert(name.clone(), failure);
                        Some((delay, usable))
                    }
                }
            };
            ctx.pulls.tell(&fetch.reference);
            let Some((delay, usable)) = retry else { return };
            tokio::time::sleep(delay).await;
            if !usable {
                return ctx.pulls.tell(&fetch.reference);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the image, and makes it whole. A failure says whether the image may be used nevertheless: a layer that is
/// damaged in the content store is unpacked already, and a node without a network has nothing better.
async fn repair(ctx: &Context, user: &Workload, fetch: &Fetch, name: &str) -> Result<(), (String, bool)> {
    let images = &ctx.drivers.images;
    let started = Instant::now();
    let damage = images.verify(name).await.map_err(|error| (format!("checking {name}: {}", chain(&error)), false))?;
    if damage.is_empty() {
        tracing::info!(reference = name, took = ?started.elapsed(), "checked image: sound");
        return Ok(());
    }
    let found = describe(&damage);
    tracing::warn!(reference = name, "image is damaged: {found}");
    ctx.event(user, EventType::Warning, reasons::IMAGE_DAMAGED, format!("Image {name} is damaged: {found}")).await;
    let repaired = images.repair(fetch, &damage, Arc::new(|_| {})).await;
    if let Err(error) = repaired {
        let usable = damage.iter().all(|damage| matches!(damage, Damage::Blob { layer: true, .. }));
        let message = format!("{name} is damaged ({found}) and cannot be repaired: {}", chain(&error));
        if usable {
            tracing::warn!(reference = name, "used as it is unpacked until it can be repaired: {message}");
        }
        return Err((message, usable));
    }
    tracing::info!(reference = name, took = ?started.elapsed(), "repaired image");
    ctx.metrics.repairs.with_label_values(&["image"]).inc();
    ctx.event(user, EventType::Normal, reasons::IMAGE_REPAIRED, format!("Repaired image {name}")).await;
    Ok(())
}

/// The first of the damage, and how much more there is.
fn describe(damage: &[Damage]) -> String {
    let first = match damage.first() {
        None => return String::new(),
        Some(Damage::Blob { digest, problem, .. }) => format!("blob {digest}: {problem}"),
        Some(Damage::Snapshot { name, problem }) => format!("unpacked layer {name}: {problem}"),
    };
    match damage.len() {
        1 => first,
        more => format!("{first}, and {} more", more - 1),
    }
}

/// What the kernel or the OCI runtime says of torn, empty or missing files.
fn shows_damage(reason: &str) -> bool {
    const SIGNS: [&str; 8] = [
        "exec format error",
        "input/output error",
        "structure needs cleaning",
        "bad message",
        "stale file handle",
        "executable file not found",
        "no such file or directory",
        "accessing a corrupted shared library",
    ];
    let reason = reason.to_lowercase();
    SIGNS.iter().any(|sign| reason.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_damage_can_have() {
        for (reason, expected) in [
            ("starting container x: exec /bin/app: exec format error", true),
            ("exec: \"/bin/app\": stat /bin/app: no such file or directory", true),
            ("mount overlay: Structure needs cleaning", true),
            ("exec: \"/bin/app\": permission denied", false),
            ("securityContext.runAsUser: no such user", false),
            ("containerd does not answer", false),
        ] {
            assert_eq!(shows_damage(reason), expected, "{reason}");
        }
    }
}
