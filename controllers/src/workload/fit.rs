//! Whether the requests of a Workload fit onto the node, beside those that are there.
//!
//! As the kubelet does: what is requested is set aside, whatever is used, and a Workload that does not fit waits. One that
//! has its place keeps it, over restarts of the agent too, until it is stopped, has ended or is deleted, or one of higher
//! priority does not fit beside it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use nodelet_crds::common::{condition_type, find_condition};
use nodelet_crds::reasons;
use nodelet_crds::workload::{Container, ContainerRestartPolicy, ResourceAmounts, Workload, WorkloadPhase};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::eviction::Evicted;

mod preempt;

use preempt::Holder;

/// CPU and memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// CPU time in thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Amounts {
    fn and(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }

    /// What is left of it without `other`.
    pub fn without(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

/// Whether the node has room for a Workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// It has no place, and what it lacks for one.
    pub shortage: Option<Shortage>,
    /// It has one, but requests more by now, and what it lacks for that.
    pub resize: Option<Shortage>,
}

/// The Workloads that were given their place. A sandbox says the same, but is made later, and is gone between two
/// revisions.
#[derive(Debug, Default)]
pub struct Places(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What is set aside for each, by uid.
    given: HashMap<String, Amounts>,
    /// Those whose place others still have to leave: their uids, and what is lacked until then.
    claims: HashMap<String, (Vec<String>, Shortage)>,
}

impl Places {
    /// Gives the Workload its place, or says what it lacks. May be called again: who has a place keeps it, also while it
    /// requests more than there is room for. Those of lower priority are told to go where that makes room.
    pub fn take(&self, ctx: &Context, object: &Workload) -> Fit {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let mut state = self.lock();
        let State { given, claims } = &mut *state;
        if !wants(object) {
            given.remove(&uid);
            claims.remove(&uid);
            return Fit::default();
        }
        let workloads = ctx.stores.workloads.state();
        given.retain(|uid, _| workloads.iter().any(|w| w.metadata.uid.as_ref() == Some(uid)));
        if let Some((leaving, shortage)) = claims.get(&uid) {
            if leaving.iter().any(|uid| !ctx.sandboxes.of_workload(uid).is_empty()) {
                return Fit { shortage: Some(*shortage), resize: None };
            }
            claims.remove(&uid);
        }
        let room = Room::see(ctx, object, &workloads, given);
        let fit = room.judge();
        match (fit.shortage, fit.resize) {
            (None, None) => {
                given.insert(uid, room.wanted);
            }
            (None, Some(_)) => {
                given.entry(uid).or_insert_with(|| allocated(object));
            }
            (Some(shortage), _) => {
                if let Some(victims) = room.victims(priority(object)) {
                    // From now on the room is this one's, although it is not free yet.
                    given.insert(uid.clone(), room.wanted);
                    given.retain(|uid, _| victims.iter().all(|victim| victim.uid != *uid));
                    claims.insert(uid, (victims.iter().map(|victim| victim.uid.clone()).collect(), shortage));
                    tell(ctx, object, &victims);
                }
            }
        }
        fit
    }

    /// Takes the place of a Workload away again that cannot run as it is declared. What runs of it still counts.
    pub fn leave(&self, object: &Workload) {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.lock();
        state.given.remove(uid);
        state.claims.remove(uid);
    }

