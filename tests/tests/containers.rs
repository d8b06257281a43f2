//! What containers have of each other, of those who talk to them and of their image, on the real kernel.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use nodelet_tests::node::{DATA, Node, PATIENCE, RUN, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(
    containers_share_their_processes,
    input_without_a_terminal_ends_as_asked,
    root_inside_is_nobody_on_the_node,
    volumes_of_an_image_are_filled_and_given_back,
);
nodelet_tests::on_containerd!(what_the_node_cannot_enforce_is_refused);

const IMAGE: &str = "localhost:5000/shop/busybox:1";

fn workload(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n{spec}"
    )
}

fn containers_share_their_processes(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    node.apply(&workload(
        "shared",
        &format!(
            "  shareProcessNamespace: true\n  containers:\n  - {{name: a, image: '{IMAGE}', command: [sleep, '1111111']}}\n  \
             - {{name: b, image: '{IMAGE}', command: [sleep, '2222222']}}\n"
        ),
    ))?;
    node.until_ready("shared")?;
    let in_a = |node: &Node, script: &str| node.nodelet(&["exec", "shared", "-c", "a", "--", "sh", "-c", script]);
    let restarts = |w: &serde_json::Value| w["status"]["restarts"].as_u64();
    ensure!(in_a(node, "cat /proc/1/comm")?.trim() == "nodelet-reaper");
    ensure!(
        in_a(node, "grep -E '^(Uid|CapEff):' /proc/1/status | tr -d '\\t'")?
            .starts_with("Uid:65535655356553565535\nCapEff:0000000000000000")
    );
    // An orphan's exit is taken, and nobody within can end the first process.
    in_a(node, "sh -c 'sleep 0 & exec true'; kill -TERM 1")?;
    until(PATIENCE, "no zombie", || {
        Ok((!in_a(node, "cat /proc/[0-9]*/status 2>/dev/null")?.contains("zombie")).then_some(()))
    })?;
    let find = "for p in /proc/[0-9]*; do \
                [ \"$(tr '\\0' ' ' <$p/cmdline)\" = 'sleep 2222222 ' ] && basename $p; done 2>/dev/null; true";
    let other = in_a(node, find)?;
    // A container that ends leaves the other alone, and has the same namespace when it is back.
    in_a(node, &format!("kill -9 {}", other.trim()))?;
    node.until_workload("shared", "b to be back", |w| restarts(w) == Some(1) && api::ready(w))?;
    ensure!(in_a(node, find)? != other);
    // A new agent finds it; with its first process all others end, and all are started again.
    node.kill_agent()?;
    node.start_agent()?;
    node.until_ready("shared")?;
    node.namespaces.run(["pkill", "-9", "-f", "^/nodelet-reaper"])?;
    node.until_workload("shared", "both to be back", |w| restarts(w) == Some(3) && api::ready(w))?;
    ensure!(!in_a(node, find)?.trim().is_empty());
    node.nodelet(&["delete", "workload", "shared"])?;
    node.until_gone("workloads", "shared")?;
    node.until_clean(&before)
}

