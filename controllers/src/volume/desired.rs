//! From a Volume's spec to what the driver makes of it.

use std::path::PathBuf;

use kube::ResourceExt;
use nodelet_crds::volume::{BlockFsType, Volume, VolumeSourceRef};
use nodelet_drivers::volumes::{BlockFs, NfsExport, Owner, VolumeSource, VolumeSpec};

use crate::invalid::Invalid;
use crate::names;

/// A Volume of this node, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// For the driver.
    pub spec: VolumeSpec,
}

/// Checks the spec; `None` when the Volume is another node's.
pub fn validate(object: &Volume, node: &str) -> Result<Option<Desired>, Invalid> {
    let spec = &object.spec;
    let bound = object.status.as_ref().and_then(|s| s.node_name.as_deref());
    if spec.node_name.as_deref().or(bound).is_some_and(|name| name != node) {
        return Ok(None);
    }
    Invalid::unsupported(nodelet_crds::unsupported::unsupported(spec))?;
    let source = match spec.source() {
        Some(VolumeSourceRef::Local(local)) if local.path.is_empty() => VolumeSource::Local,
        Some(VolumeSourceRef::Local(local)) => VolumeSource::LocalPath(PathBuf::from(&local.path)),
        Some(VolumeSourceRef::HostPath(host)) => {
            VolumeSource::HostPath(PathBuf::from(&host.path), crate::workload::host_path_type(host.type_))
        }
        Some(VolumeSourceRef::Tmpfs(_)) => VolumeSource::Tmpfs,
        Some(VolumeSourceRef::Block(block)) => VolumeSource::Block(match block.fs_type {
            BlockFsType::Ext4 => BlockFs::Ext4,
            BlockFsType::Xfs => BlockFs::Xfs,
        }),
        Some(VolumeSourceRef::Nfs(nfs)) => VolumeSource::Nfs(NfsExport {
            server: nfs.server.clone(),
            path: nfs.path.clone(),
            read_only: nfs.read_only,
        }),
        None => {
            let message = "exactly one source is needed: local, hostPath, tmpfs, block or nfs";
            return Err(Invalid::field("spec", message));
        }
    };
    let capacity = spec.capacity.as_ref().map(|quantity| quantity.bytes()).transpose();
    let capacity = capacity.map_err(|error| Invalid::field("spec.capacity", error))?;
    let owner = spec.owner.as_ref().map_or(Owner { uid: 0, gid: 0, mode: 0o755 }, |owner| Owner {
        uid: owner.uid,
        gid: owner.gid,
        mode: owner.mode_bits(),
    });
    let key = names::volume_key(&object.namespace().unwrap_or_default(), &object.name_any())
        .map_err(|error| Invalid::field("metadata.name", error))?;
    let uid = object.metadata.uid.clone().unwrap_or_default();
    Ok(Some(Desired { spec: VolumeSpec { key, uid, source, owner, capacity } }))
}
