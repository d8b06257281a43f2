//! Volumes in memory, with the contract of the real ones: for tests of whole nodes without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::paths::{check_file_path, check_name, disk_dir, memory_dir, relative_parts, source_path, sub_path_mount};
use super::{Content, Ephemeral, EphemeralSpec, Error, HostPathType, Usage, Volume, VolumeSource, VolumeSpec, Volumes};
use crate::ids::{SandboxId, VolumeKey};

/// Volumes that exist in memory only; paths are named below directories that are never touched.
#[derive(Debug)]
pub struct FakeVolumes {
    data_dir: PathBuf,
    run_dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<VolumeKey, VolumeSpec>,
    ephemeral: BTreeMap<(SandboxId, String), EphemeralSpec>,
    sub_paths: BTreeSet<(SandboxId, PathBuf)>,
    host_paths: BTreeMap<PathBuf, HostPathType>,
    used: BTreeMap<VolumeKey, u64>,
    broken: BTreeMap<VolumeKey, String>,
    contents: BTreeMap<PathBuf, Content>,
    groups: BTreeMap<PathBuf, u32>,
}

/// What a fake file system holds.
const CAPACITY: u64 = 10 << 30;

impl FakeVolumes {
    /// No volume yet; paths are below `data_dir` and `run_dir`.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), run_dir: run_dir.into(), state: Mutex::default() }
    }

    /// Puts something of this kind at a path of the node.
    pub fn add_host_path(&self, path: impl Into<PathBuf>, kind: HostPathType) {
        self.lock().host_paths.insert(path.into(), kind);
    }

    /// Sets how many bytes a volume holds.
    pub fn set_used(&self, key: &VolumeKey, bytes: u64) {
        self.lock().used.insert(key.clone(), bytes);
    }

    /// The specification a volume was last ensured with.
    pub fn spec(&self, key: &VolumeKey) -> Option<VolumeSpec> {
        self.lock().volumes.get(key).cloned()
    }

    /// What the volume at this path was last filled with.
    pub fn content(&self, root: &Path) -> Option<Content> {
        self.lock().contents.get(root).cloned()
    }

    /// The group that the volume at this path was last given to.
    pub fn group(&self, root: &Path) -> Option<u32> {
        self.lock().groups.get(root).copied()
    }

    /// What an ephemeral directory was last ensured with.
    pub fn ephemeral(&self, sandbox: &SandboxId, name: &str) -> Option<Ephemeral> {
        self.lock().ephemeral.get(&(sandbox.clone(), name.to_owned())).map(|spec| spec.kind.clone())
    }

    /// From now on every call for `key` fails with this message; `None` repairs it.
    pub fn fail(&self, key: &VolumeKey, message: Option<&str>) {
        let mut state = self.lock();
        match message {
            Some(message) => state.broken.insert(key.clone(), message.to_owned()),
            None => state.broken.remove(key),
        };
    }

    /// A poisoned lock means that another test thread panicked while it held plain data; the data is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self, spec: &VolumeSpec) -> Volume {
        let path = source_path(&self.data_dir, &self.run_dir, spec);
        Volume { key: spec.key.clone(), path, complete: true, capacity_problem: None }
    }
}

impl State {
    fn check(&self, key: &VolumeKey, doing: &str) -> Result<(), Error> {
        match self.broken.get(key) {
            Some(message) => {
                Err(Error::Io { doing: format!("{doing} volume {key}"), source: io::Error::other(message.clone()) })
            }
            None => Ok(()),
        }
    }

    fn host_path(&mut self, path: &Path, kind: HostPathType) -> Result<(), Error> {
        super::check_host_path(path)?;
        let made = match kind {
            HostPathType::Any => return Ok(()),
            HostPathType::DirectoryOrCreate => Some(HostPathType::Directory),
            HostPathType::FileOrCreate => Some(HostPathType::File),
            _ => None,
        };
        let wanted = made.unwrap_or(kind);
        match (self.host_paths.get(path), made) {
            (Some(found), _) if *found == wanted => Ok(()),
            (None, Some(made)) => {
                self.host_paths.insert(path.to_owned(), made);
                Ok(())
            }
            (found, _) => {
                Err(super::wrong_type(path, kind, if found.is_some() { "something else" } else { "nothing" }))
            }
        }
    }
}