fn root_inside_is_nobody_on_the_node(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    node.apply(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Volume\nmetadata: {name: kept}\nspec: {local: {}, reclaimPolicy: Delete}\n",
    )?;
    let alone = |name: &str, more: &str| {
        workload(
            name,
            &format!(
                "  hostUsers: false\n{more}  volumes:\n  - {{name: kept, volume: {{name: kept}}}}\n  \
                 - {{name: tmp, emptyDir: {{medium: Memory}}}}\n  containers:\n  \
                 - {{name: main, image: '{IMAGE}', command: [sleep, '2147483647'], volumeMounts: [\
                 {{name: kept, mountPath: /kept}}, {{name: tmp, mountPath: /scratch}}]}}\n"
            ),
        )
    };
    node.apply(&alone("first", ""))?;
    node.apply(&alone("second", "  shareProcessNamespace: true\n"))?;
    let inside = |node: &Node, name: &str, script: &str| node.nodelet(&["exec", name, "--", "sh", "-c", script]);
    let map = "tr -s ' ' </proc/self/uid_map | cut -d' ' -f 2-4";
    let mut firsts = Vec::new();
    for name in ["first", "second"] {
        node.until_ready(name)?;
        let text = inside(node, name, map)?;
        let numbers: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [0, first, 65536] = numbers[..] else { bail!("{name} has the users {text}") };
        firsts.push(first);
        // Root, who owns the root file system and may write everywhere in it, also to what is mounted.
        let script = "id -u && stat -c %u / /bin/busybox /kept /scratch /etc/hosts | tr -d '\\n' && echo && \
                      echo x >/new && chown 7:8 /new && stat -c %u:%g /new && echo $(hostname) >/kept/$(hostname) && \
                      echo y >/scratch/y && ip -o addr | grep -c eth0 && echo 10.0.0.1 extra >>/etc/hosts";
        let said = inside(node, name, script)?;
        ensure!(said.starts_with("0\n00000\n7:8\n"), "{name}: {said}");
    }
    ensure!(firsts[0] != firsts[1] && firsts.iter().all(|first| *first >= 0x7000_0000), "{firsts:?}");
    // On the node they are those users, without any right, and what they wrote belongs to root.
    let tasks = node.ctr(&["tasks", "ls"])?;
    let pid = |name: &str| -> Result<u32> {
        let row = tasks.lines().find(|row| row.starts_with(&format!("{name}-"))).context("no task")?;
        Ok(row.split_whitespace().nth(1).context("no pid")?.parse()?)
    };
    let owner = node.namespaces.run(["stat", "-c", "%u", &format!("/proc/{}", pid("first")?)])?;
    ensure!(owner.trim() == firsts[0].to_string(), "{owner}");
    let written = node.namespaces.run(["find", &format!("{DATA}/volumes"), "-name", "first", "-printf", "%U:%G"])?;
    ensure!(written == "0:0", "what was written belongs to {written:?}");
    ensure!(inside(node, "first", "cat /kept/second")?.trim() == "second");
    ensure!(inside(node, "first", "mount -o remount,rw /sys 2>&1; :")?.contains("denied"));
    // A restart of both has the same users, and a new container of the same sandbox sees the same.
    node.kill_agent()?;
    node.start_agent()?;
    node.namespaces.signal(pid("first")?, "KILL")?;
    node.until_workload("first", "main to be back", |w| w["status"]["restarts"].as_u64() == Some(1) && api::ready(w))?;
    ensure!(inside(node, "first", map)?.contains(&firsts[0].to_string()));
    ensure!(inside(node, "first", "stat -c %u /kept/second /scratch/y")?.trim() == "0\n0");
    // What cannot be is refused by name.
    node.apply(&workload(
        "refused",
        &format!("  hostUsers: false\n  hostPID: true\n  containers:\n  - {{name: main, image: '{IMAGE}'}}\n"),
    ))?;
    node.until_workload("refused", "the refusal", |w| {
        w.to_string().contains("spec.hostUsers: false cannot go with hostPID")
    })?;
    node.nodelet(&["delete", "workload", "first", "second", "refused"])?;
    node.until_gone("workloads", "first")?;
    node.until_gone("workloads", "second")?;
    node.nodelet(&["delete", "volume", "kept"])?;
    node.until_clean(&before)
}

