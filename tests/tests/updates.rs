//! Updates: a new version takes over without a refused connection, and one that does not work gives way to the last
//! that did, by itself, with its configuration.

use std::fs;
use std::process::Child;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::Value;

nodelet_tests::on_each_containerd!(
    a_new_version_takes_over_without_a_failed_request,
    a_version_that_does_not_work_gives_way_to_the_last_that_did,
    an_update_survives_kills_of_the_agent,
);
nodelet_tests::on_containerd!(
    configuration_goes_back_with_the_spec,
    recreate_goes_back_too,
    an_older_revision_is_brought_back_by_hand,
    what_changes_in_place_replaces_nothing,
);

const PAGE: &str = "http://127.0.0.1:8088/";
const SERVE: &str = "exec httpd -f -p 80 -h /tmp";

/// A web server whose page is its version.
fn web(version: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: web}}\nspec:\n  \
         update: {{strategy: StartFirst, healthySeconds: 2, progressDeadlineSeconds: 6}}\n  \
         terminationGracePeriodSeconds: 2\n  containers:\n  - name: main\n    \
         image: localhost:5000/shop/busybox:1\n    \
         command: [sh, -c, \"echo {version} > /tmp/index.html; {script}\"]\n    \
         ports: [{{containerPort: 80, hostPort: 8088}}]\n    \
         readinessProbe: {{httpGet: {{path: /index.html, port: 80}}, periodSeconds: 1, failureThreshold: 1}}\n{more}"
    )
}

fn revision(workload: &Value) -> u64 {
    workload["status"]["revision"].as_u64().unwrap_or_default()
}

fn until_revision(node: &Node, number: u64) -> Result<Value> {
    node.until_workload("web", &format!("revision {number}"), |workload| {
        let progressing = api::condition(workload, "Progressing");
        revision(workload) == number
            && api::ready(workload)
            && progressing.is_some_and(|condition| condition["status"] == "False")
    })
}

fn until_rolled_back(node: &Node, generation: i64, why: &str) -> Result<Value> {
    let workload = node.until_workload("web", "rolled back", |workload| {
        let progressing = api::condition(workload, "Progressing");
        workload["status"]["observedGeneration"] == generation
            && progressing.is_some_and(|condition| condition["reason"] == "RolledBack")
            && api::ready(workload)
    })?;
    let condition = api::condition(&workload, "Progressing").context("the condition")?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.contains(why) && message.contains(&format!("generation {generation}")), "{condition:#}");
    until(PATIENCE, "the event", || {
        let events = node.nodelet(&["events"])?;
        let told = |line: &str| line.contains("RolledBack") && line.contains(&format!("Generation {generation} "));
        Ok(events.lines().any(told).then_some(()))
    })?;
    Ok(workload)
}

/// Two clients that ask for the page again and again, a connection each time.
struct Load {
    clients: Vec<Child>,
}

impl Load {
    fn start(node: &Node) -> Result<Load> {
        let client = |number: u32| {
            node.background(&format!(
                "while [ ! -e /run/load.end ]; do curl -s --max-time 5 {PAGE} || echo failed $?; done > /run/load.{number}"
            ))
        };
        Ok(Load { clients: vec![client(1)?, client(2)?] })
    }

    /// What was answered, in order; fails if anything was not.
    fn end(mut self, node: &Node) -> Result<Vec<String>> {
        fs::write(node.namespaces.path("/run/load.end"), "")?;
        let mut answers = Vec::new();
        for (number, client) in (1..).zip(&mut self.clients) {
            client.wait()?;
            let text = fs::read_to_string(node.namespaces.path(format!("/run/load.{number}")))?;
            answers.extend(text.lines().map(str::to_owned));
        }
        let failed: Vec<_> = answers.iter().filter(|line| !line.starts_with('v')).collect();
        ensure!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), answers.len());
        ensure!(answers.len() > 50, "only {} requests", answers.len());
        Ok(answers)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _gone = client.kill();
            let _gone = client.wait();
        }
    }
}

fn pause(node: &Node, milliseconds: u32) -> Result<()> {
    let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    node.namespaces.run(["sleep", &seconds]).map(drop)
}

