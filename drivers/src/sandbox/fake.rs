//! Sandboxes in memory, with the contract of the real ones: for tests of whole nodes without a kernel.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Error, EtcFiles, EtcPaths, NetNamespace, Sandbox, SandboxSpec, Sandboxes, UserNamespace, sandbox_dir};
use crate::ids::SandboxId;

/// Sandboxes that exist in memory only; paths are named below a directory that is never touched.
#[derive(Debug)]
pub struct FakeSandboxes {
    run_dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Entry>,
    broken: BTreeMap<SandboxId, String>,
}

#[derive(Debug)]
struct Entry {
    spec: SandboxSpec,
    complete: bool,
    etc: EtcFiles,
}

impl FakeSandboxes {
    /// No sandbox yet; paths are below `run_dir`.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self { run_dir: run_dir.into(), state: Mutex::default() }
    }

    /// The files last written for `id`.
    pub fn etc(&self, id: &SandboxId) -> Option<EtcFiles> {
        self.lock().sandboxes.get(id).map(|entry| entry.etc.clone())
    }

    /// Damages a sandbox, as if somebody had unmounted one of its namespaces.
    pub fn damage(&self, id: &SandboxId) {
        if let Some(entry) = self.lock().sandboxes.get_mut(id) {
            entry.complete = false;
        }
    }

    /// The node starts anew: sandboxes do not survive that.
    pub fn reboot(&self) {
        self.lock().sandboxes.clear();
    }

    /// From now on `ensure`, `write_etc` and `remove` of `id` fail with this message; `None` repairs it.
    pub fn fail(&self, id: &SandboxId, message: Option<&str>) {
        let mut state = self.lock();
        match message {
            Some(message) => state.broken.insert(id.clone(), message.to_owned()),
            None => state.broken.remove(id),
        };
    }

    /// A poisoned lock means that another test thread panicked while it held plain data; the data is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self, entry: &Entry) -> Sandbox {
        let dir = self.dir(&entry.spec.id);
        let netns = match &entry.spec.net {
            NetNamespace::New => Some(dir.join("ns/net")),
            NetNamespace::Host => None,
            NetNamespace::Of(other) => Some(self.dir(other).join("ns/net")),
        };
        Sandbox {
            complete: entry.complete,
            netns,
            ipcns: entry.spec.pins_ipc().then(|| dir.join("ns/ipc")),
            utsns: entry.spec.pins_uts().then(|| dir.join("ns/uts")),
            shm: entry.spec.pins_ipc().then(|| dir.join("shm")),
            users: entry.spec.own_users.then(|| UserNamespace { path: dir.join("ns/user"), first: 1 << 16 }),
            spec: entry.spec.clone(),
        }
    }
}

impl State {
    fn check(&self, id: &SandboxId, doing: &str) -> Result<(), Error> {
        match self.broken.get(id) {
            Some(message) => Err(failed(id, doing, io::Error::other(message.clone()))),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Sandboxes for FakeSandboxes {
    async fn list(&self) -> Result<Vec<Sandbox>, Error> {
        Ok(self.lock().sandboxes.values().map(|entry| self.view(entry)).collect())
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<Sandbox>, Error> {
        Ok(self.lock().sandboxes.get(id).map(|entry| self.view(entry)))
    }

    async fn ensure(&self, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        let mut state = self.lock();
        state.check(&spec.id, "making it")?;
        super::linux::check_sysctls(spec)?;
        if let NetNamespace::Of(other) = &spec.net
            && !state.sandboxes.get(other).is_some_and(|entry| entry.spec.net == NetNamespace::New)
        {
            return Err(super::other_is_absent(&spec.id, other));
        }
        if let Some(entry) = state.sandboxes.get_mut(&spec.id) {
            if entry.spec != *spec {
                return Err(super::differs(&spec.id));
            }
            entry.complete = true;
            return Ok(self.view(entry));
        }
        let entry = Entry { spec: spec.clone(), complete: true, etc: EtcFiles::default() };
        let view = self.view(&entry);
        state.sandboxes.insert(spec.id.clone(), entry);
        Ok(view)
    }

    async fn write_etc(&self, id: &SandboxId, files: &EtcFiles) -> Result<EtcPaths, Error> {
        let mut state = self.lock();
        state.check(id, "writing its /etc files")?;
        let Some(entry) = state.sandboxes.get_mut(id) else {
            return Err(failed(id, "writing its /etc files", io::ErrorKind::NotFound.into()));
        };
        entry.etc = files.clone();
        Ok(EtcPaths::below(&self.dir(id)))
    }

    async fn remove(&self, id: &SandboxId) -> Result<(), Error> {
        let mut state = self.lock();
        state.check(id, "removing it")?;
        state.sandboxes.remove(id);
        Ok(())
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        sandbox_dir(&self.run_dir, id)
    }
}

fn failed(id: &SandboxId, doing: &str, source: io::Error) -> Error {
    Error::Kernel { id: id.clone(), doing: doing.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        super::super::conformance::run(&FakeSandboxes::new("/run/nodelet-fake")).await;
    }
}
