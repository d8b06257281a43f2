//! Workloads that run to an end: how often and how long they are tried, and how long they are remembered.

use anyhow::{Result, ensure};
use nodelet_tests::node::{Node, api};

nodelet_tests::on_containerd!(a_batch_ends_in_time_and_is_not_tried_for_ever);

fn batch(name: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
         restartPolicy: OnFailure\n  terminationGracePeriodSeconds: 1\n  {more}\n  containers:\n  - name: main\n    \
         image: localhost:5000/shop/busybox:1\n    command: [sh, -c, \"{script}\"]\n"
    )
}

fn a_batch_ends_in_time_and_is_not_tried_for_ever(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    node.apply(&batch("failing", "exit 3", "backoffLimit: 2"))?;
    node.apply(&batch("endless", "sleep 1000", "activeDeadlineSeconds: 2"))?;
    node.apply(&batch("done", "exit 0", "ttlSecondsAfterFinished: 2"))?;
    let failed = |name: &str, reason: &str| {
        node.until_workload(name, reason, |workload| {
            let ready = api::condition(workload, "Ready");
            workload["status"]["phase"] == "Failed" && ready.is_some_and(|ready| ready["reason"] == reason)
        })
    };
    let workload = failed("failing", "BackoffLimitExceeded")?;
    ensure!(api::restarts(&workload) == 2, "{workload:#}");
    failed("endless", "DeadlineExceeded")?;
    node.until_gone("workloads", "done")?;
    // Nothing of them is left but the objects, and a new agent does not begin anew.
    node.kill_agent()?;
    node.start_agent()?;
    nodelet_tests::wait::until(nodelet_tests::node::PATIENCE, "no container", || {
        Ok(node.ctr(&["containers", "ls", "-q"])?.trim().is_empty().then_some(()))
    })?;
    node.namespaces.run(["sleep", "1"])?;
    ensure!(node.ctr(&["containers", "ls", "-q"])?.trim().is_empty(), "tried again");
    // An edit is another run.
    node.apply(&batch("endless", "exit 0", "activeDeadlineSeconds: 20"))?;
    node.until_workload("endless", "ended well", |workload| workload["status"]["phase"] == "Succeeded")?;
    for name in ["failing", "endless"] {
        node.nodelet(&["delete", "workload", name])?;
        node.until_gone("workloads", name)?;
    }
    node.until_clean(&before)
}
