//! A filesystem of its own in a file.
//!
//! # Contract
//! - The file is made under another name, gets its filesystem, reaches the disk and is then renamed: a file of the right
//!   name is never half made. Its space is reserved, so that a full disk is noticed here and not by a workload's write.
//! - A filesystem that was not unmounted is made whole from its journal when it is mounted; one that the kernel finds
//!   damaged is given to its checker once, in the checker's careful mode.
//! - It grows while it is mounted, and never shrinks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::loop_device::{self, LoopDevice};
use super::paths::invalid;
use super::{BlockFs, Error, io_error};
use crate::failpoint::passed;

mod grow;

/// Makes the file unless it is there, and gives it at least `size` bytes. Says why it could not grow, if so.
pub(super) fn ensure_file(file: &Path, fs: BlockFs, size: u64) -> Result<Option<Error>, Error> {
    let size = size - size % grow::BLOCK;
    if size < fs.smallest() {
        let message = format!("{size} bytes are too few for {}: at least {} are needed", fs.name(), fs.smallest());
        return Err(invalid("capacity", message));
    }
    let draft = file.with_extension("new");
    // Of a making that was interrupted.
    remove(&draft).map_err(io_error("removing", &draft))?;
    let found = match std::fs::metadata(file) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return make(file, &draft, fs, size).map(|()| None);
        }
        Err(error) => return Err(io_error("looking at", file)(error)),
    };
    if found >= size {
        return Ok(None);
    }
    let open = OpenOptions::new().write(true).open(file).map_err(io_error("opening", file))?;
    if let Err(error) = reserve(&open, found, size - found) {
        // What was taken before the disk was full is given back.
        let _ = open.set_len(found);
        return Ok(Some(io_error("growing", file)(error)));
    }
    passed("growing the file of a block volume");
    Ok(None)
}

fn make(file: &Path, draft: &Path, fs: BlockFs, size: u64) -> Result<(), Error> {
    let made = (|| {
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
        let open = open.map_err(io_error("making", draft))?;
        reserve(&open, 0, size).map_err(io_error("reserving the space of", draft))?;
        make_filesystem(draft, fs)?;
        open.sync_all().map_err(io_error("writing", draft))?;
        passed("making the filesystem of a block volume");
        std::fs::rename(draft, file).map_err(io_error("renaming", draft))?;
        let dir = file.parent().unwrap_or(file);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("writing", dir))
    })();
    if made.is_err() {
        let _ = remove(draft);
    }
    made
}

fn reserve(file: &File, from: u64, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), from, length) {
        // It is then taken as it is written.
        Err(Errno::OPNOTSUPP) => file.set_len(from + length),
        other => Ok(other?),
    }
}

fn make_filesystem(file: &Path, fs: BlockFs) -> Result<(), Error> {
    // Nothing of the reserved space is given back, and nothing is kept for root.
    let (program, package, arguments): (_, _, &[&str]) = match fs {
        BlockFs::Ext4 => ("mkfs.ext4", "e2fsprogs", &["-q", "-F", "-m", "0", "-E", "nodiscard"]),
        BlockFs::Xfs => ("mkfs.xfs", "xfsprogs", &["-q", "-f", "-K"]),
    };
    let mut command = Command::new(find_program(program).ok_or_else(|| {
        invalid("block.fsType", format!("{program} is not on this node: install the package {package}"))
    })?);
    run(command.args(arguments).arg(file), |code| code == 0)
        .map_err(|source| Error::Io { doing: format!("making {} in {}", fs.name(), file.display()), source })
}

/// The daemon's `PATH` may lack the directories of the system's programs.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(name)).find(|program| program.is_file())
}

fn run(command: &mut Command, fine: impl Fn(i32) -> bool) -> io::Result<()> {
    let output = command.output()?;
    if output.status.code().is_some_and(fine) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let said = text.lines().filter(|line| !line.trim().is_empty()).take(5).collect::<Vec<_>>().join("; ");
    Err(io::Error::other(format!("{}: {said}", output.status)))
}

