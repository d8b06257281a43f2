//! The test images run under a plain containerd, so that a failing test of nodelet is not the image's fault.

use std::time::Duration;

use nodelet_tests::containerd::{Containerd, Registry, Release};
use nodelet_tests::images::catalog;
use nodelet_tests::namespaces::Namespaces;
use nodelet_tests::node::inventory::Cgroups;
use nodelet_tests::wait::until;

#[test]
fn every_image_runs_under_plain_containerd() -> anyhow::Result<()> {
    let built = catalog::build(&nodelet_tests::cache().join("images"))?;
    for release in [Release::System, Release::V2] {
        let Some(programs) = release.programs() else { continue };
        let scratch = tempfile::tempdir()?;
        let cgroups = Cgroups::named(&format!("images-{release:?}"));
        let cgroup = cgroups.parent();
        let node = Namespaces::new(scratch.path())?;
        let containerd = Containerd::start(&node, &programs, &scratch.path().join("containerd.log"))?;
        let _registry = Registry::start(&node, &built.registry, &scratch.path().join("registry.log"))?;
        let ctr = containerd.ctr().display().to_string();
        for (image, data, proof) in [
            ("shop/nginx", "", "curl -sf http://127.0.0.1:80/ | grep nginx"),
            ("shop/redis", "", "printf 'PING\\r\\n' | busybox nc 127.0.0.1 6379 | grep PONG"),
            ("shop/postgres", "--env POSTGRES_PASSWORD=x", "busybox nc 127.0.0.1 5432 </dev/null"),
            ("test/counter", "", "true"),
            ("test/ignores-term", "", "true"),
        ] {
            let run = format!(
                "set -e; {ctr} image pull --plain-http localhost:5000/{image}:1 >/dev/null; \
                 {ctr} run -d --cgroup {cgroup}/c --net-host {data} localhost:5000/{image}:1 c"
            );
            node.run(["sh", "-c", &run])?;
            until(Duration::from_secs(20), image, || Ok(node.run(["sh", "-c", proof]).ok()))?;
            node.run([
                "sh",
                "-c",
                &format!("{ctr} task kill -s KILL c; until {ctr} task rm c; do sleep 0.1; done; {ctr} c rm c"),
            ])?;
        }
        let crash = format!(
            "{ctr} image pull --plain-http localhost:5000/test/crashes:1 >/dev/null; \
             {ctr} run --rm --cgroup {cgroup}/c localhost:5000/test/crashes:1 c; test $? = 3"
        );
        node.run(["sh", "-c", &crash])?;
    }
    Ok(())
}
