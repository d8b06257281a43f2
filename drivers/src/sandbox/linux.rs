//! Sandboxes on the kernel. Layout below `<runDir>/sandboxes/<id>/`:
//!
//! ```text
//! sandbox.json                 what it should be; written first, removed last
//! users                        which users of the node stand for its own
//! ns/user  ns/net  ns/ipc  ns/uts       pinned namespaces
//! shm                          tmpfs for /dev/shm
//! etc/hosts  etc/hostname  etc/resolv.conf
//! volumes/  subpaths/          not ours, but they go with the sandbox
//! ```

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::pins::{self, Kind, Pins};
use super::users::{self, Block};
use super::{
    Error, EtcFiles, EtcPaths, NetNamespace, Sandbox, SandboxSpec, Sandboxes, UserNamespace, etc, propagation,
    sandbox_dir,
};
use crate::failpoint::passed;
use crate::ids::SandboxId;
use crate::{mounts, room};

/// `TMPFS_MAGIC`.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// The record of a sandbox's users.
const USERS: &str = "users";
/// A record that is not complete yet.
const DRAFT: &str = "sandbox.json.new";

/// The sandboxes of this node, below one run directory.
#[derive(Debug, Clone)]
pub struct LinuxSandboxes {
    run_dir: PathBuf,
    /// Held while users are chosen, so that two sandboxes do not take the same.
    choosing: Arc<Mutex<()>>,
}

