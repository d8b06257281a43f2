//! Version facts.

use std::time::Duration;

use super::containerd::Shared;
use super::{Error, RuntimeInfo};

/// See [`super::Runtime::info`].
pub(super) async fn info(shared: &Shared) -> Result<RuntimeInfo, Error> {
    let version = version(shared).await?;
    let oci_runtime =
        shared.oci_runtime.get_or_init(|| oci_runtime(shared.options.oci_runtime.as_deref())).await.clone();
    Ok(RuntimeInfo { version, oci_runtime, snapshotter: shared.containerd.snapshotter().to_owned() })
}

/// containerd's version, such as `1.6.20`.
pub(super) async fn version(shared: &Shared) -> Result<String, Error> {
    let containerd = &shared.containerd;
    let answer = containerd.version().version(containerd.request(())).await;
    let answer = answer.map_err(|status| containerd.error("asking for containerd's version", status))?;
    Ok(tidy(&answer.into_inner().version))
}

/// Whether the kernel (`mount_setattr`, 5.12) and the OCI runtime (`rro`) make mounts read-only with all that is below.
pub(super) async fn recursive_read_only(shared: &Shared) -> bool {
    let runtime = shared.oci_runtime.get_or_init(|| oci_runtime(shared.options.oci_runtime.as_deref())).await;
    let kernel = rustix::system::uname();
    at_least(&kernel.release().to_string_lossy(), (5, 12)) && knows_rro(runtime)
}

fn knows_rro(runtime: &str) -> bool {
    match runtime.split_once(' ') {
        Some(("runc", version)) => at_least(version, (1, 1)),
        Some(("crun", version)) => at_least(version, (1, 8)),
        _ => false,
    }
}

/// Whether a version is this one or a later one.
pub(super) fn at_least(version: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

/// Distributions add to the number: `1.6.20~ds1`, `v2.1.9`.
fn tidy(version: &str) -> String {
    let version = version.trim_start_matches('v');
    version.split(['~', '+']).next().unwrap_or(version).to_owned()
}

/// Asks the program itself, once: containerd before 2.0 does not know.
async fn oci_runtime(program: Option<&str>) -> String {
    let program = program.unwrap_or("runc");
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(Duration::from_secs(2), command.output()).await else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "runc version 1.1.5+ds1", "crun version 1.8".
    let mut words = text.lines().next().unwrap_or_default().split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(name), Some("version"), Some(version)) => format!("{name} {}", tidy(version)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_runtimes_do_not_know_recursion() {
        for (runtime, knows) in
            [("runc 1.1.5", true), ("runc 1.0.0-rc93", false), ("crun 1.8.1", true), ("crun 0.17", false), ("", false)]
        {
            assert_eq!(knows_rro(runtime), knows, "{runtime}");
        }
        assert!(at_least("6.18.44-fc", (5, 12)) && !at_least("5.10.0-28-amd64", (5, 12)));
    }
}
