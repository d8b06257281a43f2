//! Networks from end to end: names in containers that read only their resolv.conf.

use anyhow::{Result, ensure};
use nodelet_tests::node::{Node, PATIENCE};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(containers_find_each_other_by_name);

const NAMES: &str = r#"
apiVersion: nodelet.dev/v1alpha1
kind: Network
metadata: {name: front}
spec: {subnets: [{cidr: 10.89.50.0/24}, {cidr: "fd00:50::/64"}], internal: true}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: web}
spec:
  networks: [{name: front, aliases: [www]}]
  hostname: page
  update: {strategy: StartFirst, healthySeconds: 1}
  containers:
  - name: web
    image: localhost:5000/shop/busybox:1
    command: [nc, -ll, -p, "7000", -e, echo, VERSION]
    ports: [{name: page, containerPort: 7000}]
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: beside}
spec:
  networkOf: web-fixed
  containers:
  - {name: beside, image: localhost:5000/shop/busybox:1, command: [nc, -ll, -p, "7001", -e, echo, beside]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: web-fixed}
spec:
  networks: [{name: front, aliases: [www]}]
  containers:
  - {name: web, image: localhost:5000/shop/busybox:1, command: [nc, -ll, -p, "7000", -e, echo, fixed]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: client}
spec:
  networks: [{name: front}]
  containers:
  - {name: client, image: localhost:5000/shop/busybox:1, command: [sleep, "1000000"]}
"#;

fn containers_find_each_other_by_name(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    node.apply(&NAMES.replace("VERSION", "one"))?;
    for workload in ["web", "web-fixed", "beside", "client"] {
        node.until_ready(workload)?;
    }
    let call = |node: &Node, host: &str, port: &str| {
        node.nodelet(&["exec", "client", "--", "sh", "-c", &format!("nc -w 5 {host} {port} </dev/null")])
    };
    for name in ["web", "web.default", "page"] {
        let said = call(node, name, "7000")?;
        ensure!(said.trim() == "one", "{name}: {said}");
    }
    let said = call(node, "beside", "7001")?;
    ensure!(said.trim() == "beside", "who shares a network is found there: {said}");
    // Which of them a program takes is up to its library; they are told in turn.
    let told = node.nodelet(&["exec", "client", "--", "nslookup", "www", "10.89.50.1"])?;
    ensure!(told.matches("10.89.50.").count() >= 4 && told.matches("fd00:50::").count() >= 2, "both of them: {told}");
    let file = node.nodelet(&["exec", "client", "--", "cat", "/etc/resolv.conf"])?;
    ensure!(file.contains("nameserver 10.89.50.1\n") && file.contains("ndots:0"), "{file}");

    // During an update the name leads to the old or the new one at every moment.
    let loop_ = "i=0; while [ ! -e /tmp/stop ]; do nslookup web 10.89.50.1 >/tmp/last 2>&1 || { cat /tmp/last; exit 1; }; i=$((i+1)); done; echo asked $i times";
    let asking = node.background(&format!("{} exec client -- sh -c '{loop_}'", node.nodelet.display()))?;
    node.apply(&NAMES.replace("VERSION", "two"))?;
    until(PATIENCE, "the new version by name", || Ok((call(node, "web", "7000")?.trim() == "two").then_some(())))?;
    node.nodelet(&["exec", "client", "--", "touch", "/tmp/stop"])?;
    let output = asking.wait_with_output()?;
    ensure!(output.status.success(), "a question went unanswered: {}", String::from_utf8_lossy(&output.stdout));

    // The next agent answers before it has looked at anything, and what is stopped is no longer found.
    node.kill_agent()?;
    node.start_agent()?;
    ensure!(call(node, "web", "7000")?.trim() == "two");
    node.nodelet(&["stop", "web-fixed"])?;
    until(PATIENCE, "www to lead to web only", || {
        let seen: Vec<String> = (0..4).filter_map(|_| call(node, "www", "7000").ok()).collect();
        Ok((seen.len() == 4 && seen.iter().all(|s| s.trim() == "two")).then_some(()))
    })?;
    for workload in ["web", "beside", "web-fixed", "client"] {
        node.nodelet(&["delete", "workload", workload])?;
        node.until_gone("workloads", workload)?;
    }
    node.nodelet(&["delete", "network", "front"])?;
    node.until_gone("networks", "front")?;
    node.until_clean(&before)
}
