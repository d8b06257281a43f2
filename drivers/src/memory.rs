//! How the process gets its memory from the system.

#![allow(unsafe_code)]

/// Lets all threads share one heap of the C library, which else makes eight for each processor. What a pull has in its
/// buffers moves from thread to thread, and each heap keeps what was once in it: with one heap a pull of large layers
/// adds a third less to the process. Before the first thread is started; does nothing with other C libraries.
pub fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes two numbers, and may be made at any time.
    let _kept_as_it_was = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
