//! `nodelet networks`, and what lists of things on the nodes have in common.

use clap::Args;
use serde_json::{Value, json};

use super::session::Session;
use super::{Outcome, table};

#[derive(Debug, Args)]
pub(crate) struct NodeListArgs {
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
}

impl NodeListArgs {
    pub(super) fn shows(&self, session: &Session, part: &Value) -> bool {
        self.all_namespaces || part["namespace"] == session.namespace.as_str()
    }
}

pub(crate) async fn networks(args: &NodeListArgs, session: &Session) -> anyhow::Result<Outcome> {
    let row = |node: &str, part: &Value| {
        let subnets = part["subnets"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|subnet| text(&subnet["cidr"]))
            .collect::<Vec<_>>()
            .join(",");
        vec![
            node.to_owned(),
            text(&part["namespace"]),
            text(&part["name"]),
            text(&part["phase"]),
            text(&part["link"]),
            subnets,
            text(&part["endpoints"]),
            text(&part["message"]),
        ]
    };
    parts(
        args,
        session,
        "networks",
        &["NODE", "NAMESPACE", "NAME", "PHASE", "LINK", "SUBNETS", "ENDPOINTS", "MESSAGE"],
        row,
    )
    .await
}

/// One part of every NodeState, as a table.
async fn parts(
    args: &NodeListArgs,
    session: &Session,
    part: &str,
    headers: &[&str],
    row: impl Fn(&str, &Value) -> Vec<String>,
) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("nodestates.nodelet.dev")?;
    let nodes = session.client.list(kind, None, &[]).await?;
    let mut found = Vec::new();
    for node in nodes["items"].as_array().into_iter().flatten() {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        for entry in node["status"][part].as_array().into_iter().flatten().filter(|entry| args.shows(session, entry)) {
            found.push((name, entry));
        }
    }
    let told: Vec<Value> = found.iter().map(|(node, entry)| json!({"node": node, part: entry})).collect();
    if session.output.structured(&json!({"items": told}))? {
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = found.iter().map(|(node, entry)| row(node, entry)).collect();
    show(session, headers, &rows)
}

pub(super) fn show(session: &Session, headers: &[&str], rows: &[Vec<String>]) -> anyhow::Result<Outcome> {
    if rows.is_empty() {
        session.output.note("none here (-A shows all namespaces)");
        return Ok(Outcome::Done);
    }
    let headers: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
    table::print(&session.output, &headers, rows, true)?;
    Ok(Outcome::Done)
}

pub(super) fn text(value: &Value) -> String {
    if value.is_null() { String::new() } else { table::cell(value) }
}

/// Bytes for people: `12.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
