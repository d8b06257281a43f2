//! What a container mounts: each volume is brought to where it can be mounted from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nodelet_drivers::runtime::{Mount, MountSource};
use nodelet_drivers::volumes::{self, Content, Ephemeral, EphemeralSpec};

use super::{Applier, Error};
use crate::names::short_hash;
use crate::workload::files;
use crate::workload::model::{Fill, MountWish, VolumeWish};
use crate::workload::plan::UsedImage;

impl Applier<'_> {
    /// `image` is the record that the container is started from, `images` those that its volumes show.
    pub(super) async fn mount(
        &self,
        mount: &MountWish,
        image: &str,
        images: &BTreeMap<String, UsedImage>,
    ) -> Result<Mount, Error> {
        let failed = |source| Error::Volume { volume: mount.volume.clone(), source };
        let volumes = &self.ctx.drivers.volumes;
        let root = match self.desired.sandbox.volumes.get(&mount.volume) {
            Some(VolumeWish::Path { path, fill }) => {
                volumes.check_mounted(path).await.map_err(failed)?;
                // A part of it is for whoever has the whole to fill.
                if *fill != Fill::Nothing && mount.sub_path.is_none() {
                    self.fill(mount, path, *fill, image).await?;
                }
                path.clone()
            }
            Some(VolumeWish::HostPath(path, kind)) => volumes.ensure_host_path(path, *kind).await.map_err(failed)?,
            Some(VolumeWish::Ephemeral(kind)) => self.ephemeral(&mount.volume, kind).await?,
            Some(VolumeWish::Image(_)) => self.image_volume(&mount.volume, images.get(&mount.volume)).await?,
            None => {
                return Err(failed(volumes::Error::Invalid {
                    field: "volumeMounts".to_owned(),
                    message: format!("there is no volume {:?} in spec.volumes", mount.volume),
                }));
            }
        };
        let own = matches!(
            self.desired.sandbox.volumes.get(&mount.volume),
            Some(VolumeWish::Path { .. } | VolumeWish::Ephemeral(Ephemeral::Disk { .. } | Ephemeral::Memory { .. }))
        );
        let group = self.object.spec.security_context.as_ref().and_then(|context| context.fs_group);
        if let (Some(group), true, false) = (group, own, mount.read_only) {
            volumes.give_to_group(&root, group).await.map_err(failed)?;
        }
        let source = match &mount.sub_path {
            Some(sub) => volumes.ensure_sub_path(&self.desired.sandbox.spec.id, &root, sub).await.map_err(failed)?,
            None => root,
        };
        Ok(Mount {
            destination: mount.path.clone(),
            source: MountSource::Bind(source),
            read_only: mount.read_only,
            propagation: mount.propagation.clone(),
        })
    }

    async fn fill(&self, mount: &MountWish, root: &Path, fill: Fill, image: &str) -> Result<(), Error> {
        let failed = |source| Error::Volume { volume: mount.volume.clone(), source };
        let unshown = |source| Error::Image { volume: mount.volume.clone(), source: Box::new(source) };
        let (volumes, runtime) = (&self.ctx.drivers.volumes, &self.ctx.drivers.runtime);
        if !volumes.wants_content(root).await.map_err(failed)? {
            return Ok(());
        }
        let sandbox = &self.desired.sandbox.spec.id;
        let view = format!("content-{}-{}", mount.volume, short_hash(image, 12));
        let content = Content {
            image: runtime.view(sandbox, &view, image).await.map_err(unshown)?,
            path: mount.path.clone(),
            keep_owner: fill == Fill::Content,
        };
        let filled = volumes.populate(sandbox, root, &content).await.map_err(failed);
        runtime.remove_views(sandbox, Some(&view)).await.map_err(unshown)?;
        filled
    }

    /// The files of an image that the plan found on the node. Another image is another directory, so that containers
    /// which have the former keep it.
    async fn image_volume(&self, volume: &str, image: Option<&UsedImage>) -> Result<PathBuf, Error> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::Image { volume: volume.to_owned(), source };
        let image = image.ok_or_else(|| failed("the plan does not name its image".into()))?;
        let name = format!("{volume}.{}", short_hash(&image.digest, 12));
        let sandbox = &self.desired.sandbox.spec.id;
        let view = self.ctx.drivers.runtime.view(sandbox, &name, &image.name).await;
        let kind = Ephemeral::Image(view.map_err(|error| failed(Box::new(error)))?);
        self.ephemeral(&name, &kind).await
    }

    pub(super) async fn ephemeral(&self, name: &str, kind: &Ephemeral) -> Result<PathBuf, Error> {
        let spec =
            EphemeralSpec { sandbox: self.desired.sandbox.spec.id.clone(), name: name.to_owned(), kind: kind.clone() };
        let path = self
            .ctx
            .drivers
            .volumes
            .ensure_ephemeral(&spec)
            .await
            .map_err(|source| Error::Volume { volume: name.to_owned(), source })?;
        self.ctx.written.remember(&spec.sandbox, name, files::fingerprint(kind));
        Ok(path)
    }
}
