//! Talking to running containers: exec, attach, cp, port-forward and logs, by `nodelet` and by kubectl.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{DATA, Node, PATIENCE, RUN, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(
    programs_run_in_containers,
    a_terminal_is_one,
    attaching_shows_and_feeds,
    nothing_stays_of_an_exec_whose_agent_was_killed,
);
nodelet_tests::on_containerd!(files_are_copied, ports_are_forwarded, logs_are_followed_over_restarts);

const BOX: &str = "apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: 'localhost:5000/shop/busybox:1', command: [sleep, '2147483647']}
";

/// Bytes that go through a program and back, and the shell that makes them.
const MANY: u64 = 256 << 20;
/// Programs that are given input one after another.
const ROUNDS: u32 = 10;

/// How a script in the node ended: exit code, stdout and stderr.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// Runs a script in the node. `$N` is the nodelet command line, `$K` kubectl if there is one.
fn sh(node: &Node, script: &str) -> Result<Ended> {
    let mut command = node.namespaces.command("bash");
    let prelude = format!(
        "N={}; K='kubectl --kubeconfig {DATA}/admin.kubeconfig'; cd /run; {script}",
        node.nodelet.to_str().context("the build directory has no UTF-8 name")?
    );
    let output = command.args(["-c", &prelude]).stdin(Stdio::null()).output()?;
    Ok(Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Output of a script that has to succeed.
fn succeeds(node: &Node, script: &str) -> Result<String> {
    let Ended { code, out, err } = sh(node, script)?;
    ensure!(code == 0, "{script}: {code}\n{out}\n{err}\n{}", node.explain());
    Ok(out)
}

/// Makes the API listen, which kubectl needs; whether there is a kubectl.
fn listen(node: &mut Node) -> Result<bool> {
    let config = fs::read_to_string(node.config())?;
    node.stop_agent()?;
    fs::write(node.config(), config.replace("listen: \"\"", "listen: \"127.0.0.1:6440\""))?;
    node.start_agent()?;
    Ok(sh(node, "command -v kubectl")?.code == 0)
}

/// The programs that speak to the API.
fn clients(node: &mut Node) -> Result<Vec<&'static str>> {
    Ok(if listen(node)? { vec!["$N", "$K"] } else { vec!["$N"] })
}

/// What is in the directories of streams; empty when nobody talks to anything.
fn pipes(node: &Node) -> Result<String> {
    node.namespaces.run(["sh", "-c", &format!("find {RUN}/exec {RUN}/stdin -mindepth 1 2>/dev/null || true")])
}

fn programs_run_in_containers(node: &mut Node) -> Result<()> {
    let clients = clients(node)?;
    node.apply(BOX)?;
    node.until_ready("box")?;
    let pid = node.pid("box")?;
    for client in clients {
        let ended = sh(node, &format!("{client} exec box -c main -- sh -c 'echo out; echo err >&2; exit 7'"))?;
        ensure!(
            (ended.code, ended.out.as_str()) == (7, "out\n"),
            "{client}: {} {} {}",
            ended.code,
            ended.out,
            ended.err
        );
        ensure!(ended.err.starts_with("err\n"), "{client}: {}", ended.err);
        let ended = sh(node, &format!("{client} exec box -- nothing-of-this-name"))?;
        ensure!(ended.code == 127 && ended.err.contains("not found"), "{client}: {} {}", ended.code, ended.err);
        let ended = sh(node, &format!("{client} exec box -c nobody -- true"))?;
        ensure!(ended.code == 1 && ended.err.contains("nobody"), "{client}: {} {}", ended.code, ended.err);
        // Without -i the program has no input.
        ensure!(succeeds(node, &format!("echo x | {client} exec box -- wc -c"))?.trim() == "0");
        let make = format!("yes 'a line that is no power of two' | head -c {MANY}");
        let start = Instant::now();
        let back = succeeds(node, &format!("{make} | {client} exec -i box -- cat | sha256sum"))?;
        let took = start.elapsed();
        ensure!(back == succeeds(node, &format!("{make} | sha256sum"))?, "{client}: not what was sent");
        ensure!(took < Duration::from_secs(60), "{client}: {took:?}");
        #[allow(clippy::print_stderr)] // shown by the test runner
        {
            eprintln!("{client}: {} MiB there and back in {took:?}", MANY >> 20);
        }
        // A program that stops to read, and little input; often, as the shim may open its end of it late.
        for _ in 0..ROUNDS {
            let read = succeeds(node, &format!("{make} | {client} exec -i box -- head -c 5"))?;
            ensure!(read == "a lin", "{client}: {read:?}");
            let read = succeeds(node, &format!("echo little | {client} exec -i box -- cat"))?;
            ensure!(read == "little\n", "{client}: {read:?}");
        }
        // One that leaves its output to a child.
        let start = Instant::now();
        succeeds(node, &format!("{client} exec box -- sh -c 'sleep 600 & exit 0'"))?;
        ensure!(start.elapsed() < Duration::from_secs(30), "waited for the child");
        // A client that goes away takes its program with it.
        let ended = sh(node, &format!("timeout -s KILL 2 {client} exec box -- sleep 7777"))?;
        ensure!(ended.code != 0, "it was killed");
        until(PATIENCE, "the program to end", || {
            Ok(node.namespaces.run(["sh", "-c", "! pgrep -f '^sleep 7777'"]).ok())
        })?;
    }
    until(PATIENCE, "the pipes to be gone", || Ok(pipes(node)?.is_empty().then_some(())))?;
    ensure!(node.pid("box")? == pid, "the container was replaced");
    node.nodelet(&["stop", "box"])?;
    node.until_workload("box", "stopped", |workload| workload["status"]["phase"] == "Stopped")?;
    let ended = sh(node, "$N exec box -- true")?;
    ensure!(ended.code == 1 && ended.err.contains("not running"), "{}", ended.err);
    Ok(())
}

fn a_terminal_is_one(node: &mut Node) -> Result<()> {
    let clients = clients(node)?;
    node.apply(BOX)?;
    node.until_ready("box")?;
    // kubectl makes no terminal without its input.
    let shown = "export N; script -qec \"$N exec -t box -- sh -c 'test -t 1 && echo yes'\" /run/typescript </dev/null";
    let shown = succeeds(node, shown)?;
    ensure!(shown == "yes\r\n", "{shown:?}");
    for client in clients {
        // `script` gives a terminal of 80 by 24 that nobody sees.
        let on_terminal = |command: &str| {
            format!("export N K; script -qec \"stty cols 91 rows 33; {command}\" /run/typescript </dev/null")
        };
        let ended = sh(node, &on_terminal(&format!("{client} exec -it box -- sh -c 'test -t 1 && echo yes; exit 3'")))?;
        ensure!(ended.code == 3 && ended.out.contains("yes\r\n"), "{client}: {} {}", ended.code, ended.out);
        let size = format!("{client} exec -it box -- sh -c 'sleep 1; stty size'");
        let ended = sh(node, &on_terminal(&size))?;
        ensure!(ended.out.contains("33 91"), "{client}: {} {}", ended.out, ended.err);
        // Keys, and a terminal that is as it was before.
        let typed = format!(
            "export N K; (sleep 2; printf 'echo a$((1+1))b\\r'; sleep 1; printf 'exit 5\\r'; sleep 1) | \
             script -qec \"stty -a >/run/before; {client} exec -it box -- sh; code=\\$?; stty -a >/run/after; exit \\$code\" \
             /run/typescript"
        );
        let ended = sh(node, &typed)?;
        ensure!(ended.code == 5 && ended.out.contains("a2b"), "{client}: {} {} {}", ended.code, ended.out, ended.err);
        succeeds(node, "cmp /run/before /run/after")?;
    }
    until(PATIENCE, "the pipes to be gone", || Ok(pipes(node)?.is_empty().then_some(())))
}

const CONSOLE: &str = "apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: console}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost:5000/shop/busybox:1
    tty: true
    stdin: true
    command: [sh, -c, 'n=0; while printf \"prompt> \" && read line; do n=$((n+1)); echo \"$n got $line\"; done; exit 9']
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: ticks}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: 'localhost:5000/test/counter:1'}
";

