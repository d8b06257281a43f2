//! `nodelet stop`, `start` and `restart`

use std::time::Duration;

use clap::Args;
use nodelet_crds::labels::RESTARTED_AT;
use serde_json::{Value, json};

use super::session::Session;
use super::{Outcome, apply, wait};

#[derive(Debug, Args)]
pub(crate) struct PowerArgs {
    /// The workloads
    #[arg(required = true, value_name = "WORKLOAD")]
    names: Vec<String>,
    /// Wait until it is done
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) async fn stop(args: &PowerArgs, session: &Session) -> anyhow::Result<Outcome> {
    patch(args, session, "stopped", &json!({"spec": {"stopped": true}})).await
}

pub(crate) async fn start(args: &PowerArgs, session: &Session) -> anyhow::Result<Outcome> {
    patch(args, session, "started", &json!({"spec": {"stopped": false}})).await
}

pub(crate) async fn restart(args: &PowerArgs, session: &Session) -> anyhow::Result<Outcome> {
    let now = jiff::Timestamp::now().to_string();
    patch(args, session, "restarted", &json!({"metadata": {"annotations": {RESTARTED_AT: now}}})).await
}

async fn patch(args: &PowerArgs, session: &Session, done: &str, patch: &Value) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("workloads")?;
    let mut changed = Vec::new();
    for name in &args.names {
        let name = name.rsplit('/').next().unwrap_or(name);
        let path = kind.path(Some(&session.namespace), Some(name));
        let object = session.client.merge(&path, apply::FIELD_MANAGER, patch).await?;
        if !session.output.is_json() {
            session.output.line(format!("{}/{name} {done}", kind.qualified()))?;
        }
        changed.push(object);
    }
    session.output.structured(&json!({"apiVersion": "v1", "kind": "List", "items": changed}))?;
    if !args.wait {
        return Ok(Outcome::Done);
    }
    let timeout = Duration::from_secs(args.timeout);
    if done != "stopped" {
        return wait::until_ready(session, changed.into_iter().map(|object| (kind, object)).collect(), timeout).await;
    }
    let deadline = tokio::time::Instant::now() + timeout;
    for object in &changed {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let stopped = |object: Option<&Value>| object.is_none_or(|object| object["status"]["phase"] == "Stopped");
        let reached = wait::until(session, kind, Some(&session.namespace), name, deadline, stopped).await?;
        if matches!(reached, wait::Reached::No(_)) {
            session.output.error(&format!("{}/{name}: not stopped in time", kind.qualified()));
            return Ok(Outcome::Failed);
        }
    }
    Ok(Outcome::Done)
}
