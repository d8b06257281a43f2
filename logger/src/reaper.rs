//! The first process of a process namespace that several containers share: it is there, and takes the exit of every
//! process whose parent has gone. It never ends by itself; the kernel ends everything in the namespace with it.

use std::process::ExitCode;

/// Started by this name we are such a process.
pub(crate) const NAME: &str = "nodelet-reaper";

/// Runs until it is killed.
pub(crate) fn run() -> ExitCode {
    crate::sys::reap_children();
    ExitCode::FAILURE
}
