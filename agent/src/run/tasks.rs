//! Tasks with an owner: they share a token, their ends are noticed, and stopping them has a deadline.

use std::fmt;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::manifest::chain;

/// Why a task ended.
#[derive(Debug)]
pub struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Some tasks that are stopped together.
pub(super) struct Tasks {
    set: JoinSet<(String, Option<Fault>)>,
    running: Vec<(tokio::task::Id, String)>,
    token: CancellationToken,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { set: JoinSet::new(), running: Vec::new(), token: CancellationToken::new() }
    }

    /// Tells the tasks to stop.
    pub(super) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts one.
    pub(super) fn spawn<E: std::error::Error + 'static>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let name = name.into();
        let told = name.clone();
        let handle = self.set.spawn(async move { (told, task.await.err().map(|error| Fault(chain(&error)))) });
        self.running.push((handle.id(), name));
    }

    /// Waits until one ends that should not. Cancel-safe. Never returns while there is none.
    pub(super) async fn ended(&mut self) -> (String, Option<Fault>) {
        match self.set.join_next_with_id().await {
            Some(ended) => self.collect(ended),
            None => std::future::pending().await,
        }
    }

    /// Stops all and answers which of them did not end in time; those are aborted.
    pub(super) async fn stop(&mut self, deadline: Duration) -> Vec<String> {
        self.token.cancel();
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let (id, fault) = match ended {
                    Ok((id, (name, fault))) => (id, fault.map(|fault| (name, fault))),
                    Err(error) => (error.id(), Some(("a task".to_owned(), Fault(error.to_string())))),
                };
                self.running.retain(|(running, _)| *running != id);
                if let Some((name, fault)) = fault {
                    tracing::warn!(task = name, %fault, "while stopping");
                }
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            self.set.abort_all();
        }
        std::mem::take(&mut self.running).into_iter().map(|(_, name)| name).collect()
    }

    fn collect(
        &mut self,
        ended: Result<(tokio::task::Id, (String, Option<Fault>)), JoinError>,
    ) -> (String, Option<Fault>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(error) => {
                let name = self.running.iter().find(|(id, _)| *id == error.id()).map(|(_, name)| name.clone());
                (error.id(), (name.unwrap_or_default(), Some(Fault(error.to_string()))))
            }
        };
        self.running.retain(|(running, _)| *running != id);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ends_are_told_and_stops_have_a_deadline() {
        let mut tasks = Tasks::new();
        tasks.spawn("fails", async { Err(std::io::Error::other("no disk")) });
        let (name, fault) = tasks.ended().await;
        assert_eq!((name.as_str(), fault.map(|f| f.to_string()).as_deref()), ("fails", Some("no disk")));
        tasks.spawn("panics", async {
            if true {
                panic!("a bug");
            }
            Ok::<(), std::io::Error>(())
        });
        let (name, fault) = tasks.ended().await;
        assert!(name == "panics" && fault.is_some_and(|fault| fault.to_string().contains("a bug")));
        let token = tasks.token();
        tasks.spawn("obeys", async move {
            token.cancelled().await;
            Ok::<(), std::io::Error>(())
        });
        tasks.spawn("hangs", std::future::pending::<Result<(), std::io::Error>>());
        assert_eq!(tasks.stop(Duration::from_millis(200)).await, ["hangs"]);
    }
}
