//! The agent as a process: its start, its stop, what it serves, and the containerd that it may bring along.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::{Release, SOCKET};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_containerd!(health_and_metrics_are_served, an_orderly_stop_leaves_workloads_alone);

const SLEEPER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'localhost:5000/shop/busybox:1', command: [sleep, '2147483647']}]
";

fn health_and_metrics_are_served(node: &mut Node) -> Result<()> {
    node.fetch("http://127.0.0.1:9440/healthz")?;
    node.fetch("http://127.0.0.1:9440/readyz")?;
    node.apply(SLEEPER)?;
    node.until_ready("sleeper")?;
    let metrics = node.fetch("http://127.0.0.1:9440/metrics")?;
    let ours = metrics.lines().filter(|line| line.starts_with("nodelet_")).count();
    ensure!(ours >= 5, "{metrics}");
    // Without containerd the agent lives and says what it lacks, and works on when it is back.
    node.kill_containerd()?;
    until_containerd_is(node, "False")?;
    ensure!(node.fetch("http://127.0.0.1:9440/readyz").is_err(), "ready without containerd");
    node.fetch("http://127.0.0.1:9440/healthz")?;
    node.nodelet(&["get", "workloads"])?;
    node.start_containerd()?;
    until_containerd_is(node, "True")?;
    node.until_page("http://127.0.0.1:9440/readyz")?;
    node.nodelet(&["delete", "workload", "sleeper"])?;
    node.until_gone("workloads", "sleeper")
}

fn until_containerd_is(node: &Node, status: &str) -> Result<()> {
    until(PATIENCE, &format!("condition ContainerdReady to be {status}"), || {
        let states = node.get("/apis/nodelet.dev/v1alpha1/nodestates")?.context("NodeStates")?;
        let ready =
            api::condition(&states["items"][0], "ContainerdReady").map(|condition| condition["status"] == status);
        Ok(ready.filter(|reached| *reached).map(|_| ()))
    })
    .with_context(|| node.explain())
}

fn an_orderly_stop_leaves_workloads_alone(node: &mut Node) -> Result<()> {
    node.apply(SLEEPER)?;
    node.until_ready("sleeper")?;
    let pid = node.pid("sleeper")?;
    node.stop_agent()?;
    ensure!(node.ctr(&["task", "ls"])?.contains(&format!(" {pid} ")), "the workload ended with the agent");
    node.start_agent()?;
    let workload = node.until_ready("sleeper")?;
    ensure!(node.pid("sleeper")? == pid && api::restarts(&workload) == 0, "{workload:#}");
    Ok(())
}

#[test]
fn a_bad_configuration_stops_the_start_with_its_place() -> Result<()> {
    let node = Node::without_agent("bad-configuration", Release::System)?.context("containerd is not installed")?;
    let good = fs::read_to_string(node.config())?;
    for (line, word) in [("runtim: {}", "runtim"), ("runtime: {auditSeconds: often}", "auditSeconds")] {
        let first_lines = "apiVersion: nodelet.dev/v1alpha1\nkind: NodeletConfiguration\n";
        ensure!(good.starts_with(first_lines), "{good}");
        fs::write(node.config(), format!("{first_lines}{line}\n"))?;
        let refused = node.nodelet(&["run", "--config", "/run/config.yaml"]);
        let Err(refusal) = refused else { anyhow::bail!("{line} was accepted") };
        let refusal = format!("{refusal:#}");
        for needed in ["config.yaml", "3", word] {
            ensure!(refusal.contains(needed), "no {needed:?} in {refusal}");
        }
    }
    Ok(())
}

#[test]
fn a_managed_containerd_outlives_the_agent() -> Result<()> {
    let mut node = Node::without_agent("managed", Release::System)?.context("containerd is not installed")?;
    node.kill_containerd()?;
    fs::remove_file(node.namespaces.path(SOCKET))?;
    let config = fs::read_to_string(node.config())?;
    fs::write(node.config(), config.replace("runtime: {", "runtime: {managed: true, "))?;
    node.start_agent()?;
    node.apply(SLEEPER)?;
    let before = node.until_ready("sleeper")?;
    node.kill_agent()?;
    let alive = node.namespaces.run(["pgrep", "-x", "containerd"])?;
    node.start_agent()?;
    let after = node.until_ready("sleeper")?;
    ensure!(api::container_id(&before) == api::container_id(&after) && api::restarts(&after) == 0, "{after:#}");
    ensure!(node.namespaces.run(["pgrep", "-x", "containerd"])? == alive, "another containerd");
    Ok(())
}
