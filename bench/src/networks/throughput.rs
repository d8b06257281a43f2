//! What passes: between two sandboxes and through a published port, each against the same made by hand.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::Options;
use super::node::{Ended, FIRST_PORT, run};

/// One way.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) by_hand: Rate,
    pub(super) ours: Rate,
}

/// How much passes.
#[derive(Clone, Copy)]
pub(super) struct Rate {
    /// Gigabits per second.
    pub(super) speed: f64,
    /// Gigabits per second that sender and receiver are at work. What else runs on the machine hardly changes it.
    pub(super) per_cpu: f64,
}

/// Two namespaces on a bridge, a port of the node that leads to the first, as one writes it by hand, and a host outside.
const BY_HAND: [&str; 23] = [
    "ip netns add h0",
    "ip netns add h1",
    "ip link add hand type bridge",
    "ip addr add 10.99.0.1/24 dev hand",
    "ip link set hand up",
    "ip link add hand0 type veth peer name eth0 netns h0",
    "ip link add hand1 type veth peer name eth0 netns h1",
    "ip link set hand0 master hand up",
    "ip link set hand1 master hand up",
    "ip -n h0 addr add 10.99.0.2/24 dev eth0",
    "ip -n h1 addr add 10.99.0.3/24 dev eth0",
    "ip -n h0 link set eth0 up",
    "ip -n h1 link set eth0 up",
    "ip -n h0 route add default via 10.99.0.1",
    "ip netns add outside",
    "ip link add uplink type veth peer name eth0 netns outside",
    "ip addr add 192.0.2.1/24 dev uplink",
    "ip link set uplink up",
    "ip -n outside addr add 192.0.2.9/24 dev eth0",
    "ip -n outside link set eth0 up",
    "nft add table ip hand",
    "nft add chain ip hand in { type nat hook prerouting priority dstnat ; }",
    "nft add rule ip hand in fib daddr type local tcp dport 30000 dnat to 10.99.0.2:5201",
];

/// Measures by turns, and each pair in turning order; `None` without iperf3.
pub(super) fn measure(options: &Options, addresses: &[IpAddr]) -> Result<Option<Vec<Way>>> {
    if Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    for words in BY_HAND {
        run(words)?;
    }
    let _servers = [serve("h0")?, serve("s0")?];
    let first = addresses.first().context("an attachment")?.to_string();
    let pairs = [
        ("inside one network", ("h1", "10.99.0.2", 5201), ("s1", first.as_str(), 5201)),
        (
            "through a published port, from outside",
            ("outside", "192.0.2.1", 30_000),
            ("outside", "192.0.2.1", FIRST_PORT),
        ),
    ];
    let mut found = pairs.map(|(name, ..)| (name, Vec::new(), Vec::new()));
    for round in 0..options.rounds.max(1) {
        for ((_, hand, own), (_, by_hand, ours)) in pairs.iter().zip(&mut found) {
            let mut turns = [(hand, by_hand), (own, ours)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for ((netns, to, port), rates) in turns {
                rates.push(transfer(netns, to, *port, options.seconds)?);
            }
        }
    }
    let ways = found.map(|(name, by_hand, ours)| Way { name, by_hand: median(by_hand), ours: median(ours) });
    Ok(Some(ways.into()))
}

fn median(rates: Vec<Rate>) -> Rate {
    let middle = |of: fn(&Rate) -> f64| {
        let mut values: Vec<f64> = rates.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Rate { speed: middle(|rate| rate.speed), per_cpu: middle(|rate| rate.per_cpu) }
}

fn serve(netns: &str) -> Result<Ended> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, "iperf3", "--server"]).stdout(Stdio::null());
    command.spawn().map(Ended).context("running iperf3")
}

/// What passes from a namespace to a server. The first tries may come before the server listens.
fn transfer(netns: &str, to: &str, port: u16, seconds: u16) -> Result<Rate> {
    let (port, seconds) = (port.to_string(), seconds.to_string());
    let mut last = String::new();
    for _ in 0..50 {
        let output = Command::new("ip")
            .args(["netns", "exec", netns, "iperf3", "--json", "--client", to, "--port", &port, "--time", &seconds])
            .output()
            .context("running iperf3")?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("reading what iperf3 says")?;
        if let Some(bits) = answer["end"]["sum_received"]["bits_per_second"].as_f64() {
            let busy = &answer["end"]["cpu_utilization_percent"];
            let percent = |side: &str| busy[side].as_f64().unwrap_or_default();
            let cpus = (percent("host_total") + percent("remote_total")) / 100.0;
            return Ok(Rate { speed: bits / 1e9, per_cpu: bits / 1e9 / cpus });
        }
        last = answer["error"].to_string();
    }
    anyhow::bail!("iperf3 from {netns} to {to}: {last}")
}
