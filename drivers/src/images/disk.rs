//! How full the filesystem is that holds the images.

use containerd_client::services::v1::PluginsRequest;
use rustix::fs::statvfs;
use tokio::sync::OnceCell;
use tonic::Status;

use super::registry::failed;
use super::unpack::answered;
use super::{Disk, Error};
use crate::containerd::Containerd;

/// Where containerd keeps the snapshots, which are the greater part of an image. It cannot change while it runs.
#[derive(Debug, Default)]
pub(super) struct Root(OnceCell<String>);

impl Root {
    /// The fill now. One call of the kernel once the directory is known.
    pub(super) async fn disk(&self, containerd: &Containerd) -> Result<Disk, Error> {
        let root = self.0.get_or_try_init(|| snapshots(containerd)).await?.clone();
        let doing = format!("looking how full the filesystem of {root} is");
        let stat = tokio::task::spawn_blocking(move || statvfs(&*root))
            .await
            .map_err(|error| failed(doing.clone(), error))?
            .map_err(|error| failed(doing, std::io::Error::from(error)))?;
        Ok(Disk {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// The snapshotter says where it works: export `root` of its plugin.
async fn snapshots(containerd: &Containerd) -> Result<String, Error> {
    let id = containerd.snapshotter();
    let doing = || format!("asking containerd where its snapshotter {id} keeps its data");
    let request = containerd.request(PluginsRequest { filters: vec![format!("id=={id}")] });
    let plugins = containerd.introspection().plugins(request).await.map_err(|status| answered(doing(), status))?;
    let root = plugins.into_inner().plugins.into_iter().find_map(|mut plugin| {
        let ours = plugin.r#type == "io.containerd.snapshotter.v1" && plugin.id == id;
        if ours { plugin.exports.remove("root") } else { None }
    });
    root.ok_or_else(|| answered(doing(), Status::not_found("the plugin does not say")))
}
