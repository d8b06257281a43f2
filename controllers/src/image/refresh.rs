//! When a tag is resolved anew: `spec.refreshSeconds`.
//!
//! The time of the last answer is kept in NodeState, so that an agent that restarts, or a thousand nodes that come up
//! together, do not ask a registry all at once. Everything else is of this run.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use nodelet_crds::common::Time;

/// What should have been asked long ago is asked within this time.
const CATCH_UP: Duration = Duration::from_secs(60);

/// The schedule of one Image.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Between two questions.
    pub interval: Duration,
    /// When the registry answered last, in this run.
    pub answered: Option<Instant>,
    /// The same for people and for the next run.
    pub resolved_at: Option<Time>,
    /// What the reference stood for then.
    pub digest: Option<String>,
    /// When it is asked next.
    pub due: Instant,
    /// Questions without an answer, in a row.
    pub failures: u32,
    /// Why there was none: reason constant and message.
    pub problem: Option<(&'static str, String)>,
}

impl Schedule {
    /// A schedule that goes on where `resolved_at` says that an earlier run was. `random` is between 0 and 1.
    pub fn begin(interval: Duration, resolved_at: Option<Time>, clock: Timestamp, now: Instant, random: f64) -> Self {
        // A clock that went backwards says nothing.
        let age = resolved_at.as_ref().and_then(|at| Duration::try_from(clock.duration_since(at.0)).ok());
        let wait = match age {
            Some(age) if age < interval => spread(interval - age, random),
            _ => interval.min(CATCH_UP).mul_f64(random),
        };
        let digest = None;
        Self { interval, answered: None, resolved_at, digest, due: now + wait, failures: 0, problem: None }
    }

    /// The registry said at `at` what the reference stands for.
    pub fn answered(&mut self, digest: String, at: Instant, clock: Timestamp, random: f64) {
        let ago = i64::try_from(at.elapsed().as_secs()).unwrap_or_default();
        self.resolved_at = Some(Time(Timestamp::from_second(clock.as_second().saturating_sub(ago)).unwrap_or(clock)));
        (self.answered, self.digest) = (Some(at), Some(digest));
        self.due = at + spread(self.interval, random);
        (self.failures, self.problem) = (0, None);
    }

    /// It did not say.
    pub fn failed(&mut self, reason: &'static str, message: String, retry_in: Duration, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.problem = Some((reason, message));
        self.due = now + retry_in;
    }
}

/// A tenth earlier or later, so that nodes that began together do not stay together.
fn spread(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(0.9 + 0.2 * random)
}

/// The schedules of all Images, by uid.
#[derive(Default)]
pub struct Refreshes {
    schedules: Mutex<HashMap<String, Schedule>>,
}

impl Refreshes {
    /// The schedule of an Image; none if it asks for none. `begin` makes it when it is new or has another interval.
    pub fn of(&self, uid: &str, seconds: u32, begin: impl FnOnce(Duration) -> Schedule) -> Option<Schedule> {
        let mut schedules = self.schedules.lock().unwrap_or_else(PoisonError::into_inner);
        if seconds == 0 {
            schedules.remove(uid);
            return None;
        }
        let interval = Duration::from_secs(seconds.into());
        match schedules.get(uid) {
            Some(schedule) if schedule.interval == interval => Some(schedule.clone()),
            _ => {
                let schedule = begin(interval);
                schedules.insert(uid.to_owned(), schedule.clone());
                Some(schedule)
            }
        }
    }

    /// Changes a schedule that is there, and answers what it is now.
    pub fn change(&self, uid: &str, change: impl FnOnce(&mut Schedule)) -> Option<Schedule> {
        let mut schedules = self.schedules.lock().unwrap_or_else(PoisonError::into_inner);
        let schedule = schedules.get_mut(uid)?;
        change(schedule);
        Some(schedule.clone())
    }

    /// The Image is gone.
    pub fn forget(&self, uid: &str) {
        self.schedules.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn clock(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_restart_goes_on_where_the_last_run_was() {
        let now = Instant::now();
        for (resolved, random, expected) in [
            (Some(0), 0.5, 3600.0),
            (Some(-1800), 0.5, 1800.0),
            (Some(-1800), 0.0, 1620.0),
            (Some(-1800), 1.0, 1980.0),
            // Long ago, never, or by a clock that was wrong: soon, but not all at once.
            (Some(-100_000), 0.5, 30.0),
            (None, 0.0, 0.0),
            (None, 1.0, 60.0),
            (Some(100_000), 0.5, 30.0),
        ] {
            let resolved = resolved.map(|s| Time(clock(s)));
            let schedule = Schedule::begin(HOUR, resolved.clone(), clock(0), now, random);
            let wait = schedule.due.duration_since(now).as_secs_f64();
            assert!((wait - expected).abs() < 0.001, "{resolved:?} {random}: {wait}");
        }
        let short = Schedule::begin(Duration::from_secs(2), None, clock(0), now, 1.0);
        assert_eq!(short.due - now, Duration::from_secs(2), "catching up takes no longer than the interval");
    }

    #[test]
    fn answers_and_failures_move_the_next_question() {
        let now = Instant::now();
        let mut schedule = Schedule::begin(HOUR, None, clock(0), now, 0.0);
        schedule.failed("PullFailed", "no route".to_owned(), Duration::from_secs(7), now);
        assert_eq!((schedule.failures, schedule.due - now), (1, Duration::from_secs(7)));
        schedule.answered("sha256:1".to_owned(), now, clock(0), 0.5);
        assert_eq!((schedule.failures, schedule.problem.clone(), schedule.due - now), (0, None, HOUR));
        assert_eq!(schedule.digest.as_deref(), Some("sha256:1"));
        assert_eq!(schedule.resolved_at, Some(Time(clock(0))));
    }
}
