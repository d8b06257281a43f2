//! `nodelet describe`: everything about an object on one page, for people.

use clap::Args;
use serde_json::Value;

use super::output::{Output, Paint, yaml};
use super::session::Session;
use super::{Outcome, events, get, table};

#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    /// KIND [NAME…], or KIND/NAME …; a kind alone is all of them
    #[arg(value_name = "KIND [NAME]", required = true)]
    words: Vec<String>,
}

pub(crate) async fn describe(args: &DescribeArgs, session: &Session) -> anyhow::Result<Outcome> {
    let mut named = session.named(&args.words)?;
    if named.is_empty() {
        let kind = session.kinds.named(&args.words[0])?;
        let list = session.client.list(kind, session.namespace_of(kind), &[]).await?;
        let items = list["items"].as_array().into_iter().flatten();
        named = items.filter_map(|item| Some((kind, item["metadata"]["name"].as_str()?.to_owned()))).collect();
    }
    if named.is_empty() {
        session.output.note(&format!("nothing found in namespace {}", session.namespace));
    }
    for (i, (kind, name)) in named.iter().enumerate() {
        let object = get::presentable(session.object(kind, name).await?);
        let events = events::about(session, &object).await.unwrap_or_default();
        let mut whole = object.clone();
        whole["events"] = Value::Array(events.clone());
        if session.output.structured(&whole)? {
            continue;
        }
        if i > 0 {
            session.output.line("")?;
        }
        page(&session.output, &object, &events)?;
    }
    Ok(Outcome::Done)
}

fn page(output: &Output, object: &Value, events: &[Value]) -> anyhow::Result<()> {
    let metadata = &object["metadata"];
    let field = |name: &str, value: String| output.line(format!("{name:<13}{value}"));
    field("Name:", text(&metadata["name"]))?;
    if metadata["namespace"].is_string() {
        field("Namespace:", text(&metadata["namespace"]))?;
    }
    field("Kind:", format!("{} ({})", text(&object["kind"]), text(&object["apiVersion"])))?;
    pairs(output, "Labels:", &metadata["labels"])?;
    pairs(output, "Annotations:", &metadata["annotations"])?;
    field(
        "Created:",
        format!("{} ({} ago)", text(&metadata["creationTimestamp"]), table::age_of(&metadata["creationTimestamp"])),
    )?;
    if metadata["deletionTimestamp"].is_string() {
        field(
            "Deleting:",
            format!(
                "since {}, waiting for {}",
                text(&metadata["deletionTimestamp"]),
                table::cell(&metadata["finalizers"])
            ),
        )?;
    }
    if let Some(phase) = object["status"]["phase"].as_str() {
        field("Phase:", phase.to_owned())?;
    }
    conditions(output, &object["status"]["conditions"])?;
    containers(output, object)?;
    block(output, "Spec", &object["spec"])?;
    block(output, "Data", &secretless(object))?;
    let mut rest = object["status"].clone();
    if let Some(rest) = rest.as_object_mut() {
        for told in ["conditions", "containerStatuses", "initContainerStatuses", "phase"] {
            rest.remove(told);
        }
    }
    block(output, "Status", &rest)?;
    section(output, "Events")?;
    if events.is_empty() { output.line("  none lately") } else { events::print(output, events, false, true) }
}

/// The data of a ConfigMap; of a Secret, how long its values are.
fn secretless(object: &Value) -> Value {
    if object["kind"] != "Secret" {
        return object["data"].clone();
    }
    let lengths = object["data"].as_object().into_iter().flatten().map(|(key, value)| {
        let encoded = value.as_str().unwrap_or_default().trim_end_matches('=').len();
        (key.clone(), Value::String(format!("{} bytes", encoded * 3 / 4)))
    });
    Value::Object(lengths.collect())
}

fn conditions(output: &Output, conditions: &Value) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = conditions
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            vec![
                text(&c["type"]),
                text(&c["status"]),
                text(&c["reason"]),
                table::age_of(&c["lastTransitionTime"]),
                text(&c["message"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    section(output, "Conditions")?;
    let headers = ["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"].map(str::to_owned);
    table::print(output, &headers, &rows, true)
}

fn containers(output: &Output, object: &Value) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (list, type_) in [("initContainerStatuses", "init"), ("containerStatuses", "main")] {
        for status in object["status"][list].as_array().into_iter().flatten() {
            let mut image = text(&status["image"]);
            if let Some(id) = status["containerID"].as_str() {
                image = format!("{image}  {id}");
            }
            rows.push(vec![
                text(&status["name"]),
                type_.to_owned(),
                state(&status["state"]),
                status["ready"].to_string(),
                status["restartCount"].to_string(),
                state(&status["lastState"]),
                image,
            ]);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    section(output, "Containers")?;
    let headers = ["NAME", "TYPE", "STATE", "READY", "RESTARTS", "BEFORE", "IMAGE"].map(str::to_owned);
    table::print(output, &headers, &rows, true)
}

/// `running (3m)`, `waiting: ImagePullBackOff`, `terminated: Error, exit 1 (5s ago)`
pub(crate) fn state(state: &Value) -> String {
    if state["running"].is_object() {
        return format!("running ({})", table::age_of(&state["running"]["startedAt"]));
    }
    if state["waiting"].is_object() {
        let (reason, message) = (text(&state["waiting"]["reason"]), text(&state["waiting"]["message"]));
        return if message.is_empty() { format!("waiting: {reason}") } else { format!("waiting: {reason}: {message}") };
    }
    let ended = &state["terminated"];
    if ended.is_object() {
        let when = if ended["finishedAt"].is_string() {
            format!(" ({} ago)", table::age_of(&ended["finishedAt"]))
        } else {
            String::new()
        };
        return format!("terminated: {}, exit {}{when}", text(&ended["reason"]), ended["exitCode"]);
    }
    "-".to_owned()
}

fn section(output: &Output, name: &str) -> anyhow::Result<()> {
    output.line("")?;
    output.line(output.paint(&format!("{name}:"), Paint::Bold))
}

fn block(output: &Output, name: &str, value: &Value) -> anyhow::Result<()> {
    if value.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(());
    }
    section(output, name)?;
    for line in yaml(value)?.lines() {
        output.line(format!("  {line}"))?;
    }
    Ok(())
}

fn pairs(output: &Output, name: &str, map: &Value) -> anyhow::Result<()> {
    for (i, (key, value)) in map.as_object().into_iter().flatten().enumerate() {
        let name = if i == 0 { name } else { "" };
        output.line(format!("{name:<13}{key}={}", text(value)))?;
    }
    Ok(())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace('\n', " "),
        other => other.to_string(),
    }
}
