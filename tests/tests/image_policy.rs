//! What Images ask of a node, end to end: tags that move, signatures, archives without a registry, pulls by hand.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::namespaces::Daemon;
use nodelet_tests::node::{DATA, Node, PATIENCE, api};
use nodelet_tests::wait::until;
use serde_json::{Value, json};

nodelet_tests::on_each_containerd!(what_is_not_signed_is_never_unpacked);
nodelet_tests::on_containerd!(
    a_pushed_tag_moves_the_workloads_that_ask_for_it,
    dropped_archives_are_imported_and_kept,
    images_are_pulled_by_hand,
);

/// A registry that can be pushed to, at `localhost:5001`.
struct Pushable(Daemon);

impl Pushable {
    fn start(node: &Node) -> Result<Self> {
        let config = "/run/pushable.yml";
        let text = "version: 0.1\nlog: {level: error}\nhttp: {addr: '127.0.0.1:5001'}\n\
                    storage: {filesystem: {rootdirectory: /run/pushable}}\n";
        fs::write(node.namespaces.path(config), text)?;
        let words = ["docker-registry", "serve", config].map(OsStr::new);
        let daemon = node.namespaces.spawn(&words, &node.logs.join("pushable.log"))?;
        until(PATIENCE, "the registry", || Ok(node.fetch("http://127.0.0.1:5001/v2/").ok()))?;
        Ok(Self(daemon))
    }

    fn kill(mut self, node: &Node) -> Result<()> {
        node.namespaces.signal(self.0.pid, "KILL")?;
        self.0.wait(PATIENCE).map(drop)
    }
}

/// Pushes a test image as `localhost:5001/app:1` and answers its digest.
fn push(node: &Node, image: &str) -> Result<String> {
    let from = format!("docker://localhost:5000/{image}:1");
    let to = "docker://localhost:5001/app:1";
    let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    node.namespaces.run(["skopeo", "copy", "-q", plain[0], plain[1], &from, to])?;
    let shown = node.namespaces.run(["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", to])?;
    Ok(shown.trim().to_owned())
}

fn workload(name: &str, image: &str, policy: &str) -> String {
    format!(
        "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  networks: [{{name: none}}]
  containers: [{{name: main, image: '{image}', imagePullPolicy: {policy}, command: [sleep, '2147483647']}}]
"
    )
}

/// A workload that mounts the image, and works as version 1 only.
fn mounting(version: &str, image: &str) -> String {
    format!(
        "
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {{name: mounting}}
spec:
  update: {{rollbackOnFailure: true, healthySeconds: 0}}
  crashLoopBackOff: {{initialSeconds: 1}}
  terminationGracePeriodSeconds: 0
  networks: [{{name: none}}]
  volumes: [{{name: app, image: {{reference: '{image}', pullPolicy: Always}}}}]
  containers:
  - name: main
    image: localhost:5000/shop/busybox:1
    command: [sh, -c, 'ls /app/bin /app/usr/bin 2>/dev/null; [ {version} = v1 ] || exit 3; exec sleep 2147483647']
    volumeMounts: [{{name: app, mountPath: /app}}]
"
    )
}

/// The digest of the image that the workload's container mounts.
fn mounted(node: &Node, workload: &Value) -> Result<String> {
    let id = api::container_id(workload).context("a container")?;
    let info: Value = serde_json::from_str(&node.ctr(&["containers", "info", &id])?)?;
    Ok(info["Labels"]["nodelet.dev/volume-image.app"].as_str().unwrap_or_default().to_owned())
}

