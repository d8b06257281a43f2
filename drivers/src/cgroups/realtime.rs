//! Time of real-time processes in version 1. The kernel divides it: a cgroup has at least as much, as a part of its period,
//! as those right below it together, and whatever breaks that is refused.
//!
//! # Contract
//! - A container has what it was given, in its own period. Each cgroup above it, up to our parent, has what those below it
//!   need, as microseconds of a second, so that one file is written and nothing lies between two writes. One that is
//!   declared ([`Budgets`]) has that, whoever needs more.
//! - From the top down while it becomes more, from the bottom up while it becomes less. All that is known is in the
//!   kernel's files: whoever was killed goes on.
//!
//! Facts: kernel documentation `scheduler/sched-rt-group.rst`; `tg_rt_schedulable` in `kernel/sched/rt.c`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::files::Group;
use super::{Error, names, remove, v1};
use crate::failpoint::passed;
use crate::ids::CgroupPath;

const RUNTIME: &str = "cpu.rt_runtime_us";
const PERIOD: &str = "cpu.rt_period_us";
/// In microseconds; also the kernel's own period.
const SECOND: u64 = 1_000_000;

/// Sums of siblings are read and then relied upon, and the tree is the node's.
static TURN: Mutex<()> = Mutex::new(());

/// How long the real-time processes of a cgroup may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Realtime {
    /// In each period, in microseconds.
    pub runtime: u64,
    /// Length of a period, in microseconds.
    pub period: u64,
}

impl Realtime {
    /// As microseconds of a second, rounded up.
    pub fn per_second(self) -> u64 {
        self.runtime.saturating_mul(SECOND).div_ceil(self.period.max(1))
    }
}

/// What is declared of cgroups that have others below them, in microseconds of a second.
pub type Budgets = BTreeMap<CgroupPath, u64>;

/// A cgroup, what it has and what it should have.
struct Step {
    group: Group,
    now: u64,
    wanted: u64,
}

impl v1::Hierarchies {
    /// Whether this node's kernel divides the time of real-time processes.
    pub(super) fn divides_realtime(&self) -> bool {
        self.root.join("cpu").join(RUNTIME).exists()
    }

