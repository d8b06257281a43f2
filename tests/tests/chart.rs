//! The agent in a container, with the mounts and privileges that the chart asks for and no others, manages the node.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::Release;
use nodelet_tests::images::{catalog, store};
use nodelet_tests::namespaces::output;
use nodelet_tests::node::{DATA, MANIFESTS, Node, RUN};
use serde_json::Value;

#[test]
fn the_agent_in_a_container_manages_the_node_on_containerd_1() -> Result<()> {
    in_a_container("chart-1", Release::System)
}

#[test]
fn the_agent_in_a_container_manages_the_node_on_containerd_2() -> Result<()> {
    in_a_container("chart-2", Release::V2)
}

fn in_a_container(name: &str, release: Release) -> Result<()> {
    let Some(node) = Node::without_agent(name, release)? else { return Ok(()) };
    let rendered = render(&node)?;
    let daemon_set = rendered.iter().find(|object| object["kind"] == "DaemonSet").context("a DaemonSet")?;
    let config_map = rendered.iter().find(|object| object["kind"] == "ConfigMap").context("a ConfigMap")?;
    let config = config_map["data"]["config.yaml"].as_str().context("a configuration")?;
    fs::write(node.config(), config)?;

    let archive = node.logs.join("nodelet-image.tar");
    catalog::agent(&node.nodelet, &node.nodelet.with_file_name("nodelet-logger"))
        .and_then(|image| store::oci_archive(&archive, "nodelet.dev/nodelet:test", &image))?;
    // The agent's own container is not one of its workloads: it lives in another namespace of containerd.
    let agent = |words: &[&str]| node.ctr_in("system", words);
    agent(&["image", "import", archive.to_str().context("a UTF-8 path")?])?;
    // What a node's `/run` is under systemd: mounts made in a container with Bidirectional come out.
    node.namespaces.run(["mount", "--make-rshared", "/run"])?;
    let words = run_words(&daemon_set["spec"]["template"]["spec"], name)?;
    agent(&words.iter().map(String::as_str).collect::<Vec<_>>())?;

    node.until_page("http://127.0.0.1:9440/readyz")?;
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop");
    for file in fs::read_dir(shop)? {
        let path = file?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        node.manifest(&name, &fs::read_to_string(&path)?)?;
    }
    node.until_ready("web")?;
    ensure!(node.until_page("http://127.0.0.1:8080/")?.contains("The small shop"));
    let pid = node.pid("web")?;

    // The agent's container ends; the workloads do not notice.
    agent(&["task", "kill", "-s", "KILL", "nodelet"])?;
    ensure!(node.until_page("http://127.0.0.1:8080/")?.contains("The small shop"));
    ensure!(node.ctr(&["task", "ls"])?.contains(&format!(" {pid} ")), "the workload ended with the agent");
    Ok(())
}

/// The chart's objects, with the directories of a test node.
fn render(node: &Node) -> Result<Vec<Value>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let helm = output(&mut std::process::Command::new(root.join("tests/bin/fetch-helm")))?;
    let set = format!(
        "paths.data={DATA},paths.run={RUN},paths.manifests={MANIFESTS},image.tag=test,config.nodeName=test,\
         config.api.listen=,config.observability.logLevel=debug,config.runtime.cgroupParent={}",
        node.cgroup_parent()
    );
    let mut command = std::process::Command::new(helm.trim());
    command.args(["template", "nodelet", "--kube-version", "1.30.0", "--set", &set]).arg(root.join("charts/nodelet"));
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&output(&mut command)?).context("reading what helm rendered")?;
    Ok(objects)
}

/// The words after `ctr` that run the DaemonSet's pod as the kubelet would. A field that is not carried over here fails
/// the test, so that the chart cannot ask for what was never tried.
fn run_words(pod: &Value, name: &str) -> Result<Vec<String>> {
    let container = &pod["containers"][0];
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true, "the chart asks for other namespaces");
    ensure!(container["securityContext"]["privileged"] == true, "the chart asks for other privileges");
    let mut words = ["run", "--detach", "--net-host", "--privileged", "--read-only"].map(str::to_owned).to_vec();
    words.extend(["--with-ns", "pid:/proc/1/ns/pid", "--rootfs-propagation", "rshared"].map(str::to_owned));
    words.extend(["--cgroup".to_owned(), format!("/nodelet-test-{name}/agent")]);
    let file_log = format!("file://{DATA}/agent.log");
    words.extend(["--log-uri".to_owned(), file_log]);
    for mount in container["volumeMounts"].as_array().context("mounts")? {
        let text = |field: &str| mount[field].as_str().unwrap_or_default().to_owned();
        let volumes = pod["volumes"].as_array().context("volumes")?;
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).context("a mount of no volume")?;
        let source = match (&volume["hostPath"], &volume["configMap"], &volume["emptyDir"]) {
            (Value::Object(path), _, _) => path["path"].as_str().context("a path")?.to_owned(),
            (_, Value::Object(_), _) => "/run/config.yaml".to_owned(),
            (_, _, Value::Object(_)) => {
                words.extend(["--mount".to_owned(), format!("type=tmpfs,src=tmpfs,dst={}", text("mountPath"))]);
                continue;
            }
            _ => anyhow::bail!("a volume that this test cannot make: {volume}"),
        };
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let propagation = match text("mountPropagation").as_str() {
            "Bidirectional" => "rshared",
            "HostToContainer" => "rslave",
            _ => "rprivate",
        };
        words.push("--mount".to_owned());
        words.push(format!("type=bind,src={source},dst={},options=rbind:{access}:{propagation}", text("mountPath")));
    }
    words.push(container["image"].as_str().context("an image")?.to_owned());
    words.push("nodelet".to_owned());
    words.push("/usr/bin/nodelet".to_owned());
    for word in container["args"].as_array().context("arguments")? {
        words.push(word.as_str().context("a word")?.to_owned());
    }
    Ok(words)
}
