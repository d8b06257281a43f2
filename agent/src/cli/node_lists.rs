//! `nodelet volumes` and `networks`: what is on the nodes, with sizes and users.

use clap::Args;
use serde_json::{Value, json};

use super::session::Session;
use super::{Outcome, table};

#[derive(Debug, Args)]
pub(crate) struct NodeListArgs {
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
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

pub(crate) async fn volumes(args: &NodeListArgs, session: &Session) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("volumes.nodelet.dev")?;
    let namespace = if args.all_namespaces { None } else { Some(session.namespace.as_str()) };
    let list = session.client.list(kind, namespace, &[]).await?;
    if session.output.structured(&list)? {
        return Ok(Outcome::Done);
    }
    let bytes = |value: &Value| value.as_u64().map_or_else(String::new, size);
    let rows: Vec<Vec<String>> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| {
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
        })
        .collect();
    show(session, &["NODE", "NAMESPACE", "NAME", "PHASE", "CAPACITY", "USED", "USED BY", "PATH"], &rows)
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
