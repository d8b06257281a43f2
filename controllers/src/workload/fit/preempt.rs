//! Who makes room for a Workload of higher priority. Pure.

use std::cmp::Reverse;

use super::Amounts;

/// A Workload that has its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) uid: String,
    pub(super) title: String,
    pub(super) priority: i32,
    pub(super) amounts: Amounts,
}

/// Those of lower priority that have to go so that `fits` holds without them: the lowest first, of equal ones the
/// greatest, and nobody in vain. `None` if that is not enough.
pub(super) fn victims(holders: &[Holder], priority: i32, fits: impl Fn(&[Amounts]) -> bool) -> Option<Vec<Holder>> {
    let mut lower: Vec<&Holder> =
        holders.iter().filter(|h| h.priority < priority && h.amounts != Amounts::default()).collect();
    lower
        .sort_by_key(|h| (h.priority, Reverse(h.amounts.memory_bytes), Reverse(h.amounts.cpu_millis), h.title.clone()));
    let enough = |gone: &[&Holder]| {
        let rest = holders.iter().filter(|h| gone.iter().all(|g| g.uid != h.uid)).map(|h| h.amounts);
        fits(&rest.collect::<Vec<_>>())
    };
    let count = (1..=lower.len()).find(|count| enough(&lower[..*count]))?;
    let mut gone = lower[..count].to_vec();
    for at in (0..gone.len()).rev() {
        let kept = gone.remove(at);
        if !enough(&gone) {
            gone.insert(at, kept);
        }
    }
    Some(gone.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_go_and_nobody_in_vain() {
        let holder = |title: &str, priority, cpu_millis| Holder {
            uid: title.to_owned(),
            title: title.to_owned(),
            priority,
            amounts: Amounts { cpu_millis, memory_bytes: 0 },
        };
        let all = [holder("low", -1, 100), holder("small", 0, 200), holder("large", 0, 500), holder("peer", 5, 900)];
        let go = |wanted: u64, priority| {
            let fits = |rest: &[Amounts]| rest.iter().map(|a| a.cpu_millis).sum::<u64>() + wanted <= 1700;
            victims(&all, priority, fits).map(|gone| gone.into_iter().map(|h| h.title).collect::<Vec<_>>())
        };
        assert_eq!(go(100, 5), Some(vec!["low".to_owned()]));
        assert_eq!(go(500, 5), Some(vec!["large".to_owned()]), "the lowest alone is not enough, and not needed then");
        assert_eq!(go(800, 5), Some(vec!["low".to_owned(), "large".to_owned(), "small".to_owned()]));
        assert_eq!(go(801, 5), None);
        assert_eq!(go(801, 6), Some(vec!["peer".to_owned()]), "without it nobody else has to go");
        assert_eq!(go(100, -1), None);
    }
}