#[async_trait]
impl Volumes for FakeVolumes {
    async fn list(&self) -> Result<Vec<Volume>, Error> {
        Ok(self.lock().volumes.values().map(|spec| self.view(spec)).collect())
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<Volume, Error> {
        let mut state = self.lock();
        state.check(&spec.key, "making")?;
        match &spec.source {
            VolumeSource::Local | VolumeSource::Tmpfs | VolumeSource::Block(_) | VolumeSource::Nfs(_) => {}
            VolumeSource::LocalPath(path) => state.host_path(path, HostPathType::DirectoryOrCreate)?,
            VolumeSource::HostPath(path, kind) => state.host_path(path, *kind)?,
        }
        state.volumes.insert(spec.key.clone(), spec.clone());
        Ok(self.view(spec))
    }

    async fn remove(&self, spec: &VolumeSpec, delete_data: bool) -> Result<(), Error> {
        let mut state = self.lock();
        state.check(&spec.key, "removing")?;
        if delete_data || !spec.source.is_ours() {
            state.volumes.remove(&spec.key);
        }
        Ok(())
    }

    async fn check_mounted(&self, _path: &Path) -> Result<(), Error> {
        Ok(())
    }

    async fn usage(&self, spec: &VolumeSpec) -> Result<Usage, Error> {
        let state = self.lock();
        state.check(&spec.key, "measuring")?;
        if !state.volumes.contains_key(&spec.key) {
            return Err(Error::Io {
                doing: format!("measuring volume {}", spec.key),
                source: io::ErrorKind::NotFound.into(),
            });
        }
        Ok(Usage { capacity_bytes: CAPACITY, used_bytes: state.used.get(&spec.key).copied() })
    }

    async fn give_to_group(&self, root: &Path, gid: u32) -> Result<(), Error> {
        self.lock().groups.insert(root.to_owned(), gid);
        Ok(())
    }

    async fn wants_content(&self, _root: &Path) -> Result<bool, Error> {
        Ok(true)
    }

    async fn populate(&self, _sandbox: &SandboxId, root: &Path, content: &Content) -> Result<(), Error> {
        self.lock().contents.insert(root.to_owned(), content.clone());
        Ok(())
    }

    async fn ensure_ephemeral(&self, spec: &EphemeralSpec) -> Result<PathBuf, Error> {
        check_name(&spec.name)?;
        let in_memory = match &spec.kind {
            Ephemeral::Disk { .. } => false,
            Ephemeral::Memory { .. } | Ephemeral::Image(_) => true,
            Ephemeral::Files { files, in_memory, .. } => {
                files.keys().try_for_each(|path| check_file_path(path))?;
                *in_memory
            }
        };
        self.lock().ephemeral.insert((spec.sandbox.clone(), spec.name.clone()), spec.clone());
        let dir =
            if in_memory { memory_dir(&self.run_dir, &spec.sandbox) } else { disk_dir(&self.data_dir, &spec.sandbox) };
        Ok(dir.join(&spec.name))
    }

    async fn ensure_host_path(&self, path: &Path, kind: HostPathType) -> Result<PathBuf, Error> {
        self.lock().host_path(path, kind)?;
        Ok(path.to_owned())
    }

    async fn ensure_sub_path(&self, sandbox: &SandboxId, root: &Path, sub_path: &str) -> Result<PathBuf, Error> {
        relative_parts("volumeMounts.subPath", sub_path)?;
        let mount = sub_path_mount(&self.run_dir, sandbox, root, sub_path);
        self.lock().sub_paths.insert((sandbox.clone(), mount.clone()));
        Ok(mount)
    }

    fn ephemeral_dir(&self, sandbox: &SandboxId) -> PathBuf {
        disk_dir(&self.data_dir, sandbox)
    }

    async fn remove_ephemeral(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let mut state = self.lock();
        state.ephemeral.retain(|(owner, _), _| owner != sandbox);
        state.sub_paths.retain(|(owner, _)| owner != sandbox);
        Ok(())
    }

    async fn list_ephemeral(&self) -> Result<Vec<SandboxId>, Error> {
        let state = self.lock();
        let ids: BTreeSet<&SandboxId> = state
            .ephemeral
            .keys()
            .map(|(owner, _)| owner)
            .chain(state.sub_paths.iter().map(|(owner, _)| owner))
            .collect();
        Ok(ids.into_iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        let scratch = tempfile::tempdir().unwrap();
        let fake = FakeVolumes::new("/var/lib/nodelet-fake", "/run/nodelet-fake");
        super::super::conformance::run(&fake, scratch.path()).await;
    }
}
