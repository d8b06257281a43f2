//! Containers never depend on the agent or on containerd being alive.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(
    a_killed_agent_disturbs_nothing,
    a_killed_containerd_disturbs_nothing,
    a_container_that_ends_while_the_agent_is_away_is_restarted,
);

const COUNTER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: 'localhost:5000/test/counter:1', ports: [{containerPort: 80, hostPort: 8070}]}
";

fn a_killed_agent_disturbs_nothing(node: &mut Node) -> Result<()> {
    node.apply(COUNTER)?;
    node.until_ready("counter")?;
    let pid = node.pid("counter")?;
    for _ in 0..3 {
        let seen = counted(node)?;
        node.kill_agent()?;
        until_counted(node, seen + 100)?;
        node.start_agent()?;
        let workload = node.until_ready("counter")?;
        ensure!(api::restarts(&workload) == 0, "{workload:#}");
        ensure!(node.pid("counter")? == pid, "the container was replaced");
    }
    Ok(())
}

fn a_killed_containerd_disturbs_nothing(node: &mut Node) -> Result<()> {
    node.apply(COUNTER)?;
    node.until_ready("counter")?;
    let pid = node.pid("counter")?;
    let seen = counted(node)?;
    node.kill_containerd()?;
    until_counted(node, seen + 200)?;
    node.start_containerd()?;
    until_counted(node, seen + 400)?;
    let workload = node.until_ready("counter")?;
    ensure!(api::restarts(&workload) == 0, "{workload:#}");
    ensure!(node.pid("counter")? == pid, "the container was replaced");
    // The agent hears of containerd's events again.
    node.ctr(&["task", "kill", "-s", "KILL", &api::container_id(&workload).context("a container")?])?;
    node.until_workload("counter", "restarted", |workload| api::restarts(workload) == 1 && api::ready(workload))?;
    Ok(())
}

fn a_container_that_ends_while_the_agent_is_away_is_restarted(node: &mut Node) -> Result<()> {
    node.apply(COUNTER)?;
    let workload = node.until_ready("counter")?;
    node.kill_agent()?;
    node.ctr(&["task", "kill", "-s", "KILL", &api::container_id(&workload).context("a container")?])?;
    node.start_agent()?;
    node.until_workload("counter", "restarted", |workload| api::restarts(workload) == 1 && api::ready(workload))?;
    Ok(())
}

/// The highest number in the counter's log, which must hold all the numbers before it as well, in order.
fn counted(node: &Node) -> Result<u64> {
    let mut last = 0;
    for line in log_lines(node)? {
        let number =
            line.rsplit_once("count ").with_context(|| format!("not a counted line: {line}"))?.1.trim().parse()?;
        ensure!(number == last + 1, "after {last} the log goes on with {number}");
        last = number;
    }
    Ok(last)
}

fn until_counted(node: &Node, number: u64) -> Result<u64> {
    until(PATIENCE, "the counter to go on", || Ok(Some(counted(node)?).filter(|seen| *seen >= number)))
}

/// The complete lines of the only log file on the node.
fn log_lines(node: &Node) -> Result<Vec<String>> {
    let mut text = String::new();
    for workload in fs::read_dir(node.namespaces.path(DATA).join("logs"))? {
        for container in fs::read_dir(workload?.path())? {
            for file in fs::read_dir(container?.path())? {
                text += &fs::read_to_string(file?.path())?;
            }
        }
    }
    let complete = text.rfind('\n').map_or(0, |end| end + 1);
    Ok(text[..complete].lines().map(str::to_owned).collect())
}
