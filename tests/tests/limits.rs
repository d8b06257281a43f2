//! Limits of containers and of ResourceLimits: as the kernel has them, changed live, below what is used, and under load.

use std::time::Instant;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::cgroup_files::CgroupFiles;
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::{Value, json};

nodelet_tests::on_each_containerd!(limits_hold, realtime_is_divided_and_returned);
nodelet_tests::on_containerd!(limits_change_under_running_containers, three_never_pass_their_sum);

const MIB: u64 = 1 << 20;

/// A Workload under the ResourceLimit `tenants` with these resources.
fn workload(name: &str, resources: &Value) -> String {
    let object = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": name},
        "spec": {"resourceLimit": "tenants", "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": "localhost:5000/shop/busybox:1", "command": ["sleep", "2147483647"],
            "devices": [{"path": "/dev/loop-control", "containerPath": "/dev/modem", "permissions": "r"}],
            "resources": resources,
        }]},
    });
    object.to_string()
}

fn tenants(max: &str) -> String {
    json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": "tenants"},
        "spec": {"memory": {"max": max}, "pids": {"max": 32}},
    })
    .to_string()
}

/// Devices of a vendor whose hooks tell what they are given, and of one whose hook is missing.
fn hooks() -> String {
    let hook = |at: &str| json!({"hookName": at, "path": "/bin/sh", "args": ["sh", "-c", format!("cat >/run/hook-{at}")], "timeout": 10});
    let missing = json!({"hookName": "createRuntime", "path": "/run/no-hook"});
    json!({"cdiVersion": "0.6.0", "kind": "example.com/hook", "devices": [
        {"name": "0", "containerEdits": {"hooks": [hook("createRuntime"), hook("poststop")]}},
        {"name": "missing", "containerEdits": {"hooks": [missing]}},
    ]})
    .to_string()
}

