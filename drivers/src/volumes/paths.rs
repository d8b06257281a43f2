//! Where volumes are, and which names may become paths. Pure.

use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Error, VolumeSource, VolumeSpec};
use crate::ids::{SandboxId, VolumeKey};
use crate::sandbox::sandbox_dir;

/// `<data_dir>/volumes/<namespace>/<name>`, which holds `meta.json` and, for a directory of ours, `data/`.
pub(super) fn volume_dir(data_dir: &Path, key: &VolumeKey) -> PathBuf {
    data_dir.join("volumes").join(key.as_str())
}

/// `<run_dir>/volumes`, below which volumes are mounted.
pub(super) fn mounts_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("volumes")
}

/// Where a volume that has to be mounted is: `<run_dir>/volumes/<namespace>/<name>`.
pub(super) fn mount_point(run_dir: &Path, key: &VolumeKey) -> PathBuf {
    mounts_dir(run_dir).join(key.as_str())
}

/// What is mounted from: inside a filesystem of ours it is a directory below the top, which the filesystem may have
/// things of its own in.
pub(super) fn source_path(data_dir: &Path, run_dir: &Path, spec: &VolumeSpec) -> PathBuf {
    match &spec.source {
        VolumeSource::Local => volume_dir(data_dir, &spec.key).join("data"),
        VolumeSource::LocalPath(path) | VolumeSource::HostPath(path, _) => path.clone(),
        VolumeSource::Tmpfs | VolumeSource::Block(_) => mount_point(run_dir, &spec.key).join("data"),
        VolumeSource::Nfs(_) => mount_point(run_dir, &spec.key),
    }
}

/// `<data_dir>/ephemeral/<sandbox>`.
pub(super) fn disk_dir(data_dir: &Path, sandbox: &SandboxId) -> PathBuf {
    data_dir.join("ephemeral").join(sandbox.as_str())
}

/// Where the tmpfs mounts of a sandbox's volumes are.
pub(super) fn memory_dir(run_dir: &Path, sandbox: &SandboxId) -> PathBuf {
    sandbox_dir(run_dir, sandbox).join("volumes")
}

/// Where the bind mounts of a sandbox's sub-paths are.
pub(super) fn sub_paths_dir(run_dir: &Path, sandbox: &SandboxId) -> PathBuf {
    sandbox_dir(run_dir, sandbox).join("subpaths")
}

/// The mount point for `sub_path` below `root`: the same for the same pair, so that asking twice finds it.
pub(super) fn sub_path_mount(run_dir: &Path, sandbox: &SandboxId, root: &Path, sub_path: &str) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(root.as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(sub_path.as_bytes());
    let name: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    sub_paths_dir(run_dir, sandbox).join(name)
}

/// Checks that `path` is relative and cannot leave the directory it is resolved in; returns its parts.
pub(super) fn relative_parts<'a>(field: &str, path: &'a str) -> Result<Vec<&'a str>, Error> {
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::CurDir => {}
            Component::ParentDir => return Err(invalid(field, format!("{path:?} must not contain '..'"))),
            Component::RootDir | Component::Prefix(_) => {
                return Err(invalid(field, format!("{path:?} must be a relative path")));
            }
        }
    }
    if path.contains('\0') {
        return Err(invalid(field, format!("{path:?} must not contain a NUL character")));
    }
    Ok(parts)
}

/// Checks the name of an ephemeral volume, which becomes one directory.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(invalid("volumes.name", format!("{name:?} cannot be the name of a directory")));
    }
    Ok(())
}

/// Checks the path of a file in [`super::Ephemeral::Files`]: names that begin with `..` are the swap's own.
pub(super) fn check_file_path(path: &str) -> Result<(), Error> {
    let parts = relative_parts("items.path", path)?;
    if parts.is_empty() || path.ends_with('/') {
        return Err(invalid("items.path", format!("{path:?} does not name a file")));
    }
    if parts[0].starts_with("..") {
        return Err(invalid("items.path", format!("{path:?} must not begin with '..'")));
    }
    Ok(())
}

pub(super) fn invalid(field: &str, message: String) -> Error {
    Error::Invalid { field: field.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_stay_inside_are_relative() {
        assert_eq!(relative_parts("subPath", "a/./b//c").unwrap(), ["a", "b", "c"]);
        assert_eq!(relative_parts("subPath", "").unwrap(), [] as [&str; 0]);
        for bad in ["/etc", "..", "a/../../b", "a/\0b"] {
            assert!(relative_parts("subPath", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn file_paths_keep_clear_of_the_swap() {
        for good in ["a", "a/b.conf", ".hidden", "a/..b"] {
            check_file_path(good).unwrap();
        }
        for bad in ["", "..data", "..data/a", "a/", "/a", "../a", "."] {
            assert!(check_file_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_one_directory() {
        check_name("data").unwrap();
        for bad in ["", ".", "..", "a/b", ".x"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
