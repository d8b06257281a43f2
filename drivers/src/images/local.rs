//! containerd's own directories, where this process can reach them: reading a blob from its file and writing into a
//! snapshot's directory cost a fraction of the way through its socket.
//!
//! An agent in a container, or a snapshotter without directories, simply has none of this; everything works without.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::PluginsRequest;

use crate::containerd::Containerd;

/// The directory of containerd's content store, if it can be reached.
pub(super) async fn content_root(containerd: &Containerd) -> Option<PathBuf> {
    let filters = vec!["type==io.containerd.content.v1".to_owned()];
    let request = containerd.request(PluginsRequest { filters });
    let plugins = containerd.introspection().plugins(request).await.ok()?.into_inner().plugins;
    let root = plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root")).map(PathBuf::from)?;
    is_store(&root).then_some(root)
}

/// A path alone proves nothing: in other mount namespaces it may be something else.
fn is_store(root: &Path) -> bool {
    root.is_absolute() && root.join("blobs/sha256").is_dir() && root.join("ingest").is_dir()
}