/// They run on the node with the state of the container, and no container starts without one.
fn hooks_are_carried_out_or_refused(node: &Node) -> Result<()> {
    let told = |at: &str| fs::read_to_string(node.namespaces.path(format!("/run/hook-{at}"))).unwrap_or_default();
    let state: Value = serde_json::from_str(&told("createRuntime"))?;
    let object = node.object("workloads", "limited")?.context("the Workload")?;
    ensure!(state["id"].as_str() == api::container_id(&object).as_deref() && state["pid"] != 0, "{state}");
    let refused = workload("refused", &json!({})).replace("/dev/loop-control", "example.com/hook=missing");
    node.apply(&refused.replace(r#""containerPath":"/dev/modem","#, "").replace(r#","permissions":"r""#, ""))?;
    node.until_workload("refused", "told which hook is missing", |refused| {
        let message = api::condition(refused, "Ready").map(|ready| ready["message"].to_string()).unwrap_or_default();
        ["example.com/hook=missing", "/run/cdi/hooks.json", "/run/no-hook", "No such file"]
            .iter()
            .all(|word| message.contains(word))
    })?;
    node.nodelet(&["delete", "workload/refused", "workload/limited"])?;
    until(PATIENCE, "the hook of the end", || Ok(told("poststop").contains("stopped").then_some(())))
}

fn limits_hold(node: &mut Node) -> Result<()> {
    let vendor = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/devices/vendor.json");
    fs::create_dir(node.namespaces.path("/run/cdi"))?;
    fs::copy(vendor, node.namespaces.path("/run/cdi/vendor.json"))?;
    fs::write(node.namespaces.path("/run/cdi/hooks.json"), hooks())?;
    node.apply(&tenants("64Mi"))?;
    let limits = json!({"cpu": "250m", "memory": "32Mi"});
    let limited = json!({"limits": limits, "requests": {"cpu": "100m"}, "pids": 16, "cpus": "0"});
    let named = r#"},{"path":"example.com/sink=0"},{"path":"example.com/hook=0"}]"#;
    node.apply(&workload("limited", &limited).replacen("}]", named, 1))?;
    node.until_ready("limited")?;
    let pid = node.pid("limited")?;
    let files = node.cgroup_files(pid)?;
    ensure!(files.memory_limit(0)? == 32 * MIB);
    ensure!(files.read("pids", 0, "pids.max", "pids.max")? == "16");
    let quota = files.read("cpu", 0, "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota == "25000" || quota == "25000 100000", "{quota}");
    ensure!(files.read("cpuset", 0, "cpuset.cpus", "cpuset.cpus")? == "0");
    if files.is_v1() {
        ensure!(files.read("cpu", 0, "cpu.shares", "")? == "102", "not what the kubelet gives");
    }

    // A device may be opened as declared and in no other way.
    let open = "test -c /dev/modem && : </dev/modem && ! (: >/dev/modem) 2>/dev/null";
    node.nodelet(&["exec", "limited", "--", "sh", "-c", open])?;
    // What has a name is what its vendor says.
    let named = "[ $SINK_DRIVER = example ] && test -s /run/sink/node && echo x >/dev/sink0";
    node.nodelet(&["exec", "limited", "--", "sh", "-c", named])?;

    // The limit shared by several is a cgroup above, and a change of it is live.
    ensure!(files.memory_limit(2)? == 64 * MIB);
    node.apply(&tenants("48Mi"))?;
    until(PATIENCE, "the shared limit", || Ok((files.memory_limit(2)? == 48 * MIB).then_some(())))?;
    ensure!(node.pid("limited")? == pid, "the container was replaced");
    hooks_are_carried_out_or_refused(node)
}

/// The condition of a Workload, if it holds.
fn holds(workload: &Value, kind: &str, reason: &str) -> bool {
    api::condition(workload, kind).is_some_and(|found| found["status"] == "True" && found["reason"] == reason)
}

fn resources(workload: &Value) -> &Value {
    &workload["status"]["containerStatuses"][0]["resources"]
}

fn limits_change_under_running_containers(node: &mut Node) -> Result<()> {
    node.apply(&tenants("128Mi"))?;
    let declared =
        |milli: u64, memory: &str| json!({"requests": {"cpu": format!("{milli}m")}, "limits": {"memory": memory}});
    node.apply(&workload("user", &declared(100, "96Mi")))?;
    let user = node.until_ready("user")?;
    ensure!(resources(&user)["limits"]["memory"] == "96Mi", "{}", user["status"]);
    ensure!(user["status"]["containerStatuses"][0]["allocatedResources"]["cpu"] == "100m", "{}", user["status"]);
    let pid = node.pid("user")?;
    let files = node.cgroup_files(pid)?;

    // More is used than is allowed from now on, and nothing of it can be taken back.
    let sh = |script: &str| node.nodelet(&["exec", "user", "--", "sh", "-c", script]);
    sh("dd if=/dev/zero of=/dev/shm/used bs=1M count=40 2>/dev/null")?;
    node.apply(&tenants("32Mi"))?;
    let limit = |what: &str, reason: &str| {
        until(PATIENCE, &format!("the ResourceLimit to be {what}"), || {
            let limit = node.object("resourcelimits", "tenants")?.context("the ResourceLimit")?;
            let ready = api::condition(&limit, "Ready").cloned().unwrap_or_default();
            Ok((ready["reason"] == reason && ready["observedGeneration"] == limit["metadata"]["generation"])
                .then_some(ready))
        })
    };
    let above = limit("above its limit", "AboveLimit")?;
    let message = above["message"].as_str().unwrap_or_default();
    ensure!(message.contains("above the limit of 32 MiB; until that falls, 128 MiB stay in force"), "{message}");
    ensure!(above["status"] == "False" && files.memory_limit(2)? == 128 * MIB);
    node.apply(&workload("user", &declared(100, "24Mi")))?;
    let user =
        node.until_workload("user", "using more than it may", |user| holds(user, "ResizeInProgress", "AboveLimit"))?;
    ensure!(api::ready(&user) && resources(&user)["limits"]["memory"] == "96Mi", "{}", user["status"]);
    ensure!(files.memory_limit(0)? == 96 * MIB);
    // Once it uses less, both are in force.
    sh("rm /dev/shm/used")?;
    limit("in force", "Ready")?;
    ensure!(files.memory_limit(2)? == 32 * MIB);
    let in_force = |memory: &'static str| {
        node.until_workload("user", "limited as declared", move |user| {
            resources(user)["limits"]["memory"] == memory && api::condition(user, "ResizeInProgress").is_none()
        })
    };
    in_force("24Mi")?;
    ensure!(files.memory_limit(0)? == 24 * MIB);

    // What the node cannot do is refused, and what runs goes on as it was.
    if files.is_v1() {
        let mut wish = declared(100, "25Mi");
        wish["memoryHigh"] = json!("20Mi");
        node.apply(&workload("user", &wish))?;
        let user = node.until_workload("user", "refused", |user| holds(user, "ResizePending", "Infeasible"))?;
        let message = api::condition(&user, "ResizePending").context("the condition")?["message"].to_string();
        ensure!(message.contains("memoryHigh: needs cgroup version 2"), "{message}");
        ensure!(api::ready(&user) && resources(&user)["limits"]["memory"] == "24Mi", "{}", user["status"]);
    }
    // So is what never fits; what fits once others leave waits for that.
    let state = node.get("/apis/nodelet.dev/v1alpha1/nodestates/test")?.context("the NodeState")?;
    let all = 1000 * state["status"]["capacity"]["cpu"].as_str().context("CPUs")?.parse::<u64>()?;
    node.apply(&workload("other", &json!({"requests": {"cpu": format!("{}m", all - 200)}})))?;
    node.until_ready("other")?;
    node.apply(&workload("user", &declared(all + 1, "25Mi")))?;
    node.until_workload("user", "too large for the node", |user| holds(user, "ResizePending", "Infeasible"))?;
    node.apply(&workload("user", &declared(300, "25Mi")))?;
    let user = node.until_workload("user", "waiting for room", |user| holds(user, "ResizePending", "Deferred"))?;
    let message = api::condition(&user, "ResizePending").context("the condition")?["message"].to_string();
    ensure!(message.contains(&format!("requests 300m of CPU where 200m of {all}m are left")), "{message}");
    let container = &user["status"]["containerStatuses"][0];
    ensure!(container["allocatedResources"]["cpu"] == "100m" && container["resources"]["limits"]["memory"] == "24Mi");
    // Also for an agent that was not there when it was declared.
    node.kill_agent()?;
    node.start_agent()?;
    node.until_workload("user", "still waiting", |user| holds(user, "ResizePending", "Deferred"))?;
    node.nodelet(&["delete", "workload", "other"])?;
    let user = node.until_workload("user", "larger", |user| {
        resources(user)["limits"]["memory"] == "25Mi" && api::condition(user, "ResizePending").is_none()
    })?;
    ensure!(user["status"]["containerStatuses"][0]["allocatedResources"]["cpu"] == "300m", "{}", user["status"]);
    ensure!(node.pid("user")? == pid && api::restarts(&user) == 0, "it was started anew");
    Ok(())
}

/// How much CPU time a cgroup may use, and what of that it got until it had used a second: at most 3 % more, and, where
/// it wanted more all the time, no less either.
fn cpu_is_held(files: &CgroupFiles, above: usize, cpus: f64) -> Result<()> {
    let read = |file: (&str, &str), key: &str| -> Result<f64> {
        let text = files.read(if file.0 == "cpuacct.usage" { "cpuacct" } else { "cpu" }, above, file.0, file.1)?;
        let of_key = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Ok(of_key.unwrap_or(text.as_str()).parse()?)
    };
    let used = || -> Result<f64> {
        let unit = if files.is_v1() { 1e9 } else { 1e6 };
        Ok(read(("cpuacct.usage", "cpu.stat"), "usage_usec")? / unit)
    };
    let periods = |key: &str| read(("cpu.stat", "cpu.stat"), key);
    let (begin, before) = (Instant::now(), used()?);
    let (all, held) = (periods("nr_periods")?, periods("nr_throttled")?);
    let after = until(PATIENCE, "a second of CPU time", || Ok(Some(used()?).filter(|now| now - before >= 1.0)))?;
    let rate = (after - before) / begin.elapsed().as_secs_f64();
    let wanted_more = (periods("nr_throttled")? - held) / (periods("nr_periods")? - all);
    // What it may use is given in pieces of a tenth of a second.
    ensure!(rate <= cpus * 1.03 + 0.1 * cpus * cpus, "{rate} CPUs where {cpus} are allowed");
    ensure!(wanted_more < 0.99 || rate >= cpus * 0.97 - 0.1 * cpus * cpus, "{rate} CPUs where {cpus} are allowed");
    Ok(())
}

fn stop(node: &Node, names: &[&str]) -> Result<()> {
    for name in names {
        node.nodelet(&["stop", name])?;
    }
    for name in names {
        node.until_workload(name, "stopped", |workload| workload["status"]["phase"] == "Stopped")?;
    }
    Ok(())
}

fn start(node: &Node, names: &[&str]) -> Result<()> {
    for name in names {
        node.nodelet(&["start", name])?;
    }
    names.iter().try_for_each(|name| node.until_ready(name).map(drop))
}

fn three_never_pass_their_sum(node: &mut Node) -> Result<()> {
    let limit = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": "tenants"},
        "spec": {"cpu": {"max": "600m"}, "memory": {"max": "48Mi"}, "pids": {"max": 24}},
    });
    node.apply(&limit.to_string())?;
    let names = ["one", "two", "three"];
    for name in names {
        let resources = if name == "one" { json!({"limits": {"cpu": "300m"}}) } else { json!({}) };
        let busy =
            workload(name, &resources).replace(r#"["sleep","2147483647"]"#, r#"["sh","-c","while :; do :; done"]"#);
        node.apply(&busy)?;
        node.until_ready(name)?;
    }
    let files = node.cgroup_files(node.pid("one")?)?;
    cpu_is_held(&files, 2, 0.6)?;
    // Alone it is held by its own limit.
    stop(node, &["two", "three"])?;
    cpu_is_held(&files, 0, 0.3)?;
    start(node, &["two", "three"])?;
    let forks = r#"["sh","-c","(for i in $(seq 30); do sleep 1000 & done); exec sleep 1000"]"#;
    node.apply(&workload("many", &json!({})).replace(r#"["sleep","2147483647"]"#, forks))?;
    until(PATIENCE, "as many processes as there may be", || {
        let processes = files.read("pids", 2, "pids.current", "pids.current")?.parse::<u64>()?;
        ensure!(processes <= 24, "{processes} processes");
        // The shell that is refused the last one ends.
        Ok((processes >= 23).then_some(()))
    })?;
    node.nodelet(&["delete", "workload", "many"])?;
    node.until_gone("workloads", "many")?;
    for name in names {
        // Whoever finds none left fails, or is killed.
        let _failed =
            node.nodelet(&["exec", name, "--", "dd", "if=/dev/zero", "of=/dev/shm/used", "bs=1M", "count=30"]);
    }
    let most = files.read("memory", 2, "memory.max_usage_in_bytes", "memory.current")?.parse::<u64>()?;
    ensure!(most <= 48 * MIB && (most > 44 * MIB || !files.is_v1()), "{most} bytes of memory");
    Ok(())
}

/// A Workload under `tenants` whose processes may become real-time processes, and have this time then.
fn realtime_workload(name: &str, realtime: &Value) -> String {
    let mut object: Value = serde_json::from_str(&workload(name, &json!({}))).expect("just made");
    let container = &mut object["spec"]["containers"][0];
    container["image"] = json!("localhost:5000/test/realtime:1");
    container["securityContext"] = json!({"capabilities": {"add": ["SYS_NICE"]}});
    if !realtime.is_null() {
        container["resources"] = json!({"cpus": "0", "realtime": realtime});
    }
    object.to_string()
}

fn realtime_limit(runtime: u32) -> String {
    json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "ResourceLimit", "metadata": {"name": "tenants"},
        "spec": {"cpu": {"realtime": {"runtimeMicroseconds": runtime}}},
    })
    .to_string()
}

/// A real-time process that wants all of a CPU gets what its cgroup may have, and a period more at most.
fn realtime_is_held(files: &CgroupFiles, part: f64) -> Result<()> {
    let used = || -> Result<f64> { Ok(files.read("cpuacct", 0, "cpuacct.usage", "")?.parse::<f64>()? / 1e9) };
    let (begin, before) = (Instant::now(), used()?);
    let after = until(PATIENCE, "some CPU time", || Ok(Some(used()?).filter(|now| now - before >= 0.4)))?;
    let elapsed = begin.elapsed().as_secs_f64();
    let rate = (after - before) / elapsed;
    let piece = part * 0.2 / elapsed;
    ensure!(rate <= part * 1.05 + piece, "{rate} CPUs where {part} are allowed");
    ensure!(rate >= part * 0.5, "{rate} CPUs where {part} are kept");
    Ok(())
}

fn realtime_is_divided_and_returned(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    let part = |runtime: u32| json!({"runtimeMicroseconds": runtime, "periodMicroseconds": 200_000});
    let top = std::path::Path::new("/sys/fs/cgroup/cpu").join(node.cgroup_parent().trim_start_matches('/'));
    if !std::path::Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
        let alone = realtime_workload("steady", &part(20_000)).replace(r#""resourceLimit":"tenants","#, "");
        node.apply(&alone)?;
        node.until_workload("steady", "refused", |steady| {
            let message = api::condition(steady, "Ready").map(|ready| ready["message"].to_string());
            message.is_some_and(|text| text.contains("resources.realtime: needs cgroup version 1"))
        })?;
        return Ok(());
    }
    node.apply(&realtime_limit(200_000))?;
    let idle = r#"["sleep","2147483647"]"#;
    let command =
        r#"["sh","-c","chrt -f 1 sh -c 'echo $$$$ >/tmp/busy; while :; do :; done' & exec sleep 2147483647"]"#;
    let busy = |name: &str, runtime: u32| realtime_workload(name, &part(runtime)).replace(idle, command);
    node.apply(&busy("steady", 20_000))?;
    node.until_ready("steady")?;
    let pid = node.pid("steady")?;
    let files = node.cgroup_files(pid)?;
    let has = |above: usize| files.read("cpu", above, "cpu.rt_runtime_us", "");
    ensure!([has(0)?, has(1)?, has(2)?, has(3)?] == ["20000", "100000", "200000", "200000"]);
    realtime_is_held(&files, 0.1)?;

    // Who has no time cannot become a real-time process.
    node.apply(&realtime_workload("none", &Value::Null))?;
    node.until_ready("none")?;
    let refused = node.nodelet(&["exec", "none", "--", "chrt", "-f", "1", "true"]).expect_err("without time");
    ensure!(format!("{refused:?}").contains("Operation not permitted"), "{refused:?}");

    // Two members together pass no more than their ResourceLimit has.
    node.apply(&busy("other", 24_000))?;
    let other = node.until_workload("other", "refused", |other| {
        api::condition(other, "Ready").is_some_and(|ready| ready["reason"] == "InsufficientResources")
    })?;
    let message = api::condition(&other, "Ready").context("the condition")?["message"].to_string();
    let numbers = "has 200000 microseconds of a second for real-time processes, of which others have 100000, and 120000 are needed";
    ensure!(message.contains(numbers) && message.contains("resources.realtime"), "{message}");
    node.apply(&busy("other", 20_000))?;
    node.until_ready("other")?;
    realtime_is_held(&node.cgroup_files(node.pid("other")?)?, 0.1)?;

    // So does what runs, which waits; and it gets more in place.
    node.apply(&busy("steady", 40_000))?;
    let steady = node.until_workload("steady", "waiting", |steady| holds(steady, "ResizePending", "Deferred"))?;
    ensure!(api::ready(&steady) && resources(&steady)["realtime"] == part(20_000), "{}", steady["status"]);
    node.apply(&realtime_limit(300_000))?;
    let wanted = part(40_000);
    node.until_workload("steady", "changed in place", |steady| {
        resources(steady)["realtime"] == wanted && api::condition(steady, "ResizePending").is_none()
    })?;
    ensure!([has(0)?, has(1)?, has(2)?, has(3)?] == ["40000", "200000", "300000", "300000"]);
    realtime_is_held(&files, 0.2)?;
    // Also by agents of which one after the other dies between two effects.
    for (runtime, expected) in [(10_000, ["10000", "50000"]), (35_000, ["35000", "175000"])] {
        let is_done = |_: &Node| [0, 1].map(|above| has(above).unwrap_or_default()) == expected;
        let kills = node.killed_between_effects(1, true, |node| node.apply(&busy("steady", runtime)), is_done)?;
        ensure!(kills > 0, "nobody was killed");
        // The last of them may still be dying.
        until(PATIENCE, "an agent that says so", || {
            node.revive_agent()?;
            let steady = node.object("workloads", "steady").ok().flatten();
            Ok(steady.filter(|steady| resources(steady)["realtime"] == part(runtime)))
        })?;
        ensure!([has(2)?, has(3)?] == ["300000", "300000"] && node.pid("steady")? == pid);
    }

    // Real-time processes keep their time while they run.
    node.apply(&realtime_workload("steady", &Value::Null).replace(idle, command))?;
    let steady =
        node.until_workload("steady", "keeping its time", |steady| holds(steady, "ResizeInProgress", "Error"))?;
    let message = api::condition(&steady, "ResizeInProgress").context("the condition")?["message"].to_string();
    ensure!(message.contains("real-time processes, which have to end or change their class first"), "{message}");
    node.nodelet(&["exec", "steady", "--", "sh", "-c", "kill -9 $(cat /tmp/busy)"])?;
    until(PATIENCE, "what it has no more", || Ok((has(0)? == "0" && has(1)? == "0").then_some(())))?;
    ensure!(node.pid("steady")? == pid && has(2)? == "300000", "it was started anew");

    for name in ["steady", "other", "none"] {
        node.nodelet(&["delete", "workload", name])?;
        node.until_gone("workloads", name)?;
    }
    node.nodelet(&["delete", "resourcelimit", "tenants"])?;
    node.until_gone("resourcelimits", "tenants")?;
    until(PATIENCE, "all of it returned", || {
        Ok((fs::read_to_string(top.join("cpu.rt_runtime_us"))?.trim() == "0").then_some(()))
    })?;
    node.until_clean(&before)
}
