//! `nodelet events`, and the events part of other commands.

use clap::Args;
use futures::StreamExt;
use serde_json::Value;

use super::output::Output;
use super::session::Session;
use super::{Outcome, table};

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// About one object: KIND/NAME
    #[arg(long = "for", value_name = "KIND/NAME")]
    about: Option<String>,
    /// Keep showing new ones
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn events(args: &EventsArgs, session: &Session) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("events")?;
    let namespace = if args.all_namespaces { None } else { Some(session.namespace.as_str()) };
    let about = match &args.about {
        Some(word) => {
            session.named(std::slice::from_ref(word))?.first().map(|(kind, name)| (kind.kind.clone(), name.clone()))
        }
        None => None,
    };
    let wanted = |event: &Value| about.as_ref().is_none_or(|(kind, name)| is_about(event, kind, name));
    let list = session.client.list(kind, namespace, &[]).await?;
    let mut found: Vec<Value> =
        list["items"].as_array().into_iter().flatten().filter(|event| wanted(event)).cloned().collect();
    sort(&mut found);
    if session.output.structured(&serde_json::json!({"apiVersion": "v1", "kind": "List", "items": found}))? {
        return Ok(Outcome::Done);
    }
    if found.is_empty() && !args.watch {
        session.output.note("nothing happened lately");
    } else {
        print(&session.output, &found, args.all_namespaces, true)?;
    }
    if args.watch {
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let mut changes =
            std::pin::pin!(session.client.watch(&kind.path(namespace, None), &[("resourceVersion", &version)]).await?);
        while let Some(change) = changes.next().await {
            let change = change?;
            if matches!(change["type"].as_str(), Some("ADDED" | "MODIFIED")) && wanted(&change["object"]) {
                print(&session.output, &[change["object"].clone()], args.all_namespaces, false)?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// The events about one object, oldest first.
pub(crate) async fn about(session: &Session, object: &Value) -> anyhow::Result<Vec<Value>> {
    let kind = session.kinds.named("events")?;
    // Those of cluster-scoped objects are in `default`.
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let list = session.client.list(kind, Some(namespace), &[]).await?;
    let (kind, name) =
        (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
    let mut found: Vec<Value> =
        list["items"].as_array().into_iter().flatten().filter(|event| is_about(event, kind, name)).cloned().collect();
    sort(&mut found);
    Ok(found)
}

/// An Event is `v1` or `events.k8s.io/v1`; they call the same things by different names.
fn regarding(event: &Value) -> &Value {
    if event["involvedObject"].is_object() { &event["involvedObject"] } else { &event["regarding"] }
}

fn is_about(event: &Value, kind: &str, name: &str) -> bool {
    regarding(event)["kind"] == kind && regarding(event)["name"] == name
}

fn time(event: &Value) -> &Value {
    [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["deprecatedLastTimestamp"],
        &event["eventTime"],
    ]
    .into_iter()
    .find(|time| time.is_string())
    .unwrap_or(&event["metadata"]["creationTimestamp"])
}

fn sort(events: &mut [Value]) {
    events.sort_by(|a, b| time(a).as_str().cmp(&time(b).as_str()));
}

/// Prints them as a table.
pub(crate) fn print(output: &Output, events: &[Value], with_namespace: bool, with_headers: bool) -> anyhow::Result<()> {
    let mut headers: Vec<String> = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_owned).into();
    if with_namespace {
        headers.insert(0, "NAMESPACE".to_owned());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().replace('\n', " ");
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let about = regarding(event);
            let count =
                event["series"]["count"].as_i64().or(event["count"].as_i64()).or(event["deprecatedCount"].as_i64());
            let times = count.filter(|count| *count > 1).map(|count| format!(" (x{count})")).unwrap_or_default();
            let message = if event["message"].is_string() { &event["message"] } else { &event["note"] };
            let mut row = vec![
                format!("{}{times}", table::age_of(time(event))),
                text(&event["type"]),
                text(&event["reason"]),
                format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"])),
                text(message),
            ];
            if with_namespace {
                row.insert(0, text(&event["metadata"]["namespace"]));
            }
            row
        })
        .collect();
    table::print(output, &headers, &rows, with_headers)
}
