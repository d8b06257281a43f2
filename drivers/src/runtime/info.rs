//! Version facts.

use std::time::Duration;

use super::containerd::Shared;
use super::{Error, RuntimeInfo};

/// See [`super::Runtime::info`].
pub(super) async fn info(shared: &Shared) -> Result<RuntimeInfo, Error> {
    let containerd = &shared.containerd;
    let answer = containerd.version().version(containerd.request(())).await;
    let version =
        answer.map_err(|status| containerd.error("asking for containerd's version", status))?.into_inner().version;
    let oci_runtime =
        shared.oci_runtime.get_or_init(|| oci_runtime(shared.options.oci_runtime.as_deref())).await.clone();
    Ok(RuntimeInfo { version: tidy(&version), oci_runtime, snapshotter: containerd.snapshotter().to_owned() })
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
