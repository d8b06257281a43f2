//! User namespaces of sandboxes: which users of the node stand for those inside, and the making of a namespace.
//!
//! Each has as many users as a file can name in the old way, 65,536 from 0, as the kubelet gives them. On the node they
//! are a block of their own between 0x70000000 and 0x80000000, which nobody else uses: systemd leaves that range free,
//! and login names and `subuid(5)` are far below.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

/// Users and groups of a namespace.
pub const SIZE: u32 = 1 << 16;
/// The first of the node's that stand for some.
const FIRST: u32 = 0x7000_0000;
/// One after the last.
const END: u32 = 0x8000_0000;

/// The block of a sandbox, as it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    /// The node's user, and group, that is 0 inside.
    pub(super) first: u32,
}

impl Block {
    /// The lowest that is not taken; `None` when all are.
    pub(super) fn free(taken: &BTreeSet<u32>) -> Option<Self> {
        let firsts = (FIRST..END).step_by(SIZE as usize);
        firsts.into_iter().find(|first| !taken.contains(first)).map(|first| Self { first })
    }
}

/// A process that holds namespaces until it is dropped.
pub(super) struct Holder {
    pid: libc::pid_t,
    /// It waits for the other end to be closed.
    _release: OwnedFd,
}

impl Holder {
    /// Makes namespaces of these kinds in a user namespace, which is `joined` or a new one with the users of `block`. Only
    /// a process with a single thread may enter a user namespace (`setns(2)`, `unshare(2)`), and they belong to the one that
    /// their maker is in.
    pub(super) fn start(joined: Option<&File>, kinds: UnshareFlags, block: Block) -> io::Result<Self> {
        let (ready, told) = pipe_with(PipeFlags::CLOEXEC)?;
        let (held, release) = pipe_with(PipeFlags::CLOEXEC)?;
        let joined_fd = joined.map(AsRawFd::as_raw_fd);
        let mut kinds = i32::try_from(kinds.bits()).map_err(io::Error::other)?;
        if joined.is_none() {
            kinds |= libc::CLONE_NEWUSER;
        }
        // SAFETY: the child of a process with several threads may only call what is async-signal-safe, and `hold` does.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: this is the child, and its copies of the descriptors are open.
            0 => unsafe { hold(joined_fd, kinds, told.as_raw_fd(), held.as_raw_fd(), release.as_raw_fd()) },
            pid => pid,
        };
        let holder = Self { pid, _release: release };
        drop(told);
        let mut answer = [0; 4];
        if rustix::io::read(&ready, &mut answer)? != answer.len() {
            return Err(io::Error::other("the process that makes them died"));
        }
        match i32::from_ne_bytes(answer) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        if joined.is_none() {
            let map = format!("0 {} {SIZE}", block.first);
            std::fs::write(holder.path("uid_map"), &map)?;
            std::fs::write(holder.path("gid_map"), &map)?;
        }
        Ok(holder)
    }

    /// A file of the process below `/proc`.
    pub(super) fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: the pid is that of our child until it is waited for, which happens here only.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// What the child does; it says the error number, 0 for none, and waits.
///
/// # Safety
/// To be called in a child only, with open descriptors. All it calls is async-signal-safe.
unsafe fn hold(joined: Option<i32>, kinds: i32, told: i32, held: i32, release: i32) -> ! {
    // SAFETY: as of this function; the buffers outlive the calls.
    unsafe {
        // Nobody is left behind when the agent is killed now.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(release);
        let made = joined.is_none_or(|fd| libc::setns(fd, libc::CLONE_NEWUSER) == 0) && libc::unshare(kinds) == 0;
        let errno = if made { 0 } else { *libc::__errno_location() };
        let answer = errno.to_ne_bytes();
        libc::write(told, answer.as_ptr().cast(), answer.len());
        let mut nothing = [0u8; 1];
        libc::read(held, nothing.as_mut_ptr().cast(), 1);
        libc::_exit(0)
    }
}

/// The block recorded at `path`.
pub(super) fn read(path: &Path) -> Option<Block> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_end() {
        assert_eq!(Block::free(&BTreeSet::new()).unwrap().first, FIRST);
        assert_eq!(Block::free(&[FIRST, FIRST + 2 * SIZE].into()).unwrap().first, FIRST + SIZE);
        let all: BTreeSet<u32> = (FIRST..END).step_by(SIZE as usize).collect();
        assert_eq!(all.len(), 4096);
        assert_eq!(Block::free(&all), None);
    }
}
