//! What runs, and one thing that is not as it should be.

use super::*;

#[test]
fn one_change_on_a_healthy_workload() {
    check(&[
        ("nothing", |_, _| {}, &[]),
        ("stopped", |d, _| d.intent = Intent::Stop, &["ask web-1-main-0 NotWanted"]),
        (
            "stopped, grace over",
            |d, o| {
                d.intent = Intent::Stop;
                o.containers[0].stopping = Some(Duration::from_secs(10));
            },
            &["kill web-1-main-0"],
        ),
        (
            "stopped, asked already",
            |d, o| {
                d.intent = Intent::Stop;
                o.containers[0].stopping = Some(Duration::from_secs(3));
            },
            &[],
        ),
        (
            "deleted and dead",
            |d, o| {
                d.intent = Intent::Delete;
                o.containers[0].container.state = exited(0, 1);
            },
            &["remove web-1-main-0", "teardown web-1"],
        ),
        (
            "first crash: at once, the dead one goes after its successor runs",
            |_, o| o.containers[0].container.state = exited(1, 0),
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "second crash: waits",
            |_, o| {
                o.containers[0].container.state = exited(1, 0);
                o.containers[0].failures = 1;
            },
            &[],
        ),
        (
            "second crash, a second ago",
            |_, o| {
                o.containers[0].container.state = exited(1, 1);
                o.containers[0].failures = 1;
            },
            &["start main 1 r1 f2", "remove web-1-main-0"],
        ),
        (
            "crash after a healthy time",
            |_, o| {
                o.containers[0].container.created_at -= Duration::from_secs(3600);
                o.containers[0].container.state = exited(1, 0);
                o.containers[0].failures = 9;
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "second crash, with a longer first delay: waits",
            |d, o| {
                d.backoff.delays.first = Duration::from_secs(5);
                o.containers[0].container.state = exited(1, 4);
                o.containers[0].failures = 1;
            },
            &[],
        ),
        (
            "ninth crash, with a short longest delay",
            |d, o| {
                d.backoff.delays.max = Duration::from_secs(4);
                o.containers[0].container.state = exited(1, 4);
                o.containers[0].failures = 8;
            },
            &["start main 1 r1 f9", "remove web-1-main-0"],
        ),
        (
            "crash after a time that counts as healthy here",
            |d, o| {
                d.backoff.reset = Duration::from_secs(20);
                o.containers[0].container.created_at = SystemTime::from(now()) - Duration::from_secs(20);
                o.containers[0].container.state = exited(1, 0);
                o.containers[0].failures = 9;
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "the clock went back by years: waits no longer than the delay",
            |_, o| {
                let later = SystemTime::from(now()) + Duration::from_secs(1_000_000_000);
                o.containers[0].container.created_at = later;
                o.containers[0].container.state = TaskState::Exited(Exit { code: 1, at: later, oom_killed: false });
                o.containers[0].failures = 3;
            },
            &[],
        ),
        (
            "task taken away",
            |_, o| o.containers[0].container.state = TaskState::Absent,
            &["remove web-1-main-0", "start main 1 r0 f0"],
        ),
        (
            "half made",
            |_, o| o.containers[0].container.state = TaskState::Created { pid: 7 },
            &["remove web-1-main-0", "start main 1 r0 f0"],
        ),
        ("record taken away", |_, o| o.containers.clear(), &["start main 0 r0 f0"]),
        ("changed", |d, _| d.containers[0].hash = "h2".into(), &["ask web-1-main-0 Changed"]),
        (
            "changed, image not there yet: keeps running",
            |d, o| {
                d.containers[0].hash = "h2".into();
                o.images.insert("main".into(), SeenImage::Pulling { message: String::new() });
            },
            &[],
        ),
        (
            "changed and ended",
            |d, o| {
                d.containers[0].hash = "h2".into();
                o.containers[0].container.state = exited(143, 0);
            },
            &["start main 1 r0 f0", "remove web-1-main-0"],
        ),
        ("limits", |d, _| d.containers[0].limits.pids_max = Some(9), &["limits web-1-main-0"]),
        ("unhealthy", |_, o| o.containers[0].health.failed = true, &["ask web-1-main-0 Unhealthy"]),
        (
            "veth gone",
            |_, o| o.sandbox.as_mut().unwrap().attachments[0].complete = false,
            &["attach default/default", "ports", "files"],
        ),
        ("port element gone", |_, o| o.sandbox.as_mut().unwrap().ports[0].1 = false, &["ports"]),
        ("port no longer wanted", |d, _| d.sandbox.ports.clear(), &["ports"]),
        ("network no longer wanted", |d, _| d.sandbox.attachments.clear(), &["detach default/default", "ports"]),
        (
            "a file changed",
            |_, o| {
                o.outdated_files.insert("conf".into());
            },
            &["files"],
        ),
        (
            "a file changed of which a container is told",
            |d, o| {
                o.outdated_files.insert("conf".into());
                d.containers[0].signal = Some("2".into());
                o.containers[0].heard = Some("1".into());
            },
            &["files", "signal web-1-main-0"],
        ),
        (
            "a container was told of a file",
            |d, o| {
                d.containers[0].signal = Some("2".into());
                o.containers[0].heard = Some("2".into());
            },
            &[],
        ),
        (
            "a container no longer wanted",
            |_, o| o.containers.push(container("extra", 0, running())),
            &["ask web-1-extra-0 NotWanted"],
        ),
        ("a dependency went away: what runs is not touched", |d, _| d.waits.push(wait(About::Dependencies)), &[]),
        (
            "a dependency went away and it crashed: restarted all the same",
            |d, o| {
                d.waits.push(wait(About::Dependencies));
                o.containers[0].container.state = exited(1, 0);
            },
            &["start main 1 r1 f1", "remove web-1-main-0"],
        ),
        (
            "configuration went away and it crashed: held",
            |d, o| {
                d.waits.push(wait(About::Configuration));
                o.containers[0].container.state = exited(1, 0);
            },
            &[],
        ),
        (
            "two attempts: the older goes",
            |_, o| o.containers.push(container("main", 1, running())),
            &["kill web-1-main-0", "remove web-1-main-0"],
        ),
        (
            "another sandbox revision: the old one goes first",
            |_, o| {
                o.sandbox = None;
                o.containers[0].sandbox = OLD_SANDBOX.into();
                o.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
            },
            &["ask web-1-main-0 SandboxChanged"],
        ),
        (
            "another sandbox revision, dead",
            |_, o| {
                o.sandbox = None;
                o.containers[0].sandbox = OLD_SANDBOX.into();
                o.containers[0].container.state = exited(0, 0);
                o.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
            },
            &[
                "remove web-1-main-0",
                "teardown web-0",
                "sandbox",
                "attach default/default",
                "ports",
                "files",
                "start main 0 r0 f0",
            ],
        ),
        (
            "another sandbox revision, and its image is not there: the old one runs on",
            |_, o| {
                o.sandbox = None;
                o.containers[0].sandbox = OLD_SANDBOX.into();
                o.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
                o.images.insert("main".into(), SeenImage::Pulling { message: String::new() });
            },
            &[],
        ),
        (
            "after a reboot",
            |_, o| {
                o.sandbox = None;
                o.containers[0].container.state = TaskState::Absent;
            },
            &["sandbox", "attach default/default", "ports", "files", "remove web-1-main-0", "start main 1 r0 f0"],
        ),
    ]);
}

#[test]
fn what_cannot_be_killed_is_told_and_tried_again() {
    let (mut desired, mut observed) = (desired(), healthy());
    desired.intent = Intent::Stop;
    observed.containers[0].stopping = Some(Duration::from_secs(15));
    assert_eq!(plan(&desired, &observed, now()).holds, []);
    observed.containers[0].stopping = Some(Duration::from_secs(40));
    let told = plan(&desired, &observed, now());
    assert_eq!(told.steps.iter().map(short).collect::<Vec<_>>(), ["kill web-1-main-0"]);
    assert_eq!(told.holds[0].reason, reasons::KILL_FAILED);
    assert!(told.holds[0].message.contains("killed 30 s ago"), "{}", told.holds[0].message);
}

#[test]
fn back_off_says_when_it_looks_again() {
    let mut observed = healthy();
    observed.images.insert("main".into(), present());
    observed.containers[0].container.state = exited(1, 0);
    observed.containers[0].failures = 4;
    let plan = plan(&desired(), &observed, now());
    assert_eq!(plan.steps, []);
    assert_eq!(plan.holds[0].reason, reasons::CRASH_LOOP_BACK_OFF);
    let again = plan.again_in.unwrap();
    assert!(again >= Duration::from_secs(8) && again < Duration::from_secs(9), "{again:?}");
}
