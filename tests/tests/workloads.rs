//! What a Workload promises: images from everywhere, limits, volumes, restarts with back-off, orderly stops.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::images::catalog;
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(images_come_from_archives, limits_hold, a_memory_hog_is_killed_and_restarted);
nodelet_tests::on_containerd!(
    volumes_persist,
    a_crashing_container_backs_off,
    a_container_that_ignores_the_stop_signal_is_killed_after_the_grace_period,
    a_flooded_log_is_capped,
    a_published_port_is_reached_from_the_outside,
    sidecars_come_first_and_leave_last,
    a_plan_tells_what_would_be_done_and_does_nothing,
);

fn workload(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: {image}\n{more}"
    )
}

const SLEEP: &str = "    command: [sleep, '2147483647']\n";

fn images_come_from_archives(node: &mut Node) -> Result<()> {
    let images = &node.images;
    let archives = [("oci", &images.oci_archive), ("docker", &images.docker_archive), ("layout", &images.oci_layout)];
    for (name, path) in archives {
        let reference = format!("images.example/{name}:1");
        let path = path.canonicalize()?;
        node.apply(&format!(
            "apiVersion: nodelet.dev/v1alpha1\nkind: Image\nmetadata: {{name: {name}}}\nspec:\n  \
             reference: {reference}\n  archive: {{path: {}}}\n---\n{}",
            path.display(),
            workload(name, &reference, &format!("{SLEEP}    imagePullPolicy: Never\n"))
        ))?;
        node.until_ready(name)?;
    }
    ensure!(node.ctr(&["images", "ls", "-q"])?.contains("images.example/layout:1"), "{}", catalog::ARCHIVED);
    Ok(())
}

fn limits_hold(node: &mut Node) -> Result<()> {
    node.apply(&format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: ResourceLimit\nmetadata: {{name: tenants}}\nspec:\n  \
         memory: {{max: 64Mi}}\n  pids: {{max: 32}}\n---\n{}",
        workload(
            "limited",
            "localhost:5000/shop/busybox:1",
            &format!(
                "{SLEEP}    resources: {{limits: {{cpu: 250m, memory: 32Mi}}, pids: 16}}\n  resourceLimit: tenants\n"
            )
        )
    ))?;
    node.until_ready("limited")?;
    let pid = node.pid("limited")?;
    let cgroups = fs::read_to_string(node.namespaces.path(format!("/proc/{pid}/cgroup")))?;
    // Version 1 has a line for each controller, version 2 one line `0::/path`.
    let path_of = |controller: &str| {
        let mut lines = cgroups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let line = lines.find(|line| line[1].split(',').any(|name| name == controller));
        line.map(|line| format!("/sys/fs/cgroup/{controller}{}", line[2]))
    };
    let v2 = cgroups.lines().find_map(|line| line.strip_prefix("0::")).map(|path| format!("/sys/fs/cgroup{path}"));
    let read = |controller: &str, v1_file: &str, v2_file: &str| -> Result<String> {
        let path = match path_of(controller) {
            Some(path) => format!("{path}/{v1_file}"),
            None => format!("{}/{v2_file}", v2.as_deref().context("neither cgroup version")?),
        };
        Ok(fs::read_to_string(&path).with_context(|| path)?.trim().to_owned())
    };
    ensure!(read("memory", "memory.limit_in_bytes", "memory.max")? == (32 << 20).to_string());
    ensure!(read("pids", "pids.max", "pids.max")? == "16");
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota == "25000" || quota == "25000 100000", "{quota}");

    // The limit shared by several is a cgroup above, and a change of it is live.
    let shared = |wanted: u64| {
        until(PATIENCE, "the shared limit", || {
            let file = path_of("memory").map_or("memory.max", |_| "memory.limit_in_bytes");
            let own = path_of("memory").or(v2.clone()).context("a cgroup")?;
            let above = std::path::Path::new(&own).ancestors().skip(1).take(3);
            let found = above.filter_map(|place| fs::read_to_string(place.join(file)).ok());
            Ok(found.into_iter().any(|text| text.trim() == wanted.to_string()).then_some(()))
        })
    };
    shared(64 << 20)?;
    node.apply("{apiVersion: nodelet.dev/v1alpha1, kind: ResourceLimit, metadata: {name: tenants}, spec: {memory: {max: 48Mi}}}")?;
    shared(48 << 20)?;
    ensure!(node.pid("limited")? == pid, "the container was replaced");
    Ok(())
}

fn a_memory_hog_is_killed_and_restarted(node: &mut Node) -> Result<()> {
    node.apply(&workload("hog", "localhost:5000/test/eats-memory:1", "    resources: {limits: {memory: 24Mi}}\n"))?;
    node.until_workload("hog", "killed for its memory", |workload| {
        let ended = &workload["status"]["containerStatuses"][0]["lastState"]["terminated"];
        api::restarts(workload) >= 1 && ended["reason"] == "OOMKilled"
    })?;
    Ok(())
}

