//! What is declared: the model that the node is compared with.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use nodelet_tests::node::{Node, api};
use serde_json::Value;

use crate::census;

/// What all of them use.
pub const SHARED: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Network
metadata: {name: back}
spec: {subnets: [{cidr: 10.77.0.0/22}]}
---
apiVersion: nodelet.dev/v1alpha1
kind: ResourceLimit
metadata: {name: tenants}
spec: {pids: {max: 2000}}
";

/// The name of a workload; no other object has such a name.
pub fn name(index: usize) -> String {
    format!("w{index:03}")
}

/// One workload and its ConfigMap.
#[derive(Debug, Clone)]
pub struct Workload {
    index: usize,
    version: u32,
    configuration: u32,
    stopped: bool,
}

impl Workload {
    /// Its first version.
    pub fn new(index: usize) -> Workload {
        Workload { index, version: 1, configuration: 1, stopped: false }
    }

    /// Its name.
    pub fn name(&self) -> String {
        name(self.index)
    }

    /// It is declared not to run.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// A configuration is told to a process in different ways.
    fn on_change(&self) -> &'static str {
        if self.index.is_multiple_of(3) { "Restart" } else { "Update" }
    }

    /// The port of the node that leads to it.
    pub fn port(&self) -> Option<usize> {
        self.index.is_multiple_of(2).then_some(9500 + self.index)
    }

    /// Its containers.
    pub fn containers(&self) -> &'static [&'static str] {
        if self.index.is_multiple_of(10) { &["main", "side"] } else { &["main"] }
    }

    /// It and its ConfigMap.
    pub fn yaml(&self) -> String {
        let Workload { index, version, configuration, stopped } = self;
        let name = name(*index);
        let networks = if index.is_multiple_of(5) { "[{name: default}, {name: back}]" } else { "[{name: default}]" };
        let limit = if index.is_multiple_of(7) { "resourceLimit: tenants" } else { "hostname: some" };
        // An update that a killed process makes look bad is an update all the same.
        let strategy = if index % 4 == 1 { "StartFirst" } else { "Recreate" };
        let mut yaml = format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: '{configuration}'}}\n\
             ---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
             stopped: {stopped}\n  terminationGracePeriodSeconds: 0\n  networks: {networks}\n  {limit}\n  \
             update: {{strategy: {strategy}, healthySeconds: 0, rollbackOnFailure: false}}\n  volumes:\n  \
             - {{name: conf, configMap: {{name: {name}, onChange: {}}}}}\n  \
             - {{name: memory, emptyDir: {{medium: Memory}}}}\n  - {{name: disk, emptyDir: {{}}}}\n  containers:\n",
            self.on_change()
        );
        for container in self.containers() {
            let port = self.port().filter(|_| *container == "main");
            let ports = port.map_or(String::new(), |port| format!("{{containerPort: 80, hostPort: {port}}}"));
            yaml += &format!(
                "  - name: {container}\n    image: localhost:5000/shop/busybox:1\n    command: [sleep, '2147483647']\n    \
                 env: [{{name: VERSION, value: '{version}'}}]\n    ports: [{ports}]\n    \
                 volumeMounts: [{{name: conf, mountPath: /conf}}, {{name: memory, mountPath: /memory}}, \
                 {{name: disk, mountPath: /disk}}]\n"
            );
        }
        yaml
    }
}

/// All of them.
pub struct Declared {
    all: Vec<(Workload, bool)>,
    /// Deaths of a container since its version.
    deaths: BTreeMap<String, u32>,
}

impl Declared {
    /// This many, all running.
    pub fn new(count: usize) -> Declared {
        Declared { all: (0..count).map(|index| (Workload::new(index), true)).collect(), deaths: BTreeMap::new() }
    }

