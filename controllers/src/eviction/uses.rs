//! What a Workload uses of what the node is short of. Read only then.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nodelet_crds::workload::Workload;
use nodelet_drivers::ids::SandboxId;

use crate::context::{Context, chain};
use crate::workload::log_directory;

/// Its working set: memory without what the kernel could take back at once. Also the files of its memory-backed volumes.
pub(super) async fn memory(ctx: &Context, sandboxes: BTreeSet<SandboxId>) -> u64 {
    let cgroups = ctx.drivers.cgroups.clone();
    crate::blocking(move || {
        let own = sandboxes.iter().flat_map(|id| cgroups.of_sandbox(id).unwrap_or_default());
        let stats = own.filter_map(|path| cgroups.stat(&path).ok().flatten());
        stats.map(|stat| stat.memory_bytes.saturating_sub(stat.inactive_file_bytes)).sum()
    })
    .await
}

/// The files that go with it: temporary volumes, logs, and what its containers changed in their roots where that is on the
/// same filesystem. Volumes outlive it, so that evicting frees nothing of them.
pub(super) async fn disk(ctx: &Context, object: &Workload, sandboxes: BTreeSet<SandboxId>) -> u64 {
    let mut places: Vec<PathBuf> = sandboxes.iter().map(|id| ctx.drivers.volumes.ephemeral_dir(id)).collect();
    places.push(log_directory(&ctx.settings.data_dir, object));
    let containers = ctx.containers.of_workload(object.metadata.uid.as_deref().unwrap_or_default());
    for container in containers.unwrap_or_default() {
        match ctx.drivers.runtime.writable_layer(&container.id).await {
            Ok(layer) => places.extend(layer),
            Err(error) => tracing::warn!("the files of container {} do not count: {}", container.id, chain(&error)),
        }
    }
    let data_dir = ctx.settings.data_dir.clone();
    crate::blocking(move || {
        let device = |place: &Path| place.symlink_metadata().map(|found| found.dev()).ok();
        let short = device(&data_dir);
        places.iter().filter(|place| device(place) == short).map(|place| size_of(place)).sum()
    })
    .await
}

/// What the files below `top` occupy on its filesystem, in bytes, one of several names once. What vanishes meanwhile counts
/// as none.
pub(super) fn size_of(top: &Path) -> u64 {
    let Ok(device) = top.symlink_metadata().map(|found| found.dev()) else { return 0 };
    let (mut sum, mut next, mut seen) = (0, vec![top.to_owned()], HashSet::new());
    while let Some(directory) = next.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.dev() == device => {
                    if found.is_dir() {
                        next.push(entry.path());
                    } else if found.nlink() > 1 && !seen.insert(found.ino()) {
                        continue;
                    }
                    sum += found.blocks() * 512;
                }
                _ => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_occupy_is_summed() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(size_of(&directory.path().join("absent")), 0);
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(directory.path().join("a/b"), directory.path().join("again")).unwrap();
        // Nothing is followed out of it.
        std::os::unix::fs::symlink("/usr", directory.path().join("link")).unwrap();
        let size = size_of(directory.path());
        assert!((1 << 20..2 << 20).contains(&size), "{size}");
    }
}