    /// What the Workload would lack now; nothing is given, and nobody told to go.
    pub fn look(&self, ctx: &Context, object: &Workload) -> Fit {
        Room::see(ctx, object, &ctx.stores.workloads.state(), &self.lock().given).judge()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those who have to go for `object`.
fn tell(ctx: &Context, object: &Workload, victims: &[Holder]) {
    let message =
        format!("Workload {} of priority {} needs its place", crate::image_users::title(object), priority(object));
    for victim in victims {
        tracing::warn!(workload = victim.title, "pre-empted: {message}");
        if let Some(victim) = ctx.workload_by_uid(&victim.uid) {
            let why = Evicted { reason: reasons::PREEMPTED, message: message.clone() };
            ctx.evictions.evict(&victim, why);
        }
    }
}

fn priority(object: &Workload) -> i32 {
    object.spec.priority.unwrap_or_default()
}

/// The room on the node, as one Workload sees it.
struct Room {
    wanted: Amounts,
    /// What is set aside for it; `None` if it has no place.
    own: Option<Amounts>,
    others: Vec<Holder>,
    allocatable: Amounts,
}

impl Room {
    fn see(ctx: &Context, object: &Workload, workloads: &[Arc<Workload>], given: &HashMap<String, Amounts>) -> Self {
        let set_aside = |w: &Workload| {
            let uid = w.metadata.uid.as_deref().unwrap_or_default();
            let known = given.get(uid).copied().filter(|_| wants(w));
            known.or_else(|| (!ctx.sandboxes.of_workload(uid).is_empty()).then(|| allocated(w)))
        };
        let holder = |w: &Arc<Workload>| {
            Some(Holder {
                amounts: set_aside(w).filter(|amounts| *amounts != Amounts::default())?,
                uid: w.metadata.uid.clone().unwrap_or_default(),
                title: crate::image_users::title(w),
                priority: priority(w),
            })
        };
        let others = workloads.iter().filter(|w| w.metadata.uid != object.metadata.uid);
        Self {
            wanted: requests(object),
            own: set_aside(object),
            others: others.filter_map(holder).collect(),
            allocatable: ctx.settings.allocatable(),
        }
    }

    fn judge(&self) -> Fit {
        if self.own.is_some_and(|own| self.wanted.without(own) == Amounts::default()) {
            return Fit::default();
        }
        let others: Vec<Amounts> = self.others.iter().map(|holder| holder.amounts).collect();
        let lacks = judge(self.wanted, &others, self.allocatable);
        if self.own.is_some() { Fit { resize: lacks, shortage: None } } else { Fit { shortage: lacks, resize: None } }
    }

    fn victims(&self, priority: i32) -> Option<Vec<Holder>> {
        preempt::victims(&self.others, priority, |rest| judge(self.wanted, rest, self.allocatable).is_none())
    }
}

/// Whether it is to run, and has not ended for good.
fn wants(object: &Workload) -> bool {
    let phase = object.status.as_ref().and_then(|status| status.phase);
    let ended = matches!(phase, Some(WorkloadPhase::Succeeded | WorkloadPhase::Failed));
    !object.spec.stopped && object.metadata.deletion_timestamp.is_none() && !ended
}

/// What a Workload lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    wanted: Amounts,
    taken: Amounts,
    /// How many Workloads have taken it.
    by: usize,
    allocatable: Amounts,
}

impl Shortage {
    /// Nobody has to go for it: the node is too small.
    pub fn is_for_ever(&self) -> bool {
        self.wanted.without(self.allocatable) != Amounts::default()
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.allocatable.without(self.taken);
        let (mut parts, cpu, memory) = (Vec::new(), |m: u64| format!("{m}m"), |b: u64| format!("{}Mi", b >> 20));
        if self.wanted.cpu_millis > left.cpu_millis {
            let [wanted, left, all] = [self.wanted.cpu_millis, left.cpu_millis, self.allocatable.cpu_millis].map(cpu);
            parts.push(format!("requests {wanted} of CPU where {left} of {all} are left"));
        }
        if self.wanted.memory_bytes > left.memory_bytes {
            let bytes = [self.wanted.memory_bytes, left.memory_bytes, self.allocatable.memory_bytes];
            let [wanted, left, all] = bytes.map(memory);
            parts.push(format!("requests {wanted} of memory where {left} of {all} are left"));
        }
        write!(f, "{}", parts.join(" and "))?;
        match (self.is_for_ever(), self.by) {
            (true, _) => write!(f, "; the node is too small for it"),
            (false, 1) => write!(f, "; a Workload has requested the rest"),
            (false, by) => write!(f, "; {by} Workloads have requested the rest"),
        }
    }
}

fn judge(wanted: Amounts, others: &[Amounts], allocatable: Amounts) -> Option<Shortage> {
    let taken = others.iter().fold(Amounts::default(), |sum, amounts| sum.and(*amounts));
    // What is not requested is not judged, also where the node has none left.
    let lacks = |wanted: u64, taken: u64, all: u64| wanted > 0 && taken.saturating_add(wanted) > all;
    let lacking = lacks(wanted.cpu_millis, taken.cpu_millis, allocatable.cpu_millis)
        || lacks(wanted.memory_bytes, taken.memory_bytes, allocatable.memory_bytes);
    lacking.then_some(Shortage { wanted, taken, by: others.len(), allocatable })
}

/// What a Workload requests: all containers and sidecars together, or an init container that needs more, beside the
/// sidecars before it. A limit without a request requests as much.
pub fn requests(object: &Workload) -> Amounts {
    sum(object, of)
}

/// What the node had set aside for it when its status was written.
fn allocated(object: &Workload) -> Amounts {
    let status = object.status.as_ref();
    let all = || status.into_iter().flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses));
    sum(object, |container| {
        let known = all().find(|status| status.name == container.name).and_then(|c| c.allocated_resources.as_ref());
        known.map_or_else(|| of(container), |amounts| read([Some(amounts), None]))
    })
}

