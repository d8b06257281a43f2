//! What somebody breaks behind the agent's back is repaired, and by the event: the audit pass of these nodes is a day
//! away.

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(
    a_killed_container_comes_back,
    a_deleted_container_comes_back,
    a_killed_shim_is_replaced,
);
nodelet_tests::on_containerd!(a_deleted_bridge_comes_back, a_flushed_packet_filter_comes_back);

const SERVER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: server}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: localhost:5000/shop/nginx:1
      ports: [{containerPort: 80, hostPort: 8070}]
";
const PAGE: &str = "http://127.0.0.1:8070/";

/// Starts the server and answers its containerd id.
fn serve(node: &Node) -> Result<String> {
    node.apply(SERVER)?;
    let workload = node.until_ready("server")?;
    node.until_page(PAGE)?;
    api::container_id(&workload).context("a container")
}

fn a_killed_container_comes_back(node: &mut Node) -> Result<()> {
    let id = serve(node)?;
    node.ctr(&["task", "kill", "-s", "KILL", &id])?;
    node.until_workload("server", "restarted", |workload| api::restarts(workload) == 1 && api::ready(workload))?;
    node.until_page(PAGE).map(drop)
}

fn a_deleted_container_comes_back(node: &mut Node) -> Result<()> {
    let id = serve(node)?;
    // The record goes while the task runs on, out of reach of anybody who asks containerd by the book.
    if node.ctr(&["containers", "delete", &id]).is_err() {
        node.ctr(&["task", "kill", "-s", "KILL", &id])?;
        until(PATIENCE, "the container to be deletable", || {
            // The agent may have cleared it away before us.
            let _gone = node.ctr(&["task", "delete", &id]);
            let _gone = node.ctr(&["containers", "delete", &id]);
            Ok((!node.ctr(&["containers", "ls", "-q"])?.lines().any(|left| left == id)).then_some(()))
        })?;
    }
    node.until_workload("server", "another container", |workload| {
        api::ready(workload) && api::container_id(workload).is_some_and(|now| now != id)
    })?;
    node.until_page(PAGE).map(drop)
}

fn a_killed_shim_is_replaced(node: &mut Node) -> Result<()> {
    let id = serve(node)?;
    let shim = node.namespaces.run(["sh", "-c", &format!("pgrep -f 'containerd-shim.*-id {id}'")])?;
    node.namespaces.signal(shim.lines().next().context("a shim")?.trim().parse()?, "KILL")?;
    node.until_workload("server", "restarted", |workload| {
        api::ready(workload) && api::container_id(workload).is_some_and(|now| now != id)
    })?;
    node.until_page(PAGE).map(drop)
}

fn a_deleted_bridge_comes_back(node: &mut Node) -> Result<()> {
    serve(node)?;
    let pid = node.pid("server")?;
    let links = node.namespaces.run(["ip", "-o", "link", "show", "type", "bridge"])?;
    let bridge = links.split(": ").nth(1).context("a bridge")?.to_owned();
    node.namespaces.run(["ip", "link", "del", &bridge])?;
    node.until_page(PAGE)?;
    ensure!(node.pid("server")? == pid, "the container was replaced");
    Ok(())
}

fn a_flushed_packet_filter_comes_back(node: &mut Node) -> Result<()> {
    serve(node)?;
    let rules = || node.namespaces.run(["nft", "--stateless", "list", "ruleset"]);
    let before = rules()?;
    for breakage in
        [&["nft", "flush", "ruleset"][..], &["nft", "flush", "ruleset", "ip"], &["nft", "flush", "ruleset", "inet"]]
    {
        node.namespaces.run(breakage)?;
        until(PATIENCE, "the same rules", || Ok((rules()? == before).then_some(())))
            .with_context(|| format!("before:\n{before}\nnow:\n{}", rules().unwrap_or_default()))?;
        node.until_page(PAGE)?;
    }
    Ok(())
}
