//! Who had to go, why, and when they come back.
//!
//! What the status of a Workload says is taken over by an agent that was not there: it does not bring back at once what
//! its predecessor ended.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use nodelet_crds::common::{condition_type, find_condition};
use nodelet_crds::reasons;
use nodelet_crds::workload::Workload;
use tokio::sync::mpsc;

use crate::backoff::Backoff;

/// How soon one comes back at the earliest: later each time.
const RETURN: Backoff = Backoff { first: Duration::from_secs(10), max: Duration::from_secs(300) };
/// Who was not evicted for so long starts counting anew.
const FORGET: Duration = Duration::from_secs(1800);

/// Why a Workload must not run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    /// A reason constant: [`reasons::EVICTED`] or [`reasons::PREEMPTED`].
    pub reason: &'static str,
    /// The numbers.
    pub message: String,
}

struct Entry {
    /// `None`: it may run again.
    why: Option<Evicted>,
    count: u32,
    since: Instant,
}

impl Entry {
    fn returns_in(&self) -> Duration {
        RETURN.delay(self.count).saturating_sub(self.since.elapsed())
    }
}

/// The Workloads that had to go.
#[derive(Default)]
pub struct Evictions {
    by_uid: Mutex<HashMap<String, Entry>>,
    wake: OnceLock<mpsc::Sender<ObjectRef<Workload>>>,
}

impl Evictions {
    /// Who is told to go, or may come back, is looked at by this way.
    pub fn wake_by(&self, wake: mpsc::Sender<ObjectRef<Workload>>) {
        let _once = self.wake.set(wake);
    }

    /// It must go. Returns how soon it comes back at the earliest.
    pub fn evict(&self, object: &Workload, why: Evicted) -> Duration {
        let uid = object.uid().unwrap_or_default();
        let count = {
            let mut all = self.lock();
            all.retain(|_, entry| entry.why.is_some() || entry.since.elapsed() < FORGET);
            let count = all.get(&uid).map_or(0, |entry| entry.count).saturating_add(1);
            all.insert(uid, Entry { why: Some(why), count, since: Instant::now() });
            count
        };
        self.wake(object);
        RETURN.delay(count)
    }

    /// It is looked at now.
    pub fn wake(&self, object: &Workload) {
        if let Some(wake) = self.wake.get()
            && let Err(error) = wake.try_send(ObjectRef::from_obj(object))
        {
            tracing::debug!("waking an evicted workload: {error}; the audit does");
        }
    }

    /// Why it must not run now; `None` if it may.
    pub fn of(&self, object: &Workload) -> Option<Evicted> {
        let uid = object.uid()?;
        let mut all = self.lock();
        if let Some(entry) = all.get(&uid) {
            return entry.why.clone();
        }
        let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready =
            find_condition(conditions, condition_type::READY).filter(|ready| ready.reason == reasons::EVICTED)?;
        let why = Evicted { reason: reasons::EVICTED, message: ready.message.clone() };
        all.insert(uid, Entry { why: Some(why.clone()), count: 1, since: Instant::now() });
        Some(why)
    }

    /// Lets those run again whose time has come: all that `is_over` says are no longer in the way of anybody.
    pub fn release(&self, is_over: impl Fn(&str, &Evicted) -> bool) -> Vec<String> {
        let mut released = Vec::new();
        for (uid, entry) in self.lock().iter_mut() {
            let waits = entry.why.as_ref().is_some_and(|why| why.reason == reasons::EVICTED);
            let is_due = !waits || entry.returns_in().is_zero();
            if is_due && entry.why.take_if(|why| is_over(uid, why)).is_some() {
                released.push(uid.clone());
            }
        }
        released
    }

    /// Uids of those that must not run now.
    pub fn all(&self) -> Vec<String> {
        self.lock().iter().filter(|(_, entry)| entry.why.is_some()).map(|(uid, _)| uid.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, reason: &str) -> Workload {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "w", "uid": uid},
            "spec": {"containers": []},
            "status": {"conditions": [{
                "type": "Ready", "status": "False", "reason": reason, "message": "numbers",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn who_is_evicted_again_comes_back_later() {
        let evictions = Evictions::default();
        let why = |reason| Evicted { reason, message: String::new() };
        let (a, b) = (object("a", "Running"), object("b", "Running"));
        assert_eq!(evictions.evict(&a, why(reasons::EVICTED)), RETURN.first);
        assert_eq!(evictions.release(|_, _| true), Vec::<String>::new(), "its time has not come");
        assert_eq!(evictions.evict(&a, why(reasons::EVICTED)), 2 * RETURN.first);
        evictions.evict(&b, why(reasons::PREEMPTED));
        assert_eq!(evictions.release(|_, _| false), Vec::<String>::new());
        assert_eq!(evictions.release(|_, _| true), ["b"]);
        assert_eq!(evictions.all(), ["a"]);
    }

    #[test]
    fn the_status_tells_a_new_agent() {
        let evictions = Evictions::default();
        assert_eq!(evictions.of(&object("a", "Running")), None);
        assert_eq!(evictions.of(&object("b", reasons::EVICTED)).unwrap().message, "numbers");
        assert_eq!(evictions.all(), ["b"]);
    }
}