fn image(spec: &Value) -> String {
    json!({"apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "app"}, "spec": spec})
        .to_string()
}

fn image_id(workload: &Value) -> String {
    workload["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default().to_owned()
}

fn until_image(node: &Node, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    until(PATIENCE, &format!("the Image: {what}"), || Ok(node.object("images", "app")?.filter(|image| wanted(image))))
        .with_context(|| format!("{:#?}\n{}", node.object("images", "app"), node.explain()))
}

fn node_state(node: &Node) -> Result<Value> {
    let mut states = node.get("/apis/nodelet.dev/v1alpha1/nodestates")?.context("NodeStates")?;
    Ok(states["items"][0].take())
}

fn a_pushed_tag_moves_the_workloads_that_ask_for_it(node: &mut Node) -> Result<()> {
    const APP: &str = "localhost:5001/app:1";
    let registry = Pushable::start(node)?;
    let first = push(node, "shop/busybox")?;
    node.apply(&image(&json!({"reference": APP, "refreshSeconds": 2})))?;
    node.apply(&workload("follows", APP, "Always"))?;
    node.apply(&workload("newer", APP, "Newer"))?;
    node.apply(&workload("stays", APP, "IfNotPresent"))?;
    for name in ["follows", "newer", "stays"] {
        let workload = node.until_ready(name)?;
        ensure!(image_id(&workload).contains(&first), "{name} runs {} and not {first}", image_id(&workload));
    }
    until_image(node, "its digest", |image| image["status"]["digest"] == first.as_str())?;
    let stays = node.pid("stays")?;
    node.apply(&mounting("v1", APP))?;
    let mounting_v1 = node.until_workload("mounting", "its first revision", |it| it["status"]["revision"] == 1)?;
    ensure!(mounted(node, &mounting_v1)? == first);

    let second = push(node, "shop/redis")?;
    ensure!(first != second, "another image has another digest");
    for name in ["follows", "newer"] {
        node.until_workload(name, "the new image", |it| api::ready(it) && image_id(it).contains(&second))?;
    }
    until_image(node, "the new digest", |image| image["status"]["digest"] == second.as_str())?;
    ensure!(node.pid("stays")? == stays, "a workload that did not ask for it was replaced");

    // Who goes back to a former revision mounts what that one mounted.
    node.apply(&mounting("v2", APP))?;
    let back = node.until_workload("mounting", "rolled back", |it| {
        let rolled_back = api::condition(it, "Progressing").is_some_and(|it| it["reason"] == "RolledBack");
        it["status"]["observedGeneration"] == 2 && rolled_back && api::ready(it)
    })?;
    ensure!(mounted(node, &back)? == first, "{back:#}");
    let seen = node.nodelet(&["logs", "mounting"])?;
    ensure!(seen.contains("busybox") && !seen.contains("redis-server"), "{seen}");
    // NodeState is written once a second at most.
    until(PATIENCE, "NodeState to follow", || {
        let part = node_state(node)?["status"]["images"][0].clone();
        Ok((part["digest"] == second.as_str() && part["resolvedAt"].is_string()).then_some(()))
    })?;

    // The registry goes: what runs goes on, and only who insists on an answer fails.
    registry.kill(node)?;
    until_image(node, "a sentence about the registry", |image| {
        let ready = api::condition(image, "Ready");
        ready.is_some_and(|it| it["status"] == "True" && it["message"].as_str().is_some_and(|m| m.contains("anew")))
    })?;
    node.apply(&workload("late-newer", APP, "Newer"))?;
    node.apply(&workload("late-never", APP, "Never"))?;
    node.apply(&workload("late-always", APP, "Always"))?;
    node.until_ready("late-newer")?;
    node.until_ready("late-never")?;
    node.until_workload("late-always", "to fail", |it| {
        api::condition(it, "ImagesReady").is_some_and(|it| it["status"] == "False" && it["reason"] != "ImagesPending")
    })?;
    ensure!(node.pid("stays")? == stays, "a workload was replaced");
    let restarts = api::restarts(&node.until_ready("follows")?);
    ensure!(restarts == 0, "an update is no restart: {restarts}");
    Ok(())
}

/// Signs `localhost:5001/app` at a digest as cosign does, with OpenSSL in its place.
fn sign(node: &Node, digest: &str) -> Result<()> {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": "localhost:5001/app"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    fs::write(node.namespaces.path("/run/payload"), payload.to_string())?;
    let script = r#"set -e; cd /run; url=http://localhost:5001/v2/app
        openssl dgst -sha256 -sign key.pem -out signature payload
        upload() {
            at=$(curl -sf -i -X POST $url/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //Ip')
            sum=sha256:$(sha256sum <$1 | cut -c-64)
            curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary @$1 "$at&digest=$sum"
            echo "\"digest\": \"$sum\", \"size\": $(wc -c <$1)"
        }
        printf '{}' >config
        config=$(upload config); layer=$(upload payload)
        printf '{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", %s},
            "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", %s,
                        "annotations": {"dev.cosignproject.cosign/signature": "%s"}}]}' \
            "$config" "$layer" "$(base64 -w0 signature)" >manifest
        curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @manifest \
            $url/manifests/$(echo $1 | tr : -).sig"#;
    node.namespaces.run(["sh", "-c", script, "sh", digest]).map(drop)
}

fn what_is_not_signed_is_never_unpacked(node: &mut Node) -> Result<()> {
    const APP: &str = "localhost:5001/app:1";
    let _registry = Pushable::start(node)?;
    let digest = push(node, "shop/busybox")?;
    let make_key = "cd /run && openssl ecparam -genkey -name prime256v1 -noout -out key.pem && \
                    openssl ec -in key.pem -pubout 2>/dev/null";
    let public = node.namespaces.run(["sh", "-c", make_key])?;
    let fingerprint = node.namespaces.run([
        "sh",
        "-c",
        "openssl ec -in /run/key.pem -pubout -outform der 2>/dev/null | sha256sum | cut -c-64",
    ])?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "signer"}, "stringData": {"cosign.pub": public},
    });
    node.apply(&secret.to_string())?;
    node.apply(&image(&json!({"reference": APP, "verify": {"publicKey": {"secretName": "signer"}}})))?;
    node.apply(&workload("app", APP, "IfNotPresent"))?;
    let refused = until_image(node, "to be refused", |image| {
        api::condition(image, "Ready").is_some_and(|it| it["reason"] == "VerificationFailed" && it["status"] == "False")
    })?;
    let message = api::condition(&refused, "Ready").context("a condition")?["message"].clone();
    let message = message.as_str().context("a message")?;
    for needed in [digest.as_str(), fingerprint.trim(), "Secret default/signer", "no signature was found"] {
        ensure!(message.contains(needed), "{needed:?} is missing: {message}");
    }
    node.until_workload("app", "to be held", |it| {
        api::condition(it, "ImagesReady").is_some_and(|it| it["reason"] == "VerificationFailed")
    })?;
    // By its digest, and put there by another hand, it does not come in either.
    node.apply(&workload("by-digest", &format!("localhost:5001/app@{digest}"), "Always"))?;
    node.until_workload("by-digest", "to be held", |it| {
        api::condition(it, "ImagesReady").is_some_and(|it| it["reason"] == "VerificationFailed")
    })?;
    let there = node.ctr(&["content", "ls", "-q"])?;
    ensure!(there.is_empty(), "something of it was stored: {there}");
    ensure!(node.ctr(&["image", "ls", "-q"])?.is_empty(), "an image record is there");
    node.ctr(&["image", "pull", "--plain-http", APP])?;
    node.apply(&workload("never", APP, "Never"))?;
    node.until_workload("never", "to be held", |it| {
        api::condition(it, "ImagesReady").is_some_and(|it| it["reason"] == "VerificationFailed")
    })?;
    ensure!(node.ctr(&["task", "ls", "-q"])?.is_empty(), "something unsigned runs");

    sign(node, &digest)?;
    for name in ["app", "by-digest", "never"] {
        let workload = node.until_ready(name)?;
        ensure!(image_id(&workload).contains(&digest), "{}", image_id(&workload));
    }
    until_image(node, "ready", api::ready)?;

    // What is pushed without a signature is told, and moves nothing.
    let pid = node.pid("app")?;
    let next = push(node, "shop/redis")?;
    node.apply(&image(&json!({
        "reference": APP, "pullPolicy": "Always", "verify": {"publicKey": {"secretName": "signer"}},
    })))?;
    until_image(node, "to be refused again", |image| {
        let ready = api::condition(image, "Ready");
        let told = |it: &Value| it["message"].as_str().is_some_and(|message| message.contains(&next));
        ready.is_some_and(|it| it["reason"] == "VerificationFailed" && told(it))
    })?;
    ensure!(node.pid("app")? == pid, "a running workload was touched");
    Ok(())
}

