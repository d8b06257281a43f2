//! The main job, end to end: the shop of `examples/` from a directory of manifests to a page, and back to nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{MANIFESTS, Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_each_containerd!(the_shop_opens_changes_and_closes);
nodelet_tests::on_containerd!(every_example_runs);

fn the_shop_opens_changes_and_closes(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    for (name, text) in files("shop")? {
        node.manifest(&name, &text)?;
    }
    for workload in ["database", "cache", "api", "web"] {
        node.until_ready(workload)?;
    }
    let page = node.until_page("http://127.0.0.1:8080/")?;
    ensure!(page.contains("Today: apples."), "{page}");
    let first = node.until_page("http://127.0.0.1:8080/visits")?;
    let second = node.fetch("http://127.0.0.1:8080/visits")?;
    ensure!(first.trim() == "visit number 1" && second.trim() == "visit number 2", "{first}{second}");
    let log = node.nodelet(&["logs", "web"])?;
    ensure!(log.contains("GET /visits"), "{log}");

    let (name, text) = files("shop")?.pop().context("the shop has files")?;
    node.manifest(&name, &text.replace("apples", "pears"))?;
    until(PATIENCE, "the new page", || {
        Ok(node.fetch("http://127.0.0.1:8080/").ok().filter(|page| page.contains("Today: pears.")))
    })?;

    // An emptied directory deletes nothing; what came from it is then deleted by name.
    for (name, _) in files("shop")? {
        fs::remove_file(node.namespaces.path(MANIFESTS).join(name))?;
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop").canonicalize()?;
    node.nodelet(&["delete", "-f", examples.to_str().context("a UTF-8 path")?])?;
    for workload in ["database", "cache", "api", "web"] {
        node.until_gone("workloads", workload)?;
    }
    node.until_gone("networks", "front")?;
    node.until_clean(&before)
}

fn every_example_runs(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    for (name, text) in files("")? {
        node.apply(&text).with_context(|| name.clone())?;
        let kinds = text.split("kind: ").skip(1).map(|rest| rest.lines().next().unwrap_or_default());
        let names = text.split("  name: ").skip(1).map(|rest| rest.lines().next().unwrap_or_default());
        for (kind, object) in kinds.zip(names) {
            let plural = format!("{}s", kind.to_lowercase());
            until(PATIENCE, &format!("{plural}/{object} of {name}"), || {
                Ok(node.object(&plural, object)?.filter(api::ready))
            })
            .with_context(|| node.explain())?;
        }
    }
    ensure!(node.until_page("http://127.0.0.1:8000/")?.contains("hello from hello"));
    // An example that crashes and is restarted is Ready now and then.
    let workloads = node.get("/apis/nodelet.dev/v1alpha1/workloads")?.context("Workloads")?;
    for workload in workloads["items"].as_array().context("a list")? {
        ensure!(api::restarts(workload) == 0, "it was restarted: {workload:#}");
    }
    for (_, text) in files("")? {
        fs::write(node.namespaces.path("/run/example.yaml"), text)?;
        node.nodelet(&["delete", "-f", "/run/example.yaml"])?;
    }
    node.until_gone("networks", "backstage")?;
    node.until_clean(&before)
}

/// The manifests of a directory of `examples/`, in the order of their names.
fn files(directory: &str) -> Result<Vec<(String, String)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(directory);
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            files.push((name, fs::read_to_string(&path)?));
        }
    }
    files.sort();
    Ok(files)
}
