//! What the sources say, where people look for it: a condition of the node, Events, and readiness.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use super::http::Readiness;
use crate::client::{Client, Error, Kinds};
use crate::manifest::chain;
use crate::sources::directory::Report;

/// The condition of NodeState.
const CONDITION: &str = "SourcesReady";
/// Messages are cut to this many bytes.
const MESSAGE: usize = 2048;

/// Follows the reports of all sources until `shutdown`.
pub(super) async fn run(
    client: Client,
    node: String,
    mut reports: Vec<watch::Receiver<Option<Report>>>,
    ready: watch::Sender<Readiness>,
    shutdown: CancellationToken,
) -> Result<(), Infallible> {
    let mut changes = futures::stream::select_all(reports.iter().cloned().map(WatchStream::new));
    let mut told = BTreeSet::new();
    let mut written: Option<Value> = None;
    loop {
        let latest: Vec<Report> = reports.iter_mut().filter_map(|report| report.borrow_and_update().clone()).collect();
        ready.send_if_modified(|now| !std::mem::replace(&mut now.sources, latest.len() == reports.len()));
        let mut wait = Duration::from_secs(3600);
        if latest.len() == reports.len() {
            let wanted = condition(&latest);
            if written.as_ref() != Some(&wanted) {
                match write(&client, &node, &wanted).await {
                    Ok(()) => written = Some(wanted),
                    // The NodeState is made by the reconcilers; it may not be there yet.
                    Err(error) => {
                        tracing::debug!(error = chain(&error), "writing the condition of the sources");
                        wait = Duration::from_millis(500);
                    }
                }
            }
            for report in &latest {
                for fault in report.faults.iter().chain(&report.unusable).chain(&report.kept) {
                    if told.insert(fault.clone())
                        && let Err(error) = event(&client, &node, fault).await
                    {
                        tracing::debug!(error = chain(&error), "writing an event");
                    }
                }
            }
            let now: BTreeSet<&String> =
                latest.iter().flat_map(|r| r.faults.iter().chain(&r.unusable).chain(&r.kept)).collect();
            told.retain(|fault| now.contains(fault));
        }
        // All arms are cancel-safe: a change that was not taken is seen by the next look.
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(_) = changes.next() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The condition without its times.
fn condition(reports: &[Report]) -> Value {
    let mut said: Vec<&String> = Vec::new();
    for report in reports {
        said.extend(report.unusable.iter().chain(&report.faults).chain(&report.pending).chain(&report.kept));
    }
    let objects: usize = reports.iter().map(|report| report.objects).sum();
    if said.is_empty() {
        let message = format!("{objects} objects of {} sources are in the API", reports.len());
        return json!({"type": CONDITION, "status": "True", "reason": "Applied", "message": message});
    }
    let first: String = said.iter().take(20).map(|line| format!("{line}\n")).collect();
    let more = if said.len() > 20 { format!("and {} more", said.len() - 20) } else { String::new() };
    let message = cut(&format!("{first}{more}"));
    json!({"type": CONDITION, "status": "False", "reason": "ManifestFaults", "message": message})
}

fn cut(text: &str) -> String {
    let text = text.trim_end();
    let mut end = text.len().min(MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Puts the condition among the node's others.
async fn write(client: &Client, node: &str, wanted: &Value) -> Result<(), Error> {
    let kinds = Kinds::load(client).await?;
    let kind = kinds.named("nodestates.nodelet.dev")?;
    let path = kind.path(None, Some(node));
    let object = client.send(http::Method::GET, &path, &[], Value::Null).await?;
    let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let old = conditions.iter().find(|c| c["type"] == CONDITION).cloned().unwrap_or(Value::Null);
    let mut new = wanted.clone();
    let changed = old["status"] != new["status"];
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string();
    new["lastTransitionTime"] = if changed { json!(now) } else { old["lastTransitionTime"].clone() };
    if old == new {
        return Ok(());
    }
    conditions.retain(|c| c["type"] != CONDITION);
    conditions.push(new);
    // With the version that was read: somebody else's condition must not be lost.
    let patch = json!({
        "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
        "status": {"conditions": conditions},
    });
    client.merge(&format!("{path}/status"), "nodelet-source", &patch).await?;
    Ok(())
}

async fn event(client: &Client, node: &str, fault: &str) -> Result<(), Error> {
    let kinds = Kinds::load(client).await?;
    let kind = kinds.of("v1", "Event")?;
    let now = jiff::Timestamp::now();
    let seconds = now.round(jiff::Unit::Second).unwrap_or_default().to_string();
    let object = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": format!("{node}.{:x}", now.as_nanosecond()), "namespace": "default"},
        "involvedObject": {"apiVersion": "nodelet.dev/v1alpha1", "kind": "NodeState", "name": node},
        "type": "Warning",
        "reason": "ManifestFault",
        "message": cut(fault).chars().take(1000).collect::<String>(),
        "count": 1,
        "firstTimestamp": seconds,
        "lastTimestamp": seconds,
        "reportingComponent": "nodelet",
        "reportingInstance": node,
        "source": {"component": "nodelet", "host": node},
    });
    client.create(kind, Some("default"), &object).await?;
    Ok(())
}
