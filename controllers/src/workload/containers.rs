//! What the runtime has, kept in memory and current by events, so that one workload's reconcile does not read the
//! whole node.
//!
//! A reading is stored only if none that began later was stored before it: two reads of one container may overtake
//! each other. Until the first full list succeeded [`ContainerCache::of_workload`] answers `None`, and nobody may
//! conclude that something is absent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nodelet_crds::labels;
use nodelet_drivers::ids::ContainerId;
use nodelet_drivers::runtime::{Container, Error, Runtime, TaskState};

/// The containers of our namespace. Cheap to clone.
#[derive(Clone)]
pub struct ContainerCache {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    ticket: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listed: bool,
    /// Ticket of the last full list.
    list_ticket: u64,
    containers: HashMap<ContainerId, Seen>,
}

/// One reading; `container` is `None` when the runtime said that it is absent.
struct Seen {
    ticket: u64,
    container: Option<Container>,
}

impl ContainerCache {
    /// An empty cache over `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { shared: Arc::new(Shared { runtime, ticket: AtomicU64::new(1), state: Mutex::default() }) }
    }

    /// Reads everything. After an error the cache keeps what it had.
    pub async fn resync(&self) -> Result<(), Error> {
        let ticket = self.shared.ticket.fetch_add(1, Ordering::Relaxed);
        let listed = self.shared.runtime.list().await?;
        let mut state = self.lock();
        if ticket < state.list_ticket {
            return Ok(());
        }
        state.listed = true;
        state.list_ticket = ticket;
        // Whatever was read after this list began is younger than the list.
        state.containers.retain(|_, seen| seen.ticket > ticket);
        for container in listed {
            state.containers.entry(container.id.clone()).or_insert(Seen { ticket, container: Some(container) });
        }
        Ok(())
    }

    /// Reads one container and returns its workload's uid, if it has or had one.
    pub async fn refresh(&self, id: &ContainerId) -> Result<Option<String>, Error> {
        let ticket = self.shared.ticket.fetch_add(1, Ordering::Relaxed);
        let container = self.shared.runtime.get(id).await?;
        let mut state = self.lock();
        let known = state.containers.get(id);
        let uid = container
            .as_ref()
            .or_else(|| known.and_then(|seen| seen.container.as_ref()))
            .and_then(|c| c.labels.get(labels::WORKLOAD_UID).cloned());
        if ticket > state.list_ticket && known.is_none_or(|seen| seen.ticket < ticket) {
            match (container, known.is_some()) {
                // An absence is remembered only against an older presence that might still be stored over it.
                (None, false) => {}
                (container, _) => {
                    state.containers.insert(id.clone(), Seen { ticket, container });
                }
            }
        }
        Ok(uid)
    }

    /// The containers of one workload; `None` until everything was read once.
    pub fn of_workload(&self, uid: &str) -> Option<Vec<Container>> {
        let state = self.lock();
        state.listed.then(|| {
            state
                .containers
                .values()
                .filter_map(|seen| seen.container.as_ref())
                .filter(|c| c.labels.get(labels::WORKLOAD_UID).is_some_and(|u| u == uid))
                .cloned()
                .collect()
        })
    }

    /// Every container; `None` until everything was read once.
    pub fn all(&self) -> Option<Vec<Container>> {
        let state = self.lock();
        state.listed.then(|| state.containers.values().filter_map(|seen| seen.container.clone()).collect())
    }

    /// How many run.
    pub fn running(&self) -> usize {
        let state = self.lock();
        let running =
            |seen: &&Seen| seen.container.as_ref().is_some_and(|c| matches!(c.state, TaskState::Running { .. }));
        state.containers.values().filter(running).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
