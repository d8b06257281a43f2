//! What a Workload promises: images from everywhere, limits, volumes, restarts with back-off, orderly stops.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::images::catalog;
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(images_come_from_archives, a_memory_hog_is_killed_and_restarted);
nodelet_tests::on_containerd!(
    volumes_persist,
    a_crashing_container_backs_off,
    a_container_that_ignores_the_stop_signal_is_killed_after_the_grace_period,
    a_flooded_log_is_capped,
    a_published_port_is_reached_from_the_outside,
    sidecars_come_first_and_leave_last,
    a_plan_tells_what_would_be_done_and_does_nothing,
    an_image_says_how_its_health_is_checked,
    grpc_and_https_are_probed,
    hooks_and_fields_of_the_node,
    changed_files_are_told_by_a_signal,
    what_waits_and_what_is_in_the_way_is_named,
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

fn a_memory_hog_is_killed_and_restarted(node: &mut Node) -> Result<()> {
    node.apply(&workload("hog", "localhost:5000/test/eats-memory:1", "    resources: {limits: {memory: 24Mi}}\n"))?;
    node.until_workload("hog", "killed for its memory", |workload| {
        let ended = &workload["status"]["containerStatuses"][0]["lastState"]["terminated"];
        api::restarts(workload) >= 1 && ended["reason"] == "OOMKilled"
    })?;
    until(PATIENCE, "the process that was killed, and the figures", || {
        let events = node.nodelet(&["events"])?;
        let told = events.contains("Killed process") && events.contains("the container used 24.0 MiB of 24.0 MiB");
        Ok((told || !std::path::Path::new("/dev/kmsg").exists()).then_some(()))
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

fn an_image_says_how_its_health_is_checked(node: &mut Node) -> Result<()> {
    node.apply(&workload("checked", "localhost:5000/test/checked:1", ""))?;
    let is_ready = |wanted: bool| {
        move |workload: &serde_json::Value| {
            let status = &workload["status"]["containerStatuses"][0];
            status["state"]["running"].is_object() && status["ready"] == wanted
        }
    };
    node.until_workload("checked", "not ready", is_ready(false))?;
    node.nodelet(&["exec", "checked", "--", "touch", "/tmp/well"])?;
    let before = node.until_workload("checked", "ready", is_ready(true))?;
    // A new agent takes it as it was.
    node.kill_agent()?;
    node.start_agent()?;
    ensure!(api::ready(&node.until_ready("checked")?));
    node.nodelet(&["exec", "checked", "--", "rm", "/tmp/well"])?;
    let after = node.until_workload("checked", "no longer ready", is_ready(false))?;
    ensure!(api::restarts(&after) == 0 && api::container_id(&after) == api::container_id(&before), "{after:#}");
    // What is declared goes first.
    let probe = "    livenessProbe: {exec: {command: ['true']}}\n";
    node.apply(&workload("declared", "localhost:5000/test/checked:1", probe))?;
    node.until_ready("declared")?;
    Ok(())
}

/// nginx answers as gRPC's health service does, and by TLS with a certificate that nobody signed.
const HEALTH: &str = "
server {
    listen 81 http2;
    root /answers;
    default_type application/grpc;
    add_trailer grpc-status 0 always;
    error_page 404 405 =200 /health;
}
server {
    listen 443 ssl;
    ssl_certificate /tls/tls.crt;
    ssl_certificate_key /tls/tls.key;
    location / { return 200; }
}
";

fn grpc_and_https_are_probed(node: &mut Node) -> Result<()> {
    node.namespaces.run([
        "sh",
        "-c",
        "cd /run && openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -days 2 -subj /CN=nobody 2>/dev/null",
    ])?;
    let encoded = |file: &str| node.namespaces.run(["base64", "-w0", file]);
    let indented = HEALTH.replace('\n', "\n    ");
    // The message `status: SERVING` behind its length.
    let answer = "AAAAAAIIAQ==";
    let manifest = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: health}}\ndata:\n  health.conf: |\n    {indented}\n\
         binaryData: {{health: {answer}}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: tls}}\ndata: {{tls.crt: {}, tls.key: {}}}\n",
        encoded("/run/crt")?,
        encoded("/run/key")?
    );
    node.apply(&manifest)?;
    let server = |name: &str, readiness: &str| {
        let more = format!(
            "    readinessProbe: {{{readiness}, periodSeconds: 1, failureThreshold: 1}}\n    volumeMounts:\n    - {{name: health, \
             mountPath: /etc/nginx/conf.d/more}}\n    - {{name: tls, mountPath: /tls}}\n    - {{name: health, mountPath: \
             /answers}}\n    command: [sh, -c, 'sed \"s#^}}#include /etc/nginx/conf.d/more/*.conf;}}#\" /etc/nginx/nginx.conf > \
             /tmp/n.conf && exec nginx -c /tmp/n.conf']\n  volumes: [{{name: health, configMap: {{name: health}}}}, {{name: tls, \
             secret: {{secretName: tls}}}}]\n"
        );
        node.apply(&workload(name, "localhost:5000/shop/nginx:1", &more))
    };
    server("by-grpc", "grpc: {port: 81}")?;
    server("by-https", "httpGet: {port: 443, scheme: HTTPS}")?;
    node.until_ready("by-grpc")?;
    node.until_ready("by-https")?;
    // Neither is satisfied with just any server.
    server("not-grpc", "grpc: {port: 80}")?;
    server("not-https", "httpGet: {port: 80, scheme: HTTPS}")?;
    for name in ["not-grpc", "not-https"] {
        node.until_workload(name, "running and not ready", |workload| {
            let status = &workload["status"]["containerStatuses"][0];
            status["state"]["running"].is_object() && status["ready"] == false
        })?;
    }
    node.namespaces.run(["sleep", "3"])?;
    for name in ["not-grpc", "not-https"] {
        let object = node.object("workloads", name)?.context("the workload")?;
        ensure!(!api::ready(&object), "{name} is ready");
    }
    Ok(())
}

