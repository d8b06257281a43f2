//! Sandboxes, init containers and containers in their order.

use super::*;

#[test]
fn a_new_workload_is_made_in_order() {
    let mut observed = Observed::default();
    assert_eq!(steps(&desired(), &observed), ["sandbox", "attach default/default", "ports", "files"]);
    observed.images.insert("main".into(), present());
    assert_eq!(
        steps(&desired(), &observed),
        ["sandbox", "attach default/default", "ports", "files", "start main 0 r0 f0"]
    );
}

#[test]
fn init_containers_run_in_order_and_once() {
    let mut desired = desired();
    desired.init = vec![wish("first"), wish("second")];
    let mut observed = healthy();
    observed.containers.clear();
    for name in ["first", "second", "main"] {
        observed.images.insert(name.into(), present());
    }
    let init = |name: &str, state| SeenContainer { init: true, ..container(name, 0, state) };
    assert_eq!(steps(&desired, &observed), ["start first 0 r0 f0"]);
    observed.containers.push(init("first", running()));
    assert_eq!(steps(&desired, &observed), [""; 0]);
    observed.containers[0] = init("first", exited(0, 1));
    assert_eq!(steps(&desired, &observed), ["start second 0 r0 f0"]);
    observed.containers.push(init("second", exited(1, 1)));
    assert_eq!(steps(&desired, &observed), ["start second 1 r1 f1", "remove web-1-second-0"]);
    desired.restart = RestartPolicy::Never;
    assert_eq!(steps(&desired, &observed), [""; 0]);
    observed.containers[1] = init("second", exited(0, 1));
    assert_eq!(steps(&desired, &observed), ["start main 0 r0 f0"]);
    // The record of an init container may be gone once a container was made.
    observed.containers = vec![container("main", 0, running())];
    assert_eq!(steps(&desired, &observed), [""; 0]);
}