fn attaching_shows_and_feeds(node: &mut Node) -> Result<()> {
    let clients = clients(node)?;
    node.apply(CONSOLE)?;
    node.until_ready("console")?;
    node.until_ready("ticks")?;
    let pid = node.pid("console")?;
    for (number, client) in clients.iter().enumerate() {
        if number > 0 {
            // The program sees no end of its input when the agent comes and goes.
            node.kill_agent()?;
            node.start_agent()?;
        }
        // `script` types an end of input when its own ends, so that one lasts longer.
        let typed = format!(
            "export N K; (sleep 2; printf 'hello{number}\\r'; sleep 4) | \
             timeout 5 script -qec \"{client} attach -it console\" /run/typescript; true"
        );
        let ended = sh(node, &typed)?;
        ensure!(ended.out.contains(&format!("got hello{number}\r\n")), "{client}: {} {}", ended.out, ended.err);
        ensure!(ended.out.contains("prompt> "), "an unfinished line is shown: {}", ended.out);
        ensure!(node.pid("console")? == pid, "the container was replaced");
        // Numbers without a gap.
        let ended = sh(node, &format!("timeout -s INT 3 {client} attach ticks"))?;
        let numbers: Vec<u64> =
            ended.out.lines().filter_map(|line| line.trim().strip_prefix("count ")?.parse().ok()).collect();
        ensure!(numbers.len() > 50, "{client}: {} {}", ended.out, ended.err);
        // The last line may be cut.
        let whole = &numbers[..numbers.len() - 1];
        ensure!(whole.windows(2).all(|pair| pair[1] == pair[0] + 1), "{client}: a gap in {numbers:?}");
    }
    let ended = sh(node, "echo x | $N attach -i ticks")?;
    ensure!(ended.code == 1 && ended.err.contains("stdin: true"), "{}", ended.err);
    node.nodelet(&["delete", "workload", "console", "ticks"])?;
    node.until_gone("workloads", "console")?;
    until(PATIENCE, "the pipes to be gone", || Ok(pipes(node)?.is_empty().then_some(())))
}

