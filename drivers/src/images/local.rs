//! containerd's own directories, where this process can reach them: reading a blob from its file and writing into a
//! snapshot's directory cost a fraction of the way through its socket.
//!
//! An agent in a container, or a snapshotter other than overlayfs, has none of this; everything works without.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::PluginsRequest;
use containerd_client::types::Mount;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use tokio::sync::OnceCell;

use super::manifest::Descriptor;
use crate::containerd::Containerd;

/// What is known of the directories.
#[derive(Debug, Default)]
pub(super) struct Local {
    content: OnceCell<PathBuf>,
}

impl Local {
    /// The directory of containerd's content store, if it can be reached.
    pub(super) async fn content_root(&self, containerd: &Containerd) -> Option<&Path> {
        let root = self.content.get_or_try_init(|| async { content_root(containerd).await.ok_or(()) }).await;
        root.ok().map(PathBuf::as_path)
    }

    /// The file of a complete blob.
    pub(super) async fn blob(&self, containerd: &Containerd, blob: &Descriptor) -> Option<PathBuf> {
        let file = self.content_root(containerd).await?.join("blobs/sha256").join(blob.digest.hex());
        let metadata = tokio::fs::metadata(&file).await.ok()?;
        (metadata.is_file() && metadata.size() == blob.size).then_some(file)
    }
}

async fn content_root(containerd: &Containerd) -> Option<PathBuf> {
    let filters = vec!["type==io.containerd.content.v1".to_owned()];
    let request = containerd.request(PluginsRequest { filters });
    let plugins = containerd.introspection().plugins(request).await.ok()?.into_inner().plugins;
    let root = plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root")).map(PathBuf::from)?;
    // A path alone proves nothing: in other mount namespaces it may be something else.
    let is_store = root.is_absolute() && root.join("blobs/sha256").is_dir() && root.join("ingest").is_dir();
    is_store.then_some(root)
}

/// The directory that what is written into an active snapshot goes to, if it is one of overlayfs that can be reached.
pub(super) fn upper(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    let path = match mount.r#type.as_str() {
        "bind" => PathBuf::from(&mount.source),
        "overlay" => option(mount, "upperdir=").map(PathBuf::from)?,
        _ => return None,
    };
    // The snapshotter's own form, `…/snapshots/<number>/fs`, with the work directory beside.
    let ours = path.is_absolute() && path.ends_with("fs") && path.is_dir() && path.parent()?.join("work").is_dir();
    ours.then_some(path)
}

/// The directories of the layers of a mount, top first.
pub(super) fn lower(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    let paths: Vec<PathBuf> = match mount.r#type.as_str() {
        "bind" => vec![PathBuf::from(&mount.source)],
        "overlay" => option(mount, "lowerdir=")?.split(':').map(PathBuf::from).collect(),
        _ => return None,
    };
    paths.iter().all(|path| path.is_absolute() && path.ends_with("fs") && path.is_dir()).then_some(paths)
}

fn option<'a>(mount: &'a Mount, key: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(key))
}

/// Exchanges two directories in one step: nobody ever sees neither. Blocks.
pub(super) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Writes everything of the path's filesystem to the disk. Blocks.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    let directory = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(directory)?)
}
