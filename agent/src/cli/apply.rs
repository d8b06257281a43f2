//! `nodelet apply -f`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::session::Session;
use super::{Outcome, files, progress, wait};
use crate::client::Apply;

/// Who applies from the command line.
pub(crate) const FIELD_MANAGER: &str = "nodelet-cli";

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file, a directory, or - for stdin
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// Wait until everything is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Take over fields that another program manages
    #[arg(long)]
    force_conflicts: bool,
    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn apply(args: &ApplyArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (targets, mut faults) = files::read(session, &args.filename)?;
    let how = Apply { manager: FIELD_MANAGER, force: args.force_conflicts, dry_run: args.dry_run };
    let mut results = Vec::new();
    let mut waited = Vec::new();
    for target in &targets {
        let namespace = target.namespace.as_deref();
        let name = &target.object.key.name;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let before = session.client.get(target.kind, namespace, name).await?.map(|object| version(&object));
        match session.client.apply(target.kind, namespace, name, &target.object.value, how).await {
            Ok(after) => {
                let action = match before {
                    None => "created",
                    Some(before) if before == version(&after) => "unchanged",
                    Some(_) => "configured",
                };
                if !session.output.is_json() {
                    let dry = if args.dry_run { " (dry run)" } else { "" };
                    session.output.line(format!("{} {action}{dry}", target.shown()))?;
                }
                results.push(json!({
                    "apiVersion": target.kind.api_version(), "kind": target.kind.kind, "namespace": namespace,
                    "name": name, "file": target.object.file, "action": action,
                }));
                waited.push((target, after));
            }
            Err(error) => faults.extend(target.object.refusal(&error)),
        }
    }
    faults.sort_by(|a, b| (&a.file, a.at).cmp(&(&b.file, b.at)));
    let told: Vec<Value> = faults
        .iter()
        .map(|fault| {
            json!({
                "file": fault.file, "line": fault.at.map(|at| at.line), "column": fault.at.map(|at| at.column),
                "object": fault.object, "field": fault.field, "message": fault.message,
            })
        })
        .collect();
    if !session.output.structured(&json!({"objects": results, "faults": told}))? {
        for fault in &faults {
            session.output.error(&fault.to_string());
        }
    }
    let mut outcome = if faults.is_empty() { Outcome::Done } else { Outcome::Failed };
    if args.wait && !args.dry_run {
        let images = progress::references(waited.iter().map(|(_, object)| object));
        let objects = waited.into_iter().map(|(target, object)| (target.kind, object)).collect();
        let ready = wait::until_ready(session, objects, Duration::from_secs(args.timeout));
        if progress::beside(session, images, ready).await? == Outcome::Failed {
            outcome = Outcome::Failed;
        }
    }
    Ok(outcome)
}
