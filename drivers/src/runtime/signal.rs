//! Signals: their names, and the ways they reach a container.

use std::path::PathBuf;

use containerd_client::services::v1::KillRequest;
use rustix::process::Signal;

use super::containerd::Shared;
use super::record::{self, Journal};
use super::{Error, TaskState, list};
use crate::cgroups::Version;
use crate::containerd::is_not_found;
use crate::ids::{CgroupPath, ContainerId};

const NAMES: &[(&str, i32)] = &[
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGIO),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];
/// Real-time signals as programs see them: the C library keeps the kernel's first two for itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Number of a signal given as `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3` or `RTMAX-1`.
pub(super) fn parse(signal: &str) -> Result<i32, Error> {
    let upper = signal.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name.parse::<i32>().ok().or_else(|| {
        let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
            .or_else(|| name.strip_prefix("RTMIN").and_then(offset).map(|n| RTMIN + n))
            .or_else(|| name.strip_prefix("RTMAX").and_then(offset).map(|n| RTMAX + n))
    });
    number.filter(|n| (1..=RTMAX).contains(n)).ok_or_else(|| Error::Invalid {
        field: "lifecycle.stopSignal".to_owned(),
        message: format!("{signal:?} is not a signal; use a name such as SIGTERM or a number"),
    })
}

/// See [`super::Runtime::stop_signal`].
pub(super) async fn stop_signal(shared: &Shared, id: &ContainerId) -> Result<String, Error> {
    Ok(record::journal(shared, id).await?.stop_signal)
}

/// See [`super::Runtime::kill`].
pub(super) async fn kill(shared: &Shared, id: &ContainerId, signal: &str, all: bool) -> Result<(), Error> {
    let number = parse(signal)?;
    if all { kill_all(shared, id, number).await } else { kill_first(shared, id, number).await }
}

/// A signal to the first process goes straight to the kernel: at once, and also while containerd is away.
async fn kill_first(shared: &Shared, id: &ContainerId, number: i32) -> Result<(), Error> {
    if shared.exits.process(id).is_none() {
        // Not seen yet since our start: `get` begins to watch it.
        let state = list::get(shared, id).await?.map(|container| container.state);
        if !matches!(state, Some(TaskState::Running { .. } | TaskState::Created { .. } | TaskState::Paused { .. })) {
            return Ok(());
        }
    }
    let (Some(process), Some(signal)) = (shared.exits.process(id), Signal::from_named_raw(number)) else {
        // A real-time signal, or a kernel without pidfds.
        return by_task(shared, id, number, false).await;
    };
    match rustix::process::pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(_) => by_task(shared, id, number, false).await,
    }
}

/// A signal to all processes of the container.
pub(super) async fn kill_all(shared: &Shared, id: &ContainerId, number: i32) -> Result<(), Error> {
    if number == libc::SIGKILL
        && let Some(journal) = record::get(shared, id).await?.as_ref().and_then(Journal::of)
    {
        let cgroup = journal.spec.cgroup;
        match shared.node.cgroup_version {
            Version::V2 if kill_cgroup(shared, &cgroup) => return Ok(()),
            Version::V2 => {}
            Version::V1 => kill_hierarchies(shared, id, cgroup).await,
        }
    }
    by_task(shared, id, number, true).await
}

/// The OCI runtime looks into the hierarchy `devices` alone, which systemd may have moved the processes out of; then it
/// kills nobody, and says that all is well.
async fn kill_hierarchies(shared: &Shared, id: &ContainerId, cgroup: CgroupPath) {
    let Some(above) = cgroup.above() else { return };
    let cgroups = shared.node.cgroups(above);
    match tokio::task::spawn_blocking(move || cgroups.kill(&cgroup)).await {
        Ok(Ok(())) => {}
        // The OCI runtime has its turn all the same.
        Ok(Err(error)) => tracing::warn!(container = %id, %error, "killing by the cgroup"),
        Err(error) => tracing::warn!(container = %id, %error, "killing by the cgroup"),
    }
}

/// One write kills everything in the cgroup, whatever it forks meanwhile (Linux 5.14).
fn kill_cgroup(shared: &Shared, cgroup: &CgroupPath) -> bool {
    let dir: PathBuf = shared.node.cgroup_root.join(cgroup.as_str().trim_start_matches('/'));
    std::fs::write(dir.join("cgroup.kill"), "1").is_ok()
}

/// By the shim, which runs the OCI runtime for it.
async fn by_task(shared: &Shared, id: &ContainerId, number: i32, all: bool) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(KillRequest {
        container_id: id.to_string(),
        signal: u32::try_from(number).unwrap_or(0),
        all,
        ..Default::default()
    });
    match containerd.tasks().kill(request).await {
        Ok(_) => Ok(()),
        Err(status) if is_not_found(&status) => Ok(()),
        // crun and newer shims say so in their own words.
        Err(status) if status.message().contains("process already finished") => Ok(()),
        Err(status) => Err(containerd.error(format!("sending signal {number} to container {id}"), status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGQUIT", 3),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNOPE", "RTMIN+99", "SIG", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
