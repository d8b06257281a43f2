//! Agents that are killed between two of their effects, again and again, until what was asked for is done.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Node, PATIENCE};
use crate::wait::until;

impl Node {
    /// Where the agent counts its effects; see `nodelet_drivers::failpoint`.
    pub fn failpoints(&self) -> PathBuf {
        self.namespaces.path("/run/failpoints")
    }

    /// Does something with one agent after the other, of which each dies after some effects more than the one before, or,
    /// unless `again`, with one that dies after `first` effects and one that lives. `ask` is called until it succeeds.
    /// Answers how many were killed; the last agent runs.
    pub fn killed_between_effects(
        &mut self,
        first: u32,
        again: bool,
        ask: impl Fn(&Node) -> Result<String>,
        is_done: impl Fn(&Node) -> bool,
    ) -> Result<u32> {
        let mut kills = 0;
        fs::write(self.failpoints(), first.to_string())?;
        let mut asked = ask(self).is_ok();
        let ended = until(PATIENCE * 3, "the end of the operation", || {
            let mut agent = self.agent.take().context("the agent does not run")?;
            if !agent.alive() {
                agent.wait(PATIENCE)?;
                kills += 1;
                if again {
                    fs::write(self.failpoints(), (first + kills * 3 / 2).to_string())?;
                }
                self.spawn_agent()?;
                return Ok(None);
            }
            self.agent = Some(agent);
            asked = asked || ask(self).is_ok();
            Ok((asked && is_done(self)).then_some(()))
        });
        // Whoever removes the file has the say: the agent before it dies, or this test.
        let _died = fs::remove_file(self.failpoints());
        ended.with_context(|| self.explain())?;
        Ok(kills)
    }

    /// Sees that an agent runs that nobody kills.
    pub fn revive_agent(&mut self) -> Result<()> {
        if self.agent.as_mut().is_some_and(crate::namespaces::Daemon::alive) {
            return Ok(());
        }
        if let Some(mut agent) = self.agent.take() {
            agent.wait(PATIENCE)?;
        }
        self.start_agent()
    }
}
