//! Block devices by the numbers that I/O limits take.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// `major:minor` of the disk that `device` (such as `/dev/vda1`) is or is a part of: limits apply to whole disks.
pub(crate) fn disk_number(device: &str, sysfs: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(device)?;
    if !metadata.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
    }
    let number = metadata.rdev();
    whole_disk(rustix::fs::major(number), rustix::fs::minor(number), sysfs)
}

/// A partition's directory in sysfs lies in that of its disk and has a file `partition`.
fn whole_disk(major: u32, minor: u32, sysfs: &Path) -> io::Result<String> {
    let own = format!("{major}:{minor}");
    let dir = sysfs.join("dev/block").join(&own);
    if !dir.join("partition").exists() {
        return Ok(own);
    }
    let disk = dir.canonicalize()?.parent().map(|disk| disk.join("dev")).unwrap_or_default();
    Ok(std::fs::read_to_string(disk)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_stand_for_their_disk() {
        let sysfs = tempfile::tempdir().unwrap();
        let disk = sysfs.path().join("devices/vda");
        std::fs::create_dir_all(disk.join("vda1")).unwrap();
        std::fs::create_dir_all(sysfs.path().join("dev/block")).unwrap();
        std::fs::write(disk.join("dev"), "253:0\n").unwrap();
        std::fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        std::os::unix::fs::symlink("../../devices/vda", sysfs.path().join("dev/block/253:0")).unwrap();
        std::os::unix::fs::symlink("../../devices/vda/vda1", sysfs.path().join("dev/block/253:1")).unwrap();
        assert_eq!(whole_disk(253, 1, sysfs.path()).unwrap(), "253:0");
        assert_eq!(whole_disk(253, 0, sysfs.path()).unwrap(), "253:0");
        assert_eq!(whole_disk(8, 0, sysfs.path()).unwrap(), "8:0");
        assert!(disk_number("/dev/null", sysfs.path()).is_err());
    }
}
