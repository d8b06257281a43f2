//! Sidecars: started in turn, kept beside the containers, stopped after them.

use super::*;

fn with_sidecars() -> (Desired, Observed) {
    let (mut desired, mut observed) = (desired(), healthy());
    desired.init =
        ["first", "plain", "second"].map(|name| ContainerWish { sidecar: name != "plain", ..wish(name) }).into();
    observed.containers.push(sidecar("first", 0, running()));
    observed.containers.push(SeenContainer { init: true, ..container("plain", 0, exited(0, 9)) });
    observed.containers.push(sidecar("second", 2, running()));
    for name in ["first", "plain", "second", "main"] {
        observed.images.insert(name.into(), present());
    }
    (desired, observed)
}

fn sidecar(name: &str, place: u32, state: TaskState) -> SeenContainer {
    SeenContainer { init: true, sidecar: Some(place), ..container(name, 0, state) }
}

fn end_of(observed: &mut Observed, name: &str, code: u32) {
    observed.containers.iter_mut().filter(|c| c.name == name).for_each(|c| c.container.state = exited(code, 15));
}

#[test]
fn one_change_on_a_workload_with_sidecars() {
    let cases: &[Case] = &[
        ("nothing", |_, _| {}, &[]),
        (
            "a sidecar ended well: restarted",
            |_, o| end_of(o, "first", 0),
            &["start first 1 r1 f1", "remove web-1-first-0"],
        ),
        (
            "a sidecar ended, and the policy is Never: restarted all the same",
            |d, o| {
                d.restart = RestartPolicy::Never;
                end_of(o, "first", 1);
            },
            &["start first 1 r1 f1", "remove web-1-first-0"],
        ),
        (
            "a sidecar and the container ended: nobody waits for the other",
            |_, o| {
                end_of(o, "first", 1);
                end_of(o, "main", 1);
            },
            &["start first 1 r1 f1", "remove web-1-first-0", "start main 1 r1 f1", "remove web-1-main-0"],
        ),
        ("a sidecar failed its probe", |_, o| o.containers[1].health.failed = true, &["ask web-1-first-0 Unhealthy"]),
        ("its limits", |d, _| d.init[0].limits.pids_max = Some(9), &["limits web-1-first-0"]),
        ("its configuration", |d, _| d.init[2].hash = "h2".into(), &["ask web-1-second-0 Changed"]),
        (
            "stopped: the container first",
            |d, _| d.intent = Intent::Stop,
            &["ask web-1-main-0 NotWanted", "remove web-1-plain-0"],
        ),
        (
            "stopped, the container ended: the last sidecar",
            |d, o| {
                d.intent = Intent::Stop;
                end_of(o, "main", 143);
            },
            &["ask web-1-second-0 NotWanted", "remove web-1-main-0", "remove web-1-plain-0"],
        ),
        (
            "stopped, the last sidecar ended: the one before",
            |d, o| {
                d.intent = Intent::Stop;
                end_of(o, "main", 143);
                end_of(o, "second", 143);
            },
            &["ask web-1-first-0 NotWanted", "remove web-1-main-0", "remove web-1-plain-0", "remove web-1-second-0"],
        ),
        (
            "stopped, and the last sidecar does not end",
            |d, o| {
                d.intent = Intent::Delete;
                o.containers.retain(|c| c.sidecar.is_some());
                o.containers[1].stopping = Some(Duration::from_secs(10));
            },
            &["kill web-1-second-0"],
        ),
        (
            "ended well: the sidecars are stopped, the last first",
            |d, o| {
                d.restart = RestartPolicy::Never;
                end_of(o, "main", 0);
            },
            &["ask web-1-second-0 Finished"],
        ),
        (
            "ended well and told",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.containers.retain(|c| c.name == "first");
                o.remembered.insert("main".into(), Remembered { exit_code: Some(0), ..Remembered::default() });
            },
            &["ask web-1-first-0 Finished"],
        ),
        (
            "ended well and told, and the sidecars ended too",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.remembered.insert("main".into(), Remembered { exit_code: Some(0), ..Remembered::default() });
                for name in ["main", "first", "second"] {
                    end_of(o, name, 0);
                }
            },
            &[
                "remove web-1-main-0",
                "remove web-1-first-0",
                "remove web-1-plain-0",
                "remove web-1-second-0",
                "teardown web-1",
            ],
        ),
        (
            "a sidecar that fails uses up no backoffLimit",
            |d, o| {
                d.restart = RestartPolicy::OnFailure;
                d.batch.backoff_limit = Some(0);
                o.containers[1].failures = 5;
                end_of(o, "first", 1);
            },
            &[],
        ),
        (
            "an init container failed for good: nothing is left to serve",
            |d, o| {
                d.restart = RestartPolicy::Never;
                o.containers.retain(|c| ["first", "plain"].contains(&c.name.as_str()));
                end_of(o, "plain", 1);
            },
            &["ask web-1-first-0 Finished"],
        ),
        (
            "after a boot: everything anew, in order",
            |_, o| {
                o.sandbox = None;
                o.containers.iter_mut().for_each(|c| c.container.state = TaskState::Absent);
            },
            &["remove web-1-main-0", "remove web-1-first-0", "remove web-1-plain-0", "remove web-1-second-0"],
        ),
    ];
    for (name, change, expected) in cases {
        let (mut desired, mut observed) = with_sidecars();
        change(&mut desired, &mut observed);
        assert_eq!(steps(&desired, &observed), *expected, "{name}");
    }
}

#[test]
fn the_next_init_container_waits_until_a_sidecar_is_started() {
    let (desired, mut observed) = with_sidecars();
    observed.containers.clear();
    assert_eq!(steps(&desired, &observed), ["start first 0 r0 f0"]);
    let mut first = sidecar("first", 0, running());
    first.health.started = false;
    first.health.ready = false;
    observed.containers.push(first);
    assert_eq!(steps(&desired, &observed), [""; 0]);
    let held = plan(&desired, &observed, now());
    assert_eq!(held.holds[0].message, "waits for sidecar first to be started");
    // Started is enough: readiness is waited for by nobody.
    observed.containers[0].health.started = true;
    assert_eq!(steps(&desired, &observed), ["start plain 0 r0 f0"]);
    observed.containers.push(SeenContainer { init: true, ..container("plain", 0, running()) });
    // It ends while the next one works: restarted beside it.
    observed.containers[0].container.state = exited(1, 15);
    assert_eq!(steps(&desired, &observed), ["start first 1 r1 f1", "remove web-1-first-0"]);
    observed.containers[0].container.state = running();
    observed.containers[1].container.state = exited(0, 1);
    assert_eq!(steps(&desired, &observed), ["start second 0 r0 f0"]);
    observed.containers.push(sidecar("second", 2, running()));
    assert_eq!(steps(&desired, &observed), ["start main 0 r0 f0"]);
}

#[test]
fn an_old_revision_leaves_in_order_too() {
    let (desired, mut observed) = with_sidecars();
    observed.sandbox = None;
    observed.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
    for c in &mut observed.containers {
        c.sandbox = OLD_SANDBOX.to_owned();
        c.container.id = ContainerId::new(format!("{OLD_SANDBOX}-{}-0", c.name)).unwrap();
    }
    assert_eq!(steps(&desired, &observed), ["ask web-0-main-0 SandboxChanged", "remove web-0-plain-0"]);
    observed.containers.retain(|c| c.sidecar.is_some());
    assert_eq!(steps(&desired, &observed), ["ask web-0-second-0 SandboxChanged"]);
}
