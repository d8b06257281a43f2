//! Waiting for a state by watching, never by asking again and again.

use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use serde_json::Value;
use tokio::time::Instant;

use super::Outcome;
use super::session::Session;
use crate::client::Kind;

/// Waits until all `objects` whose kind has conditions are ready; names those that are not in time.
pub(crate) async fn until_ready(
    session: &Session,
    objects: Vec<(&Kind, Value)>,
    timeout: Duration,
) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let mut outcome = Outcome::Done;
    for (kind, object) in objects.into_iter().filter(|(kind, _)| kind.group == "nodelet.dev") {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
        let state = until(session, kind, namespace.as_deref(), &name, deadline, |object| {
            object.is_none_or(|object| is_ready(object, generation))
        });
        match state.await? {
            Reached::Yes(Some(_)) => {}
            Reached::Yes(None) => {
                session.output.error(&format!("{}/{name}: was deleted meanwhile", kind.qualified()));
                outcome = Outcome::Failed;
            }
            Reached::No(last) => {
                let said = last.as_ref().map_or_else(|| "it is gone".to_owned(), ready_sentence);
                session.output.error(&format!("{}/{name}: not ready in time: {said}", kind.qualified()));
                outcome = Outcome::Failed;
            }
        }
    }
    Ok(outcome)
}

/// How waiting ended.
pub(crate) enum Reached {
    /// The object in the wanted state; `None`: it is gone, and that was wanted.
    Yes(Option<Value>),
    /// The last state seen.
    No(Option<Value>),
}

/// Watches one object until `wanted` holds for it (`None`: it is absent), or until the deadline.
pub(crate) async fn until(
    session: &Session,
    kind: &Kind,
    namespace: Option<&str>,
    name: &str,
    deadline: Instant,
    wanted: impl Fn(Option<&Value>) -> bool,
) -> anyhow::Result<Reached> {
    let selector = format!("metadata.name={name}");
    let path = kind.path(namespace, None);
    loop {
        let list = session.client.list(kind, namespace, &[("fieldSelector", &selector)]).await?;
        let mut last = list["items"].as_array().and_then(|items| items.first()).cloned();
        if wanted(last.as_ref()) {
            return Ok(Reached::Yes(last));
        }
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let query = [("fieldSelector", selector.as_str()), ("resourceVersion", version.as_str())];
        let mut events = std::pin::pin!(session.client.watch(&path, &query).await?);
        loop {
            let event = match tokio::time::timeout_at(deadline, events.next()).await {
                Err(_) => return Ok(Reached::No(last)),
                // The server ends a watch now and then; look again.
                Ok(None | Some(Err(_))) => break,
                Ok(Some(Ok(event))) => event,
            };
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => last = Some(event["object"].clone()),
                Some("DELETED") => last = None,
                Some("ERROR") => break,
                _ => continue,
            }
            if wanted(last.as_ref()) {
                return Ok(Reached::Yes(last));
            }
        }
        if Instant::now() >= deadline {
            return Ok(Reached::No(last));
        }
        // A watch that ends at once must not become a busy loop.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the object is ready as of that generation. A Workload whose old revision serves while the new one comes up
/// is ready too, but not what is waited for.
pub(crate) fn is_ready(object: &Value, generation: i64) -> bool {
    let observed = object["status"]["observedGeneration"].as_i64().unwrap_or_default();
    let progressing = condition(object, "Progressing").is_some_and(|progressing| progressing["status"] == "True");
    !progressing && observed >= generation && condition(object, "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// The condition of this type.
pub(crate) fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

/// What the object says about its readiness.
pub(crate) fn ready_sentence(object: &Value) -> String {
    match condition(object, "Ready") {
        None => "it has no status yet; is the agent of its node running?".to_owned(),
        Some(ready) => {
            let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
            format!("Ready is {}: {}: {}", text("status"), text("reason"), text("message"))
        }
    }
}

/// Waits until an object is gone.
pub(crate) async fn until_gone(
    session: &Session,
    kind: &Kind,
    namespace: Option<&str>,
    name: &str,
    uid: &Value,
    timeout: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let gone = |object: Option<&Value>| object.is_none_or(|object| object["metadata"]["uid"] != *uid);
    match until(session, kind, namespace, name, deadline, gone).await? {
        Reached::Yes(_) => Ok(()),
        Reached::No(last) => {
            let finalizers = last.map(|object| object["metadata"]["finalizers"].to_string()).unwrap_or_default();
            Err(anyhow::anyhow!("still waiting for {finalizers} after {} s", timeout.as_secs()))
                .with_context(|| format!("deleting {}/{name}", kind.qualified()))
        }
    }
}
