//! The few kernel calls that std does not offer.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

/// Descriptor `number`, if we were started with it.
pub(crate) fn inherited(number: RawFd) -> Option<File> {
    // SAFETY: F_GETFD only looks. An open descriptor of this number was handed to us by the caller; nothing else
    // in the process owns it, because this runs before anything is opened.
    unsafe { (libc::fcntl(number, libc::F_GETFD) >= 0).then(|| File::from_raw_fd(number)) }
}

/// Ignores what must not end us while the container writes, and turns SIGTERM into a readable file.
pub(crate) fn ignore_and_catch_signals() -> io::Result<File> {
    // SAFETY: plain calls with a set that lives on this stack; no handler is installed, and the descriptor that
    // signalfd returns is new and ours.
    unsafe {
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Waits until one of the files can be read or has ended; says which. All `false` after the time is over.
pub(crate) fn poll<const N: usize>(files: [Option<&File>; N], timeout: Option<Duration>) -> [bool; N] {
    let mut entries = files.map(|file| libc::pollfd {
        fd: file.map_or(-1, AsRawFd::as_raw_fd), // negative entries are skipped
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up, so that a rest below a millisecond does not become a busy loop.
    let millis = timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis() + 1).unwrap_or(i32::MAX));
    // SAFETY: the array outlives the call and its length is given.
    if unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, millis) } <= 0 {
        return [false; N];
    }
    entries.map(|entry| entry.revents != 0)
}

/// Appends to `buffer` what one read gives, as long as it has room; nothing else in it is touched.
pub(crate) fn read(file: &File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let room = buffer.spare_capacity_mut();
    // SAFETY: the kernel writes within the room, whose length is given.
    let read = unsafe { libc::read(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
    let read = usize::try_from(read).map_err(|_negative| io::Error::last_os_error())?;
    // SAFETY: so many bytes behind the old end have just been written.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

/// Position of the first newline. The C library's search is several times faster than a loop over bytes.
pub(crate) fn find_newline(bytes: &[u8]) -> Option<usize> {
    // SAFETY: reads only within the slice; the result is null or points into it.
    unsafe {
        let found = libc::memchr(bytes.as_ptr().cast(), i32::from(b'\n'), bytes.len()).cast::<u8>();
        (!found.is_null()).then(|| found.offset_from_unsigned(bytes.as_ptr()))
    }
}

/// The file, whose calls wait from now on.
pub(crate) fn blocking(file: File) -> io::Result<File> {
    // SAFETY: both calls only read and set the flags of a descriptor that `file` owns.
    let result = unsafe {
        match libc::fcntl(file.as_raw_fd(), libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK),
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// Takes the exits of children as they come. Returns only if the kernel denies the wait.
pub(crate) fn reap_children() {
    // SAFETY: plain calls with values on this stack. The signal is blocked first, so that none is lost between the look
    // and the wait, and no handler is installed.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let mut signal = 0;
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            if libc::sigwait(&set, &mut signal) != 0 {
                return;
            }
        }
    }
}
