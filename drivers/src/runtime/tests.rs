//! The runtime on a real containerd.

use super::conformance::{self, Fixture, exit, get, next, wait_for};
use super::*;
use crate::testing::{BUSYBOX, PrivateContainerd};

struct Node {
    containerd: PrivateContainerd,
    runtime: ContainerdRuntime,
    fixture: Fixture,
}

async fn node() -> Node {
    let containerd = PrivateContainerd::start().await;
    containerd.import_busybox();
    let runtime = runtime_of(&containerd);
    let fixture = Fixture::new(BUSYBOX, containerd.cgroup_parent());
    Node { containerd, runtime, fixture }
}

fn runtime_of(containerd: &PrivateContainerd) -> ContainerdRuntime {
    let options = Options {
        run_dir: containerd.dir().join("run"),
        logger: containerd.dir().join("logger"),
        ..Options::default()
    };
    ContainerdRuntime::new(containerd.containerd(), options)
}

#[tokio::test]
async fn conforms() {
    let node = node().await;
    conformance::all(&node.runtime, &node.fixture).await;
}
