//! Manifests: bad ones are refused by file, line, object and field while good ones converge, and a source that shrinks
//! by accident deletes nothing.

use std::fs;

use anyhow::{Result, ensure};
use nodelet_tests::node::{MANIFESTS, Node, PATIENCE};
use nodelet_tests::wait::until;

nodelet_tests::on_containerd!(
    bad_manifests_are_refused_and_good_ones_converge,
    a_removed_file_deletes_what_it_described,
    an_emptied_directory_deletes_nothing,
    an_unreadable_directory_deletes_nothing,
);

fn sleeper(name: &str) -> String {
    format!(
        "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n    - name: main\n      \
         image: localhost:5000/shop/busybox:1\n      command: [sleep, '2147483647']\n"
    )
}

fn bad_manifests_are_refused_and_good_ones_converge(node: &mut Node) -> Result<()> {
    // File, what is changed in a good manifest, and what the refusal must say besides the file.
    let cases = [
        (
            "wrong-field.yaml",
            "terminationGracePeriodSeconds",
            "terminationGracePeriodSecond",
            &["6", "wrong-field", "terminationGracePeriodSecond"][..],
        ),
        ("wrong-type.yaml", "Seconds: 0", "Seconds: soon", &["6", "wrong-type", "terminationGracePeriodSeconds"]),
        ("unknown-kind.yaml", "kind: Workload", "kind: Workloaf", &["2", "Workloaf"]),
        ("broken.yaml", "command: [sleep, '2147483647']", "command: [sleep, '2147483647'", &["1"]),
    ];
    for (file, good, bad, _) in &cases {
        let text = sleeper(file.trim_end_matches(".yaml"));
        ensure!(text.contains(good), "the case does not fit the manifest");
        node.manifest(file, &text.replace(good, bad))?;
    }
    node.manifest("good.yaml", &sleeper("good"))?;
    node.until_ready("good")?;
    for (file, _, _, words) in &cases {
        let refused = node.nodelet(&["apply", "-f", &format!("{MANIFESTS}/{file}")]);
        let Err(refusal) = refused else { anyhow::bail!("{file} was accepted") };
        let refusal = format!("{refusal:#}");
        ensure!(refusal.contains(file), "{file}: no file in: {refusal}");
        for word in *words {
            ensure!(refusal.contains(word), "{file}: no {word:?} in: {refusal}");
        }
        let log = fs::read_to_string(node.logs.join("nodelet.log"))?;
        let told = log.lines().any(|line| line.contains(file) && words.iter().all(|word| line.contains(word)));
        ensure!(told, "{file}: the agent's log does not say what it refused:\n{}", node.explain());
        ensure!(node.object("workloads", file.trim_end_matches(".yaml"))?.is_none(), "{file} was applied");
    }
    // Once mended it is taken without a restart.
    node.manifest("wrong-type.yaml", &sleeper("wrong-type"))?;
    node.until_ready("wrong-type").map(drop)
}

fn a_removed_file_deletes_what_it_described(node: &mut Node) -> Result<()> {
    let before = node.inventory()?;
    node.manifest("a.yaml", &sleeper("a"))?;
    node.manifest("b.yaml", &sleeper("b"))?;
    node.until_ready("a")?;
    node.until_ready("b")?;
    let pid = node.pid("b")?;
    fs::remove_file(node.namespaces.path(MANIFESTS).join("a.yaml"))?;
    node.until_gone("workloads", "a")?;
    ensure!(node.pid("b")? == pid, "the other workload was disturbed");
    // The agent remembers what came from the directory: a file that leaves while the agent is away counts too.
    node.manifest("c.yaml", &sleeper("c"))?;
    node.until_ready("c")?;
    node.stop_agent()?;
    fs::remove_file(node.namespaces.path(MANIFESTS).join("c.yaml"))?;
    node.start_agent()?;
    node.until_gone("workloads", "c")?;
    ensure!(node.pid("b")? == pid, "the other workload was disturbed");
    fs::remove_file(node.namespaces.path(MANIFESTS).join("b.yaml"))?;
    node.nodelet(&["delete", "workload", "b"])?;
    node.until_gone("workloads", "b")?;
    node.until_clean(&before)
}

fn an_emptied_directory_deletes_nothing(node: &mut Node) -> Result<()> {
    for name in ["a", "b", "c"] {
        node.manifest(&format!("{name}.yaml"), &sleeper(name))?;
    }
    for name in ["a", "b", "c"] {
        node.until_ready(name)?;
    }
    let pid = node.pid("a")?;
    node.stop_agent()?;
    for entry in fs::read_dir(node.namespaces.path(MANIFESTS))? {
        fs::remove_file(entry?.path())?;
    }
    node.start_agent()?;
    until_said(node, "empty")?;
    ensure!(node.pid("a")? == pid, "an emptied directory deleted a workload");
    Ok(())
}

fn an_unreadable_directory_deletes_nothing(node: &mut Node) -> Result<()> {
    node.manifest("a.yaml", &sleeper("a"))?;
    node.until_ready("a")?;
    let pid = node.pid("a")?;
    node.stop_agent()?;
    // The disk with the manifests did not come up.
    node.namespaces.run(["mv", MANIFESTS, "/run/elsewhere"])?;
    node.start_agent()?;
    until_said(node, MANIFESTS)?;
    ensure!(node.pid("a")? == pid, "an unreadable directory deleted a workload");
    Ok(())
}

/// Waits until the agent, since its last start, warned with these words.
fn until_said(node: &Node, words: &str) -> Result<()> {
    until(PATIENCE, &format!("a warning with {words:?}"), || {
        let log = fs::read_to_string(node.logs.join("nodelet.log"))?;
        Ok(log
            .lines()
            .any(|line| (line.contains("WARN") || line.contains("ERROR")) && line.contains(words))
            .then_some(()))
    })
}
