//! Decides which images may go, and in which order.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nodelet_drivers::images::Fetched;
use serde::Serialize;

use super::keeps::Keeps;
use super::uses::Uses;

/// An image that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Its normalised reference.
    pub reference: String,
    /// What the reference points at.
    pub digest: String,
    /// Its compressed size in bytes.
    pub size_bytes: u64,
    /// Since when nobody needs it, as far as is known.
    pub unused_since: Timestamp,
}

/// An image that somebody needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Its normalised reference.
    pub reference: String,
    /// What the reference points at.
    pub digest: String,
    /// Its compressed size in bytes.
    pub size_bytes: u64,
    /// Who needs it.
    pub needed_by: String,
}

/// What may go, first things first, and what may not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) unneeded: Vec<Candidate>,
    pub(super) kept: Vec<Kept>,
}

/// Decides. What fell out of use first goes first; of several, the greatest.
pub(super) fn plan(held: &[Fetched], keeps: &Keeps, uses: &Uses, now: Timestamp, min_age: Duration) -> Plan {
    let mut plan = Plan::default();
    for image in held {
        if let Some(needed_by) = keeps.get(&image.reference) {
            plan.kept.push(Kept {
                reference: image.reference.clone(),
                digest: image.digest.clone(),
                size_bytes: image.size,
                needed_by: needed_by.clone(),
            });
            continue;
        }
        let unused_since = uses.unused_since(&image.reference).unwrap_or(now);
        // A clock that went back makes it younger, never older.
        let age = now.duration_since(unused_since);
        if age < min_age.try_into().unwrap_or(k8s_openapi::jiff::SignedDuration::MAX) {
            plan.kept.push(Kept {
                reference: image.reference.clone(),
                digest: image.digest.clone(),
                size_bytes: image.size,
                needed_by: format!("used until {} s ago", age.as_secs().max(0)),
            });
            continue;
        }
        plan.unneeded.push(Candidate {
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            size_bytes: image.size,
            unused_since,
        });
    }
    plan.unneeded.sort_by(|a, b| {
        let order = a.unused_since.cmp(&b.unused_since).then(b.size_bytes.cmp(&a.size_bytes));
        order.then_with(|| a.reference.cmp(&b.reference))
    });
    plan.kept.sort_by(|a, b| a.reference.cmp(&b.reference));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn image(name: &str, size: u64) -> Fetched {
        Fetched { reference: name.to_owned(), digest: format!("sha256:{name}"), size }
    }

    fn uses(entries: &[(&str, i64)]) -> Uses {
        Uses::of(entries.iter().map(|(name, second)| ((*name).to_owned(), at(*second))))
    }

    #[test]
    fn what_is_needed_stays_and_the_rest_goes_by_age_then_size() {
        let held = [image("needed", 9), image("new", 1), image("old", 1), image("old-big", 5), image("unknown", 1)];
        let keeps = Keeps::from([("needed".to_owned(), "Workload a/b".to_owned())]);
        let uses = uses(&[("new", 50), ("old", 0), ("old-big", 0)]);
        let names = |min_age| {
            let plan = plan(&held, &keeps, &uses, at(100), Duration::from_secs(min_age));
            plan.unneeded.into_iter().map(|c| c.reference).collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["old-big", "old", "new", "unknown"]);
        assert_eq!(names(60), ["old-big", "old"], "what is new, or seen for the first time, is kept");
        assert_eq!(names(1000), Vec::<String>::new());
    }

    #[test]
    fn a_clock_that_went_back_removes_nothing_early() {
        let plan = plan(&[image("a", 1)], &Keeps::new(), &uses(&[("a", 500)]), at(0), Duration::from_secs(10));
        assert_eq!(plan.unneeded, []);
    }

    proptest! {
        #[test]
        fn needed_images_are_never_candidates(
            held in prop::collection::btree_map("[a-f]{1,2}", 0u64..100, 0..12),
            needed in prop::collection::btree_set("[a-f]{1,2}", 0..12),
            since in prop::collection::btree_map("[a-f]{1,2}", 0i64..200, 0..12),
            now in 0i64..200,
            min_age in 0u64..100,
        ) {
            let held: Vec<_> = held.iter().map(|(name, size)| image(name, *size)).collect();
            let keeps: Keeps = needed.iter().map(|name| (name.clone(), "x".to_owned())).collect();
            let uses = Uses::of(since.into_iter().map(|(name, second)| (name, at(second))));
            let plan = plan(&held, &keeps, &uses, at(now), Duration::from_secs(min_age));
            prop_assert!(plan.unneeded.iter().all(|c| !needed.contains(&c.reference)));
            prop_assert_eq!(plan.unneeded.len() + plan.kept.len(), held.len());
            prop_assert!(plan.unneeded.windows(2).all(|pair| pair[0].unused_since <= pair[1].unused_since));
        }
    }
}
