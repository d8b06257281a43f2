//! Letting a mounted filesystem fill its device.
//!
//! Facts: `ext4_resize_fs` and `xfs_growfs_data` in the kernel, `ioctl_xfs_fsgeometry(2)`.
#![allow(unsafe_code)]

use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use super::{BlockFs, LoopDevice, directory, le32};

/// Sizes are whole numbers of this many bytes: a block of either filesystem.
pub(super) const BLOCK: u64 = 4096;

const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
const XFS_IOC_FSGEOMETRY: u64 = 0x8100_587e;
const XFS_IOC_FSGROWFSDATA: u64 = 0x4010_586e;
/// Where the superblock of ext4 begins.
const EXT4_SUPERBLOCK: u64 = 1024;

/// `struct xfs_fsop_geom`, as far as it is read here.
#[repr(C)]
struct XfsGeometry {
    block_size: u32,
    rt_extent_size: u32,
    ag_blocks: u32,
    ag_count: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    max_percent: u32,
    data_blocks: u64,
    rest: [u64; 27],
}

/// `struct xfs_growfs_data`
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    max_percent: u32,
}

/// Grows the filesystem at `mount_point` to the size of its device. Nothing happens when it has it.
pub(super) fn fill(device: &LoopDevice, fs: BlockFs, mount_point: &Path) -> io::Result<()> {
    let mut file = device.file();
    let bytes = file.seek(SeekFrom::End(0))?;
    match fs {
        BlockFs::Ext4 => {
            let block = 1024 << le32(file, EXT4_SUPERBLOCK + 24)?;
            let now = u64::from(le32(file, EXT4_SUPERBLOCK + 4)?);
            let now = now | u64::from(le32(file, EXT4_SUPERBLOCK + 0x150)?) << 32;
            let blocks = bytes / block;
            // A last group that is too small to be one is left out.
            if blocks.saturating_sub(now) <= SMALLEST_GAIN / block {
                return Ok(());
            }
            let (_open, raw) = directory(mount_point)?;
            // SAFETY: the argument is a number of blocks that outlives the call.
            check(unsafe { libc::ioctl(raw, EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
        }
        BlockFs::Xfs => {
            let (_open, raw) = directory(mount_point)?;
            // SAFETY: numbers only, for which zeroes are valid.
            let mut geometry: XfsGeometry = unsafe { std::mem::zeroed() };
            // SAFETY: the argument is a `struct xfs_fsop_geom` that outlives the call.
            check(unsafe { libc::ioctl(raw, XFS_IOC_FSGEOMETRY as _, &raw mut geometry) })?;
            let blocks = bytes / u64::from(geometry.block_size.max(512));
            if blocks.saturating_sub(geometry.data_blocks) * BLOCK <= SMALLEST_GAIN {
                return Ok(());
            }
            let grow = XfsGrow { blocks, max_percent: geometry.max_percent };
            // SAFETY: the argument is a `struct xfs_growfs_data` that outlives the call.
            check(unsafe { libc::ioctl(raw, XFS_IOC_FSGROWFSDATA as _, &raw const grow) })
        }
    }
}

/// What a filesystem may leave of its device.
const SMALLEST_GAIN: u64 = 1 << 20;

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const _: () = assert!(size_of::<XfsGeometry>() == 256 && size_of::<XfsGrow>() == 16);