/// Mounts the file at `mount_point`, a directory, unless it is mounted there, and lets the filesystem fill it. Says why
/// it does not, if so.
pub(super) fn ensure_mounted(
    file: &Path,
    fs: BlockFs,
    mount_point: &Path,
    mounted: bool,
) -> Result<Option<Error>, Error> {
    let attach = || {
        loop_device::attach(file).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if !Path::new("/dev/loop-control").exists() => {
                invalid("block", "this node has no loop devices: load the kernel module loop".to_owned())
            }
            _ => Error::Io { doing: format!("attaching {} to a loop device", file.display()), source },
        })
    };
    let mut device = attach()?;
    if !mounted {
        passed("attaching a loop device");
        mount_checked(file, &mut device, fs, mount_point, attach)?;
        passed("mounting a block volume");
    }
    device.take_up_size().map_err(io_error("telling the size of", file))?;
    match grow::fill(&device, fs, mount_point) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && fs == BlockFs::Ext4 => {
            grow_unmounted(file, device, mount_point, attach)
        }
        Err(error) => Ok(Some(io_error("growing the filesystem of", file)(error))),
        Ok(()) => Ok(None),
    }
}

fn mount_checked(
    file: &Path,
    device: &mut LoopDevice,
    fs: BlockFs,
    mount_point: &Path,
    attach: impl Fn() -> Result<LoopDevice, Error>,
) -> Result<(), Error> {
    let failed = |error: Errno| io_error("mounting", file)(error.into());
    match mount_once(device, fs, mount_point) {
        // The kernel's words for "damaged", the second for ext4 and the last for media errors.
        Err(Errno::UCLEAN | Errno::INVAL | Errno::IO) => {}
        other => return other.map_err(failed),
    }
    let (program, argument) = match fs {
        BlockFs::Ext4 => ("e2fsck", "-p"),
        // It replays no journal and so refuses to touch one that is not empty; then the kernel's word stands.
        BlockFs::Xfs => ("xfs_repair", "-e"),
    };
    let Some(program) = find_program(program) else { return mount_once(device, fs, mount_point).map_err(failed) };
    tracing::warn!(file = %file.display(), "the filesystem is damaged: it is checked");
    // 1 and 4 say that errors were found and corrected.
    run(Command::new(program).arg(argument).arg(&device.path), |code| matches!(code, 0 | 1 | 4))
        .map_err(|source| Error::Io { doing: format!("repairing the filesystem in {}", file.display()), source })?;
    *device = attach()?;
    mount_once(device, fs, mount_point).map_err(failed)
}

fn mount_once(device: &LoopDevice, fs: BlockFs, mount_point: &Path) -> Result<(), Errno> {
    // A filesystem that turns out to be damaged is not written any more.
    let options = match fs {
        BlockFs::Ext4 => Some(c"errors=remount-ro"),
        BlockFs::Xfs => None,
    };
    mount(&device.path, mount_point, fs.name(), MountFlags::NODEV, options)
}

/// ext4 grows while mounted by the grace of `CAP_SYS_RESOURCE` only. Without it, and while no container uses it, it is
/// done in between.
fn grow_unmounted(
    file: &Path,
    device: LoopDevice,
    mount_point: &Path,
    attach: impl Fn() -> Result<LoopDevice, Error>,
) -> Result<Option<Error>, Error> {
    let busy = || {
        let message = "growing ext4 while it is used needs CAP_SYS_RESOURCE, which this agent lacks: it grows when the \
                       volume is first used by nobody, or use xfs";
        invalid("capacity", message.to_owned())
    };
    if unmount(mount_point, UnmountFlags::NOFOLLOW).is_err() {
        return Ok(Some(busy()));
    }
    // Kept by whoever else has it mounted.
    let kept = rustix::fs::openat(
        rustix::fs::CWD,
        &device.path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .is_err();
    let result = match (kept, find_program("e2fsck"), find_program("resize2fs")) {
        (true, ..) => Err(busy()),
        (false, Some(check), Some(resize)) => run(Command::new(check).arg("-fp").arg(&device.path), |code| code <= 1)
            .and_then(|()| run(Command::new(resize).arg(&device.path), |code| code == 0))
            .map_err(io_error("growing the filesystem of", file)),
        (false, ..) => Err(invalid("capacity", "resize2fs is not on this node: install e2fsprogs".to_owned())),
    };
    drop(device);
    mount_once(&attach()?, BlockFs::Ext4, mount_point).map_err(|error| io_error("mounting", file)(error.into()))?;
    Ok(result.err())
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a little-endian number of a superblock.
fn le32(file: &File, offset: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(u32::from_le_bytes(bytes))
}

/// The descriptor of a directory, for `ioctl`.
fn directory(path: &Path) -> io::Result<(File, i32)> {
    let file = File::open(path)?;
    let raw = file.as_raw_fd();
    Ok((file, raw))
}