    /// It is declared.
    pub fn is_there(&self, index: usize) -> bool {
        self.all[index].1
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = &Workload> {
        self.there().filter(|workload| !workload.stopped)
    }

    /// Those that are declared.
    pub fn there(&self) -> impl Iterator<Item = &Workload> {
        self.all.iter().filter(|(_, there)| *there).map(|(workload, _)| workload)
    }

    pub fn yaml(&self, indices: impl IntoIterator<Item = usize>) -> String {
        indices.into_iter().map(|index| self.all[index].0.yaml()).collect()
    }

    pub fn create(&mut self, index: usize) {
        self.all[index].1 = true;
        self.all[index].0.stopped = false;
        self.update(index);
    }

    pub fn delete(&mut self, index: usize) {
        self.all[index].1 = false;
        self.forgive(index);
    }

    pub fn update(&mut self, index: usize) {
        self.all[index].0.version += 1;
        self.forgive(index);
    }

    pub fn configure(&mut self, index: usize) {
        self.all[index].0.configuration += 1;
    }

    /// Answers whether it is stopped now.
    pub fn toggle(&mut self, index: usize) -> bool {
        let workload = &mut self.all[index].0;
        workload.stopped = !workload.stopped;
        let stopped = workload.stopped;
        self.forgive(index);
        stopped
    }

    fn forgive(&mut self, index: usize) {
        let name = name(index);
        self.deaths.retain(|container, _| !container.starts_with(&name));
    }

    /// Notes a death of a container, unless it had enough of them.
    pub fn may_die(&mut self, container: &str, at_most: u32) -> bool {
        let Some((who, _attempt)) = container.rsplit_once('-') else { return false };
        let deaths = self.deaths.entry(who.to_owned()).or_default();
        *deaths += 1;
        *deaths <= at_most
    }

    /// Workloads whose status in the API is not what is declared.
    pub fn unsettled(&self, objects: &BTreeMap<String, Value>) -> Vec<String> {
        let mut all = Vec::new();
        for (workload, there) in &self.all {
            let name = name(workload.index);
            let object = objects.get(&name);
            let settled = match object {
                None => !there,
                Some(_) if !there => false,
                Some(object) if workload.stopped => {
                    object["status"]["phase"] == "Stopped"
                        && object["status"]["observedGeneration"] == object["metadata"]["generation"]
                }
                Some(object) => api::ready(object),
            };
            if !settled {
                let ready = object.and_then(|object| api::condition(object, "Ready"));
                let seen = object.map(|object| [&object["metadata"]["generation"], &object["status"]["phase"]]);
                all.push(format!("{name}: declared {there}, {workload:?}; there is {seen:?}, {ready:?}"));
            }
        }
        all
    }

    /// Processes that are of another version or see another configuration than is declared, and ports that lead
    /// elsewhere.
    pub fn what_runs_differently(&self, node: &Node) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        let (tasks, objects, ports) = (census::tasks(node)?, census::objects(node)?, census::ports(node)?);
        let mut expected_ports = BTreeMap::new();
        for workload in self.running() {
            let name = name(workload.index);
            let Some(object) = objects.get(&name) else {
                differences.push(format!("workload: {name} is gone"));
                continue;
            };
            if let Some(port) = workload.port() {
                let address = object["status"]["addresses"][0]["ip"].as_str().unwrap_or_default();
                expected_ports.insert(port.to_string(), format!("{address}:80"));
            }
            for status in object["status"]["containerStatuses"].as_array().into_iter().flatten() {
                let id = status["containerID"].as_str().unwrap_or_default();
                let Some(task) = tasks.iter().find(|task| task.id == id && task.running) else {
                    differences.push(format!("task: {id} does not run"));
                    continue;
                };
                let process = node.namespaces.path(format!("/proc/{}", task.pid));
                let environment = fs::read_to_string(process.join("environ")).unwrap_or_default();
                let version = format!("VERSION={}", workload.version);
                if !environment.split('\0').any(|entry| entry == version) {
                    differences.push(format!("version: {id} is not of {version}"));
                }
                let configuration = fs::read_to_string(process.join("root/conf/key")).unwrap_or_default();
                if configuration != workload.configuration.to_string() {
                    let wanted = workload.configuration;
                    differences.push(format!("configuration: {id} sees {configuration:?} instead of {wanted}"));
                }
            }
        }
        if ports != expected_ports {
            let wrong: Vec<_> = ports.iter().filter(|(port, to)| expected_ports.get(*port) != Some(to)).collect();
            let missing: Vec<_> = expected_ports.keys().filter(|port| !ports.contains_key(*port)).collect();
            differences.push(format!("port: wrong {wrong:?}, missing {missing:?}"));
        }
        Ok(differences)
    }
}