fn volumes_persist(node: &mut Node) -> Result<()> {
    let counter = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/volume.yaml"))?;
    node.apply(&counter)?;
    for start in 1..=3 {
        let workload = node.until_ready("starts")?;
        until(PATIENCE, "the count of starts", || {
            let log = node.nodelet(&["logs", "starts"]).unwrap_or_default();
            Ok(log.contains(&format!("start number {start}")).then_some(()))
        })?;
        let id = api::container_id(&workload).context("a container")?;
        node.ctr(&["task", "kill", "-s", "KILL", &id])?;
        node.until_workload("starts", "another container", |workload| {
            api::container_id(workload).is_some_and(|now| now != id)
        })?;
    }
    Ok(())
}

fn a_crashing_container_backs_off(node: &mut Node) -> Result<()> {
    node.apply(&workload("crashing", "localhost:5000/test/crashes:1", ""))?;
    let workload = node.until_workload("crashing", "restarted twice and waiting", |workload| {
        api::restarts(workload) >= 2 && workload["status"]["containerStatuses"][0]["state"]["waiting"].is_object()
    })?;
    let status = &workload["status"]["containerStatuses"][0];
    ensure!(status["state"]["waiting"]["reason"] == "CrashLoopBackOff", "{status:#}");
    ensure!(status["lastState"]["terminated"]["exitCode"] == 3, "{status:#}");
    let previous =
        node.nodelet(&["logs", "crashing", "--previous"]).or_else(|_| node.nodelet(&["logs", "crashing"]))?;
    ensure!(previous.contains("failing"), "{previous}");
    Ok(())
}

