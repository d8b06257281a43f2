//! A hundred workloads through fifty rounds (on containerd 2.x; twenty on 1.6) of edits and of everything that dies, and then: exactly what is declared.
//!
//! Each round creates, updates, stops, starts and deletes some, kills processes of containers, and now and then containerd
//! or the agent, at once or between two of its effects. Rounds do not wait for one another. Every ten rounds, and at the
//! end, all that is on the node is counted by kind and owner: each workload must have what it had when it was first made
//! in peace, with the version and the configuration that are declared now, and nothing may be there that has no owner.
//!
//! `NODELET_SEED` repeats a run, as far as chance was the test's; `NODELET_ROUNDS` changes their number.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::containerd::Release;
use nodelet_tests::node::{Node, PATIENCE};
use nodelet_tests::wait::until;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::census::{Baseline, Census};
use crate::declared::{Declared, Workload};

mod census;
mod declared;

nodelet_tests::on_each_containerd!(a_hundred_workloads_through_fifty_rounds);

const WORKLOADS: usize = 100;
/// One that is made and deleted before: it uses all that others share.
const FIRST: usize = 105;
const ROUNDS: u32 = 50;
/// On the older containerd, which runs at the same time: fifty on both are too long for an ordinary run.
const FEWER: u32 = 10;
/// After so many rounds it is waited for the end of all work, and everything is counted.
const COUNTED: u32 = 10;
/// A process that died three times waits for two seconds before it is started again; the fourth time would be slow.
const DEATHS: u32 = 3;
/// For the end of all work: a hundred containers may have to be started, a few at a time.
const LONG: Duration = Duration::from_secs(150);

/// What happened, for whoever reads the result.
#[derive(Debug, Default)]
#[allow(dead_code)] // read by its Debug
struct Tally {
    created: u32,
    updated: u32,
    stopped: u32,
    started: u32,
    deleted: u32,
    processes_killed: u32,
    containerd_killed: u32,
    agent_killed: u32,
    agent_killed_between_effects: u32,
}

struct Endurance<'a> {
    node: &'a mut Node,
    random: StdRng,
    declared: Declared,
    tally: Tally,
}

#[allow(clippy::print_stderr)] // shown by the test runner
fn a_hundred_workloads_through_fifty_rounds(node: &mut Node) -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("NODELET_SEED").unwrap_or_else(|| rand::rng().random());
    let usual = if Release::V2.programs().as_ref() == Some(&node.programs) { ROUNDS } else { FEWER };
    let rounds = number("NODELET_ROUNDS").and_then(|rounds| u32::try_from(rounds).ok()).unwrap_or(usual);
    eprintln!("NODELET_SEED={seed}, {rounds} rounds");
    let mut endurance = Endurance {
        node,
        random: StdRng::seed_from_u64(seed),
        declared: Declared::new(WORKLOADS),
        tally: Tally::default(),
    };
    endurance.run(rounds).with_context(|| format!("NODELET_SEED={seed}, {:?}", endurance.tally))
}

