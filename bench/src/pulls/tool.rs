//! The tools that pull, each on a fresh node.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nodelet_tests::containerd::{Registry, Release};
use nodelet_tests::node::Node;
use nodelet_tests::wait::until;

use super::cost::{Cost, measure};

/// Who pulls, and who unpacks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Nodelet,
    /// nodelet where it cannot see containerd's directories, so that containerd unpacks.
    NodeletByContainerd,
    /// The same with `unpigz` for containerd.
    NodeletByPigz,
    Ctr,
    CtrPigz,
    Docker,
    Podman,
}

impl Tool {
    pub(super) const ALL: [Tool; 7] = [
        Tool::Nodelet,
        Tool::NodeletByContainerd,
        Tool::NodeletByPigz,
        Tool::Ctr,
        Tool::CtrPigz,
        Tool::Docker,
        Tool::Podman,
    ];

    /// In the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tool::Nodelet => "nodelet",
            Tool::NodeletByContainerd => "nodelet (containerd unpacks)",
            Tool::NodeletByPigz => "nodelet (containerd unpacks by unpigz)",
            Tool::Ctr => "ctr",
            Tool::CtrPigz => "ctr (unpigz)",
            Tool::Docker => "docker",
            Tool::Podman => "podman",
        }
    }

    /// One of the others, as they are installed.
    pub(super) fn is_peer(self) -> bool {
        matches!(self, Tool::Ctr | Tool::Docker | Tool::Podman)
    }

    /// One cold pull on a fresh node; nothing if the machine lacks the tool.
    pub(super) fn pull(
        self,
        image: &str,
        release: Release,
        storage: &Path,
        pigz: Option<&Path>,
    ) -> Result<Option<Cost>> {
        let needs = match self {
            Tool::Docker => Some("dockerd"),
            Tool::Podman => Some("podman"),
            _ => None,
        };
        if needs.is_some_and(|program| !installed(program)) {
            return Ok(None);
        }
        let Some(mut node) = Node::without_agent("bench-pull", release)? else { return Ok(None) };
        if matches!(self, Tool::NodeletByPigz | Tool::CtrPigz) && !with_pigz(&node, pigz)? {
            return Ok(None);
        }
        if let Some(registry) = node.registry.take() {
            registry.kill(&node.namespaces)?;
        }
        let registry = Registry::start(&node.namespaces, storage, &node.logs.join("bench-registry.log"))?;
        let reference = format!("localhost:5000/bench/{image}:1");
        let cost = match self {
            Tool::Nodelet => nodelet(&mut node, &reference)?,
            Tool::NodeletByContainerd | Tool::NodeletByPigz => {
                hide_containerd(&mut node)?;
                nodelet(&mut node, &reference)?
            }
            Tool::Ctr | Tool::CtrPigz => {
                let ctr = release.programs().context("containerd")?.join("ctr");
                let line = format!("{} -n bench images pull --plain-http {reference}", ctr.display());
                measure(&node, "", &["containerd"], &line)?
            }
            Tool::Docker => docker(&node, &reference)?,
            Tool::Podman => {
                let line = format!(
                    "podman --root /run/podman/root --runroot /run/podman/run --cgroup-manager cgroupfs \
                     --storage-driver overlay --events-backend none pull -q --tls-verify=false {reference}"
                );
                measure(&node, "", &[], &line)?
            }
        };
        registry.kill(&node.namespaces)?;
        Ok(Some(cost))
    }
}

fn nodelet(node: &mut Node, reference: &str) -> Result<Cost> {
    let config = fs::read_to_string(node.config())?.replace("logLevel: debug", "logLevel: info");
    fs::write(node.config(), config)?;
    let program = node.nodelet.display().to_string();
    node.start_agent()?;
    #[expect(clippy::disallowed_methods, reason = "its first second is its own, and nothing tells its end")]
    std::thread::sleep(Duration::from_secs(1));
    measure(node, "nodelet", &["containerd"], &format!("{program} images pull {reference}"))
        .with_context(|| node.explain())
}

/// Starts the agent where containerd's directories are not to be seen.
fn hide_containerd(node: &mut Node) -> Result<()> {
    let program = node.namespaces.path("/run/nodelet-apart");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" != run ]; then exec {program} \"$@\"; fi\n\
         exec unshare -m --propagation private sh -c 'mount -t tmpfs none /run/containerd-root; exec {program} \"$@\"' sh \"$@\"\n",
        program = node.nodelet.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    node.nodelet = "/run/nodelet-apart".into();
    Ok(())
}

/// Lays `unpigz` over the node's programs before containerd looks for it, which is with the first layer.
fn with_pigz(node: &Node, directory: Option<&Path>) -> Result<bool> {
    match directory {
        None => Ok(installed("unpigz")),
        Some(directory) => {
            let layers = format!("lowerdir={}:/usr/bin", directory.display());
            node.namespaces.run(["mount", "-t", "overlay", "overlay", "-o", &layers, "/usr/bin"])?;
            Ok(true)
        }
    }
}

fn docker(node: &Node, reference: &str) -> Result<Cost> {
    let words = ["dockerd", "--data-root", "/run/docker-data", "--exec-root", "/run/docker-exec"];
    let more = ["--pidfile", "/run/docker.pid", "-H", "unix:///run/docker.sock", "--bridge", "none"];
    let with = ["--iptables=false", "--containerd", "/run/containerd/containerd.sock"];
    let words: Vec<&OsStr> = words.iter().chain(&more).chain(&with).map(OsStr::new).collect();
    let _daemon = node.namespaces.spawn(&words, &node.logs.join("dockerd.log"))?;
    let docker = "docker -H unix:///run/docker.sock";
    until(Duration::from_secs(60), "dockerd", || {
        Ok(node.namespaces.run(["sh", "-c", &format!("{docker} info >/dev/null 2>&1")]).ok())
    })?;
    measure(node, "", &["dockerd", "containerd"], &format!("{docker} pull -q {reference}"))
}

fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin"].iter().any(|place| Path::new(place).join(program).exists())
}
