//! `nodelet images`: what is on the nodes; `nodelet images prune`: away with what nobody needs.

mod list;
mod pull;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::node_lists::{NodeListArgs, size};
use super::session::Session;
use super::{Outcome, table};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ImagesArgs {
    #[command(subcommand)]
    command: Option<ImagesCommand>,
    #[command(flatten)]
    list: NodeListArgs,
}

#[derive(Debug, Subcommand)]
enum ImagesCommand {
    /// Get an image onto the nodes and keep it there, by an Image object
    Pull(pull::PullArgs),
    /// Remove the images that no Image, Workload or container needs
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// On this node only. Default: on every node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

pub(crate) async fn images(args: &ImagesArgs, session: &Session) -> anyhow::Result<Outcome> {
    match &args.command {
        None => list::list(&args.list, session).await,
        Some(ImagesCommand::Pull(args)) => pull::pull(args, session).await,
        Some(ImagesCommand::Prune(args)) => prune(args, session).await,
    }
}

async fn prune(args: &PruneArgs, session: &Session) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("nodestates.nodelet.dev")?;
    let nodes: Vec<String> = match &args.node {
        Some(node) => vec![node.clone()],
        None => {
            let list = session.client.list(kind, None, &[]).await?;
            let names = list["items"].as_array().into_iter().flatten();
            names.filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())).collect()
        }
    };
    let query: &[(&str, &str)] = if args.dry_run { &[("dryRun", "All")] } else { &[] };
    let mut answers = Vec::new();
    for node in nodes {
        let path = format!("{}/prune", kind.path(None, Some(&node)));
        let answer = session.client.send(Method::POST, &path, query, Value::Null).await?;
        answers.push((node, answer));
    }
    let failed = answers.iter().any(|(_, answer)| answer["failed"].as_array().is_some_and(|failed| !failed.is_empty()));
    let outcome = if failed { Outcome::Failed } else { Outcome::Done };
    let told: Vec<Value> = answers.iter().map(|(node, answer)| json!({"node": node, "collection": answer})).collect();
    if session.output.structured(&json!({"items": told}))? {
        return Ok(outcome);
    }
    for (node, answer) in &answers {
        show(session, node, answer, args.dry_run)?;
    }
    Ok(outcome)
}

fn show(session: &Session, node: &str, answer: &Value, dry_run: bool) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let removed: Vec<&Value> = answer["removed"].as_array().into_iter().flatten().collect();
    if !removed.is_empty() {
        let headers = ["NODE", "REFERENCE", "SIZE", "UNUSED SINCE"].map(str::to_owned);
        let rows: Vec<Vec<String>> = removed
            .iter()
            .map(|image| {
                let bytes = image["sizeBytes"].as_u64().unwrap_or_default();
                vec![node.to_owned(), text(&image["reference"]), size(bytes), text(&image["unusedSince"])]
            })
            .collect();
        table::print(&session.output, &headers, &rows, true)?;
    }
    for problem in answer["failed"].as_array().into_iter().flatten() {
        session.output.error(&format!("{node}: {}", text(problem)));
    }
    let count = match removed.len() {
        1 => "1 image".to_owned(),
        count => format!("{count} images"),
    };
    session.output.note(&match (removed.is_empty(), dry_run) {
        (true, _) => format!("{node}: every image is needed"),
        (false, true) => format!("{node}: {count} would be removed"),
        (false, false) => {
            format!("{node}: removed {count}, freed {}", size(answer["freedBytes"].as_u64().unwrap_or_default()))
        }
    });
    Ok(())
}