fn hooks_and_fields_of_the_node(node: &mut Node) -> Result<()> {
    let asked = |path: &str| {
        let log = node.nodelet(&["logs", "server"])?;
        anyhow::Ok(log.contains(path).then_some(()))
    };
    node.apply(&workload("server", "localhost:5000/shop/nginx:1", "    ports: [{name: http, containerPort: 80}]\n"))?;
    let server = node.until_ready("server")?;
    let ip = server["status"]["addresses"][0]["ip"].as_str().context("an address")?;
    let hooks = |path: &str| {
        format!(
            "    lifecycle:\n      postStart: {{sleep: {{seconds: 1}}}}\n      preStop: {{httpGet: {{host: {ip}, port: 80, path: \
             /{path}}}}}\n"
        )
    };
    let fields = "    resources: {limits: {cpu: 1500m, memory: 64Mi}}\n    env:\n    - {name: MINE, valueFrom: {fieldRef: \
                  {fieldPath: status.podIP}}}\n    - {name: NODE, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}\n    - \
                  {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}\n    - {name: MIB, valueFrom: \
                  {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}\n    command: [sh, -c, 'echo mine $MINE cpus \
                  $CPUS mib $MIB; sleep 1000000']\n";
    let image = "localhost:5000/shop/busybox:1";
    node.apply(&workload("hooked", image, &format!("{fields}{}", hooks("first"))))?;
    let hooked = node.until_ready("hooked")?;
    let own = hooked["status"]["addresses"][0]["ip"].as_str().context("an address")?;
    until(PATIENCE, "its greeting", || {
        let log = node.nodelet(&["logs", "hooked"])?;
        Ok(log.contains(&format!("mine {own} cpus 2 mib 64")).then_some(()))
    })?;
    // The container that goes is asked in its own way, not in its successor's.
    let text = workload("hooked", image, &format!("{SLEEP}{}", hooks("second")));
    node.apply(&text.replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 5"))?;
    until(PATIENCE, "the hook of the first", || asked("GET /first"))?;
    node.until_ready("hooked")?;
    ensure!(asked("GET /second")?.is_none(), "the successor's hook ran");
    node.nodelet(&["delete", "workload", "hooked"])?;
    until(PATIENCE, "the hook of the second", || asked("GET /second"))?;
    node.until_gone("workloads", "hooked")
}

fn changed_files_are_told_by_a_signal(node: &mut Node) -> Result<()> {
    let config = |word: &str| {
        node.apply(&format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: words}}, data: {{word: {word}}}}}"))
    };
    config("one")?;
    let script = "    command: [sh, -c, 'trap \"echo told: \\$(cat /words/word)\" HUP; echo begun; while true; do sleep 0.1; done']\n";
    let volume = "    volumeMounts: [{name: words, mountPath: /words}]\n  volumes: [{name: words, configMap: {name: words, \
                  onChange: Signal}}]\n";
    node.apply(&workload("listener", "localhost:5000/shop/busybox:1", &format!("{script}{volume}")))?;
    node.until_ready("listener")?;
    let pid = node.pid("listener")?;
    let said =
        |what: &str| until(PATIENCE, what, || Ok(node.nodelet(&["logs", "listener"])?.contains(what).then_some(())));
    said("begun")?;
    config("two")?;
    said("told: two")?;
    ensure!(!node.nodelet(&["logs", "listener"])?.contains("told: one"), "told of what it began with");
    ensure!(node.pid("listener")? == pid, "the container was replaced");
    Ok(())
}