fn sum(object: &Workload, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let (mut sidecars, mut largest) = (Amounts::default(), Amounts::default());
    for container in &object.spec.init_containers {
        if container.restart_policy == Some(ContainerRestartPolicy::Always) {
            sidecars = sidecars.and(of(container));
        } else {
            largest = largest.or(sidecars.and(of(container)));
        }
    }
    object.spec.containers.iter().fold(sidecars, |sum, container| sum.and(of(container))).or(largest)
}

/// What one container requests. A quantity that cannot be read counts as none; it is refused elsewhere.
pub fn of(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    read(resources.map_or([None, None], |resources| [resources.requests.as_ref(), resources.limits.as_ref()]))
}

/// The first that names each.
fn read(amounts: [Option<&ResourceAmounts>; 2]) -> Amounts {
    let cpu = |of: &ResourceAmounts| of.cpu.as_ref()?.milli_cpu().ok();
    let memory = |of: &ResourceAmounts| of.memory.as_ref()?.bytes().ok();
    Amounts {
        cpu_millis: amounts.into_iter().flatten().find_map(cpu).unwrap_or(0),
        memory_bytes: amounts.into_iter().flatten().find_map(memory).unwrap_or(0),
    }
}

/// Whether the Workload waits for others to leave, to start or to get more.
pub fn is_waiting(object: &Workload) -> bool {
    let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let has = |type_, reason| find_condition(conditions, type_).is_some_and(|condition| condition.reason == reason);
    has(condition_type::READY, reasons::INSUFFICIENT_RESOURCES)
        || has(condition_type::RESIZE_PENDING, reasons::DEFERRED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(cpu_millis: u64, mib: u64) -> Amounts {
        Amounts { cpu_millis, memory_bytes: mib << 20 }
    }

    #[test]
    fn requests_are_summed_as_kubernetes_does() {
        let container = |cpu: &str, policy: &str| {
            let mut container = serde_json::json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
            if !policy.is_empty() {
                container["restartPolicy"] = policy.into();
            }
            container
        };
        for (init, containers, expected) in [
            (vec![], vec![], amounts(0, 0)),
            (vec![], vec![container("100m", ""), container("1", "")], amounts(1100, 2)),
            (vec![container("2", "")], vec![container("1", "")], amounts(2000, 1)),
            (vec![container("1", "Always"), container("2", "")], vec![container("1", "")], amounts(3000, 2)),
            (vec![container("2", ""), container("1", "Always")], vec![container("500m", "")], amounts(2000, 2)),
        ] {
            let object = serde_json::json!({
                "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "w"},
                "spec": {"containers": containers, "initContainers": init},
            });
            assert_eq!(requests(&serde_json::from_value(object.clone()).unwrap()), expected, "{object}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_numbers() {
        let all = amounts(2000, 1024);
        for (wanted, others, expected) in [
            (amounts(2000, 1024), vec![], None),
            (amounts(0, 0), vec![amounts(3000, 2000)], None),
            (amounts(0, 24), vec![amounts(3000, 1000)], None),
            (
                amounts(1500, 1),
                vec![amounts(600, 0)],
                Some("requests 1500m of CPU where 1400m of 2000m are left; a Workload has requested the rest"),
            ),
            (
                amounts(1, 512),
                vec![amounts(0, 300), amounts(0, 300)],
                Some("requests 512Mi of memory where 424Mi of 1024Mi are left; 2 Workloads have requested the rest"),
            ),
            (
                amounts(2001, 2048),
                vec![],
                Some(
                    "requests 2001m of CPU where 2000m of 2000m are left and requests 2048Mi of memory where 1024Mi of \
                     1024Mi are left; the node is too small for it",
                ),
            ),
        ] {
            assert_eq!(judge(wanted, &others, all).map(|s| s.to_string()).as_deref(), expected);
        }
    }
}
