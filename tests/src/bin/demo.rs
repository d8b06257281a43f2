//! `make demo`: the shop of `examples/shop` on a node of its own, in about a minute.
//!
//! The containerd, the registry and the agent that it starts live in namespaces of their own and end with it; what runs
//! on this machine already is neither seen nor touched.

use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::Release;
use nodelet_tests::node::{MANIFESTS, Node, PATIENCE, api};
use nodelet_tests::wait::until;

const SHOP: [&str; 4] = ["cache", "database", "api", "web"];
const PAGE: &str = "http://127.0.0.1:8080/";

fn main() -> Result<()> {
    let screen = Screen { colour: std::io::stdout().is_terminal(), start: Instant::now() };
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop").canonicalize()?;

    screen.step("A node of its own", "containerd, a registry and nodelet, in network, mount and process namespaces");
    let release = if Release::V2.programs().is_some() { Release::V2 } else { Release::System };
    let node = Node::start("demo", release)?.context("containerd is not installed")?;
    screen.show(&node.nodelet(&["version"])?);
    screen
        .show(&node.ctr(&["version"])?.lines().filter(|line| line.contains("Version")).collect::<Vec<_>>().join("\n"));
    let before = node.inventory()?;

    screen.step("Manifests in", "the files of examples/shop go into the directory that nodelet follows");
    let names = copy(&shop, &node.namespaces.path(MANIFESTS))?;
    screen.show(&names.join("  "));
    converge(&node, &screen)?;
    screen.show(&node.nodelet(&["get", "networks"])?);

    screen.step("The page", "through the port that `web` publishes; the API behind it counts visits in redis");
    screen.command(&format!("curl {PAGE}"));
    screen.show(&node.until_page(PAGE)?);
    screen.command(&format!("curl {PAGE}visits"));
    screen.show(&node.until_page(&format!("{PAGE}visits"))?);

    screen.step("A log and a metric", "written by nodelet-logger, served by the agent");
    screen.command("nodelet logs web --tail 3");
    screen.show(&node.nodelet(&["logs", "web", "--tail", "3"])?);
    screen.command("curl http://127.0.0.1:9440/metrics");
    let metrics = node.fetch("http://127.0.0.1:9440/metrics")?;
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    screen.show(&samples.take(5).collect::<Vec<_>>().join("\n"));

    screen.step("A killed container", "somebody kills nginx behind nodelet's back");
    let web = node.until_ready("web")?;
    let id = api::container_id(&web).context("web has a container")?;
    screen.command(&format!("ctr task kill -s KILL {id}"));
    let killed = Instant::now();
    node.ctr(&["task", "kill", "-s", "KILL", &id])?;
    node.until_workload("web", "restarted", |web| api::restarts(web) > 0 && api::ready(web))?;
    node.until_page(PAGE)?;
    screen.show(&node.nodelet(&["get", "workload", "web"])?);
    screen.show(&format!("serving again {:.1} s after the kill", killed.elapsed().as_secs_f32()));

    screen.step("A changed file", "apples become pears in the ConfigMap that holds the page");
    let file = node.namespaces.path(MANIFESTS).join("60-web.yaml");
    let new = file.with_extension("new");
    fs::write(&new, fs::read_to_string(&file)?.replace("apples", "pears"))?;
    fs::rename(&new, &file)?;
    let page = until(PATIENCE, "the new page", || Ok(node.fetch(PAGE).ok().filter(|page| page.contains("pears"))))?;
    screen.show(&page);

    screen.step("Safety", "the directory is suddenly empty: nodelet keeps everything and says so");
    for name in &names {
        fs::remove_file(node.namespaces.path(MANIFESTS).join(name))?;
    }
    let log = node.logs.join("nodelet.log");
    let said = until(PATIENCE, "a warning", || {
        let text = fs::read_to_string(&log)?;
        Ok(text.lines().rfind(|line| line.contains("WARN") && line.contains(MANIFESTS)).map(str::to_owned))
    })?;
    screen.show(&said);
    ensure!(node.fetch(PAGE)?.contains("pears"), "the shop is gone");

    screen.step("Everything out", "deleted by name, then counted");
    screen.command("nodelet delete -f examples/shop");
    screen.show(&node.nodelet(&["delete", "-f", shop.to_str().context("a UTF-8 path")?])?);
    for workload in SHOP {
        node.until_gone("workloads", workload)?;
    }
    node.until_clean(&before)?;
    screen.show(
        "left: 0 containers, 0 snapshots, 0 leases, 0 network namespaces, 0 links, 0 packet filter rules,\n      \
         0 cgroups, 0 mounts, 0 volumes, 0 processes more than before",
    );
    screen.step(
        "Done",
        &format!("{:.0} s. Next: README.md, a tour of five minutes", screen.start.elapsed().as_secs_f32()),
    );
    Ok(())
}

/// Shows the table each time it changes, until all of the shop is ready.
fn converge(node: &Node, screen: &Screen) -> Result<()> {
    let start = Instant::now();
    let mut shown = Vec::new();
    screen.command("nodelet get workloads -w");
    until(PATIENCE, "the shop", || {
        let mut states = Vec::new();
        for name in SHOP {
            let Some(object) = node.object("workloads", name)? else { continue };
            let ready = api::condition(&object, "Ready");
            let word = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
            let reason = ready.map_or("-".to_owned(), |ready| word(&ready["reason"]));
            let address = word(&object["status"]["addresses"][0]["ip"]);
            let phase = word(&object["status"]["phase"]);
            states.push((api::ready(&object), format!("{name:<10}{phase:<10}{reason:<24}{address}")));
        }
        if states != shown {
            for state in states.iter().filter(|state| !shown.contains(state)) {
                screen.row(start.elapsed(), state.0, &state.1);
            }
            shown = states;
        }
        Ok((shown.len() == SHOP.len() && shown.iter().all(|state| state.0)).then_some(()))
    })
    .with_context(|| node.explain())
}

/// Copies the manifests of a directory and answers their names.
fn copy(from: &Path, to: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        fs::copy(&path, to.join(&name))?;
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// What the demo prints, in colours on a terminal.
struct Screen {
    colour: bool,
    start: Instant,
}

#[allow(clippy::print_stdout)] // a program that shows something
impl Screen {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn step(&self, title: &str, what: &str) {
        println!("\n{}  {}", self.paint("1;36", title), self.paint("2", what));
    }

    fn command(&self, line: &str) {
        println!("  {}", self.paint("1", &format!("$ {line}")));
    }

    fn show(&self, text: &str) {
        for line in text.lines() {
            println!("  {line}");
        }
    }

    fn row(&self, after: Duration, ready: bool, line: &str) {
        let time = format!("{:>5.1} s", after.as_secs_f32());
        println!("  {}  {}", self.paint("2", &time), self.paint(if ready { "32" } else { "33" }, line));
    }
}