fn until_one_container(node: &Node) -> Result<()> {
    until(PATIENCE, "one container", || Ok((node.ctr(&["containers", "ls", "-q"])?.lines().count() == 1).then_some(())))
}

fn a_new_version_takes_over_without_a_failed_request(node: &mut Node) -> Result<()> {
    node.apply(&web("v1", SERVE, ""))?;
    until_revision(node, 1)?;
    let load = Load::start(node)?;
    for (version, number) in [("v2", 2), ("v3", 3)] {
        node.apply(&web(version, SERVE, ""))?;
        // Somebody serves all the time, and the status says so.
        until(PATIENCE, "the new revision", || {
            let workload = node.object("workloads", "web")?.context("the workload")?;
            let ready = api::condition(&workload, "Ready").context("a condition")?;
            ensure!(ready["status"] == "True", "{ready}");
            Ok((revision(&workload) == number).then_some(()))
        })?;
        until_revision(node, number)?;
        ensure!(node.fetch(PAGE)?.trim() == version);
    }
    until_one_container(node)?;
    let answers = load.end(node)?;
    for version in ["v1", "v2", "v3"] {
        ensure!(answers.iter().any(|answer| answer == version), "{version} never answered");
    }
    Ok(())
}

fn a_version_that_does_not_work_gives_way_to_the_last_that_did(node: &mut Node) -> Result<()> {
    node.apply(&web("v1", SERVE, ""))?;
    let id = api::container_id(&until_revision(node, 1)?).context("a container")?;
    let load = Load::start(node)?;
    let broken = [
        (web("v2", SERVE, "").replace("shop/busybox:1", "shop/absent:1"), "absent"),
        (web("v3", "exit 3", ""), "ended 3 times in a row, with code 3"),
        (web("v4", SERVE, "").replace("path: /index.html", "path: /absent.html"), "readiness probe"),
        (web("v5", SERVE, "").replace("[sh, -c,", "[no-such-program, -c,"), "no-such-program"),
    ];
    for (generation, (text, why)) in (2..).zip(broken) {
        node.apply(&text)?;
        let workload = until_rolled_back(node, generation, why)?;
        ensure!(api::container_id(&workload).as_ref() == Some(&id), "what worked was replaced: {why}");
        until_one_container(node)?;
    }
    let answers = load.end(node)?;
    ensure!(answers.iter().all(|answer| answer == "v1"), "another version answered");
    // A version that works takes over as if nothing had been.
    node.apply(&web("v6", SERVE, ""))?;
    until_revision(node, 2)?;
    ensure!(node.fetch(PAGE)?.trim() == "v6");
    Ok(())
}

fn an_update_survives_kills_of_the_agent(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    node.apply(&web("v1", SERVE, ""))?;
    until_revision(node, 1)?;
    let load = Load::start(node)?;
    // From right after the wish to about the time when the ports move and the old is stopped.
    for (number, delay) in (2..).zip([50, 600, 1500, 2600, 3400, 4300]) {
        let version = format!("v{number}");
        node.apply(&web(&version, SERVE, ""))?;
        pause(node, delay)?;
        node.kill_agent()?;
        node.start_agent()?;
        until_revision(node, number)?;
        let page = node.fetch(PAGE).with_context(|| node.explain())?;
        ensure!(page.trim() == version, "{delay} ms");
        until_one_container(node)?;
    }
    // And in the middle of one that has to go back.
    node.apply(&web("v9", "exit 3", ""))?;
    pause(node, 400)?;
    node.kill_agent()?;
    node.start_agent()?;
    until_rolled_back(node, 8, "ended 3 times")?;
    node.kill_agent()?;
    node.start_agent()?;
    until_one_container(node)?;
    load.end(node)?;
    ensure!(node.fetch(PAGE)?.trim() == "v7");
    node.nodelet(&["delete", "workload", "web"])?;
    node.until_gone("workloads", "web")?;
    let kept = node.namespaces.path(nodelet_tests::node::DATA).join("revisions");
    ensure!(fs::read_dir(&kept)?.next().is_none(), "revisions of a deleted workload stay");
    node.until_clean(&before)
}

fn config(version: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{VERSION: {version}}}\n")
}