impl LinuxSandboxes {
    /// Makes the directories, and sees to it that mounts below them are seen by whom they should.
    pub fn new(run_dir: impl Into<PathBuf>) -> io::Result<Self> {
        let run_dir = run_dir.into();
        // Nobody but root may look at secrets or join namespaces by their path.
        DirBuilder::new().recursive(true).mode(0o755).create(&run_dir)?;
        let run_dir = run_dir.canonicalize()?;
        propagation::prepare(&run_dir)?;
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir.join("sandboxes"))?;
        let this = Self { run_dir, choosing: Arc::default() };
        this.remove_unrecorded();
        Ok(this)
    }

    /// Directories whose making or removal was cut short, so that they hold no record and nothing acquired: no list
    /// names them, and their id may never be asked for again.
    fn remove_unrecorded(&self) {
        for id in ids_below(&self.run_dir.join("sandboxes")) {
            let dir = self.dir(&id);
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            if entries.flatten().all(|entry| entry.file_name() == DRAFT) {
                tracing::info!(sandbox = %id, "freed: the directory of a sandbox that was never recorded");
                let _ = std::fs::remove_file(dir.join(DRAFT));
                let _ = std::fs::remove_dir(&dir);
            }
        }
    }

    /// Mounts, namespaces and files are quick, but they block.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(Self) -> T + Send + 'static) -> T {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(this)).await {
            Ok(result) => result,
            // Blocking tasks are not cancelled, so it can only have panicked.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// What is there of `id`: `None` when neither its specification nor anything acquired for it is found.
    fn look(&self, id: &SandboxId) -> Result<Option<Sandbox>, Error> {
        let dir = self.dir(id);
        let (spec, known) = match self.read_spec(id) {
            Ok(Some(spec)) => (spec, true),
            Ok(None) if dir.join("ns").exists() || dir.join("shm").exists() => (unknown_spec(id), false),
            Ok(None) => return Ok(None),
            // One damaged file must not hide the others, nor what was acquired.
            Err(Error::State { path, source, .. }) => {
                tracing::warn!(sandbox = %id, path = %path.display(), error = %source, "the state file is damaged");
                (unknown_spec(id), false)
            }
            Err(error) => return Err(error),
        };
        let paths = self.paths(spec);
        let users = paths.users.as_ref().map(|users| &users.path);
        let all = [paths.netns.as_ref(), paths.ipcns.as_ref(), paths.utsns.as_ref(), users];
        let known = known && users.is_some() == paths.spec.own_users;
        let pinned = all.into_iter().flatten().all(|path| pins::is_pinned(path));
        let complete = known && pinned && paths.shm.as_deref().is_none_or(is_tmpfs);
        Ok(Some(Sandbox { complete, ..paths }))
    }

    /// The sandbox that `spec` describes, not looked at yet.
    fn paths(&self, spec: SandboxSpec) -> Sandbox {
        let dir = self.dir(&spec.id);
        let pin = |kind: Kind| dir.join("ns").join(kind.name());
        let netns = match &spec.net {
            NetNamespace::New => Some(pin(Kind::Net)),
            NetNamespace::Host => None,
            NetNamespace::Of(other) => Some(self.dir(other).join("ns").join(Kind::Net.name())),
        };
        Sandbox {
            complete: false,
            netns,
            ipcns: spec.pins_ipc().then(|| pin(Kind::Ipc)),
            utsns: spec.pins_uts().then(|| pin(Kind::Uts)),
            shm: spec.pins_ipc().then(|| dir.join("shm")),
            users: users::read(&dir.join(USERS)).map(|Block { first }| UserNamespace { path: pin(Kind::User), first }),
            spec,
        }
    }

    fn read_spec(&self, id: &SandboxId) -> Result<Option<SandboxSpec>, Error> {
        let path = self.dir(id).join("sandbox.json");
        match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(spec) => Ok(Some(spec)),
                Err(source) => Err(Error::State { id: id.clone(), path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Kernel { id: id.clone(), doing: format!("reading {}", path.display()), source }),
        }
    }

    fn ensure_now(&self, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        let id = &spec.id;
        match self.read_spec(id)? {
            Some(found) if found != *spec => return Err(super::differs(id)),
            Some(_) => {}
            None => {
                check_sysctls(spec)?;
                if let NetNamespace::Of(other) = &spec.net
                    && !pins::is_pinned(&self.dir(other).join("ns").join(Kind::Net.name()))
                {
                    return Err(super::other_is_absent(id, other));
                }
                self.write_spec(spec)?;
            }
        }
        let dir = self.dir(id);
        let kinds = [
            (Kind::User, spec.own_users),
            (Kind::Net, spec.net == NetNamespace::New),
            (Kind::Ipc, spec.pins_ipc()),
            (Kind::Uts, spec.pins_uts()),
        ];
        let users = if spec.own_users { self.choose_users(id)? } else { Block { first: 0 } };
        let ns = dir.join("ns");
        make_dir(&ns).map_err(kernel(id, "making", &ns))?;
        let pins = Pins {
            dir: ns,
            kinds: kinds.into_iter().filter_map(|(kind, own)| own.then_some(kind)).collect(),
            users,
            hostname: spec.hostname.clone(),
            sysctls: spec.sysctls.clone(),
        };
        pins.ensure().map_err(|(doing, source)| {
            let source = room::with_numbers(&dir, source);
            Error::Kernel { id: id.clone(), doing, source }
        })?;
        if spec.pins_ipc() {
            ensure_shm(&dir.join("shm"), spec.shm_size).map_err(kernel(id, "mounting", &dir.join("shm")))?;
            passed("the shared memory of a sandbox");
        }
        self.look(id)?.ok_or_else(|| kernel(id, "looking for", &dir)(io::ErrorKind::NotFound.into()))
    }

    /// The users of a sandbox, which keeps them for as long as it is there.
    fn choose_users(&self, id: &SandboxId) -> Result<Block, Error> {
        let path = self.dir(id).join(USERS);
        let _turn = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = users::read(&path) {
            return Ok(block);
        }
        let all = ids_below(&self.run_dir.join("sandboxes"));
        let taken =
            all.iter().filter_map(|id| users::read(&self.dir(id).join(USERS))).map(|block| block.first).collect();
        let failed = kernel(id, "choosing users in", &path);
        let Some(block) = Block::free(&taken) else {
            return Err(failed(io::Error::other("all are taken: remove Workloads with hostUsers: false")));
        };
        let draft = path.with_extension("new");
        let write =
            || std::fs::write(&draft, serde_json::to_vec(&block)?).and_then(|()| std::fs::rename(&draft, &path));
        write().map_err(failed)?;
        passed("choosing the users of a sandbox");
        Ok(block)
    }

    /// On disk in one step, before anything is acquired.
    fn write_spec(&self, spec: &SandboxSpec) -> Result<(), Error> {
        let dir = self.dir(&spec.id);
        let write = || {
            make_dir(&dir)?;
            let draft = dir.join(DRAFT);
            std::fs::write(&draft, serde_json::to_vec_pretty(spec)?)?;
            passed("drafting the record of a sandbox");
            std::fs::rename(&draft, dir.join("sandbox.json"))?;
            passed("recording a sandbox");
            Ok(())
        };
        let written = write().inspect_err(|_| {
            // Nothing is recorded, so nobody would remove it later.
            let _ = std::fs::remove_file(dir.join(DRAFT));
            let _ = std::fs::remove_dir(&dir);
        });
        written.map_err(kernel(&spec.id, "writing the state file in", &dir))
    }

    fn write_etc_now(&self, id: &SandboxId, files: &EtcFiles) -> Result<EtcPaths, Error> {
        let dir = self.dir(id);
        let spec = self.read_spec(id)?;
        let spec = spec.ok_or_else(|| kernel(id, "writing files in", &dir)(io::ErrorKind::NotFound.into()))?;
        let host_net = spec.net == NetNamespace::Host;
        let hosts = etc::hosts(files, host_net.then(|| node_file("/etc/hosts")).as_deref());
        let hostname = if spec.host_uts { node_file("/proc/sys/kernel/hostname") } else { spec.hostname + "\n" };
        let resolv_conf = etc::resolv_conf(files, &node_resolv_conf(host_net));
        let paths = EtcPaths::below(&dir);
        make_dir(&dir.join("etc")).map_err(kernel(id, "making", &dir.join("etc")))?;
        for (path, text) in [(&paths.hosts, hosts), (&paths.hostname, hostname), (&paths.resolv_conf, resolv_conf)] {
            write_in_place(path, &text).map_err(kernel(id, "writing", path))?;
            passed("a file of a sandbox");
        }
        Ok(paths)
    }

    fn remove_now(&self, id: &SandboxId) -> Result<(), Error> {
        let dir = self.dir(id);
        let state_file = dir.join("sandbox.json");
        mounts::unmount_all(&dir).map_err(kernel(id, "unmounting what is below", &dir))?;
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(kernel(id, "reading", &dir))?,
        };
        for entry in entries {
            let path = entry.map_err(kernel(id, "reading", &dir))?.path();
            if path != state_file {
                mounts::delete_tree(&path).map_err(kernel(id, "removing", &path))?;
                passed("removing a part of a sandbox");
            }
        }
        mounts::delete_tree(&dir).map_err(kernel(id, "removing", &dir))
    }
}