fn input_without_a_terminal_ends_as_asked(node: &mut Node) -> Result<()> {
    let container = |once: bool, script: &str| {
        format!(
            "  containers:\n  - name: main\n    image: {IMAGE}\n    stdin: true\n    stdinOnce: {once}\n    \
             command: [sh, -c, '{script}; exec sleep 2147483647']\n"
        )
    };
    let once = "cat >/tmp/got; echo ended with $(cat /tmp/got)";
    node.apply(&workload("reads", &container(false, "cat")))?;
    node.apply(&workload("once", &container(true, once)))?;
    node.apply(&workload("left", &container(true, once)))?;
    for name in ["reads", "once", "left"] {
        node.until_ready(name)?;
    }
    let says = |node: &Node, name: &str, text: &str| {
        until(PATIENCE, &format!("{name} to say {text}"), || {
            Ok(node.nodelet(&["logs", name])?.contains(text).then_some(()))
        })
    };
    let attach = |node: &Node, name: &str, typed: &str| {
        node.background(&format!("({typed}) | {} attach -i {name} >/dev/null", node.nodelet.display()))
    };
    // It stays open, over the end of who is attached and over an agent's.
    let mut first = attach(node, "reads", "echo one")?;
    says(node, "reads", "one")?;
    first.kill()?;
    first.wait()?;
    node.kill_agent()?;
    node.start_agent()?;
    let mut second = attach(node, "reads", "echo two")?;
    says(node, "reads", "two")?;
    // Used once, it ends with its user, and is there for nobody else.
    let mut user = attach(node, "once", "echo a; echo b")?;
    says(node, "once", "ended with a b")?;
    let error = node.nodelet(&["attach", "-i", "once"]).err().context("a second use")?;
    ensure!(format!("{error:#}").contains("stdinOnce"), "{error:#}");
    // Also when it was the agent that went.
    let mut left = attach(node, "left", "echo c; sleep 600")?;
    until(PATIENCE, "the input to be taken", || {
        let taken = node.namespaces.run(["sh", "-c", &format!("ls {RUN}/stdin/left-*/")])?;
        Ok(taken.contains("taken").then_some(()))
    })?;
    node.kill_agent()?;
    node.start_agent()?;
    says(node, "left", "ended with")?;
    for child in [&mut second, &mut user, &mut left] {
        let _ = child.kill();
        child.wait()?;
    }
    node.nodelet(&["delete", "workload", "reads", "once", "left"])?;
    node.until_gone("workloads", "reads")?;
    until(PATIENCE, "the inputs to be gone", || {
        Ok(node.namespaces.run(["sh", "-c", &format!("ls {RUN}/stdin")])?.trim().is_empty().then_some(()))
    })
}

fn volumes_of_an_image_are_filled_and_given_back(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    let container = "  containers:\n  - {name: main, image: 'localhost:5000/test/checked:1', livenessProbe: {exec: {command: ['true']}}}\n";
    node.apply(&workload("keeps", container))?;
    node.until_ready("keeps")?;
    let sh = |node: &Node, name: &str, script: &str| node.nodelet(&["exec", name, "--", "sh", "-c", script]);
    ensure!(sh(node, "keeps", "cat /kept/seed; stat -c '%a %u' /kept; echo own >/kept/own")? == "seed\n750 70\n");
    ensure!(sh(node, "keeps", "grep -c ' /kept ' /proc/mounts")?.trim() == "1");
    // What was written is there after a restart, and not refilled.
    sh(node, "keeps", "rm /kept/seed")?;
    let pid = node.pid("keeps")?;
    node.namespaces.run(["kill", "-9", &pid.to_string()])?;
    node.until_workload("keeps", "it to be back", |w| api::restarts(w) == 1 && api::ready(w))?;
    ensure!(sh(node, "keeps", "ls /kept")?.trim() == "own");
    // A mount of the Workload takes its place.
    let mounted = container.replace("}}}", "}}, volumeMounts: [{name: v, mountPath: /kept}]}");
    node.apply(&workload("mounts", &format!("{mounted}  volumes: [{{name: v, emptyDir: {{}}}}]\n")))?;
    node.until_ready("mounts")?;
    ensure!(sh(node, "mounts", "ls /kept")?.trim().is_empty());
    node.nodelet(&["delete", "workload", "keeps", "mounts"])?;
    for name in ["keeps", "mounts"] {
        node.until_gone("workloads", name)?;
    }
    ensure!(fs::read_dir(node.namespaces.path(DATA).join("ephemeral"))?.next().is_none());
    node.until_clean(&before)
}

fn what_the_node_cannot_enforce_is_refused(node: &mut Node) -> Result<()> {
    if node.namespaces.path("/sys/module/apparmor/parameters/enabled").exists() {
        return Ok(());
    }
    let container =
        format!("  containers:\n  - {{name: main, image: '{IMAGE}', command: [sleep, '1'], securityContext: ");
    node.apply(&workload("armoured", &format!("{container}{{appArmorProfile: {{type: RuntimeDefault}}}}}}\n")))?;
    node.until_workload("armoured", "the refusal", |w| {
        let ready = api::condition(w, "Ready");
        ready.is_some_and(|ready| ready["message"].as_str().unwrap_or_default().contains("has no AppArmor"))
    })?;
    node.apply(&workload("bare", &format!("{container}{{appArmorProfile: {{type: Unconfined}}}}}}\n")))?;
    node.until_workload("bare", "it to have started", |w| w["status"]["startTime"].is_string())?;
    Ok(())
}
