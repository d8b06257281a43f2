//! Containers that say that they run.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context as _, Result};
use nodelet_tests::node::Node;

use super::PATIENCE;

/// The directory of the pipe, on the node.
pub(super) const DIRECTORY: &str = "/run/bench";
/// The same in a container.
pub(super) const INSIDE: &str = "/bench";

/// The reading end of the pipe, with the time of every line.
pub(super) struct Arrivals(Receiver<Instant>);

impl Arrivals {
    /// Makes the pipe on a node.
    pub(super) fn new(node: &Node) -> Result<Self> {
        node.namespaces.run(["sh", "-ec", &format!("mkdir -p {DIRECTORY}; mkfifo -m 666 {DIRECTORY}/pipe")])?;
        // Open for writing too: the pipe has no end while no container writes.
        let pipe = node.namespaces.path(DIRECTORY).join("pipe");
        let pipe = File::options().read(true).write(true).open(&pipe).context("opening the pipe of arrivals")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for _line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for so many lines and answers when the last one came.
    pub(super) fn wait(&self, count: usize) -> Result<Instant> {
        let mut last = Instant::now();
        for number in 0..count {
            last = self.0.recv_timeout(PATIENCE).with_context(|| format!("{number} of {count} containers run"))?;
        }
        Ok(last)
    }
}

/// What a container runs: it tells, then does nothing for ever.
pub(super) fn words(mark: &str) -> [String; 3] {
    ["sh".to_owned(), "-c".to_owned(), format!("echo >{INSIDE}/pipe; exec sleep {mark}")]
}

/// Whether processes are there that [`words`] began, by their PIDs on the node.
pub(super) fn applications(node: &Node, mark: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(node.namespaces.path("/proc"))? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.starts_with(b"sleep\0") && words.ends_with(format!("{mark}\0").as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}
