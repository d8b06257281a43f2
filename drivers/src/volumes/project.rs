//! Projects of a filesystem: a number that a directory gives to all that is made in it, by which the filesystem counts
//! and limits the space together.
//!
//! Facts: `quotactl(2)`, `ioctl_xfs_fsgetxattr(2)`, `include/uapi/linux/{fs,dqblk_xfs}.h`. The commands that XFS began
//! with are understood by every filesystem with quotas. `quotactl_fd` needs Linux 5.14.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `struct fsxattr`
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    reserved: [u8; 8],
}

const GET: Opcode = opcode::read::<Attributes>(b'X', 31);
const SET: Opcode = opcode::write::<Attributes>(b'X', 32);
/// What is made in the directory gets its project.
const INHERIT: u32 = 0x200;

/// `struct fs_disk_quota`
#[repr(C)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    block_hard_limit: u64,
    block_soft_limit: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    blocks: u64,
    inodes: u64,
    rest: [u64; 7],
}

const DISK_QUOTA_VERSION: i8 = 1;
const PROJECT_QUOTA: i8 = 2;
/// Both limits of blocks.
const BLOCK_LIMITS: u16 = 1 << 2 | 1 << 3;
/// Bytes of what quotas are counted in.
const BLOCK: u64 = 512;

/// `struct fs_quota_statv`
#[repr(C)]
struct QuotaState {
    version: i8,
    pad: u8,
    flags: u16,
    in_core: u32,
    rest: [u64; 19],
}

const QUOTA_STATE_VERSION: i8 = 1;
const ACCOUNTED: u16 = 1 << 4;
const ENFORCED: u16 = 1 << 5;

const GET_QUOTA: u32 = command(3);
const SET_LIMIT: u32 = command(4);
const GET_STATE: u32 = command(8);

/// Of projects.
const fn command(number: u32) -> u32 {
    const PROJECTS: u32 = 2;
    (((b'X' as u32) << 8) + number) << 8 | PROJECTS
}

/// What a filesystem does about projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// Nothing.
    None,
    /// It counts.
    Counted,
    /// It counts and limits.
    Enforced,
}

/// What a project has and may have, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quota {
    /// Absent: as much as there is.
    pub(super) limit: Option<u64>,
    /// What it has.
    pub(super) used: u64,
    /// Files and directories, of whatever size.
    pub(super) files: u64,
}

/// What the filesystem of `file` does about projects.
pub(super) fn support(file: impl AsFd) -> io::Result<Support> {
    let mut state = QuotaState { version: QUOTA_STATE_VERSION, pad: 0, flags: 0, in_core: 0, rest: [0; 19] };
    // SAFETY: a `struct fs_quota_statv` of the version that it names, which outlives the call.
    match unsafe { quotactl(&file, GET_STATE, 0, &raw mut state) } {
        Ok(()) if state.flags & ENFORCED != 0 => Ok(Support::Enforced),
        Ok(()) if state.flags & ACCOUNTED != 0 => Ok(Support::Counted),
        Ok(()) => Ok(Support::None),
        // No quotas in the kernel, in the filesystem, or switched on; EINVAL: of this type; ENOTBLK: without a disk.
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL | libc::ESRCH | libc::ENOTBLK | libc::EOPNOTSUPP) => Ok(Support::None),
            _ => Err(error),
        },
    }
}

/// The project of a file or directory; of a directory, whether what is made in it gets it.
pub(super) fn of(file: impl AsFd) -> io::Result<(u32, bool)> {
    let attributes = attributes(file)?;
    Ok((attributes.project, attributes.flags & INHERIT != 0))
}

/// Puts a file or directory into a project; 0 is none. `inherited`: and what is made in this directory, too.
pub(super) fn put(file: impl AsFd, project: u32, inherited: bool) -> io::Result<()> {
    let found = attributes(&file)?;
    let flags = if inherited { found.flags | INHERIT } else { found.flags & !INHERIT };
    if found.project == project && found.flags == flags {
        return Ok(());
    }
    // SAFETY: the command takes a `struct fsxattr`.
    let command = unsafe { Setter::<SET, Attributes>::new(Attributes { project, flags, ..found }) };
    // SAFETY: it reads what it is given.
    Ok(unsafe { ioctl(file, command) }?)
}

fn attributes(file: impl AsFd) -> io::Result<Attributes> {
    // SAFETY: the command fills a `struct fsxattr`.
    let command = unsafe { Getter::<GET, Attributes>::new() };
    // SAFETY: it writes no more than that.
    Ok(unsafe { ioctl(file, command) }?)
}

/// What the project has on the filesystem of `file`.
pub(super) fn quota(file: impl AsFd, project: u32) -> io::Result<Quota> {
    let mut quota = empty(project);
    // SAFETY: a `struct fs_disk_quota` that outlives the call.
    match unsafe { quotactl(&file, GET_QUOTA, project, &raw mut quota) } {
        Ok(()) => Ok(Quota {
            limit: (quota.block_hard_limit != 0).then_some(quota.block_hard_limit.saturating_mul(BLOCK)),
            used: quota.blocks.saturating_mul(BLOCK),
            files: quota.inodes,
        }),
        // It was never heard of.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Quota::default()),
        Err(error) => Err(error),
    }
}

/// Limits the project on the filesystem of `file` to so many bytes, or no longer.
pub(super) fn limit(file: impl AsFd, project: u32, bytes: Option<u64>) -> io::Result<()> {
    let mut quota = empty(project);
    quota.fields = BLOCK_LIMITS;
    // Nought is no limit.
    quota.block_hard_limit = bytes.map_or(0, |bytes| (bytes / BLOCK).max(1));
    // SAFETY: a `struct fs_disk_quota` that outlives the call.
    unsafe { quotactl(&file, SET_LIMIT, project, &raw mut quota) }
}

fn empty(id: u32) -> DiskQuota {
    DiskQuota {
        version: DISK_QUOTA_VERSION,
        flags: PROJECT_QUOTA,
        fields: 0,
        id,
        block_hard_limit: 0,
        block_soft_limit: 0,
        inode_hard_limit: 0,
        inode_soft_limit: 0,
        blocks: 0,
        inodes: 0,
        rest: [0; 7],
    }
}

/// # Safety
/// `data` is what the command takes, and stays so until it returns.
unsafe fn quotactl<T>(file: &impl AsFd, command: u32, id: u32, data: *mut T) -> io::Result<()> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: as the caller promises; the descriptor is open.
    match unsafe { libc::syscall(libc::SYS_quotactl_fd, file, command, id, data) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(
            [size_of::<Attributes>(), size_of::<DiskQuota>(), size_of::<QuotaState>()],
            [28, 112, 160],
            "as its headers have them"
        );
        assert_eq!([GET_QUOTA, SET_LIMIT, GET_STATE], [0x58_0302, 0x58_0402, 0x58_0802]);
    }

    #[test]
    fn filesystems_without_projects_are_told_apart_from_errors() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(support(&proc).unwrap(), Support::None);
    }
}
