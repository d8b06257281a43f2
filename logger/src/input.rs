//! The input of a container without a terminal.
//!
//! A shim that gives a container's output to a logger gives it no input. So the input is a named pipe that the
//! container's program has as its descriptor 0, put there by us in the place of the OCI runtime, and that it never sees
//! the end of while the logger holds the other end. In the container's directory are:
//!
//! - `in`: the pipe. Whoever is attached writes to it.
//! - `end`: another one. What is written there makes the logger let go of `in`, so that the program reads its end once
//!   nobody else holds it.
//! - `oci-runtime`: a link to this program, which the shim runs as the OCI runtime.
//! - `runtime`: a file with the name or path of the real one.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Started by this name we stand in for the OCI runtime.
pub(crate) const RUNTIME: &str = "oci-runtime";

/// A container's input that is held open.
#[derive(Debug)]
pub(crate) struct Held {
    _input: Option<File>,
    end: Option<File>,
}

impl Held {
    /// Opens both pipes of `directory`; what is not there is not held.
    pub(crate) fn open(directory: &Path) -> Self {
        // For reading too, so that it does not wait for the other end.
        let open = |name| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(directory.join(name)).ok()
        };
        Self { _input: open("in"), end: open("end") }
    }

    /// Readable once the input is to be let go.
    pub(crate) fn end(&self) -> Option<&File> {
        self.end.as_ref()
    }
}

/// Becomes the real OCI runtime. One that makes a container has the input as its own, and passes it on.
pub(crate) fn run_runtime() -> ExitCode {
    let mut args = std::env::args_os();
    let own = args.next().map(PathBuf::from).unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    let directory = own.parent().unwrap_or(Path::new("/"));
    let runtime = match std::fs::read(directory.join("runtime")) {
        Ok(name) => OsString::from_vec(name),
        Err(error) => {
            return failed(&format!("reading the name of the OCI runtime in {}", directory.display()), &error);
        }
    };
    let mut command = Command::new(&runtime);
    command.args(&args);
    if args.iter().any(|arg| arg == "create") {
        // The logger is ready by now and has the other end.
        let input = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(directory.join("in"));
        match input.and_then(crate::sys::blocking) {
            Ok(input) => {
                command.stdin(input);
            }
            Err(error) => return failed("opening the container's input", &error),
        }
    }
    let error = command.exec();
    failed(&format!("running {}", runtime.display()), &error)
}

/// The shim reports what its OCI runtime says.
#[allow(clippy::print_stderr)]
fn failed(doing: &str, error: &std::io::Error) -> ExitCode {
    eprintln!("nodelet-logger: {doing}: {error}");
    ExitCode::FAILURE
}
