//! Everything on the node, counted by owner and kind.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::Node;
use regex::Regex;
use serde_json::Value;

use crate::declared::{Declared, Workload, name};

/// How many things of each kind.
type Counts = BTreeMap<String, usize>;

/// One task of containerd.
pub struct Task {
    pub id: String,
    pub pid: u32,
    pub running: bool,
}

/// All tasks.
pub fn tasks(node: &Node) -> Result<Vec<Task>> {
    let rows = node.ctr(&["tasks", "ls"])?;
    let task = |row: &str| {
        let mut words = row.split_whitespace();
        let (id, pid, status) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        Some(Task { id: id.to_owned(), pid, running: status == "RUNNING" })
    };
    Ok(rows.lines().skip(1).filter_map(task).collect())
}

/// All Workloads, by name.
pub fn objects(node: &Node) -> Result<BTreeMap<String, Value>> {
    let list = node.get("/apis/nodelet.dev/v1alpha1/namespaces/default/workloads")?.context("no such kind")?;
    let items = list["items"].as_array().into_iter().flatten();
    let named = |item: &Value| Some((item["metadata"]["name"].as_str()?.to_owned(), item.clone()));
    Ok(items.filter_map(named).collect())
}

/// Published ports as the kernel has them: the node's port, and where it leads.
pub fn ports(node: &Node) -> Result<BTreeMap<String, String>> {
    let text = node.namespaces.run(["nft", "-j", "list", "map", "inet", "nodelet", "ports4"])?;
    let answer: Value = serde_json::from_str(&text)?;
    let maps = answer["nftables"].as_array().into_iter().flatten();
    let elements = maps.filter_map(|entry| entry["map"]["elem"].as_array()).flatten();
    let entry = |element: &Value| {
        let (from, to) = (&element[0]["concat"], &element[1]["concat"]);
        (from[1].to_string(), format!("{}:{}", to[0].as_str().unwrap_or_default(), to[1]))
    };
    Ok(elements.map(entry).collect())
}

/// What there is.
pub struct Census {
    /// By the workload that owns it.
    owned: BTreeMap<String, Counts>,
    /// The lines of what no workload owns.
    others: Vec<String>,
    lines: Vec<String>,
}

impl Census {
    /// Counts.
    pub fn take(node: &Node) -> Result<Census> {
        // Names of sandboxes and containers, and directories of logs, begin with the workload's.
        let owner = Regex::new(r"\b(w\d{3})-[0-9a-f]{10}|default_(w\d{3})_")?;
        let links = links(node)?;
        let mut census = Census { owned: BTreeMap::new(), others: Vec::new(), lines: Vec::new() };
        let mut lines: Vec<String> =
            node.inventory()?.into_iter().filter(|line| !line.starts_with("packet filter: ")).collect();
        lines.extend(links.iter().map(|(link, owner)| format!("attachment: {link} of {owner}-0000000000")));
        lines.extend(ports(node)?.into_iter().map(|(port, to)| format!("port: {port} to {to}")));
        // Bundles of containerd, and what runc remembers, beside records of our own.
        let list = "ls -d /run/nodelet/network/ports/* /run/nodelet/network/networks/* /run/data/logs/* \
                    /run/containerd/runc/nodelet/* /run/containerd/io.containerd.runtime.v2.task/nodelet/* 2>/dev/null; :";
        lines.extend(node.namespaces.run(["sh", "-c", list])?.lines().map(|line| format!("record: {line}")));
        for mut line in lines {
            let (kind, what) = line.split_once(": ").unwrap_or((&line, ""));
            let link = what.split('@').next().unwrap_or_default();
            let named = owner.captures(what).and_then(|found| found.get(1).or(found.get(2)));
            let owner = match kind {
                "link" => links.get(link).cloned(),
                "port" => {
                    what.split(' ').next().and_then(|port| port.parse::<usize>().ok()?.checked_sub(9500)).map(name)
                }
                _ => named.map(|name| name.as_str().to_owned()),
            };
            let kind = match kind {
                "process" if what.contains("containerd-shim") => "shim",
                "process" if what.contains("nodelet-logger") => "logger",
                "record" if what.contains("/logs/") => "log",
                kind => kind,
            }
            .to_owned();
            match owner {
                Some(owner) => {
                    *census.owned.entry(owner.clone()).or_default().entry(kind).or_default() += 1;
                    line = format!("{owner}: {line}");
                }
                None => census.others.push(line.clone()),
            }
            census.lines.push(line);
        }
        Ok(census)
    }
}