fn a_container_that_ignores_the_stop_signal_is_killed_after_the_grace_period(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    let text = workload("stubborn", "localhost:5000/test/ignores-term:1", "");
    node.apply(&text.replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 2"))?;
    node.until_ready("stubborn")?;
    until(PATIENCE, "the trap", || Ok(node.nodelet(&["logs", "stubborn"])?.contains("ready").then_some(())))?;
    let start = Instant::now();
    node.nodelet(&["delete", "workload", "stubborn"])?;
    node.until_gone("workloads", "stubborn")?;
    ensure!(start.elapsed() >= Duration::from_secs(2), "killed after {:?}", start.elapsed());
    node.until_clean(&before)
}

fn a_flooded_log_is_capped(node: &mut Node) -> Result<()> {
    let logging = "    logging: {driver: file, maxSize: 1Mi, maxFiles: 3}\n    resources: {limits: {cpu: 200m}}\n";
    node.apply(&workload("flood", "localhost:5000/test/floods:1", logging))?;
    node.until_ready("flood")?;
    let usage = || {
        node.namespaces.run(["sh", "-c", &format!("find {DATA}/logs -type f | wc -l; du -sm {DATA}/logs | cut -f1")])
    };
    until(PATIENCE, "three files", || Ok(usage()?.starts_with("3\n").then_some(())))?;
    let sizes = usage()?;
    let megabytes: u32 = sizes.lines().nth(1).context("a size")?.parse()?;
    ensure!(megabytes <= 4, "{megabytes} MiB of log with a cap of three");
    Ok(())
}

fn a_published_port_is_reached_from_the_outside(node: &mut Node) -> Result<()> {
    // A neighbour of the node: another network namespace behind a veth pair.
    node.namespaces.run([
        "sh",
        "-c",
        "set -e; ip netns add neighbour; ip link add lan type veth peer name lan netns neighbour
         ip addr add 192.0.2.1/24 dev lan; ip link set lan up
         ip -n neighbour addr add 192.0.2.2/24 dev lan; ip -n neighbour link set lan up; ip -n neighbour link set lo up",
    ])?;
    node.apply(&workload(
        "server",
        "localhost:5000/shop/nginx:1",
        "    ports: [{containerPort: 80, hostPort: 8070}]\n",
    ))?;
    node.until_ready("server")?;
    let fetch = ["ip", "netns", "exec", "neighbour", "curl", "-sf", "--max-time", "2", "http://192.0.2.1:8070/"];
    until(PATIENCE, "the page from outside", || Ok(node.namespaces.run(fetch).ok()))?;
    node.nodelet(&["delete", "workload", "server"])?;
    node.until_gone("workloads", "server")?;
    ensure!(node.namespaces.run(fetch).is_err(), "the port is still published");
    Ok(())
}

fn sidecars_come_first_and_leave_last(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    // Each says on a shared volume when it comes and goes; the sidecar is started once it has written its mark.
    let text = |policy: &str, main: &str| {
        let script = |name: &str, script: &str| {
            format!(
                "  - name: {name}\n    image: localhost:5000/shop/busybox:1\n    \
                 volumeMounts: [{{name: log, mountPath: /log}}]\n    command: [sh, -c, \"{script}\"]\n"
            )
        };
        let helper = "trap 'echo helper goes >> /log/all; exit 0' TERM; sleep 1; echo helper up >> /log/all; touch /log/up; \
                      while true; do sleep 0.1; done";
        format!(
            "apiVersion: nodelet.dev/v1alpha1\nkind: Volume\nmetadata: {{name: log}}\nspec: {{local: {{}}}}\n---\n\
             apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: crew}}\nspec:\n  \
             restartPolicy: {policy}\n  volumes: [{{name: log, volume: {{name: log}}}}]\n  initContainers:\n{}    \
             restartPolicy: Always\n    startupProbe: {{exec: {{command: [test, -e, /log/up]}}, periodSeconds: 1, \
             failureThreshold: 60}}\n{}  containers:\n{}",
            script("helper", helper),
            script("init", "echo init >> /log/all"),
            script("main", main),
        )
    };
    let said = || node.namespaces.run(["sh", "-c", &format!("cat $(find {DATA}/volumes -name all)")]);
    let forever =
        "trap 'echo main goes >> /log/all; exit 0' TERM; echo main up >> /log/all; while true; do sleep 0.1; done";
    node.apply(&text("Always", forever))?;
    let workload = node.until_ready("crew")?;
    ensure!(said()? == "helper up\ninit\nmain up\n", "{}", said()?);
    ensure!(workload["status"]["readyContainers"] == "2/2", "{workload:#}");
    // It is restarted beside the container, which does not notice.
    let id = |workload: &serde_json::Value| workload["status"]["initContainerStatuses"][0]["containerID"].clone();
    let main = api::container_id(&workload);
    let helper = id(&workload);
    node.ctr(&["task", "kill", "-s", "KILL", helper.as_str().context("an id")?])?;
    let workload =
        node.until_workload("crew", "another sidecar", |workload| id(workload) != helper && api::ready(workload))?;
    ensure!(api::container_id(&workload) == main, "{workload:#}");
    node.nodelet(&["stop", "crew"])?;
    node.until_workload("crew", "stopped", |workload| workload["status"]["phase"] == "Stopped")?;
    ensure!(said()?.ends_with("main goes\nhelper goes\n"), "{}", said()?);
    node.nodelet(&["delete", "workload", "crew"])?;
    node.until_gone("workloads", "crew")?;
    // A sidecar keeps no batch from its end.
    node.apply(&text("Never", "echo done >> /log/all"))?;
    node.until_workload("crew", "ended well", |workload| workload["status"]["phase"] == "Succeeded")?;
    until(PATIENCE, "the sidecar's end", || Ok(said()?.ends_with("done\nhelper goes\n").then_some(())))?;
    node.nodelet(&["delete", "workload/crew", "volume/log"])?;
    node.until_gone("workloads", "crew")?;
    node.until_gone("volumes", "log")?;
    let _left = node.namespaces.run(["rm", "-rf", &format!("{DATA}/volumes")]);
    node.until_clean(&before)
}

fn a_plan_tells_what_would_be_done_and_does_nothing(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    let file = node.namespaces.path("/run/plan.yaml");
    let plan = |text: &str| -> Result<String> {
        fs::write(&file, text)?;
        node.nodelet(&["plan", "-f", "/run/plan.yaml"])
    };
    let text = |greeting: &str, sleep: &str| {
        let config = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: words}}\ndata: {{greeting: {greeting}}}\n---\n"
        );
        let more = format!(
            "    command: [sleep, '{sleep}']\n    volumeMounts: [{{name: words, mountPath: /words}}]\n  \
             volumes: [{{name: words, configMap: {{name: words, onChange: Restart}}}}]\n"
        );
        config + &workload("planned", "localhost:5000/shop/busybox:1", &more)
    };
    let told = plan(&text("hello", "1000000"))?;
    ensure!(told.contains("pull localhost:5000/shop/busybox:1: "), "{told}");
    ensure!(told.contains("start container main from"), "{told}");
    ensure!(node.object("workloads", "planned")?.is_none() && node.ctr(&["images", "ls", "-q"])?.is_empty(), "{told}");

    node.apply(&text("hello", "1000000"))?;
    node.until_ready("planned")?;
    let pid = node.pid("planned")?;
    let told = node.nodelet(&["plan"])?;
    ensure!(told.contains("default/planned  nothing to do"), "{told}");
    let told = plan(&text("hello", "2000000"))?;
    ensure!(told.contains("stop container main, which is specified in another way now"), "{told}");
    ensure!(told.contains("interrupts main; down for the start"), "{told}");
    // A file that changes only what the workload refers to.
    let config = text("goodbye", "").split("---").next().unwrap_or_default().to_owned();
    let told = plan(&config)?;
    ensure!(told.contains("interrupts main"), "{told}");
    let told: serde_json::Value = serde_json::from_str(&node.nodelet(&["plan", "planned", "-o", "json"])?)?;
    ensure!(told["items"][0]["steps"] == serde_json::json!([]), "{told:#}");
    ensure!(node.pid("planned")? == pid, "a plan replaced the container");
    node.nodelet(&["delete", "workload", "planned"])?;
    node.until_gone("workloads", "planned")?;
    node.until_clean(&before)
}
