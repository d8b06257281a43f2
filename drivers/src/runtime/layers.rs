//! Reading files and directories from a stack of overlay layers without mounting it.
//!
//! # Contract
//! - Sees what a mount would show: upper layers hide lower ones, whiteouts and opaque directories hide everything
//!   below, symlinks are followed within the stack.
//! - Never leaves the stack: symlinks are resolved here, the kernel is never asked to follow one.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::types::Mount;
use tonic::Code;

use super::Error;
use super::containerd::Shared;
use crate::ids::ContainerId;

/// As many symlinks as the kernel follows.
const MAX_LINKS: usize = 40;
/// Larger than any sane file of accounts.
const MAX_FILE: u64 = 4 << 20;

/// The directories of a snapshot's mounts, topmost first; `None` for snapshotters whose files cannot be reached
/// without mounting them.
pub(super) fn of_mounts(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    let option = |name: &str| mount.options.iter().find_map(|o| o.strip_prefix(name));
    match mount.r#type.as_str() {
        "bind" => Some(vec![PathBuf::from(&mount.source)]),
        "overlay" => {
            let upper = option("upperdir=").map(PathBuf::from);
            let lower = option("lowerdir=")?.split(':').map(PathBuf::from);
            Some(upper.into_iter().chain(lower).collect())
        }
        _ => None,
    }
}

/// See [`super::Runtime::writable_layer`].
pub(super) async fn writable(shared: &Shared, id: &ContainerId) -> Result<Option<PathBuf>, Error> {
    let containerd = &shared.containerd;
    let snapshotter = containerd.snapshotter().to_owned();
    let request = containerd.request(MountsRequest { snapshotter, key: id.to_string() });
    let mounts = match containerd.snapshots().mounts(request).await {
        Ok(answer) => answer.into_inner().mounts,
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(containerd.error(format!("asking for the layers of container {id}"), status)),
    };
    Ok(of_mounts(&mounts).and_then(|layers| layers.into_iter().next()))
}

/// What the stack shows at one name of a directory.
enum Entry {
    /// Nothing.
    Absent,
    /// A directory: its parts in the layers, topmost first.
    Directory(Vec<PathBuf>),
    /// A symlink and where it points.
    Link(PathBuf),
    /// A regular file.
    File(PathBuf),
    /// A pipe, socket or device.
    Special,
}

/// The content of `path`; `None` if there is no such regular file.
pub(super) fn read_file(layers: &[PathBuf], path: &str) -> io::Result<Option<Vec<u8>>> {
    match resolve(layers, path)? {
        Entry::File(path) => read_small(&path).map(Some),
        _ => Ok(None),
    }
}

/// What the stack shows at `path`; never a [`Entry::Link`].
fn resolve(layers: &[PathBuf], path: &str) -> io::Result<Entry> {
    let root = layers.to_vec();
    // From the root to where we are, so that ".." can go back.
    let mut stack = vec![root];
    let mut rest = components(Path::new(path));
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let Some(here) = stack.last() else { return Ok(Entry::Absent) };
        match look_up(here, &name)? {
            found @ (Entry::Absent | Entry::Special) => return Ok(found),
            Entry::Directory(parts) => stack.push(parts),
            Entry::File(path) if rest.is_empty() => return Ok(Entry::File(path)),
            Entry::File(_) => return Ok(Entry::Absent),
            Entry::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Ok(Entry::Absent);
                }
                if target.is_absolute() {
                    stack.truncate(1);
                }
                for name in components(&target).into_iter().rev() {
                    rest.push_front(name);
                }
            }
        }
    }
    Ok(stack.pop().map_or(Entry::Absent, Entry::Directory))
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// What the stack shows at one name of a directory, whose parts are given topmost first.
fn look_up(directory: &[PathBuf], name: &OsString) -> io::Result<Entry> {
    let mut parts = Vec::new();
    for part in directory {
        let path = part.join(name);
        let found = match std::fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let kind = found.file_type();
        if kind.is_dir() {
            let opaque = is_opaque(&path);
            parts.push(path);
            if opaque {
                break;
            }
            continue;
        }
        let whiteout = kind.is_char_device() && found.rdev() == 0;
        if whiteout || !parts.is_empty() {
            break;
        }
        return Ok(if kind.is_symlink() {
            Entry::Link(std::fs::read_link(&path)?)
        } else if kind.is_file() {
            Entry::File(path)
        } else {
            Entry::Special
        });
    }
    Ok(if parts.is_empty() { Entry::Absent } else { Entry::Directory(parts) })
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0u8; 4];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| rustix::fs::lgetxattr(path, *name, &mut value).is_ok_and(|length| length == 1 && value[0] == b'y'))
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut data = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn text(layers: &[PathBuf], path: &str) -> Option<String> {
        read_file(layers, path).unwrap().map(|data| String::from_utf8(data).unwrap())
    }

    fn write(path: PathBuf, data: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }

    fn whiteout(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    }

    #[test]
    fn upper_layers_win_and_whiteouts_hide() {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = ["2", "1", "0"].iter().map(|n| dir.path().join(n)).collect();
        write(layers[2].join("etc/passwd"), "low");
        write(layers[2].join("etc/group"), "low");
        write(layers[2].join("etc/gone"), "low");
        write(layers[1].join("etc/passwd"), "mid");
        whiteout(&layers[0].join("etc/gone"));
        assert_eq!(text(&layers, "etc/passwd").as_deref(), Some("mid"));
        assert_eq!(text(&layers, "etc/group").as_deref(), Some("low"));
        assert_eq!(text(&layers, "etc/gone"), None);
        assert_eq!(text(&layers, "etc"), None);
        assert_eq!(text(&layers, "etc/passwd/x"), None);
        rustix::fs::setxattr(layers[1].join("etc"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
            .unwrap();
        assert_eq!(text(&layers, "etc/passwd").as_deref(), Some("mid"));
        assert_eq!(text(&layers, "etc/group"), None);
    }

    #[test]
    fn symlinks_stay_in_the_stack() {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = ["1", "0"].iter().map(|n| dir.path().join(n)).collect();
        write(layers[1].join("usr/etc/passwd"), "real");
        std::fs::create_dir_all(&layers[0]).unwrap();
        symlink("/usr/etc", layers[0].join("etc")).unwrap();
        symlink("../../../../../etc/hostname", layers[1].join("usr/etc/escape")).unwrap();
        symlink("loop", layers[1].join("loop")).unwrap();
        assert_eq!(text(&layers, "etc/passwd").as_deref(), Some("real"));
        assert_eq!(text(&layers, "etc/escape"), None);
        assert_eq!(text(&layers, "loop"), None);
    }
}
