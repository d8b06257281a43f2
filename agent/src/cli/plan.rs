//! `nodelet plan`: what the agent would do, step by step; with `-f` as if the files had been applied.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::node_lists::size;
use super::output::Paint;
use super::session::Session;
use super::{Outcome, Usage, apply, files};
use crate::client::Apply;

/// Objects of these kinds change what is done for the Workloads that refer to them.
const REFERRED_TO: &[&str] = &["ConfigMap", "Secret", "Volume", "Network"];

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Workloads. Default: all of the namespace
    #[arg(value_name = "NAME", conflicts_with = "filename")]
    names: Vec<String>,
    /// As if these were applied: a file, a directory, or - for stdin
    #[arg(short, long = "filename", value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

pub(crate) async fn plan(args: &PlanArgs, session: &Session) -> anyhow::Result<Outcome> {
    let mut faults = Vec::new();
    let (mut workloads, mut others) = (Vec::new(), Vec::new());
    if args.filename.is_empty() {
        workloads = declared(args, session).await?;
    } else {
        let (targets, found) = files::read(session, &args.filename)?;
        faults = found;
        let how = Apply { manager: apply::FIELD_MANAGER, force: true, dry_run: true };
        for target in &targets {
            let (namespace, name) = (target.namespace.as_deref(), &target.object.key.name);
            match session.client.apply(target.kind, namespace, name, &target.object.value, how).await {
                Ok(object) if target.kind.kind == "Workload" => workloads.push(object),
                Ok(object) => others.push(object),
                Err(error) => faults.extend(target.object.refusal(&error)),
            }
        }
        others.retain(|other| REFERRED_TO.iter().any(|kind| other["kind"] == **kind));
        workloads.extend(beside(session, &workloads, &others).await?);
    }
    let answer = if workloads.is_empty() { json!({"items": []}) } else { ask(session, workloads, others).await? };
    let items: Vec<&Value> = answer["items"].as_array().into_iter().flatten().collect();
    if !session.output.structured(&json!({"items": items}))? {
        for item in &items {
            show(session, item)?;
        }
        if items.iter().all(|item| is_settled(item)) && faults.is_empty() {
            session.output.note("nothing to do: everything is as declared");
        }
    }
    for fault in &faults {
        session.output.error(&fault.to_string());
    }
    let refused = items.iter().any(|item| item["refused"].is_string());
    Ok(if faults.is_empty() && !refused { Outcome::Done } else { Outcome::Failed })
}

/// Workloads as the API has them.
async fn declared(args: &PlanArgs, session: &Session) -> anyhow::Result<Vec<Value>> {
    let kind = session.kinds.named("workloads.nodelet.dev")?;
    if !args.names.is_empty() {
        let mut found = Vec::new();
        for name in &args.names {
            // `workload/web` as in every other command.
            let name = name.rsplit('/').next().unwrap_or(name);
            found.push(session.object(kind, name).await?);
        }
        return Ok(found);
    }
    let namespace = if args.all_namespaces { None } else { session.namespace_of(kind) };
    let mut list = session.client.list(kind, namespace, &[]).await?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// Other Workloads of the namespaces in which something changes that they may refer to.
async fn beside(session: &Session, given: &[Value], others: &[Value]) -> anyhow::Result<Vec<Value>> {
    let kind = session.kinds.named("workloads.nodelet.dev")?;
    let key = |object: &Value| (object["metadata"]["namespace"].clone(), object["metadata"]["name"].clone());
    let text = |object: &Value| Some(object["metadata"]["namespace"].as_str()?.to_owned());
    let namespaces: BTreeSet<String> = others.iter().filter_map(text).collect();
    let mut found = Vec::new();
    for namespace in namespaces {
        let mut list = session.client.list(kind, Some(&namespace), &[]).await?;
        let all = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        found.extend(all.into_iter().filter(|object| !given.iter().any(|other| key(other) == key(object))));
    }
    Ok(found)
}

/// Asks the agent of the node that the workloads run on.
async fn ask(session: &Session, workloads: Vec<Value>, others: Vec<Value>) -> anyhow::Result<Value> {
    let kind = session.kinds.named("nodestates.nodelet.dev")?;
    let list = session.client.list(kind, None, &[]).await?;
    let names: Vec<&str> =
        list["items"].as_array().into_iter().flatten().filter_map(|node| node["metadata"]["name"].as_str()).collect();
    let wanted = workloads.iter().find_map(|workload| workload["spec"]["nodeName"].as_str());
    let node = match (wanted, names.as_slice()) {
        (Some(node), _) => node,
        (None, [node]) => node,
        (None, []) => anyhow::bail!("no agent has said yet which node this is"),
        (None, _) => return Err(Usage("there are several nodes: name one in spec.nodeName".to_owned()).into()),
    };
    let path = format!("{}/plan", kind.path(None, Some(node)));
    let question = json!({"workloads": workloads, "others": others});
    Ok(session.client.send(Method::POST, &path, &[], question).await?)
}

fn is_settled(item: &Value) -> bool {
    let none = |field: &str| item[field].as_array().is_none_or(Vec::is_empty);
    item["refused"].is_null() && none("steps") && none("waits") && none("holds")
}

fn show(session: &Session, item: &Value) -> anyhow::Result<()> {
    let output = &session.output;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |field: &str| item[field].as_array().cloned().unwrap_or_default();
    let steps = list("steps");
    let (paint, headline) = match (&item["refused"], steps.len()) {
        (Value::String(why), _) => (Paint::Bad, format!("is refused: {why}")),
        (_, 0) => (Paint::Faint, "nothing to do".to_owned()),
        (_, 1) => (Paint::Bold, "1 step".to_owned()),
        (_, count) => (Paint::Bold, format!("{count} steps")),
    };
    let title = format!("{}/{}", text(&item["namespace"]), text(&item["name"]));
    output.line(format!("{title}  {}", output.paint(&headline, paint)))?;
    if let Some(held) = item["held"].as_str() {
        output.line(format!("  {}", output.paint(held, Paint::Warn)))?;
    }
    for wait in list("waits") {
        output.line(format!("  waits first: {}", text(&wait["message"])))?;
    }
    for pull in list("pulls") {
        let bytes = pull["bytes"].as_u64().map_or("size not known".to_owned(), size);
        output.line(format!("  pull {}: {bytes}", text(&pull["image"])))?;
    }
    for (number, step) in steps.iter().enumerate() {
        output.line(format!("  {:>2}. {}", number + 1, text(&step["what"])))?;
    }
    for hold in list("holds") {
        output.line(format!("  then container {} waits: {}", text(&hold["container"]), text(&hold["message"])))?;
    }
    let interrupted: Vec<String> = list("interrupted").iter().map(text).collect();
    if !interrupted.is_empty() {
        let names = interrupted.join(", ");
        output.line(match item["downSeconds"].as_u64() {
            None => format!("  interrupts {names}; it serves all the time"),
            Some(seconds) => format!("  interrupts {names}; down for the start and, before it, {seconds} s at most"),
        })?;
    }
    Ok(())
}
