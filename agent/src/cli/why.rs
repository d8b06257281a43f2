//! `nodelet why`: the chain of causes behind a state, as far as conditions and events tell it.

use clap::Args;
use serde_json::{Value, json};

use super::output::Paint;
use super::session::Session;
use super::wait::condition;
use super::{Outcome, Usage, describe, events};
use crate::client::Kind;

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// KIND NAME, or KIND/NAME
    #[arg(value_name = "KIND NAME", required = true)]
    words: Vec<String>,
}

pub(crate) async fn why(args: &WhyArgs, session: &Session) -> anyhow::Result<Outcome> {
    let named = session.named(&args.words)?;
    let [(kind, name)] = named.as_slice() else {
        return Err(Usage("name one object".to_owned()).into());
    };
    let object = session.object(kind, name).await?;
    let mut causes = causes(&object);
    if kind.kind == "Workload" {
        causes.extend(behind(session, kind, &object).await);
    }
    for event in events::about(session, &object)
        .await
        .unwrap_or_default()
        .iter()
        .rev()
        .filter(|e| e["type"] == "Warning")
        .take(3)
    {
        let note = event["message"].as_str().or(event["note"].as_str()).unwrap_or_default();
        causes.push((format!("event {}", event["reason"].as_str().unwrap_or_default()), note.to_owned()));
    }
    let shown = format!("{}/{name}", kind.qualified());
    let told: Vec<Value> = causes.iter().map(|(what, message)| json!({"cause": what, "message": message})).collect();
    if session.output.structured(&json!({"object": shown, "causes": told}))? {
        return Ok(Outcome::Done);
    }
    let ready = condition(&object, "Ready").is_some_and(|ready| ready["status"] == "True");
    let headline = if ready { "is ready" } else { "is not ready" };
    session
        .output
        .line(format!("{shown} {}", session.output.paint(headline, if ready { Paint::Good } else { Paint::Bad })))?;
    for (depth, (what, message)) in causes.iter().enumerate() {
        let indent = "  ".repeat(depth.min(4) + 1);
        session.output.line(format!("{indent}because {what}: {message}"))?;
    }
    Ok(Outcome::Done)
}

/// The causes of the Workloads that this one waits for, and of those that they wait for.
async fn behind(session: &Session, kind: &Kind, object: &Value) -> Vec<(String, String)> {
    let waits = |object: &Value| condition(object, "Ready").is_some_and(|c| c["reason"] == "WaitingForDependency");
    let names = |object: &Value| -> Vec<String> {
        let all = object["spec"]["dependsOn"].as_array().into_iter().flatten();
        all.filter_map(|dependency| Some(dependency["name"].as_str()?.to_owned())).collect()
    };
    let mut known = vec![object["metadata"]["name"].as_str().unwrap_or_default().to_owned()];
    let mut ahead = if waits(object) { names(object) } else { Vec::new() };
    let mut found = Vec::new();
    while let Some(name) = ahead.pop() {
        if known.contains(&name) {
            continue;
        }
        known.push(name.clone());
        let Ok(other) = session.object(kind, &name).await else {
            found.push((format!("workload {name}"), "does not exist".to_owned()));
            continue;
        };
        if condition(&other, "Ready").is_some_and(|ready| ready["status"] == "True") {
            continue;
        }
        found.extend(self::causes(&other).into_iter().map(|(what, message)| (format!("{name}: {what}"), message)));
        if waits(&other) {
            ahead.extend(names(&other));
        }
    }
    found
}

/// From the general to the particular: Ready, the conditions it is made of, the containers.
fn causes(object: &Value) -> Vec<(String, String)> {
    let mut causes = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if object["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
        causes.push(("status".to_owned(), "no agent has looked at it yet".to_owned()));
    }
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
    let observed = object["status"]["observedGeneration"].as_i64();
    if observed.is_some_and(|observed| observed < generation) {
        causes.push(("status".to_owned(), format!("it tells of generation {observed:?}, and {generation} is wanted")));
    }
    let conditions = object["status"]["conditions"].as_array();
    let mut bad: Vec<&Value> =
        conditions.into_iter().flatten().filter(|c| c["status"] != "True" && c["type"] != "Progressing").collect();
    bad.sort_by_key(|c| c["type"] != "Ready");
    for c in bad {
        // Pressure conditions are good when False.
        if text(&c["type"]).ends_with("Pressure") && c["status"] == "False" {
            continue;
        }
        causes.push((
            format!("{} is {} ({})", text(&c["type"]), text(&c["status"]), text(&c["reason"])),
            text(&c["message"]),
        ));
    }
    for list in ["initContainerStatuses", "containerStatuses"] {
        for status in object["status"][list].as_array().into_iter().flatten().filter(|status| status["ready"] != true) {
            let mut message = describe::state(&status["state"]);
            if status["lastState"].as_object().is_some_and(|last| !last.is_empty()) {
                message = format!("{message}; before: {}", describe::state(&status["lastState"]));
            }
            causes.push((format!("container {}", text(&status["name"])), message));
        }
    }
    causes
}
