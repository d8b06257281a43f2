//! `kill -9` of the agent between any two of its effects: whatever was half done, the next start comes to the same end,
//! nothing is left over, and the containers of others run on.
//!
//! Round N kills each operation after its N-th effect. An ordinary run takes every seventh N, as far as its time goes; with
//! `NODELET_ALL_FAILPOINTS` set none is left out. See `nodelet_drivers::failpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(kills_between_effects_leave_nothing);

/// Kills of a run that leaves none out; with both containerds three hundred.
const AT_LEAST: u32 = 150;
/// What an ordinary run may take. How many kills that is depends on the machine; it says how many.
const TIME: Duration = Duration::from_secs(90);
/// An ordinary run takes one residue, a full one all, one after the other.
const STRIDE: usize = 7;

fn victim(version: u32, stopped: bool) -> String {
    format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: victim}}\nspec:\n  \
         stopped: {stopped}\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    \
         image: localhost:5000/shop/busybox:1\n    command: [sleep, '2147483647']\n    \
         env: [{{name: VERSION, value: '{version}'}}]\n    ports: [{{containerPort: 80, hostPort: 8071}}]\n    \
         volumeMounts: [{{name: memory, mountPath: /memory}}, {{name: disk, mountPath: /disk}}]\n  \
         volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}, {{name: disk, emptyDir: {{}}}}]\n"
    )
}

const BYSTANDER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: bystander}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: 'localhost:5000/test/counter:1', ports: [{containerPort: 80, hostPort: 8070}]}
";

/// What is done to the victim, and when it is done.
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
            Operation::Create => node.apply(&victim(1, false)),
            Operation::Update | Operation::Start => node.apply(&victim(2, false)),
            Operation::Stop => node.apply(&victim(2, true)),
            Operation::Delete => match node.nodelet(&["delete", "workload", "victim"]) {
                // Asked again after a kill, it may be gone by itself.
                Err(error) if error.to_string().contains("not found") => Ok(String::new()),
                other => other,
            },
        }
    }

    fn is_done(self, node: &Node, clean: &BTreeSet<String>) -> Result<bool> {
        let object = node.object("workloads", "victim");
        Ok(match (self, object) {
            // The agent may be dead.
            (_, Err(_)) => false,
            (Operation::Create | Operation::Update | Operation::Start, Ok(object)) => {
                object.is_some_and(|workload| api::ready(&workload))
            }
            (Operation::Stop, Ok(_)) => node.inventory()? == *clean,
            (Operation::Delete, Ok(object)) => object.is_none(),
        })
    }
}

fn counter(node: &Node) -> PathBuf {
    node.namespaces.path("/run/failpoints")
}

/// Does it with a kill after the given number of effects. Answers whether there were as many.
fn killed_after(node: &mut Node, operation: Operation, effects: usize, clean: &BTreeSet<String>) -> Result<bool> {
    fs::write(counter(node), effects.to_string())?;
    let _the_agent_may_die_before_it_answers = operation.ask(node);
    let mut agent = node.agent.take().context("the agent does not run")?;
    until(PATIENCE, "the kill or the end of the operation", || {
        Ok((!agent.alive() || operation.is_done(node, clean)?).then_some(()))
    })
    .with_context(|| node.explain())?;
    // Whoever removes the file has the say: the agent before it dies, or this test.
    if fs::remove_file(counter(node)).is_ok() {
        node.agent = Some(agent);
        return Ok(false);
    }
    agent.wait(PATIENCE)?;
    node.start_agent()?;
    operation.ask(node)?;
    until(PATIENCE, "the end of the operation after a kill", || Ok(operation.is_done(node, clean)?.then_some(())))
        .with_context(|| node.explain())?;
    Ok(true)
}

#[allow(clippy::print_stderr)] // shown by the test runner
fn kills_between_effects_leave_nothing(node: &mut Node) -> Result<()> {
    node.apply(BYSTANDER)?;
    node.until_ready("bystander")?;
    let pid = node.pid("bystander")?;
    // The image of the victim is there from now on, and the network.
    node.apply(&victim(0, false))?;
    node.until_ready("victim")?;
    node.nodelet(&["delete", "workload", "victim"])?;
    node.until_gone("workloads", "victim")?;
    let clean = node.inventory()?;

    let mut kills = BTreeMap::<Operation, u32>::new();
    let (start, all) = (Instant::now(), std::env::var_os("NODELET_ALL_FAILPOINTS").is_some());
    'rounds: for first in 1..=if all { STRIDE } else { 1 } {
        for effects in (first..).step_by(STRIDE) {
            let mut any = false;
            for operation in OPERATIONS {
                let context = || format!("{operation:?}, killed after effect {effects}");
                if killed_after(node, operation, effects, &clean).with_context(context)? {
                    *kills.entry(operation).or_default() += 1;
                    any = true;
                }
                ensure!(node.pid("bystander")? == pid, "{}: another's container was replaced", context());
                if matches!(operation, Operation::Stop | Operation::Delete) {
                    node.until_clean(&clean).with_context(context)?;
                }
            }
            ensure!(any || effects > 1, "the agent was built without its failpoints; `make build` builds it with them");
            if !all && start.elapsed() > TIME {
                break 'rounds;
            }
            if !any {
                break;
            }
        }
    }
    let sum: u32 = kills.values().sum();
    eprintln!("{sum} kills in {:?}, nothing left over: {kills:?}", start.elapsed());
    ensure!(!all || sum >= AT_LEAST, "only {sum} kills: {kills:?}");
    let bystander = node.object("workloads", "bystander")?.context("the bystander")?;
    ensure!(api::restarts(&bystander) == 0, "{bystander:#}");
    Ok(())
}
