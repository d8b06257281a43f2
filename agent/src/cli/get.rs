//! `nodelet get`: tables made by the server, or the objects themselves.

use anyhow::Context as _;
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};

use super::session::Session;
use super::{Format, Outcome, Usage, table};
use crate::client::Kind;

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// KIND [NAME…], KIND,KIND, or KIND/NAME …; `nodelet` is all kinds of nodelet
    #[arg(value_name = "KIND [NAME]", required = true)]
    words: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Keep showing changes
    #[arg(short, long)]
    watch: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Without the line of headers
    #[arg(long)]
    no_headers: bool,
}

pub(crate) async fn get(args: &GetArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (first, rest) = args.words.split_first().context("the command line has a kind")?;
    if first.contains('/') || !rest.is_empty() {
        if args.all_namespaces || args.selector.is_some() {
            return Err(Usage("a name goes with neither -A nor -l".to_owned()).into());
        }
        let named = session.named(&args.words)?;
        return some(args, session, &named).await;
    }
    let kinds = session.kinds.many(first)?;
    all(args, session, &kinds).await
}

/// Objects by name.
async fn some(args: &GetArgs, session: &Session, named: &[(&Kind, String)]) -> anyhow::Result<Outcome> {
    let structured = matches!(session.output.format, Some(Format::Json | Format::Yaml));
    let mut objects = Vec::new();
    let mut outcome = Outcome::Done;
    for (i, (kind, name)) in named.iter().enumerate() {
        let namespace = session.namespace_of(kind);
        if structured {
            objects.push(presentable(session.object(kind, name).await?));
        } else if args.watch {
            let query = [("fieldSelector", format!("metadata.name={name}"))];
            show(args, session, Place { kind, namespace, with_kind: false, apart: false }, &query).await?;
        } else {
            match session.client.table(&kind.path(namespace, Some(name)), &[]).await {
                Ok(rows) => print(args, session, kind, &rows, named.len() > 1, i == 0 && !args.no_headers)?,
                Err(error) => {
                    session.output.error(&error.to_string());
                    outcome = Outcome::Failed;
                }
            }
        }
    }
    if structured {
        let shown = if objects.len() == 1 { objects.remove(0) } else { list_of(objects) };
        session.output.structured(&shown)?;
    }
    Ok(outcome)
}

/// All objects of the kinds.
async fn all(args: &GetArgs, session: &Session, kinds: &[&Kind]) -> anyhow::Result<Outcome> {
    let selector: Vec<(&str, String)> =
        args.selector.iter().map(|selector| ("labelSelector", selector.clone())).collect();
    let structured = matches!(session.output.format, Some(Format::Json | Format::Yaml));
    if args.watch && (structured || kinds.len() > 1) {
        return Err(Usage("--watch shows the table of one kind".to_owned()).into());
    }
    let mut objects = Vec::new();
    let mut found = false;
    for kind in kinds {
        let namespace = if args.all_namespaces { None } else { session.namespace_of(kind) };
        if structured {
            let query: Vec<(&str, &str)> = selector.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let mut list = session.client.list(kind, namespace, &query).await?;
            objects.extend(list["items"].as_array_mut().map(std::mem::take).into_iter().flatten().map(presentable));
        } else {
            let apart = found && session.output.format != Some(Format::Name);
            let place = Place { kind, namespace, with_kind: kinds.len() > 1, apart };
            found |= show(args, session, place, &selector).await?;
        }
    }
    if structured {
        session.output.structured(&list_of(objects))?;
    } else if !found {
        let place = if args.all_namespaces { String::new() } else { format!(" in namespace {}", session.namespace) };
        session.output.note(&format!("nothing found{place}"));
    }
    Ok(Outcome::Done)
}

/// What a table is of, and how it stands among others.
#[derive(Clone, Copy)]
struct Place<'a> {
    kind: &'a Kind,
    namespace: Option<&'a str>,
    /// Names bear their kind.
    with_kind: bool,
    /// After another table: an empty line comes first.
    apart: bool,
}

/// Prints a list as a table and, with `-w`, what changes in it. Says whether there was a row.
async fn show(args: &GetArgs, session: &Session, place: Place<'_>, query: &[(&str, String)]) -> anyhow::Result<bool> {
    let Place { kind, namespace, with_kind, apart } = place;
    let query: Vec<(&str, &str)> = query.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let path = kind.path(namespace, None);
    let rows = session.client.table(&path, &query).await?;
    let any = rows["rows"].as_array().is_some_and(|rows| !rows.is_empty());
    if any {
        if apart {
            session.output.line("")?;
        }
        print(args, session, kind, &rows, with_kind, !args.no_headers)?;
    }
    if args.watch {
        let version = rows["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let mut query = query;
        query.push(("resourceVersion", &version));
        let mut events = std::pin::pin!(session.client.watch_table(&path, &query).await?);
        let mut headed = any;
        // The columns come with the first event of a watch only.
        let mut columns = rows["columnDefinitions"].clone();
        while let Some(event) = events.next().await {
            let mut event = event?;
            match event["type"].as_str() {
                Some("BOOKMARK") => continue,
                Some("ERROR") => anyhow::bail!("{}", event["object"]["message"].as_str().unwrap_or("the watch failed")),
                _ => {}
            }
            if event["object"]["columnDefinitions"].as_array().is_some_and(|columns| !columns.is_empty()) {
                columns = event["object"]["columnDefinitions"].clone();
            } else {
                event["object"]["columnDefinitions"] = columns.clone();
            }
            print(args, session, kind, &event["object"], with_kind, !headed && !args.no_headers)?;
            headed = true;
        }
    }
    Ok(any)
}

fn print(
    args: &GetArgs,
    session: &Session,
    kind: &Kind,
    rows: &Value,
    with_kind: bool,
    with_headers: bool,
) -> anyhow::Result<()> {
    let list: Vec<&Value> = rows["rows"].as_array().into_iter().flatten().collect();
    let name_of = |row: &Value| row["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if session.output.format == Some(Format::Name) {
        for row in list {
            session.output.line(format!("{}/{}", kind.qualified(), name_of(row)))?;
        }
        return Ok(());
    }
    let columns = table::columns(rows, session.output.format == Some(Format::Wide));
    let with_namespace = args.all_namespaces && kind.namespaced;
    let mut headers: Vec<String> = columns.iter().map(|(_, header)| header.clone()).collect();
    if with_namespace {
        headers.insert(0, "NAMESPACE".to_owned());
    }
    let cells = |row: &Value| {
        let mut cells: Vec<String> = columns.iter().map(|(i, _)| table::cell(&row["cells"][*i])).collect();
        if let (true, Some(first)) = (with_kind, cells.first_mut()) {
            *first = format!("{}/{first}", kind.qualified());
        }
        if with_namespace {
            cells.insert(0, row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
        }
        cells
    };
    let list: Vec<Vec<String>> = list.into_iter().map(cells).collect();
    table::print(&session.output, &headers, &list, with_headers)
}

fn list_of(objects: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": objects})
}

/// Without the book-keeping of field managers, as kubectl shows objects.
pub(crate) fn presentable(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}