fn configuration_goes_back_with_the_spec(node: &mut Node) -> Result<()> {
    // The script ends if it is told a version that it does not like.
    let text = web(
        "$VERSION",
        &format!("[ $VERSION != bad ] || exit 4; {SERVE}"),
        "    envFrom: [{configMapRef: {name: settings}}]\n",
    );
    node.apply(&format!("{}---\n{text}", config("v1")))?;
    until_revision(node, 1)?;
    node.apply(&config("bad"))?;
    until_rolled_back(node, 1, "with code 4")?;
    ensure!(node.fetch(PAGE)?.trim() == "v1");
    // Also when all has to be made anew, the configuration is the one that worked.
    let workload = node.object("workloads", "web")?.context("the workload")?;
    node.ctr(&["task", "kill", "-s", "KILL", &api::container_id(&workload).context("a container")?])?;
    node.until_workload("web", "restarted", |workload| api::restarts(workload) == 1 && api::ready(workload))?;
    until(PATIENCE, "the old page", || Ok(node.fetch(PAGE).ok().filter(|page| page.trim() == "v1")))?;
    node.apply(&config("v2"))?;
    until_revision(node, 2)?;
    ensure!(node.fetch(PAGE)?.trim() == "v2");
    Ok(())
}

fn recreate_goes_back_too(node: &mut Node) -> Result<()> {
    let recreate = |text: String| text.replace("strategy: StartFirst", "strategy: Recreate, rollbackOnFailure: true");
    node.apply(&recreate(web("v1", SERVE, "")))?;
    until_revision(node, 1)?;
    node.apply(&recreate(web("v2", "exit 3", "")))?;
    until_rolled_back(node, 2, "with code 3")?;
    until(PATIENCE, "the old page", || Ok(node.fetch(PAGE).ok().filter(|page| page.trim() == "v1")))?;
    // Without the wish to go back it stays as declared, and it is said.
    node.apply(&recreate(web("v3", "exit 3", "")).replace("rollbackOnFailure: true", "rollbackOnFailure: false"))?;
    node.until_workload("web", "failed", |workload| {
        api::condition(workload, "Progressing").is_some_and(|condition| condition["reason"] == "UpdateFailed")
    })?;
    ensure!(node.fetch(PAGE).is_err());
    Ok(())
}

fn an_older_revision_is_brought_back_by_hand(node: &mut Node) -> Result<()> {
    for (version, number) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        node.apply(&web(version, SERVE, "  revisionHistoryLimit: 2\n"))?;
        until_revision(node, number)?;
    }
    let load = Load::start(node)?;
    node.nodelet(&["rollback", "web"])?;
    until(PATIENCE, "v2", || Ok(node.fetch(PAGE).ok().filter(|page| page.trim() == "v2")))?;
    node.nodelet(&["rollback", "web", "--to-revision", "1"])?;
    until(PATIENCE, "v1", || Ok(node.fetch(PAGE).ok().filter(|page| page.trim() == "v1")))?;
    until_one_container(node)?;
    load.end(node)?;
    let unknown = node.nodelet(&["rollback", "web", "--to-revision", "7"]);
    ensure!(unknown.is_err_and(|error| format!("{error:#}").contains("1, 2, 3")));
    node.apply(&web("v4", SERVE, "  revisionHistoryLimit: 2\n"))?;
    until_revision(node, 4)?;
    let workload = node.object("workloads", "web")?.context("the workload")?;
    ensure!(workload["status"]["revisions"].as_array().map(Vec::len) == Some(3), "{workload:#}");
    Ok(())
}

fn what_changes_in_place_replaces_nothing(node: &mut Node) -> Result<()> {
    node.apply(&web("v1", SERVE, ""))?;
    let id = api::container_id(&until_revision(node, 1)?).context("a container")?;
    let more =
        "    resources: {limits: {memory: 48Mi}}\n    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}\n";
    let changed =
        web("v1", SERVE, more).replace("metadata: {name: web}", "metadata: {name: web, labels: {tier: front}}");
    node.apply(&changed.replace("hostPort: 8088", "hostPort: 8089"))?;
    node.until_page("http://127.0.0.1:8089/")?;
    let workload = until_revision(node, 1)?;
    ensure!(api::container_id(&workload) == Some(id), "the container was replaced");
    ensure!(node.fetch(PAGE).is_err(), "the old port still leads somewhere");
    Ok(())
}