fn dropped_archives_are_imported_and_kept(node: &mut Node) -> Result<()> {
    const BUSYBOX: &str = "images.example/busybox:1";
    let directory = node.namespaces.path(DATA).join("images");
    let (oci, docker) = (node.images.oci_archive.clone(), node.images.docker_archive.clone());
    let place = |from: &PathBuf, name: &str| -> Result<()> {
        let new = directory.join(format!(".{name}"));
        fs::copy(from, &new)?;
        fs::rename(new, directory.join(name)).context("placing an archive")
    };
    let imported = |node: &Node, wanted: &str, word: &str| {
        until(PATIENCE, &format!("ArchivesImported to be {wanted}"), || {
            let state = node_state(node)?;
            let condition = api::condition(&state, "ArchivesImported").cloned();
            let says = |it: &Value| it["message"].as_str().is_some_and(|message| message.contains(word));
            Ok(condition.filter(|it| it["status"] == wanted && says(it)))
        })
        .with_context(|| node.explain())
    };
    node.apply(&workload("offline", BUSYBOX, "Never"))?;
    place(&oci, "busybox.tar")?;
    node.until_ready("offline")?;
    imported(node, "True", "")?;

    // An unreadable one is named, and the others go on.
    fs::write(directory.join("broken.tar"), "this is no archive")?;
    imported(node, "False", "broken.tar")?;
    let events = node.nodelet(&["events", "-A"])?;
    ensure!(events.contains("ArchiveFailed") && events.contains("broken.tar"), "{events}");
    fs::remove_file(directory.join("broken.tar"))?;
    imported(node, "True", "")?;

    // One that takes its time to be written is nobody's error.
    let slow = format!(
        "(head -c 100000 '{from}'; sleep 2; tail -c +100001 '{from}') >{DATA}/images/slow.tar",
        from = docker.canonicalize()?.display()
    );
    let mut writer = node.background(&slow)?;
    until(PATIENCE, "half a file", || Ok(directory.join("slow.tar").exists().then_some(())))?;
    while writer.try_wait()?.is_none() {
        imported(node, "True", "")?;
    }
    until(PATIENCE, "the slow one to be imported", || {
        Ok(node.nodelet(&["events", "-A"])?.contains("slow.tar").then_some(()))
    })?;
    imported(node, "True", "")?;
    fs::remove_file(directory.join("slow.tar"))?;

    // Kept while the file is there, whether used or not; then it is as any other.
    node.nodelet(&["delete", "workload", "offline"])?;
    node.until_gone("workloads", "offline")?;
    node.nodelet(&["images", "prune"])?;
    ensure!(node.ctr(&["image", "ls", "-q"])?.contains(BUSYBOX), "an image of the drop-in directory was removed");
    fs::remove_file(directory.join("busybox.tar"))?;
    until(PATIENCE, "the image to be nobody's", || {
        let would = node.nodelet(&["images", "prune", "--dry-run", "-o", "json"])?;
        Ok(would.contains(BUSYBOX).then_some(()))
    })?;
    ensure!(node.ctr(&["image", "ls", "-q"])?.contains(BUSYBOX), "removing the file removed the image");
    Ok(())
}

