use super::*;

fn sandbox(n: usize) -> SandboxId {
    SandboxId::new(format!("s{n}")).unwrap()
}

fn container(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

fn group() -> CgroupPath {
    CgroupPath::new("/nodelet/s/c").unwrap()
}

/// The shim that a container gets which is made at once.
fn join(shims: &Shims, id: &str, n: usize) -> String {
    shims.join(&container(id), &sandbox(n), &group(), false).shim.clone()
}

#[test]
fn without_a_pool_every_sandbox_has_its_shim() {
    let shims = Shims::new(0, 4);
    assert_eq!(join(&shims, "a", 1), "s1");
    assert_eq!(join(&shims, "b", 2), "s2");
}

#[test]
fn many_at_once_get_shims_for_all_and_go_on_side_by_side() {
    for anchored in [false, true] {
        let shims = Shims::new(10, 4);
        let mut demands: Vec<_> = (0..100).map(|_| shims.demand()).collect();
        let mut places = std::collections::VecDeque::new();
        for n in 0..100 {
            places.push_back(shims.join(&container(&format!("c{n}")), &sandbox(n), &group(), anchored));
            assert!(shims.lock().values().all(|shim| shim.sandboxes.len() <= 10));
            assert!(shims.lock().values().all(|shim| shim.creating <= 1), "two are made in one shim");
            if places.len() == 4 {
                places.pop_front();
                demands.pop();
            }
        }
        assert_eq!(shims.lock().len(), 10);
    }
}

#[test]
fn one_after_the_other_fills_a_shim_before_the_next() {
    let shims = Shims::new(5, 4);
    for n in 0..12 {
        let _demand = shims.demand();
        join(&shims, &format!("c{n}"), n);
        assert_eq!(shims.lock().len(), (n + 1).div_ceil(5));
    }
}

#[test]
fn a_sandbox_stays_together_and_gives_its_place_back() {
    let shims = Shims::new(2, 1);
    let first = join(&shims, "a1", 1);
    assert_eq!(join(&shims, "b", 2), first);
    assert_eq!(join(&shims, "a2", 1), first, "full, but it is in there");
    assert_ne!(join(&shims, "c", 3), first);
    shims.leave(&container("a1"));
    shims.leave(&container("a2"));
    assert_eq!(join(&shims, "d", 4), first);
    assert_eq!(join(&shims, "e", 5), "s3");
    // Its name is in use, and everything is full.
    assert_eq!(join(&shims, "f", 1), "s1-1");
}

#[test]
fn anchors_go_when_they_are_not_needed() {
    let shims = Shims::new(2, 4);
    let of = |id: &str, n: usize| shims.join(&container(id), &sandbox(n), &group(), true).shim.clone();
    let first = of("a", 1);
    assert_eq!(of("b", 2), first);
    let second = of("c", 3);
    assert_ne!(second, first);
    assert_eq!(shims.spare_anchors(), [""; 0]);
    assert!(shims.leave(&container("c")), "its anchor is empty");
    assert_eq!(shims.spare_anchors(), std::slice::from_ref(&second));
    assert_eq!(shims.spare_anchors(), [""; 0], "it is being removed already");
    shims.anchor_gone(&second, false);
    assert_ne!(of("d", 4), second, "one that could not be removed is not used again");
    assert_eq!(shims.spare_anchors(), std::slice::from_ref(&second));
    shims.anchor_gone(&second, true);
    assert!(!shims.has_anchor(&second));
    for id in ["a", "b", "d"] {
        shims.leave(&container(id));
    }
    assert_eq!(shims.spare_anchors().len(), 2, "none is left when the last one has gone");
}

#[test]
fn a_dead_anchor_takes_nobody_and_stays_until_its_members_are_removed() {
    let shims = Shims::new(10, 1);
    let of = |id: &str, n: usize| shims.join(&container(id), &sandbox(n), &group(), true).shim.clone();
    let first = of("a", 1);
    assert_eq!(of("b", 2), first);
    assert_eq!(shims.bury_anchor(&first).len(), 2);
    assert!(shims.is_dead(&first));
    shims.ended(&container("a"), SystemTime::now());
    assert_eq!(shims.bury_anchor(&first), [(container("b"), group())], "a is done");
    assert_ne!(of("a-again", 1), first, "the same sandbox");
    assert_eq!(shims.spare_anchors(), [""; 0]);
    shims.leave(&container("a"));
    shims.leave(&container("b"));
    assert_eq!(shims.spare_anchors(), [first]);
}

#[test]
fn only_who_saw_an_anchor_missing_has_it_made_again() {
    let shims = Shims::new(10, 1);
    let place = shims.join(&container("a"), &sandbox(1), &group(), true);
    let old = place.ready.clone().unwrap();
    old.set(()).unwrap();
    let new = shims.unmake_anchor(&place.shim, &old);
    assert!(!new.initialized());
    assert!(Arc::ptr_eq(&new, &shims.unmake_anchor(&place.shim, &old)), "the second one waits for the first");
}
