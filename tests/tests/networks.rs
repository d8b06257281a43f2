//! Networks from end to end: names in containers that read only their resolv.conf, networks over several nodes and by plugins.

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(containers_find_each_other_by_name);
nodelet_tests::on_containerd!(networks_of_other_nodes_and_of_plugins_are_used_side_by_side);

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

/// Another node, played by a namespace: its end of the tunnel, and a server behind it.
const PEER: &str = "set -e
ip netns add peer
ip link add uplink type veth peer name eth0 netns peer
ip addr add 192.0.2.1/24 dev uplink
ip link set uplink up
ip -n peer addr add 192.0.2.9/24 dev eth0
ip -n peer link set eth0 up
ip -n peer link add vx type vxlan id 42 dstport 4789 remote 192.0.2.1 dev eth0
ip -n peer addr add 10.100.0.99/24 dev vx
ip -n peer link set vx up";

/// The configuration of a site that has plugins already.
const SITE: &str = r#"{
  "name": "site", "cniVersion": "1.0.0",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true,
    "ipam": {"type": "host-local", "dataDir": "/run/cni/leases", "ranges": [[{"subnet": "10.77.0.0/24"}]]}
  }]
}"#;

const SIDE_BY_SIDE: &str = r#"
apiVersion: nodelet.dev/v1alpha1
kind: Network
metadata: {name: over}
spec:
  driver: vxlan
  subnets: [{cidr: 10.100.0.0/24, gateway: 10.100.0.1, range: 10.100.0.10-10.100.0.20}]
  vxlan: {vni: 42, peers: [192.0.2.1, 192.0.2.9]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Network
metadata: {name: site}
spec:
  driver: cni
  cni: {config: /run/cni/10-site.conflist, pluginDirs: [/usr/lib/cni]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: member}
spec:
  networks: [{name: over, ip: 10.100.0.15}]
  containers:
  - {name: main, image: localhost:5000/shop/busybox:1, command: [nc, -ll, -p, "7000", -e, echo, member]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: plugged}
spec:
  networks: [{name: site}]
  containers:
  - {name: main, image: localhost:5000/shop/busybox:1, command: [nc, -ll, -p, "7000", -e, echo, plugged]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: both}
spec:
  networks: [{name: over}, {name: site}]
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: localhost:5000/shop/busybox:1, command: [sleep, "1000000"]}
"#;

fn networks_of_other_nodes_and_of_plugins_are_used_side_by_side(node: &mut Node) -> Result<()> {
    node.namespaces.run(["sh", "-c", PEER])?;
    node.namespaces.run(["mkdir", "-p", "/run/cni"])?;
    std::fs::write(node.namespaces.path("/run/cni/10-site.conflist"), SITE)?;
    let mut peer = node.background("exec ip netns exec peer busybox nc -ll -p 7000 -e echo peer")?;
    let before = node.inventory()?;
    node.apply(SIDE_BY_SIDE)?;
    for workload in ["member", "plugged", "both"] {
        node.until_ready(workload)?;
    }
    let call = |node: &Node, host: &str| {
        let said = node.nodelet(&["exec", "both", "--", "sh", "-c", &format!("nc -w 5 {host} 7000 </dev/null")])?;
        anyhow::Ok(said.trim().to_owned())
    };
    let plugged = node.object("workloads", "plugged")?.context("plugged")?;
    let address = plugged["status"]["addresses"][0]["ip"].as_str().context("an address of plugged")?.to_owned();
    ensure!(address.starts_with("10.77.0."), "{address}");
    for (host, wanted) in [("10.100.0.99", "peer"), ("member", "member"), (&address, "plugged")] {
        let said = call(node, host)?;
        ensure!(said == wanted, "{host}: {said}");
    }
    // From the other node to a container of this one.
    let from_peer = ["ip", "netns", "exec", "peer", "sh", "-c", "busybox nc -w 5 10.100.0.15 7000 </dev/null"];
    ensure!(node.namespaces.run(from_peer)?.trim() == "member");

    // Another MTU takes place on links as they are.
    let pid = node.pid("member")?;
    let mtu = |node: &Node| node.nodelet(&["exec", "member", "--", "cat", "/sys/class/net/eth0/mtu"]);
    ensure!(mtu(node)?.trim() == "1450", "{}", mtu(node)?);
    node.apply(&SIDE_BY_SIDE.replace("  driver: vxlan\n", "  driver: vxlan\n  mtu: 1400\n"))?;
    until(PATIENCE, "the new MTU", || Ok((mtu(node)?.trim() == "1400").then_some(())))?;
    ensure!(node.pid("member")? == pid, "the container was replaced");
    ensure!(call(node, "10.100.0.99")? == "peer" && call(node, "member")? == "member");

    // The next agent knows all of it, and what leaves is gone with the plugins, too.
    node.kill_agent()?;
    node.start_agent()?;
    for workload in ["member", "plugged", "both"] {
        node.nodelet(&["delete", "workload", workload])?;
        node.until_gone("workloads", workload)?;
    }
    let leases = node.namespaces.run(["ls", "/run/cni/leases/site"])?;
    ensure!(!leases.lines().any(|name| name.starts_with("10.77.")), "{leases}");
    for network in ["over", "site"] {
        node.nodelet(&["delete", "network", network])?;
        node.until_gone("networks", network)?;
    }
    // Its bridge is the plugin's own.
    node.namespaces.run(["ip", "link", "del", "cni0"])?;
    node.until_clean(&before)?;
    peer.kill()?;
    peer.wait().map(drop).context("the other node's server")
}
