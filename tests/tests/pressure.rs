//! A node that is short of disk or memory: who has to go, with which words, and that they come back.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::json;

nodelet_tests::on_containerd!(who_has_to_go_comes_back);

const MIB: u64 = 1 << 20;

fn workload(name: &str, priority: i32) -> String {
    let object = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name},
        "spec": {"priority": priority, "terminationGracePeriodSeconds": 0, "volumes": [{"name": "fill", "emptyDir": {}}],
            "containers": [{
                "name": "main", "image": "localhost:5000/shop/busybox:1", "command": ["sleep", "2147483647"],
                "volumeMounts": [{"name": "fill", "mountPath": "/fill"}],
            }]},
    });
    object.to_string()
}

/// Starts the agent anew with other thresholds.
fn restart_with(node: &mut Node, plain: &str, eviction: &str) -> Result<()> {
    node.stop_agent()?;
    fs::write(node.config(), format!("{plain}{eviction}"))?;
    node.start_agent()
}

fn until_pressure(node: &Node, kind: &str, wanted: &str) -> Result<String> {
    until(PATIENCE, &format!("{kind} to be {wanted}"), || {
        let state = node.get("/apis/nodelet.dev/v1alpha1/nodestates/test")?.context("the NodeState")?;
        let found = api::condition(&state, kind).cloned().unwrap_or_default();
        Ok((found["status"] == wanted).then(|| found["message"].as_str().unwrap_or_default().to_owned()))
    })
}

fn until_evicted(node: &Node, name: &str, words: &str) -> Result<()> {
    let evicted = node.until_workload(name, "evicted", |workload| {
        workload["status"]["phase"] == "Pending"
            && api::condition(workload, "Ready").is_some_and(|ready| ready["reason"] == "Evicted")
    })?;
    let ready = api::condition(&evicted, "Ready").cloned().unwrap_or_default();
    let message = ready["message"].as_str().unwrap_or_default();
    ensure!(message.contains(words), "{words:?} is missing: {message}");
    let events = node.nodelet(&["events"])?;
    ensure!(events.contains("Evicted"), "{events}");
    Ok(())
}

fn who_has_to_go_comes_back(node: &mut Node) -> Result<()> {
    let plain = fs::read_to_string(node.config())?;
    // The larger use stays for its priority.
    let uses = [("low", -1, 48), ("high", 0, 64)];
    for (name, priority, _) in uses {
        node.apply(&workload(name, priority))?;
        node.until_ready(name)?;
    }
    let free: u64 =
        node.namespaces.run(["df", "--output=avail", "-B1", DATA])?.lines().nth(1).context("df")?.trim().parse()?;
    let nodefs = format!("eviction: {{nodefs: {{available: '{}'}}, pressureTransitionSeconds: 1}}\n", free - 96 * MIB);
    restart_with(node, &plain, &nodefs)?;
    until_pressure(node, "DiskPressure", "False")?;
    let pid = node.pid("high")?;
    for (name, _, mib) in uses {
        let fill = format!("dd if=/dev/zero of=/fill/file bs=1M count={mib} 2>/dev/null");
        node.nodelet(&["exec", name, "--", "sh", "-c", &fill])?;
    }
    let told = until_pressure(node, "DiskPressure", "True")?;
    ensure!(told.contains("nodefs.available is"), "{told}");
    until_evicted(node, "low", "it used 48.")?;
    // Its files went with it.
    until_pressure(node, "DiskPressure", "False")?;
    node.until_ready("low")?;
    let high = node.until_ready("high")?;
    ensure!(node.pid("high")? == pid && api::restarts(&high) == 0, "who has the higher priority had to go");

    // No node has all of its memory left.
    restart_with(node, &plain, "eviction: {memory: {available: 100%}, pressureTransitionSeconds: 1}\n")?;
    until_pressure(node, "MemoryPressure", "True")?;
    for (name, _, _) in uses {
        until_evicted(node, name, "memory.available is")?;
    }
    // Nor does a new agent bring back at once what the one before had to end.
    restart_with(node, &plain, "")?;
    until_pressure(node, "MemoryPressure", "False")?;
    for (name, _, _) in uses {
        node.until_ready(name)?;
    }
    Ok(())
}