fn nothing_stays_of_an_exec_whose_agent_was_killed(node: &mut Node) -> Result<()> {
    node.apply(BOX)?;
    node.until_ready("box")?;
    let pid = node.pid("box")?;
    let before = node.inventory()?;
    let mut clients = Vec::new();
    for number in 0..3 {
        // One waits, one prints what nobody will read, one waits for input.
        let command = ["sleep 8888", "yes 8888", "cat - /dev/8888"][number];
        let script = format!("sleep 60 | {} exec -i box -- {command} >/dev/null", node.nodelet.display());
        clients.push(node.background(&script)?);
    }
    let running = || node.namespaces.run(["sh", "-c", "pgrep -f '^(sleep|yes|cat).*8888' | wc -l"]);
    until(PATIENCE, "the programs", || Ok((running()?.trim() == "3").then_some(())))?;
    ensure!(!pipes(node)?.is_empty());
    node.namespaces.run(["sh", "-c", &format!("kill -9 {}", node.agent.as_ref().context("an agent")?.pid)])?;
    node.agent.take().context("an agent")?.wait(PATIENCE)?;
    node.start_agent()?;
    until(PATIENCE, "the programs to be ended", || {
        let running = node.namespaces.run(["sh", "-c", "pgrep -f '^(sleep|yes|cat).*8888' | wc -l"])?;
        Ok((running.trim() == "0" && pipes(node)?.is_empty()).then_some(()))
    })
    .with_context(|| node.explain())?;
    ensure!(node.pid("box")? == pid, "the container was replaced");
    let id = api::container_id(&node.until_ready("box")?).context("a container")?;
    // The first line is the head, the second the container's own program.
    let processes = node.ctr(&["task", "ps", &id])?;
    ensure!(processes.lines().count() == 2, "{processes}");
    ensure!(node.inventory()? == before);
    for mut client in clients {
        let _ = client.kill();
        let _ = client.wait();
    }
    Ok(())
}

fn files_are_copied(node: &mut Node) -> Result<()> {
    let clients = clients(node)?;
    node.apply(BOX)?;
    node.until_ready("box")?;
    succeeds(
        node,
        "mkdir -p tree/deep/er; head -c 64M /dev/urandom >big; echo one >tree/a; echo two >tree/deep/er/b; \
         ln -s ../a tree/deep/link; : >tree/empty; chmod 750 tree/a",
    )?;
    for client in clients {
        succeeds(
            node,
            &format!(
                "$N exec box -- rm -rf /tmp/big /tmp/tree /tmp/new; rm -rf back other; {client} cp big box:/tmp/big"
            ),
        )?;
        let there = succeeds(node, "$N exec box -- sha256sum /tmp/big")?;
        let here = succeeds(node, "sha256sum big")?;
        ensure!(there.split(' ').next() == here.split(' ').next(), "{client}: {there} {here}");
        succeeds(node, &format!("{client} cp default/box:/tmp/big back && cmp big back"))?;
        succeeds(node, &format!("{client} cp tree box:/tmp && {client} cp box:/tmp/tree other"))?;
        succeeds(node, "cmp tree/a other/a && cmp tree/deep/er/b other/deep/er/b && test -f other/empty")?;
        if client == "$N" {
            succeeds(node, "test $(readlink other/deep/link) = ../a && test $(stat -c %a other/a) = 750")?;
            succeeds(node, "$N cp tree/a box:/tmp/new && test \"$($N exec box -- cat /tmp/new)\" = one")?;
        }
    }
    for (words, complaint) in [
        ("box:/tmp/none here", "none"),
        ("none box:/tmp/x", "none"),
        ("tree other", "one of the two"),
        ("big box:/no/such/place", "/no/such"),
        ("big nobody:/tmp", "nobody"),
    ] {
        let ended = sh(node, &format!("$N cp {words}"))?;
        ensure!(ended.code != 0 && ended.err.contains(complaint), "{words}: {} {}", ended.code, ended.err);
    }
    Ok(())
}

