//! Requests set room aside: who finds none waits, with the numbers, and comes in when somebody leaves.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::{Value, json};

nodelet_tests::on_containerd!(what_does_not_fit_waits_for_its_place);

/// A Workload that requests so many thousandths of a CPU.
fn workload(name: &str, milli: u64) -> String {
    let object = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": "localhost:5000/shop/busybox:1", "command": ["sleep", "2147483647"],
            "resources": {"requests": {"cpu": format!("{milli}m")}},
        }]},
    });
    object.to_string()
}

fn until_waiting(node: &Node, name: &str, words: &[&str]) -> Result<()> {
    let waiting = node.until_workload(name, "waiting for room", |workload| {
        api::condition(workload, "Ready").is_some_and(|ready| ready["reason"] == "InsufficientResources")
    })?;
    let message = api::condition(&waiting, "Ready").and_then(|ready| ready["message"].as_str()).unwrap_or_default();
    for word in words {
        ensure!(message.contains(word), "{word:?} is missing: {message}");
    }
    Ok(())
}

fn what_does_not_fit_waits_for_its_place(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    let config = fs::read_to_string(node.config())? + "systemReserved: {cpu: 250m, memory: 64Mi}\n";
    fs::write(node.config(), config)?;
    node.stop_agent()?;
    node.start_agent()?;
    // What is reserved is not to be had, and is kept from all together.
    let state = || node.get("/apis/nodelet.dev/v1alpha1/nodestates/test")?.context("the NodeState");
    let cpus: u64 = state()?["status"]["capacity"]["cpu"].as_str().context("CPUs")?.parse()?;
    let all = cpus * 1000 - 250;
    until(PATIENCE, "NodeState to tell what is left", || {
        Ok((state()?["status"]["allocatable"]["cpu"] == format!("{all}m")).then_some(()))
    })?;

    node.apply(&workload("first", all - 100))?;
    node.until_ready("first")?;
    node.apply(&workload("second", 200))?;
    let left = format!("requests 200m of CPU where 100m of {all}m are left");
    until_waiting(node, "second", &[&left, "a Workload has requested the rest"])?;
    let why = node.nodelet(&["why", "workload", "second"])?;
    ensure!(why.contains(&left), "{why}");
    node.apply(&workload("huge", all + 1))?;
    until_waiting(node, "huge", &["the node is too small for it"])?;
    // Nor is room kept for what can never run as it is.
    let mut broken: Value = serde_json::from_str(&workload("broken", 100))?;
    broken["spec"]["containers"][0]["devices"] =
        json!([{"path": "/dev/a"}, {"path": "/dev/b", "containerPath": "/dev/a"}]);
    node.apply(&broken.to_string())?;
    node.until_workload("broken", "refused", |workload| {
        api::condition(workload, "Ready").is_some_and(|ready| ready["reason"] == "InvalidSpec")
    })?;
    // What fits is not kept waiting by those who do not, and who requests nothing always fits.
    node.apply(&workload("small", 100))?;
    node.until_ready("small")?;
    node.apply(&workload("modest", 0).replace(r#""cpu":"0m""#, ""))?;
    node.until_ready("modest")?;
    // A new agent, of which none is told who came first, keeps who is there.
    let pid = node.pid("first")?;
    node.kill_agent()?;
    node.start_agent()?;
    until_waiting(node, "second", &[&format!("where 0m of {all}m are left"), "2 Workloads have requested the rest"])?;
    ensure!(node.pid("first")? == pid, "first was started anew");
    // Who leaves makes room at once.
    node.nodelet(&["stop", "first"])?;
    node.until_ready("second")?;
    node.nodelet(&["start", "first"])?;
    until_waiting(node, "first", &[&format!("requests {}m of CPU", all - 100)])?;
    node.nodelet(&["delete", "workload", "second"])?;
    node.nodelet(&["delete", "workload", "small"])?;
    node.until_ready("first")?;
    // Who has a higher priority gets its place from lower ones, who have theirs back afterwards.
    let mut vital: Value = serde_json::from_str(&workload("vital", 200))?;
    vital["spec"]["priority"] = json!(10);
    node.apply(&vital.to_string())?;
    node.until_ready("vital")?;
    until_waiting(node, "first", &["a Workload has requested the rest"])?;
    let events = node.nodelet(&["events"])?;
    ensure!(
        events.contains("Preempted") && events.contains("default/vital of priority 10 needs its place"),
        "{events}"
    );
    ensure!(api::ready(&node.until_ready("modest")?), "who requests nothing is in nobody's way");
    node.nodelet(&["delete", "workload", "vital"])?;
    node.until_ready("first")?;
    for name in ["first", "huge", "modest", "broken"] {
        node.nodelet(&["delete", "workload", name])?;
        node.until_gone("workloads", name)?;
    }
    node.until_clean(&before)
}
