//! `nodelet images pull`: an Image object for the reference, and the wait for it.
//!
//! The object stays, since it is what keeps the image on the nodes; deleting it gives the image up.

use std::time::Duration;

use clap::Args;
use nodelet_drivers::images::normalize;
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio::time::Instant;

use crate::cli::session::Session;
use crate::cli::wait::{self, Reached};
use crate::cli::{Outcome, Usage, progress};
use crate::client::{Apply, Kind};

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The image: `[registry/]name[:tag][@sha256:…]`
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// Name of the Image object. Default: made from the reference
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Secret with credentials for the registry; may be given several times
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) async fn pull(args: &PullArgs, session: &Session) -> anyhow::Result<Outcome> {
    let reference = normalize(&args.reference).map_err(|error| Usage(error.to_string()))?;
    let kind = session.kinds.named("images.nodelet.dev")?;
    let object = wish(args, session, kind, &reference).await?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let wanted = progress::references([&object]);
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
    let is_decided = |object: Option<&Value>| {
        object.is_none_or(|object| wait::is_ready(object, generation) || failure(object, generation).is_some())
    };
    let arrival = wait::until(session, kind, Some(&session.namespace), &name, deadline, is_decided);
    let reached = tokio::select! {
        // Cancel-safe: waiting changes nothing.
        reached = progress::beside(session, wanted, arrival) => reached?,
        _ = tokio::signal::ctrl_c() => {
            session.output.note(&format!(
                "the pull goes on without this command: `nodelet images` shows it, `nodelet delete image {name}` gives it up"
            ));
            return Ok(Outcome::Failed);
        }
    };
    let said = match reached {
        Reached::Yes(Some(object)) if wait::is_ready(&object, generation) => {
            let digest = object["status"]["digest"].as_str().unwrap_or_default();
            let told = json!({
                "name": name, "namespace": session.namespace, "reference": reference, "digest": digest,
                "nodes": object["status"]["readyNodes"],
            });
            if !session.output.structured(&told)? {
                session.output.line(format!("{reference} {digest}"))?;
            }
            return Ok(Outcome::Done);
        }
        Reached::Yes(Some(object)) | Reached::No(Some(object)) => wait::ready_sentence(&object),
        Reached::Yes(None) | Reached::No(None) => "it was deleted meanwhile".to_owned(),
    };
    session.output.error(&format!("images/{name}: {said}"));
    Ok(Outcome::Failed)
}

/// The Image of that reference: the one that is there, or a new one.
async fn wish(args: &PullArgs, session: &Session, kind: &Kind, reference: &str) -> anyhow::Result<Value> {
    let namespace = Some(session.namespace.as_str());
    let list = session.client.list(kind, namespace, &[]).await?;
    let same = |object: &&Value| {
        let other = object["spec"]["reference"].as_str().and_then(|other| normalize(other).ok());
        let named = args.name.as_ref().is_none_or(|name| object["metadata"]["name"] == name.as_str());
        named && other.as_deref() == Some(reference) && object["metadata"]["deletionTimestamp"].is_null()
    };
    if args.secrets.is_empty()
        && let Some(there) = list["items"].as_array().into_iter().flatten().find(same)
    {
        return Ok(there.clone());
    }
    let name = args.name.clone().unwrap_or_else(|| name_of(reference));
    let secrets: Vec<Value> = args.secrets.iter().map(|name| json!({ "name": name })).collect();
    let mut object = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": { "name": name },
        "spec": { "reference": args.reference },
    });
    if !secrets.is_empty() {
        object["spec"]["pullSecrets"] = secrets.into();
    }
    let how = Apply { manager: super::super::apply::FIELD_MANAGER, force: false, dry_run: false };
    Ok(session.client.apply(kind, namespace, &name, &object, how).await?)
}

/// A name for people that no other reference has: the image's own, and a bit of a hash.
fn name_of(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or_default();
    let last = last.split_once('@').map_or(last, |(name, _)| name);
    let name: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let hash = sha2::Sha256::digest(reference);
    let name: String = name.trim_matches('-').chars().take(40).collect();
    format!("{}-{:02x}{:02x}{:02x}", name.trim_matches('-'), hash[0], hash[1], hash[2])
}

/// Why it cannot be had, for now at least; the agent goes on trying where that makes sense.
fn failure(object: &Value, generation: i64) -> Option<&Value> {
    let observed = object["status"]["observedGeneration"].as_i64().unwrap_or_default();
    let ready =
        wait::condition(object, "Ready").filter(|ready| observed >= generation && ready["status"] == "False")?;
    let under_way = ["Pending", "Resolving", "Pulling", "Unpacking", "Progressing"];
    let failed = !under_way.iter().any(|reason| ready["reason"] == *reason);
    failed.then_some(ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_good_and_told_apart() {
        let (one, two) = (name_of("docker.io/library/nginx:1.27"), name_of("registry.example/nginx:1.27"));
        assert!(one.starts_with("nginx-1-27-") && two.starts_with("nginx-1-27-"), "{one} {two}");
        assert_ne!(one, two);
        let long = name_of(&format!("localhost:5000/x/{}_:A.b@sha256:{}", "y".repeat(80), "0".repeat(64)));
        assert!(long.len() < 64 && long.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{long}");
    }

    #[test]
    fn failures_are_told_from_what_takes_time() {
        let object = |status: &str, reason: &str, observed: i64| {
            json!({"status": {
                "observedGeneration": observed,
                "conditions": [{"type": "Ready", "status": status, "reason": reason, "message": ""}],
            }})
        };
        for (status, reason, observed, expected) in [
            ("False", "PullFailed", 2, true),
            ("False", "VerificationFailed", 2, true),
            ("False", "Pulling", 2, false),
            ("False", "PullFailed", 1, false),
            ("True", "Pulled", 2, false),
        ] {
            assert_eq!(
                failure(&object(status, reason, observed), 2).is_some(),
                expected,
                "{status} {reason} {observed}"
            );
        }
    }
}