fn what_waits_and_what_is_in_the_way_is_named(node: &mut Node) -> Result<()> {
    let with = |name: &str, spec: &str, image: &str| {
        node.apply(&workload(name, image, SLEEP).replace("  containers:", &format!("  {spec}\n  containers:")))
    };
    let busybox = "localhost:5000/shop/busybox:1";
    let reason = |name: &str, reason: &str| {
        node.until_workload(name, reason, |workload| {
            api::condition(workload, "Ready").is_some_and(|ready| ready["reason"] == reason)
        })
    };
    // A cycle is refused, with its way round.
    with("a", "dependsOn: [{name: b}]", busybox)?;
    with("b", "dependsOn: [{name: c}]", busybox)?;
    with("c", "dependsOn: [{name: a}]", busybox)?;
    let refused = reason("c", "InvalidSpec")?;
    let message = api::condition(&refused, "Ready").context("a condition")?["message"].to_string();
    ensure!(message.contains("c > a > b > c"), "{message}");
    // The last cause of a chain.
    with("low", "restartPolicy: Always", "localhost:5000/shop/absent:1")?;
    with("middle", "dependsOn: [{name: low, condition: Ready}]", busybox)?;
    with("high", "dependsOn: [{name: middle, condition: Ready}]", busybox)?;
    reason("high", "WaitingForDependency")?;
    until(PATIENCE, "the cause", || {
        let told = node.nodelet(&["why", "workload", "high"])?;
        Ok((told.contains("low: ") && told.contains("shop/absent:1") && told.contains("try ")).then_some(()))
    })?;
    // A port has an owner with a name.
    let port = format!("{SLEEP}    ports: [{{containerPort: 80, hostPort: 8071}}]\n");
    node.apply(&workload("owner", busybox, &port))?;
    node.until_ready("owner")?;
    node.apply(&workload("rival", busybox, &port))?;
    reason("rival", "PortConflict")?;
    let told = node.nodelet(&["why", "workload", "rival"])?;
    ensure!(told.contains("is taken by Workload default/owner") && told.contains("next try in"), "{told}");
    Ok(())
}