/// Host ends of attachments by the records of the network: the link, and the workload.
fn links(node: &Node) -> Result<BTreeMap<String, String>> {
    let script = "cd /run/nodelet/network/attachments; for f in *; do echo \"$f $(cat \"$f\" 2>/dev/null)\"; done";
    let mut links = BTreeMap::new();
    for line in node.namespaces.run(["sh", "-c", script])?.lines() {
        let Some((file, text)) = line.split_once(".json ") else { continue };
        let Ok(record) = serde_json::from_str::<Value>(text) else { continue };
        let sandbox = record["spec"]["sandbox"].as_str().unwrap_or_default();
        links.insert(file.to_owned(), sandbox.split('-').next().unwrap_or_default().to_owned());
    }
    Ok(links)
}

/// What each workload had when it was made in peace, and what there was without any.
pub struct Baseline {
    bare: Vec<String>,
    owned: BTreeMap<String, Counts>,
}

impl Baseline {
    /// From a node without workloads, and one with all of them.
    pub fn of(bare: Census, full: &Census, declared: &Declared) -> Result<Baseline> {
        ensure!(bare.owned.is_empty(), "a deleted workload left {:?}", bare.owned);
        for workload in declared.running() {
            let name = workload.name();
            let counts = full.owned.get(&name).with_context(|| format!("{name} has nothing"))?;
            let containers = workload.containers().len();
            for (kind, expected) in [
                ("container", containers),
                ("task", containers),
                ("snapshot", containers),
                ("logger", containers),
                ("shim", 1),
            ] {
                let found = counts.get(kind).copied().unwrap_or_default();
                ensure!(found == expected, "{name} has {found} of {kind}, not {expected}: {counts:?}");
            }
            ensure!(counts.contains_key("port") == workload.port().is_some(), "{name}: {counts:?}");
        }
        Ok(Baseline { bare: bare.others, owned: full.owned.clone() })
    }

    /// What is there too much, or too little, one line each; a line begins with its kind.
    pub fn compare(&self, census: &Census, declared: &Declared) -> Vec<String> {
        let mut differences = Vec::new();
        let surplus = census.others.iter().filter(|line| !self.bare.contains(line));
        differences.extend(surplus.map(|line| format!("{line}: of nobody")));
        // The network, the limit and whatever else belongs to no workload.
        let missing = self.bare.iter().filter(|line| !census.others.contains(line));
        differences.extend(missing.map(|line| format!("{line}: missing")));
        let mut expected: BTreeMap<String, Counts> = BTreeMap::new();
        for workload in declared.there() {
            // The log of what is stopped stays, if it ever ran.
            expected.insert(workload.name(), Counts::new());
        }
        for workload in declared.running() {
            expected.insert(workload.name(), self.owned[&workload.name()].clone());
        }
        let stopped: Vec<String> = declared.there().filter(|w| w.is_stopped()).map(Workload::name).collect();
        let none = Counts::new();
        let owners: std::collections::BTreeSet<_> = expected.keys().chain(census.owned.keys()).collect();
        for owner in owners {
            let (wanted, found) = (expected.get(owner).unwrap_or(&none), census.owned.get(owner).unwrap_or(&none));
            let kinds: std::collections::BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
            for kind in kinds {
                let count = |of: &Counts| of.get(kind).copied().unwrap_or_default();
                let of_stopped = kind == "log" && stopped.contains(owner) && count(found) <= 1;
                if count(wanted) != count(found) && !of_stopped {
                    let lines: Vec<_> = census.lines.iter().filter(|line| line.starts_with(owner.as_str())).collect();
                    differences.push(format!(
                        "{kind}: {owner} has {}, not {}: {lines:#?}",
                        count(found),
                        count(wanted)
                    ));
                }
            }
        }
        differences
    }
}

/// How many differences there are of each kind.
pub fn by_kind(differences: &[String]) -> Counts {
    let mut counts = Counts::new();
    for line in differences {
        let kind = line.split(':').next().unwrap_or_default();
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    counts
}