fn ports_are_forwarded(node: &mut Node) -> Result<()> {
    let clients = clients(node)?;
    let server = |name: &str, more: &str| {
        format!(
            "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  {more}\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: 'localhost:5000/shop/nginx:1'}}\n"
        )
    };
    node.apply(&server("web", ""))?;
    node.until_ready("web")?;
    for (number, client) in clients.iter().enumerate() {
        let port = 8100 + number;
        let started = Instant::now();
        let out = succeeds(
            node,
            &format!(
                "{client} port-forward {}web {port}:80 >forward 2>&1 & forward=$!; trap \"kill $forward\" EXIT
                 for try in $(seq 100); do curl -sf http://127.0.0.1:{port}/ >page && break; sleep 0.1; done
                 fetch() {{ curl -sf -o /dev/null http://127.0.0.1:{port}/ && echo ok; }}; export -f fetch
                 seq 1000 | xargs -P 16 -I NUMBER bash -c fetch | grep -c ok",
                // kubectl takes what has no kind for a Pod.
                if *client == "$K" { "pod/" } else { "" }
            ),
        )?;
        let said = fs::read_to_string(node.namespaces.path("/run/forward"))?;
        ensure!(out.trim() == "1000", "{client}: {out}\n{said}");
        #[allow(clippy::print_stderr)] // shown by the test runner
        {
            eprintln!("{client}: 1000 connections in {:?}", started.elapsed());
        }
    }
    // A free port here, and a port where nobody listens.
    succeeds(
        node,
        "$N port-forward web :80 81 >forward 2>&1 & forward=$!; trap \"kill $forward\" EXIT
         for try in $(seq 100); do grep -q -- '-> 80' forward && break; sleep 0.1; done; sleep 0.2
         port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) -> 80$/\\1/p' forward)
         curl -sf http://127.0.0.1:$port/ && ! curl -sf --max-time 5 http://127.0.0.1:81/ && sleep 0.5 && grep -q refused forward",
    )?;
    let ended = sh(node, "$N port-forward web 80:http")?;
    ensure!(ended.code == 2, "{} {}", ended.code, ended.err);
    let ended = sh(node, "timeout -s INT 3 $N port-forward web 8090:80")?;
    ensure!(ended.out.contains("Forwarding from 127.0.0.1:8090 -> 80"), "{} {}", ended.out, ended.err);
    Ok(())
}

fn logs_are_followed_over_restarts(node: &mut Node) -> Result<()> {
    let clients = clients(node)?;
    node.apply(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {name: again}\nspec:\n  containers:\n  - name: main\n    \
         image: localhost:5000/shop/busybox:1\n    command: [sh, -c, 'echo begins; sleep 3; echo ends; exit 1']\n",
    )?;
    node.until_workload("again", "restarted", |workload| api::restarts(workload) >= 1)?;
    for client in clients {
        ensure!(succeeds(node, &format!("{client} logs again --previous"))?.starts_with("begins\nends"), "{client}");
    }
    let followed = sh(node, "timeout 30 $N logs again -f | head -4")?;
    ensure!(followed.out.lines().filter(|line| *line == "begins").count() >= 2, "{}", followed.out);
    node.apply("apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {name: ticks}\nspec:\n  containers:\n  - {name: main, image: 'localhost:5000/test/counter:1'}\n")?;
    node.until_ready("ticks")?;
    let followed = sh(node, "timeout 3 $K logs -f ticks || true")?;
    ensure!(followed.out.lines().count() > 100, "{} {}", followed.out.len(), followed.err);
    Ok(())
}