impl Endurance<'_> {
    #[allow(clippy::print_stderr)] // shown by the test runner
    fn run(&mut self, rounds: u32) -> Result<()> {
        let start = Instant::now();
        self.node.apply(declared::SHARED)?;
        // The image is there, and with it what belongs to no workload: the networks, and the cgroups of the limit.
        self.node.apply(&Workload::new(FIRST).yaml())?;
        self.node.until_ready(&declared::name(FIRST))?;
        self.node.nodelet(&["delete", "workload", &declared::name(FIRST)])?;
        let bare = Census::take(self.node)?;
        self.node.apply(&self.declared.yaml(0..WORKLOADS))?;
        self.until_settled()?;
        let baseline = Baseline::of(bare, &Census::take(self.node)?, &self.declared)?;
        eprintln!("{WORKLOADS} workloads after {:?}", start.elapsed());
        for round in 1..=rounds {
            self.round().with_context(|| format!("round {round}"))?;
            if round % COUNTED == 0 || round == rounds {
                self.count(&baseline).with_context(|| format!("after round {round}"))?;
                eprintln!("round {round} after {:?}: as declared, leaks: none", start.elapsed());
            }
        }
        eprintln!("{:?}", self.tally);
        let all: Vec<_> = (0..WORKLOADS).filter(|index| self.declared.is_there(*index)).collect();
        self.delete(&all)?;
        self.count(&baseline).context("after all of them were deleted")
    }

    fn round(&mut self) -> Result<()> {
        self.revive()?;
        let settled = self.random.random_bool(0.2);
        if settled {
            self.until_settled()?;
        }
        let gone = self.names_that_are_gone()?;
        let victims = self.processes()?;
        if self.random.random_bool(0.35) {
            // Now is the best time to die: the agent is in the middle of something.
            fs::write(self.failpoint(), self.random.random_range(1..120).to_string())?;
        }
        let no_containerd = self.random.random_bool(0.2);
        if no_containerd {
            self.node.kill_containerd()?;
            self.tally.containerd_killed += 1;
        }
        self.edit(&gone)?;
        if !victims.is_empty() {
            let pids: Vec<String> = victims.iter().map(u32::to_string).collect();
            let script = format!("kill -9 {} 2>/dev/null || true", pids.join(" "));
            self.node.namespaces.run(["sh", "-c", &script])?;
            self.tally.processes_killed += u32::try_from(pids.len())?;
        }
        if self.random.random_bool(0.15) && self.is_agent_alive() {
            self.node.kill_agent()?;
            self.tally.agent_killed += 1;
        }
        if no_containerd {
            self.node.start_containerd()?;
        }
        Ok(())
    }

    /// Chooses some and does something to each.
    fn edit(&mut self, gone: &BTreeSet<usize>) -> Result<()> {
        let all: Vec<usize> = (0..WORKLOADS).collect();
        let amount = self.random.random_range(4..=12);
        let chosen: Vec<usize> = all.choose_multiple(&mut self.random, amount).copied().collect();
        let (mut written, mut deleted) = (Vec::new(), Vec::new());
        for index in chosen {
            if !self.declared.is_there(index) {
                // An object that is on its way out takes no new specification.
                if gone.contains(&index) {
                    self.declared.create(index);
                    self.tally.created += 1;
                    written.push(index);
                }
                continue;
            }
            match self.random.random_range(0..10) {
                0..2 => {
                    deleted.push(index);
                    self.tally.deleted += 1;
                    continue;
                }
                2 | 3 => {
                    let stopped = self.declared.toggle(index);
                    *(if stopped { &mut self.tally.stopped } else { &mut self.tally.started }) += 1;
                }
                4..7 => self.declared.configure(index),
                _ => self.declared.update(index),
            }
            self.tally.updated += 1;
            written.push(index);
        }
        if !written.is_empty() {
            let yaml = self.declared.yaml(written.iter().copied());
            self.ask("the edits of a round", |node| node.apply(&yaml))?;
        }
        self.delete(&deleted)
    }

    fn delete(&mut self, indices: &[usize]) -> Result<()> {
        if indices.is_empty() {
            return Ok(());
        }
        indices.iter().for_each(|index| self.declared.delete(*index));
        let names: Vec<String> = indices.iter().map(|index| format!("workload/{}", declared::name(*index))).collect();
        let words: Vec<&str> =
            ["delete", "--no-wait", "--ignore-not-found"].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.ask("the deletions of a round", |node| node.nodelet(&words))
    }

    /// Asks the agent, and the next one if it dies meanwhile.
    fn ask(&mut self, what: &str, request: impl Fn(&Node) -> Result<String>) -> Result<()> {
        let mut last = None;
        let answered = until(PATIENCE, what, || {
            if !self.is_agent_alive() {
                self.revive_agent()?;
            }
            // One that is dying may still be taken for alive.
            last = request(self.node).err();
            Ok(last.is_none().then_some(()))
        });
        answered.with_context(|| format!("{last:?}"))
    }

    /// A few processes of containers that have not died too often yet. By chance they are gone when it comes to it.
    fn processes(&mut self) -> Result<Vec<u32>> {
        let amount = self.random.random_range(0..=3);
        let tasks = census::tasks(self.node)?;
        let candidates: Vec<_> = tasks.into_iter().filter(|task| task.running).collect();
        let mut chosen = Vec::new();
        for task in candidates.choose_multiple(&mut self.random, amount) {
            if self.declared.may_die(&task.id, DEATHS) {
                chosen.push(task.pid);
            }
        }
        Ok(chosen)
    }

    fn failpoint(&self) -> PathBuf {
        self.node.namespaces.path("/run/failpoints")
    }

    fn is_agent_alive(&mut self) -> bool {
        self.node.agent.as_mut().is_some_and(nodelet_tests::namespaces::Daemon::alive)
    }

    fn revive(&mut self) -> Result<()> {
        if self.node.containerd.is_none() {
            self.node.start_containerd()?;
        }
        if self.is_agent_alive() { Ok(()) } else { self.revive_agent() }
    }

    fn revive_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.node.agent.take() {
            agent.wait(PATIENCE)?;
            self.tally.agent_killed_between_effects += 1;
        }
        // It could die at its start as well, but then it is never ready.
        let _not_armed = fs::remove_file(self.failpoint());
        if self.node.containerd.is_none() {
            self.node.start_containerd()?;
            self.node.start_agent()?;
            self.node.kill_containerd()?;
            return Ok(());
        }
        self.node.start_agent()
    }

    fn names_that_are_gone(&mut self) -> Result<BTreeSet<usize>> {
        // The agent may be about to die of an earlier round.
        let there = until(PATIENCE, "the list of workloads", || {
            if !self.is_agent_alive() {
                self.revive_agent()?;
            }
            Ok(census::objects(self.node).ok())
        })?;
        Ok((0..WORKLOADS).filter(|index| !there.contains_key(&declared::name(*index))).collect())
    }

    /// Waits until the API says that everything is as declared.
    fn until_settled(&mut self) -> Result<()> {
        let mut missing = Vec::new();
        until(LONG, "all workloads to be as declared", || {
            if !self.is_agent_alive() {
                self.revive_agent()?;
            }
            let Ok(objects) = census::objects(self.node) else { return Ok(None) };
            missing = self.declared.unsettled(&objects);
            Ok(missing.is_empty().then_some(()))
        })
        .with_context(|| format!("not as declared: {missing:#?}"))
    }

    /// Waits until the node holds what is declared and nothing else.
    fn count(&mut self, baseline: &Baseline) -> Result<()> {
        let _not_armed = fs::remove_file(self.failpoint());
        self.revive()?;
        self.until_settled()?;
        let mut differences = Vec::new();
        let result = until(PATIENCE, "the node to hold exactly what is declared", || {
            let census = Census::take(self.node)?;
            differences = baseline.compare(&census, &self.declared);
            if differences.is_empty() {
                differences = self.declared.what_runs_differently(self.node)?;
            }
            Ok(differences.is_empty().then_some(()))
        });
        let kinds = census::by_kind(&differences);
        result.with_context(|| format!("{kinds:?}\n{differences:#?}"))?;
        ensure!(self.is_agent_alive(), "the agent ended by itself");
        Ok(())
    }
}
