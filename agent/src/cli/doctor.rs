//! `nodelet doctor`: what on this node would keep nodelet from working, and what to do about it.

mod checks;

use std::time::Duration;

use clap::Args;
use nodelet_drivers::containerd::Containerd;
use nodelet_drivers::runtime::{ContainerdRuntime, Options, Runtime};
use serde::Serialize;
use serde_json::json;

use super::output::{Output, Paint};
use super::{Global, Outcome, session};
use crate::config::NodeletConfiguration;
use crate::manifest::chain;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    pub(super) message: String,
    /// What to do; empty if nothing is.
    pub(super) remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, message: message.into(), remedy: String::new() }
    }

    pub(super) fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, message: message.into(), remedy: remedy.into() }
    }

    pub(super) fn failed(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Failed, message: message.into(), remedy: remedy.into() }
    }
}

pub(crate) async fn doctor(_: &DoctorArgs, global: &Global, output: &Output) -> anyhow::Result<Outcome> {
    let mut findings = Vec::new();
    let configuration = match session::configuration(global) {
        Ok(configuration) => {
            findings.push(Finding::ok("configuration", "valid"));
            configuration
        }
        Err(error) => {
            findings.push(Finding::failed(
                "configuration",
                chain(&error),
                "correct it; the other checks use the defaults",
            ));
            NodeletConfiguration::default()
        }
    };
    let here = configuration.clone();
    findings.extend(tokio::task::spawn_blocking(move || checks::all(&here)).await?);
    findings.push(containerd(&configuration).await);
    findings.push(agent(global).await);

    let is_healthy = findings.iter().all(|finding| finding.verdict != Verdict::Failed);
    if !output.structured(&json!({"healthy": is_healthy, "checks": findings}))? {
        for Finding { check, verdict, message, remedy } in &findings {
            let (word, paint) = match verdict {
                Verdict::Ok => ("ok     ", Paint::Good),
                Verdict::Warning => ("warning", Paint::Warn),
                Verdict::Failed => ("FAILED ", Paint::Bad),
            };
            output.line(format!("{} {check}: {message}", output.paint(word, paint)))?;
            if !remedy.is_empty() {
                output.line(format!("        -> {remedy}"))?;
            }
        }
    }
    Ok(if is_healthy { Outcome::Done } else { Outcome::Failed })
}

/// Whether containerd answers, and as what.
async fn containerd(configuration: &NodeletConfiguration) -> Finding {
    const CHECK: &str = "containerd";
    let runtime = &configuration.runtime;
    let remedy = if runtime.managed {
        "`nodelet run` starts an own one (runtime.managed); install the containerd package if there is none"
    } else {
        "start it (`systemctl start containerd`), correct runtime.address, or set runtime.managed: true"
    };
    let connection = match Containerd::new(&runtime.address, &runtime.namespace, &runtime.snapshotter) {
        Ok(connection) => connection,
        Err(error) => return Finding::failed(CHECK, chain(&error), "correct the configuration"),
    };
    let driver =
        ContainerdRuntime::new(connection, Options { run_dir: configuration.run_dir.clone(), ..Default::default() });
    let info = match tokio::time::timeout(Duration::from_secs(5), driver.info()).await {
        Ok(Ok(info)) => info,
        Ok(Err(_)) if runtime.managed && checks::in_path("containerd") => {
            return Finding::warning(CHECK, format!("none at {} yet", runtime.address.display()), remedy);
        }
        Ok(Err(error)) => return Finding::failed(CHECK, chain(&error), remedy),
        Err(_) => {
            return Finding::failed(
                CHECK,
                format!("{} accepts, and does not answer", runtime.address.display()),
                "restart it",
            );
        }
    };
    let message = format!("{} with {}, snapshotter {}", info.version, info.oci_runtime, info.snapshotter);
    if !checks::is_supported(&info.version) {
        return Finding::failed(CHECK, message, "install containerd 1.6, 1.7 or 2.x");
    }
    if info.oci_runtime.is_empty() {
        return Finding::failed(CHECK, format!("{}, and no OCI runtime", info.version), "install runc or crun");
    }
    Finding::ok(CHECK, message)
}

/// Whether the agent runs.
async fn agent(global: &Global) -> Finding {
    match session::client(global).await {
        Ok(_) => Finding::ok("agent", "runs"),
        Err(error) => {
            Finding::warning("agent", chain(error.as_ref()), "start it: `systemctl start nodelet`, or `nodelet run`")
        }
    }
}
