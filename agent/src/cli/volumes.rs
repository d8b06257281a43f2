//! `nodelet volumes`: what there is, with sizes and users, and what no Volume names any more; `backup` and `restore`: one
//! Volume as a file.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::node_lists::{NodeListArgs, show, size, text};
use super::session::{Session, configuration};
use super::{Global, Outcome, table};

mod archive;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct VolumesArgs {
    #[command(subcommand)]
    command: Option<VolumesCommand>,
    #[command(flatten)]
    list: NodeListArgs,
}

#[derive(Debug, Subcommand)]
enum VolumesCommand {
    /// Write what a Volume of this node holds to a file (tar, compressed with zstd)
    Backup(archive::BackupArgs),
    /// Fill an empty Volume of this node from such a file
    Restore(archive::RestoreArgs),
}

pub(crate) async fn volumes(args: &VolumesArgs, global: &Global, session: &Session) -> anyhow::Result<Outcome> {
    match &args.command {
        None => list(&args.list, global, session).await,
        Some(VolumesCommand::Backup(args)) => archive::backup(args, session).await,
        Some(VolumesCommand::Restore(args)) => archive::restore(args, session).await,
    }
}

async fn list(args: &NodeListArgs, global: &Global, session: &Session) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("volumes.nodelet.dev")?;
    let namespace = if args.all_namespaces { None } else { Some(session.namespace.as_str()) };
    let list = session.client.list(kind, namespace, &[]).await?;
    if session.output.structured(&list)? {
        return Ok(Outcome::Done);
    }
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let mut rows: Vec<Vec<String>> = items.iter().map(row).collect();
    let known: BTreeSet<(&str, &str)> = items.iter().filter_map(|volume| key(&volume["metadata"])).collect();
    // The agent's data directory is read here; elsewhere than on its node there is nothing to be seen.
    if let Ok(configuration) = configuration(global) {
        for (namespace, name) in kept(&configuration.data_dir) {
            let part = json!({"namespace": namespace});
            if args.shows(session, &part) && !known.contains(&(&namespace, &name)) {
                let path = configuration.data_dir.join("volumes").join(&namespace).join(&name);
                let mut row = vec![configuration.node_name.clone(), namespace, name];
                row.extend(["Orphan", "", "", ""].map(str::to_owned));
                row.push(path.display().to_string());
                rows.push(row);
            }
        }
    }
    show(session, &["NODE", "NAMESPACE", "NAME", "PHASE", "CAPACITY", "USED", "USED BY", "PATH"], &rows)
}

fn key(metadata: &Value) -> Option<(&str, &str)> {
    Some((metadata["namespace"].as_str()?, metadata["name"].as_str()?))
}

fn row(volume: &Value) -> Vec<String> {
    let bytes = |value: &Value| value.as_u64().map_or_else(String::new, size);
    let (metadata, status) = (&volume["metadata"], &volume["status"]);
    let users = match &status["usedBy"] {
        Value::Null => String::new(),
        users => table::cell(users),
    };
    vec![
        text(&status["nodeName"]),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
        text(&status["phase"]),
        bytes(&status["capacityBytes"]),
        bytes(&status["usedBytes"]),
        users,
        text(&status["path"]),
    ]
}

/// Namespaces and names of what the data directory keeps data of.
fn kept(data_dir: &Path) -> Vec<(String, String)> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let top = data_dir.join("volumes");
    let mut found = Vec::new();
    for namespace in names(&top) {
        for name in names(&top.join(&namespace)) {
            let dir = top.join(&namespace).join(&name);
            if dir.join("data").exists() || dir.join("image").exists() {
                found.push((namespace.clone(), name));
            }
        }
    }
    found
}