    /// See [`super::Cgroups::divide_realtime`].
    pub(super) fn divide_realtime(
        &self,
        parent: &CgroupPath,
        path: &CgroupPath,
        least: u64,
        declared: &Budgets,
    ) -> Result<(), Error> {
        let Some(own) = self.group("cpu", path).filter(|own| own.has(RUNTIME)) else { return Ok(()) };
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, declared_here) = (has(&own)?, declared.get(path).copied());
        // What has none has nothing below it that has some. So is nearly every cgroup.
        if now == 0 && least == 0 && declared_here.unwrap_or(0) == 0 {
            return Ok(());
        }
        let wanted = match declared_here {
            Some(declared) => declared,
            None => least.max(sum(&own, None)?),
        };
        let is_more = wanted > now;
        let mut steps = vec![Step { now, group: own, wanted }];
        while let Some(Step { group: below, wanted: needed, .. }) = steps.last()
            && below.path != *parent
            && let Some(group) = below.path.above().and_then(|above| self.group("cpu", &above))
        {
            let (now, taken) = (has(&group)?, sum(&group, Some(below))?);
            let wanted = match declared.get(&group.path) {
                Some(declared) if is_more && taken + needed > *declared => {
                    return Err(lack(group.path.as_str(), *declared, taken, *needed));
                }
                // Lowered by whoever declares it.
                Some(declared) => now.max(*declared),
                None => taken + needed,
            };
            steps.push(Step { group, now, wanted });
        }
        let (more, less) = (|step: &&Step| step.now < step.wanted, |step: &&Step| step.now > step.wanted);
        steps.iter().rev().filter(more).try_for_each(|step| self.take(step))?;
        steps.iter().filter(less).try_for_each(|step| self.take(step))
    }

    /// See [`super::Cgroups::return_realtime`].
    pub(super) fn return_realtime(&self, parent: &CgroupPath) -> Result<(), Error> {
        let Some(top) = self.group("cpu", parent).filter(|top| top.has(RUNTIME)) else { return Ok(()) };
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut limits, mut sandboxes) = (vec![top.clone()], Vec::new());
        while let Some(group) = limits.pop() {
            for child in group.children(|_| true)? {
                match names::may_be_limit(child.path.last()) && !names::is_slice_of_sandbox(&child.path) {
                    true => limits.push(child),
                    false => sandboxes.push(child),
                }
            }
        }
        for group in sandboxes.into_iter().chain([top]) {
            let (now, wanted) = (has(&group)?, sum(&group, None)?);
            // A sandbox without containers is about to have some, or to be removed.
            let is_empty = group.path != *parent && group.children(|_| true)?.is_empty();
            if now > wanted && !is_empty {
                self.take(&Step { group, now, wanted })?;
            }
        }
        Ok(())
    }

    /// What a container has, which has no cgroups of ours below it.
    pub(super) fn set_realtime(&self, path: &CgroupPath, realtime: Option<Realtime>) -> Result<(), Error> {
        let Some(group) = self.group("cpu", path).filter(|group| group.has(RUNTIME)) else {
            return match realtime {
                None => Ok(()),
                Some(_) => Err(Error::Unsupported { path: path.to_string(), limit: "cpu.realtime", needs: NEEDS }),
            };
        };
        let Realtime { runtime, period } = realtime.unwrap_or(Realtime { runtime: 0, period: SECOND });
        let mut files = [(PERIOD, period), (RUNTIME, runtime)];
        // In between it has no more than before and after, taken together.
        if group.read_number(PERIOD)?.is_some_and(|now| now > period) {
            files.reverse();
        }
        files.into_iter().try_for_each(|(file, value)| match group.set(file, &value.to_string()) {
            Err(Error::Io { source, path, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                let doing =
                    "taking the time from its real-time processes, which have to end or change their class first";
                Err(Error::Io { path, doing: doing.to_owned(), source })
            }
            result => result,
        })
    }

    /// Carries out a step. The kernel counts a cgroup for some milliseconds after it was removed, and says no more than that
    /// the number is invalid.
    fn take(&self, step: &Step) -> Result<(), Error> {
        let mut attempt = 0;
        loop {
            match give(&step.group, step.wanted) {
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                    let lacks = self.lacks(step)?;
                    let is_so = matches!(lacks, Error::NoRealtime { has, taken, wanted, .. } if taken + wanted > has);
                    if is_so || attempt > remove::ATTEMPTS {
                        return Err(lacks);
                    }
                    remove::pause(attempt);
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Why a step could not be carried out.
    fn lacks(&self, step: &Step) -> Result<Error, Error> {
        if step.wanted < step.now {
            return Ok(lack(step.group.path.as_str(), step.wanted, 0, sum(&step.group, None)?));
        }
        let above = step.group.path.above();
        let dir = step.group.dir.parent().unwrap_or(&self.root).to_owned();
        let group = Group { path: above.clone().unwrap_or_else(|| step.group.path.clone()), dir };
        let taken = sum(&group, Some(&step.group))?;
        Ok(lack(above.as_ref().map_or("/", |path| path.as_str()), has(&group)?, taken, step.wanted))
    }
}

/// What is missing where there is no such file.
pub(super) const NEEDS: &str = "cgroup version 1 and a kernel with CONFIG_RT_GROUP_SCHED";

/// What decides how much a cgroup has.
pub(super) fn source(path: &str) -> &'static str {
    match path.rsplit('/').next() {
        Some("") => "the node's kernel.sched_rt_runtime_us",
        Some(name) if names::may_be_limit(name) => "spec.cpu.realtime of the ResourceLimit",
        _ => "its cpu.rt_runtime_us",
    }
}

fn lack(path: &str, has: u64, taken: u64, wanted: u64) -> Error {
    Error::NoRealtime { path: path.to_owned(), has, taken, wanted }
}

/// In microseconds of a second. A cgroup that is gone has nothing.
fn has(group: &Group) -> Result<u64, Error> {
    let (runtime, period) = (group.read_number(RUNTIME)?.unwrap_or(0), group.read_number(PERIOD)?.unwrap_or(SECOND));
    Ok(Realtime { runtime, period }.per_second())
}

/// What those right below it have together, but for one of them.
fn sum(group: &Group, but: Option<&Group>) -> Result<u64, Error> {
    let below = group.children(|_| true)?;
    below.iter().filter(|child| but.is_none_or(|but| but.dir != child.dir)).map(has).sum()
}

fn give(group: &Group, per_second: u64) -> Result<(), Error> {
    // Another one only in a new cgroup, which has no time yet.
    group.set(PERIOD, &SECOND.to_string())?;
    group.write(RUNTIME, &per_second.to_string())?;
    passed("giving time to the real-time processes of a cgroup");
    Ok(())
}

#[cfg(test)]
mod tests;