fn images_are_pulled_by_hand(node: &mut Node) -> Result<()> {
    let said = node.nodelet(&["images", "pull", "localhost:5000/shop/redis:1"])?;
    ensure!(said.starts_with("localhost:5000/shop/redis:1 sha256:"), "{said}");
    let told: Value =
        serde_json::from_str(&node.nodelet(&["images", "pull", "localhost:5000/shop/redis:1", "-o", "json"])?)?;
    ensure!(told["nodes"] == 1 && told["reference"] == "localhost:5000/shop/redis:1", "{told:#}");
    until(PATIENCE, "the list to follow", || {
        let listed = node.nodelet(&["images"])?;
        Ok((listed.contains("localhost:5000/shop/redis:1") && listed.contains("Ready")).then_some(()))
    })?;
    let events = node.nodelet(&["events", "-A"])?;
    ensure!(events.contains("Pulling localhost:5000/shop/redis:1") && events.contains("is on the node"), "{events}");

    let refused = node.nodelet(&["images", "pull", "localhost:5000/no/such:1", "--name", "absent"]);
    let refused = format!("{:?}", refused.err().context("it cannot be had")?);
    ensure!(refused.contains("PullFailed") && refused.contains("not in the registry"), "{refused}");

    let name = told["name"].as_str().context("a name")?;
    node.nodelet(&["delete", "image", name])?;
    node.nodelet(&["delete", "image", "absent"])?;
    node.until_gone("images", name)?;
    ensure!(!node.ctr(&["image", "ls", "-q"])?.contains("redis"), "nobody wants it any more");
    // What was on its way is told while it is, and not afterwards.
    until(PATIENCE, "NodeState to follow", || {
        let transfers = node_state(node)?["status"]["transfers"].clone();
        Ok((transfers.is_null() || transfers == json!([])).then_some(()))
    })
}
