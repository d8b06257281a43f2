//! What every implementation of [`Volumes`] keeps. Runs on the fake and on the kernel.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Ephemeral, EphemeralSpec, FileContent, HostPathType, Owner, VolumeSource, VolumeSpec, Volumes};
use crate::ids::{SandboxId, VolumeKey};

/// A volume that nodelet owns.
pub(crate) fn local(key: &str) -> VolumeSpec {
    VolumeSpec {
        key: VolumeKey::new(key).unwrap(),
        uid: "uid-1".to_owned(),
        source: VolumeSource::Local,
        owner: Owner { uid: 0, gid: 0, mode: 0o755 },
        capacity: None,
    }
}

/// An ephemeral directory of sandbox `s1`.
pub(crate) fn ephemeral(name: &str, kind: Ephemeral) -> EphemeralSpec {
    EphemeralSpec { sandbox: SandboxId::new("s1").unwrap(), name: name.to_owned(), kind }
}

/// Files with mode 0644.
pub(crate) fn files(files: &[(&str, &str)], in_memory: bool) -> Ephemeral {
    let content = |text: &&str| FileContent { data: text.as_bytes().to_vec(), mode: 0o644 };
    let files: BTreeMap<_, _> = files.iter().map(|(path, text)| ((*path).to_owned(), content(text))).collect();
    Ephemeral::Files { files, in_memory, gid: None }
}

/// Exercises the contract; `scratch` is an empty directory for given paths. Leaves nothing behind of ours.
pub(crate) async fn run(volumes: &dyn Volumes, scratch: &Path) {
    volumes_with_an_object(volumes, scratch).await;
    ephemeral_directories(volumes).await;
}

async fn volumes_with_an_object(volumes: &dyn Volumes, scratch: &Path) {
    let data = local("default/data");
    assert!(volumes.list().await.unwrap().is_empty());
    volumes.remove(&data, true).await.unwrap();
    assert!(volumes.usage(&data).await.is_err(), "nothing can be said of what is not there");

    let made = volumes.ensure(&data).await.unwrap();
    assert!(made.complete);
    assert_eq!(volumes.ensure(&data).await.unwrap(), made, "twice is the same as once");
    assert!(volumes.usage(&data).await.unwrap().capacity_bytes > 0);

    volumes.remove(&data, false).await.unwrap();
    assert_eq!(volumes.list().await.unwrap(), std::slice::from_ref(&made), "a retained volume stays known");
    let successor = VolumeSpec { uid: "uid-2".to_owned(), ..data.clone() };
    assert_eq!(volumes.ensure(&successor).await.unwrap(), made, "and is adopted by name");
    volumes.remove(&successor, true).await.unwrap();
    assert!(volumes.list().await.unwrap().is_empty());

    let path = scratch.join("given/deep");
    let given = VolumeSpec { source: VolumeSource::LocalPath(path.clone()), ..local("default/given") };
    assert_eq!(volumes.ensure(&given).await.unwrap().path, path);
    assert_eq!(volumes.list().await.unwrap().len(), 1);
    volumes.remove(&given, true).await.unwrap();
    assert!(volumes.list().await.unwrap().is_empty());
    volumes.ensure_host_path(&path, HostPathType::Directory).await.expect("a given path is never deleted");

    assert!(volumes.ensure_host_path(&scratch.join("no"), HostPathType::Directory).await.is_err());
    assert!(volumes.ensure_host_path(&scratch.join("no"), HostPathType::File).await.is_err());
    assert!(volumes.ensure_host_path(Path::new("relative"), HostPathType::Any).await.is_err());
    volumes.ensure_host_path(&scratch.join("f"), HostPathType::FileOrCreate).await.unwrap();
    volumes.ensure_host_path(&scratch.join("f"), HostPathType::FileOrCreate).await.unwrap();
    volumes.ensure_host_path(&scratch.join("f"), HostPathType::File).await.unwrap();
    assert!(volumes.ensure_host_path(&scratch.join("f"), HostPathType::Directory).await.is_err());
    volumes.ensure_host_path(&scratch.join("d"), HostPathType::DirectoryOrCreate).await.unwrap();
}

async fn ephemeral_directories(volumes: &dyn Volumes) {
    let sandbox = SandboxId::new("s1").unwrap();
    assert!(volumes.list_ephemeral().await.unwrap().is_empty());
    volumes.remove_ephemeral(&sandbox).await.unwrap();

    let disk = ephemeral("disk", Ephemeral::Disk { size_limit: None });
    let path = volumes.ensure_ephemeral(&disk).await.unwrap();
    assert_eq!(volumes.ensure_ephemeral(&disk).await.unwrap(), path, "twice is the same as once");
    let memory = ephemeral("memory", Ephemeral::Memory { size_limit: Some(1 << 20) });
    assert_ne!(volumes.ensure_ephemeral(&memory).await.unwrap(), path);
    volumes.ensure_ephemeral(&ephemeral("conf", files(&[("a", "1"), ("b/c", "2")], false))).await.unwrap();
    volumes.ensure_ephemeral(&ephemeral("conf", files(&[("a", "3")], false))).await.unwrap();
    volumes.ensure_ephemeral(&ephemeral("cert", files(&[("key", "secret")], true))).await.unwrap();
    assert!(volumes.ensure_ephemeral(&ephemeral("../up", Ephemeral::Disk { size_limit: None })).await.is_err());
    assert!(volumes.ensure_ephemeral(&ephemeral("bad", files(&[("../up", "")], false))).await.is_err());

    let sub = volumes.ensure_sub_path(&sandbox, &path, "one/two").await.unwrap();
    assert_eq!(volumes.ensure_sub_path(&sandbox, &path, "one/two").await.unwrap(), sub, "twice is the same as once");
    assert!(volumes.ensure_sub_path(&sandbox, &path, "../..").await.is_err());
    assert!(volumes.ensure_sub_path(&sandbox, &path, "/etc").await.is_err());

    assert_eq!(volumes.list_ephemeral().await.unwrap(), std::slice::from_ref(&sandbox));
    volumes.remove_ephemeral(&sandbox).await.unwrap();
    volumes.remove_ephemeral(&sandbox).await.unwrap();
    assert!(volumes.list_ephemeral().await.unwrap().is_empty());
}
