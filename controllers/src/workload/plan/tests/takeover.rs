//! StartFirst.

use super::*;

#[test]
fn a_successor_takes_over_once_it_is_healthy() {
    type Case = (&'static str, fn(&mut Desired, &mut Observed), &'static [&'static str]);
    let cases: &[Case] = &[
        ("not long enough", |_, _| {}, &[]),
        (
            "long enough",
            |_, o| o.healthy_for = Some(Duration::from_secs(10)),
            &["take ports", "ask web-0-main-0 Superseded"],
        ),
        (
            "taken over, then no longer ready",
            |_, o| {
                o.healthy_for = None;
                o.serving = None;
                o.sandbox.as_mut().unwrap().ports = vec![(port(), true)];
                o.containers[0].stopping = Some(Duration::from_secs(2));
            },
            &[],
        ),
        (
            "taken over, the old one's grace and drain are over",
            |_, o| {
                o.serving = None;
                o.sandbox.as_mut().unwrap().ports = vec![(port(), true)];
                o.containers[0].stopping = Some(Duration::from_secs(11));
            },
            &["kill web-0-main-0"],
        ),
        (
            "the old one ended by itself: nothing to wait for",
            |_, o| o.containers[0].container.state = exited(1, 0),
            &["remove web-0-main-0", "teardown web-0", "ports"],
        ),
        (
            "a third one is in the way",
            |_, o| {
                let mut third = container("main", 0, running());
                third.sandbox = "web-x".to_owned();
                third.container.id = ContainerId::new("web-x-main-0").unwrap();
                o.containers.push(third);
                o.stale_sandboxes.insert(SandboxId::new("web-x").unwrap());
            },
            &["ask web-x-main-0 SandboxChanged"],
        ),
        (
            "without ports",
            |d, o| {
                d.sandbox.ports.clear();
                o.serving = None;
                o.healthy_for = Some(Duration::from_secs(10));
            },
            &["ask web-0-main-0 Superseded"],
        ),
        (
            "back to what was good, without ports",
            |d, o| {
                d.sandbox.ports.clear();
                o.serving = None;
                o.last_good = Some(SandboxId::new(SANDBOX).unwrap());
            },
            &["ask web-0-main-0 Superseded"],
        ),
        (
            "the image cannot be had",
            |_, o| {
                o.containers.pop();
                o.images.insert("main".into(), SeenImage::Pulling { message: String::new() });
            },
            &[],
        ),
        ("stopped", |d, _| d.intent = Intent::Stop, &["ask web-0-main-0 NotWanted", "ask web-1-main-0 NotWanted"]),
    ];
    for (name, change, expected) in cases {
        let (mut desired, mut observed) = (desired(), healthy());
        desired.update.start_first = true;
        let mut old = container("main", 0, running());
        old.sandbox = OLD_SANDBOX.to_owned();
        old.container.id = ContainerId::new(format!("{OLD_SANDBOX}-main-0")).unwrap();
        old.hash = "h0".to_owned();
        observed.containers.insert(0, old);
        let id = SandboxId::new(OLD_SANDBOX).unwrap();
        observed.stale_sandboxes.insert(id.clone());
        observed.serving = Some(id.clone());
        observed.last_good = Some(id);
        observed.sandbox.as_mut().unwrap().ports.clear();
        observed.healthy_for = Some(Duration::from_secs(9));
        change(&mut desired, &mut observed);
        assert_eq!(steps(&desired, &observed), *expected, "{name}");
    }
}
