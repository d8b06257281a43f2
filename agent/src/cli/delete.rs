//! `nodelet delete`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::session::Session;
use super::{Outcome, Usage, files, wait};
use crate::client::Kind;

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// KIND NAME…, or KIND/NAME …
    #[arg(value_name = "KIND NAME", required_unless_present = "filename", conflicts_with = "filename")]
    words: Vec<String>,
    /// Delete what is in a file, a directory, or - for stdin
    #[arg(short, long, value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// Delete all objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Do not wait until they are gone from the node
    #[arg(long)]
    no_wait: bool,
    /// What is not there is no failure
    #[arg(long)]
    ignore_not_found: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) async fn delete(args: &DeleteArgs, session: &Session) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    let mut wanted: Vec<(&Kind, Option<String>, String)> = Vec::new();
    if args.filename.is_empty() {
        let named = session.named(&args.words)?;
        for (kind, name) in &named {
            wanted.push((kind, session.namespace_of(kind).map(str::to_owned), name.clone()));
        }
        if args.all {
            let kind = session.kinds.named(&args.words[0])?;
            let list = session.client.list(kind, session.namespace_of(kind), &[]).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                wanted.push((kind, item["metadata"]["namespace"].as_str().map(str::to_owned), name));
            }
        } else if named.is_empty() {
            return Err(Usage("which one? name it, or say --all".to_owned()).into());
        }
    } else {
        let (targets, faults) = files::read(session, &args.filename)?;
        for fault in faults {
            session.output.error(&fault.to_string());
            outcome = Outcome::Failed;
        }
        // What was applied last goes first: nothing loses what it depends on while it still runs.
        wanted.extend(targets.into_iter().rev().map(|target| (target.kind, target.namespace, target.object.key.name)));
    }

    let mut deleted = Vec::new();
    for (kind, namespace, name) in wanted {
        let shown = format!("{}/{name}", kind.qualified());
        let found = session.client.get(kind, namespace.as_deref(), &name).await?;
        let Some(found) = found else {
            if !args.ignore_not_found {
                session.output.error(&format!("{shown}: not found"));
                outcome = Outcome::Failed;
            }
            continue;
        };
        session.client.delete(kind, namespace.as_deref(), &name).await?;
        if !session.output.is_json() {
            session.output.line(format!("{shown} deleted"))?;
        }
        deleted.push((kind, namespace, name, found["metadata"]["uid"].clone()));
    }
    if !args.no_wait {
        let timeout = Duration::from_secs(args.timeout);
        for (kind, namespace, name, uid) in &deleted {
            wait::until_gone(session, kind, namespace.as_deref(), name, uid, timeout).await?;
        }
    }
    let told: Vec<Value> = deleted
        .iter()
        .map(|(kind, namespace, name, _)| json!({"kind": kind.kind, "namespace": namespace, "name": name}))
        .collect();
    session.output.structured(&json!({"deleted": told}))?;
    Ok(outcome)
}
