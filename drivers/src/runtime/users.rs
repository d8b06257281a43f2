//! What a container sees when its users are not the node's: root file system and mounts with translated owners.
//!
//! containerd 1.6 cannot do this and runc only from 1.2 on; the kernel can (5.12, for overlayfs 5.19, for tmpfs 6.3). So
//! it is done here, by mounts that the OCI runtime takes as they are: each layer and each bind mount once more, with
//! owners translated, below `<sandbox>/mapped/<container>`. The writable layer is new and simply belongs to the users of
//! the namespace. On disk nothing tells that a file came from there.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount as Rootfs;

use super::accounts::Identity;
use super::{ContainerSpec, Error, Mount, MountSource};
use crate::ids::ContainerId;
use crate::sandbox::{USERS, UserNamespace, sandbox_dir};
use crate::{idmap, mounts};

/// What the sandbox gives to each container. Who cannot write to it has lost little.
const OF_THE_SANDBOX: [&str; 4] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"];

/// The directory of the mounts that are made for a container.
fn directory(run_dir: &Path, sandbox: &crate::ids::SandboxId, id: &ContainerId) -> PathBuf {
    sandbox_dir(run_dir, sandbox).join("mapped").join(id.as_str())
}

/// Replaces the sources by what [`map`] makes of them.
pub(super) fn translate(run_dir: &Path, spec: &ContainerSpec, mounts: &mut [Mount]) {
    let directory = directory(run_dir, &spec.sandbox, &spec.id);
    for (index, mount) in mounts.iter_mut().enumerate() {
        if let MountSource::Bind(source) = &mut mount.source {
            *source = directory.join(index.to_string());
        }
    }
}

/// Whether the container's program has users that there are inside.
pub(super) fn check(identity: &Identity) -> Result<(), Error> {
    let user = identity.to_oci();
    let groups = user.additional_gids().iter().flatten().copied();
    match [user.uid(), user.gid()].into_iter().chain(groups).find(|id| *id >= USERS) {
        None => Ok(()),
        Some(id) => {
            let message =
                format!("{id} does not exist with hostUsers: false, which has users and groups below {USERS}");
            Err(Error::Invalid { field: "securityContext.runAsUser".to_owned(), message })
        }
    }
}

/// Makes the mounts and returns those of the root file system. Blocking. May be called again.
pub(super) fn map(
    run_dir: &Path,
    spec: &ContainerSpec,
    users: &UserNamespace,
    binds: &[Mount],
    rootfs: &[Rootfs],
) -> Result<Vec<Rootfs>, Error> {
    let failed = |source: io::Error| Error::Failed {
        doing: format!("translating the owners of files for container {}", spec.id),
        source: Box::new(source),
    };
    let directory = directory(run_dir, &spec.sandbox, &spec.id);
    mounts::remove_tree(&directory).map_err(failed)?;
    std::fs::create_dir_all(directory.join("layers")).map_err(failed)?;
    let namespace = File::open(&users.path).map_err(failed)?;
    for (index, mount) in binds.iter().enumerate() {
        let MountSource::Bind(source) = &mount.source else { continue };
        let target = directory.join(index.to_string());
        match idmap::bind(source, &target, namespace.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if !OF_THE_SANDBOX.contains(&mount.destination.as_str()) {
                    let message = format!("{}: {error}; use hostUsers: true", mount.destination);
                    return Err(Error::Invalid { field: "volumeMounts".to_owned(), message });
                }
                bind_plainly(source, &target).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
    }
    let [root] = rootfs else { return Err(not_layered()) };
    let mut root = root.clone();
    let mut has_layers = false;
    for option in &mut root.options {
        if let Some(upper) = option.strip_prefix("upperdir=") {
            give(Path::new(upper), users.first).map_err(failed)?;
        } else if let Some(lower) = option.strip_prefix("lowerdir=") {
            let mut mapped = Vec::new();
            for (index, layer) in lower.split(':').enumerate() {
                let target = directory.join("layers").join(index.to_string());
                idmap::bind(Path::new(layer), &target, namespace.as_fd()).map_err(failed)?;
                mapped.push(target.display().to_string());
            }
            has_layers = true;
            *option = format!("lowerdir={}", mapped.join(":"));
        }
    }
    if has_layers { Ok(vec![root]) } else { Err(not_layered()) }
}

/// Unmounts the layers, once they are part of a root file system that is mounted. Blocking.
pub(super) fn release_layers(run_dir: &Path, spec: &ContainerSpec) -> io::Result<()> {
    mounts::remove_tree(&directory(run_dir, &spec.sandbox, &spec.id).join("layers"))
}

/// Removes all that [`map`] made. Blocking; absence is success.
pub(super) fn remove(run_dir: &Path, spec: &ContainerSpec) -> io::Result<()> {
    mounts::remove_tree(&directory(run_dir, &spec.sandbox, &spec.id))
}

fn not_layered() -> Error {
    let message = "false needs the snapshotter overlayfs".to_owned();
    Error::Invalid { field: "hostUsers".to_owned(), message }
}

/// Makes the top of a new writable layer belong to the namespace. It is the root directory of the container.
fn give(upper: &Path, first: u32) -> io::Result<()> {
    let metadata = std::fs::metadata(upper)?;
    let inside = |id: u32| if id < USERS { first + id } else { id };
    std::os::unix::fs::chown(upper, Some(inside(metadata.uid())), Some(inside(metadata.gid())))
}

fn bind_plainly(source: &Path, target: &Path) -> io::Result<()> {
    if std::fs::metadata(source)?.is_dir() {
        std::fs::create_dir_all(target)?;
    } else {
        File::options().create(true).append(true).open(target)?;
    }
    Ok(rustix::mount::mount_bind(source, target)?)
}
