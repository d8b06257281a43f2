//! `nodelet diff -f`

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use similar::TextDiff;

use super::output::{Paint, yaml};
use super::session::Session;
use super::{Outcome, apply, files};
use crate::client::Apply;

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A file, a directory, or - for stdin
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// Exit with 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
}

pub(crate) async fn diff(args: &DiffArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (targets, mut faults) = files::read(session, &args.filename)?;
    let how = Apply { manager: apply::FIELD_MANAGER, force: true, dry_run: true };
    let mut differs = false;
    let mut told = Vec::new();
    for target in &targets {
        let namespace = target.namespace.as_deref();
        let name = &target.object.key.name;
        let live = session.client.get(target.kind, namespace, name).await?.map(comparable);
        let merged = match session.client.apply(target.kind, namespace, name, &target.object.value, how).await {
            Ok(merged) => comparable(merged),
            Err(error) => {
                faults.extend(target.object.refusal(&error));
                continue;
            }
        };
        let before = live.as_ref().map(yaml).transpose()?.unwrap_or_default();
        let after = yaml(&merged)?;
        if before == after {
            continue;
        }
        differs = true;
        let shown = format!("{}{}", namespace.map(|n| format!("{n}/")).unwrap_or_default(), target.shown());
        let text = TextDiff::from_lines(&before, &after)
            .unified_diff()
            .context_radius(3)
            .header(&format!("live {shown}"), &format!("{} {shown}", target.object.file))
            .to_string();
        if !session.output.is_json() {
            for line in text.lines() {
                let paint = match line.as_bytes().first() {
                    Some(b'+') => Paint::Good,
                    Some(b'-') => Paint::Bad,
                    Some(b'@') => Paint::Faint,
                    _ => {
                        session.output.line(line)?;
                        continue;
                    }
                };
                session.output.line(session.output.paint(line, paint))?;
            }
        }
        told.push(json!({"kind": target.kind.kind, "namespace": namespace, "name": name, "diff": text}));
    }
    session.output.structured(&json!({"differences": told}))?;
    for fault in &faults {
        session.output.error(&fault.to_string());
    }
    Ok(if !faults.is_empty() || (differs && args.exit_code) { Outcome::Failed } else { Outcome::Done })
}

/// Without what changes by itself.
fn comparable(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"] {
            metadata.remove(field);
        }
    }
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    object
}
