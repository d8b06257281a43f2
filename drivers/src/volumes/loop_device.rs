//! Loop devices: a file of the node as a block device.
//!
//! # Contract
//! - A file has one loop device at most: two of them would be two filesystems that overwrite each other. One that is
//!   still there, perhaps kept by a mount in another namespace, is found by the file's identity and used again.
//! - The kernel frees a device when its last user is gone (`LO_FLAGS_AUTOCLEAR`), so a killed agent leaks none.
//!
//! Facts: `loop(4)`, `include/uapi/linux/loop.h`. `LOOP_CONFIGURE` needs Linux 5.8.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

const LOOP_CTL_GET_FREE: u32 = 0x4C82;
const LOOP_GET_STATUS64: u32 = 0x4C05;
const LOOP_SET_CAPACITY: u32 = 0x4C07;
const LOOP_CONFIGURE: u32 = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LOOP_MAJOR: u32 = 7;
/// Others take free devices too.
const TRIES: u32 = 64;

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An open loop device. It exists for as long as this is open or something of it is mounted.
#[derive(Debug)]
pub(super) struct LoopDevice {
    device: File,
    /// Such as `/dev/loop3`.
    pub(super) path: PathBuf,
}

/// The device of this file: the one it has, else a new one.
pub(super) fn attach(backing: &Path) -> io::Result<LoopDevice> {
    let file = OpenOptions::new().read(true).write(true).open(backing)?;
    if let Some(device) = find(backing)? {
        return Ok(device);
    }
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        // SAFETY: takes no argument; the descriptor is open.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
        let number = u32::try_from(number).map_err(io::Error::other)?;
        let device = open(number)?;
        let mut config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 0,
            info: empty_info(),
            reserved: [0; 8],
        };
        config.info.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
        let name = backing.as_os_str().as_encoded_bytes();
        let length = name.len().min(config.info.file_name.len() - 1);
        config.info.file_name[..length].copy_from_slice(&name[..length]);
        // SAFETY: the argument is a `struct loop_config` that outlives the call.
        match check(unsafe { libc::ioctl(device.device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }) {
            Ok(_) => return Ok(device),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no loop device is free"))
}

/// The device of this file, if it has one.
pub(super) fn find(backing: &Path) -> io::Result<Option<LoopDevice>> {
    let wanted = std::fs::metadata(backing)?;
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else { continue };
        // Present only while the device has a file.
        if !Path::new("/sys/block").join(&name).join("loop/backing_file").exists() {
            continue;
        }
        let Ok(device) = open(number) else { continue };
        if device.info().is_ok_and(|info| info.inode == wanted.ino() && same_device(info.device, wanted.dev())) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// The kernel reports the number in its own encoding, `stat` in that of libc.
fn same_device(of_kernel: u64, of_stat: u64) -> bool {
    let (major, minor) = (rustix::fs::major(of_stat), rustix::fs::minor(of_stat));
    let new = u64::from((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
    of_kernel == of_stat || of_kernel == new
}

fn open(number: u32) -> io::Result<LoopDevice> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    let device = match open() {
        // In a container /dev does not follow the kernel.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, makedev(LOOP_MAJOR, number))?;
            open()?
        }
        other => other?,
    };
    Ok(LoopDevice { device, path })
}

impl LoopDevice {
    /// Takes up that its file has grown.
    pub(super) fn take_up_size(&self) -> io::Result<()> {
        // SAFETY: takes no argument; the descriptor is open.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY as _, 0) }).map(drop)
    }

    /// The device, to read from.
    pub(super) fn file(&self) -> &File {
        &self.device
    }

    fn info(&self) -> io::Result<LoopInfo> {
        let mut info = empty_info();
        // SAFETY: the argument is a `struct loop_info64` that outlives the call.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) })?;
        Ok(info)
    }
}

fn empty_info() -> LoopInfo {
    // SAFETY: numbers and arrays of numbers only, for which zeroes are valid.
    unsafe { std::mem::zeroed() }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_device_which_goes_with_its_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        assert!(find(&file).unwrap().is_none());
        let first = attach(&file).unwrap();
        let second = attach(&file).unwrap();
        assert_eq!(first.path, second.path);
        OpenOptions::new().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
        second.take_up_size().unwrap();
        let mut end = first.file();
        assert_eq!(io::Seek::seek(&mut end, io::SeekFrom::End(0)).unwrap(), 2 << 20);
        drop((first, second));
        // The device is freed behind the close.
        for _ in 0..1000 {
            if find(&file).unwrap().is_none() {
                return;
            }
            std::thread::yield_now();
        }
        panic!("the device is still there");
    }
}
