//! `kill -9` of the agent between any two of its effects: whatever was half done, the next start comes to the same end,
//! nothing is left over, and the containers of others run on.
//!
//! An operation is asked for once, for several workloads at a time. The agent dies after its first effect, the next one
//! after its second, then after the fourth, the fifth, the seventh and so on, until one lives long enough to bring it to
//! its end: the kills pass through the operation and through its recoveries. Then everything on the node is counted. This
//! is repeated until there were enough kills. With `NODELET_ALL_FAILPOINTS` set every N also has a run of its own, in which
//! nothing is killed but the first agent, after its N-th effect. See `nodelet_drivers::failpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::Release;
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(kills_between_effects_leave_nothing);

/// Kills of a run; with both containerds more than three hundred.
const AT_LEAST: u32 = 155;

const NAMES: [&str; 3] = ["victim", "pair", "beside"];

/// Three workloads that between them use most of what there is.
fn victims(version: u32, stopped: bool) -> String {
    let head = |name: &str| {
        format!(
            "---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
             stopped: {stopped}\n  terminationGracePeriodSeconds: 0\n"
        )
    };
    let container = |name: &str, more: &str| {
        format!(
            "  - name: {name}\n    image: localhost:5000/shop/busybox:1\n    command: [sleep, '2147483647']\n    \
             env: [{{name: VERSION, value: '{version}'}}]\n{more}"
        )
    };
    let configuration =
        format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: pair}}\ndata: {{key: '{version}'}}\n");
    let victim = head("victim")
        + "  volumes: [{name: memory, emptyDir: {medium: Memory}}, {name: disk, emptyDir: {}}]\n  containers:\n"
        + &container(
            "main",
            "    ports: [{containerPort: 80, hostPort: 8071}]\n    \
             volumeMounts: [{name: memory, mountPath: /memory}, {name: disk, mountPath: /disk}]\n",
        );
    let pair = head("pair")
        + "  networks: [{name: default}, {name: back}]\n  volumes: [{name: conf, configMap: {name: pair}}]\n  containers:\n"
        + &container("one", "    volumeMounts: [{name: conf, mountPath: /conf}]\n")
        + &container("two", "");
    let beside = head("beside")
        + "  update: {strategy: StartFirst, healthySeconds: 0, rollbackOnFailure: false}\n  containers:\n"
        + &container("main", "    ports: [{containerPort: 80, hostPort: 8072}]\n");
    configuration + &victim + &pair + &beside
}

const BYSTANDER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Network
metadata: {name: back}
spec: {subnets: [{cidr: 10.77.0.0/24}]}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: bystander}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: 'localhost:5000/test/counter:1', ports: [{containerPort: 80, hostPort: 8070}]}
";

/// What is done to the victims, and when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Create,
    Update,
    Stop,
    Start,
    Delete,
}

const OPERATIONS: [Operation; 5] =
    [Operation::Create, Operation::Update, Operation::Stop, Operation::Start, Operation::Delete];

impl Operation {
    fn ask(self, node: &Node) -> Result<String> {
        match self {
            Operation::Create => node.apply(&victims(1, false)),
            Operation::Update | Operation::Start => node.apply(&victims(2, false)),
            Operation::Stop => node.apply(&victims(2, true)),
            Operation::Delete => {
                let names = NAMES.map(|name| format!("workload/{name}"));
                let words = ["delete", "--no-wait", "--ignore-not-found"].into_iter();
                node.nodelet(&words.chain(names.iter().map(String::as_str)).collect::<Vec<_>>())
            }
        }
    }

    /// What the API says; the agent may be dead.
    fn is_done(self, node: &Node) -> bool {
        NAMES.into_iter().all(|name| match (self, node.object("workloads", name)) {
            (_, Err(_)) => false,
            (Operation::Delete, Ok(object)) => object.is_none(),
            (_, Ok(None)) => false,
            (Operation::Stop, Ok(Some(object))) => {
                object["status"]["phase"] == "Stopped"
                    && object["status"]["observedGeneration"] == object["metadata"]["generation"]
            }
            (_, Ok(Some(object))) => api::ready(&object),
        })
    }
}

/// The end of an operation, with an agent that nobody kills.
fn settle(node: &mut Node, operation: Operation, clean: &BTreeSet<String>) -> Result<()> {
    node.revive_agent()?;
    let done = until(PATIENCE, "the end of the operation", || Ok(operation.is_done(node).then_some(())));
    done.with_context(|| node.explain())?;
    if matches!(operation, Operation::Stop | Operation::Delete) {
        node.until_clean(clean)?;
    }
    Ok(())
}

#[allow(clippy::print_stderr)] // shown by the test runner
fn kills_between_effects_leave_nothing(node: &mut Node) -> Result<()> {
    let pooled = Release::V2.programs().as_ref() == Some(&node.programs);
    if pooled {
        // Effects on anchors are between the others.
        node.share_shims(2)?;
    }
    node.apply(BYSTANDER)?;
    node.until_ready("bystander")?;
    let pid = node.pid("bystander")?;
    let began = began(node, pid)?;
    // The image of the victims is there from now on, and the networks.
    node.apply(&victims(0, false))?;
    for name in NAMES {
        node.until_ready(name)?;
    }
    node.nodelet(&["delete", "workload/victim", "workload/pair", "workload/beside"])?;
    until(PATIENCE, "the bystander's shim to be the only one", || {
        Ok((!pooled || node.ctr(&["containers", "ls", "-q"])?.matches("anchor-").count() == 1).then_some(()))
    })?;
    let clean = node.inventory()?;

    let mut kills = BTreeMap::<Operation, u32>::new();
    let start = Instant::now();
    let mut run = |node: &mut Node, operation: Operation, first: u32, again: bool| -> Result<u32> {
        let context = || format!("{operation:?}, killed after effect {first}{}", if again { " and on" } else { "" });
        let times = node
            .killed_between_effects(first, again, |node| operation.ask(node), |node| operation.is_done(node))
            .with_context(context)?;
        settle(node, operation, &clean).with_context(context)?;
        ensure!(self::began(node, pid)? == began, "{}: another's container was replaced", context());
        *kills.entry(operation).or_default() += times;
        Ok(times)
    };
    let (mut sum, mut rounds) = (0, 0);
    while sum < AT_LEAST {
        rounds += 1;
        for operation in OPERATIONS {
            // The deletion is always there, so that the next round begins as the first.
            if rounds == 1 || sum < AT_LEAST || operation == Operation::Delete {
                sum += run(node, operation, 1, true)?;
            }
        }
        ensure!(sum > 0, "the agent was built without its failpoints; `make build` builds it with them");
    }
    if std::env::var_os("NODELET_ALL_FAILPOINTS").is_some() {
        for effects in 1.. {
            let mut any = 0;
            for operation in OPERATIONS {
                any += run(node, operation, effects, false)?;
            }
            if any == 0 {
                break;
            }
        }
    }
    let sum: u32 = kills.values().sum();
    eprintln!("{sum} kills in {rounds} rounds and {:?}, nothing left over: {kills:?}", start.elapsed());
    let bystander = node.object("workloads", "bystander")?.context("the bystander")?;
    ensure!(api::restarts(&bystander) == 0, "{bystander:#}");
    Ok(())
}

/// When a process began: its PID may have been given to another.
fn began(node: &Node, pid: u32) -> Result<String> {
    let stat = fs::read_to_string(node.namespaces.path(format!("/proc/{pid}/stat"))).context("the process is gone")?;
    let began = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    began.map(str::to_owned).context("a process without a start")
}
