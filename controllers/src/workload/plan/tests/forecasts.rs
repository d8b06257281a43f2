//! What plans lead to, when all goes well.

use super::*;
use crate::workload::forecast::{Forecast, forecast};

fn all_of(desired: &Desired, observed: &Observed) -> (Forecast, Vec<String>) {
    let forecast = forecast(desired, observed, now());
    let steps = forecast.steps.iter().map(|expected| short(&expected.step)).collect();
    (forecast, steps)
}

#[test]
fn a_change_is_told_to_its_end() {
    let (mut desired, mut observed) = (desired(), healthy());
    observed.images.insert("main".into(), present());
    assert_eq!(all_of(&desired, &observed).1, [""; 0]);
    desired.containers[0].hash = "h2".to_owned();
    let (forecast, steps) = all_of(&desired, &observed);
    assert_eq!(steps, ["ask web-1-main-0 Changed", "start main 1 r0 f0", "remove web-1-main-0"]);
    assert_eq!((forecast.interrupted, forecast.down_seconds), (vec!["main".to_owned()], Some(10)));
    assert!(forecast.steps[0].what.starts_with("stop container main, which is specified in another way now"));
    // In place: nothing is interrupted.
    desired.containers[0].hash = "h1".to_owned();
    desired.containers[0].limits.pids_max = Some(3);
    let (forecast, steps) = all_of(&desired, &observed);
    assert_eq!((steps, forecast.down_seconds), (vec!["limits web-1-main-0".to_owned()], None));
}

#[test]
fn a_new_workload_is_told_with_its_init_containers_and_sidecars() {
    let mut desired = desired();
    desired.init = vec![wish("init"), ContainerWish { sidecar: true, ..wish("helper") }];
    let mut observed = Observed::default();
    for name in ["init", "helper", "main"] {
        observed.images.insert(name.into(), present());
    }
    let (forecast, steps) = all_of(&desired, &observed);
    assert_eq!(
        steps,
        [
            "sandbox",
            "attach default/default",
            "ports",
            "files",
            "start init 0 r0 f0",
            "start helper 0 r0 f0",
            "start main 0 r0 f0"
        ]
    );
    assert_eq!((forecast.interrupted.len(), forecast.down_seconds), (0, None));
    // And it goes in the other direction.
    let mut seen = healthy();
    seen.containers.push(SeenContainer { init: true, sidecar: Some(1), ..container("helper", 0, running()) });
    desired.intent = Intent::Stop;
    let (forecast, steps) = all_of(&desired, &seen);
    assert_eq!(
        steps,
        [
            "ask web-1-main-0 NotWanted",
            "ask web-1-helper-0 NotWanted",
            "remove web-1-main-0",
            "remove web-1-helper-0",
            "teardown web-1"
        ]
    );
    assert_eq!(forecast.interrupted, ["main"]);
}

#[test]
fn start_first_is_told_as_without_a_break() {
    let (mut desired, mut observed) = (desired(), healthy());
    desired.update.start_first = true;
    observed.images.insert("main".into(), present());
    observed.sandbox = None;
    observed.containers[0].sandbox = OLD_SANDBOX.to_owned();
    observed.containers[0].container.id = ContainerId::new(format!("{OLD_SANDBOX}-main-0")).unwrap();
    let old = SandboxId::new(OLD_SANDBOX).unwrap();
    observed.stale_sandboxes.insert(old.clone());
    observed.serving = Some(old);
    let (forecast, steps) = all_of(&desired, &observed);
    assert_eq!(
        steps,
        [
            "sandbox",
            "attach default/default",
            "files",
            "start main 0 r0 f0",
            "take ports",
            "ask web-0-main-0 Superseded",
            "remove web-0-main-0",
            "teardown web-0"
        ]
    );
    assert_eq!((forecast.interrupted, forecast.down_seconds), (vec!["main".to_owned()], None));
}