#[async_trait]
impl Sandboxes for LinuxSandboxes {
    async fn list(&self) -> Result<Vec<Sandbox>, Error> {
        self.blocking(|this| {
            let mut found = Vec::new();
            for id in ids_below(&this.run_dir.join("sandboxes")) {
                found.extend(this.look(&id)?);
            }
            Ok(found)
        })
        .await
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<Sandbox>, Error> {
        let id = id.clone();
        self.blocking(move |this| this.look(&id)).await
    }

    async fn ensure(&self, spec: &SandboxSpec) -> Result<Sandbox, Error> {
        let spec = spec.clone();
        self.blocking(move |this| this.ensure_now(&spec)).await
    }

    async fn write_etc(&self, id: &SandboxId, files: &EtcFiles) -> Result<EtcPaths, Error> {
        let (id, files) = (id.clone(), files.clone());
        self.blocking(move |this| this.write_etc_now(&id, &files)).await
    }

    async fn remove(&self, id: &SandboxId) -> Result<(), Error> {
        let id = id.clone();
        self.blocking(move |this| this.remove_now(&id)).await
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        sandbox_dir(&self.run_dir, id)
    }
}

/// Names of the sandboxes that have a directory in `dir`, in order. Names that are not ours are left alone.
pub(crate) fn ids_below(dir: &Path) -> Vec<SandboxId> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut ids: Vec<_> =
        entries.filter_map(|entry| SandboxId::new(entry.file_name().into_string().ok()?).ok()).collect();
    ids.sort();
    ids
}

/// Stands for a specification that was lost.
fn unknown_spec(id: &SandboxId) -> SandboxSpec {
    SandboxSpec {
        id: id.clone(),
        labels: Default::default(),
        hostname: String::new(),
        net: NetNamespace::New,
        host_ipc: false,
        own_users: false,
        host_uts: false,
        shared: true,
        shm_size: 0,
        sysctls: Default::default(),
    }
}

/// A parameter must belong to a namespace that the sandbox owns; anything else would change the node.
pub(super) fn check_sysctls(spec: &SandboxSpec) -> Result<(), Error> {
    for name in spec.sysctls.keys() {
        let own = match pins::sysctl_kind(name) {
            Some(Kind::Net) => spec.net == NetNamespace::New,
            Some(Kind::Ipc) => spec.pins_ipc(),
            Some(Kind::Uts) => spec.pins_uts(),
            Some(Kind::User) | None => false,
        };
        if !own {
            let reason = "it does not belong to a namespace of this sandbox and would change the whole node";
            return Err(Error::Kernel {
                id: spec.id.clone(),
                doing: format!("setting {name}"),
                source: io::Error::new(io::ErrorKind::InvalidInput, reason),
            });
        }
    }
    Ok(())
}

fn kernel(id: &SandboxId, verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let (id, path, doing) = (id.clone(), path.to_owned(), format!("{verb} {}", path.display()));
    move |source| Error::Kernel { id, doing, source: room::with_numbers(&path, source) }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn is_tmpfs(path: &Path) -> bool {
    // The run directory is usually a tmpfs itself, so this asks for a mount as well.
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let is_mount = path.parent().is_some_and(|parent| device(path) != device(parent));
    is_mount && rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == TMPFS)
}

fn ensure_shm(path: &Path, size: u64) -> io::Result<()> {
    if is_tmpfs(path) {
        return Ok(());
    }
    make_dir(path)?;
    let options = std::ffi::CString::new(format!("mode=1777,size={size}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("shm", path, "tmpfs", flags, Some(options.as_c_str()))?)
}

/// Replaces the content of the file without replacing the file, which containers have mounted. A reader may see old
/// and new text mixed for a moment, but never an empty file, and where room is lacking the old text stays.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    // Not subject to the umask, unlike the mode of open.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, (text.len() as u64).max(1)) {
        // Not every file system can promise room.
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)?;
    file.flush()
}

/// A file of the node that may be absent.
fn node_file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn node_resolv_conf(host_net: bool) -> String {
    let node = node_file("/etc/resolv.conf");
    if !host_net && etc::names_only_resolved(&node) {
        let real = node_file("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    node
}

#[cfg(test)]
mod tests;
