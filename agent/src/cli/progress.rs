//! Transfers of images, shown while something waits for them: bars on a terminal, a line for each step elsewhere.
//!
//! What is shown comes from NodeState, so it is of every node, and whoever asked for the image.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use futures::StreamExt as _;
use nodelet_drivers::images::normalize;
use serde_json::Value;

use super::node_lists::size;
use super::session::Session;

/// Characters of a bar.
const BAR: usize = 24;

/// Full references of all images that these objects name.
pub(crate) fn references<'a>(objects: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for object in objects {
        let spec = &object["spec"];
        let containers =
            ["initContainers", "containers"].into_iter().filter_map(|list| spec[list].as_array()).flatten();
        let named = containers.map(|container| &container["image"]).chain([&spec["reference"]]);
        found.extend(named.filter_map(Value::as_str).filter_map(|name| normalize(name).ok()));
    }
    found
}

/// Shows the transfers of `references` until `work` is done.
pub(crate) async fn beside<T>(session: &Session, references: BTreeSet<String>, work: impl Future<Output = T>) -> T {
    if references.is_empty() || session.output.format.is_some() {
        return work.await;
    }
    let mut view = View::new(session);
    let done = tokio::select! {
        // Cancel-safe: showing changes nothing.
        done = work => done,
        () = follow(session, &references, &mut view) => unreachable!("it never ends"),
    };
    view.clear();
    done
}

/// Never ends.
async fn follow(session: &Session, references: &BTreeSet<String>, view: &mut View<'_>) {
    let mut nodes: BTreeMap<String, Vec<Transfer>> = BTreeMap::new();
    loop {
        if let Ok(kind) = session.kinds.named("nodestates.nodelet.dev")
            && let Ok(list) = session.client.list(kind, None, &[]).await
        {
            for node in list["items"].as_array().into_iter().flatten() {
                note(&mut nodes, node, references);
            }
            view.show(&nodes);
            let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            if let Ok(events) = session.client.watch(&kind.path(None, None), &[("resourceVersion", &version)]).await {
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    if event["type"] == "ERROR" {
                        break;
                    }
                    note(&mut nodes, &event["object"], references);
                    view.show(&nodes);
                }
            }
        }
        // A watch that ends at once must not become a busy loop.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn note(nodes: &mut BTreeMap<String, Vec<Transfer>>, node: &Value, references: &BTreeSet<String>) {
    let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let transfers = node["status"]["transfers"].as_array().into_iter().flatten();
    nodes.insert(name, transfers.map(Transfer::of).filter(|t| references.contains(&t.reference)).collect());
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Transfer {
    reference: String,
    phase: String,
    done: u64,
    total: u64,
    rate: Option<u64>,
    left: Option<u64>,
}

impl Transfer {
    fn of(entry: &Value) -> Self {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        Self {
            reference: text("reference"),
            phase: text("phase"),
            done: entry["bytesDone"].as_u64().unwrap_or_default(),
            total: entry["bytesTotal"].as_u64().unwrap_or_default(),
            rate: entry["bytesPerSecond"].as_u64(),
            left: entry["secondsLeft"].as_u64(),
        }
    }

    /// `Pulling [====>   ]  45 %, 12.3 of 27.0 MiB, 3.1 MiB/s, 5 s left`
    fn bar(&self) -> String {
        let mut line = format!("{:<9}", self.phase);
        if self.total > 0 {
            let part = |of: u64| {
                u64::try_from(u128::from(self.done.min(self.total)) * u128::from(of) / u128::from(self.total))
            };
            let (filled, percent) = (part(BAR as u64).unwrap_or_default() as usize, part(100).unwrap_or_default());
            let (full, empty) = ("=".repeat(filled), " ".repeat(BAR - filled));
            line += &format!(" [{full}{empty}] {percent:>3} %, {} of {}", size(self.done), size(self.total));
        }
        if let Some(rate) = self.rate {
            line += &format!(", {}/s", size(rate));
        }
        if let Some(left) = self.left {
            line += &format!(", {left} s left");
        }
        line
    }
}

/// What is on the screen.
struct View<'a> {
    session: &'a Session,
    terminal: bool,
    lines: usize,
    /// Without a terminal: the last phase told of each.
    told: BTreeMap<(String, String), String>,
}

impl<'a> View<'a> {
    fn new(session: &'a Session) -> Self {
        Self { session, terminal: std::io::stderr().is_terminal(), lines: 0, told: BTreeMap::new() }
    }

    fn show(&mut self, nodes: &BTreeMap<String, Vec<Transfer>>) {
        if self.terminal {
            self.clear();
            let several = nodes.len() > 1;
            let mut screen = String::new();
            for (node, transfer) in nodes.iter().flat_map(|(node, all)| all.iter().map(move |one| (node, one))) {
                let whose = if several { format!("{node}: ") } else { String::new() };
                screen += &format!("{whose}{}\n  {}\n", transfer.reference, transfer.bar());
                self.lines += 2;
            }
            let _ = std::io::stderr().lock().write_all(screen.as_bytes());
            return;
        }
        for (node, transfer) in nodes.iter().flat_map(|(node, all)| all.iter().map(move |one| (node, one))) {
            let key = (node.clone(), transfer.reference.clone());
            if self.told.get(&key) != Some(&transfer.phase) {
                let total = if transfer.total > 0 { format!(", {}", size(transfer.total)) } else { String::new() };
                self.session.output.note(&format!("{node}: {}: {}{total}", transfer.reference, transfer.phase));
                self.told.insert(key, transfer.phase.clone());
            }
        }
    }

    /// Takes the bars off the screen, so that results stand where they were.
    fn clear(&mut self) {
        if self.terminal && self.lines > 0 {
            let _ = write!(std::io::stderr().lock(), "\x1b[{}A\x1b[J", self.lines);
        }
        self.lines = 0;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_image_that_an_object_names_is_followed() {
        let workload = json!({"spec": {"initContainers": [{"image": "a"}], "containers": [{"image": "b:1"}, {}]}});
        let image = json!({"spec": {"reference": "localhost:5000/c"}});
        let found: Vec<String> = references([&workload, &image, &json!({"spec": {}})]).into_iter().collect();
        assert_eq!(found, ["docker.io/library/a:latest", "docker.io/library/b:1", "localhost:5000/c:latest"]);
    }

    #[test]
    fn bars_show_what_is_known() {
        let resolving = Transfer { phase: "Resolving".to_owned(), ..Transfer::default() };
        assert_eq!(resolving.bar(), "Resolving");
        let pulling = Transfer {
            phase: "Pulling".to_owned(),
            done: 15 << 20,
            total: 30 << 20,
            rate: Some(3 << 20),
            left: Some(5),
            ..Transfer::default()
        };
        assert_eq!(
            pulling.bar(),
            "Pulling   [============            ]  50 %, 15.0 MiB of 30.0 MiB, 3.0 MiB/s, 5 s left"
        );
        // More than all is all, and the largest numbers are no trouble.
        let odd = Transfer { done: u64::MAX, total: 1, ..pulling.clone() };
        assert!(odd.bar().contains("100 %"));
    }
}
