//! Containers never depend on the agent or on containerd being alive.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(
    a_killed_agent_disturbs_nothing,
    a_killed_containerd_disturbs_nothing,
    a_container_that_ends_while_the_agent_is_away_is_restarted,
    what_a_shared_shim_ran_comes_back_once,
);

const COUNTER: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: 'localhost:5000/test/counter:1', ports: [{containerPort: 80, hostPort: 8070}]}
";

fn a_killed_agent_disturbs_nothing(node: &mut Node) -> Result<()> {
    node.apply(COUNTER)?;
    node.until_ready("counter")?;
    let pid = node.pid("counter")?;
    for _ in 0..3 {
        let seen = counted(node)?;
        node.kill_agent()?;
        until_counted(node, seen + 100)?;
        node.start_agent()?;
        let workload = node.until_ready("counter")?;
        ensure!(api::restarts(&workload) == 0, "{workload:#}");
        ensure!(node.pid("counter")? == pid, "the container was replaced");
    }
    Ok(())
}

fn a_killed_containerd_disturbs_nothing(node: &mut Node) -> Result<()> {
    node.apply(COUNTER)?;
    node.until_ready("counter")?;
    let pid = node.pid("counter")?;
    let seen = counted(node)?;
    node.kill_containerd()?;
    until_counted(node, seen + 200)?;
    node.start_containerd()?;
    until_counted(node, seen + 400)?;
    let workload = node.until_ready("counter")?;
    ensure!(api::restarts(&workload) == 0, "{workload:#}");
    ensure!(node.pid("counter")? == pid, "the container was replaced");
    // The agent hears of containerd's events again.
    node.ctr(&["task", "kill", "-s", "KILL", &api::container_id(&workload).context("a container")?])?;
    node.until_workload("counter", "restarted", |workload| api::restarts(workload) == 1 && api::ready(workload))?;
    Ok(())
}

fn a_container_that_ends_while_the_agent_is_away_is_restarted(node: &mut Node) -> Result<()> {
    node.apply(COUNTER)?;
    let workload = node.until_ready("counter")?;
    node.kill_agent()?;
    node.ctr(&["task", "kill", "-s", "KILL", &api::container_id(&workload).context("a container")?])?;
    node.start_agent()?;
    node.until_workload("counter", "restarted", |workload| api::restarts(workload) == 1 && api::ready(workload))?;
    Ok(())
}

/// On containerd 2.x the shim is an anchor's, whose end containerd does not follow up.
fn what_a_shared_shim_ran_comes_back_once(node: &mut Node) -> Result<()> {
    node.share_shims(2)?;
    let names = ["s0", "s1", "s2", "s3"];
    let workload = |name: &&str| {
        format!(
            "---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: 'localhost:5000/shop/busybox:1', \
             command: [sleep, '77810{}']}}\n",
            &name[1..]
        )
    };
    node.apply(&names.iter().map(workload).collect::<String>())?;
    for name in names {
        node.until_ready(name)?;
    }
    for with_the_daemons in [false, true] {
        let pids = names.iter().map(|name| node.pid(name)).collect::<Result<Vec<_>>>()?;
        let shims = pids.iter().map(|pid| parent(node, *pid)).collect::<Result<Vec<_>>>()?;
        let shared: Vec<bool> = shims.iter().map(|shim| *shim == shims[0]).collect();
        if with_the_daemons {
            node.kill_agent()?;
            node.kill_containerd()?;
        }
        node.namespaces.signal(shims[0], "KILL")?;
        if with_the_daemons {
            node.start_containerd()?;
            node.start_agent()?;
        }
        for ((name, pid), shared) in names.iter().zip(&pids).zip(&shared) {
            until(PATIENCE, &format!("{name} to run as it should, once"), || {
                let ready = node.object("workloads", name)?.is_some_and(|workload| api::ready(&workload));
                let script = format!("pgrep -fc '^sleep 77810{}$' || true", &name[1..]);
                let running = node.namespaces.run(["sh", "-c", &script])?;
                ensure!(matches!(running.trim(), "0" | "1"), "{name} runs {running} times");
                let now = node.pid(name).ok();
                ensure!(*shared || now == Some(*pid), "{name}, in another shim, was replaced");
                Ok((ready && running.trim() == "1" && now.is_some_and(|now| (now != *pid) == *shared)).then_some(()))
            })
            .with_context(|| node.explain())?;
        }
    }
    node.nodelet(&["delete", "workload/s0", "workload/s1", "workload/s2", "workload/s3"])?;
    let kinds = ["container: ", "task: ", "snapshot: ", "process: ", "cgroup: "];
    until(PATIENCE, "nothing to be left", || {
        let all = node.inventory()?;
        Ok((!all.iter().any(|line| kinds.iter().any(|kind| line.starts_with(kind)))).then_some(()))
    })
    .with_context(|| format!("{:#?}\n{}", node.inventory(), node.explain()))
}

/// The parent of a process.
fn parent(node: &Node, pid: u32) -> Result<u32> {
    let stat = fs::read_to_string(node.namespaces.path(format!("/proc/{pid}/stat")))?;
    let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
    Ok(parent.context("a process without a parent")?.parse()?)
}

/// The highest number in the counter's log, which must hold all the numbers before it as well, in order.
fn counted(node: &Node) -> Result<u64> {
    let mut last = 0;
    for line in log_lines(node)? {
        let number =
            line.rsplit_once("count ").with_context(|| format!("not a counted line: {line}"))?.1.trim().parse()?;
        ensure!(number == last + 1, "after {last} the log goes on with {number}");
        last = number;
    }
    Ok(last)
}

fn until_counted(node: &Node, number: u64) -> Result<u64> {
    until(PATIENCE, "the counter to go on", || Ok(Some(counted(node)?).filter(|seen| *seen >= number)))
}

/// The complete lines of the only log file on the node.
fn log_lines(node: &Node) -> Result<Vec<String>> {
    let mut text = String::new();
    for workload in fs::read_dir(node.namespaces.path(DATA).join("logs"))? {
        for container in fs::read_dir(workload?.path())? {
            for file in fs::read_dir(container?.path())? {
                text += &fs::read_to_string(file?.path())?;
            }
        }
    }
    let complete = text.rfind('\n').map_or(0, |end| end + 1);
    Ok(text[..complete].lines().map(str::to_owned).collect())
}
